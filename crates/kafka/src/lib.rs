//! Kafka clients that carry bytes and headers: writing with one completion per batch, reading as
//! a group member, reading a range, following partitions, and the little administration needed.
//!
//! This is the only crate that names rdkafka. It knows no message of the product, holds no
//! aggregate and makes no decision about a record's content.

mod acknowledged;
pub mod admin;
mod chunk;
mod config;
mod context;
mod error;
mod follower;
mod group;
mod mailbox;
mod murmur2;
#[cfg(feature = "mutations")]
pub mod mutation;
mod patience;
mod poller;
mod publisher;
mod reader;
mod stats;

pub use acknowledged::Span;
pub use chunk::{Chunk, ChunkBuilder, Headers, RecordRef};
pub use config::{
    Assignment, Compression, FetchConfig, GroupConfig, KafkaConfig, PublisherConfig,
    SecurityProtocol,
};
pub use error::{KafkaError, PublishError};
pub use follower::Follower;
pub use group::{GroupReader, Membership};
pub use mailbox::Polled;
pub use murmur2::murmur2_partition;
pub use publisher::{Batch, BatchOutcome, Delivery, Publisher, Pushed, Record};
pub use reader::{LogReader, Watermarks};
pub use stats::{BrokerStats, Stats, StatsSink};
