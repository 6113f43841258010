//! What the writer, the drain and everybody who appends share: which segments there are, and how full the spool is.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::{AppendError, ErrorKind, Observer, SpoolError};
use crate::files::Files;
use crate::position;
use crate::reader::Stretch;
use crate::segment::Name;

/// The bounds of a spool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Room on the disk, in bytes, segments that were put aside included.
    pub bytes_max: u64,
    /// A segment that holds so many bytes is closed.
    pub segment_bytes: u64,
    /// Most bytes that share one sync; one larger append is a group of its own.
    pub group_bytes_max: usize,
    /// Appends that may wait for the disk.
    pub queue_appends_max: usize,
}

/// How full a spool is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Confirmed records that are not acknowledged.
    pub records: u64,
    /// What its files take, segments that were put aside included.
    pub bytes: u64,
    /// The time of the oldest of the records.
    pub oldest_us: Option<i64>,
    /// Why the last append failed; none once one, or a probe of the disk, has succeeded again.
    pub failing: Option<String>,
}

/// An append that the disk refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which one since the start: no two are the same.
    pub number: u64,
    pub cause: String,
    /// What was to be written.
    pub bytes: usize,
}

/// What came in since the spool was opened, and what became of it:
/// `waiting_at_start + spooled == waiting + drained + lost + put_aside`.
///
/// The left side is counted where records come in, the right side where they go out, so that it tells of a record that
/// was dropped on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Records that earlier runs have left, those included of which the opening found that they are lost.
    pub waiting_at_start: u64,
    /// Records that were confirmed.
    pub spooled: u64,
    /// Records that are not acknowledged; all of a stretch are until the whole of it is.
    pub waiting: u64,
    /// Records that were delivered, as whoever drains says.
    pub drained: u64,
    /// Records that damage has made unreadable.
    pub lost: u64,
    /// Records that nobody takes; the files that hold them are kept.
    pub put_aside: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub name: Name,
    /// Confirmed bytes; of a segment from before the start, all.
    pub bytes: u64,
    /// The number behind its last record.
    pub end: u64,
    /// It holds what must not be thrown away.
    pub keep: bool,
}

pub struct Shared {
    pub dir: PathBuf,
    pub limits: Limits,
    pub files: Arc<dyn Files>,
    pub observer: Arc<dyn Observer>,
    state: Mutex<State>,
    /// Nothing is stored, nothing is on its way.
    idle: AtomicBool,
    /// The number behind the last confirmed record.
    pub confirmed: watch::Sender<u64>,
    /// Held by the one who probes the disk.
    pub probing: Mutex<()>,
    /// Held while the spool is open; the system takes it back from a process that is killed.
    _lock: File,
}

/// The order of locks: this one is held for no longer than it takes to look or to note.
pub struct State {
    pub segments: VecDeque<Segment>,
    /// The segment that is written to, by its id.
    pub active: Option<u64>,
    pub next_id: u64,
    pub next_seq: u64,
    /// Everything before is acknowledged.
    pub acknowledged: u64,
    /// Appends that are not decided yet.
    pub pending_appends: u64,
    pub reserved_bytes: u64,
    /// Segments that were put aside.
    pub kept_bytes: u64,
    pub oldest_us: Option<i64>,
    pub failing: Option<Refusal>,
    pub refusals: u64,
    /// All but what waits, which is told by the numbers.
    pub account: Account,
}

impl State {
    pub fn bytes(&self) -> u64 {
        let segments: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        segments + self.kept_bytes
    }

    pub fn is_idle(&self) -> bool {
        self.pending_appends == 0 && self.acknowledged >= self.next_seq
    }

    pub fn segment_mut(&mut self, id: u64) -> Option<&mut Segment> {
        self.segments
            .iter_mut()
            .find(|segment| segment.name.id == id)
    }
}

impl Shared {
    pub fn new(
        dir: PathBuf,
        limits: Limits,
        files: Arc<dyn Files>,
        observer: Arc<dyn Observer>,
        state: State,
        lock: File,
    ) -> Self {
        Self {
            dir,
            limits,
            files,
            observer,
            idle: AtomicBool::new(state.is_idle()),
            confirmed: watch::Sender::new(state.next_seq),
            probing: Mutex::new(()),
            state: Mutex::new(state),
            _lock: lock,
        }
    }

