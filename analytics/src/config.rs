//! Settings of the service, each with a working default. Nothing here reads a file or the environment.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use streamgauge_canary::CanaryConfig;
use streamgauge_kafka::{FetchConfig, KafkaConfig};
use streamgauge_lifecycle::{Deadline, ExpositionConfig, HttpServerConfig, Shutdown};
use streamgauge_resilience::{BackoffConfig, BreakerConfig};
use streamgauge_settings::SecretUrl;
use streamgauge_telemetry::TelemetryConfig;

use crate::{alerts::AlertsConfig, error::Error, store::Durability, view::Limits};

/// Prefix of the environment variables that set these.
pub const ENV_PREFIX: &str = "STREAMGAUGE_ANALYTICS";

/// All settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// REST, live events, health and metrics.
    pub http: HttpConfig,
    /// gRPC.
    pub grpc: GrpcConfig,
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How `metrics-data` is read.
    pub fetch: FetchConfig,
    /// The topics, and the group whose lag is told.
    pub topics: TopicsConfig,
    /// Where aggregates are kept.
    pub store: StoreConfig,
    /// How batches are applied.
    pub apply: ApplyConfig,
    /// What is kept in memory.
    pub view: ViewConfig,
    /// How applied batches become rows.
    pub checkpoint: CheckpointConfig,
    /// How long rows are kept.
    pub retention: RetentionConfig,
    /// Bounds of queries.
    pub query: QueryConfig,
    /// Streams of changes.
    pub live: LiveConfig,
    /// How the ledger is judged.
    pub ledger: LedgerConfig,
    /// Where alerts come from.
    pub alerts: AlertsConfig,
    /// The probe that submits events and asks for them.
    pub canary: CanaryConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// Time from a shutdown to the end of the process, in milliseconds: for requests under way, the checkpoint,
    /// connections to the store and spans, all together.
    pub shutdown_deadline_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        let client_id = String::from("streamgauge-analytics");
        Self {
            http: HttpConfig::default(),
            grpc: GrpcConfig::default(),
            kafka: KafkaConfig {
                client_id,
                ..KafkaConfig::default()
            },
            fetch: FetchConfig::default(),
            topics: TopicsConfig::default(),
            store: StoreConfig::default(),
            apply: ApplyConfig::default(),
            view: ViewConfig::default(),
            checkpoint: CheckpointConfig::default(),
            retention: RetentionConfig::default(),
            query: QueryConfig::default(),
            live: LiveConfig::default(),
            ledger: LedgerConfig::default(),
            alerts: AlertsConfig::default(),
            canary: CanaryConfig::default(),
            telemetry: TelemetryConfig::default(),
            shutdown_deadline_ms: 10_000,
        }
    }
}

impl Config {
    /// Time from a shutdown to the end of the process.
    pub fn shutdown_deadline(&self) -> Duration {
        Duration::from_millis(self.shutdown_deadline_ms)
    }

    /// The same, from this signal on.
    pub fn deadline(&self, shutdown: &Shutdown) -> Deadline {
        Deadline::new(shutdown, self.shutdown_deadline())
    }

    /// Whether the settings fit each other.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(&self) -> Result<(), Error> {
        let (recent_s, hours) = (self.view.recent_seconds, self.retention.second_hours);
        if hours > 0 && i64::from(recent_s) > i64::from(hours) * 3_600 {
            return Err(Error::Setting(format!(
                "view.recent_seconds: {recent_s} seconds are more than retention.second_hours ({hours}) keeps, and would \
                 be lost at a restart; shorten the one or lengthen the other"
            )));
        }
        let canary = self.canary.check();
        canary.map_err(|wrong| Error::Setting(format!("canary.{wrong}")))
    }
}

/// The HTTP server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Time for one answer, in milliseconds; streams are not bound by it.
    pub request_timeout_ms: u64,
    /// How much the server puts up with.
    pub server: HttpServerConfig,
    /// `/metrics` on a listener of its own.
    pub metrics: ExpositionConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8083)),
            request_timeout_ms: 10_000,
            server: HttpServerConfig::default(),
            metrics: ExpositionConfig::default(),
        }
    }
}

