//! The sparse index of a segment: every so many bytes, which offset starts
//! where and how late the records before it go. One monotone list serves
//! lookups by offset and by time. It is only a hint that saves scanning; the
//! log file stays the truth, and a lost index is rebuilt from it.
//!
//! A segment's index file is written when the segment is complete and synced,
//! or at a clean shutdown. Its presence, with the log file's exact size in it,
//! therefore marks the segment as clean; with more than the log file has, it
//! tells that the disk has lost the end of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};

use crate::durable;

const MAGIC: u32 = 0x5347_4931;
/// Magic, log size, end offset, largest timestamp, count of entries.
const PREFIX_LEN: usize = 4 + 8 + 8 + 8 + 4;
const ENTRY_LEN: usize = 4 + 4 + 8;
const CRC_LEN: usize = 4;

/// Where a batch starts, and the largest timestamp of all batches before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub relative_offset: u32,
    pub position: u32,
    pub max_timestamp_before: i64,
}

impl Entry {
    fn decode(mut bytes: &[u8]) -> Entry {
        Entry {
            relative_offset: bytes.get_u32(),
            position: bytes.get_u32(),
            max_timestamp_before: bytes.get_i64(),
        }
    }
}

/// What an index file says about its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub log_size: u64,
    pub end_offset: i64,
    pub max_timestamp: i64,
}

/// The index file that belongs to a log file.
pub fn index_path(log_path: &Path) -> PathBuf {
    log_path.with_extension("index")
}

/// Writes an index file whole.
pub fn save(log_path: &Path, summary: Summary, entries: &[Entry]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(PREFIX_LEN + entries.len() * ENTRY_LEN + CRC_LEN);
    bytes.put_u32(MAGIC);
    bytes.put_u64(summary.log_size);
    bytes.put_i64(summary.end_offset);
    bytes.put_i64(summary.max_timestamp);
    bytes.put_u32(u32::try_from(entries.len()).map_err(io::Error::other)?);
    for entry in entries {
        bytes.put_u32(entry.relative_offset);
        bytes.put_u32(entry.position);
        bytes.put_i64(entry.max_timestamp_before);
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.put_u32(crc);
    durable::write_atomic(&index_path(log_path), &bytes)
}

/// Loads an index file; `None` when it is absent or damaged. Whether it speaks of
/// the log file as it is now, its size tells.
pub fn load(log_path: &Path) -> io::Result<Option<(Summary, Vec<Entry>)>> {
    let bytes = durable::read_if_present(&index_path(log_path))?;
    Ok(bytes.and_then(|bytes| decode(&bytes)))
}

fn decode(bytes: &[u8]) -> Option<(Summary, Vec<Entry>)> {
    let covered = bytes.len().checked_sub(CRC_LEN)?;
    let (content, mut crc) = bytes.split_at(covered);
    if content.len() < PREFIX_LEN || crc32c::crc32c(content) != crc.get_u32() {
        return None;
    }
    let mut prefix = content;
    if prefix.get_u32() != MAGIC {
        return None;
    }
    let summary = Summary {
        log_size: prefix.get_u64(),
        end_offset: prefix.get_i64(),
        max_timestamp: prefix.get_i64(),
    };
    let count = prefix.get_u32() as usize;
    if prefix.len() != count.checked_mul(ENTRY_LEN)? {
        return None;
    }
    let entries = prefix.chunks_exact(ENTRY_LEN).map(Entry::decode).collect();
    Some((summary, entries))
}

/// Finds the last entry for which `before` holds, in a list where it holds for
/// a prefix; position 0 when there is none.
pub fn position_in_memory(entries: &[Entry], before: impl Fn(&Entry) -> bool) -> u64 {
    match entries.partition_point(before) {
        0 => 0,
        found => u64::from(entries[found - 1].position),
    }
}

/// The same on an index file, by a few small reads instead of loading it.
pub fn position_in_file(log_path: &Path, before: impl Fn(&Entry) -> bool) -> io::Result<u64> {
    let file = match File::open(index_path(log_path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let len = file
        .metadata()?
        .len()
        .saturating_sub((PREFIX_LEN + CRC_LEN) as u64);
    let (mut low, mut high) = (0, len / ENTRY_LEN as u64);
    let mut position = 0;
    while low < high {
        let middle = low + (high - low) / 2;
        let mut raw = [0; ENTRY_LEN];
        file.read_exact_at(&mut raw, PREFIX_LEN as u64 + middle * ENTRY_LEN as u64)?;
        let entry = Entry::decode(&raw);
        if before(&entry) {
            position = u64::from(entry.position);
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        (1..200u32)
            .map(|n| Entry {
                relative_offset: n * 10,
                position: n * 1_000,
                max_timestamp_before: i64::from(n) * 5,
            })
            .collect()
    }

    #[test]
    fn memory_and_file_agree() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let summary = Summary {
            log_size: 200_000,
            end_offset: 2_000,
            max_timestamp: 1_000,
        };
        let entries = entries();
        save(&log, summary, &entries).unwrap();
        for offset in [0, 9, 10, 11, 995, 1_990, 5_000] {
            let before = |entry: &Entry| entry.relative_offset <= offset;
            let memory = position_in_memory(&entries, before);
            assert_eq!(memory, position_in_file(&log, before).unwrap(), "{offset}");
        }
        assert_eq!(load(&log).unwrap(), Some((summary, entries)));
    }

    #[test]
    fn a_damaged_file_is_no_index() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let summary = Summary {
            log_size: 1,
            end_offset: 1,
            max_timestamp: 1,
        };
        save(&log, summary, &entries()).unwrap();
        let good = std::fs::read(index_path(&log)).unwrap();
        for cut in [0, 1, 20, 40, good.len() - 1] {
            assert!(decode(&good[..cut]).is_none());
        }
        let mut flipped = good;
        flipped[50] ^= 1;
        assert!(decode(&flipped).is_none());
    }
}
