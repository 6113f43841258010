//! The settings of the consumer, each with a working default. Every queue, time and size has a bound here, with its
//! unit in its name. Nothing here reads a file or the environment.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use streamgauge_kafka::{FetchConfig, GroupConfig, KafkaConfig, PublisherConfig};
use streamgauge_lifecycle::{Deadline, ExpositionConfig, HttpServerConfig, Shutdown};
use streamgauge_resilience::BackoffConfig;
use streamgauge_telemetry::TelemetryConfig;

use crate::{
    core::{
        partition::Settings,
        series::{Plan, SeriesConfig},
        validate::Limits,
    },
    desk::DeskConfig,
    error::ConfigError,
};

/// What the names of environment variables begin with.
pub const ENV_PREFIX: &str = "STREAMGAUGE_CONSUMER";

/// All settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How this instance calls itself in batches, spans and answers; empty: its HTTP address.
    pub instance: String,
    /// Health, metrics and control over HTTP.
    pub http: HttpConfig,
    /// Control over gRPC.
    pub grpc: GrpcConfig,
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// The consumer group, and how events are fetched.
    pub group: GroupConfig,
    /// How `metrics-data` is read back.
    pub reader: FetchConfig,
    /// How batches are written to `metrics-data`.
    pub deltas: PublisherConfig,
    /// How dead letters are written.
    pub dead_letters: PublisherConfig,
    /// The topics, which are created when they are missing.
    pub topics: TopicsConfig,
    /// When a batch closes.
    pub batch: BatchConfig,
    /// Which aggregates exist.
    pub series: Vec<SeriesConfig>,
    /// Bounds of keys.
    pub keys: KeysConfig,
    /// What makes an event acceptable.
    pub events: EventsConfig,
    /// How long ids are remembered.
    pub dedupe: DedupeConfig,
    /// The owner of each partition.
    pub owner: OwnerConfig,
    /// Where dead letters are looked at, replayed and dropped.
    pub desk: DeskConfig,
    /// What the metrics tell apart.
    pub metrics: MetricsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Time from a shutdown to the end of the process, in milliseconds: for requests under way, what the owners
    /// have in flight, leaving the group and spans, all together.
    pub shutdown_deadline_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        let client_id = String::from("streamgauge-consumer");
        Self {
            instance: String::new(),
            http: HttpConfig::default(),
            grpc: GrpcConfig::default(),
            kafka: KafkaConfig {
                client_id,
                ..KafkaConfig::default()
            },
            group: GroupConfig::default(),
            reader: FetchConfig::default(),
            // One record a batch and partition: waiting for companions would only cost time.
            deltas: PublisherConfig {
                linger_ms: 0.0,
                ..PublisherConfig::default()
            },
            dead_letters: PublisherConfig::default(),
            topics: TopicsConfig::default(),
            batch: BatchConfig::default(),
            series: SeriesConfig::defaults(),
            keys: KeysConfig::default(),
            events: EventsConfig::default(),
            dedupe: DedupeConfig::default(),
            owner: OwnerConfig::default(),
            desk: DeskConfig::default(),
            metrics: MetricsConfig::default(),
            telemetry: TelemetryConfig::default(),
            shutdown_deadline_ms: 10_000,
        }
    }
}

/// The HTTP server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on. Whoever reaches it may pause partitions, and read and replay dead letters.
    pub listen: SocketAddr,
    /// How much the server puts up with.
    pub server: HttpServerConfig,
    /// `/metrics` on a listener of its own.
    pub metrics: ExpositionConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8082)),
            server: HttpServerConfig::default(),
            metrics: ExpositionConfig::default(),
        }
    }
}

/// The gRPC server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Address to listen on. Whoever reaches it may pause partitions, and read and replay dead letters.
    pub listen: SocketAddr,
    /// Connections at once; those beyond are closed.
    pub max_connections: usize,
    /// How often a client is asked whether it is still there, in milliseconds.
    pub keepalive_interval_ms: u64,
    /// How long it may take to answer that, in milliseconds, before its connection is cut.
    pub keepalive_timeout_ms: u64,
    /// Largest request, in KiB.
    pub request_kib_max: usize,
    /// Calls at once on one connection; those beyond wait.
    pub connection_calls_max: u32,
    /// Time for open calls, a health watch among them, to end after a shutdown, in milliseconds.
    pub close_ms_max: u64,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50052)),
            max_connections: 256,
            keepalive_interval_ms: 30_000,
            keepalive_timeout_ms: 10_000,
            request_kib_max: 64,
            connection_calls_max: 64,
            close_ms_max: 2_000,
        }
    }
}

