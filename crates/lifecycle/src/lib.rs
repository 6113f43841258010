//! How a process lives: clocks, shutdown, health, its tasks, and what stands in front of them: the HTTP server, the
//! listener for metrics and the common parts of gRPC servers. Services are handed these parts and never reach for a
//! global one, so a test can hold the clock and the shutdown in its hands.
//! Nothing here knows Kafka, stores or events.

mod clock;
mod connection;
mod deadline;
mod door;
mod exposition;
mod grpc;
mod health;
mod ops;
mod program;
mod server;
mod shutdown;
mod tasks;
mod tls;

pub use clock::{Clock, ManualClock, SharedClock, SystemClock};
pub use connection::Connection;
pub use deadline::{Deadline, Stage, Unfinished};
pub use door::HttpDoor;
pub use exposition::{Exposition, ExpositionConfig, ExpositionError};
pub use grpc::{GrpcConnections, GrpcOps, ReflectionError};
pub use health::{Condition, ConditionReport, Health, HealthReport};
pub use ops::{Encoder, OPENMETRICS, matched_path, ops_router};
pub use program::{
    EXIT_FAILED, EXIT_UNFINISHED, EXIT_WRONG_SETTINGS, error_chain, exit_code, fail, write_line,
};
pub use server::{BindError, HttpServerConfig, bind, reachable, serve_http};
pub use shutdown::{Shutdown, signal};
pub use tasks::{BoxError, Outcome, Tasks};
pub use tls::{TlsConfig, TlsError};
