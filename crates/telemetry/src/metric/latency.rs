//! A histogram of durations with exemplars, for hot paths: an observation is two atomic additions, and the exemplar,
//! which only sampled observations have, is given up when another thread is just storing one.
//!
//! The registry's own histogram with exemplars takes a write lock for each observation, and its type for an exemplar
//! cannot be made elsewhere. So the exemplars travel beside the text: while [`crate::Metrics`] encodes, each histogram
//! leaves its exemplars in a thread-local list and a mark in the text, and afterwards the two are joined. Encoded by
//! anyone else, the histogram is a plain one.

use std::cell::RefCell;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::context::TraceContext;

/// Upper bounds in seconds, from 100 µs to a minute.
pub const LATENCY_BUCKETS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

/// With the one for everything above.
const BUCKETS: usize = LATENCY_BUCKETS.len() + 1;

/// Clones share the observations.
#[derive(Clone, Debug, Default)]
pub struct LatencyHistogram {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    exemplars: [Mutex<Option<Exemplar>>; BUCKETS],
}

/// The last sampled observation in a bucket.
#[derive(Clone, Copy, Debug)]
struct Exemplar {
    trace_id: [u8; 16],
    seconds: f64,
    at_unix_s: f64,
}

impl LatencyHistogram {
    pub fn new() -> Self {
        LatencyHistogram::default()
    }

    /// Records a duration in seconds, and the trace it can be looked up in, if that is sampled.
    pub fn observe(&self, seconds: f64, trace: Option<TraceContext>) {
        self.observe_many(seconds, 1, trace);
    }

    /// Records the same duration `n` times, as for the events of one batch.
    pub fn observe_many(&self, seconds: f64, n: u64, trace: Option<TraceContext>) {
        if n == 0 {
            return;
        }
        // A clock that was set back makes durations negative, which a sum must not be.
        let seconds = if seconds.is_nan() {
            0.0
        } else {
            seconds.max(0.0)
        };
        let bucket = LATENCY_BUCKETS.partition_point(|bound| *bound < seconds);
        let inner = &*self.inner;
        inner.counts[bucket].fetch_add(n, Ordering::Relaxed);
        let sum_ns = ((seconds * 1e9) as u64).saturating_mul(n);
        inner.sum_ns.fetch_add(sum_ns, Ordering::Relaxed);
        if let Some(trace) = trace.filter(|trace| trace.sampled)
            && let Some(mut exemplar) = inner.exemplars[bucket].try_lock()
        {
            *exemplar = Some(Exemplar {
                trace_id: trace.trace_id,
                seconds,
                at_unix_s: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0.0, |since| since.as_secs_f64()),
            });
        }
    }

    /// How many durations have been recorded.
    pub fn count(&self) -> u64 {
        self.inner
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// The sum of the durations, in seconds.
    pub fn sum(&self) -> f64 {
        self.inner.sum_ns.load(Ordering::Relaxed) as f64 / 1e9
    }
}

