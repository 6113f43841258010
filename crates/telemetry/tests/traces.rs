//! Traces from the tracer to a collector, over the wire.
#![allow(
    clippy::unwrap_used,
    reason = "what the tests share may unwrap as tests do"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as OtlpSpan;
use streamgauge_telemetry::{
    Metrics, SpanKind, Telemetry, TelemetryConfig, TelemetryError, TraceContext,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(60);

/// A span as it arrived, with its service.
#[derive(Clone, Debug)]
struct Arrived {
    resource: HashMap<String, String>,
    span: OtlpSpan,
}

#[derive(Clone)]
struct Collector {
    arrived: Arc<watch::Sender<Vec<Arrived>>>,
    /// Takes calls, and never answers.
    hangs: bool,
}

fn attributes(list: &[KeyValue]) -> HashMap<String, String> {
    list.iter()
        .map(|attribute| {
            let value = attribute
                .value
                .as_ref()
                .and_then(|value| value.value.as_ref());
            let value = match value {
                Some(Value::StringValue(text)) => text.clone(),
                Some(Value::IntValue(number)) => number.to_string(),
                other => format!("{other:?}"),
            };
            (attribute.key.clone(), value)
        })
        .collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        for group in request.into_inner().resource_spans {
            let resource = attributes(&group.resource.unwrap_or_default().attributes);
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let arrived = spans.map(|span| Arrived {
                resource: resource.clone(),
                span,
            });
            self.arrived.send_modify(|all| all.extend(arrived));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(hangs: bool) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let collector = Collector {
            arrived: Arc::new(watch::Sender::default()),
            hangs,
        };
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, addr)
    }

    async fn wait_for(&self, count: usize) -> Vec<Arrived> {
        let mut arrived = self.arrived.subscribe();
        let waited =
            tokio::time::timeout(PATIENCE, arrived.wait_for(|all| all.len() >= count)).await;
        waited.unwrap().unwrap().clone()
    }
}

fn config(addr: SocketAddr) -> TelemetryConfig {
    TelemetryConfig {
        otlp_endpoint: Some(format!("http://{addr}")),
        sample_ratio: 1.0,
        export_interval_ms: 20,
        ..TelemetryConfig::default()
    }
}

fn named<'a>(arrived: &'a [Arrived], name: &str) -> &'a Arrived {
    arrived
        .iter()
        .find(|arrived| arrived.span.name == name)
        .unwrap_or_else(|| panic!("no span {name} in {arrived:?}"))
}

