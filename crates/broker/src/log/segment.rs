//! One segment: a log file and its index. A segment knows its own extent; what
//! of it may be read, and when it goes, its partition decides.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::BatchHeader;
use super::index::{self, Entry, Summary};

/// The largest timestamp of a segment without records.
pub const NO_TIMESTAMP: i64 = -1;

pub struct Segment {
    pub base_offset: i64,
    pub path: PathBuf,
    pub size: u64,
    /// The offset after the last record.
    pub end_offset: i64,
    pub max_timestamp: i64,
    pub index: SegmentIndex,
    /// Kept open while the segment is written or not yet synced.
    pub file: Option<Arc<File>>,
}

pub enum SegmentIndex {
    /// In memory, for a segment that is still written or not yet sealed.
    Memory(Vec<Entry>),
    /// In its file.
    Sealed,
}

/// How to find a place in a segment without holding its partition's lock.
pub enum Locator {
    At(u64),
    IndexFile,
}

pub fn log_file_name(base_offset: i64) -> String {
    format!("{base_offset:020}.log")
}

pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

impl Segment {
    /// Creates the file of an empty segment, emptying a leftover of the same name.
    pub fn create(dir: &Path, base_offset: i64) -> io::Result<Segment> {
        let path = dir.join(log_file_name(base_offset));
        let file = open_log(&path)?;
        file.set_len(0)?;
        crate::durable::remove_if_present(&index::index_path(&path))?;
        Ok(Segment {
            base_offset,
            path,
            size: 0,
            end_offset: base_offset,
            max_timestamp: NO_TIMESTAMP,
            index: SegmentIndex::Memory(Vec::new()),
            file: Some(Arc::new(file)),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    pub fn is_sealed(&self) -> bool {
        matches!(self.index, SegmentIndex::Sealed)
    }

    pub fn summary(&self) -> Summary {
        Summary {
            log_size: self.size,
            end_offset: self.end_offset,
            max_timestamp: self.max_timestamp,
        }
    }

    /// Takes note of a batch that stands at the segment's end.
    pub fn note_appended(&mut self, header: &BatchHeader, interval_bytes: u64) {
        if let SegmentIndex::Memory(entries) = &mut self.index {
            let last = entries.last().map_or(0, |entry| u64::from(entry.position));
            if self.size >= last + interval_bytes {
                let relative = header.base_offset - self.base_offset;
                entries.push(Entry {
                    relative_offset: u32::try_from(relative).unwrap_or(u32::MAX),
                    position: u32::try_from(self.size).unwrap_or(u32::MAX),
                    max_timestamp_before: self.max_timestamp,
                });
            }
        }
        self.size += header.total_len as u64;
        self.end_offset = header.next_offset();
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
    }

    /// Where to start scanning for `offset`.
    pub fn locate_offset(&self, offset: i64) -> Locator {
        let relative = relative_offset(self.base_offset, offset);
        match &self.index {
            SegmentIndex::Memory(entries) => {
                Locator::At(index::position_in_memory(entries, |entry| {
                    entry.relative_offset <= relative
                }))
            }
            SegmentIndex::Sealed => Locator::IndexFile,
        }
    }

    /// Where to start scanning for the first record at or after `timestamp`.
    pub fn locate_timestamp(&self, timestamp: i64) -> Locator {
        match &self.index {
            SegmentIndex::Memory(entries) => {
                Locator::At(index::position_in_memory(entries, |entry| {
                    entry.max_timestamp_before < timestamp
                }))
            }
            SegmentIndex::Sealed => Locator::IndexFile,
        }
    }

    /// The open file, or a fresh handle on a sealed segment's.
    pub fn handle(&self) -> io::Result<Arc<File>> {
        match &self.file {
            Some(file) => Ok(Arc::clone(file)),
            None => Ok(Arc::new(File::open(&self.path)?)),
        }
    }

    /// Deletes the segment's files.
    pub fn delete(&self) -> io::Result<()> {
        crate::durable::remove_if_present(&self.path)?;
        crate::durable::remove_if_present(&index::index_path(&self.path))
    }
}

pub fn relative_offset(base_offset: i64, offset: i64) -> u32 {
    u32::try_from(offset.saturating_sub(base_offset).max(0)).unwrap_or(u32::MAX)
}