/// The gRPC server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Connections at once; those beyond are closed.
    pub max_connections: usize,
    /// How often a client is asked whether it is still there, in milliseconds.
    pub keepalive_interval_ms: u64,
    /// How long it may take to answer that, in milliseconds, before its connection is cut.
    pub keepalive_timeout_ms: u64,
    /// Largest request, in KiB.
    pub request_kib_max: usize,
    /// Requests at once on one connection; those beyond wait.
    pub concurrency_per_connection_max: usize,
    /// Time for one answer, in milliseconds; streams are not bound by it.
    pub request_timeout_ms: u64,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50053)),
            max_connections: 1_024,
            keepalive_interval_ms: 30_000,
            keepalive_timeout_ms: 10_000,
            request_kib_max: 256,
            concurrency_per_connection_max: 64,
            request_timeout_ms: 10_000,
        }
    }
}

/// The topics, and the group whose lag is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicsConfig {
    /// Events, as the producer writes them.
    pub events: String,
    /// Delta batches, as the consumer writes them.
    pub metrics: String,
    /// The consumer's group, for the lag that this service tells from outside.
    pub group: String,
    /// How often the ends of the events' partitions are asked for, in milliseconds.
    pub ends_interval_ms: u64,
    /// Wait between two looks for a topic that is not there, in milliseconds.
    pub wait_ms: u64,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self {
            events: String::from("analytics-events"),
            metrics: String::from("metrics-data"),
            group: String::from("streamgauge-consumer"),
            ends_interval_ms: 1_000,
            wait_ms: 1_000,
        }
    }
}

/// Where aggregates are kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub url: SecretUrl,
    /// Most connections that queries use; the writers have a few of their own.
    pub connections_max: u32,
    /// What a commit to SQLite survives: `full` a power cut, `normal` a crash of the process. Rows are synced either way.
    pub durability: Durability,
    /// Time for one statement in PostgreSQL, in milliseconds.
    pub statement_timeout_ms: u64,
    /// Time for one operation, in milliseconds, after which it is taken for failed, as when a connection hangs.
    pub operation_timeout_ms: u64,
    /// The same for operations on many rows: a checkpoint, a migration, deleting what is old.
    pub bulk_timeout_ms: u64,
    /// How often it is looked whether a rebuild has put other rows in the place of those served, in milliseconds.
    pub swap_poll_ms: u64,
    /// Attempts to connect at the start. When they are used up they begin anew: the service waits.
    pub connect: BackoffConfig,
    /// Attempts at one write. When they are used up reading stops and they begin anew: nothing is lost.
    pub write: BackoffConfig,
    /// When a store that fails is left alone for a while. Nothing is asked of it then but a probe.
    pub breaker: BreakerConfig,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let backoff = |initial_ms, max_ms, attempts| BackoffConfig {
            initial_ms,
            max_ms,
            attempts,
            ..BackoffConfig::default()
        };
        Self {
            url: SecretUrl::new("sqlite:data/analytics.db"),
            connections_max: 4,
            durability: Durability::Full,
            statement_timeout_ms: 30_000,
            operation_timeout_ms: 15_000,
            bulk_timeout_ms: 120_000,
            swap_poll_ms: 1_000,
            connect: backoff(100, 5_000, 10),
            write: backoff(50, 1_000, 3),
            breaker: BreakerConfig::default(),
        }
    }
}

/// How batches are applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApplyConfig {
    /// Chunks of records that wait to be applied; beyond it reading pauses.
    pub mailbox_chunks_max: usize,
    /// Most batches in one transaction.
    pub batches_max: usize,
    /// Most bytes of batches in one transaction, in KiB.
    pub kib_max: usize,
    /// Most spans recorded for one batch's sampled events.
    pub spans_max: usize,
}

impl Default for ApplyConfig {
    fn default() -> Self {
        Self {
            mailbox_chunks_max: 16,
            batches_max: 512,
            kib_max: 8_192,
            spans_max: 16,
        }
    }
}

/// What is kept in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewConfig {
    /// Seconds kept in full, back from the clock.
    pub recent_seconds: u32,
    /// Most bytes of recent cells, in KiB; the oldest minutes go first, and the store answers for them.
    pub recent_kib_max: usize,
    /// Seconds after its end at which a block of ten seconds or a minute is summed up for queries.
    pub settle_after_s: u32,
}

