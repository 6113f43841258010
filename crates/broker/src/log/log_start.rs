//! Where a partition's log begins, as kept beside it: eight bytes and their
//! checksum. It is written before any record goes, so that what was deleted
//! stays deleted.

use std::io;
use std::path::{Path, PathBuf};

use tracing::error;

use super::segment::Segment;
use crate::durable;

/// The file as found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    /// Nothing was ever deleted.
    Absent,
    At(i64),
    /// There is a file, with this content.
    Unreadable(Vec<u8>),
}

pub fn path(dir: &Path) -> PathBuf {
    dir.join("log-start")
}

/// Makes a moved log start durable.
pub fn save(dir: &Path, log_start: i64) -> io::Result<()> {
    let offset = log_start.to_be_bytes();
    let crc = crc32c::crc32c(&offset).to_be_bytes();
    durable::write_atomic(&path(dir), &[&offset[..], &crc].concat())
}

fn load(dir: &Path) -> io::Result<Stored> {
    let Some(bytes) = durable::read_if_present(&path(dir))? else {
        return Ok(Stored::Absent);
    };
    Ok(match bytes.split_first_chunk::<8>() {
        Some((offset, crc)) if crc == crc32c::crc32c(offset).to_be_bytes() => {
            Stored::At(i64::from_be_bytes(*offset))
        }
        _ => Stored::Unreadable(bytes),
    })
}

/// The log start of a partition that is being opened, and what is wrong with it.
pub struct LogStart {
    stored: Stored,
}

impl LogStart {
    pub fn load(dir: &Path) -> io::Result<LogStart> {
        Ok(LogStart { stored: load(dir)? })
    }

    /// Where a log without any file begins.
    pub fn of_empty(&self) -> i64 {
        match self.stored {
            Stored::At(offset) => offset,
            Stored::Absent | Stored::Unreadable(_) => 0,
        }
    }

    /// A log that was once moved has files. Gives how many signs of damage this is.
    pub fn tell_missing_files(&self, dir: &Path) -> u64 {
        if self.stored == Stored::Absent {
            return 0;
        }
        error!(dir = %dir.display(), log_start = self.of_empty(),
            "the log is damaged: it has a start, and all of its files are missing");
        1
    }

    /// The log start of these segments, and how many signs of damage it shows.
    /// Whole files that were deleted never come back, whatever became of the
    /// stored offset; within the first file only that offset can tell. What
    /// holds from now on is stored, so that a start beyond an end that was lost
    /// does not hide what is written there later.
    pub fn settle(&self, dir: &Path, segments: &[Segment]) -> io::Result<(i64, u64)> {
        let first = segments.first().map_or(0, |segment| segment.base_offset);
        let end = segments.last().map_or(0, |segment| segment.end_offset);
        let log_start = self.of_empty().clamp(first, end);
        let damage = self.tell(dir, first);
        let holds = match self.stored {
            Stored::At(offset) => offset == log_start,
            Stored::Absent => log_start == 0,
            Stored::Unreadable(_) => false,
        };
        if !holds {
            save(dir, log_start)?;
        }
        Ok((log_start, damage))
    }

    fn tell(&self, dir: &Path, first: i64) -> u64 {
        let path = path(dir);
        match &self.stored {
            Stored::Unreadable(content) => {
                let content = &content[..content.len().min(16)];
                error!(path = %path.display(), ?content, log_start = first,
                    "the log is damaged: its start cannot be read; it begins with its first file, and records of that \
                     file that were deleted are back");
                1
            }
            Stored::Absent if first > 0 => {
                error!(path = %path.display(), log_start = first,
                    "the log is damaged: the files with its first records are missing, or where it started is; it begins \
                     with its first file, and records of that file that were deleted are back");
                1
            }
            Stored::At(offset) if *offset < first => {
                error!(path = %path.display(), log_start = offset, first_offset = first,
                    "the log is damaged: the files with its first records are missing");
                1
            }
            Stored::At(_) | Stored::Absent => 0,
        }
    }
}
