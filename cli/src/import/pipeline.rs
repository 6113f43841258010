//! From the input to the producer: one thread reads and parses, batches wait in a short queue, and
//! as many are under way as there are connections.
//!
//! The journal is written ahead: before a record goes out, the journal knows that it may have.

use std::{collections::VecDeque, io, time::Duration};

use futures::{Stream, StreamExt, stream::FuturesUnordered};
use prost::Message;
use tokio::sync::mpsc;

use super::{
    identity::Identity,
    progress::Progress,
    records::{ReadOptions, Record, Records},
    source::Source,
};
use crate::{
    error::CliError,
    submit::{Batch, Delivered, Deliverer, Fate},
};

/// Most events of a bad kind that are shown with their line.
pub const SHOWN_MAX: usize = 10;

/// Batches read ahead of those under way.
const QUEUE_BATCHES: usize = 4;

/// Batches that may be settled beyond the first that is not; bounds the journal's entry.
const WINDOW_BATCHES: u64 = 64;

/// Records that one write of the journal reserves, in batches.
const RESERVE_BATCHES: u64 = 32;

/// How batches are made.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Most events of a batch.
    pub events_max: usize,
    /// Most bytes of a batch, encoded.
    pub bytes_max: usize,
    /// Whether batches are exempt from the accepted age.
    pub history: History,
}

/// Which events count as history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// All.
    All,
    /// None.
    Nothing,
    /// A batch with an event from before this time, microseconds since the Unix epoch.
    Before(i64),
}

/// What the reading thread hands over. An end is said, so that a thread that died is not taken for
/// one that is done.
#[derive(Debug)]
pub enum Read {
    /// The next records.
    Batch(ReadBatch),
    /// There are no more.
    End,
}

/// Records that are read, on their way.
#[derive(Debug)]
pub struct ReadBatch {
    from: u64,
    to: u64,
    lines: Vec<u64>,
    batch: Batch,
    unreadable: Vec<Note>,
}

/// A line and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// The line.
    pub line: u64,
    /// The reason.
    pub reason: String,
}

/// What became of the records.
#[derive(Debug, Default, serde::Serialize)]
pub struct Tally {
    /// Records that were read in this run.
    pub read: u64,
    /// Events acknowledged.
    pub accepted: u64,
    /// Events that the producer refused.
    pub rejected: u64,
    /// Events of requests that the producer refused as a whole; the events are not judged.
    pub refused: u64,
    /// Events without an acknowledgement.
    pub failed: u64,
    /// Records that are no event.
    pub unreadable: u64,
    /// Events that were submitted as history.
    pub historical: u64,
    /// Repeated submissions.
    pub retried: u64,
    /// The first of the unreadable and rejected ones.
    pub notes: Vec<Note>,
    /// Why the first event without an acknowledgement has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Why the producer refused a request as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Whether the producer ever answered.
    #[serde(skip)]
    pub answered: bool,
    /// Whether it was cut short with events under way.
    #[serde(skip)]
    pub aborted: bool,
    /// Whether all of the input was read and settled.
    pub complete: bool,
}

impl Tally {
    fn note(&mut self, line: u64, reason: String) {
        if self.notes.len() < SHOWN_MAX {
            self.notes.push(Note { line, reason });
        }
    }
}

/// Starts the reading thread.
pub fn read_batches(
    source: Source,
    options: ReadOptions,
    batching: BatchOptions,
    identity: Identity,
    skip: Progress,
) -> mpsc::Receiver<io::Result<Read>> {
    let (sender, receiver) = mpsc::channel(QUEUE_BATCHES);
    tokio::task::spawn_blocking(move || {
        let mut reader = Reader {
            batching,
            identity,
            skip,
            ordinal: 0,
            open: None,
        };
        let ended = source
            .reader()
            .map_err(io::Error::other)
            .and_then(|bytes| Records::new(bytes, options))
            .and_then(|records| reader.run(records, &sender));
        // The receiver may be gone: the import was cut off.
        let _ = sender.blocking_send(ended.map(|()| Read::End));
    });
    receiver
}

