//! Why the desk has no answer.

use streamgauge_kafka::KafkaError;
use streamgauge_proto::{ErrorCode, Problem};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The log does not answer.
    #[error("the log cannot be read: {0}")]
    Log(#[from] KafkaError),
    /// The call itself, or what else goes on, does not allow it.
    #[error(transparent)]
    Refused(#[from] Problem),
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Refused(problem) => problem,
            DeskError::Log(_) => Problem::new(ErrorCode::LogUnavailable, error.to_string()),
        }
    }
}
