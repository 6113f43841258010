//! The settings of a whole system in one process, and how they become those of its parts.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use streamgauge_broker::{BrokerConfig, Fsync};
use streamgauge_lifecycle::reachable;
use streamgauge_producer::TokenConfig;
use streamgauge_settings::{Secret, SecretUrl};
use streamgauge_telemetry::{LogConfig, LogFormat, TelemetryConfig};

use super::refuse;
use crate::error::CliError;

/// What the names of environment variables begin with.
pub const ENV_PREFIX: &str = "STREAMGAUGE_UP";

/// The services that a system consists of, beside the log.
const PARTS: u64 = 3;

/// One in so many of the time to drain is kept for what ends last: the log, and spans.
const RESERVE: u64 = 5;

/// One in so many of that is the spans'.
const SPANS_OF_RESERVE: u64 = 4;

/// By when, from the signal on, what has to have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainBudget {
    /// The three services.
    pub parts: Duration,
    /// The log.
    pub log: Duration,
    /// Spans, and with them everything.
    pub all: Duration,
}

/// The settings of `streamgauge up`. The parts have theirs below; what this process must decide by
/// itself (the log's address, the folders, the number of partitions) it sets over them, and refuses
/// where it was set there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpConfig {
    /// The folder that holds everything: the log, the store, the addresses.
    pub data_dir: PathBuf,
    /// Listen on this address instead of each part's own.
    pub host: Option<IpAddr>,
    /// Added to each port, so that several systems run side by side.
    pub port_offset: u16,
    /// Take free ports; `endpoints.json` in the data folder says which.
    pub ephemeral_ports: bool,
    /// Partitions of the topics; fixed once they are made.
    pub partitions: i32,
    /// Time for everything to become ready, in milliseconds.
    pub ready_timeout_ms: u64,
    /// Time from a signal to the end of the process, in milliseconds: a fifth is kept for the log and
    /// spans, the rest is shared by the parts.
    pub shutdown_deadline_ms: u64,
    /// Logs and traces of all parts.
    pub telemetry: TelemetryConfig,
    /// The embedded log.
    pub broker: BrokerConfig,
    /// The write side.
    pub producer: streamgauge_producer::Config,
    /// The stream processor.
    pub consumer: streamgauge_consumer::Config,
    /// The read side.
    pub analytics: streamgauge_analytics::Config,
}

impl Default for UpConfig {
    fn default() -> Self {
        let mut config = Self {
            data_dir: PathBuf::from("data"),
            host: None,
            port_offset: 0,
            ephemeral_ports: false,
            partitions: 4,
            ready_timeout_ms: 30_000,
            shutdown_deadline_ms: 20_000,
            telemetry: TelemetryConfig {
                log: LogConfig {
                    format: LogFormat::Text,
                    filter: String::from("warn"),
                },
                ..TelemetryConfig::default()
            },
            // The store is durable at each commit: a log that is not could fall behind it.
            broker: BrokerConfig {
                fsync: Fsync::Always,
                ..BrokerConfig::default()
            },
            producer: streamgauge_producer::Config::default(),
            consumer: streamgauge_consumer::Config::default(),
            analytics: streamgauge_analytics::Config::default(),
        };
        // Next to the log, so that a log that cannot be written for a while costs no event.
        config.producer.spool.enabled = true;
        // Both of its doors are here, so that nothing has to be set for it.
        config.analytics.canary.enabled = true;
        // A laptop's system is nobody else's business unless its owner says so.
        for (_, listen) in config.listens() {
            listen.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        config
    }
}

impl UpConfig {
    /// Every address that is listened on, with its setting.
    fn listens(&mut self) -> Vec<(&'static str, &mut SocketAddr)> {
        let (producer, consumer, analytics) = (
            &mut self.producer.http,
            &mut self.consumer.http,
            &mut self.analytics.http,
        );
        let always = [
            ("broker.listen", &mut self.broker.listen),
            ("producer.http.listen", &mut producer.listen),
            ("producer.grpc.listen", &mut self.producer.grpc.listen),
            ("consumer.http.listen", &mut consumer.listen),
            ("consumer.grpc.listen", &mut self.consumer.grpc.listen),
            ("analytics.http.listen", &mut analytics.listen),
            ("analytics.grpc.listen", &mut self.analytics.grpc.listen),
        ];
        let where_set = [
            ("producer.http.metrics.listen", &mut producer.metrics.listen),
            ("consumer.http.metrics.listen", &mut consumer.metrics.listen),
            (
                "analytics.http.metrics.listen",
                &mut analytics.metrics.listen,
            ),
        ];
        let where_set = where_set
            .into_iter()
            .filter_map(|(setting, listen)| Some((setting, listen.as_mut()?)));
        always.into_iter().chain(where_set).collect()
    }

    /// Whether each part listens where the tools look by themselves.
    pub fn has_usual_addresses(&mut self) -> bool {
        let mut usual = Self::default();
        let usual: Vec<SocketAddr> = usual.listens().iter().map(|(_, listen)| **listen).collect();
        self.listens()
            .iter()
            .zip(usual)
            .all(|((_, listen), usual)| reachable(**listen) == usual)
    }