/// The topics.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicsConfig {
    /// Events, as the producer writes them.
    pub events: String,
    /// Records that are not counted.
    pub dead_letters: String,
    /// Delta batches.
    pub metrics: String,
    /// Partitions of each; a topic with another number is an error.
    pub partitions: i32,
    /// Copies of each partition.
    pub replication: i32,
    /// Waits between attempts to reach Kafka at the start; `attempts` does not apply, it never gives up.
    pub connect: BackoffConfig,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self {
            events: String::from("analytics-events"),
            dead_letters: String::from("analytics-events.dlq"),
            metrics: String::from("metrics-data"),
            partitions: 12,
            replication: 1,
            connect: BackoffConfig {
                initial_ms: 250,
                max_ms: 10_000,
                multiplier: 2.0,
                attempts: 0,
            },
        }
    }
}

/// When a batch closes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// So long after its first record, in milliseconds.
    pub wait_ms: u64,
    /// At so many source offsets.
    pub records_max: u64,
    /// When its encoded form may have reached so much, in KiB; it must fit one record.
    pub kib_max: usize,
    /// Whether a batch counts events per user, page and type, for questions about one user. It costs some 40 bytes and
    /// a tenth of the processing time per event; without it those questions have no answer.
    pub user_pages: bool,
    /// How far the watermark stays behind the latest event, in milliseconds: how much disorder is taken for normal.
    pub allowed_lateness_ms: u64,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            wait_ms: 50,
            records_max: 20_000,
            kib_max: 512,
            user_pages: true,
            allowed_lateness_ms: 2_000,
        }
    }
}

/// Bounds of keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// Distinct keys of a series per hour of event time and partition; more fold into `(other)`.
    pub per_hour_max: usize,
    /// Longer keys are cut, in bytes.
    pub bytes_max: usize,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            per_hour_max: 10_000,
            bytes_max: 512,
        }
    }
}

/// What makes an event acceptable. The limits must not be tighter than the producer's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsConfig {
    /// Largest encoded event, in bytes.
    pub bytes_max: usize,
    /// How far ahead of log time an event may be, in milliseconds.
    pub future_max_ms: u64,
    /// How far ahead of this machine's clock the time of a record may move log time, in milliseconds. Records that would
    /// move it further do not, and go to the dead-letter topic; with a clock that lags by more, all that would move it do.
    pub log_time_ahead_max_ms: u64,
    /// Events older than this, by log time and unless marked historical, are late; in hours.
    pub accepted_age_hours: u32,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            bytes_max: 512 * 1024,
            future_max_ms: 86_400_000,
            log_time_ahead_max_ms: 3_600_000,
            accepted_age_hours: 168,
        }
    }
}

/// How long ids are remembered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupeConfig {
    /// For so much log time, in milliseconds. A start reads the source back that far.
    pub horizon_ms: u64,
    /// At most so many per partition; the oldest go first. A million takes 20 to 39 MB.
    pub partition_ids_max: usize,
}

impl Default for DedupeConfig {
    fn default() -> Self {
        Self {
            horizon_ms: 600_000,
            partition_ids_max: 4_000_000,
        }
    }
}

