//! How a process lives: clocks, shutdown, health, its tasks, and the HTTP server that stands in front of them. Services
//! are handed these parts and never reach for a global one, so a test can hold the clock and the shutdown in its hands.
//! Nothing here knows Kafka, stores or events.

mod clock;
mod health;
mod ops;
mod server;
mod shutdown;
mod tasks;

pub use clock::{Clock, ManualClock, SharedClock, SystemClock};
pub use health::{Condition, ConditionReport, Health, HealthReport};
pub use ops::{OPENMETRICS, matched_path, ops_router};
pub use server::{BindError, HttpServerConfig, bind, serve_http};
pub use shutdown::{Shutdown, signal};
pub use tasks::{BoxError, Outcome, Tasks};
