//! The settings of the producer. Every queue, time and size has a bound here, with its unit in its name.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use streamgauge_kafka::{KafkaConfig, PublisherConfig};
use streamgauge_lifecycle::{Deadline, ExpositionConfig, HttpServerConfig, Shutdown};
use streamgauge_resilience::{BackoffConfig, BreakerConfig};
use streamgauge_settings::Secret;
use streamgauge_telemetry::TelemetryConfig;

use crate::admission::settings::{
    self, AdminConfig, AdmissionConfig, ProxyConfig, RateLimitConfig,
};
use crate::error::ConfigError;
use crate::event::EventLimits;
use crate::event::json::DEPTH_LIMIT;
use crate::spool::SpoolConfig;

/// The memory that a request takes at most, as a multiple of the bytes of its body: as it came, and encoded anew.
const REQUEST_MEMORY: usize = 3;

/// How late librdkafka may notice that a record has timed out.
const DELIVERY_SLACK_MS: u64 = 1_000;

/// All settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The HTTP interface.
    pub http: HttpConfig,
    /// The gRPC interface.
    pub grpc: GrpcConfig,
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How events are written to Kafka.
    pub publisher: PublisherConfig,
    /// The topics.
    pub topics: TopicsConfig,
    /// What one request may hold and take.
    pub limits: Limits,
    /// Who may submit; without tokens everybody may.
    pub auth: AuthConfig,
    /// The proxies before the service.
    pub proxies: ProxyConfig,
    /// Who may change limits while the service runs.
    pub admin: AdminConfig,
    /// The allowances of clients, in events.
    pub rate_limit: RateLimitConfig,
    /// When load is shed.
    pub admission: AdmissionConfig,
    /// When publishing is given a rest.
    pub breaker: BreakerConfig,
    /// Where events wait while Kafka is away.
    pub spool: SpoolConfig,
    /// How a failed publication is tried again, within the deadline of its request.
    pub retry: BackoffConfig,
    /// What the metrics tell apart.
    pub metrics: MetricsConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Time between readiness going down and the end of accepting, in milliseconds: what a load balancer needs to
    /// notice. Part of the deadline, and at most half of it.
    pub shutdown_delay_ms: u64,
    /// Time from a shutdown to the end of the process, in milliseconds: for the delay, requests under way, records on
    /// their way to Kafka and spans, all together.
    pub shutdown_deadline_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: HttpConfig::default(),
            grpc: GrpcConfig::default(),
            kafka: KafkaConfig {
                client_id: String::from("streamgauge-producer"),
                ..KafkaConfig::default()
            },
            publisher: PublisherConfig::default(),
            topics: TopicsConfig::default(),
            limits: Limits::default(),
            auth: AuthConfig::default(),
            proxies: ProxyConfig::default(),
            admin: AdminConfig::default(),
            rate_limit: RateLimitConfig::default(),
            admission: AdmissionConfig::default(),
            breaker: BreakerConfig::default(),
            spool: SpoolConfig::default(),
            retry: BackoffConfig::default(),
            metrics: MetricsConfig::default(),
            telemetry: TelemetryConfig::default(),
            shutdown_delay_ms: 0,
            shutdown_deadline_ms: 20_000,
        }
    }
}

/// The HTTP interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What connections may take.
    pub server: HttpServerConfig,
    /// `/metrics` on a listener of its own.
    pub metrics: ExpositionConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8081)),
            server: HttpServerConfig::default(),
            metrics: ExpositionConfig::default(),
        }
    }
}

/// The gRPC interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Connections at once; those beyond are closed.
    pub max_connections: usize,
    /// How often a client is asked whether it is still there, in milliseconds.
    pub keepalive_interval_ms: u64,
    /// How long it may take to answer that, in milliseconds, before its connection is cut.
    pub keepalive_timeout_ms: u64,
    /// Largest message, in bytes; `limits.body_timeout_ms` is how long one may take to arrive.
    pub message_bytes_max: usize,
    /// Calls at once on one connection.
    pub connection_calls_max: u32,
    /// Batches of one stream that are published at once; a client that reads its answers slowly slows its own stream.
    /// With 1 no batch of a stream overtakes another, even when the queue to Kafka is full. What Kafka itself failed to
    /// acknowledge is published again after its neighbours in any case.
    pub stream_batches_max: usize,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 50051)),
            max_connections: 1_024,
            keepalive_interval_ms: 30_000,
            keepalive_timeout_ms: 10_000,
            message_bytes_max: 8 * 1024 * 1024,
            connection_calls_max: 256,
            stream_batches_max: 4,
        }
    }
}

