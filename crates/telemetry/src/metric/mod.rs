//! The kinds of metrics, and those that every service has.

mod core;
pub mod latency;
pub(crate) mod process;

pub use core::{Core, OTHER};
pub use latency::{LATENCY_BUCKETS, LatencyHistogram};
pub use prometheus_client::collector::Collector;
pub use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
    MetricEncoder,
};
pub use prometheus_client::metrics::counter::{ConstCounter, Counter};
pub use prometheus_client::metrics::exemplar;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
pub use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
pub use prometheus_client::metrics::info::Info;
pub use prometheus_client::metrics::{MetricType, TypedMetric};
pub use prometheus_client::registry::Registry;

/// A gauge that holds a fraction.
pub type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;