struct Reader {
    batching: BatchOptions,
    identity: Identity,
    skip: Progress,
    ordinal: u64,
    open: Option<(ReadBatch, usize)>,
}

type Sender = mpsc::Sender<io::Result<Read>>;

impl Reader {
    fn run(&mut self, records: Records, sender: &Sender) -> io::Result<()> {
        for record in records {
            let record = record?;
            let settled = self.skip.is_settled(self.ordinal);
            // A batch is a run of ordinals, so that it ends where settled ones begin.
            let full = self.open.as_ref().is_some_and(|(open, bytes)| {
                open.batch.events.len() >= self.batching.events_max
                    || open.unreadable.len() >= self.batching.events_max
                    || *bytes >= self.batching.bytes_max
            });
            if (settled || full) && !self.flush(sender) {
                return Ok(());
            }
            if !settled {
                self.add(record);
            }
            self.ordinal += 1;
        }
        self.flush(sender);
        Ok(())
    }

    fn add(&mut self, record: Record) {
        let ordinal = self.ordinal;
        let (open, bytes) = self
            .open
            .get_or_insert_with(|| (ReadBatch::starting_at(ordinal), 0));
        open.to = ordinal + 1;
        match record.event {
            Ok(mut event) => {
                if event.event_id.is_empty() {
                    event.event_id = self.identity.event_id(record.line);
                }
                open.batch.historical |= match self.batching.history {
                    History::All => true,
                    History::Nothing => false,
                    History::Before(time_us) => event
                        .occurred_at_us
                        .is_some_and(|occurred| occurred < time_us),
                };
                *bytes += event.encoded_len();
                open.lines.push(record.line);
                open.batch.events.push(event);
            }
            Err(reason) => open.unreadable.push(Note {
                line: record.line,
                reason,
            }),
        }
    }

    /// Sends the open batch; false when nobody takes it.
    fn flush(&mut self, sender: &Sender) -> bool {
        match self.open.take() {
            Some((batch, _)) => sender.blocking_send(Ok(Read::Batch(batch))).is_ok(),
            None => true,
        }
    }
}

impl ReadBatch {
    fn starting_at(ordinal: u64) -> Self {
        Self {
            from: ordinal,
            to: ordinal,
            lines: Vec::new(),
            batch: Batch::default(),
            unreadable: Vec::new(),
        }
    }
}

/// What the pipeline tells on its way.
pub trait Observer {
    /// Must be durable before it returns: these records may go out now.
    ///
    /// # Errors
    /// When it cannot be made durable; nothing goes out then.
    fn reserve(&mut self, progress: &Progress) -> Result<(), CliError>;

    /// Events settled since the last call.
    fn settled(&mut self, events: u64);
}

