//! What stands behind damage in a log is no longer part of it, but may hold
//! records that were acknowledged. It is set aside in `*.damaged` files beside
//! the log rather than deleted, for a person to look at. Nothing here reads
//! such files again; they go with their topic.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tracing::error;

use super::batch::{self, BatchHeader};
use super::index;
use crate::durable;

/// Takes a whole segment out of the log. Gives its size.
pub fn set_segment_aside(path: &Path) -> io::Result<u64> {
    let size = fs::metadata(path)?.len();
    durable::remove_if_present(&index::index_path(path))?;
    if size == 0 {
        durable::remove_if_present(path)?;
        return Ok(0);
    }
    let kept = unused_path(path, 0);
    fs::rename(path, &kept)?;
    report(path, &kept, size);
    Ok(size)
}

/// Copies a log file's bytes from `from` on, unless they can only be a batch
/// that was being written. Gives how many bytes were kept; the caller cuts them.
pub fn set_tail_aside(path: &Path, from: u64, batch_bytes_max: usize) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len().saturating_sub(from);
    if size <= 2 * batch_bytes_max as u64 {
        file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        if !holds_sound_batch(&tail) {
            return Ok(0);
        }
    }
    file.seek(SeekFrom::Start(from))?;
    let kept = unused_path(path, from);
    let mut copy = File::create(&kept)?;
    io::copy(&mut file, &mut copy)?;
    copy.sync_all()?;
    if let Some(dir) = kept.parent() {
        durable::sync_dir(dir)?;
    }
    report(path, &kept, size);
    Ok(size)
}

fn report(path: &Path, kept: &Path, bytes: u64) {
    error!(path = %path.display(), kept = %kept.display(), bytes,
        "the log is damaged: what stands behind the damage was set aside and is not served");
}

/// A name that no earlier damage has taken.
fn unused_path(path: &Path, from: u64) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = |n: u32| path.with_file_name(format!("{stem}-{from}-{n}.damaged"));
    let mut n = 0;
    while name(n).exists() {
        n += 1;
    }
    name(n)
}

/// Whether a batch that matches its checksum starts anywhere in `bytes`.
fn holds_sound_batch(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| {
        let rest = &bytes[at..];
        BatchHeader::parse(rest).is_some_and(|header| {
            batch::is_stored_header(&header, header.base_offset)
                && batch::checksum_matches(&header, rest)
        })
    })
}
