//! What the system tells about itself: metrics, traces and logs. A part is handed a [`Metrics`] registry and a
//! [`Tracer`] and never looks for a global one. Telling must never slow the telling part down: counters are atomics,
//! spans go into a bounded queue that drops (and counts) what does not fit, and a collector that is gone costs nothing
//! but its traces.

pub mod context;
mod export;
pub mod http_metrics;
mod log;
pub mod metric;
mod metrics;
pub mod rpc;
mod telemetry;
mod trace;

pub use context::{InTrace, TraceContext};
pub use log::{LogConfig, LogFormat};
pub use metrics::Metrics;
pub use opentelemetry::Value;
pub use opentelemetry::trace::SpanKind;
pub use telemetry::{Telemetry, TelemetryConfig, TelemetryError, init};
pub use trace::{FinishedSpan, FinishedSpans, Span, Tracer};
