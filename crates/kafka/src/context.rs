//! What every client does with librdkafka's logs, errors and statistics.

use rdkafka::{
    ClientContext, Statistics,
    config::RDKafkaLogLevel as Level,
    error::{KafkaError as Native, RDKafkaErrorCode},
};

use crate::{Stats, StatsSink};

/// The context of clients that have no callbacks of their own.
#[derive(Clone, Default)]
pub(crate) struct Context {
    pub(crate) stats: Option<StatsSink>,
}

impl ClientContext for Context {
    fn log(&self, level: Level, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(sink) = &self.stats {
            sink(&Stats::from(&statistics));
        }
    }

    fn error(&self, error: Native, reason: &str) {
        report(&error, reason);
    }
}

/// Reports an error of a client that is no answer to a call. The end of a partition is told like
/// one, at every catching up, and is none.
pub(crate) fn report(error: &Native, reason: &str) {
    if !matches!(
        error,
        Native::PartitionEOF(_) | Native::Global(RDKafkaErrorCode::PartitionEOF)
    ) {
        tracing::warn!(target: "kafka", %error, reason, "kafka client error");
    }
}

/// Forwards a log line of librdkafka. A lost connection is a warning there on each attempt; the
/// services report outages themselves, once.
pub(crate) fn log(level: Level, facility: &str, message: &str) {
    match level {
        Level::Emerg | Level::Alert | Level::Critical => {
            tracing::error!(target: "kafka", facility, message, "librdkafka");
        }
        Level::Error | Level::Warning => {
            tracing::warn!(target: "kafka", facility, message, "librdkafka");
        }
        Level::Notice | Level::Info | Level::Debug => {
            tracing::debug!(target: "kafka", facility, message, "librdkafka");
        }
    }
}
