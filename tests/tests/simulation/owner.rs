//! One process that believes it owns the partition: the real state machine, and a shell that does
//! what it asks at its own pace.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use streamgauge_consumer::core::partition::{
    Effect, Input, Partition, Settings, SourceRecord, Taken, Ticket,
};

/// An answer that is under way, with what it borrows.
#[derive(Clone, Debug)]
pub enum Answer {
    Committed(Option<(i64, String)>),
    Bounds {
        ticket: Ticket,
        low: i64,
        high: i64,
    },
    Record {
        ticket: Ticket,
        offset: i64,
        payload: Bytes,
    },
    End {
        ticket: Ticket,
        next: i64,
    },
    Horizon {
        ticket: Ticket,
        offset: Option<i64>,
        low: i64,
        high: i64,
    },
    Dead(Letter),
    Delivered {
        ticket: Ticket,
        offset: i64,
    },
    Failed {
        ticket: Ticket,
    },
}

impl Answer {
    fn input(&self) -> Input<'_> {
        match self {
            Answer::Committed(found) => Input::Committed(
                found
                    .as_ref()
                    .map(|(offset, text)| (*offset, text.as_str())),
            ),
            Answer::Bounds { ticket, low, high } => Input::ChainBounds {
                ticket: *ticket,
                low: *low,
                high: *high,
            },
            Answer::Record {
                ticket,
                offset,
                payload,
            } => Input::ChainRecord {
                ticket: *ticket,
                offset: *offset,
                payload: Some(payload),
            },
            Answer::End { ticket, next } => Input::ChainEnd {
                ticket: *ticket,
                next: *next,
            },
            Answer::Horizon {
                ticket,
                offset,
                low,
                high,
            } => Input::HorizonStart {
                ticket: *ticket,
                offset: *offset,
                low: *low,
                high: *high,
            },
            Answer::Dead(letter) => Input::DeadLettersAcknowledged {
                incarnation: letter.incarnation,
                count: 1,
                bytes: letter.bytes,
            },
            Answer::Delivered { ticket, offset } => Input::BatchDelivered {
                ticket: *ticket,
                offset: *offset,
            },
            Answer::Failed { ticket } => Input::BatchFailed { ticket: *ticket },
        }
    }
}

/// A dead letter on its way.
#[derive(Clone, Copy, Debug)]
pub struct Letter {
    pub offset: i64,
    incarnation: u64,
    bytes: usize,
}

/// Where a shell is reading.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub ticket: Ticket,
    pub next: i64,
}

/// An owner and its shell.
#[derive(Debug)]
pub struct Owner {
    pub id: u64,
    partition: Partition,
    /// Effects to be carried out. Those on the chain, on the source and of the writer are
    /// independent of each other, as they are in the real shell.
    pub todo: VecDeque<Effect>,
    /// Answers from the chain's reader, in order.
    pub chain: VecDeque<Answer>,
    /// Every other answer, in any order.
    pub others: Vec<Answer>,
    /// Dead letters that are not written.
    pub dead: VecDeque<Letter>,
    pub reading: Option<Reading>,
    /// Where it read before the last seek; those records may still come.
    pub stale: Option<Reading>,
    pub revoked: bool,
    /// Its last read of the chain was a flawed one.
    pub flawed: bool,
    /// How far its clock is ahead of the world's.
    skew_ms: u64,
}

impl Owner {
    pub fn new(
        id: u64,
        settings: Arc<Settings>,
        committed: Option<(i64, String)>,
        skew_ms: u64,
    ) -> Self {
        Self {
            id,
            skew_ms,
            partition: Partition::new(settings),
            todo: VecDeque::new(),
            chain: VecDeque::new(),
            others: vec![Answer::Committed(committed)],
            dead: VecDeque::new(),
            reading: None,
            stale: None,
            revoked: false,
            flawed: false,
        }
    }

    pub fn state(&self) -> &'static str {
        self.partition.progress().state.as_str()
    }

    pub fn head(&self) -> i64 {
        self.partition.progress().head
    }

    pub fn delta_position(&self) -> i64 {
        self.partition.progress().delta_position
    }

    pub fn answer(&mut self, answer: &Answer, now_ms: u64) {
        self.handle(answer.input(), now_ms);
    }

    pub fn handle(&mut self, input: Input<'_>, now_ms: u64) {
        let mut effects = Vec::new();
        self.partition
            .handle(input, now_ms + self.skew_ms, &mut effects);
        self.todo.extend(effects);
    }

    /// Hands a record in; false when it has to come again.
    pub fn take(&mut self, ticket: Ticket, record: &SourceRecord<'_>, now_ms: u64) -> bool {
        let mut effects = Vec::new();
        let now_ms = now_ms + self.skew_ms;
        let taken = self.partition.take(ticket, record, now_ms, &mut effects);
        self.todo.extend(effects);
        match taken {
            Taken::Done => true,
            Taken::Full => false,
            Taken::DeadLetter(_) => {
                self.dead.push_back(Letter {
                    offset: record.offset,
                    incarnation: self.partition.incarnation(),
                    bytes: record.letter_bytes(),
                });
                true
            }
        }
    }
}