#[tokio::test]
async fn one_trace_goes_through_two_services_to_the_collector() {
    let (collector, addr) = Collector::start(false).await;
    let telemetry = Telemetry::without_logs("host-1", &config(addr)).unwrap();
    let (producer, consumer) = (telemetry.tracer("producer"), telemetry.tracer("consumer"));

    let mut request = producer.start_server("POST /v1/events", None);
    request.set("http.request.method", "POST");
    let mut send = producer.start_producer("send analytics-events", request.context());
    send.set("messaging.batch.message_count", 3);
    let header = send.context().unwrap().header();

    let parent = TraceContext::parse(header.as_bytes());
    let batch = consumer.start_consumer("batch", None, &[parent.unwrap()]);
    let mut process = consumer.start_consumer("process analytics-events", parent, &[]);
    process.error("timeout");
    process.end();
    batch.end();
    send.end();
    drop(request);

    let arrived = collector.wait_for(4).await;
    let request = named(&arrived, "POST /v1/events");
    let send = named(&arrived, "send analytics-events");
    let process = named(&arrived, "process analytics-events");
    let batch = named(&arrived, "batch");
    assert_eq!(send.span.trace_id, request.span.trace_id);
    assert_eq!(process.span.trace_id, request.span.trace_id);
    assert_ne!(batch.span.trace_id, request.span.trace_id);
    assert_eq!(request.span.parent_span_id, Vec::<u8>::new());
    assert_eq!(send.span.parent_span_id, request.span.span_id);
    assert_eq!(process.span.parent_span_id, send.span.span_id);
    assert_eq!(batch.span.links.len(), 1);
    assert_eq!(batch.span.links[0].span_id, send.span.span_id);
    assert_eq!(request.resource["service.name"], "producer");
    assert_eq!(process.resource["service.name"], "consumer");
    assert_eq!(process.resource["service.instance.id"], "host-1");
    assert_eq!(
        attributes(&request.span.attributes)["http.request.method"],
        "POST"
    );
    assert_eq!(
        attributes(&send.span.attributes)["messaging.batch.message_count"],
        "3"
    );
    assert_eq!(
        attributes(&process.span.attributes)["error.type"],
        "timeout"
    );
    assert_eq!(process.span.status.as_ref().unwrap().code, 2);
    telemetry.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_shutdown_sends_what_is_queued() {
    let (collector, addr) = Collector::start(false).await;
    let slow = TelemetryConfig {
        export_interval_ms: 3_600_000,
        export_batch_size: 40,
        ..config(addr)
    };
    let telemetry = Telemetry::without_logs("host-1", &slow).unwrap();
    let tracer = telemetry.tracer("producer");
    let metrics = Metrics::new("producer");
    tracer.register(&metrics);
    for _ in 0..110 {
        tracer.start_internal("step", None).end();
    }
    telemetry.shutdown(PATIENCE).await;
    assert_eq!(collector.arrived.borrow().len(), 110);
    tracer.start_internal("too late", None).end();
    let text = metrics.encode();
    assert!(text.contains("\nspans_exported_total 110\n"), "{text}");
    assert!(text.contains("\nspans_dropped_total 1\n"), "{text}");
}

/// Starts and ends many spans with a collector that does not take them; returns the counters at the end.
async fn overload(addr: SocketAddr) -> String {
    const SPANS: usize = 20_000;
    let small = TelemetryConfig {
        export_queue_size: 64,
        export_batch_size: 16,
        export_timeout_ms: 100,
        ..config(addr)
    };
    let telemetry = Telemetry::without_logs("host-1", &small).unwrap();
    let tracer = telemetry.tracer("producer");
    let metrics = Metrics::new("producer");
    tracer.register(&metrics);
    let started = Instant::now();
    for _ in 0..SPANS {
        tracer.start_internal("step", None).end();
    }
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    telemetry.shutdown(PATIENCE).await;
    let text = metrics.encode();
    assert!(
        text.contains(&format!("\nspans_dropped_total {SPANS}\n")),
        "{text}"
    );
    text
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_only_spans() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    overload(addr).await;
}

#[tokio::test]
async fn a_collector_that_hangs_costs_only_spans() {
    let (_collector, addr) = Collector::start(true).await;
    overload(addr).await;
}

#[test]
fn sampling_honours_the_caller_and_then_the_ratio() {
    let (telemetry, spans) = Telemetry::in_memory();
    let tracer = telemetry.tracer("producer");
    let parent = |sampled| {
        Some(TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
            sampled,
        })
    };
    assert!(tracer.start_server("no", parent(false)).context().is_none());
    let span = tracer.start_server("yes", parent(true));
    let context = span.context().unwrap();
    assert_eq!(context.trace_id, [1; 16]);
    assert!(context.sampled && context.span_id != [2; 8]);
    span.end();
    let root = tracer.start_consumer("root", None, &vec![parent(true).unwrap(); 300]);
    root.end();
    let all = spans.all();
    assert_eq!(all.len(), 2);
    assert_eq!(
        (all[0].name.as_str(), all[0].parent_span_id),
        ("yes", Some([2; 8]))
    );
    assert_eq!(
        (all[0].service, &all[0].kind),
        ("producer", &SpanKind::Server)
    );
    assert_eq!((all[1].links.len(), all[1].parent_span_id), (128, None));
}

#[tokio::test]
async fn the_ratio_is_about_kept() {
    let (_collector, addr) = Collector::start(false).await;
    let tenth = TelemetryConfig {
        sample_ratio: 0.1,
        ..config(addr)
    };
    let telemetry = Telemetry::without_logs("host-1", &tenth).unwrap();
    let tracer = telemetry.tracer("producer");
    let sampled = (0..20_000).filter(|_| tracer.should_sample(None)).count();
    assert!((1_700..2_300).contains(&sampled), "{sampled}");
}

#[test]
fn without_a_collector_sampled_contexts_are_passed_on() {
    let telemetry = Telemetry::disabled();
    let tracer = telemetry.tracer("producer");
    let parent = TraceContext {
        trace_id: [1; 16],
        span_id: [2; 8],
        sampled: true,
    };
    let span = tracer.start_server("request", Some(parent));
    assert_eq!(span.context(), Some(parent));
    assert!(!span.is_recording());
    assert!(tracer.start_server("request", None).context().is_none());
}

#[test]
fn wrong_settings_are_told() {
    let endpoint = TelemetryConfig {
        otlp_endpoint: Some("http://not a url".to_owned()),
        ..TelemetryConfig::default()
    };
    let error = Telemetry::without_logs("host-1", &endpoint).unwrap_err();
    assert!(matches!(error, TelemetryError::Endpoint { .. }), "{error}");
    let ratio = TelemetryConfig {
        sample_ratio: 1.5,
        ..TelemetryConfig::default()
    };
    let error = Telemetry::without_logs("host-1", &ratio).unwrap_err();
    assert!(
        matches!(error, TelemetryError::SampleRatio { .. }),
        "{error}"
    );
}
