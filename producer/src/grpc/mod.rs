//! The gRPC door: the same submissions, limits and verdicts as over HTTP, as messages.
//!
//! A unary call that is refused ends in a status; on a stream the refusal is an answer and the stream goes on. The
//! batches of a stream are taken on in order, a few at a time, so that a slow reader slows its own stream only.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant as Stopwatch};

use futures::{Stream, StreamExt};
use streamgauge_lifecycle::{Health, Shutdown};
use streamgauge_proto::v1::submission_server::{Submission as SubmissionRpc, SubmissionServer};
use streamgauge_proto::v1::{
    self, SubmitBatchRequest, SubmitBatchResponse, SubmitRequest, SubmitResponse,
    SubmitStreamRequest, SubmitStreamResponse, SubmittedEvent,
};
use streamgauge_proto::{ErrorCode, FILE_DESCRIPTOR_SET, Problem};
use streamgauge_telemetry::context::TRACEPARENT;
use streamgauge_telemetry::{Span, TraceContext};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::util::MapResponseLayer;

use crate::config::{GrpcConfig, Limits};
use crate::error::Error;
use crate::intake::{Intake, Outcome, Submission, Verdict, idempotency_key};

const SUBMIT: &str = "streamgauge.v1.Submission/Submit";
const SUBMIT_BATCH: &str = "streamgauge.v1.Submission/SubmitBatch";
const SUBMIT_STREAM: &str = "streamgauge.v1.Submission/SubmitStream";

/// What the service shares between calls.
#[derive(Clone)]
pub struct Shared {
    pub intake: Arc<Intake>,
    pub limits: Arc<Limits>,
    pub config: GrpcConfig,
    pub shutdown: Shutdown,
}

/// Serves until the shutdown, then lets calls under way finish.
pub async fn serve(listener: TcpListener, shared: Shared, health: Health) -> Result<(), Error> {
    let shutdown = shared.shutdown.clone();
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let watching = tokio::spawn(report_health(reporter, health, shutdown.clone()));
    let message_max = shared.config.message_bytes_max;
    let server = Server::builder()
        .tcp_nodelay(true)
        .concurrency_limit_per_connection(shared.config.connection_calls_max as usize)
        .max_concurrent_streams(shared.config.connection_calls_max)
        .layer(shared.intake.metrics.rpc().layer())
        .layer(MapResponseLayer::new(
            oversized_as_exhausted::<tonic::body::Body>,
        ))
        .add_service(SubmissionServer::new(shared).max_decoding_message_size(message_max))
        .add_service(health_service)
        .add_service(reflection()?.build_v1().map_err(Error::Reflection)?)
        .add_service(reflection()?.build_v1alpha().map_err(Error::Reflection)?)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.triggered_owned());
    let served = server.await.map_err(Error::Grpc);
    watching.abort();
    served
}

fn reflection() -> Result<tonic_reflection::server::Builder<'static>, Error> {
    Ok(tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET))
}

