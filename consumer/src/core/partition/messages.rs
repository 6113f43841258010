//! What goes in and out of a partition's owner.

use bytes::Bytes;
use streamgauge_chain::{Outcomes, Range, TraceBytes};

use crate::core::reject::Reject;

/// Ties an answer to its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

impl Ticket {
    /// The one after this.
    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A record of the source.
#[derive(Clone, Copy, Debug)]
pub struct SourceRecord<'a> {
    /// Its offset.
    pub offset: i64,
    /// Its time, milliseconds since the Unix epoch; negative when it has none.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub payload: Option<&'a [u8]>,
    /// What a copy of its headers takes at most.
    pub headers_bytes: usize,
    /// The context of its `process` span, when it is sampled.
    pub trace: Option<TraceBytes>,
}

/// What a dead letter takes beside the record: where it came from and why, and its place in lists.
const LETTER_BYTES: usize = 1024;

impl SourceRecord<'_> {
    /// What a dead letter with this record takes.
    pub fn letter_bytes(&self) -> usize {
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        LETTER_BYTES + length(self.key) + length(self.payload) + self.headers_bytes
    }
}

/// What happened outside.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The group's committed offset and its metadata; starts the owner.
    Committed(Option<(i64, &'a str)>),
    /// Answers [`Effect::AskChain`]: the ends of the `metrics-data` partition.
    ChainBounds { ticket: Ticket, low: i64, high: i64 },
    /// Answers [`Effect::ReadChain`], record by record in order. A record may come again.
    ChainRecord {
        ticket: Ticket,
        offset: i64,
        payload: Option<&'a [u8]>,
    },
    /// Ends the answer: everything below `next` was handed over.
    ChainEnd { ticket: Ticket, next: i64 },
    /// Answers [`Effect::FindHorizon`]: the first source offset at or after the time (`None` when
    /// there is none), and the ends of the source partition.
    HorizonStart {
        ticket: Ticket,
        offset: Option<i64>,
        low: i64,
        high: i64,
    },
    /// Nothing is left to read at `offset`.
    EndOfPartition { ticket: Ticket, offset: i64 },
    /// The source does not hold the offset that was asked for; it begins at `low`.
    OutOfRange { ticket: Ticket, low: i64 },
    /// So many dead letters of this incarnation are safe, and what they took is free; see
    /// [`SourceRecord::letter_bytes`].
    DeadLettersAcknowledged {
        incarnation: u64,
        count: u64,
        bytes: usize,
    },
    /// The batch lies in the log. A negative offset says that its place is not known.
    BatchDelivered { ticket: Ticket, offset: i64 },
    /// The batch may or may not lie in the log, or may come to lie there later.
    BatchFailed { ticket: Ticket },
    /// The partition goes to another owner: close, confirm, commit, stop.
    Revoke,
    /// Time has passed.
    Tick,
}

/// What became of a record that was handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It has its outcome, or was not due (below the position, or from before a seek).
    Done,
    /// The open batch is full while another is in flight, or dead letters that are not acknowledged
    /// take all the room there is: hand the record in again later.
    Full,
    /// It must be written to the dead-letter topic and acknowledged to this incarnation.
    DeadLetter(Reject),
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask for the ends of the `metrics-data` partition.
    AskChain { ticket: Ticket },
    /// Read `metrics-data` in `[from, to)`.
    ReadChain { ticket: Ticket, from: i64, to: i64 },
    /// Find the first source offset at or after this log time (from the start when `None`).
    FindHorizon {
        ticket: Ticket,
        log_time_ms: Option<i64>,
    },
    /// Deliver source records from here on, under this ticket; nothing from before.
    SeekSource { ticket: Ticket, offset: i64 },
    /// Write the batch to `metrics-data`.
    WriteBatch {
        ticket: Ticket,
        batch: Bytes,
        records: u64,
        traces: Vec<TraceBytes>,
    },
    /// Commit the group's offset.
    Commit { offset: i64, metadata: String },
    /// A batch of this owner counts.
    Confirmed(Box<Report>),
    /// Something that people must hear of.
    Problem(Problem),
    /// The owner has stopped and will ask for nothing more.
    Stopped,
}

/// A batch that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it covers.
    pub range: Range,
    /// How it ended.
    pub outcomes: Outcomes,
    /// Counted events by type.
    pub types: Vec<(String, u64)>,
    /// Keys that were folded into `(other)`.
    pub folded_keys: u64,
    /// Its encoded size.
    pub bytes: usize,
    /// When its first record came, on the owner's clock.
    pub opened_at_ms: u64,
    /// When it was first written.
    pub written_at_ms: u64,
}

