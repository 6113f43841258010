//! The gRPC door: messages in, the service's answers out, refusals as statuses.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use streamgauge_lifecycle::{Deadline, GrpcConnections, GrpcOps, Health};
use streamgauge_proto::{
    FILE_DESCRIPTOR_SET, Problem,
    v1::{
        self,
        analytics_server::{Analytics, AnalyticsServer, SERVICE_NAME},
    },
};
use streamgauge_telemetry::{Metrics, TraceContext, context::TRACEPARENT, rpc::RpcMetrics};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    app::Shared,
    config::GrpcConfig,
    error::{Error, late},
    service::Service,
};

const METHODS: [&str; 8] = [
    "streamgauge.v1.Analytics/Series",
    "streamgauge.v1.Analytics/Top",
    "streamgauge.v1.Analytics/DistinctUsers",
    "streamgauge.v1.Analytics/UserActivity",
    "streamgauge.v1.Analytics/Ledger",
    "streamgauge.v1.Analytics/ListSeries",
    "streamgauge.v1.Analytics/Watch",
    "streamgauge.v1.Analytics/Alerts",
];

/// What the door is made of.
pub struct Door {
    /// What all doors share.
    pub shared: Shared,
    /// Settings.
    pub config: GrpcConfig,
    /// What the standard health service says.
    pub health: Health,
    /// Where the metrics of calls go.
    pub metrics: Metrics,
    /// When it closes, and how long calls under way may take from then on.
    pub deadline: Deadline,
}

impl Door {
    /// Serves until the shutdown, then lets calls under way finish.
    ///
    /// # Errors
    /// When the server fails, or when calls were left.
    pub async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        let shutdown = self.deadline.shutdown();
        let ops = GrpcOps::start(
            self.health.clone(),
            &[SERVICE_NAME],
            &[FILE_DESCRIPTOR_SET],
            shutdown.clone(),
        )
        .await?;
        let calls = self.config.concurrency_per_connection_max.max(1);
        let limit = Duration::from_millis(self.config.request_timeout_ms);
        let shared = self.shared;
        let analytics = AnalyticsServer::new(Calls { shared, limit })
            .max_decoding_message_size(self.config.request_kib_max.saturating_mul(1024));
        let connections = GrpcConnections::new(
            self.config.max_connections,
            self.config.keepalive_interval_ms,
            self.config.keepalive_timeout_ms,
        );
        let incoming = connections.incoming(listener, shutdown.clone());
        let rpc = RpcMetrics::register(&self.metrics, &METHODS);
        let server = connections
            .server()
            .concurrency_limit_per_connection(calls)
            .max_concurrent_streams(u32::try_from(calls).unwrap_or(u32::MAX))
            .layer(rpc.layer())
            .add_routes(ops.routes())
            .add_service(analytics);
        let server = server.serve_with_incoming_shutdown(incoming, shutdown.triggered_owned());
        ops.serve(server, &self.deadline, || rpc.under_way())
            .await?
            .map_err(|source| Error::Server {
                server: "gRPC",
                source: source.into(),
            })
    }
}

struct Calls {
    shared: Shared,
    /// Time for one answer.
    limit: Duration,
}

impl Calls {
    /// Answers within a span, measured, in time.
    async fn answer<Q, A, F>(
        &self,
        name: &'static str,
        request: Request<Q>,
        work: impl FnOnce(Arc<Service>, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, Problem>>,
    {
        let start = Instant::now();
        let caller = request.metadata().get(TRACEPARENT);
        let caller = caller.and_then(|header| TraceContext::parse(header.as_bytes()));
        let mut span = self.shared.tracer.start_server(name, caller);
        span.set("rpc.system", "grpc");
        let trace = span.context().filter(|trace| trace.sampled);
        let answer = work(Arc::clone(&self.shared.service), request.into_inner());
        let answer = async {
            let answer = tokio::time::timeout(self.limit, answer).await;
            answer.map_err(|_| late(self.limit))?
        };
        let result = span.scope(answer).await;
        self.shared
            .metrics
            .core
            .stage("query")
            .observe(start.elapsed().as_secs_f64(), trace);
        match result {
            Ok(answer) => {
                let mut response = Response::new(answer);
                if let Some(trace) = trace {
                    response.extensions_mut().insert(trace);
                }
                Ok(response)
            }
            Err(mut problem) => {
                problem.trace_id = trace.map(|trace| trace.trace_id_hex().into());
                if problem.code.http_status() >= 500 {
                    span.error(problem.code.as_str());
                }
                Err(problem.into())
            }
        }
    }
}

type Watched = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Analytics for Calls {
    async fn series(
        &self,
        request: Request<v1::SeriesRequest>,
    ) -> Result<Response<v1::SeriesResponse>, Status> {
        self.answer(METHODS[0], request, |service, request| async move {
            service.series(request).await
        })
        .await
    }

    async fn top(
        &self,
        request: Request<v1::TopRequest>,
    ) -> Result<Response<v1::TopResponse>, Status> {
        self.answer(METHODS[1], request, |service, request| async move {
            service.top(request).await
        })
        .await
    }

    async fn distinct_users(
        &self,
        request: Request<v1::DistinctUsersRequest>,
    ) -> Result<Response<v1::DistinctUsersResponse>, Status> {
        let work =
            |service: Arc<Service>, request| async move { service.distinct_users(request).await };
        self.answer(METHODS[2], request, work).await
    }

    async fn user_activity(
        &self,
        request: Request<v1::UserActivityRequest>,
    ) -> Result<Response<v1::UserActivityResponse>, Status> {
        let work =
            |service: Arc<Service>, request| async move { service.user_activity(request).await };
        self.answer(METHODS[3], request, work).await
    }

    async fn ledger(
        &self,
        request: Request<v1::LedgerRequest>,
    ) -> Result<Response<v1::LedgerResponse>, Status> {
        self.answer(METHODS[4], request, |service, request| async move {
            service.judged_ledger(request).await
        })
        .await
    }

    async fn list_series(
        &self,
        request: Request<v1::ListSeriesRequest>,
    ) -> Result<Response<v1::ListSeriesResponse>, Status> {
        self.answer(METHODS[5], request, |service, _| async move {
            service.list_series()
        })
        .await
    }

    async fn alerts(
        &self,
        request: Request<v1::AlertsRequest>,
    ) -> Result<Response<v1::AlertsResponse>, Status> {
        self.answer(METHODS[7], request, |service, request| async move {
            service.alerts(request).await
        })
        .await
    }

    type WatchStream = Watched;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let receiver = self
            .shared
            .live
            .watch(&self.shared.service, request.get_ref())?;
        Ok(Response::new(ReceiverStream::new(receiver).map(Ok).boxed()))
    }
}
