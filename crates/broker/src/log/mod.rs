//! One partition's log: appends by one writer at a time, reads beside it, and
//! the offsets it publishes. Record batches are kept as they came; only their
//! place in the log is filled in.
//!
//! All calls here may wait for the disk: call them where blocking is allowed.
//! What request handlers need without waiting ([`Partition::high_watermark`],
//! [`Partition::log_start`], waiting for data) takes no lock that a writer
//! holds during IO.

pub mod batch;
mod damage;
pub mod index;
mod log_start;
pub mod producers;
pub mod records;
pub mod recovery;
pub mod retention;
pub mod segment;

mod read;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{error, warn};

use self::batch::{BatchHeader, HEADER_LEN};
use self::producers::{Producers, Verdict};
use self::segment::{Segment, SegmentIndex};

pub use self::read::ReadError;

/// There is one broker and it always leads, so its epoch never changes.
pub const LEADER_EPOCH: i32 = 0;

/// What a partition's log needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct LogSettings {
    pub segment_bytes: u64,
    pub index_interval_bytes: u64,
    pub retention_ms: i64,
    pub retention_bytes: i64,
    pub max_message_bytes: usize,
    pub max_producer_ids: usize,
    pub producer_id_expiration_ms: u64,
    /// Show consumers only what is on the disk.
    pub publish_when_synced: bool,
}

/// Where a produced batch ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: i64,
    /// The offset after it: what must be synced before it counts as durable.
    pub next_offset: i64,
    pub duplicate: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("the batch does not continue the producer's sequence")]
    OutOfOrderSequence,
    #[error("a newer epoch of this producer exists")]
    Fenced,
    #[error("the partition was deleted or is shutting down")]
    Closed,
    #[error("writing to the log failed")]
    Io(#[from] io::Error),
}

pub struct Partition {
    dir: PathBuf,
    settings: LogSettings,
    inner: Mutex<Inner>,
    /// The offset consumers may read up to.
    high_watermark: AtomicI64,
    log_start: AtomicI64,
    size_bytes: AtomicU64,
    recovery_cut_bytes: u64,
    recovery_set_aside_bytes: u64,
    recovery_damage: u64,
    /// Reads that met with damage.
    damaged_reads: AtomicU64,
    /// Fetches waiting for data: at most one per connection.
    waiters: Mutex<Vec<Arc<Notify>>>,
    /// Held by the one task that syncs; the others wait for its result.
    sync_turn: tokio::sync::Mutex<()>,
}

struct Inner {
    /// Oldest first, never empty; the last one is written to.
    segments: VecDeque<Segment>,
    producers: Producers,
    log_start: i64,
    /// Everything below is on the disk.
    synced: i64,
    /// A write failed midway: cut the file before the next one.
    dirty_tail: bool,
    /// The folder may have entries that a power cut would take.
    new_files: bool,
    /// Producer state as of the last roll, to be saved with the sealing.
    snapshot_due: Option<(Producers, i64)>,
    /// Deleted or closed: nothing is appended any more.
    closed: bool,
    /// Forcing data to the disk failed. What the kernel did with the pages is
    /// unknown, so nothing is acknowledged until a restart has scanned them.
    failed: bool,
}

impl Inner {
    fn active(&mut self) -> &mut Segment {
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }

    fn end_offset(&self) -> i64 {
        self.segments.back().map_or(0, |segment| segment.end_offset)
    }

    fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

impl Partition {
    /// Opens the partition in `dir`, repairing it if it was not closed cleanly.
    pub fn open(dir: &Path, settings: LogSettings) -> io::Result<Partition> {
        let recovered = recovery::recover(
            dir,
            &recovery::RecoverySettings {
                index_interval_bytes: settings.index_interval_bytes,
                max_producer_ids: settings.max_producer_ids,
                max_message_bytes: settings.max_message_bytes,
                now_ms: now_ms(),
            },
        )?;
        let end_offset = recovered.segments.last().map_or(0, |last| last.end_offset);
        // What is missing is told once: from then on the snapshot tells of what there is.
        let snapshot_due = recovered
            .snapshot_is_stale
            .then(|| (recovered.producers.clone(), end_offset));
        let inner = Inner {
            new_files: !recovered.was_clean,
            segments: recovered.segments.into(),
            producers: recovered.producers,
            log_start: recovered.log_start,
            synced: 0,
            dirty_tail: false,
            snapshot_due,
            closed: false,
            failed: false,
        };
        let partition = Partition {
            dir: dir.to_path_buf(),
            high_watermark: AtomicI64::new(inner.end_offset()),
            log_start: AtomicI64::new(inner.log_start),
            size_bytes: AtomicU64::new(inner.size()),
            recovery_cut_bytes: recovered.truncated_bytes,
            recovery_set_aside_bytes: recovered.set_aside_bytes,
            recovery_damage: recovered.damage,
            damaged_reads: AtomicU64::new(0),
            inner: Mutex::new(inner),
            settings,
            waiters: Mutex::default(),
            sync_turn: tokio::sync::Mutex::new(()),
        };
        partition.sync()?;
        Ok(partition)
    }

    #[cfg(test)]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn settings(&self) -> &LogSettings {
        &self.settings
    }

    /// The offset after the last record that consumers may read.
    pub fn high_watermark(&self) -> i64 {
        self.high_watermark.load(Ordering::Acquire)
    }

