//! The same look and the same control over gRPC, with reflection and the standard health service.

use std::time::Duration;

use streamgauge_lifecycle::{Health, SharedClock, Shutdown};
use streamgauge_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{
        PauseRequest, ResumeRequest, StatusRequest, StatusResponse,
        consumer_control_server::{ConsumerControl, ConsumerControlServer},
    },
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, server::NamedService, transport::Server};

use crate::{config::GrpcConfig, error::Error, metrics::ConsumerMetrics, status::Board};

type ControlServer = ConsumerControlServer<Control>;

/// The methods that are measured.
pub const METHODS: [&str; 3] = [
    "streamgauge.v1.ConsumerControl/Status",
    "streamgauge.v1.ConsumerControl/Pause",
    "streamgauge.v1.ConsumerControl/Resume",
];

/// The control service.
#[derive(Clone)]
pub struct Control {
    /// The owners.
    pub board: Board,
    /// Time.
    pub clock: SharedClock,
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

/// Serves until the shutdown, then lets calls under way finish.
///
/// # Errors
/// When the server cannot be set up or fails.
pub async fn serve(
    listener: TcpListener,
    control: Control,
    config: &GrpcConfig,
    metrics: &ConsumerMetrics,
    health: Health,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let watching = tokio::spawn(report_health(reporter, health, shutdown.clone()));
    let control = ConsumerControlServer::new(control)
        .max_decoding_message_size(config.request_kib_max.saturating_mul(1024));
    let stopped = shutdown.clone();
    let server = Server::builder()
        .tcp_nodelay(true)
        .concurrency_limit_per_connection(config.connection_calls_max as usize)
        .max_concurrent_streams(config.connection_calls_max)
        .layer(metrics.rpc().layer())
        .add_service(control)
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(Error::Reflection)?)
        .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.triggered_owned());
    let close = Duration::from_millis(config.close_ms_max);
    let late = async {
        stopped.triggered().await;
        tokio::time::sleep(close).await;
    };
    let served = tokio::select! {
        served = server => served.map_err(Error::Grpc),
        // A client that keeps a call open must not keep the service.
        () = late => Ok(()),
    };
    watching.abort();
    served
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Keeps the standard health service at what readiness says, and at the end closes its watches.
async fn report_health(
    mut reporter: tonic_health::server::HealthReporter,
    health: Health,
    shutdown: Shutdown,
) {
    let mut ready = health.subscribe();
    loop {
        let serving = *ready.borrow_and_update();
        let status = if serving {
            reporter
                .set_serving::<ConsumerControlServer<Control>>()
                .await;
            tonic_health::ServingStatus::Serving
        } else {
            reporter
                .set_not_serving::<ConsumerControlServer<Control>>()
                .await;
            tonic_health::ServingStatus::NotServing
        };
        reporter.set_service_status("", status).await;
        tokio::select! {
            changed = ready.changed() => if changed.is_err() { break },
            () = shutdown.triggered() => break,
        }
    }
    for service in ["", <ControlServer as NamedService>::NAME] {
        reporter
            .set_service_status(service, tonic_health::ServingStatus::NotServing)
            .await;
        reporter.clear_service_status(service).await;
    }
}
