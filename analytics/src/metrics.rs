//! What the service tells about itself, beside what every service tells. Label values are closed sets, and every series
//! is there from the start.

use std::sync::Arc;

use streamgauge_audit::Stage;
use streamgauge_resilience::{BreakerObserver, BreakerState};
use streamgauge_telemetry::{
    Metrics,
    metric::{Core, Counter, EncodeLabelSet, Family, Gauge, LatencyHistogram},
};

use crate::{store::Connections, view::Fold};

/// How a query was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// From memory alone.
    Memory,
    /// From the store and memory.
    Store,
}

impl Source {
    /// As a label, and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Store => "store",
        }
    }
}

/// What the chain said of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatchVerdict {
    /// It counts.
    Valid,
    /// It does not continue the chain.
    Void,
    /// It is not a batch.
    Undecodable,
    /// It follows a gap and does not tell where the chain goes on.
    Held,
}

impl BatchVerdict {
    /// As a label, and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Void => "void",
            Self::Undecodable => "undecodable",
            Self::Held => "held",
        }
    }
}

/// An operation of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are the operations of the store, by name")]
pub enum StoreOp {
    Migrate,
    Served,
    Contents,
    Chains,
    CheckpointState,
    Deltas,
    Apply,
    Checkpoint,
    Trim,
    Scan,
    UserPages,
    Expire,
    Sums,
}

impl StoreOp {
    /// As a label, and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Migrate => "migrate",
            Self::Served => "served",
            Self::Contents => "contents",
            Self::Chains => "chains",
            Self::CheckpointState => "checkpoint_state",
            Self::Deltas => "deltas",
            Self::Apply => "apply",
            Self::Checkpoint => "checkpoint",
            Self::Trim => "trim",
            Self::Scan => "scan",
            Self::UserPages => "user_pages",
            Self::Expire => "expire",
            Self::Sums => "sums",
        }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpOutcome {
    /// As asked.
    Ok,
    /// Somebody else was first.
    Conflict,
    /// Not at all.
    Error,
}

