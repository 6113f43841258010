//! What can go wrong with a step.

use std::io;

use thiserror::Error;

/// Why a step failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// A file or a program of the machine.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A request that must be answered.
    #[error("{what}: {source}")]
    Http {
        /// What was asked.
        what: String,
        /// Why there was no answer.
        source: reqwest::Error,
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
}

/// What a step has to say when it went well, or why it did not.
pub type Outcome<T = String> = Result<T, Failure>;
