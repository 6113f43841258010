//! The gRPC door: the same submissions, limits and verdicts as over HTTP, as messages.
//!
//! A unary call that is refused ends in a status; on a stream the refusal is an answer and the stream goes on. The
//! batches of a stream are taken on in order, a few at a time, so that a slow reader slows its own stream only.

mod control;
mod door;
mod ledger;
mod messages;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant as Stopwatch};

use futures::{Stream, StreamExt};
use streamgauge_lifecycle::{Deadline, GrpcConnections, GrpcOps, Health, Shutdown};
use streamgauge_proto::v1::producer_control_server::{
    ProducerControlServer, SERVICE_NAME as CONTROL_NAME,
};
use streamgauge_proto::v1::producer_ledger_server::{
    ProducerLedgerServer, SERVICE_NAME as LEDGER_NAME,
};
use streamgauge_proto::v1::submission_server::{
    SERVICE_NAME, Submission as SubmissionRpc, SubmissionServer,
};
use streamgauge_proto::v1::{
    SubmitBatchRequest, SubmitBatchResponse, SubmitRequest, SubmitResponse, SubmitStreamRequest,
    SubmitStreamResponse, SubmittedEvent,
};
use streamgauge_proto::{ErrorCode, FILE_DESCRIPTOR_SET, Problem};
use streamgauge_telemetry::context::TRACEPARENT;
use streamgauge_telemetry::{Span, TraceContext};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tower::util::MapResponseLayer;

use self::door::{Caller, Door};
use self::messages::{
    batch_response, refusal, refusal_with, tell_allowances, timeout, unread, unread_in_answer,
    verdict,
};
use crate::admission::{Admission, Room};
use crate::auth::Client;
use crate::config::{GrpcConfig, Limits};
use crate::error::Error;
use crate::intake::{Intake, Outcome, Submission, idempotency_key};

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

/// Serves until the shutdown, then lets calls under way finish, as long as the deadline leaves them.
pub async fn serve(
    listener: TcpListener,
    shared: Shared,
    health: Health,
    deadline: Deadline,
) -> Result<(), Error> {
    let (shutdown, config) = (shared.shutdown.clone(), shared.config.clone());
    let descriptors = [FILE_DESCRIPTOR_SET];
    let services = [SERVICE_NAME, LEDGER_NAME, CONTROL_NAME];
    let ops = GrpcOps::start(health, &services, &descriptors, shutdown.clone()).await?;
    let ledger = ledger::Calls {
        intake: shared.intake.clone(),
    };
    let connections = GrpcConnections::new(
        config.max_connections,
        config.keepalive_interval_ms,
        config.keepalive_timeout_ms,
    );
    let incoming = connections.incoming(listener, shutdown.clone());
    let door = Door {
        intake: shared.intake.clone(),
        limits: shared.limits.clone(),
    };
    let rpc = shared.intake.metrics.rpc().clone();
    let server = connections
        .server()
        .concurrency_limit_per_connection(config.connection_calls_max as usize)
        .max_concurrent_streams(config.connection_calls_max)
        .layer(rpc.layer())
        .layer(MapResponseLayer::new(unread_in_answer::<tonic::body::Body>))
        .layer(door)
        .add_routes(ops.routes())
        .add_service(ProducerLedgerServer::new(ledger))
        .add_service(ProducerControlServer::new(shared.clone()))
        .add_service(
            SubmissionServer::new(shared).max_decoding_message_size(config.message_bytes_max),
        )
        .serve_with_incoming_shutdown(incoming, shutdown.triggered_owned());
    ops.serve(server, &deadline, || rpc.under_way())
        .await?
        .map_err(Error::Grpc)
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
        caller: &Caller,
        historical: bool,
        key: &str,
        trace: Option<TraceContext>,
    ) -> Result<Call, Problem> {
        Ok(Call {
            submission: Submission {
                client: caller.client.clone(),
                historical,
                idempotency_key: idempotency_key(key.as_bytes())?,
                trace,
            },
            timeout: timeout(metadata, self.limits.request_timeout()),
        })
    }

    /// Submits the events of a message, whose room grows by what is made of it.
    async fn submit(
        &self,
        events: &[SubmittedEvent],
        call: &Call,
        room: &Room,
    ) -> Result<Outcome, Problem> {
        room.grow(size_of_val(events))?;
        let batch = self.intake.read_messages(events, &call.submission)?;
        room.grow(batch.memory())?;
        self.intake
            .submit(batch, &call.submission, Instant::now() + call.timeout)
            .await
    }

    async fn submit_batch(
        &self,
        metadata: &MetadataMap,
        caller: &Caller,
        room: &Room,
        request: SubmitBatchRequest,
        trace: Option<TraceContext>,
    ) -> Result<SubmitBatchResponse, Problem> {
        let call = self.call(
            metadata,
            caller,
            request.historical,
            &request.idempotency_key,
            trace,
        )?;
        // Even when all are to be sent again: each may have been written, and only its verdict says under which id.
        let outcome = self.submit(&request.events, &call, room).await?;
        Ok(batch_response(&outcome))
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

fn response<T>(
    admission: &Admission,
    client: &Client,
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
            tell_allowances(response.metadata_mut(), admission.fields(client, None));
            if let Some(trace) = trace {
                response.extensions_mut().insert(trace);
            }
            Ok(response)
        }
        Err(mut problem) => {
            problem.trace_id = trace.map(|trace| trace.trace_id_hex().into());
            let fields = admission.fields(client, problem.retry_after_seconds());
            let mut status = refusal_with(problem, fields);
            sign(status.metadata_mut());
            Err(status)
        }
    }
}

