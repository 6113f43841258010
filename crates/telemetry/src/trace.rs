//! Spans, built by hand where they matter rather than by attribute on every function: an event that is not sampled
//! must cost next to nothing. A caller's decision to sample is honoured; without one, a ratio decides.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{Span as SdkSpan, SpanData};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use crate::context::{InTrace, TraceContext};
use crate::metrics::Metrics;

/// The most links that one span holds; more are not recorded.
pub const MAX_LINKS: usize = 128;

/// What became of a service's spans.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpanCounters {
    pub(crate) exported: Counter,
    pub(crate) dropped: Counter,
}

/// What a service starts its spans with; clones are cheap.
#[derive(Clone)]
pub struct Tracer {
    inner: Arc<Inner>,
}

struct Inner {
    /// None when nothing is exported.
    sdk: Option<opentelemetry_sdk::trace::SdkTracer>,
    /// The bits of the ratio, which may change at any time.
    sample_ratio: AtomicU64,
    counters: SpanCounters,
}

impl Tracer {
    pub(crate) fn new(
        sdk: Option<opentelemetry_sdk::trace::SdkTracer>,
        sample_ratio: f64,
        counters: SpanCounters,
    ) -> Self {
        Tracer {
            inner: Arc::new(Inner {
                sdk,
                sample_ratio: AtomicU64::new(sample_ratio.to_bits()),
                counters,
            }),
        }
    }

    /// A tracer that records nothing and passes on what callers sampled.
    pub fn disabled() -> Self {
        Tracer::new(None, 0.0, SpanCounters::default())
    }

    /// Whether spans are recorded at all.
    pub fn is_exporting(&self) -> bool {
        self.inner.sdk.is_some()
    }

    /// The share of traces that begin here and are recorded, 0 to 1.
    pub fn sample_ratio(&self) -> f64 {
        f64::from_bits(self.inner.sample_ratio.load(Ordering::Relaxed))
    }

    /// Changes the share from now on, for all clones; whether it is one.
    #[must_use]
    pub fn set_sample_ratio(&self, ratio: f64) -> bool {
        let is_share = (0.0..=1.0).contains(&ratio);
        if is_share {
            let bits = ratio.to_bits();
            self.inner.sample_ratio.store(bits, Ordering::Relaxed);
        }
        is_share
    }

    /// Adds `spans_exported_total` and `spans_dropped_total` to a service's metrics.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            let counters = &self.inner.counters;
            registry.register(
                "spans_exported",
                "Spans that the trace collector has taken",
                counters.exported.clone(),
            );
            registry.register(
                "spans_dropped",
                "Spans lost because the queue was full or the trace collector did not take them",
                counters.dropped.clone(),
            );
        });
    }

    /// Whether a span with this parent is to be recorded. Without a parent each call draws anew.
    pub fn should_sample(&self, parent: Option<TraceContext>) -> bool {
        match parent {
            Some(parent) => parent.sampled,
            None => self.inner.sdk.is_some() && self.draw(),
        }
    }

    /// A request that this service answers.
    pub fn start_server(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
    ) -> Span {
        self.start(SpanKind::Server, name, parent, &[])
    }

    /// A message, or a batch of them, that is sent.
    pub fn start_producer(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
    ) -> Span {
        self.start(SpanKind::Producer, name, parent, &[])
    }

    /// A message that is processed, or a batch of them, linked to what its messages belong to.
    pub fn start_consumer(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
        links: &[TraceContext],
    ) -> Span {
        self.start(SpanKind::Consumer, name, parent, links)
    }

    /// A request to another service.
    pub fn start_client(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
    ) -> Span {
        self.start(SpanKind::Client, name, parent, &[])
    }

    /// A step within the service.
    pub fn start_internal(
        &self,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
    ) -> Span {
        self.start(SpanKind::Internal, name, parent, &[])
    }

    /// Starts a span. It is recorded if its parent is; without a parent if anything it links to is; else by the ratio.
    pub fn start(
        &self,
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
        parent: Option<TraceContext>,
        links: &[TraceContext],
    ) -> Span {
        let linked = parent.is_none() && links.iter().any(|link| link.sampled);
        let Some(sdk) = &self.inner.sdk else {
            let passing = parent.filter(|parent| parent.sampled);
            return Span(passing.map_or(Recording::Off, Recording::Passing));
        };
        if !linked && !self.should_sample(parent) {
            return Span(Recording::Off);
        }
        let mut builder = SpanBuilder::from_name(name).with_kind(kind);
        let links: Vec<Link> = links
            .iter()
            .filter(|link| link.sampled)
            .take(MAX_LINKS)
            .map(|link| Link::with_context(link.to_otel()))
            .collect();
        if !links.is_empty() {
            builder = builder.with_links(links);
        }
        let parent = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent.to_otel()),
            None => Context::new(),
        };
        Span(Recording::On(Box::new(
            sdk.build_with_context(builder, &parent),
        )))
    }

    fn draw(&self) -> bool {
        let ratio = self.sample_ratio();
        ratio >= 1.0 || (ratio > 0.0 && rand::random::<f64>() < ratio)
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("enabled", &self.inner.sdk.is_some())
            .field("sample_ratio", &self.sample_ratio())
            .finish_non_exhaustive()
    }
}

