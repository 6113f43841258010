//! The embedded log: a broker on one node that speaks the Kafka protocol.
//!
//! It serves what the clients of a single node need, from one folder on disk:
//! topics, idempotent produce, fetch with long poll, lookups by time, classic
//! consumer groups and committed offsets. It has no replication, transactions,
//! access control, newer group protocols or share groups, changes no topic once
//! it is made, and listens on loopback unless told otherwise. What is served is
//! what ApiVersions announces; `docs/embedded-log.md` says which tools that is
//! enough for, and how the rest is refused.
//!
//! **Durability.** A produce request is acknowledged once its batch is written
//! to the log file. A process that is killed loses nothing acknowledged, since
//! the page cache outlives it. What a power cut may take is set by
//! [`Fsync`]: nothing with `always`, up to `fsync_interval_ms` with `interval`.
//! After either, the log holds a prefix of what was written: whole batches,
//! each matching its checksum.
//!
//! The broker runs on threads of its own, so that a stalled disk or a busy
//! embedding process do not stop each other. It must never panic on what a
//! client sends, and never reserve memory on a client's word alone.

mod api;
mod broker;
mod config;
mod connection;
mod dispatch;
mod durable;
mod error;
mod faults;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod group;
mod log;
mod node;
mod producer_ids;
mod server;
mod shape;
mod stats;
mod topics;

pub use broker::{Broker, Left};
pub use config::{BrokerConfig, Fsync};
pub use error::BrokerError;
pub use faults::Faults;
pub use stats::{BrokerStats, PartitionStats};
