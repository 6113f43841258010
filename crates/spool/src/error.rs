//! What can go wrong, and who is told.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a spool cannot be opened, or drained any further for now.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Two writers would mix their records.
    #[error("the spool folder {} is in use by {holder}; give each process one of its own", dir.display())]
    Locked { dir: PathBuf, holder: String },
    /// The runtime is going down.
    #[error("the task that reads the spool was cut off")]
    Cut,
}

impl SpoolError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

/// Why records were not taken. Nothing of them was confirmed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    #[error("the spool is full: it holds at most {bytes_max} bytes")]
    Full { bytes_max: u64 },
    #[error("a record of {bytes} bytes is longer than a spool takes")]
    TooLong { bytes: usize },
    /// The disk refused a write or a sync.
    #[error("the spool cannot be written: {0}")]
    Disk(#[source] Arc<io::Error>),
    #[error("the spool is closed")]
    Closed,
}

/// A stretch of a segment that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    /// Where it begins in the file, and how long it is.
    pub offset: u64,
    pub bytes: u64,
    /// Confirmed records that are lost with it.
    pub lost: u64,
}

/// What an error of the spool was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Records were refused for want of room.
    Full,
    /// A write, or a sync, failed.
    Write,
    /// A segment could not be opened, removed or put aside.
    File,
    /// Confirmed records cannot be read any more.
    Damaged,
    /// Bytes behind the last confirmed record, as a crash leaves them.
    TornTail,
    /// The position could not be written or read, so that records may come again.
    Position,
}

impl ErrorKind {
    pub const ALL: [Self; 6] = [
        Self::Full,
        Self::Write,
        Self::File,
        Self::Damaged,
        Self::TornTail,
        Self::Position,
    ];

    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Write => "write",
            Self::File => "file",
            Self::Damaged => "damaged",
            Self::TornTail => "torn_tail",
            Self::Position => "position",
        }
    }
}

/// Counts what happens. It must not wait.
pub trait Observer: Send + Sync + 'static {
    fn error(&self, kind: ErrorKind);
    /// So many confirmed records cannot be read any more.
    fn lost(&self, records: u64);
}