/// The owner of each partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnerConfig {
    /// Chunks of records that wait; beyond it the partition is paused.
    pub mailbox_chunks_max: usize,
    /// Offsets are committed at most this often, in milliseconds.
    pub commit_interval_ms: u64,
    /// The first wait before Kafka is asked or written to again, in milliseconds; waits double.
    pub retry_ms_min: u64,
    /// The longest such wait, in milliseconds.
    pub retry_ms_max: u64,
    /// Time to confirm what is in flight when a partition is taken away, in milliseconds; below
    /// `group.revoke_timeout_ms`, so that what was confirmed is committed before the rebalance goes on.
    pub revoke_ms_max: u64,
    /// How often Kafka may refuse a dead letter before less of the record is kept; too large a one is cut at once.
    pub dead_letter_refusals_max: u32,
    /// Once the dead letters that a partition waits for take so much, in KiB, its reading waits as well. A dead letter
    /// counts as its record and 1 KiB, its headers eightfold; one that is larger than all of this goes by itself.
    pub dead_letters_kib_max: usize,
    /// How often the ends of the partitions are asked for, in milliseconds.
    pub status_interval_ms: u64,
    /// So long outside its group while Kafka answers, in milliseconds, a member is given up for a new one; not below
    /// `group.poll_interval_ms_max`, for which another member may hold up a rebalance.
    pub absence_ms_max: u64,
}

impl Default for OwnerConfig {
    fn default() -> Self {
        Self {
            mailbox_chunks_max: 4,
            commit_interval_ms: 1_000,
            retry_ms_min: 50,
            retry_ms_max: 2_000,
            revoke_ms_max: 3_000,
            dead_letter_refusals_max: 10,
            dead_letters_kib_max: 8_192,
            status_interval_ms: 1_000,
            absence_ms_max: 120_000,
        }
    }
}

/// What the metrics tell apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Event types that have series from the start.
    pub event_types: Vec<String>,
    /// Event types that have series of their own; the rest count as `other`.
    pub event_types_max: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            event_types: Vec::new(),
            event_types_max: 50,
        }
    }
}

impl Config {
    /// The time from this signal to the end of the process.
    pub fn deadline(&self, shutdown: &Shutdown) -> Deadline {
        Deadline::new(shutdown, Duration::from_millis(self.shutdown_deadline_ms))
    }

    /// Checks what no single setting can tell about itself.
    ///
    /// # Errors
    /// Names the setting and the rule.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.desk.check()?;
        let plan = self.plan()?;
        let event_share = (plan.fields.len() + 2) * self.keys.bytes_max + plan.series.len() * 256;
        let message_max = self.deltas.message_bytes_max as usize;
        let rules = [
            (
                self.topics.partitions > 0 && self.topics.replication > 0,
                "topics.partitions",
                String::from("it must be at least 1, as must topics.replication"),
            ),
            (
                // One event may add to every series when a batch is nearly full.
                self.batch.kib_max > 0
                    && self.batch.kib_max * 1024 + EVENT_SHARE_BYTES <= message_max,
                "batch.kib_max",
                format!(
                    "it must leave {} KiB below deltas.message_bytes_max ({message_max}), so that a batch fits one record",
                    EVENT_SHARE_BYTES / 1024
                ),
            ),
            (
                self.batch.records_max > 0,
                "batch.records_max",
                String::from("it must be at least 1"),
            ),
            (
                self.owner.mailbox_chunks_max > 0,
                "owner.mailbox_chunks_max",
                String::from("it must be at least 1"),
            ),
            (
                self.keys.bytes_max >= 16 && event_share <= EVENT_SHARE_BYTES,
                "keys.bytes_max",
                format!(
                    "it must be at least 16, and what one event may add to all series ({event_share} bytes) below {} KiB",
                    EVENT_SHARE_BYTES / 1024
                ),
            ),
            (
                self.owner.retry_ms_min > 0 && self.owner.retry_ms_min <= self.owner.retry_ms_max,
                "owner.retry_ms_min",
                String::from("it must be at least 1 and not above owner.retry_ms_max"),
            ),
            (
                self.owner.revoke_ms_max < self.group.revoke_timeout_ms,
                "owner.revoke_ms_max",
                format!(
                    "it must be below group.revoke_timeout_ms ({}), so that what is confirmed is committed in time",
                    self.group.revoke_timeout_ms
                ),
            ),
            (
                self.owner.absence_ms_max >= u64::from(self.group.poll_interval_ms_max),
                "owner.absence_ms_max",
                format!(
                    "it must not be below group.poll_interval_ms_max ({}), for which a rebalance may be held up",
                    self.group.poll_interval_ms_max
                ),
            ),
            (
                self.owner.dead_letter_refusals_max > 0,
                "owner.dead_letter_refusals_max",
                String::from("it must be at least 1"),
            ),
            (
                self.owner.dead_letters_kib_max > 0,
                "owner.dead_letters_kib_max",
                String::from("it must be at least 1"),
            ),
        ];
        match rules.into_iter().find(|(kept, ..)| !kept) {
            Some((_, setting, rule)) => Err(ConfigError::Rule { setting, rule }),
            None => Ok(()),
        }
    }

    /// The compiled series.
    ///
    /// # Errors
    /// Names the series that is wrong.
    pub fn plan(&self) -> Result<Plan, ConfigError> {
        Ok(Plan::compile(&self.series, self.batch.user_pages)?)
    }

    /// What the owner of a partition is told.
    ///
    /// # Errors
    /// As [`Config::plan`].
    pub fn partition(&self) -> Result<Settings, ConfigError> {
        Ok(Settings {
            plan: Arc::new(self.plan()?),
            writer: String::new(),
            batch_wait_ms: self.batch.wait_ms,
            batch_records_max: self.batch.records_max,
            batch_bytes_max: self.batch.kib_max * 1024,
            dead_letters_bytes_max: self.owner.dead_letters_kib_max.saturating_mul(1024),
            commit_interval_ms: self.owner.commit_interval_ms,
            retry_ms: (self.owner.retry_ms_min, self.owner.retry_ms_max),
            log_time_ahead_us_max: micros(self.events.log_time_ahead_max_ms),
            accepted_age_us: i64::from(self.events.accepted_age_hours) * 3_600_000_000,
            allowed_lateness_us: micros(self.batch.allowed_lateness_ms),
            limits: Limits {
                event_bytes_max: self.events.bytes_max,
                future_us_max: micros(self.events.future_max_ms),
            },
            dedupe_horizon_us: micros(self.dedupe.horizon_ms),
            dedupe_ids_max: self.dedupe.partition_ids_max,
            keys_max: self.keys.per_hour_max,
            key_bytes_max: self.keys.bytes_max,
        })
    }
}

