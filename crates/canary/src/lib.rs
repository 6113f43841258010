//! The canary: a probe that does what a client does, all the time.
//!
//! At each door, HTTP and gRPC, it submits one event per interval and asks for it until a query shows it. What comes back
//! went through the producer, both topics, the consumer and analytics; what does not come back in time is lost, whatever
//! the reason. Its events are kept apart from users' figures (`streamgauge_chain::canary`).

mod config;
mod doors;
mod metrics;
mod probe;
mod watch;

pub use config::CanaryConfig;
pub use doors::Door;
pub use metrics::CanaryMetrics;
pub use watch::{Canary, Query};

/// Why there can be no canary.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// Not `host:port`.
    #[error("canary: `{0}` is no address: write HOST:PORT")]
    Address(String),
    /// No header can hold it.
    #[error("canary.token: it holds characters that no header can")]
    Token,
    /// The HTTP client cannot be set up.
    #[error("canary: no HTTP client")]
    Client(#[source] reqwest::Error),
    /// A setting that cannot be used.
    #[error("canary.{0}")]
    Setting(String),
}