/// Something that people must hear of. None of these loses or doubles an event by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Another writer has moved the head; local state was dropped.
    #[error("another writer moved the head to {head}; starting again from there")]
    Overtaken {
        /// The head now.
        head: i64,
    },
    /// The source was truncated before it was read.
    #[error("the source was truncated: offsets [{from}, {to}) are counted as missing")]
    SourceTruncated {
        /// The first missing offset.
        from: i64,
        /// One past the last.
        to: i64,
    },
    /// `metrics-data` was truncated before it was read.
    #[error("metrics-data was truncated: offset {wanted} is needed, the log holds [{low}, {high})")]
    ChainTruncated {
        /// The offset needed.
        wanted: i64,
        /// The first offset there.
        low: i64,
        /// One past the last.
        high: i64,
    },
    /// A read of `metrics-data` has left something out and is done again.
    #[error("reading metrics-data left out offset {expected}; it is read again from there")]
    ChainIncomplete {
        /// The first offset that was left out.
        expected: i64,
    },
    /// Nothing says where the chain is: all that would tell is gone.
    #[error(
        "the head of the chain is not known: metrics-data holds no batch below {high} any more that tells, and the \
         group has no offset that does; stop the consumer, commit the head that analytics has for this partition as \
         the group's offset with the metadata {{\"v\":1,\"d\":{high},\"t\":0,\"w\":0}}, and start it again"
    )]
    HeadUnknown {
        /// The end of `metrics-data`.
        high: i64,
    },
    /// The source ends before the head: it was recreated, or has lost its end.
    #[error(
        "the source ends at {high}, before the head {head} of the chain: it was recreated, or has lost its end; \
         nothing is counted until it reaches the head, and what is written below goes to the dead-letter topic as \
         reused_offset then, from where it can be replayed"
    )]
    SourceTooShort {
        /// The head.
        head: i64,
        /// The end of the source.
        high: i64,
    },
    /// The source has grown over offsets that were accounted for before it lost its end.
    #[error(
        "the source lost its end: what was written to the offsets [{from}, {to}) since goes to the dead-letter topic \
         as reused_offset; replay it from there"
    )]
    OffsetsReused {
        /// The first of them.
        from: i64,
        /// One past the last.
        to: i64,
    },
    /// A record on `metrics-data` is not a batch.
    #[error("the record at offset {offset} of metrics-data is not a batch: {cause}")]
    NotABatch {
        /// Its offset.
        offset: i64,
        /// What is wrong with it.
        cause: String,
    },
    /// A batch whose outcomes do not add up was not written: a defect.
    #[error("a batch over [{from}, {to}) accounts for {sum} offsets; it was dropped")]
    Unbalanced {
        /// First offset.
        from: i64,
        /// One past the last.
        to: i64,
        /// What the outcomes add up to.
        sum: u64,
    },
}

impl Problem {
    /// The label of the problem in metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Problem::Overtaken { .. } => "overtaken",
            Problem::SourceTruncated { .. } => "source_truncated",
            Problem::ChainTruncated { .. } => "chain_truncated",
            Problem::ChainIncomplete { .. } => "chain_incomplete",
            Problem::HeadUnknown { .. } => "head_unknown",
            Problem::SourceTooShort { .. } => "source_too_short",
            Problem::OffsetsReused { .. } => "offsets_reused",
            Problem::NotABatch { .. } => "not_a_batch",
            Problem::Unbalanced { .. } => "unbalanced",
        }
    }
}

/// The owner's state, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateName {
    /// Finding the head.
    Recovering,
    /// Rebuilding the dedupe set.
    Rebuilding,
    /// Waiting for a source that ends before the head, or for a head that nothing tells.
    Stalled,
    /// Reading.
    Running,
    /// Reading waits for a batch to be confirmed, or for dead letters to be acknowledged.
    Backpressure,
    /// Given up.
    Stopped,
}

impl StateName {
    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            StateName::Recovering => "recovering",
            StateName::Rebuilding => "rebuilding",
            StateName::Stalled => "stalled",
            StateName::Running => "running",
            StateName::Backpressure => "backpressure",
            StateName::Stopped => "stopped",
        }
    }
}

/// Where an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its state.
    pub state: StateName,
    /// `to` of the last batch that counts.
    pub head: i64,
    /// The next source offset.
    pub position: i64,
    /// The last committed offset.
    pub committed: Option<i64>,
    /// The next offset of `metrics-data`.
    pub delta_position: i64,
    /// Largest log time seen, microseconds.
    pub log_time_us: i64,
    /// Event-time watermark, microseconds; 0 when unknown.
    pub watermark_us: i64,
    /// Log time of the oldest record that was read and is not confirmed.
    pub oldest_unconfirmed_us: Option<i64>,
    /// Ids in the dedupe set.
    pub dedupe_ids: u64,
    /// The set's memory.
    pub dedupe_bytes: u64,
    /// Ids dropped before their time.
    pub dedupe_evicted: u64,
    /// Batches of any writer that were found void.
    pub void_batches: u64,
}
