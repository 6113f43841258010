//! Opening a partition: which segments there are, which of them are clean, and
//! for the others a scan that keeps the longest sound prefix and cuts the rest.
//! It never keeps a byte that does not match its checksum, and never leaves a
//! hole between segments.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::batch::{self, BatchHeader, HEADER_LEN};
use super::index;
use super::producers::Producers;
use super::segment::{NO_TIMESTAMP, Segment, SegmentIndex, open_log};
use crate::durable;

const SCAN_BUFFER_BYTES: usize = 1024 * 1024;

/// A partition's files as found sound.
pub struct Recovered {
    pub segments: Vec<Segment>,
    pub log_start: i64,
    pub producers: Producers,
    /// Bytes cut off because they were torn or damaged.
    pub truncated_bytes: u64,
}

pub struct RecoverySettings {
    pub index_interval_bytes: u64,
    pub max_producer_ids: usize,
    pub now_ms: i64,
}

/// Reads a partition's folder and repairs what a crash left behind.
pub fn recover(dir: &Path, settings: &RecoverySettings) -> io::Result<Recovered> {
    let log_start = load_log_start(dir)?;
    let mut truncated_bytes = 0;
    let mut segments: Vec<Segment> = Vec::new();
    let mut broken = false;
    for (base_offset, path) in list_segments(dir)? {
        let expected = segments.last().map(|segment| segment.end_offset);
        if broken || expected.is_some_and(|end| end != base_offset) {
            broken = true;
            truncated_bytes += discard(&path)?;
            continue;
        }
        let (segment, cut) = open_segment(base_offset, &path, settings)?;
        broken = cut > 0;
        truncated_bytes += cut;
        segments.push(segment);
    }
    if truncated_bytes > 0 {
        warn!(dir = %dir.display(), truncated_bytes, "cut a torn or damaged end off the log");
    }
    if segments.is_empty() {
        segments.push(Segment::create(dir, log_start)?);
    }
    activate_last(&mut segments)?;
    let first = segments.first().map_or(0, |segment| segment.base_offset);
    let end = segments.last().map_or(0, |segment| segment.end_offset);
    let producers = recover_producers(dir, &segments, settings)?;
    Ok(Recovered {
        log_start: log_start.clamp(first, end),
        segments,
        producers,
        truncated_bytes,
    })
}

