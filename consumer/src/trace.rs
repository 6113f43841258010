//! One trace from the request to the applied delta: the `process` span of a sampled event, and the span of the batch
//! that counts it.

use streamgauge_chain::TraceBytes;
use streamgauge_kafka::RecordRef;
use streamgauge_telemetry::{Span, TraceContext, Tracer, context::TRACEPARENT};

/// What spans say about where they happened.
#[derive(Clone, Debug)]
pub struct Spans {
    tracer: Tracer,
    topic: String,
    group: String,
    metrics_topic: String,
    partition: i32,
    process: String,
    send: String,
}

impl Spans {
    /// Spans of one partition.
    pub fn new(
        tracer: Tracer,
        topic: &str,
        metrics_topic: &str,
        group: &str,
        partition: i32,
    ) -> Self {
        Self {
            tracer,
            topic: topic.to_owned(),
            group: group.to_owned(),
            metrics_topic: metrics_topic.to_owned(),
            partition,
            process: format!("process {topic}"),
            send: format!("send {metrics_topic}"),
        }
    }

    /// The span of an event whose producer was sampled.
    pub fn process(&self, record: &RecordRef<'_>) -> Option<Span> {
        let parent = TraceContext::parse(record.headers.get(TRACEPARENT)?)?;
        if !parent.sampled {
            return None;
        }
        let mut span = self
            .tracer
            .start_consumer(self.process.clone(), Some(parent), &[]);
        if span.is_recording() {
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "process");
            span.set("messaging.destination.name", self.topic.clone());
            span.set(
                "messaging.destination.partition.id",
                self.partition.to_string(),
            );
            span.set("messaging.kafka.offset", record.offset);
            span.set("messaging.consumer.group.name", self.group.clone());
        }
        Some(span)
    }

    /// The span of a batch, linked to its sampled events.
    pub fn send(&self, traces: &[TraceBytes], records: u64) -> Span {
        let links: Vec<_> = traces
            .iter()
            .filter_map(|bytes| TraceContext::from_bytes(bytes))
            .collect();
        if links.is_empty() {
            return Span::none();
        }
        let mut span = self.tracer.start(
            streamgauge_telemetry::SpanKind::Producer,
            self.send.clone(),
            None,
            &links,
        );
        if span.is_recording() {
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "send");
            span.set("messaging.destination.name", self.metrics_topic.clone());
            span.set(
                "messaging.destination.partition.id",
                self.partition.to_string(),
            );
            span.set("messaging.batch.message_count", records.cast_signed());
        }
        span
    }
}