/// Keeps the standard health service at what readiness says.
async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    health: Health,
    shutdown: Shutdown,
) {
    let mut ready = health.subscribe();
    loop {
        let serving = *ready.borrow_and_update();
        if serving {
            reporter.set_serving::<SubmissionServer<Shared>>().await;
        } else {
            reporter.set_not_serving::<SubmissionServer<Shared>>().await;
        }
        let overall = if serving {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        reporter.set_service_status("", overall).await;
        tokio::select! {
            changed = ready.changed() => if changed.is_err() { return },
            () = shutdown.triggered() => return,
        }
    }
}

/// tonic calls a message above the limit "out of range"; here it is what a body above the limit is over HTTP.
fn oversized_as_exhausted<B: Default>(response: http::Response<B>) -> http::Response<B> {
    match response.extensions().get::<Status>() {
        Some(status) if status.code() == Code::OutOfRange => too_large(status).into_http(),
        _ => response,
    }
}

fn too_large(status: &Status) -> Status {
    Problem::new(
        ErrorCode::BodyTooLarge,
        format!("{} (grpc.message_bytes_max)", status.message()),
    )
    .into()
}

/// What one call says about all its events.
struct Call {
    submission: Submission,
    timeout: Duration,
}

impl Shared {
    fn call(
        &self,
        metadata: &MetadataMap,
        peer: Option<IpAddr>,
        historical: bool,
        key: &str,
        trace: Option<TraceContext>,
    ) -> Result<Call, Problem> {
        self.intake.admission.is_open()?;
        let authorization = metadata.get("authorization").map(|value| value.as_bytes());
        let client = self.intake.auth.client(authorization, peer)?;
        Ok(Call {
            submission: Submission {
                client,
                historical,
                idempotency_key: idempotency_key(key.as_bytes())?,
                trace,
            },
            timeout: timeout(metadata, self.limits.request_timeout()),
        })
    }

    async fn submit(&self, events: &[SubmittedEvent], call: &Call) -> Result<Outcome, Problem> {
        let batch = self.intake.read_messages(events, &call.submission)?;
        self.intake
            .submit(batch, &call.submission, Instant::now() + call.timeout)
            .await
    }

    async fn submit_batch(
        &self,
        metadata: &MetadataMap,
        peer: Option<IpAddr>,
        request: SubmitBatchRequest,
        trace: Option<TraceContext>,
    ) -> Result<SubmitBatchResponse, Problem> {
        let call = self.call(
            metadata,
            peer,
            request.historical,
            &request.idempotency_key,
            trace,
        )?;
        let outcome = self.submit(&request.events, &call).await?;
        match outcome.failed_whole() {
            Some(reason) => Err(Problem::new(reason.code(), reason.message())),
            None => Ok(batch_response(&outcome)),
        }
    }

    /// Runs one submission within a span of its own.
    async fn traced<T>(
        &self,
        name: &'static str,
        metadata: &MetadataMap,
        run: impl AsyncFnOnce(Option<TraceContext>) -> Result<T, Problem>,
    ) -> (Result<T, Problem>, Option<TraceContext>) {
        let watch = Stopwatch::now();
        let caller = metadata
            .get(TRACEPARENT)
            .and_then(|header| TraceContext::parse(header.as_bytes()));
        let mut span: Span = self.intake.tracer.start_server(name, caller);
        span.set("rpc.system", "grpc");
        let trace = span.context().filter(|trace| trace.sampled);
        let result = span.scope(run(trace)).await;
        if let Err(problem) = &result {
            span.error(problem.code.as_str());
        }
        self.intake
            .metrics
            .request()
            .observe(watch.elapsed().as_secs_f64(), trace);
        (result, trace)
    }
}

/// The part of the caller's `grpc-timeout` that leaves time to answer, if that is the shorter one.
fn timeout(metadata: &MetadataMap, max: Duration) -> Duration {
    let header = metadata
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok());
    header
        .and_then(parse_timeout)
        .map_or(max, |timeout| max.min(timeout.mul_f64(0.9)))
}

/// `1S`, `500m`, `20u`: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

fn response<T>(
    (result, trace): (Result<T, Problem>, Option<TraceContext>),
) -> Result<Response<T>, Status> {
    let sign = |metadata: &mut MetadataMap| {
        if let Some(value) = trace.and_then(|trace| trace.header().parse().ok()) {
            metadata.insert(TRACEPARENT, value);
        }
    };
    match result {
        Ok(message) => {
            let mut response = Response::new(message);
            sign(response.metadata_mut());
            if let Some(trace) = trace {
                response.extensions_mut().insert(trace);
            }
            Ok(response)
        }
        Err(problem) => {
            let mut status = Status::from(problem);
            sign(status.metadata_mut());
            Err(status)
        }
    }
}

fn batch_response(outcome: &Outcome) -> SubmitBatchResponse {
    let counts = outcome.counts();
    SubmitBatchResponse {
        verdicts: outcome.verdicts().map(verdict).collect(),
        accepted: counts.accepted as u32,
        rejected: counts.rejected as u32,
        retry: counts.retry as u32,
    }
}

fn verdict(verdict: Verdict<'_>) -> v1::Verdict {
    match verdict {
        Verdict::Accepted { event_id } => v1::Verdict {
            status: v1::VerdictStatus::Accepted.into(),
            event_id: event_id.to_owned(),
            ..v1::Verdict::default()
        },
        Verdict::Rejected {
            event_id,
            code,
            field,
            message,
        } => v1::Verdict {
            status: v1::VerdictStatus::Rejected.into(),
            event_id: event_id.unwrap_or_default().to_owned(),
            code: code.as_str().to_owned(),
            field: field.unwrap_or_default().to_owned(),
            message: message.to_owned(),
        },
        Verdict::Retry { event_id, reason } => v1::Verdict {
            status: v1::VerdictStatus::Retry.into(),
            event_id: event_id.to_owned(),
            code: reason.code().as_str().to_owned(),
            message: reason.message().to_owned(),
            ..v1::Verdict::default()
        },
    }
}

