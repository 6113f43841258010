//! What can go wrong in a command, and the exit code that says so to a script.
//!
//! Nothing here prints; `lib.rs` prints an error once, with its causes, where a person reads it.

use std::{error::Error as StdError, fmt::Write as _, io, path::PathBuf, process::ExitCode};

use streamgauge_lifecycle::{EXIT_UNFINISHED, Unfinished};

/// The exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, and the answer is yes.
    Ok = 0,
    /// Done, and the answer is no: unhealthy, unbalanced, some events rejected.
    No = 1,
    /// The command line, a file or a setting is wrong.
    Usage = 2,
    /// A service cannot be reached or does not answer.
    Unreachable = 3,
    /// Cut off: a part is done; the output says which.
    Partial = EXIT_UNFINISHED as isize,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A cause of any type.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// Why a command ended without its result.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: `open`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Settings that cannot be read or do not fit.
    #[error("the settings cannot be used")]
    Settings(#[source] Cause),
    /// A service does not answer.
    #[error("cannot reach {service} at {address}")]
    Unreachable {
        /// Which one.
        service: &'static str,
        /// Where it was looked for.
        address: String,
        /// Why not.
        source: Cause,
    },
    /// A service answered that it will not do this.
    #[error("{service} refused: {message}")]
    Refused {
        /// Which one.
        service: &'static str,
        /// Its sentence.
        message: String,
    },
    /// A service answered with something that is not of its protocol.
    #[error("{service} at {address} gave an answer that cannot be read: {message}")]
    Unreadable {
        /// Which one.
        service: &'static str,
        /// Where.
        address: String,
        /// What is wrong with the answer.
        message: String,
    },
    /// The system did not come up, or did not go down in order.
    #[error("{0}")]
    System(String),
    /// Part of the system ended with an error of its own.
    #[error("{part} failed")]
    Part {
        /// Which part.
        part: &'static str,
        /// Its error.
        source: Cause,
    },
    /// It was told to end, and its time was over before everything was finished.
    #[error(transparent)]
    Unfinished(Unfinished),
    /// Nobody reads the output, or it cannot be written.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl CliError {
    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// A file that cannot be used.
    pub fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.into(),
            source,
        }
    }

    /// A service that does not answer.
    pub fn unreachable(
        service: &'static str,
        address: impl Into<String>,
        source: impl Into<Cause>,
    ) -> Self {
        Self::Unreachable {
            service,
            address: address.into(),
            source: source.into(),
        }
    }

    /// The exit code for this error.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::File { .. } | Self::Settings(_) | Self::Refused { .. } => {
                Exit::Usage
            }
            Self::Unreachable { .. }
            | Self::Unreadable { .. }
            | Self::System(_)
            | Self::Part { .. } => Exit::Unreachable,
            Self::Unfinished(_) | Self::Output(_) => Exit::Partial,
        }
    }

    /// Whether the reader of the output went away, as `| head` does; no reason to complain.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// The causes of an error, each only once.
pub fn causes(error: &dyn StdError) -> Vec<String> {
    let mut causes = Vec::new();
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let line = cause.to_string();
        if !last.contains(&line) {
            causes.push(line.clone());
            last = line;
        }
        source = cause.source();
    }
    causes
}

/// An error and its causes, one per line.
pub fn describe(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  because {cause}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once_each() {
        let io = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = CliError::file("open", "x.log", io);
        assert_eq!(
            describe(&error),
            "cannot open x.log\n  because no such file"
        );
        assert_eq!(error.exit(), Exit::Usage);
    }

    #[test]
    fn exit_codes_tell_wrong_use_from_a_silent_service() {
        let silent = CliError::unreachable("analytics", "h:1", io::Error::other("refused"));
        assert_eq!(silent.exit(), Exit::Unreachable);
        assert_eq!(CliError::usage("no").exit(), Exit::Usage);
        let pipe = CliError::Output(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(pipe.is_broken_pipe());
    }
}
