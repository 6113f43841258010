//! What can end the service.

use streamgauge_kafka::KafkaError;
use streamgauge_lifecycle::{BindError, BoxError, ExpositionError, ReflectionError, Unfinished};
use streamgauge_spool::SpoolError;

/// Two settings that do not go together, or one out of its range.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {rule}")]
pub struct ConfigError {
    pub setting: &'static str,
    pub rule: String,
}

/// Why the producer could not go on. Kafka being away is none of these: that is waited for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Exposition(#[from] ExpositionError),
    /// A Kafka setting that the client refuses.
    #[error("the Kafka client could not be made")]
    Kafka(#[from] KafkaError),
    /// The spool's folder cannot be used.
    #[error("the spool could not be opened")]
    Spool(#[from] SpoolError),
    #[error("the gRPC server failed")]
    Grpc(#[source] tonic::transport::Error),
    /// The descriptors of the services, which are part of the program.
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
    /// A part of the service ended for a reason of its own.
    #[error("{task} failed: {source}")]
    Task {
        task: &'static str,
        #[source]
        source: BoxError,
    },
    /// Not everything under way could be finished in time.
    #[error("{0}")]
    Unfinished(#[from] Unfinished),
}