#[tonic::async_trait]
impl SubmissionRpc for Shared {
    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller::of(&extensions)?;
        let room = caller.take_message();
        let done = self
            .traced(SUBMIT, &metadata, async |trace| {
                let event = message.event.ok_or_else(|| {
                    Problem::new(ErrorCode::EmptyBody, "the request holds no event").field("event")
                })?;
                let call = self.call(&metadata, &caller, message.historical, "", trace)?;
                let events = std::slice::from_ref(&event);
                let outcome = Shared::submit(self, events, &call, &room).await?;
                let first = outcome.verdicts().next();
                match first.and_then(|verdict| verdict.problem()) {
                    Some(problem) => Err(problem),
                    None => Ok(SubmitResponse {
                        verdict: first.map(verdict),
                    }),
                }
            })
            .await;
        response(&self.intake.admission, &caller.client, done)
    }

    async fn submit_batch(
        &self,
        request: Request<SubmitBatchRequest>,
    ) -> Result<Response<SubmitBatchResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let caller = Caller::of(&extensions)?;
        let room = caller.take_message();
        let submit = async |trace| {
            Shared::submit_batch(self, &metadata, &caller, &room, message, trace).await
        };
        let done = self.traced(SUBMIT_BATCH, &metadata, submit).await;
        response(&self.intake.admission, &caller.client, done)
    }

    type SubmitStreamStream =
        Pin<Box<dyn Stream<Item = Result<SubmitStreamResponse, Status>> + Send>>;

    async fn submit_stream(
        &self,
        request: Request<Streaming<SubmitStreamRequest>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let (metadata, extensions, incoming) = request.into_parts();
        let caller = Caller::of(&extensions)?;
        let (shared, metadata) = (self.clone(), Arc::new(metadata));
        let at_once = self.config.stream_batches_max.max(1);
        let answers = incoming
            .take_until(self.shutdown.triggered_owned())
            .map(move |message| {
                let (shared, metadata, caller) = (shared.clone(), metadata.clone(), caller.clone());
                // Here, where messages come in order, so that each gets its own.
                let room = caller.take_message();
                async move { shared.answer(&metadata, &caller, &room, message).await }
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
        caller: &Caller,
        room: &Room,
        message: Result<SubmitStreamRequest, Status>,
    ) -> Result<SubmitStreamResponse, Status> {
        let message = message.map_err(|status| unread(&status).map_or(status, Status::from))?;
        let batch = message.batch.unwrap_or_default();
        let submit =
            async |trace| Shared::submit_batch(self, metadata, caller, room, batch, trace).await;
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
