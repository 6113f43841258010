//! Why a rebuild ends without its result. What is served is as it was, in every case.

use streamgauge_analytics::{rebuild::RebuildError, store::StoreError};
use streamgauge_chain::DeltaError;
use streamgauge_consumer::core::replay::ReplayError;
use streamgauge_kafka::KafkaError;

use crate::error::CliError;

/// Why it ends.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The user asked for it.
    #[error("stopped; what is served is as it was")]
    Stopped,
    /// Part of the history is in neither topic any more.
    #[error("{}", truncated(.0))]
    Truncated(Vec<(i32, i64)>),
    /// The store knows a partition that the topics do not have.
    #[error("the store has a partition {0} that the topics have not: they are not of one system")]
    Partitions(i32),
    /// The source has lost its end.
    #[error(
        "the chain of partition {partition} stands at {head}, but its source ends at {high}: it was recreated, or has \
         lost its end, and cannot be counted again"
    )]
    SourceTooShort {
        /// The partition.
        partition: i32,
        /// The chain's head.
        head: i64,
        /// The source's end.
        high: i64,
    },
    /// The store and `metrics-data` do not say the same.
    #[error(
        "the batches of partition {partition} on metrics-data reach {found}, the store says {expected}: part of them is \
         gone, or they are not of one system"
    )]
    OtherChain {
        /// The partition.
        partition: i32,
        /// Where the log's chain stands.
        found: i64,
        /// Where the store's chain stands.
        expected: i64,
    },
    /// A batch that was recomputed is not one: a defect.
    #[error("a recomputed batch cannot be read")]
    Batch(#[source] DeltaError),
    /// Events could not be judged.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The log does not answer.
    #[error(transparent)]
    Log(#[from] KafkaError),
    /// The store failed, or another rebuild is under way.
    #[error(transparent)]
    Store(#[from] RebuildError),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] CliError),
}

fn truncated(lost: &[(i32, i64)]) -> String {
    let parts: Vec<String> = lost
        .iter()
        .map(|(partition, low)| format!("partition {partition}: {low} offsets"))
        .collect();
    format!(
        "retention has removed both the first events and the first batches that counted them ({}): the rebuilt figures \
         cannot contain them. --from-truncated rebuilds from what is left and shows what would be lost",
        parts.join(", ")
    )
}

impl Failure {
    /// As an error of the command.
    pub fn told(self, brokers: &str) -> CliError {
        match self {
            Self::Log(KafkaError::UnknownTopic(topic)) => {
                CliError::usage(format!("topic {topic} does not exist at {brokers}"))
            }
            Self::Log(error @ KafkaError::PartitionMismatch { .. }) => {
                CliError::usage(error.to_string())
            }
            Self::Log(error @ KafkaError::Config { .. }) => CliError::Settings(Box::new(error)),
            Self::Log(error) => CliError::unreachable("the log", brokers, error),
            Self::Store(RebuildError::Store(error)) => store_failed(error),
            Self::Output(error) => error,
            Self::Store(error) => CliError::Refused {
                service: "the store",
                message: error.to_string(),
            },
            other => CliError::usage(other.to_string()),
        }
    }
}

/// A store that does not answer, or cannot be used.
pub fn store_failed(error: StoreError) -> CliError {
    if error.is_retryable() {
        CliError::unreachable("the store", "store.url", error)
    } else {
        CliError::Settings(Box::new(error))
    }
}
