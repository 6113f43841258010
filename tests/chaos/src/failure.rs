//! What can go wrong with a run itself, as opposed to what a run finds out.

use std::io;

use streamgauge_kafka::KafkaError;
use thiserror::Error;

/// A run that could not be carried out, or a wait that ended without what was waited for.
#[derive(Debug, Error)]
pub enum Failure {
    /// A file, a folder or a program of the machine.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A request that must succeed.
    #[error("{what}: {source}")]
    Http {
        /// What was asked.
        what: String,
        /// Why there was no answer.
        source: reqwest::Error,
    },
    /// The log, where the fault does not take it away.
    #[error("{what}: {source}")]
    Kafka {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Box<KafkaError>,
    },
    /// A program that did not do its work.
    #[error("{command} ended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// A condition that did not come true in time, or an answer that makes no sense.
    #[error("{0}")]
    Unmet(String),
}

impl Failure {
    /// Names what was tried with a file or a program.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Names what was asked.
    pub fn http(what: impl Into<String>) -> impl FnOnce(reqwest::Error) -> Self {
        let what = what.into();
        move |source| Self::Http { what, source }
    }

    /// Names what was tried with the log.
    pub fn kafka(what: impl Into<String>) -> impl FnOnce(KafkaError) -> Self {
        let what = what.into();
        move |source| Self::Kafka {
            what,
            source: Box::new(source),
        }
    }
}
