//! The writing side: appends wait together and share one sync.
//!
//! One thread owns the segment that is written to. It takes every append that waits, writes them as one, syncs once and
//! then confirms them all, so that the price of a sync is shared by whoever came while the last one went on.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::error::{AppendError, ErrorKind};
use crate::files::Appending;
use crate::frame::{self, BODY_BYTES_MAX, HEAD_BYTES};
use crate::segment::Name;
use crate::state::{Account, Depth, Refusal, Reservation, Segment, Shared};

/// Draws the salts of segments.
pub type Salts = Box<dyn FnMut() -> u64 + Send>;

/// Records that are appended together: all of them are confirmed, or none.
#[derive(Debug, Default)]
pub struct Records {
    buffer: Vec<u8>,
    records: Vec<(i64, Range<usize>)>,
}

impl Records {
    /// Adds a record of this time, whose bytes are written by the closure.
    pub fn push(&mut self, at_us: i64, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.buffer.len();
        write(&mut self.buffer);
        self.records.push((at_us, start..self.buffer.len()));
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn longest(&self) -> usize {
        let lengths = self.records.iter().map(|(_, range)| range.len());
        lengths.max().unwrap_or(0)
    }

    /// What they take on the disk.
    fn framed_bytes(&self) -> usize {
        self.buffer.len() + self.records.len() * HEAD_BYTES
    }
}

/// An append on its way to the disk.
pub struct Job {
    records: Records,
    confirm: oneshot::Sender<Result<(), AppendError>>,
    reservation: Reservation,
}

/// Takes records in. Clones share the spool; it closes when the last of them and the drain are gone.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    noted: Option<Vec<u8>>,
    queue: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends once it has decided what it holds, so that the folder is free when this returns; that takes
        // one sync at most, since whoever waited for an append held the spool.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A spool that may be closed.
#[derive(Clone)]
pub struct WeakSpool(Weak<Inner>);

impl WeakSpool {
    /// The spool, unless it is closed.
    pub fn upgrade(&self) -> Option<Spool> {
        self.0.upgrade().map(|inner| Spool { inner })
    }
}

impl Spool {
    /// For those who only watch, and must not keep the folder taken.
    pub fn downgrade(&self) -> WeakSpool {
        WeakSpool(Arc::downgrade(&self.inner))
    }

    pub(crate) fn start(
        shared: Arc<Shared>,
        noted: Option<Vec<u8>>,
        salts: Salts,
    ) -> io::Result<Self> {
        let (queue, jobs) = mpsc::channel(shared.limits.queue_appends_max.max(1));
        let writer = Writer {
            shared: shared.clone(),
            salts,
            active: None,
        };
        let thread = std::thread::Builder::new()
            .name(String::from("spool"))
            .spawn(move || writer.run(jobs))?;
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                noted,
                queue: Some(queue),
                thread: Some(thread),
            }),
        })
    }

    /// Appends the records; confirmed are they once this returns without an error. When it is dropped before, they may
    /// be in the spool or not.
    ///
    /// # Errors
    /// When there is no room or the disk refuses them. None of them was confirmed, and none will be given back, unless
    /// the process ends before the next append succeeds.
    pub async fn append(&self, records: Records) -> Result<(), AppendError> {
        let bytes = records.longest();
        if bytes > BODY_BYTES_MAX {
            return Err(AppendError::TooLong { bytes });
        }
        if records.is_empty() {
            return Ok(());
        }
        let reservation = self.inner.shared.reserve(records.framed_bytes() as u64)?;
        let (confirm, confirmed) = oneshot::channel();
        let job = Job {
            records,
            confirm,
            reservation,
        };
        let queue = self.inner.queue.as_ref().ok_or(AppendError::Closed)?;
        queue.send(job).await.map_err(|_| AppendError::Closed)?;
        confirmed.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Whether nothing is stored and nothing is being stored: only then may anything go past the spool without
    /// overtaking what is in it.
    pub fn is_idle(&self) -> bool {
        self.inner.shared.is_idle()
    }

    pub fn depth(&self) -> Depth {
        self.inner.shared.depth()
    }

    /// What came in since the spool was opened, and what became of it.
    pub fn account(&self) -> Account {
        self.inner.shared.account()
    }

    /// Appends that are not decided yet.
    pub fn waiting(&self) -> u64 {
        self.inner.shared.with(|state| state.pending_appends)
    }

    /// Room on the disk, in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.inner.shared.limits.bytes_max
    }

    /// While the last append failed: tries whether the disk takes as much again, without an append. If so, it is no
    /// longer failing. It waits for the disk.
    ///
    /// # Errors
    /// When the disk still refuses, or another probe waits for it.
    pub fn probe(&self) -> io::Result<()> {
        self.inner.shared.probe()
    }

    /// What the owner had noted in the folder when the spool was opened.
    pub fn noted(&self) -> Option<&[u8]> {
        self.inner.noted.as_deref()
    }

    /// Notes something in the folder, for the next start. It waits for the disk.
    ///
    /// # Errors
    /// When the disk refuses it; the note is then what it was.
    pub fn note(&self, content: &[u8]) -> io::Result<()> {
        let shared = &self.inner.shared;
        shared.files.replace(&shared.dir.join(NOTE), content)
    }
}

