//! The stream processor: condenses runs of source events into chained delta batches, exactly once.
//!
//! [`core`] decides and is pure; what surrounds it reads, writes and serves. One owner per assigned partition (its own
//! state, a bounded mailbox) does the work; owners share nothing but the clients of the log. This crate never talks
//! to a store: what it has counted is on `metrics-data`, and nowhere else.
//!
//! The way of an event: `group` follows the membership and keeps an `owner` per partition; the owner hands records to
//! [`core::partition`], which decodes, judges, deduplicates and aggregates them, and says when to write a batch, when
//! it counts, and what to do when that is in doubt. What cannot be counted goes to `dead_letter`.

mod app;
pub mod config;
pub mod core;
pub mod dead_letter;
pub mod desk;
mod error;
mod group;
mod grpc;
mod http;
mod metrics;
mod monitor;
#[cfg(feature = "mutations")]
pub mod mutation;
mod owner;
pub mod provenance;
mod status;
mod trace;

pub use app::{SERVICE, bind, run};
pub use config::{Config, ENV_PREFIX};
pub use error::{ConfigError, Error};
pub use streamgauge_service::{Deps, Listeners};
