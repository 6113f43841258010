//! The four metrics that every service has from the start: what it processed, how long each stage took, what went
//! wrong, and how far it is behind. Labels are bounded whatever clients send: event types beyond the first few dozen
//! count as `other`.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metric::{FloatGauge, LatencyHistogram};
use crate::metrics::Metrics;

/// The event type that stands for all those without a series of their own.
pub const OTHER: &str = "other";

/// Event types with a series of their own, unless set otherwise.
const DEFAULT_EVENT_TYPES: usize = 50;

/// A longer name is not worth a series.
const MAX_EVENT_TYPE_BYTES: usize = 64;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EventLabels {
    event_type: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    component: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LagLabels {
    group: String,
    topic: String,
    partition: i32,
}

/// A family whose name and type are told even while it has no series.
#[derive(Clone, Debug)]
struct Always<M>(M);

impl<M: EncodeMetric> EncodeMetric for Always<M> {
    fn encode(&self, encoder: MetricEncoder) -> std::fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

/// Clones share the metrics.
#[derive(Clone, Debug)]
pub struct Core {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    events: Family<EventLabels, Counter>,
    outcomes: Vec<&'static str>,
    event_types: RwLock<EventTypes>,
    stages: Vec<(&'static str, LatencyHistogram)>,
    stage_family: Family<StageLabels, LatencyHistogram>,
    unlisted_stage: OnceLock<LatencyHistogram>,
    errors: Family<ErrorLabels, Counter>,
    lag: Family<LagLabels, Gauge>,
    lag_alias: Family<LagLabels, Gauge>,
    lag_seconds: Family<LagLabels, FloatGauge>,
}

/// Counters by event type; each holds one for every outcome, in the order of the outcomes.
#[derive(Debug)]
struct EventTypes {
    known: HashMap<Box<str>, Arc<[Counter]>>,
    other: Arc<[Counter]>,
    /// How many more may have series of their own.
    room: usize,
}

impl Core {
    /// Registers the metrics with all the label values that are known beforehand, at zero.
    pub fn register(
        metrics: &Metrics,
        stages: &[&'static str],
        outcomes: &[&'static str],
        errors: &[(&'static str, &'static str)],
    ) -> Self {
        let events = Family::default();
        let other = counters(&events, OTHER, outcomes);
        let stage_family = Family::<StageLabels, LatencyHistogram>::default();
        let error_family = Family::<ErrorLabels, Counter>::default();
        for (component, kind) in errors {
            let _ = error_family.get_or_create_owned(&ErrorLabels { component, kind });
        }
        let inner = Inner {
            events,
            outcomes: outcomes.to_vec(),
            event_types: RwLock::new(EventTypes {
                known: HashMap::new(),
                other,
                room: DEFAULT_EVENT_TYPES,
            }),
            stages: stages
                .iter()
                .map(|stage| {
                    (
                        *stage,
                        stage_family.get_or_create_owned(&StageLabels { stage }),
                    )
                })
                .collect(),
            stage_family,
            unlisted_stage: OnceLock::new(),
            errors: error_family,
            lag: Family::default(),
            lag_alias: Family::default(),
            lag_seconds: Family::default(),
        };
        inner.register(metrics);
        Core {
            inner: Arc::new(inner),
        }
    }

    /// Gives these event types series from the start, at zero, and lets no more than `max` have any; the rest count as
    /// `other`.
    pub fn event_types<T: AsRef<str>>(&self, listed: &[T], max: usize) -> &Self {
        let inner = &*self.inner;
        let mut types = inner.event_types.write();
        types.room = max.saturating_sub(types.known.len());
        for event_type in listed {
            inner.admit(&mut types, event_type.as_ref());
        }
        drop(types);
        self
    }

    /// Counts `n` events of a type that ended this way.
    pub fn events(&self, event_type: &str, outcome: &'static str, n: u64) {
        let inner = &*self.inner;
        let counters = inner.counters_of(event_type);
        match inner.outcomes.iter().position(|known| *known == outcome) {
            Some(index) => {
                counters[index].inc_by(n);
            }
            None => {
                let types = inner.event_types.read();
                let event_type = if types.known.contains_key(event_type) {
                    event_type
                } else {
                    OTHER
                };
                counters_for(&inner.events, event_type, outcome).inc_by(n);
            }
        }
    }

    /// The histogram of a stage that was registered; others share the one of the stage `unlisted`.
    pub fn stage(&self, name: &'static str) -> &LatencyHistogram {
        let stages = &self.inner.stages;
        match stages.iter().find(|(stage, _)| *stage == name) {
            Some((_, histogram)) => histogram,
            None => self.inner.unlisted_stage.get_or_init(|| {
                self.inner
                    .stage_family
                    .get_or_create_owned(&StageLabels { stage: "unlisted" })
            }),
        }
    }

    /// Counts an error. Both are names from the code, never text from outside.
    pub fn error(&self, component: &'static str, kind: &'static str) {
        self.inner
            .errors
            .get_or_create(&ErrorLabels { component, kind })
            .inc();
    }

    /// How many records a group is behind on a partition.
    pub fn set_lag(&self, group: &str, topic: &str, partition: i32, records: i64) {
        let labels = LagLabels::new(group, topic, partition);
        self.inner.lag.get_or_create(&labels).set(records);
        self.inner.lag_alias.get_or_create(&labels).set(records);
    }

    /// How old the oldest record is that a group has not processed on a partition.
    pub fn set_lag_seconds(&self, group: &str, topic: &str, partition: i32, seconds: f64) {
        let labels = LagLabels::new(group, topic, partition);
        self.inner.lag_seconds.get_or_create(&labels).set(seconds);
    }

    /// The partition is another's now: its series vanish, so that a sum over instances counts it once.
    pub fn drop_lag(&self, group: &str, topic: &str, partition: i32) {
        let labels = LagLabels::new(group, topic, partition);
        self.inner.lag.remove(&labels);
        self.inner.lag_alias.remove(&labels);
        self.inner.lag_seconds.remove(&labels);
    }
}

impl Inner {
    fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            registry.register(
                "events_processed",
                "Events processed, by type and by how they ended",
                self.events.clone(),
            );
            registry.register(
                "event_processing_duration_seconds",
                "How long the stages of processing took",
                Always(self.stage_family.clone()),
            );
            registry.register(
                "errors",
                "Errors, by the component they happened in and by kind",
                Always(self.errors.clone()),
            );
            registry.register(
                "kafka_consumer_lag",
                "Records that the group has not processed yet",
                Always(self.lag.clone()),
            );
            registry.register(
                "kafka_consumer_lag_total",
                "The same as kafka_consumer_lag, under the name that many know",
                Always(self.lag_alias.clone()),
            );
            registry.register(
                "kafka_consumer_lag_seconds",
                "Age of the oldest record that the group has not processed yet",
                self.lag_seconds.clone(),
            );
        });
    }

    fn counters_of(&self, event_type: &str) -> Arc<[Counter]> {
        {
            let types = self.event_types.read();
            if let Some(counters) = types.known.get(event_type) {
                return Arc::clone(counters);
            }
            if types.room == 0 {
                return Arc::clone(&types.other);
            }
        }
        self.admit(&mut self.event_types.write(), event_type)
    }

    /// Gives an event type series of its own, if there is room.
    fn admit(&self, types: &mut EventTypes, event_type: &str) -> Arc<[Counter]> {
        if let Some(counters) = types.known.get(event_type) {
            return Arc::clone(counters);
        }
        let named = !event_type.is_empty()
            && event_type.len() <= MAX_EVENT_TYPE_BYTES
            && event_type != OTHER;
        if types.room == 0 || !named {
            return Arc::clone(&types.other);
        }
        types.room -= 1;
        let counters = counters(&self.events, event_type, &self.outcomes);
        types.known.insert(event_type.into(), Arc::clone(&counters));
        counters
    }
}

impl LagLabels {
    fn new(group: &str, topic: &str, partition: i32) -> Self {
        LagLabels {
            group: group.to_owned(),
            topic: topic.to_owned(),
            partition,
        }
    }
}

fn counters(
    events: &Family<EventLabels, Counter>,
    event_type: &str,
    outcomes: &[&'static str],
) -> Arc<[Counter]> {
    outcomes
        .iter()
        .map(|outcome| counters_for(events, event_type, outcome))
        .collect()
}

fn counters_for(
    events: &Family<EventLabels, Counter>,
    event_type: &str,
    outcome: &'static str,
) -> Counter {
    events.get_or_create_owned(&EventLabels {
        event_type: event_type.to_owned(),
        outcome,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core() -> (Core, Metrics) {
        let metrics = Metrics::new("consumer");
        let core = Core::register(
            &metrics,
            &["decode", "apply"],
            &["counted", "late"],
            &[("kafka", "timeout")],
        );
        (core, metrics)
    }

    fn has(metrics: &Metrics, line: &str) -> bool {
        metrics.encode().lines().any(|found| found == line)
    }

    #[test]
    fn everything_is_there_from_the_start() {
        let (_, metrics) = core();
        for line in [
            "events_processed_total{event_type=\"other\",outcome=\"counted\"} 0",
            "events_processed_total{event_type=\"other\",outcome=\"late\"} 0",
            "event_processing_duration_seconds_count{stage=\"decode\"} 0",
            "errors_total{component=\"kafka\",kind=\"timeout\"} 0",
            "# TYPE kafka_consumer_lag gauge",
            "# TYPE kafka_consumer_lag_total gauge",
        ] {
            assert!(has(&metrics, line), "{line} not in\n{}", metrics.encode());
        }
    }

    #[test]
    fn event_types_are_bounded() {
        let (core, metrics) = core();
        for n in 0..1_000 {
            core.events(&format!("type-{n}"), "counted", 2);
        }
        let text = metrics.encode();
        assert!(
            text.contains("events_processed_total{event_type=\"type-49\",outcome=\"counted\"} 2\n")
        );
        assert!(
            text.contains(
                "events_processed_total{event_type=\"other\",outcome=\"counted\"} 1900\n"
            )
        );
        let series = text
            .lines()
            .filter(|line| line.starts_with("events_processed_total{"));
        assert_eq!(series.count(), 51 * 2);
    }

    #[test]
    fn listed_event_types_come_first_and_can_be_all() {
        let (core, metrics) = core();
        core.event_types(&["click", "view"], 2);
        core.events("scroll", "counted", 1);
        core.events("view", "late", 4);
        core.events("", "counted", 1);
        core.events(&"x".repeat(1_000), "counted", 1);
        for line in [
            "events_processed_total{event_type=\"click\",outcome=\"counted\"} 0",
            "events_processed_total{event_type=\"view\",outcome=\"late\"} 4",
            "events_processed_total{event_type=\"other\",outcome=\"counted\"} 3",
        ] {
            assert!(has(&metrics, line), "{line} not in\n{}", metrics.encode());
        }
    }

    #[test]
    fn what_was_not_listed_is_not_lost() {
        let (core, metrics) = core();
        core.events("view", "odd", 3);
        core.error("store", "gone");
        core.stage("odd").observe(0.1, None);
        core.stage("apply").observe(0.1, None);
        for line in [
            "events_processed_total{event_type=\"view\",outcome=\"odd\"} 3",
            "errors_total{component=\"store\",kind=\"gone\"} 1",
            "event_processing_duration_seconds_count{stage=\"unlisted\"} 1",
            "event_processing_duration_seconds_count{stage=\"apply\"} 1",
        ] {
            assert!(has(&metrics, line), "{line} not in\n{}", metrics.encode());
        }
    }

    #[test]
    fn lag_goes_with_its_partition() {
        let (core, metrics) = core();
        core.set_lag("g", "t", 3, 17);
        core.set_lag_seconds("g", "t", 3, 1.5);
        let labels = "{group=\"g\",topic=\"t\",partition=\"3\"}";
        for (name, value) in [
            ("kafka_consumer_lag", "17"),
            ("kafka_consumer_lag_total", "17"),
            ("kafka_consumer_lag_seconds", "1.5"),
        ] {
            assert!(
                has(&metrics, &format!("{name}{labels} {value}")),
                "{}",
                metrics.encode()
            );
        }
        core.drop_lag("g", "t", 3);
        assert!(!metrics.encode().contains(labels));
    }
}
