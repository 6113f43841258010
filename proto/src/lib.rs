//! The contract between the parts: messages, services and error codes.
//!
//! Everything that crosses a process boundary is defined here, and nothing else is. This crate
//! knows neither Kafka clients nor HTTP servers, holds no state and performs no IO.

pub mod error;

/// Messages and services of package `streamgauge.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("streamgauge.v1");
}

/// The encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/streamgauge.bin"));

pub use error::{ErrorCode, Problem};