/// Delivers batches until the input ends, an event finds no acknowledgement, a request is refused,
/// or `signals` yields: what is under way then is waited for, unless it yields again.
///
/// # Errors
/// When the input cannot be read on, or the journal cannot be written.
pub async fn deliver(
    mut input: mpsc::Receiver<io::Result<Read>>,
    deliverers: Vec<Deliverer>,
    progress: &mut Progress,
    batch_events_max: usize,
    observer: &mut dyn Observer,
    signals: impl Stream<Item = ()>,
) -> Result<Tally, CliError> {
    let stride = batch_events_max as u64;
    let mut tally = Tally::default();
    let mut free: VecDeque<Deliverer> = deliverers.into();
    let mut under_way = FuturesUnordered::new();
    let mut stopped = false;
    let mut ended = false;
    let mut next = progress.done;
    let mut failure = None;
    let mut unsettled_to = 0;
    tokio::pin!(signals);
    // A signal may never come: it must not keep the loop alive.
    while !under_way.is_empty() || (!stopped && !ended) {
        let in_window = next.saturating_sub(progress.done) < WINDOW_BATCHES * stride;
        tokio::select! {
            Some(()) = signals.next() => {
                tally.aborted = std::mem::replace(&mut stopped, true);
                if tally.aborted {
                    break;
                }
            }
            batch = input.recv(), if !stopped && !ended && in_window && !free.is_empty() => {
                let batch = match batch {
                    Some(Ok(Read::Batch(batch))) => batch,
                    Some(Ok(Read::End)) => {
                        ended = true;
                        continue;
                    }
                    Some(Err(error)) => {
                        failure = Some(error);
                        stopped = true;
                        continue;
                    }
                    None => {
                        failure = Some(io::Error::other("the thread that reads it ended early"));
                        stopped = true;
                        continue;
                    }
                };
                if batch.to > progress.reserved {
                    progress.reserved = batch.to + RESERVE_BATCHES * stride;
                    observer.reserve(progress)?;
                }
                next = batch.to;
                if let Some(deliverer) = free.pop_front() {
                    under_way.push(deliver_one(deliverer, batch));
                }
            }
            Some((deliverer, batch, delivered)) = under_way.next(), if !under_way.is_empty() => {
                free.push_back(deliverer);
                match settle(&mut tally, &batch, delivered) {
                    Settled::Wholly { accepted } => {
                        progress.accepted += accepted;
                        progress.settle(batch.from, batch.to);
                    }
                    Settled::NotInTheLog => stopped = true,
                    Settled::Unknown => {
                        stopped = true;
                        unsettled_to = unsettled_to.max(batch.to);
                    }
                }
                observer.settled(batch.to - batch.from);
            }
        }
    }
    // What is still under way may be in the log: it stays reserved.
    if !tally.aborted {
        progress.release(unsettled_to);
    }
    tally.complete = ended && !tally.aborted && tally.failed + tally.refused == 0;
    match failure {
        Some(error) => Err(input_error(error)),
        None => Ok(tally),
    }
}

fn input_error(error: io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::InvalidInput => CliError::usage(error.to_string()),
        _ => CliError::file("read", "the input", error),
    }
}

async fn deliver_one(deliverer: Deliverer, batch: ReadBatch) -> (Deliverer, ReadBatch, Delivered) {
    let delivered = if batch.batch.events.is_empty() {
        Delivered {
            fates: Vec::new(),
            retried: 0,
            took: Duration::ZERO,
            answered: false,
        }
    } else {
        deliverer.deliver(&batch.batch).await
    };
    (deliverer, batch, delivered)
}

/// What is known of a batch when it is back.
enum Settled {
    /// Each event has its verdict.
    Wholly {
        /// So many were taken.
        accepted: u64,
    },
    /// Refused as a whole at the first attempt.
    NotInTheLog,
    /// Some events may be in the log.
    Unknown,
}

/// Counts a batch.
fn settle(tally: &mut Tally, batch: &ReadBatch, delivered: Delivered) -> Settled {
    tally.read += batch.to - batch.from;
    tally.retried += delivered.retried;
    tally.answered |= delivered.answered;
    tally.unreadable += batch.unreadable.len() as u64;
    if batch.batch.historical {
        tally.historical += batch.batch.events.len() as u64;
    }
    for note in &batch.unreadable {
        tally.note(note.line, note.reason.clone());
    }
    let mut accepted = 0;
    let (mut refused, mut failed) = (0, 0);
    for (line, fate) in batch.lines.iter().zip(delivered.fates) {
        match fate {
            Fate::Accepted => accepted += 1,
            Fate::Rejected(reason) => {
                tally.rejected += 1;
                tally.note(*line, format!("{} ({})", reason.message, reason.code));
            }
            Fate::Refused(reason) => {
                refused += 1;
                let reason = format!("{} ({})", reason.message, reason.code);
                tally.refusal.get_or_insert(reason);
            }
            Fate::Failed(reason) => {
                failed += 1;
                tally.failure.get_or_insert(reason.message);
            }
        }
    }
    tally.accepted += accepted;
    tally.refused += refused;
    tally.failed += failed;
    match refused + failed {
        0 => Settled::Wholly { accepted },
        all if all == refused && accepted == 0 && delivered.retried == 0 => Settled::NotInTheLog,
        _ => Settled::Unknown,
    }
}
