//! The same look and the same control over gRPC, with reflection and the standard health service.

use std::time::Duration;

use streamgauge_lifecycle::{Deadline, GrpcConnections, GrpcOps, Health, SharedClock};
use streamgauge_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{
        PauseRequest, ResumeRequest, StatusRequest, StatusResponse,
        consumer_control_server::{ConsumerControl, ConsumerControlServer, SERVICE_NAME},
        dead_letters_server::{self, DeadLettersServer},
    },
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::{
    config::GrpcConfig, desk::Desk, error::Error, metrics::ConsumerMetrics, status::Board,
};

/// The methods that are measured.
pub const METHODS: [&str; 7] = [
    "streamgauge.v1.ConsumerControl/Status",
    "streamgauge.v1.ConsumerControl/Pause",
    "streamgauge.v1.ConsumerControl/Resume",
    "streamgauge.v1.DeadLetters/List",
    "streamgauge.v1.DeadLetters/Show",
    "streamgauge.v1.DeadLetters/Replay",
    "streamgauge.v1.DeadLetters/Drop",
];

/// The control service.
#[derive(Clone)]
pub struct Control {
    /// The owners.
    pub board: Board,
    /// Time.
    pub clock: SharedClock,
}

/// What is served.
pub struct Services {
    /// The owners.
    pub control: Control,
    /// Dead letters.
    pub desk: Desk,
}

impl Control {
    fn status(&self) -> Response<StatusResponse> {
        Response::new(self.board.status(self.clock.now_us()))
    }
}

#[tonic::async_trait]
impl ConsumerControl for Control {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(self.status())
    }

    async fn pause(
        &self,
        request: Request<PauseRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.board.set_paused(&request.get_ref().partitions, true)?;
        Ok(self.status())
    }

    async fn resume(
        &self,
        request: Request<ResumeRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.board
            .set_paused(&request.get_ref().partitions, false)?;
        Ok(self.status())
    }
}

/// Serves until the shutdown, then lets calls under way finish, as long as the deadline and `grpc.close_ms_max` leave
/// them.
///
/// # Errors
/// When the server cannot be set up or fails, or when calls were left.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    config: &GrpcConfig,
    metrics: &ConsumerMetrics,
    health: Health,
    deadline: Deadline,
) -> Result<(), Error> {
    let shutdown = deadline.shutdown().clone();
    let descriptors = [FILE_DESCRIPTOR_SET];
    let names = [SERVICE_NAME, dead_letters_server::SERVICE_NAME];
    let ops = GrpcOps::start(health, &names, &descriptors, shutdown.clone()).await?;
    let request_bytes_max = config.request_kib_max.saturating_mul(1024);
    let control =
        ConsumerControlServer::new(services.control).max_decoding_message_size(request_bytes_max);
    let desk = DeadLettersServer::new(services.desk).max_decoding_message_size(request_bytes_max);
    let connections = GrpcConnections::new(
        config.max_connections,
        config.keepalive_interval_ms,
        config.keepalive_timeout_ms,
    );
    let incoming = connections.incoming(listener, shutdown.clone());
    let server = connections
        .server()
        .concurrency_limit_per_connection(config.connection_calls_max as usize)
        .max_concurrent_streams(config.connection_calls_max)
        .layer(metrics.rpc().layer())
        .add_routes(ops.routes())
        .add_service(control)
        .add_service(desk)
        .serve_with_incoming_shutdown(incoming, shutdown.triggered_owned());
    // A client that keeps a call open must not keep the service.
    let deadline = deadline.within(Duration::from_millis(config.close_ms_max));
    ops.serve(server, &deadline, || metrics.rpc().under_way())
        .await?
        .map_err(Error::Grpc)
}
