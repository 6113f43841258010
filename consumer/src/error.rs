//! What can end the service. Kafka being away is none of these: that is waited for.

use streamgauge_kafka::KafkaError;
use streamgauge_lifecycle::{BindError, BoxError, ExpositionError, ReflectionError, Unfinished};

use crate::core::series::SeriesError;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configured series.
    #[error(transparent)]
    Series(#[from] SeriesError),
    /// Two settings that do not go together, or one out of its range.
    #[error("{setting}: {rule}")]
    Rule {
        /// The setting.
        setting: &'static str,
        /// What it must keep to.
        rule: String,
    },
}

/// Why the consumer could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address to listen on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Where metrics are served.
    #[error(transparent)]
    Exposition(#[from] ExpositionError),
    /// The topics do not fit each other, or a Kafka setting is refused.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The gRPC server.
    #[error("the gRPC server failed")]
    Grpc(#[source] tonic::transport::Error),
    /// The descriptors of the services, which are part of the program.
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
    /// The thread that reads for the group, which ends by itself only for a defect.
    #[error("the thread that reads from Kafka has ended; its panic is in the log")]
    PollEnded,
    /// A member outside its group that could not be given up for a new one either.
    #[error(
        "outside the group for {absence_ms} ms (`owner.absence_ms_max`) though Kafka answers, and its client does not end; start the consumer again"
    )]
    Absent {
        /// The bound, in milliseconds.
        absence_ms: u64,
    },
    /// A part of the service ended for a reason of its own.
    #[error("{task} failed: {source}")]
    Task {
        /// The part.
        task: &'static str,
        /// Its reason.
        #[source]
        source: BoxError,
    },
    /// Not everything under way could be finished in time.
    #[error("{0}")]
    Unfinished(#[from] Unfinished),
}
