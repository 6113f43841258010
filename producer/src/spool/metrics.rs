//! What the spool counts. The series are there whether there is a spool or not.

use std::fmt;
use std::sync::{Arc, OnceLock};

use streamgauge_lifecycle::SharedClock;
use streamgauge_spool::{ErrorKind, Observer, Spool, WeakSpool};
use streamgauge_telemetry::Metrics;
use streamgauge_telemetry::metric::{
    Collector, ConstGauge, Counter, DescriptorEncoder, EncodeLabelSet, EncodeMetric, Family,
    MetricType,
};

/// An event of the spool that Kafka will not take.
const REFUSED: &str = "refused";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Clones share the metrics.
#[derive(Clone, Debug, Default)]
pub struct SpoolMetrics {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    written: Counter,
    uncertain: Counter,
    drained: Counter,
    lost: Counter,
    errors: Family<KindLabels, Counter>,
    /// Known once the spool is open.
    spool: OnceLock<WeakSpool>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpoolMetrics")
    }
}

/// The gauges, read when they are asked for.
#[derive(Debug)]
struct Gauges {
    metrics: SpoolMetrics,
    clock: SharedClock,
}

impl SpoolMetrics {
    pub fn register(metrics: &Metrics, clock: SharedClock) -> Self {
        let registered = Self::default();
        let inner = &registered.inner;
        let kinds = ErrorKind::ALL.map(ErrorKind::as_str);
        for kind in kinds.into_iter().chain([REFUSED]) {
            let _ = inner.errors.get_or_create(&KindLabels { kind });
        }
        metrics.with(|registry| {
            registry.register(
                "spool_written",
                "Events that were accepted into the spool",
                inner.written.clone(),
            );
            registry.register(
                "spool_uncertain",
                "Events of the spool that Kafka may hold already, so that they may be published twice",
                inner.uncertain.clone(),
            );
            registry.register(
                "spool_drained",
                "Events of the spool that Kafka has acknowledged",
                inner.drained.clone(),
            );
            registry.register(
                "spool_lost",
                "Events of the spool that damage has made unreadable",
                inner.lost.clone(),
            );
            registry.register(
                "spool_errors",
                "Errors of the spool, by what they were about",
                inner.errors.clone(),
            );
            registry.register_collector(Box::new(Gauges {
                metrics: registered.clone(),
                clock,
            }));
        });
        registered
    }

    /// From now on the gauges tell about this spool.
    pub fn show(&self, spool: &Spool) {
        // There is one spool, and it is shown once.
        let _ = self.inner.spool.set(spool.downgrade());
    }

    pub fn written(&self, events: usize, uncertain: usize) {
        self.inner.written.inc_by(events as u64);
        self.inner.uncertain.inc_by(uncertain as u64);
    }

    pub fn drained(&self, events: usize) {
        self.inner.drained.inc_by(events as u64);
    }

    pub fn refused(&self) {
        self.count(REFUSED);
    }

    fn count(&self, kind: &'static str) {
        self.inner.errors.get_or_create(&KindLabels { kind }).inc();
    }
}

impl Observer for SpoolMetrics {
    fn error(&self, kind: ErrorKind) {
        self.count(kind.as_str());
    }

    fn lost(&self, records: u64) {
        self.inner.lost.inc_by(records);
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let spool = self.metrics.inner.spool.get();
        let spool = spool.and_then(WeakSpool::upgrade);
        let depth = spool.as_ref().map(Spool::depth).unwrap_or_default();
        let limit = spool.as_ref().map_or(0, Spool::bytes_max);
        let age_us = depth
            .oldest_us
            .map_or(0, |oldest_us| self.clock.now_us().saturating_sub(oldest_us));
        let gauges = [
            (
                "spool_records",
                "Events that wait in the spool",
                depth.records as f64,
            ),
            (
                "spool_bytes",
                "What the files of the spool take on the disk",
                depth.bytes as f64,
            ),
            (
                "spool_bytes_limit",
                "What the files of the spool may take on the disk",
                limit as f64,
            ),
            (
                "spool_oldest_age_seconds",
                "Age of the oldest event that waits in the spool",
                age_us.max(0) as f64 / 1e6,
            ),
        ];
        for (name, help, value) in gauges {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}