/// What one event may add to a batch at most: its keys in every series, its user and its page.
const EVENT_SHARE_BYTES: usize = 128 * 1024;

fn micros(millis: u64) -> i64 {
    i64::try_from(millis.saturating_mul(1000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use streamgauge_settings::Loader;

    use super::*;

    #[test]
    fn the_defaults_keep_the_rules() {
        Config::default().check().unwrap();
    }

    #[test]
    fn a_broken_rule_names_its_setting() {
        type Breaking = fn(&mut Config);
        let cases: [(&str, Breaking); 10] = [
            ("topics.partitions", |config| config.topics.partitions = 0),
            ("batch.kib_max", |config| config.batch.kib_max = 1_000),
            ("batch.records_max", |config| config.batch.records_max = 0),
            ("owner.mailbox_chunks_max", |config| {
                config.owner.mailbox_chunks_max = 0
            }),
            ("owner.retry_ms_min", |config| {
                config.owner.retry_ms_min = 5_000
            }),
            ("owner.revoke_ms_max", |config| {
                config.owner.revoke_ms_max = config.group.revoke_timeout_ms
            }),
            ("owner.absence_ms_max", |config| {
                config.owner.absence_ms_max = 59_999
            }),
            ("owner.dead_letters_kib_max", |config| {
                config.owner.dead_letters_kib_max = 0
            }),
            ("desk.looks_max", |config| config.desk.looks_max = 0),
            ("no dimension `page`", |config| {
                config.series[1].dimensions = vec![String::from("page")]
            }),
        ];
        for (expected, change) in cases {
            let mut config = Config::default();
            change(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// The example file names every setting and gives each its default.
    #[test]
    fn the_example_file_is_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/consumer.example.toml");
        let read: Config = Loader::new(ENV_PREFIX)
            .file(Some(path.into()))
            .load()
            .unwrap();
        let expected = streamgauge_settings::print(&Config::default());
        assert_eq!(streamgauge_settings::print(&read), expected);
        let text = std::fs::read_to_string(path).unwrap();
        for line in expected.lines().filter_map(|line| line.split_once(" = ")) {
            assert!(
                text.contains(&format!("{} =", line.0.trim())),
                "{} is not in the example",
                line.0
            );
        }
    }
}