    /// Decides what the parts cannot decide alone: addresses, folders, topics.
    ///
    /// # Errors
    /// When a port does not exist, settings of the parts contradict each other, or one of them would
    /// have no effect.
    pub fn settle(&mut self) -> Result<(), CliError> {
        refuse::without_effect(self)?;
        let (host, offset, ephemeral) = (self.host, self.port_offset, self.ephemeral_ports);
        for (setting, listen) in self.listens() {
            if let Some(host) = host {
                listen.set_ip(host);
            }
            let port = if ephemeral {
                Some(0)
            } else {
                listen.port().checked_add(offset)
            };
            let port = port.ok_or_else(|| {
                CliError::usage(format!(
                    "{setting}: port {} and port_offset {offset} exceed 65535",
                    listen.port()
                ))
            })?;
            listen.set_port(port);
        }
        self.broker.data_dir = self.data_dir.join("log");
        self.broker.num_partitions = self.partitions;
        let default_store = streamgauge_analytics::Config::default().store.url;
        if self.analytics.store.url.expose() == default_store.expose() {
            self.analytics.store.url = sqlite(&self.data_dir);
        }
        if self.producer.spool.dir == streamgauge_producer::SpoolConfig::default().dir {
            self.producer.spool.dir = self.data_dir.join("spool");
        }
        self.producer.topics.partitions = self.partitions;
        self.consumer.topics.partitions = self.partitions;
        let share_ms = self.part_deadline_ms();
        for (_, deadline_ms) in self.part_deadlines() {
            *deadline_ms = share_ms.min(*deadline_ms);
        }
        self.check_names()
    }

    /// The time that each part has at least to drain, in milliseconds.
    pub const fn part_deadline_ms(&self) -> u64 {
        (self.shutdown_deadline_ms - self.shutdown_deadline_ms / RESERVE) / PARTS
    }