/// Log files by base offset; leftovers of interrupted writes are removed.
fn list_segments(dir: &Path) -> io::Result<Vec<(i64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("log") => {
                let stem = path.file_stem().and_then(|stem| stem.to_str());
                if let Some(base) = stem.and_then(|stem| stem.parse().ok()) {
                    found.push((base, path));
                }
            }
            Some("tmp") => durable::remove_if_present(&path)?,
            _ => {}
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn discard(path: &Path) -> io::Result<u64> {
    let size = fs::metadata(path)?.len();
    warn!(path = %path.display(), size, "dropped a segment that does not follow the one before");
    durable::remove_if_present(&index::index_path(path))?;
    durable::remove_if_present(path)?;
    Ok(size)
}

/// Opens a segment by its index, or by scanning it when that marks no clean end.
fn open_segment(
    base_offset: i64,
    path: &Path,
    settings: &RecoverySettings,
) -> io::Result<(Segment, u64)> {
    let size = fs::metadata(path)?.len();
    if let Some((summary, _)) = index::load(path, size)? {
        let segment = Segment {
            base_offset,
            path: path.to_path_buf(),
            size,
            end_offset: summary.end_offset,
            max_timestamp: summary.max_timestamp,
            index: SegmentIndex::Sealed,
            file: None,
        };
        return Ok((segment, 0));
    }
    durable::remove_if_present(&index::index_path(path))?;
    let segment = scan(base_offset, path, size, settings.index_interval_bytes)?;
    let cut = size - segment.size;
    if cut > 0 {
        let file = open_log(path)?;
        file.set_len(segment.size)?;
        file.sync_all()?;
    }
    Ok((segment, cut))
}

/// Reads a log file up to the first batch that is torn or damaged.
fn scan(base_offset: i64, path: &Path, size: u64, interval_bytes: u64) -> io::Result<Segment> {
    let mut segment = Segment {
        base_offset,
        path: path.to_path_buf(),
        size: 0,
        end_offset: base_offset,
        max_timestamp: NO_TIMESTAMP,
        index: SegmentIndex::Memory(Vec::new()),
        file: None,
    };
    let mut reader = BufReader::with_capacity(SCAN_BUFFER_BYTES, File::open(path)?);
    let mut batch = Vec::new();
    while let Some(header) = next_sound(&mut reader, &mut batch, &segment, size)? {
        segment.note_appended(&header, interval_bytes);
    }
    Ok(segment)
}

fn next_sound(
    reader: &mut impl Read,
    batch: &mut Vec<u8>,
    segment: &Segment,
    size: u64,
) -> io::Result<Option<BatchHeader>> {
    let left = size - segment.size;
    if left < HEADER_LEN as u64 {
        return Ok(None);
    }
    batch.resize(HEADER_LEN, 0);
    reader.read_exact(batch)?;
    let Some(header) = BatchHeader::parse(batch) else {
        return Ok(None);
    };
    let fits = header.total_len as u64 <= left;
    if !fits || !batch::is_stored_header(&header, segment.end_offset) {
        return Ok(None);
    }
    batch.resize(header.total_len, 0);
    reader.read_exact(&mut batch[HEADER_LEN..])?;
    Ok(batch::checksum_matches(&header, batch).then_some(header))
}

/// Makes the last segment writable: its index goes to memory and its file,
/// which marked it clean, goes away before anything is appended.
fn activate_last(segments: &mut [Segment]) -> io::Result<()> {
    let Some(last) = segments.last_mut() else {
        return Ok(());
    };
    if last.is_sealed() {
        let entries = index::load(&last.path, last.size)?.map(|(_, entries)| entries);
        last.index = SegmentIndex::Memory(entries.unwrap_or_default());
        durable::remove_if_present(&index::index_path(&last.path))?;
    }
    if last.file.is_none() {
        last.file = Some(open_log(&last.path)?.into());
    }
    Ok(())
}

/// The snapshot, and on top of it the headers of all batches it lacks.
fn recover_producers(
    dir: &Path,
    segments: &[Segment],
    settings: &RecoverySettings,
) -> io::Result<Producers> {
    let end = segments.last().map_or(0, |segment| segment.end_offset);
    let snapshot = Producers::load(dir)?.filter(|(_, offset)| *offset <= end);
    let (mut producers, from) = snapshot.unwrap_or((Producers::default(), i64::MIN));
    for segment in segments.iter().filter(|segment| segment.end_offset > from) {
        for_each_header(segment, |header| {
            if header.base_offset >= from {
                producers.record(header, settings.now_ms, settings.max_producer_ids);
            }
        })?;
    }
    Ok(producers)
}

fn for_each_header(segment: &Segment, mut visit: impl FnMut(&BatchHeader)) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(SCAN_BUFFER_BYTES, File::open(&segment.path)?);
    let mut raw = [0; HEADER_LEN];
    let mut position = 0;
    while position + HEADER_LEN as u64 <= segment.size {
        reader.read_exact(&mut raw)?;
        let Some(header) = BatchHeader::parse(&raw) else {
            return Ok(());
        };
        visit(&header);
        position += header.total_len as u64;
        reader.seek_relative((header.total_len - HEADER_LEN) as i64)?;
    }
    Ok(())
}

fn log_start_path(dir: &Path) -> PathBuf {
    dir.join("log-start")
}

/// Makes a moved log start durable: eight bytes and their checksum.
pub fn save_log_start(dir: &Path, log_start: i64) -> io::Result<()> {
    let offset = log_start.to_be_bytes();
    let crc = crc32c::crc32c(&offset).to_be_bytes();
    durable::write_atomic(&log_start_path(dir), &[&offset[..], &crc].concat())
}

fn load_log_start(dir: &Path) -> io::Result<i64> {
    let Some(bytes) = durable::read_if_present(&log_start_path(dir))? else {
        return Ok(0);
    };
    let parsed = bytes.split_first_chunk::<8>();
    let Some((offset, crc)) = parsed else {
        return Ok(0);
    };
    let sound = crc == crc32c::crc32c(offset).to_be_bytes();
    Ok(if sound {
        i64::from_be_bytes(*offset)
    } else {
        0
    })
}