    /// Looks at the state, or changes it.
    pub fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        // Under the lock, so that the last change is the one that is seen.
        self.idle.store(state.is_idle(), Ordering::Release);
        result
    }

    pub fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Acquire)
    }

    pub fn depth(&self) -> Depth {
        let state = self.state.lock();
        Depth {
            records: state.next_seq.saturating_sub(state.acknowledged),
            bytes: state.bytes(),
            oldest_us: state
                .oldest_us
                .filter(|_| state.acknowledged < state.next_seq),
            failing: state.failing.as_ref().map(|refusal| refusal.cause.clone()),
        }
    }

    /// The account at this moment: all of its terms move under the one lock.
    pub fn account(&self) -> Account {
        let state = self.state.lock();
        Account {
            waiting: state.next_seq.saturating_sub(state.acknowledged),
            ..state.account
        }
    }

    /// Sets room aside. From now on the spool is not idle.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, AppendError> {
        let bytes_max = self.limits.bytes_max;
        let fits = self.with(|state| {
            let fits = state.bytes() + state.reserved_bytes + bytes <= bytes_max;
            if fits {
                state.reserved_bytes += bytes;
                state.pending_appends += 1;
            }
            fits
        });
        if !fits {
            self.observer.error(ErrorKind::Full);
            return Err(AppendError::Full { bytes_max });
        }
        Ok(Reservation {
            shared: self.clone(),
            bytes,
        })
    }

    /// Notes that the stretch was acknowledged, and how its records ended.
    pub fn acknowledge(&self, stretch: &Stretch, delivered: u64, put_aside: u64) {
        self.with(|state| {
            state.acknowledged = state.acknowledged.max(stretch.end());
            if let Some(last_us) = stretch.last_us() {
                state.oldest_us = Some(last_us);
            }
            state.account.drained += delivered;
            state.account.lost += stretch.lost();
            state.account.put_aside += put_aside;
        });
    }

    /// Writes down how far the spool is drained, then removes what nobody needs any more.
    pub fn persist(&self) -> Result<u64, SpoolError> {
        let seq = self.with(|state| state.acknowledged);
        if let Err(error) = self.write_position(seq) {
            self.observer.error(ErrorKind::Position);
            if !self.is_idle() {
                return Err(error);
            }
            // All is drained, and the disk may be full of just these files. With none left the position that stands
            // there is as good as a later one.
            self.clean(seq)?;
            self.write_position(seq)?;
        }
        self.clean(seq)?;
        Ok(seq)
    }

    fn write_position(&self, seq: u64) -> Result<(), SpoolError> {
        let path = self.dir.join(position::FILE);
        self.files
            .replace(&path, &position::encode(seq))
            .map_err(|source| SpoolError::io("write", path, source))
    }

    /// Has a segment put aside instead of removed, once it is drained, be it after a restart.
    pub fn keep(&self, wanted: impl Fn(&Segment) -> bool) {
        let marked = self.with(|state| {
            let mut segments = state.segments.iter_mut();
            let segment = segments.find(|segment| wanted(segment) && !segment.keep)?;
            segment.keep = true;
            Some(segment.name)
        });
        let Some(name) = marked else {
            return;
        };
        if let Err(error) = self.files.replace(&name.mark_path(&self.dir), b"") {
            self.observer.error(ErrorKind::File);
            tracing::error!(%error, "a file of the spool that is to be kept will not be, if the process ends now");
        }
    }

    /// Removes the segments whose records all lie before `position`, or puts them aside.
    pub fn clean(&self, position: u64) -> Result<(), SpoolError> {
        while let Some(segment) = self.with(|state| finished(state, position)) {
            let path = segment.name.path(&self.dir);
            let done = match segment.keep {
                false => self.files.remove(&path),
                true => self
                    .files
                    .rename(&path, &segment.name.kept_path(&self.dir))
                    .and_then(|()| self.files.remove(&segment.name.mark_path(&self.dir))),
            };
            done.map_err(|source| {
                self.observer.error(ErrorKind::File);
                SpoolError::io("remove", &path, source)
            })?;
            self.with(|state| {
                state
                    .segments
                    .retain(|known| known.name.id != segment.name.id);
                state.kept_bytes += if segment.keep { segment.bytes } else { 0 };
            });
        }
        Ok(())
    }
}

/// A segment of which every record is drained. The one that is written to is among them once the spool is idle: the
/// writer looks before each group whether its segment is still the one, and then nothing is in its hands.
fn finished(state: &mut State, position: u64) -> Option<Segment> {
    let idle = state.is_idle();
    let active = state.active;
    let done =
        |segment: &&Segment| segment.end <= position && (active != Some(segment.name.id) || idle);
    let segment = state.segments.iter().find(done).copied()?;
    if active == Some(segment.name.id) {
        state.active = None;
    }
    Some(segment)
}

/// Room for records that are on their way to the disk; given back when dropped.
pub struct Reservation {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.with(|state| {
            state.reserved_bytes -= self.bytes;
            state.pending_appends -= 1;
        });
    }
}