impl OpOutcome {
    /// As a label, and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Conflict => "conflict",
            Self::Error => "error",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabel {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabels {
    op: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BreakerLabel {
    breaker: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    breaker: &'static str,
    to: &'static str,
}

/// Stages of `event_processing_duration_seconds`.
pub const STAGES: [&str; 4] = ["apply", "store", "checkpoint", "query"];
/// The outcome of `events_processed_total`.
pub const APPLIED: &str = "applied";

const ERRORS: [(&str, &str); 10] = [
    ("ledger", "store"),
    ("apply", "undecodable"),
    ("apply", "hole"),
    ("apply", "sketch"),
    ("apply", "store"),
    ("apply", "behind"),
    ("checkpoint", "store"),
    ("retention", "store"),
    ("kafka", "ends"),
    ("query", "store"),
];
const OPS: [StoreOp; 13] = [
    StoreOp::Sums,
    StoreOp::Migrate,
    StoreOp::Served,
    StoreOp::Contents,
    StoreOp::Chains,
    StoreOp::CheckpointState,
    StoreOp::Deltas,
    StoreOp::Apply,
    StoreOp::Checkpoint,
    StoreOp::Trim,
    StoreOp::Scan,
    StoreOp::UserPages,
    StoreOp::Expire,
];

/// The metrics; clones share them.
#[derive(Clone, Debug)]
pub struct AnalyticsMetrics {
    /// The four that every service has.
    pub core: Core,
    /// Submission to queryable.
    pub end_to_end: LatencyHistogram,
    /// Source offsets whose batches retention removed before they were read.
    pub missing: Counter,
    /// Streams of changes under way.
    pub live_streams: Gauge,
    /// Changes that slow clients missed.
    pub live_skipped: Counter,
    log_reachable: Gauge,
    batches: Family<VerdictLabel, Counter>,
    queries: Family<SourceLabel, Counter>,
    imbalance: Family<StageLabel, Gauge>,
    db_operations: Family<OpLabels, LatencyHistogram>,
    db_connections: Family<StateLabel, Gauge>,
    view_bytes: Gauge,
    view_seconds: Gauge,
    pending_cells: Gauge,
    pending_users: Gauge,
    breaker_state: Family<BreakerLabel, Gauge>,
    breaker_transitions: Family<TransitionLabels, Counter>,
}

impl AnalyticsMetrics {
    /// Registers everything at zero.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self {
            core: Core::register(metrics, &STAGES, &[APPLIED], &ERRORS),
            end_to_end: LatencyHistogram::new(),
            missing: Counter::default(),
            live_streams: Gauge::default(),
            live_skipped: Counter::default(),
            log_reachable: Gauge::default(),
            batches: Family::default(),
            queries: Family::default(),
            imbalance: Family::default(),
            db_operations: Family::default(),
            db_connections: Family::default(),
            view_bytes: Gauge::default(),
            view_seconds: Gauge::default(),
            pending_cells: Gauge::default(),
            pending_users: Gauge::default(),
            breaker_state: Family::default(),
            breaker_transitions: Family::default(),
        };
        this.start_at_zero();
        this.expose(metrics);
        this
    }

    fn start_at_zero(&self) {
        use BatchVerdict::{Held, Undecodable, Valid, Void};
        for verdict in [Valid, Void, Undecodable, Held] {
            self.batch(verdict, 0);
        }
        for source in [Source::Memory, Source::Store] {
            let source = source.as_str();
            let _ = self.queries.get_or_create_owned(&SourceLabel { source });
        }
        for op in OPS {
            for outcome in [OpOutcome::Ok, OpOutcome::Error] {
                let (op, outcome) = (op.as_str(), outcome.as_str());
                let _ = self
                    .db_operations
                    .get_or_create_owned(&OpLabels { op, outcome });
            }
        }
        self.connections(Connections::default());
        self.ledger_imbalance(0);
        for stage in [Stage::Log, Stage::Store] {
            self.ledger_stage(stage, 0);
        }
        self.transition_to_zero();
    }

    fn transition_to_zero(&self) {
        self.breaker_state
            .get_or_create(&BreakerLabel { breaker: BREAKER })
            .set(0);
        for to in BreakerState::ALL {
            let labels = TransitionLabels {
                breaker: BREAKER,
                to: to.as_str(),
            };
            let _ = self.breaker_transitions.get_or_create_owned(&labels);
        }
    }

    fn expose(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let mut add = |name: &str, help: &str, metric: Metric| match metric {
                Metric::Counter(metric) => registry.register(name, help, metric),
                Metric::Gauge(metric) => registry.register(name, help, metric),
            };
            let missing = "Source offsets whose batches retention removed before they were read";
            add(
                "events_missing",
                missing,
                Metric::Counter(self.missing.clone()),
            );
            let skipped = "Changes that clients of a stream were too slow for";
            add(
                "live_skipped",
                skipped,
                Metric::Counter(self.live_skipped.clone()),
            );
            add(
                "live_streams",
                "Streams of changes under way",
                Metric::Gauge(self.live_streams.clone()),
            );
            add(
                "view_recent_bytes",
                "Size of the recent cells in memory",
                Metric::Gauge(self.view_bytes.clone()),
            );
            add(
                "view_recent_seconds",
                "Seconds with cells in memory",
                Metric::Gauge(self.view_seconds.clone()),
            );
            let cells = "Cells that no checkpoint holds yet";
            add(
                "view_pending_cells",
                cells,
                Metric::Gauge(self.pending_cells.clone()),
            );
            let users = "User pages that no checkpoint holds yet";
            add(
                "view_pending_user_pages",
                users,
                Metric::Gauge(self.pending_users.clone()),
            );
            let reachable = "1 while the broker answers; readiness does not follow it, for queries are answered without";
            add(
                "kafka_reachable",
                reachable,
                Metric::Gauge(self.log_reachable.clone()),
            );
            let end_to_end = "Time from the acceptance of an event to its being queryable";
            registry.register(
                "event_end_to_end_seconds",
                end_to_end,
                self.end_to_end.clone(),
            );
            let batches = "Records of metrics-data, by what the chain said of them";
            registry.register("delta_batches", batches, self.batches.clone());
            registry.register(
                "queries",
                "Queries, by what answered them",
                self.queries.clone(),
            );
            let imbalance = "Source offsets that the ledger does not account for; must be 0";
            registry.register("ledger_imbalance", imbalance, self.imbalance.clone());
            let operations = "How long operations of the store took";
            registry.register(
                "db_operation_duration_seconds",
                operations,
                self.db_operations.clone(),
            );
            let connections = "Connections to the store";
            registry.register(
                "db_pool_connections",
                connections,
                self.db_connections.clone(),
            );
            let state = "0 closed, 1 half-open, 2 open";
            registry.register("circuit_breaker_state", state, self.breaker_state.clone());
            let transitions = "Changes of a circuit breaker's state";
            registry.register(
                "circuit_breaker_transitions",
                transitions,
                self.breaker_transitions.clone(),
            );
        });
    }

    /// Tells whether the broker answers.
    pub fn log_reachable(&self, answers: bool) {
        self.log_reachable.set(i64::from(answers));
    }

    /// Counts records by verdict.
    pub fn batch(&self, verdict: BatchVerdict, records: u64) {
        let verdict = verdict.as_str();
        self.batches
            .get_or_create(&VerdictLabel { verdict })
            .inc_by(records);
    }

    /// Counts a query.
    pub fn query(&self, source: Source) {
        let source = source.as_str();
        self.queries.get_or_create(&SourceLabel { source }).inc();
    }

    /// Tells the sum of the partitions' imbalances, signs aside.
    pub fn ledger_imbalance(&self, offsets: i64) {
        self.imbalance
            .get_or_create(&StageLabel { stage: "analytics" })
            .set(offsets);
    }

    /// Tells by how many events a part of the pipeline does not balance, signs aside.
    pub fn ledger_stage(&self, stage: Stage, events: i64) {
        let stage = match stage {
            Stage::Log | Stage::Producer => "log",
            Stage::Store => "store",
            Stage::Ledger => "analytics",
        };
        self.imbalance
            .get_or_create(&StageLabel { stage })
            .set(events);
    }

    /// Records an operation of the store.
    pub fn operation(&self, op: StoreOp, outcome: OpOutcome, seconds: f64) {
        let (op, outcome) = (op.as_str(), outcome.as_str());
        self.db_operations
            .get_or_create(&OpLabels { op, outcome })
            .observe(seconds, None);
    }

    /// Tells the state of the pools.
    pub fn connections(&self, connections: Connections) {
        for (state, count) in [("busy", connections.busy), ("idle", connections.idle)] {
            self.db_connections
                .get_or_create(&StateLabel { state })
                .set(i64::from(count));
        }
    }

    /// Tells the size of the view.
    pub fn view(&self, fold: &Fold) {
        let (view, signed) = (fold.view(), |size: usize| size as i64);
        let frozen = view.frozen.as_ref().map(|frozen| &*frozen.overlay);
        let overlays = || frozen.into_iter().chain([&view.fresh]);
        self.view_bytes
            .set(signed(fold.recent_bytes() + fold.keys_bytes()));
        self.view_seconds.set(signed(view.recent.len()));
        self.pending_cells
            .set(overlays().map(|overlay| signed(overlay.cells)).sum());
        self.pending_users
            .set(overlays().map(|overlay| signed(overlay.user_rows())).sum());
    }
}

enum Metric {
    Counter(Counter),
    Gauge(Gauge),
}

/// Name of the store's breaker.
pub const BREAKER: &str = "store";

impl BreakerObserver for AnalyticsMetrics {
    fn transition(&self, breaker: &'static str, to: BreakerState) {
        self.breaker_state
            .get_or_create(&BreakerLabel { breaker })
            .set(to.gauge());
        let labels = TransitionLabels {
            breaker,
            to: to.as_str(),
        };
        self.breaker_transitions.get_or_create(&labels).inc();
        tracing::warn!(breaker, state = to.as_str(), "circuit breaker changed");
    }
}

/// The metrics as a breaker's observer.
pub fn observer(metrics: &AnalyticsMetrics) -> Arc<dyn BreakerObserver> {
    Arc::new(metrics.clone())
}
