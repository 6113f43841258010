//! Everything the consumer counts. Outcomes are counted when their batch is confirmed, never before: what these say
//! was counted is on `metrics-data` and counts for every reader.

use std::sync::Arc;

use streamgauge_kafka::{Stats, StatsSink};
use streamgauge_telemetry::{
    Metrics,
    http_metrics::HttpMetrics,
    metric::{Core, Counter, EncodeLabelSet, Family, FloatGauge, Gauge, LatencyHistogram, OTHER},
    rpc::RpcMetrics,
};

use crate::{
    config::MetricsConfig,
    core::{
        partition::{Progress, Report},
        reject::Reason,
    },
};

/// Waiting for records, from one chunk to the next.
pub const POLL: &str = "poll";
/// Decoding, judging, deduplicating and aggregating a chunk.
pub const PROCESS: &str = "process";
/// From a batch's first record to its being written.
pub const EMIT: &str = "emit";
/// From a batch's being written to its being confirmed.
pub const CONFIRM: &str = "confirm";
/// From taking a partition over to reading on at its head.
pub const RECOVER: &str = "recover";

/// The outcomes of an event, as labels.
const OUTCOMES: [&str; 5] = ["counted", "duplicate", "late", "dead_lettered", "missing"];
/// Offsets without a record are no events, but without them the ledger does not add up.
const NO_RECORD: &str = "no_record";