impl Default for ViewConfig {
    fn default() -> Self {
        Self {
            recent_seconds: 900,
            recent_kib_max: 49_152,
            settle_after_s: 3,
        }
    }
}

impl From<&ViewConfig> for Limits {
    fn from(config: &ViewConfig) -> Self {
        Self {
            recent_seconds: i64::from(config.recent_seconds),
            recent_bytes_max: config.recent_kib_max.saturating_mul(1024),
            settle_after_s: i64::from(config.settle_after_s),
        }
    }
}

/// How applied batches become rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Time between two checkpoints, in milliseconds.
    pub interval_ms: u64,
    /// Cells that call for a checkpoint before its time. So many more may come while it is written; then reading waits.
    pub cells_max: usize,
    /// User pages that call for a checkpoint before its time, and that may come while it is written.
    pub user_rows_max: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            interval_ms: 5_000,
            cells_max: 50_000,
            user_rows_max: 50_000,
        }
    }
}

/// How long rows are kept, by the length of their buckets; 0 keeps them for ever.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Buckets of a second, in hours.
    pub second_hours: u32,
    /// Buckets of a minute, in hours.
    pub minute_hours: u32,
    /// Buckets of an hour, in hours.
    pub hour_hours: u32,
    /// Buckets of a day, in hours.
    pub day_hours: u32,
    /// How often old rows are deleted, in milliseconds.
    pub interval_ms: u64,
    /// Most rows that one statement deletes.
    pub rows_per_delete_max: u32,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            second_hours: 48,
            minute_hours: 720,
            hour_hours: 0,
            day_hours: 0,
            interval_ms: 60_000,
            rows_per_delete_max: 5_000,
        }
    }
}

impl RetentionConfig {
    /// The first second whose buckets are kept, per tier in the order of [`crate::store::TIERS_S`].
    pub fn floors(&self, now_s: i64) -> [i64; 4] {
        [
            self.second_hours,
            self.minute_hours,
            self.hour_hours,
            self.day_hours,
        ]
        .map(|hours| match hours {
            0 => i64::MIN,
            hours => now_s - i64::from(hours) * 3_600,
        })
    }
}

/// Bounds of queries.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueryConfig {
    /// Keys in a series' answer when the query names no limit.
    pub keys_default: u32,
    /// Most keys in an answer.
    pub keys_max: u32,
    /// Most steps in a range.
    pub steps_max: u32,
    /// Most rows that one query reads from the store.
    pub rows_max: usize,
    /// Most cells that the windows of one query may merge.
    pub merges_max: usize,
    /// Attempts at reading rows and memory of one moment.
    pub attempts_max: u32,
    /// Most queries at once; those beyond are refused.
    pub concurrent_max: usize,
    /// Most cells in memory that one query adds up at once; more go to a thread for long work.
    pub inline_cells_max: usize,
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self {
            keys_default: 20,
            keys_max: 1_000,
            steps_max: 11_000,
            rows_max: 200_000,
            merges_max: 2_000_000,
            attempts_max: 20,
            concurrent_max: 64,
            inline_cells_max: 10_000,
        }
    }
}

/// Streams of changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LiveConfig {
    /// Time between two messages when the client names none, in milliseconds.
    pub interval_ms_default: u32,
    /// Least time between two messages, in milliseconds.
    pub interval_ms_min: u32,
    /// Changes that wait for a slow client; beyond it they are skipped, and the client is told.
    pub queue_changes_max: usize,
    /// Most keys in one message; the rest fold into `(other)`.
    pub keys_max: u32,
    /// Most streams at once.
    pub clients_max: usize,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            interval_ms_default: 1_000,
            interval_ms_min: 50,
            queue_changes_max: 256,
            keys_max: 100,
            clients_max: 256,
        }
    }
}

/// How the ledger is judged.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerConfig {
    /// How often the store's rows are read back and added up, in milliseconds.
    pub check_interval_ms: u64,
    /// Most batches of a partition that are remembered to know a copy of one by; 150 bytes each.
    pub batches_known_max: usize,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            check_interval_ms: 10_000,
            batches_known_max: 1_000,
        }
    }
}
