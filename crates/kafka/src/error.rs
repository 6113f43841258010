//! What can go wrong with Kafka, sorted by what the caller does about it.

use rdkafka::{error::KafkaError as Native, types::RDKafkaErrorCode as Code};

/// A failure of a client, of a read or of an administrative call.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// A setting that librdkafka refuses, or a file that it names.
    #[error("the Kafka setting {setting} is not usable: {cause}")]
    Config {
        /// Name of the setting.
        setting: String,
        /// What is wrong with it.
        cause: String,
    },
    /// No answer from any broker in time.
    #[error("no Kafka broker answered at {brokers}: {source}")]
    Unreachable {
        /// The addresses tried.
        brokers: String,
        /// The client's own error.
        #[source]
        source: Native,
    },
    /// Topics of one pipeline must have equal numbers of partitions.
    #[error(
        "topic {topic} has {found} partitions where {expected} are configured; set the partition \
         count to {found}, or drain and recreate the topic"
    )]
    PartitionMismatch {
        /// The topic.
        topic: String,
        /// The partitions that it has.
        found: i32,
        /// The partitions that the configuration asks for.
        expected: i32,
    },
    /// The topic is not there.
    #[error("topic {0} does not exist")]
    UnknownTopic(String),
    /// A topic could not be created.
    #[error("topic {topic} could not be created: {code}")]
    CreateTopic {
        /// The topic.
        topic: String,
        /// Kafka's reason.
        code: Code,
    },
    /// A read made no progress in time.
    #[error("reading {topic}/{partition} made no progress for {waited_ms} ms at offset {offset}")]
    Stalled {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset waited for.
        offset: i64,
        /// How long.
        waited_ms: u64,
    },
    /// The client's thread has ended.
    #[error("the Kafka client is closed")]
    Closed,
    /// Anything else that the client says.
    #[error("Kafka: {0}")]
    Client(#[from] Native),
}

/// Why a record was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The local queue is full; nothing was sent.
    #[error("the local queue to Kafka is full")]
    QueueFull,
    /// No acknowledgement in time: the record may or may not be in the log.
    #[error("Kafka did not acknowledge in time")]
    TimedOut,
    /// Larger than the broker or the client takes.
    #[error("the record is larger than Kafka takes")]
    TooLarge,
    /// The broker is away or cannot write now.
    #[error("Kafka cannot take records now: {0}")]
    Unavailable(Code),
    /// The idempotent producer met an error it cannot go on from; the next batch uses a new one.
    #[error("the Kafka producer has to be replaced: {0}")]
    Fatal(String),
    /// Refused for another reason.
    #[error("Kafka refused the record: {0}")]
    Refused(String),
}

impl PublishError {
    /// Whether the same record may be taken later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::TooLarge | Self::Refused(_))
    }

    /// Whether this says that the log is away, as opposed to something about this one record.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Unavailable(_) | Self::Fatal(_))
    }

    /// Whether the record may be in the log although it was not acknowledged.
    pub fn is_uncertain(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Unavailable(_) | Self::Fatal(_))
    }
}

impl From<Native> for PublishError {
    fn from(error: Native) -> Self {
        let Some(code) = error.rdkafka_error_code() else {
            return Self::Refused(error.to_string());
        };
        match code {
            Code::QueueFull => Self::QueueFull,
            Code::MessageTimedOut | Code::RequestTimedOut | Code::TimedOutQueue => Self::TimedOut,
            Code::MessageSizeTooLarge | Code::InvalidMessageSize => Self::TooLarge,
            Code::Fatal
            | Code::Fenced
            | Code::OutOfOrderSequenceNumber
            | Code::InvalidProducerEpoch
            | Code::UnknownProducerId => Self::Fatal(error.to_string()),
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::BrokerNotAvailable
            | Code::NetworkException
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::KafkaStorageError
            | Code::PurgeQueue
            | Code::PurgeInflight
            // About the client, not about the record: it passes once the rights are granted.
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed => Self::Unavailable(code),
            _ => Self::Refused(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_the_caller_does() {
        let of = |code| PublishError::from(Native::MessageProduction(code));
        assert_eq!(of(Code::QueueFull), PublishError::QueueFull);
        assert!(of(Code::QueueFull).is_retryable() && !of(Code::QueueFull).is_outage());
        assert!(of(Code::MessageTimedOut).is_uncertain());
        assert!(of(Code::AllBrokersDown).is_outage());
        assert!(!of(Code::MessageSizeTooLarge).is_retryable());
        assert!(!of(Code::InvalidTimestamp).is_retryable());
    }
}
