//! Sets telemetry up once per process and takes it down at the end. Several services may share a process; each gets a
//! tracer of its own, so that its spans bear its name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter as OtlpExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanExporter as _, SpanProcessor};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::export::{MemoryProcessor, QueueProcessor, Worker};
use crate::log::{self, LogConfig};
use crate::trace::{FinishedSpans, MAX_LINKS, SpanCounters, Tracer};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    pub log: LogConfig,
    /// Where spans go by OTLP over gRPC, as in `http://localhost:4317`; none exports no spans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// The share of traces that begin here and are recorded, 0 to 1. A caller's decision goes before it.
    pub sample_ratio: f64,
    /// Spans that wait for export, per service; those beyond are dropped and counted.
    pub export_queue_size: usize,
    /// Spans sent at once.
    pub export_batch_size: usize,
    /// How long a span waits for its batch to fill.
    pub export_interval_ms: u64,
    /// How long the collector may take to answer.
    pub export_timeout_ms: u64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig {
            log: LogConfig::default(),
            otlp_endpoint: None,
            sample_ratio: 0.01,
            export_queue_size: 8_192,
            export_batch_size: 512,
            export_interval_ms: 1_000,
            export_timeout_ms: 5_000,
        }
    }
}

#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TelemetryError {
    #[error(
        "telemetry.log.filter: `{filter}` is not a log filter ({detail}); write it as in `info,rdkafka=warn`"
    )]
    Filter { filter: String, detail: String },
    #[error("logging was already set up in this process; set telemetry up once")]
    AlreadySet,
    #[error(
        "telemetry.otlp_endpoint: `{endpoint}` cannot be used ({source}); write it as in `http://localhost:4317`"
    )]
    Endpoint {
        endpoint: String,
        source: ExporterBuildError,
    },
    #[error("telemetry.sample_ratio: {ratio} is not between 0 and 1")]
    SampleRatio { ratio: f64 },
    #[error("cannot start the thread that exports spans: {0}")]
    Thread(#[from] std::io::Error),
}

/// Installs logging for the process and starts exporting spans, if there is somewhere to export them to. Call it once.
pub fn init(
    service: &'static str,
    instance: &str,
    config: &TelemetryConfig,
) -> Result<Telemetry, TelemetryError> {
    log::install(service, instance, &config.log)?;
    Telemetry::without_logs(instance, config)
}

/// Holds what runs in the background. Dropping it stops exporting at once; `shutdown` sends what is queued first.
pub struct Telemetry {
    sink: Sink,
    instance: String,
    sample_ratio: f64,
    tracers: Mutex<HashMap<&'static str, Tracer>>,
}

enum Sink {
    None,
    Memory(FinishedSpans),
    Export(Box<Exporting>),
}

/// What is needed to export spans, and what does so.
struct Exporting {
    config: TelemetryConfig,
    endpoint: String,
    /// Taken when it is shut down.
    runtime: Option<Runtime>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    stop: watch::Sender<bool>,
}