/// Errors that have series from the start: component and kind.
const ERRORS: [(&str, &str); 20] = [
    ("kafka", "topics"),
    ("kafka", "committed"),
    ("kafka", "chain_bounds"),
    ("kafka", "chain_read"),
    ("kafka", "horizon"),
    ("kafka", "write"),
    ("kafka", "dead_letter"),
    ("kafka", "ends"),
    ("kafka", "desk"),
    ("chain", "overtaken"),
    ("chain", "source_truncated"),
    ("chain", "chain_truncated"),
    ("chain", "source_too_short"),
    ("chain", "chain_incomplete"),
    ("chain", "head_unknown"),
    ("chain", "offsets_reused"),
    ("chain", "not_a_batch"),
    ("chain", "unbalanced"),
    ("owner", "panicked"),
    ("group", "absent"),
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

const STAGE: StageLabels = StageLabels { stage: "consumer" };

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartitionLabels {
    partition: i32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BrokerLabels {
    broker: String,
}

/// Clones share the metrics.
#[derive(Clone, Debug)]
pub struct ConsumerMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    core: Core,
    http: HttpMetrics,
    rpc: RpcMetrics,
    ledger: Family<OutcomeLabels, Counter>,
    imbalance: Family<StageLabels, Gauge>,
    dead_letters: Family<ReasonLabels, Counter>,
    replayed: Family<ReasonLabels, Counter>,
    rebalances: Counter,
    batches: Counter,
    void_batches: Counter,
    batch_bytes: Counter,
    folded_keys: Counter,
    dedupe_ids: Family<PartitionLabels, Gauge>,
    dedupe_bytes: Family<PartitionLabels, Gauge>,
    dedupe_evicted: Counter,
    partitions: Gauge,
    broker_rtt: Family<BrokerLabels, FloatGauge>,
    fetch_queue_bytes: Gauge,
}

impl ConsumerMetrics {
    /// Registers everything, with each label value that is known beforehand at zero.
    pub fn register(metrics: &Metrics, config: &MetricsConfig) -> Self {
        let stages = [POLL, PROCESS, EMIT, CONFIRM, RECOVER];
        let core = Core::register(metrics, &stages, &OUTCOMES, &ERRORS);
        core.event_types(&config.event_types, config.event_types_max);
        let inner = Inner {
            core,
            http: HttpMetrics::register(
                metrics,
                &[
                    ("GET", "/v1/status", &[200]),
                    ("POST", "/v1/pause", &[200, 404]),
                    ("POST", "/v1/resume", &[200, 404]),
                    ("GET", "/v1/dead-letters", &[200, 400]),
                    ("GET", "/v1/dead-letters/{partition}/{offset}", &[200, 404]),
                    ("POST", "/v1/dead-letters/replay", &[200, 400, 409]),
                    ("POST", "/v1/dead-letters/drop", &[200, 400, 409]),
                ],
            ),
            rpc: RpcMetrics::register(metrics, &crate::grpc::METHODS),
            ledger: Family::default(),
            imbalance: Family::default(),
            dead_letters: Family::default(),
            replayed: Family::default(),
            rebalances: Counter::default(),
            batches: Counter::default(),
            void_batches: Counter::default(),
            batch_bytes: Counter::default(),
            folded_keys: Counter::default(),
            dedupe_ids: Family::default(),
            dedupe_bytes: Family::default(),
            dedupe_evicted: Counter::default(),
            partitions: Gauge::default(),
            broker_rtt: Family::default(),
            fetch_queue_bytes: Gauge::default(),
        };
        inner.register(metrics);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The metrics that every service has.
    pub fn core(&self) -> &Core {
        &self.inner.core
    }

    /// The histogram of a stage.
    pub fn stage(&self, stage: &'static str) -> &LatencyHistogram {
        self.inner.core.stage(stage)
    }

    /// Requests over HTTP.
    pub fn http(&self) -> &HttpMetrics {
        &self.inner.http
    }

    /// Calls over gRPC.
    pub fn rpc(&self) -> &RpcMetrics {
        &self.inner.rpc
    }

    /// A batch of this instance counts.
    pub fn confirmed(&self, report: &Report) {
        let inner = &*self.inner;
        for (outcome, count) in report.outcomes.terms() {
            inner
                .ledger
                .get_or_create(&OutcomeLabels { outcome })
                .inc_by(count);
            // Only counted events are told apart by type; what was refused may not even have one.
            if outcome != "counted" && outcome != NO_RECORD && count > 0 {
                inner.core.events(OTHER, outcome, count);
            }
        }
        for (event_type, count) in &report.types {
            inner.core.events(event_type, "counted", *count);
        }
        let sum = report.outcomes.total().map_or(i64::MAX, u64::cast_signed);
        let difference = report.range.offsets().cast_signed() - sum;
        inner.imbalance.get_or_create(&STAGE).inc_by(difference);
        inner.batches.inc();
        inner.batch_bytes.inc_by(report.bytes as u64);
        inner.folded_keys.inc_by(report.folded_keys);
    }

    /// A dead letter is safe.
    pub fn dead_letter(&self, reason: Reason) {
        self.inner
            .dead_letters
            .get_or_create(&ReasonLabels {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// A dead letter was written to the source again.
    pub fn replayed(&self, reason: Reason) {
        self.inner
            .replayed
            .get_or_create(&ReasonLabels {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// Partitions were assigned, revoked or lost.
    pub fn rebalanced(&self, owned: usize) {
        self.inner.rebalances.inc();
        self.inner.partitions.set(owned as i64);
    }

    /// What changed since the owner's last report.
    pub fn progressed(&self, partition: i32, before: &Progress, now: &Progress) {
        let inner = &*self.inner;
        let labels = PartitionLabels { partition };
        inner
            .dedupe_ids
            .get_or_create(&labels)
            .set(now.dedupe_ids.cast_signed());
        inner
            .dedupe_bytes
            .get_or_create(&labels)
            .set(now.dedupe_bytes.cast_signed());
        inner
            .dedupe_evicted
            .inc_by(now.dedupe_evicted.saturating_sub(before.dedupe_evicted));
        inner
            .void_batches
            .inc_by(now.void_batches.saturating_sub(before.void_batches));
    }

    /// The partition is another's now: its series go, so that a sum over instances counts it once.
    pub fn drop_partition(&self, group: &str, topic: &str, partition: i32) {
        self.inner.core.drop_lag(group, topic, partition);
        self.inner.dedupe_ids.remove(&PartitionLabels { partition });
        self.inner
            .dedupe_bytes
            .remove(&PartitionLabels { partition });
    }

    /// Takes the statistics of the group's client.
    pub fn stats_sink(&self) -> StatsSink {
        let metrics = self.clone();
        Arc::new(move |stats: &Stats| metrics.take_stats(stats))
    }

    fn take_stats(&self, stats: &Stats) {
        self.inner
            .fetch_queue_bytes
            .set(stats.fetch_queue_bytes.cast_signed());
        for broker in &stats.brokers {
            let labels = BrokerLabels {
                broker: broker.name.clone(),
            };
            self.inner
                .broker_rtt
                .get_or_create(&labels)
                .set(broker.rtt_seconds);
        }
    }
}

impl Inner {
    fn register(&self, metrics: &Metrics) {
        let _ = self.imbalance.get_or_create(&STAGE);
        for outcome in OUTCOMES.into_iter().chain([NO_RECORD]) {
            let _ = self.ledger.get_or_create(&OutcomeLabels { outcome });
        }
        for reason in Reason::ALL {
            let labels = ReasonLabels {
                reason: reason.as_str(),
            };
            let _ = self.dead_letters.get_or_create(&labels);
            let _ = self.replayed.get_or_create(&labels);
        }
        metrics.with(|registry| {
            registry.register("ledger_events", "Source offsets by how they ended, when their batch counts", self.ledger.clone());
            registry.register("dlq_events", "Records in the dead-letter topic, by reason", self.dead_letters.clone());
            registry.register("dlq_replayed", "Dead letters written to the source again, by reason", self.replayed.clone());
            registry.register("kafka_rebalances", "Changes of the partitions owned", self.rebalances.clone());
            registry.register("consumer_batches", "Batches of this instance that count", self.batches.clone());
            registry.register("consumer_void_batches", "Batches of any writer that were found void", self.void_batches.clone());
            registry.register("consumer_batch_bytes", "Size of the batches that count", self.batch_bytes.clone());
            registry.register("series_keys_folded", "Keys folded into (other), once per batch and bucket", self.folded_keys.clone());
            registry.register("dedupe_ids", "Ids in the dedupe set", self.dedupe_ids.clone());
            registry.register("dedupe_bytes", "Memory of the dedupe set", self.dedupe_bytes.clone());
            registry.register("dedupe_evicted", "Ids forgotten before their time, for lack of room", self.dedupe_evicted.clone());
            registry.register("consumer_partitions", "Partitions owned", self.partitions.clone());
            registry.register("kafka_broker_rtt_seconds", "Median round trip to a broker", self.broker_rtt.clone());
            registry.register("kafka_fetch_queue_bytes", "Bytes fetched and not yet handed over", self.fetch_queue_bytes.clone());
            registry.register(
                "ledger_imbalance",
                "Offsets that the batches of this instance do not account for; anything but 0 is a defect",
                self.imbalance.clone(),
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_chain::{Outcomes, Range};

    use super::*;

    #[test]
    fn everything_is_there_from_the_start_and_moves_with_a_batch() {
        let registry = Metrics::new("consumer");
        let metrics = ConsumerMetrics::register(&registry, &MetricsConfig::default());
        let text = registry.encode();
        for line in [
            "ledger_events_total{outcome=\"missing\"} 0",
            "ledger_events_total{outcome=\"no_record\"} 0",
            "errors_total{component=\"chain\",kind=\"not_a_batch\"} 0",
            "dlq_events_total{reason=\"wrong_key\"} 0",
            "dlq_replayed_total{reason=\"late\"} 0",
            "ledger_imbalance{stage=\"consumer\"} 0",
            "kafka_rebalances_total 0",
            "errors_total{component=\"chain\",kind=\"overtaken\"} 0",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        metrics.confirmed(&Report {
            range: Range::new(0, 5).unwrap(),
            outcomes: Outcomes {
                counted: 3,
                late: 1,
                no_record: 1,
                ..Outcomes::default()
            },
            types: vec![(String::from("click"), 3)],
            folded_keys: 0,
            bytes: 100,
            opened_at_ms: 0,
            written_at_ms: 0,
        });
        let text = registry.encode();
        for line in [
            "ledger_events_total{outcome=\"counted\"} 3",
            "ledger_events_total{outcome=\"no_record\"} 1",
            "events_processed_total{event_type=\"click\",outcome=\"counted\"} 3",
            "events_processed_total{event_type=\"other\",outcome=\"late\"} 1",
            "ledger_imbalance{stage=\"consumer\"} 0",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