/// The name of the owner's note.
pub const NOTE: &str = "note";

/// The segment that is written to.
struct Active {
    id: u64,
    salt: u64,
    file: Box<dyn Appending>,
    /// Confirmed bytes.
    bytes: u64,
}

struct Writer {
    shared: Arc<Shared>,
    salts: Salts,
    active: Option<Active>,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let group = self.gather(first, &mut jobs);
            match self.write(&group) {
                Ok(()) => decide(group, Ok(())),
                Err(error) => {
                    self.failed(&error, framed_bytes(&group));
                    decide(group, Err(AppendError::Disk(Arc::new(error))));
                }
            }
        }
    }

    /// What waits, as far as it shares a sync.
    fn gather(&self, first: Job, jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
        let mut bytes = first.records.framed_bytes();
        let mut group = vec![first];
        while bytes < self.shared.limits.group_bytes_max
            && let Ok(job) = jobs.try_recv()
        {
            bytes += job.records.framed_bytes();
            group.push(job);
        }
        group
    }

    fn write(&mut self, group: &[Job]) -> io::Result<()> {
        let first_seq = self.ready()?;
        let Some(active) = &mut self.active else {
            return Err(io::Error::other("there is no segment"));
        };
        let records: u64 = group.iter().map(|job| job.records.len() as u64).sum();
        let mut buffer = Vec::with_capacity(framed_bytes(group));
        let mut seq = first_seq;
        for job in group {
            for (at_us, range) in &job.records.records {
                let body = &job.records.buffer[range.clone()];
                frame::write(&mut buffer, active.salt, seq, *at_us, body);
                seq += 1;
            }
        }
        active.file.append(&buffer)?;
        active.file.sync()?;
        active.bytes += buffer.len() as u64;
        let (id, bytes) = (active.id, active.bytes);
        let first_us = group[0].records.records.first().map(|(at_us, _)| *at_us);
        self.shared.with(|state| {
            if let Some(segment) = state.segment_mut(id) {
                (segment.bytes, segment.end) = (bytes, seq);
            }
            if state.acknowledged >= state.next_seq {
                state.oldest_us = first_us;
            }
            state.next_seq = seq;
            state.account.spooled += records;
            state.failing = None;
        });
        self.shared.confirmed.send_replace(seq);
        Ok(())
    }

    /// Sees to a segment that can be written to, and says which number comes next.
    fn ready(&mut self) -> io::Result<u64> {
        let segment_bytes = self.shared.limits.segment_bytes;
        let (current, next_seq, id) = self
            .shared
            .with(|state| (state.active, state.next_seq, state.next_id));
        if let Some(active) = &self.active
            && current == Some(active.id)
            && active.bytes < segment_bytes
        {
            return Ok(next_seq);
        }
        self.active = None;
        let name = Name {
            id,
            first: next_seq,
            salt: (self.salts)(),
        };
        let file = self.shared.files.create(&name.path(&self.shared.dir))?;
        self.shared.with(|state| {
            state.next_id = id + 1;
            state.active = Some(id);
            state.segments.push_back(Segment {
                name,
                bytes: 0,
                end: next_seq,
                keep: false,
            });
        });
        self.active = Some(Active {
            id,
            salt: name.salt,
            file,
            bytes: 0,
        });
        Ok(next_seq)
    }

    /// After a failed write or sync nobody knows what the file holds behind its confirmed part. It is cut off there as
    /// far as the disk lets us, and never written to again: the next segment's name says where it ends.
    fn failed(&mut self, error: &io::Error, bytes: usize) {
        tracing::error!(%error, dir = %self.shared.dir.display(), "the spool cannot be written");
        self.shared.observer.error(ErrorKind::Write);
        let active = self.active.take();
        let unused = self.shared.with(|state| {
            state.refusals += 1;
            state.failing = Some(Refusal {
                number: state.refusals,
                cause: error.to_string(),
                bytes,
            });
            state.active = None;
            // A file whose creation failed half way must not stand in the way of the next one.
            state.next_id += u64::from(active.is_none());
            let id = active.as_ref().map(|active| active.id)?;
            let place = state
                .segments
                .iter()
                .position(|segment| segment.name.id == id && segment.bytes == 0)?;
            state.segments.remove(place)
        });
        let tidied = match (unused, active) {
            (Some(segment), _) => {
                let path = segment.name.path(&self.shared.dir);
                self.shared.files.remove(&path)
            }
            (None, Some(mut active)) => active.file.truncate(active.bytes),
            (None, None) => Ok(()),
        };
        if let Err(error) = tidied {
            tracing::warn!(%error, "what a failed write left behind stays in the spool's folder");
        }
    }
}

fn framed_bytes(group: &[Job]) -> usize {
    group.iter().map(|job| job.records.framed_bytes()).sum()
}

/// Tells everybody, and gives their room back.
fn decide(group: Vec<Job>, result: Result<(), AppendError>) {
    for job in group {
        // Before the answer: whoever is told sees what is.
        drop(job.reservation);
        // Whoever waited may have gone.
        let _ = job.confirm.send(result.clone());
    }
}
