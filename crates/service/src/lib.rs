//! How each of the three services is put on its feet: where it listens, what it is handed from outside, and the program
//! around it, from the settings to the last span. What a service does is its own.

mod program;

use std::net::SocketAddr;

pub use program::{Settings, main_with};
use streamgauge_lifecycle::{
    BindError, Exposition, ExpositionConfig, ExpositionError, SharedClock, Shutdown,
};
use streamgauge_telemetry::{Metrics, Tracer};
use tokio::net::TcpListener;

/// Where a service listens.
#[derive(Debug)]
pub struct Listeners {
    /// HTTP: its interface, health, and metrics where these have no listener of their own.
    pub http: TcpListener,
    /// gRPC.
    pub grpc: TcpListener,
    /// Metrics, where they have a listener of their own.
    pub metrics: Option<Exposition>,
}

impl Listeners {
    /// Listens where the settings say.
    ///
    /// # Errors
    /// Names the setting whose address is not free, or what is wrong with those of the metrics.
    pub async fn bind<E>(
        http: SocketAddr,
        grpc: SocketAddr,
        metrics: &ExpositionConfig,
    ) -> Result<Self, E>
    where
        E: From<BindError> + From<ExpositionError>,
    {
        Ok(Self {
            http: streamgauge_lifecycle::bind("http.listen", http).await?,
            grpc: streamgauge_lifecycle::bind("grpc.listen", grpc).await?,
            metrics: metrics.bind("http.metrics").await?,
        })
    }
}

/// What a service is handed from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where its metrics go.
    pub metrics: Metrics,
    /// Where its spans go.
    pub tracer: Tracer,
    /// Time.
    pub clock: SharedClock,
    /// The signal that ends it.
    pub shutdown: Shutdown,
}