enum Recording {
    Off,
    /// Not recorded here, but part of a trace that others record.
    Passing(TraceContext),
    On(Box<SdkSpan>),
}

/// A span under way; it ends when it is dropped.
#[must_use]
pub struct Span(Recording);

impl Span {
    /// A span that is not recorded.
    pub fn none() -> Self {
        Span(Recording::Off)
    }

    /// Whether attributes will be kept, for when working one out costs something.
    pub fn is_recording(&self) -> bool {
        matches!(self.0, Recording::On(_))
    }

    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Recording::On(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Marks the span as failed; `kind` is a short fixed name such as `timeout`.
    pub fn error(&mut self, kind: impl Into<Cow<'static, str>>) {
        if let Recording::On(span) = &mut self.0 {
            let kind = kind.into();
            span.set_attribute(KeyValue::new("error.type", kind.clone()));
            span.set_status(Status::error(kind));
        }
    }

    /// What a child or a message carries on; none when the trace is not sampled.
    pub fn context(&self) -> Option<TraceContext> {
        match &self.0 {
            Recording::Off => None,
            Recording::Passing(context) => Some(*context),
            Recording::On(span) => Some(TraceContext::from_otel(span.span_context())),
        }
    }

    /// Runs `fut` within this span's trace: log lines it writes carry the ids.
    pub fn scope<F: Future>(&self, fut: F) -> InTrace<F> {
        InTrace::new(self.context(), fut)
    }

    /// Ends it now rather than when it is dropped.
    pub fn end(mut self) {
        if let Recording::On(span) = &mut self.0 {
            span.end();
        }
    }
}

impl Default for Span {
    fn default() -> Self {
        Span::none()
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.context()).finish()
    }
}

/// A span that has ended, for tests to look at.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    pub service: &'static str,
    pub name: String,
    pub kind: SpanKind,
    pub context: TraceContext,
    /// None for the first span of a trace.
    pub parent_span_id: Option<[u8; 8]>,
    pub links: Vec<TraceContext>,
    pub attributes: Vec<(String, String)>,
    /// The kind of error, if it failed.
    pub error: Option<String>,
}

impl FinishedSpan {
    pub(crate) fn new(service: &'static str, data: &SpanData) -> Self {
        let parent = data.parent_span_id.to_bytes();
        FinishedSpan {
            service,
            name: data.name.clone().into_owned(),
            kind: data.span_kind.clone(),
            context: TraceContext::from_otel(&data.span_context),
            parent_span_id: (parent != [0; 8]).then_some(parent),
            links: data
                .links
                .iter()
                .map(|link| TraceContext::from_otel(&link.span_context))
                .collect(),
            attributes: data
                .attributes
                .iter()
                .map(|attribute| (attribute.key.to_string(), attribute.value.to_string()))
                .collect(),
            error: match &data.status {
                Status::Error { description } => Some(description.to_string()),
                _ => None,
            },
        }
    }

    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// The spans that have ended so far, under [`crate::Telemetry::in_memory`].
#[derive(Clone, Debug, Default)]
pub struct FinishedSpans(pub(crate) Arc<Mutex<Vec<FinishedSpan>>>);

impl FinishedSpans {
    pub fn all(&self) -> Vec<FinishedSpan> {
        self.0.lock().clone()
    }

    pub fn named(&self, name: &str) -> Vec<FinishedSpan> {
        self.0
            .lock()
            .iter()
            .filter(|span| span.name == name)
            .cloned()
            .collect()
    }
}
