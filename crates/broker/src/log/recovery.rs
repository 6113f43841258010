//! Opening a partition: which segments there are, which of them are clean, and
//! for the others a scan that keeps the longest sound prefix and cuts the rest.
//! It never keeps a byte that does not match its checksum, and never leaves a
//! hole between segments. What it cuts and may be of use it sets aside. A log
//! is read once: what producers have sent is noted along with the scan.
//!
//! An end that is missing altogether leaves no trace in the log itself. The
//! index files and the snapshot of the producers name ends as well, and are
//! written only once all before is on the disk: a log that does not reach as
//! far has lost records, and that is said.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use tracing::{error, warn};

use super::batch::{self, BatchHeader, HEADER_LEN};
use super::damage;
use super::index::{self, Summary};
use super::log_start::LogStart;
use super::producers::{self, Producers};
use super::segment::{NO_TIMESTAMP, Segment, SegmentIndex, log_file_name, open_log};
use crate::durable;

const SCAN_BUFFER_BYTES: usize = 1024 * 1024;

/// A partition's files as found sound.
pub struct Recovered {
    pub segments: Vec<Segment>,
    pub log_start: i64,
    pub producers: Producers,
    /// Bytes cut off because they were torn or damaged.
    pub truncated_bytes: u64,
    /// How many of them are kept beside the log.
    pub set_aside_bytes: u64,
    /// Signs that the disk has lost what was on it, each of them told.
    pub damage: u64,
    /// The snapshot of the producers tells of what is gone.
    pub snapshot_is_stale: bool,
    /// Nothing was written, created or cut since the last clean close.
    pub was_clean: bool,
}

pub struct RecoverySettings {
    pub index_interval_bytes: u64,
    pub max_producer_ids: usize,
    pub max_message_bytes: usize,
    pub now_ms: i64,
}

/// Reads a partition's folder and repairs what a crash left behind.
pub fn recover(dir: &Path, settings: &RecoverySettings) -> io::Result<Recovered> {
    let log_start = LogStart::load(dir)?;
    let mut replay = Replay::start(dir, settings)?;
    let (mut truncated_bytes, mut set_aside_bytes, mut damage) = (0, 0, 0);
    let mut segments: Vec<Segment> = Vec::new();
    let mut broken = false;
    let files = list_files(dir)?;
    for (base_offset, path) in files.logs {
        let expected = segments.last().map(|segment| segment.end_offset);
        if broken || expected.is_some_and(|end| end != base_offset) {
            broken = true;
            let size = damage::set_segment_aside(&path)?;
            truncated_bytes += size;
            set_aside_bytes += size;
            continue;
        }
        let opened = open_segment(base_offset, &path, settings, &mut replay)?;
        broken = opened.cut_bytes > 0;
        truncated_bytes += opened.cut_bytes;
        set_aside_bytes += opened.set_aside_bytes;
        damage += u64::from(opened.lacks_its_end);
        segments.push(opened.segment);
    }
    if truncated_bytes > 0 {
        warn!(dir = %dir.display(), truncated_bytes, "cut a torn or damaged end off the log");
    }
    let was_clean = !segments.is_empty() && segments.iter().all(Segment::is_sealed);
    if segments.is_empty() {
        damage += log_start.tell_missing_files(dir);
        segments.push(Segment::create(dir, log_start.of_empty())?);
    }
    activate_last(&mut segments)?;
    damage += remove_orphans(&files.orphans, &segments)?;
    let (log_start, damage_of_start) = log_start.settle(dir, &segments)?;
    let (producers, snapshot_is_stale) = replay.finish(dir, &segments)?;
    Ok(Recovered {
        log_start,
        segments,
        producers,
        truncated_bytes,
        set_aside_bytes,
        damage: damage + damage_of_start + u64::from(snapshot_is_stale),
        snapshot_is_stale,
        was_clean: was_clean && truncated_bytes == 0,
    })
}

/// What lies in a partition's folder.
struct Files {
    /// Log files by base offset.
    logs: Vec<(i64, PathBuf)>,
    /// Index files whose log file is gone, as log files.
    orphans: Vec<PathBuf>,
}

/// The files of a log; leftovers of interrupted writes are removed.
fn list_files(dir: &Path) -> io::Result<Files> {
    let (mut logs, mut indexed) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let base = || path.file_stem()?.to_str()?.parse::<i64>().ok();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("log") => logs.extend(base().map(|base| (base, path.clone()))),
            Some("index") => indexed.extend(base()),
            Some("tmp") => durable::remove_if_present(&path)?,
            _ => {}
        }
    }
    logs.sort_unstable();
    let is_gone = |base: &i64| logs.binary_search_by_key(base, |(base, _)| *base).is_err();
    indexed.retain(is_gone);
    let orphans = indexed
        .into_iter()
        .map(|base| dir.join(log_file_name(base)));
    Ok(Files {
        orphans: orphans.collect(),
        logs,
    })
}