/// The topics of the pipeline, which are created when they are missing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicsConfig {
    /// The topic that events are written to.
    pub events: String,
    /// Its partitions; the consumer's topic has as many.
    pub partitions: i32,
    /// Copies of each partition.
    pub replication: i32,
    /// Waits between attempts to reach Kafka at the start; `attempts` does not apply, it never gives up.
    pub connect: BackoffConfig,
    /// How often Kafka is looked for while the circuit breaker is not closed, and the spool's disk tried while it fails,
    /// in milliseconds.
    pub check_interval_ms: u64,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self {
            events: String::from("analytics-events"),
            partitions: 12,
            replication: 1,
            connect: BackoffConfig {
                initial_ms: 250,
                max_ms: 10_000,
                multiplier: 2.0,
                attempts: 0,
            },
            check_interval_ms: 2_000,
        }
    }
}

/// What one request may hold and take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest body as it is sent, in bytes.
    pub body_bytes_max: usize,
    /// Largest body after decompression, in bytes.
    pub decompressed_bytes_max: usize,
    /// Time for a body to arrive, in milliseconds.
    pub body_timeout_ms: u64,
    /// Time to publish a request's events, retries included, in milliseconds. A client may ask for less.
    pub request_timeout_ms: u64,
    /// A request that has heard nothing from Kafka for so long when its deadline comes counts as an outage, in
    /// milliseconds; with a shorter deadline it tells nothing about Kafka.
    pub stall_ms: u64,
    /// Events that are being published at once, over all requests.
    pub in_flight_events_max: usize,
    /// Memory of the requests under way, in bytes: what has arrived of their bodies, decompressed, and what was made of
    /// it, until the verdicts are written. Beyond it requests are refused.
    pub in_flight_bytes_max: usize,
    /// Most events in one request.
    pub batch_events_max: usize,
    /// Largest event, in bytes.
    pub event_bytes_max: usize,
    /// Largest `properties`, in bytes.
    pub properties_bytes_max: usize,
    /// Deepest nesting of `properties`, the object itself included; at most 128.
    pub properties_depth_max: u32,
    /// How far ahead of this machine's clock an event may be, in milliseconds.
    pub future_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let EventLimits {
            batch_events_max,
            event_bytes_max,
            properties_bytes_max,
            properties_depth_max,
            future_max_ms,
        } = EventLimits::default();
        Self {
            body_bytes_max: 8 * 1024 * 1024,
            decompressed_bytes_max: 32 * 1024 * 1024,
            body_timeout_ms: 10_000,
            request_timeout_ms: 10_000,
            stall_ms: 3_000,
            in_flight_events_max: 50_000,
            in_flight_bytes_max: 256 * 1024 * 1024,
            batch_events_max,
            event_bytes_max,
            properties_bytes_max,
            properties_depth_max,
            future_max_ms,
        }
    }
}

impl Limits {
    /// The part of the limits that events themselves must keep.
    pub fn events(&self) -> EventLimits {
        EventLimits {
            batch_events_max: self.batch_events_max,
            event_bytes_max: self.event_bytes_max,
            properties_bytes_max: self.properties_bytes_max,
            properties_depth_max: self.properties_depth_max,
            future_max_ms: self.future_max_ms,
        }
    }

    /// The longest time that publishing a request may take.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}

/// Who may submit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// The credentials. Without any, everybody submits for the default tenant.
    pub tokens: Vec<TokenConfig>,
}

