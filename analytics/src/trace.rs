//! Spans of applied batches: each sampled event's trace gets a child, so that it runs from the request to the view.

use streamgauge_proto::v1::DeltaBatch;
use streamgauge_telemetry::{Span, TraceContext, Tracer};

/// What all spans of one batch say.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The topic of delta batches.
    pub topic: &'a str,
    /// `sqlite` or `postgresql`.
    pub db_system: &'static str,
    /// The partition.
    pub partition: i32,
    /// The batch's offset.
    pub offset: i64,
}

/// Starts a span for each sampled event of a batch, up to a bound. They end when they are dropped.
pub fn start(tracer: &Tracer, batch: &DeltaBatch, place: Place<'_>, spans_max: usize) -> Vec<Span> {
    let contexts = batch
        .traces
        .iter()
        .filter_map(|bytes| TraceContext::from_bytes(bytes));
    let sampled = contexts.filter(|context| context.sampled).take(spans_max);
    sampled
        .map(|context| span(tracer, batch, place, context))
        .collect()
}

fn span(tracer: &Tracer, batch: &DeltaBatch, place: Place<'_>, parent: TraceContext) -> Span {
    let name = format!("apply {}", place.topic);
    let mut span = tracer.start_consumer(name, Some(parent), &[]);
    if span.is_recording() {
        span.set("messaging.system", "kafka");
        span.set("messaging.operation.name", "apply");
        span.set("messaging.destination.name", place.topic.to_owned());
        span.set(
            "messaging.destination.partition.id",
            place.partition.to_string(),
        );
        span.set("messaging.kafka.offset", place.offset);
        span.set("messaging.batch.message_count", 1);
        span.set("db.system.name", place.db_system);
        span.set("streamgauge.range.from", batch.from);
        span.set("streamgauge.range.to", batch.to);
    }
    span
}

/// The first sampled context of a batch, for an exemplar.
pub fn exemplar(batch: &DeltaBatch) -> Option<TraceContext> {
    let mut contexts = batch
        .traces
        .iter()
        .filter_map(|bytes| TraceContext::from_bytes(bytes));
    contexts.find(|context| context.sampled)
}