    /// The first offset that may be read.
    pub fn log_start(&self) -> i64 {
        self.log_start.load(Ordering::Acquire)
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// What the last start cut off because it was torn or damaged.
    pub fn recovery_cut_bytes(&self) -> u64 {
        self.recovery_cut_bytes
    }

    /// How much of that is kept beside the log, in `*.damaged` files.
    pub fn recovery_set_aside_bytes(&self) -> u64 {
        self.recovery_set_aside_bytes
    }

    /// How many signs the last start found that the disk has lost what was on
    /// it: records at the end, files, or where the log starts.
    pub fn recovery_damage(&self) -> u64 {
        self.recovery_damage
    }

    /// How often a read met with damage since the start.
    pub fn damaged_reads(&self) -> u64 {
        self.damaged_reads.load(Ordering::Relaxed)
    }

    /// Appends a validated batch.
    pub fn append(&self, mut header: BatchHeader, records: &[u8]) -> Result<Appended, AppendError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(AppendError::Closed);
        }
        if inner.failed {
            return Err(io::Error::other("the log could not be synced earlier").into());
        }
        match inner.producers.check(&header) {
            Verdict::Append => {}
            Verdict::OutOfOrder => return Err(AppendError::OutOfOrderSequence),
            Verdict::Fenced => return Err(AppendError::Fenced),
            Verdict::Duplicate(base_offset) => {
                let next_offset = base_offset + i64::from(header.record_count);
                return Ok(Appended {
                    base_offset,
                    next_offset,
                    duplicate: true,
                });
            }
        }
        self.mend_tail(&mut inner)?;
        self.roll_if_full(&mut inner, header.total_len)?;
        header.base_offset = inner.end_offset();
        self.write(&mut inner, &header, records)?;
        inner
            .producers
            .record(&header, now_ms(), self.settings.max_producer_ids);
        let next_offset = inner.end_offset();
        if !self.settings.publish_when_synced {
            self.publish(next_offset);
        }
        Ok(Appended {
            base_offset: header.base_offset,
            next_offset,
            duplicate: false,
        })
    }

    fn write(&self, inner: &mut Inner, header: &BatchHeader, records: &[u8]) -> io::Result<()> {
        let segment = inner.active();
        let stored = batch::stored_header(records, header.base_offset, LEADER_EPOCH);
        let position = segment.size;
        let file = segment.handle()?;
        let written = file
            .write_all_at(&stored, position)
            .and_then(|()| file.write_all_at(&records[HEADER_LEN..], position + HEADER_LEN as u64));
        if let Err(error) = written {
            error!(dir = %self.dir.display(), %error, "appending to the log failed");
            inner.dirty_tail = true;
            // Give the space back at once: on a full disk others may need it.
            let _ = self.mend_tail(inner);
            return Err(error);
        }
        segment.note_appended(header, self.settings.index_interval_bytes);
        self.size_bytes
            .fetch_add(header.total_len as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Cuts what a failed write left behind the last whole batch.
    fn mend_tail(&self, inner: &mut Inner) -> io::Result<()> {
        if inner.dirty_tail {
            let segment = inner.active();
            segment.handle()?.set_len(segment.size)?;
            inner.dirty_tail = false;
        }
        Ok(())
    }

    fn roll_if_full(&self, inner: &mut Inner, incoming: usize) -> io::Result<()> {
        let active = inner.active();
        let spans_too_far = active.end_offset - active.base_offset > i64::from(i32::MAX);
        let full = active.size + incoming as u64 > self.settings.segment_bytes || spans_too_far;
        if full && !active.is_empty() {
            self.roll(inner)?;
        }
        Ok(())
    }

    /// Starts a new segment. The old one is synced and sealed later, by
    /// [`Partition::sync`], so that no producer waits for it.
    fn roll(&self, inner: &mut Inner) -> io::Result<()> {
        let end = inner.end_offset();
        inner.segments.push_back(Segment::create(&self.dir, end)?);
        inner.new_files = true;
        inner.snapshot_due = Some((inner.producers.clone(), end));
        Ok(())
    }

    fn publish(&self, offset: i64) {
        let before = self.high_watermark.fetch_max(offset, Ordering::AcqRel);
        if before < offset {
            for waiter in self.waiters.lock().iter() {
                waiter.notify_one();
            }
        }
    }

    /// Wakes `waiter` whenever there is more to read, until the guard goes.
    pub fn watch(self: &Arc<Self>, waiter: &Arc<Notify>) -> Watch {
        self.waiters.lock().push(Arc::clone(waiter));
        Watch {
            partition: Arc::clone(self),
            waiter: Arc::clone(waiter),
        }
    }

    /// Waits until everything below `offset` is on the disk. Callers that wait
    /// at the same time share one sync.
    pub async fn wait_synced(self: &Arc<Self>, offset: i64) -> io::Result<()> {
        loop {
            let _turn = self.sync_turn.lock().await;
            if self.high_watermark() >= offset {
                return Ok(());
            }
            let partition = Arc::clone(self);
            tokio::task::spawn_blocking(move || partition.sync())
                .await
                .map_err(io::Error::other)??;
        }
    }

    /// Forces everything written so far to the disk, seals complete segments
    /// and publishes what consumers may now read.
    pub fn sync(&self) -> io::Result<()> {
        let (files, new_files, sealed, snapshot, end) = {
            let mut inner = self.inner.lock();
            let end = inner.end_offset();
            if inner.failed {
                return Err(io::Error::other("the log could not be synced earlier"));
            }
            let is_synced = inner.synced == end && !inner.new_files;
            if inner.closed || (is_synced && inner.snapshot_due.is_none()) {
                drop(inner);
                self.publish(end);
                return Ok(());
            }
            let unsealed = inner.segments.iter().filter(|segment| !segment.is_sealed());
            let files = unsealed
                .map(Segment::handle)
                .collect::<io::Result<Vec<Arc<File>>>>()?;
            let complete = inner.segments.len() - 1;
            let sealed: Vec<i64> = inner
                .segments
                .iter()
                .take(complete)
                .filter(|segment| !segment.is_sealed())
                .map(|segment| segment.base_offset)
                .collect();
            let new_files = std::mem::take(&mut inner.new_files);
            (files, new_files, sealed, inner.snapshot_due.take(), end)
        };
        let forced = files.iter().try_for_each(|file| file.sync_data());
        // A file counts as durable only with its name in the folder.
        let forced = forced.and_then(|()| match new_files {
            true => crate::durable::sync_dir(&self.dir),
            false => Ok(()),
        });
        if let Err(error) = forced {
            error!(dir = %self.dir.display(), %error, "forcing the log to the disk failed");
            self.inner.lock().failed = true;
            return Err(error);
        }
        {
            let mut inner = self.inner.lock();
            inner.synced = inner.synced.max(end);
        }
        self.publish(end);
        if let Some((producers, offset)) = snapshot {
            producers.save(&self.dir, offset)?;
        }
        sealed.into_iter().try_for_each(|base| self.seal(base))
    }

    /// Syncs only when a segment has been completed since the last time.
    pub fn sync_if_rolled(&self) -> io::Result<()> {
        let rolled = self.inner.lock().snapshot_due.is_some();
        if rolled { self.sync() } else { Ok(()) }
    }

    /// Writes the index of a complete, synced segment and closes its file.
    fn seal(&self, base_offset: i64) -> io::Result<()> {
        let found = {
            let mut inner = self.inner.lock();
            let segment = find_by_base(&mut inner.segments, base_offset);
            segment.and_then(|segment| match &segment.index {
                SegmentIndex::Memory(entries) => {
                    Some((segment.path.clone(), segment.summary(), entries.clone()))
                }
                SegmentIndex::Sealed => None,
            })
        };
        let Some((path, summary, entries)) = found else {
            return Ok(());
        };
        index::save(&path, summary, &entries)?;
        let mut inner = self.inner.lock();
        match find_by_base(&mut inner.segments, base_offset) {
            Some(segment) => {
                segment.index = SegmentIndex::Sealed;
                segment.file = None;
                Ok(())
            }
            None => crate::durable::remove_if_present(&index::index_path(&path)),
        }
    }

    /// Syncs and leaves the files so that the next start needs no scan.
    pub fn close(&self) -> io::Result<()> {
        self.sync()?;
        let mut inner = self.inner.lock();
        if inner.closed {
            return Ok(());
        }
        self.mend_tail(&mut inner)?;
        let end = inner.end_offset();
        let active = inner.active();
        if let SegmentIndex::Memory(entries) = &active.index {
            active.handle()?.sync_data()?;
            index::save(&active.path, active.summary(), entries)?;
        }
        inner.producers.save(&self.dir, end)?;
        inner.closed = true;
        Ok(())
    }

    /// Refuses all further use; the caller removes the folder.
    pub fn mark_closed(&self) {
        self.inner.lock().closed = true;
        for waiter in self.waiters.lock().iter() {
            waiter.notify_one();
        }
    }

    /// Moves the log start forward and deletes segments wholly before it.
    /// Returns the log start after it, or `None` beyond the end of the log.
    pub fn delete_before(&self, offset: i64) -> io::Result<Option<i64>> {
        let mut inner = self.inner.lock();
        if offset > self.high_watermark() || offset < 0 {
            return Ok(None);
        }
        if offset > inner.log_start && !inner.closed {
            log_start::save(&self.dir, offset)?;
            self.move_log_start(&mut inner, offset);
        }
        Ok(Some(inner.log_start))
    }

    fn move_log_start(&self, inner: &mut Inner, offset: i64) {
        inner.log_start = inner.log_start.max(offset);
        self.log_start.store(inner.log_start, Ordering::Release);
        while inner.segments.len() > 1 && inner.segments[0].end_offset <= inner.log_start {
            if let Some(segment) = inner.segments.pop_front() {
                self.size_bytes.fetch_sub(segment.size, Ordering::Relaxed);
                if let Err(error) = segment.delete() {
                    warn!(path = %segment.path.display(), %error, "deleting a segment failed");
                }
            }
        }
    }
}

fn find_by_base(segments: &mut VecDeque<Segment>, base_offset: i64) -> Option<&mut Segment> {
    segments
        .iter_mut()
        .find(|segment| segment.base_offset == base_offset)
}

/// Ends a fetch's interest in a partition when it goes.
pub struct Watch {
    partition: Arc<Partition>,
    waiter: Arc<Notify>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut waiters = self.partition.waiters.lock();
        if let Some(at) = waiters
            .iter()
            .position(|other| Arc::ptr_eq(other, &self.waiter))
        {
            waiters.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod tests;