/// A credential, sent as `Authorization: Bearer TOKEN`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// The token.
    pub token: Secret,
    /// What it is called in the admin API and in `rate_limit.overrides`; `credential-1` and so on by its place when
    /// empty.
    pub name: String,
    /// The tenant whose events it submits; empty is the default tenant.
    pub tenant: String,
    /// Known, but not allowed to submit for now.
    pub suspended: bool,
    /// Its requests keep a place when load is shed (`admission.canary_reserve_share`).
    pub canary: bool,
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
    pub fn check(&self) -> Result<(), ConfigError> {
        settings::check(
            &self.rate_limit,
            &self.admission,
            &self.proxies,
            &self.admin,
            &self.auth,
        )?;
        let limits = &self.limits;
        let delivery_ms = u64::from(self.publisher.delivery_timeout_ms);
        let rules = [
            (
                delivery_ms + DELIVERY_SLACK_MS <= limits.request_timeout_ms,
                "publisher.delivery_timeout_ms",
                format!(
                    "it must be at least {DELIVERY_SLACK_MS} below limits.request_timeout_ms ({}), so that a request knows its outcome",
                    limits.request_timeout_ms
                ),
            ),
            (
                limits
                    .body_bytes_max
                    .saturating_add(limits.decompressed_bytes_max)
                    .max(self.grpc.message_bytes_max)
                    .saturating_mul(REQUEST_MEMORY)
                    <= limits.in_flight_bytes_max,
                "limits.in_flight_bytes_max",
                format!(
                    "it must be at least {REQUEST_MEMORY} times limits.body_bytes_max + limits.decompressed_bytes_max ({} + {}), and grpc.message_bytes_max ({}), or the largest request never fits",
                    limits.body_bytes_max,
                    limits.decompressed_bytes_max,
                    self.grpc.message_bytes_max
                ),
            ),
            (
                self.shutdown_delay_ms <= self.shutdown_deadline_ms / 2,
                "shutdown_delay_ms",
                format!(
                    "it must not be above half of shutdown_deadline_ms ({}), or nothing is left to drain in",
                    self.shutdown_deadline_ms
                ),
            ),
            (
                limits.batch_events_max <= limits.in_flight_events_max,
                "limits.batch_events_max",
                format!(
                    "it must not be above limits.in_flight_events_max ({}), or the largest request never fits",
                    limits.in_flight_events_max
                ),
            ),
            (
                limits.properties_depth_max <= DEPTH_LIMIT,
                "limits.properties_depth_max",
                format!("it must not be above {DEPTH_LIMIT}"),
            ),
            (
                limits.decompressed_bytes_max <= i32::MAX as usize
                    && limits.body_bytes_max <= i32::MAX as usize,
                "limits.decompressed_bytes_max",
                String::from("it must be below 2 GiB, as must limits.body_bytes_max"),
            ),
            (
                limits.event_bytes_max < self.publisher.message_bytes_max as usize,
                "limits.event_bytes_max",
                format!(
                    "it must be below publisher.message_bytes_max ({}), or Kafka refuses what was accepted",
                    self.publisher.message_bytes_max
                ),
            ),
            (
                self.auth.tokens.iter().all(|token| !token.token.is_empty()),
                "auth.tokens",
                String::from("a token must not be empty"),
            ),
            (
                self.topics.partitions > 0 && self.topics.replication > 0,
                "topics.partitions",
                String::from("it must be at least 1, as must topics.replication"),
            ),
        ];
        let mut rules = rules.into_iter().chain(self.spool.rules(&self.publisher));
        match rules.find(|(kept, ..)| !kept) {
            Some((_, setting, rule)) => Err(ConfigError { setting, rule }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_resilience::Rate;

    use super::*;

    #[test]
    fn the_defaults_keep_the_rules() {
        Config::default().check().unwrap();
    }

    #[test]
    fn a_broken_rule_names_its_setting() {
        type Breaking = fn(&mut Config);
        let cases: [(&str, Breaking); 18] = [
            ("shutdown_delay_ms", |config| {
                config.shutdown_delay_ms = config.shutdown_deadline_ms / 2 + 1;
            }),
            ("publisher.delivery_timeout_ms", |config| {
                config.publisher.delivery_timeout_ms = 9_001
            }),
            ("limits.in_flight_bytes_max", |config| {
                config.limits.in_flight_bytes_max = 64 << 20
            }),
            ("limits.batch_events_max", |config| {
                config.limits.batch_events_max = 50_001
            }),
            ("limits.properties_depth_max", |config| {
                config.limits.properties_depth_max = 129
            }),
            ("limits.decompressed_bytes_max", |config| {
                config.limits.body_bytes_max = 1 << 31;
                config.limits.in_flight_bytes_max = usize::MAX;
            }),
            ("limits.event_bytes_max", |config| {
                config.limits.event_bytes_max = 1_000_000
            }),
            ("auth.tokens", |config| {
                config.auth.tokens.push(TokenConfig::default())
            }),
            ("topics.partitions", |config| config.topics.replication = 0),
            ("rate_limit", |config| {
                let unknown = String::from("nobody");
                config.rate_limit.overrides.insert(unknown, Rate::UNLIMITED);
            }),
            ("rate_limit.ipv6_prefix_bits", |config| {
                config.rate_limit.ipv6_prefix_bits = 129
            }),
            ("admission.limit.units_min", |config| {
                config.admission.limit.units_min = 70_000
            }),
            ("admission.small_reserve_share", |config| {
                config.admission.small_reserve_share = 0.95
            }),
            ("proxies.trusted", |config| {
                config.proxies.trusted.push(String::from("10.0.0.0/33"))
            }),
            ("admin.token", |config| {
                let token = Secret::from("both");
                config.auth.tokens.push(TokenConfig {
                    token: token.clone(),
                    ..TokenConfig::default()
                });
                config.admin.token = token;
            }),
            ("spool.segment_bytes", |config| {
                config.spool.bytes_max = 1 << 20
            }),
            ("spool.drain_batch_events_max", |config| {
                config.spool.drain_batch_events_max = 50_001
            }),
            ("publisher.message_bytes_max", |config| {
                config.spool.enabled = true;
                config.publisher.message_bytes_max = 16 << 20;
            }),
        ];
        for (setting, change) in cases {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().setting, setting);
        }
    }
}