fn refusal(problem: Problem) -> v1::Refusal {
    v1::Refusal {
        code: problem.code.as_str().to_owned(),
        retry_after_ms: problem
            .retry_after
            .map_or(0, |after| after.as_millis().max(1) as u64),
        message: problem.message,
    }
}

fn ip(address: Option<SocketAddr>) -> Option<IpAddr> {
    address.map(|address| address.ip())
}

#[tonic::async_trait]
impl SubmissionRpc for Shared {
    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitResponse>, Status> {
        let peer = ip(request.remote_addr());
        let (metadata, _, message) = request.into_parts();
        let done = self
            .traced(SUBMIT, &metadata, async |trace| {
                let event = message.event.ok_or_else(|| {
                    Problem::new(ErrorCode::EmptyBody, "the request holds no event").field("event")
                })?;
                let call = self.call(&metadata, peer, message.historical, "", trace)?;
                let outcome = self.submit(std::slice::from_ref(&event), &call).await?;
                let first = outcome.verdicts().next();
                match first.and_then(|verdict| verdict.problem()) {
                    Some(problem) => Err(problem),
                    None => Ok(SubmitResponse {
                        verdict: first.map(verdict),
                    }),
                }
            })
            .await;
        response(done)
    }

    async fn submit_batch(
        &self,
        request: Request<SubmitBatchRequest>,
    ) -> Result<Response<SubmitBatchResponse>, Status> {
        let peer = ip(request.remote_addr());
        let (metadata, _, message) = request.into_parts();
        let submit =
            async |trace| Shared::submit_batch(self, &metadata, peer, message, trace).await;
        response(self.traced(SUBMIT_BATCH, &metadata, submit).await)
    }

    type SubmitStreamStream =
        Pin<Box<dyn Stream<Item = Result<SubmitStreamResponse, Status>> + Send>>;

    async fn submit_stream(
        &self,
        request: Request<Streaming<SubmitStreamRequest>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let peer = ip(request.remote_addr());
        let (metadata, _, incoming) = request.into_parts();
        // A stream that may not submit at all ends here rather than with each of its batches.
        self.call(&metadata, peer, false, "", None)
            .map_err(Status::from)?;
        let (shared, metadata) = (self.clone(), Arc::new(metadata));
        let at_once = self.config.stream_batches_max.max(1);
        let answers = incoming
            .take_until(self.shutdown.triggered_owned())
            .map(move |message| {
                let (shared, metadata) = (shared.clone(), metadata.clone());
                async move { shared.answer(&metadata, peer, message).await }
            })
            .buffered(at_once);
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Shared {
    /// Answers one batch of a stream.
    async fn answer(
        &self,
        metadata: &MetadataMap,
        peer: Option<IpAddr>,
        message: Result<SubmitStreamRequest, Status>,
    ) -> Result<SubmitStreamResponse, Status> {
        let message = message.map_err(|status| match status.code() {
            Code::OutOfRange => too_large(&status),
            _ => status,
        })?;
        let batch = message.batch.unwrap_or_default();
        let submit = async |trace| Shared::submit_batch(self, metadata, peer, batch, trace).await;
        let answer = SubmitStreamResponse {
            sequence: message.sequence,
            ..SubmitStreamResponse::default()
        };
        Ok(match self.traced(SUBMIT_STREAM, metadata, submit).await.0 {
            Ok(result) => SubmitStreamResponse {
                result: Some(result),
                ..answer
            },
            Err(problem) => SubmitStreamResponse {
                refusal: Some(refusal(problem)),
                ..answer
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1s", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn a_refusal_on_a_stream_says_when_to_come_back() {
        let problem = Problem::new(ErrorCode::RateLimited, "slow down")
            .retry_after(Duration::from_millis(250));
        assert_eq!(refusal(problem).retry_after_ms, 250);
        assert_eq!(
            refusal(Problem::new(ErrorCode::EmptyBody, "nothing")).retry_after_ms,
            0
        );
    }
}