impl Telemetry {
    /// Exports spans, but leaves logging alone.
    pub fn without_logs(instance: &str, config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let ratio = config.sample_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            return Err(TelemetryError::SampleRatio { ratio });
        }
        let endpoint = config.otlp_endpoint.as_deref().unwrap_or_default();
        let sink = if endpoint.is_empty() {
            Sink::None
        } else {
            let exporting = Exporting::start(endpoint, config)?;
            // A wrong endpoint is told now rather than with the first tracer.
            exporting.exporter()?;
            Sink::Export(Box::new(exporting))
        };
        Ok(Telemetry {
            sink,
            instance: instance.to_owned(),
            sample_ratio: ratio,
            tracers: Mutex::default(),
        })
    }

    /// Records nothing. Sampled contexts of callers are still passed on.
    pub fn disabled() -> Self {
        Telemetry::over(Sink::None, 0.0)
    }

    /// Records every trace that begins here and keeps the spans, for tests.
    pub fn in_memory() -> (Self, FinishedSpans) {
        let spans = FinishedSpans::default();
        (Telemetry::over(Sink::Memory(spans.clone()), 1.0), spans)
    }

    fn over(sink: Sink, sample_ratio: f64) -> Self {
        Telemetry {
            sink,
            instance: "test".to_owned(),
            sample_ratio,
            tracers: Mutex::default(),
        }
    }

    /// The tracer of a service, whose spans bear `service.name`. Asking again gives the same one.
    pub fn tracer(&self, service: &'static str) -> Tracer {
        self.tracers
            .lock()
            .entry(service)
            .or_insert_with(|| self.new_tracer(service))
            .clone()
    }

    fn new_tracer(&self, service: &'static str) -> Tracer {
        let counters = SpanCounters::default();
        let resource = resource(service, &self.instance);
        let sdk = match &self.sink {
            Sink::None => None,
            Sink::Memory(spans) => Some(sdk_tracer(
                resource,
                MemoryProcessor {
                    service,
                    spans: spans.clone(),
                },
            )),
            Sink::Export(exporting) => match exporting.processor(service, &resource, &counters) {
                Ok(processor) => Some(sdk_tracer(resource, processor)),
                // The same settings made an exporter at the start.
                Err(error) => {
                    tracing::error!(service, %error, "spans of this service are not exported");
                    None
                }
            },
        };
        Tracer::new(sdk, self.sample_ratio, counters)
    }

    /// Sends the spans that are queued and stops. What is not sent by the deadline is dropped.
    pub async fn shutdown(mut self, deadline: Duration) {
        let Sink::Export(exporting) = &mut self.sink else {
            return;
        };
        exporting.stop.send_replace(true);
        let workers = std::mem::take(&mut *exporting.workers.lock());
        let all = async {
            for worker in workers {
                if let Err(error) = worker.await {
                    tracing::error!(%error, "an exporter of spans failed");
                }
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            tracing::warn!(?deadline, "spans were left when telemetry shut down");
        }
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry")
            .field("instance", &self.instance)
            .field("exporting", &matches!(self.sink, Sink::Export(_)))
            .finish_non_exhaustive()
    }
}

impl Exporting {
    fn start(endpoint: &str, config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()?;
        Ok(Exporting {
            config: config.clone(),
            endpoint: endpoint.to_owned(),
            runtime: Some(runtime),
            workers: Mutex::default(),
            stop: watch::Sender::new(false),
        })
    }

    fn exporter(&self) -> Result<OtlpExporter, TelemetryError> {
        // The channel to the collector belongs to the runtime in which it is made.
        let _entered = self.runtime.as_ref().map(Runtime::enter);
        OtlpExporter::builder()
            .with_tonic()
            .with_endpoint(&self.endpoint)
            .with_timeout(self.timeout())
            .build()
            .map_err(|source| TelemetryError::Endpoint {
                endpoint: self.endpoint.clone(),
                source,
            })
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.export_timeout_ms.max(1))
    }

    /// Starts a service's queue and worker.
    fn processor(
        &self,
        service: &'static str,
        resource: &Resource,
        counters: &SpanCounters,
    ) -> Result<QueueProcessor, TelemetryError> {
        let mut exporter = self.exporter()?;
        exporter.set_resource(resource);
        let (sender, receiver) = mpsc::channel(self.config.export_queue_size.max(1));
        let worker = Worker {
            service,
            exporter,
            queue: receiver,
            counters: counters.clone(),
            batch_size: self.config.export_batch_size.max(1),
            interval: Duration::from_millis(self.config.export_interval_ms.max(1)),
            timeout: self.timeout(),
            stop: self.stop.subscribe(),
        };
        if let Some(runtime) = &self.runtime {
            self.workers.lock().push(runtime.spawn(worker.run()));
        }
        Ok(QueueProcessor {
            queue: sender,
            counters: counters.clone(),
        })
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn resource(service: &'static str, instance: &str) -> Resource {
    Resource::builder_empty()
        .with_service_name(service)
        .with_attributes([
            KeyValue::new("service.namespace", "streamgauge"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ])
        .build()
}

/// Sampling is decided before a span reaches the SDK, which records all it is given.
fn sdk_tracer(
    resource: Resource,
    processor: impl SpanProcessor + 'static,
) -> opentelemetry_sdk::trace::SdkTracer {
    SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOn)
        .with_max_links_per_span(MAX_LINKS as u32)
        .with_resource(resource)
        .with_span_processor(processor)
        .build()
        .tracer("streamgauge")
}

/// Keeps the type usable behind an `Arc`, which is how a process shares it between services.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<Telemetry>>();
};