    /// The parts' own deadlines, with their settings.
    pub const fn part_deadlines(&mut self) -> [(&'static str, &mut u64); PARTS as usize] {
        [
            (
                "producer.shutdown_deadline_ms",
                &mut self.producer.shutdown_deadline_ms,
            ),
            (
                "consumer.shutdown_deadline_ms",
                &mut self.consumer.shutdown_deadline_ms,
            ),
            (
                "analytics.shutdown_deadline_ms",
                &mut self.analytics.shutdown_deadline_ms,
            ),
        ]
    }

    /// One topic under two names would be two topics, and the system would wait for ever; one group
    /// under two names has a lag that nobody works off.
    fn check_names(&self) -> Result<(), CliError> {
        let (producer, consumer, analytics) = (
            &self.producer.topics,
            &self.consumer.topics,
            &self.analytics.topics,
        );
        let pairs = [
            (
                "producer.topics.events",
                &producer.events,
                "consumer.topics.events",
                &consumer.events,
            ),
            (
                "producer.topics.events",
                &producer.events,
                "analytics.topics.events",
                &analytics.events,
            ),
            (
                "consumer.topics.metrics",
                &consumer.metrics,
                "analytics.topics.metrics",
                &analytics.metrics,
            ),
            (
                "consumer.group.group",
                &self.consumer.group.group,
                "analytics.topics.group",
                &analytics.group,
            ),
        ];
        match pairs.into_iter().find(|(_, one, _, other)| one != other) {
            None => Ok(()),
            Some((one_setting, one, other_setting, other)) => Err(CliError::usage(format!(
                "{one_setting} is {one} and {other_setting} is {other}: set both to the same name"
            ))),
        }
    }

    /// Points the parts at the log.
    pub fn use_log(&mut self, bootstrap: &str) {
        bootstrap.clone_into(&mut self.producer.kafka.brokers);
        bootstrap.clone_into(&mut self.consumer.kafka.brokers);
        bootstrap.clone_into(&mut self.analytics.kafka.brokers);
    }

    /// Shows the canary the producer's doors. Where credentials are needed it is given one, known to nobody else.
    pub fn use_producer(&mut self, http: SocketAddr, grpc: SocketAddr) {
        let canary = &mut self.analytics.canary;
        canary.producer_http = reachable(http).to_string();
        canary.producer_grpc = reachable(grpc).to_string();
        let tokens = &mut self.producer.auth.tokens;
        if canary.enabled && canary.token.is_empty() && !tokens.is_empty() {
            canary.token = Secret::new(format!("{:032x}", rand::random::<u128>()));
            tokens.push(TokenConfig {
                token: canary.token.clone(),
                name: String::from("canary"),
                canary: true,
                ..TokenConfig::default()
            });
        }
    }

    /// Time for everything to become ready.
    pub const fn ready_timeout(&self) -> Duration {
        Duration::from_millis(self.ready_timeout_ms)
    }

    /// Time for everything to drain.
    pub const fn drain_budget(&self) -> DrainBudget {
        let all_ms = self.shutdown_deadline_ms;
        let reserve_ms = all_ms / RESERVE;
        DrainBudget {
            parts: Duration::from_millis(all_ms - reserve_ms),
            log: Duration::from_millis(all_ms - reserve_ms / SPANS_OF_RESERVE),
            all: Duration::from_millis(all_ms),
        }
    }
}

fn sqlite(data_dir: &Path) -> SecretUrl {
    SecretUrl::new(format!(
        "sqlite:{}",
        data_dir.join("analytics.db").display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(change: impl FnOnce(&mut UpConfig)) -> Result<UpConfig, CliError> {
        let mut config = UpConfig::default();
        change(&mut config);
        config.settle().map(|()| config)
    }

    #[test]
    fn ports_shift_together() {
        let mut usual = settled(|_| {}).expect("valid");
        assert!(usual.has_usual_addresses());
        assert_eq!(usual.producer.http.listen.to_string(), "127.0.0.1:8081");
        let mut shifted = settled(|config| config.port_offset = 1000).expect("valid");
        assert!(!shifted.has_usual_addresses());
        assert_eq!(shifted.analytics.grpc.listen.port(), 51053);
        assert_eq!(shifted.broker.listen.port(), 10092);
        let mut free = settled(|config| config.ephemeral_ports = true).expect("valid");
        assert!(free.listens().iter().all(|(_, listen)| listen.port() == 0));
        let error = settled(|config| config.port_offset = 60_000).expect_err("no such port");
        assert!(error.to_string().contains("port_offset"), "{error}");
    }

    #[test]
    fn usual_addresses_are_those_that_the_tools_try() {
        let usual = |host: [u8; 4]| {
            let settled = settled(|config| config.host = Some(IpAddr::from(host)));
            settled.expect("valid").has_usual_addresses()
        };
        assert!(usual([0, 0, 0, 0]), "reached on this machine's own address");
        assert!(!usual([10, 0, 0, 7]));
    }

    #[test]
    fn time_to_drain_is_shared() {
        let config = settled(|config| config.shutdown_deadline_ms = 10_000).expect("valid");
        let DrainBudget { parts, log, all } = config.drain_budget();
        let ends = [parts, log, all].map(|end| end.as_millis());
        assert_eq!(ends, [8_000, 9_500, 10_000]);
        assert_eq!(config.producer.shutdown_deadline_ms, 2_666);
        assert_eq!(config.analytics.shutdown_deadline_ms, 2_666);
    }

    #[test]
    fn the_canary_finds_the_producer_and_is_let_in() {
        let addresses = ["0.0.0.0:1", "[::]:2"].map(|text| text.parse().expect("an address"));
        let mut config = settled(|_| {}).expect("valid");
        config.use_producer(addresses[0], addresses[1]);
        let canary = &config.analytics.canary;
        assert!(canary.enabled);
        let doors = (canary.producer_http.as_str(), canary.producer_grpc.as_str());
        assert_eq!(doors, ("127.0.0.1:1", "[::1]:2"));
        assert!(canary.token.is_empty(), "nobody needs one");
        assert!(config.producer.auth.tokens.is_empty(), "nor does it now");

        let mut config = settled(|_| {}).expect("valid");
        let token = TokenConfig {
            token: Secret::new("theirs"),
            ..TokenConfig::default()
        };
        config.producer.auth.tokens.push(token);
        config.use_producer(addresses[0], addresses[1]);
        let [_, own] = config.producer.auth.tokens.as_slice() else {
            panic!("one more");
        };
        assert!(own.canary && own.token == config.analytics.canary.token);
        assert!(!own.token.is_empty());
    }

    #[test]
    fn folders_and_addresses_follow() {
        let config = settled(|config| {
            config.data_dir = PathBuf::from("/d");
            config.host = Some(IpAddr::from([0, 0, 0, 0]));
            config.partitions = 7;
        })
        .expect("valid");
        assert_eq!(config.broker.data_dir, PathBuf::from("/d/log"));
        assert!(config.producer.spool.enabled);
        assert_eq!(config.producer.spool.dir, PathBuf::from("/d/spool"));
        assert_eq!(
            config.analytics.store.url.expose(),
            "sqlite:/d/analytics.db"
        );
        assert_eq!(config.consumer.http.listen.to_string(), "0.0.0.0:8082");
        assert_eq!(
            (
                config.producer.topics.partitions,
                config.consumer.topics.partitions
            ),
            (7, 7)
        );
    }

    #[test]
    fn a_store_of_ones_own_is_left_alone() {
        let url = "postgres://localhost/streamgauge";
        let config =
            settled(|config| config.analytics.store.url = SecretUrl::new(url)).expect("valid");
        assert_eq!(config.analytics.store.url.expose(), url);
    }

    #[test]
    fn topics_that_differ_are_refused() {
        let error = settled(|config| config.producer.topics.events = String::from("other"));
        let text = error.expect_err("differs").to_string();
        assert!(
            text.contains("producer.topics.events") && text.contains("other"),
            "{text}"
        );
        let error = settled(|config| config.consumer.group.group = String::from("other"));
        let text = error.expect_err("differs").to_string();
        assert!(text.contains("analytics.topics.group"), "{text}");
    }
}