impl TypedMetric for LatencyHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for LatencyHistogram {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        let mut buckets = Vec::with_capacity(BUCKETS + 1);
        if leave_exemplars(&self.inner) {
            buckets.push((MARK, 0));
        }
        let bounds = LATENCY_BUCKETS.iter().copied().chain([f64::MAX]);
        let counts = self.inner.counts.iter();
        buckets.extend(bounds.zip(counts.map(|count| count.load(Ordering::Relaxed))));
        // The count must agree with the buckets, so it is their sum.
        let count = buckets.iter().map(|(_, count)| count).sum();
        // The encoder knows the last bucket by its bound.
        if let Some(last) = buckets.last_mut() {
            last.0 = f64::INFINITY;
        }
        encoder.encode_histogram::<NoLabelSet>(self.sum(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// The exemplars of the histograms that were encoded, in order.
pub(crate) type Collected = Vec<[Option<String>; BUCKETS]>;

/// A bound that no duration has: the line it makes says that a histogram of this kind begins.
const MARK: f64 = -1.0;
const MARK_LABELS: [&str; 2] = ["{le=\"-1.0\"", ",le=\"-1.0\""];

fn is_marked(text: &str) -> bool {
    MARK_LABELS.iter().any(|label| text.contains(label))
}

thread_local! {
    static COLLECTED: RefCell<Option<Collected>> = const { RefCell::new(None) };
}

/// Runs `encode` with exemplars collected.
pub(crate) fn collecting_exemplars(encode: impl FnOnce() -> String) -> (String, Collected) {
    COLLECTED.replace(Some(Vec::new()));
    let text = encode();
    (text, COLLECTED.take().unwrap_or_default())
}

/// Leaves a histogram's exemplars, if someone collects them.
fn leave_exemplars(inner: &Inner) -> bool {
    COLLECTED.with_borrow_mut(|collected| {
        let Some(collected) = collected else {
            return false;
        };
        collected.push(std::array::from_fn(|bucket| {
            inner.exemplars[bucket].lock().as_ref().map(written)
        }));
        true
    })
}

fn written(exemplar: &Exemplar) -> String {
    let mut text = String::from(" # {trace_id=\"");
    for byte in exemplar.trace_id {
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(text, "\"}} {} {:.3}", exemplar.seconds, exemplar.at_unix_s);
    text
}

/// Takes the marks out of the text and puts the exemplars at the ends of their lines.
pub(crate) fn place_exemplars(text: &str, collected: Collected) -> String {
    let mut placed = String::with_capacity(text.len() + text.len() / 8);
    let mut histograms = collected.into_iter();
    let mut exemplars = Vec::new().into_iter();
    for line in text.lines() {
        if is_marked(line) {
            exemplars = histograms
                .next()
                .map_or_else(Vec::new, Vec::from)
                .into_iter();
            continue;
        }
        placed.push_str(line);
        if let Some(exemplar) = exemplars.next().flatten() {
            placed.push_str(&exemplar);
        }
        placed.push('\n');
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metrics;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Registry;

    fn trace(byte: u8, sampled: bool) -> Option<TraceContext> {
        Some(TraceContext {
            trace_id: [byte; 16],
            span_id: [1; 8],
            sampled,
        })
    }

    fn lines<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.contains(part)).collect()
    }

    #[test]
    fn observations_fall_into_their_buckets() {
        let histogram = LatencyHistogram::new();
        for seconds in [
            0.0001,
            0.00011,
            0.3,
            59.0,
            61.0,
            -5.0,
            f64::NAN,
            f64::INFINITY,
        ] {
            histogram.observe(seconds, None);
        }
        histogram.observe_many(0.002, 10, None);
        histogram.observe_many(0.002, 0, trace(9, true));
        assert_eq!(histogram.count(), 18);
        let metrics = Metrics::new("test");
        metrics.with(|registry| registry.register("a_seconds", "A", histogram));
        let text = metrics.encode();
        for line in [
            "a_seconds_count 18",
            "a_seconds_bucket{le=\"0.0001\"} 3",
            "a_seconds_bucket{le=\"0.00025\"} 4",
            "a_seconds_bucket{le=\"0.001\"} 4",
            "a_seconds_bucket{le=\"0.0025\"} 14",
            "a_seconds_bucket{le=\"60.0\"} 16",
            "a_seconds_bucket{le=\"+Inf\"} 18",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} not in\n{text}"
            );
        }
        assert!(!is_marked(&text));
        assert_eq!(lines(&text, "a_seconds_bucket").len(), BUCKETS);
    }

    #[test]
    fn exemplars_stand_with_their_buckets_whatever_is_around_them() {
        let metrics = Metrics::new("test");
        let family: Family<Vec<(&'static str, &'static str)>, LatencyHistogram> = Family::default();
        let single = LatencyHistogram::new();
        let plain = Histogram::new([0.1, 1.0]);
        metrics.with(|registry| {
            registry.register("a_seconds", "A", single.clone());
            registry.register("b_seconds", "B", plain.clone());
            registry.register("c_seconds", "C", family.clone());
        });
        single.observe(0.02, trace(0xaa, true));
        single.observe(0.3, trace(0xee, false));
        plain.observe(0.02);
        for (stage, byte) in [("decode", 0xbb), ("apply", 0xcc)] {
            let histogram = family.get_or_create_owned(&vec![("stage", stage)]);
            histogram.observe(0.02, None);
            histogram.observe(100.0, trace(byte, true));
        }
        let text = metrics.encode();
        let with_exemplars = lines(&text, "trace_id");
        assert_eq!(with_exemplars.len(), 3, "{text}");
        for (start, id) in [
            ("a_seconds_bucket{le=\"0.025\"} 1 # {trace_id=\"", "aa"),
            (
                "c_seconds_bucket{le=\"+Inf\",stage=\"decode\"} 2 # {trace_id=\"",
                "bb",
            ),
            (
                "c_seconds_bucket{le=\"+Inf\",stage=\"apply\"} 2 # {trace_id=\"",
                "cc",
            ),
        ] {
            let wanted = format!("{start}{}\"}} ", id.repeat(16));
            assert!(
                with_exemplars.iter().any(|line| line.starts_with(&wanted)),
                "{wanted} not in\n{text}"
            );
        }
        assert_eq!(lines(&text, "b_seconds_bucket").len(), 3);
    }

    #[test]
    fn encoded_by_others_it_is_a_plain_histogram() {
        let mut registry = Registry::default();
        let histogram = LatencyHistogram::new();
        histogram.observe(0.02, trace(1, true));
        registry.register("a_seconds", "A", histogram);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(!is_marked(&text) && !text.contains("trace_id"), "{text}");
        assert_eq!(lines(&text, "_bucket").len(), BUCKETS);
    }

    #[test]
    fn no_observation_is_lost_between_threads() {
        let histogram = LatencyHistogram::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..10_000u32 {
                        histogram.observe(f64::from(n) / 1e4, trace(1, n % 7 == 0));
                    }
                });
            }
        });
        assert_eq!(histogram.count(), 40_000);
        assert!(
            (histogram.sum() - 4.0 * 4_999.5).abs() < 0.01,
            "{}",
            histogram.sum()
        );
    }
}