/// Removes the indexes of log files that are gone. A deletion that was cut short
/// leaves one, whose records lie before the log; one that names records beyond
/// the end has lost them. Gives how many of those there were.
fn remove_orphans(orphans: &[PathBuf], segments: &[Segment]) -> io::Result<u64> {
    let end = segments.last().map_or(0, |segment| segment.end_offset);
    let mut damage = 0;
    for log_path in orphans {
        if let Some((held, _)) = index::load(log_path)?
            && held.end_offset > end
        {
            error!(path = %log_path.display(), held_end_offset = held.end_offset, end_offset = end,
                "the log is damaged: a file of it is missing, and the records at its end with it");
            damage += 1;
        }
        durable::remove_if_present(&index::index_path(log_path))?;
    }
    Ok(damage)
}

/// A segment as opened, and what was wrong with its file.
struct Opened {
    segment: Segment,
    cut_bytes: u64,
    set_aside_bytes: u64,
    /// Its index names more than it holds.
    lacks_its_end: bool,
}

/// Opens a segment by its index, or by scanning it when that marks no clean end.
fn open_segment(
    base_offset: i64,
    path: &Path,
    settings: &RecoverySettings,
    replay: &mut Replay<'_>,
) -> io::Result<Opened> {
    let size = fs::metadata(path)?.len();
    let held = index::load(path)?.map(|(summary, _)| summary);
    if let Some(summary) = held.filter(|held| held.log_size == size) {
        let segment = Segment {
            base_offset,
            path: path.to_path_buf(),
            size,
            end_offset: summary.end_offset,
            max_timestamp: summary.max_timestamp,
            index: SegmentIndex::Sealed,
            file: None,
        };
        replay.read(&segment)?;
        return Ok(Opened {
            segment,
            cut_bytes: 0,
            set_aside_bytes: 0,
            lacks_its_end: false,
        });
    }
    durable::remove_if_present(&index::index_path(path))?;
    let segment = scan(base_offset, path, size, settings, replay)?;
    let cut_bytes = size - segment.size;
    let lacks_its_end = held.is_some_and(|held| tell_missing_end(&segment, size, held));
    let mut set_aside_bytes = 0;
    if cut_bytes > 0 {
        set_aside_bytes = damage::set_tail_aside(path, segment.size, settings.max_message_bytes)?;
        let file = open_log(path)?;
        file.set_len(segment.size)?;
        file.sync_all()?;
    }
    Ok(Opened {
        segment,
        cut_bytes,
        set_aside_bytes,
        lacks_its_end,
    })
}

/// Whether the index, written when the file and all in it was on the disk, names
/// more than there is. (A file that is longer was written to since.)
fn tell_missing_end(segment: &Segment, size: u64, held: Summary) -> bool {
    let lacks_its_end = size < held.log_size;
    if lacks_its_end {
        error!(path = %segment.path.display(), file_bytes = size, held_bytes = held.log_size,
            end_offset = segment.end_offset, held_end_offset = held.end_offset,
            "the log is damaged: a file of it was longer when it was closed, and the records at its end are missing");
    }
    lacks_its_end
}

/// Reads a log file up to the first batch that is torn or damaged.
fn scan(
    base_offset: i64,
    path: &Path,
    size: u64,
    settings: &RecoverySettings,
    replay: &mut Replay<'_>,
) -> io::Result<Segment> {
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
        segment.note_appended(&header, settings.index_interval_bytes);
        replay.note(&header);
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
        let entries = index::load(&last.path)?.map(|(_, entries)| entries);
        last.index = SegmentIndex::Memory(entries.unwrap_or_default());
        durable::remove_if_present(&index::index_path(&last.path))?;
    }
    if last.file.is_none() {
        last.file = Some(open_log(&last.path)?.into());
    }
    Ok(())
}

/// What producers have sent: the snapshot, and on top of it the headers of all
/// batches it lacks, in the order of the log.
struct Replay<'a> {
    settings: &'a RecoverySettings,
    producers: Producers,
    /// The snapshot covers everything before.
    from: i64,
}

impl<'a> Replay<'a> {
    fn start(dir: &Path, settings: &'a RecoverySettings) -> io::Result<Replay<'a>> {
        let snapshot = Producers::load(dir)?;
        let (producers, from) = snapshot.unwrap_or((Producers::default(), i64::MIN));
        Ok(Replay {
            settings,
            producers,
            from,
        })
    }

    fn note(&mut self, header: &BatchHeader) {
        if header.base_offset >= self.from {
            let Self { settings, .. } = self;
            self.producers
                .record(header, settings.now_ms, settings.max_producer_ids);
        }
    }

    /// Notes what a segment holds that was not scanned.
    fn read(&mut self, segment: &Segment) -> io::Result<()> {
        match segment.end_offset > self.from {
            true => for_each_header(segment, |header| self.note(header)),
            false => Ok(()),
        }
    }

    /// What producers have sent, and whether the snapshot tells of batches that
    /// the log no longer has.
    fn finish(self, dir: &Path, segments: &[Segment]) -> io::Result<(Producers, bool)> {
        let end = segments.last().map_or(0, |segment| segment.end_offset);
        if self.from <= end {
            return Ok((self.producers, false));
        }
        error!(path = %producers::snapshot_path(dir).display(), held_end_offset = self.from, end_offset = end,
            "the log is damaged: it ends before the snapshot of its producers, and the records between are missing");
        let mut replay = Replay {
            settings: self.settings,
            producers: Producers::default(),
            from: i64::MIN,
        };
        segments
            .iter()
            .try_for_each(|segment| replay.read(segment))?;
        Ok((replay.producers, true))
    }
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
