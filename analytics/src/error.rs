//! What ends the service, and what a query may be answered instead.

use std::time::Duration;

use streamgauge_kafka::KafkaError;
use streamgauge_lifecycle::{BindError, ExpositionError, ReflectionError, Unfinished};
use streamgauge_proto::{ErrorCode, Problem};

use crate::store::StoreError;

/// Why the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Where metrics are served.
    #[error(transparent)]
    Exposition(#[from] ExpositionError),
    /// A setting cannot be used.
    #[error("{0}")]
    Setting(String),
    /// A setting of the store cannot be used, or the store says what no retry mends.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting of Kafka cannot be used.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// A server failed.
    #[error("the {server} server failed: {source}")]
    Server {
        /// Which.
        server: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The gRPC reflection data cannot be read.
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
    /// Not everything under way could be finished in time.
    #[error("{0}")]
    Unfinished(#[from] Unfinished),
}

/// The answer to a query that the store failed.
pub fn store_problem(error: StoreError) -> Problem {
    match error {
        StoreError::Resting { retry_after, .. } => unavailable(retry_after),
        StoreError::TooManyRows(rows) => Problem::new(
            ErrorCode::InvalidValue,
            format!(
                "the query would read more than {rows} rows; take a shorter range or a longer step"
            ),
        )
        .field("range"),
        error => {
            tracing::warn!(%error, "a query could not read the store");
            unavailable(Duration::from_secs(1))
        }
    }
}

/// The store cannot answer now.
pub fn unavailable(retry_after: Duration) -> Problem {
    let message = "the store cannot be read now; recent ranges are still answered from memory";
    Problem::new(ErrorCode::StoreUnavailable, message).retry_after(retry_after)
}

/// More queries at once than the service takes on.
pub fn too_many_queries(most: usize) -> Problem {
    let message = format!("{most} queries are answered already; ask again shortly");
    Problem::new(ErrorCode::Overloaded, message).retry_after(Duration::from_secs(1))
}

/// The answer was not ready in time.
pub fn late(limit: Duration) -> Problem {
    let message = format!(
        "the answer was not ready within {} ms; take a shorter range",
        limit.as_millis()
    );
    Problem::new(ErrorCode::DeadlineExceeded, message)
}

/// A parameter that cannot be used.
pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::InvalidValue, message).field(field)
}
