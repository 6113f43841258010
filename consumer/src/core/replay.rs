//! Judging a partition's source again, from its beginning or from a head that is known, into batches that go nowhere
//! near `metrics-data`.
//!
//! It drives the owner's own state machine, [`Partition`], against a log that takes every batch at once and that nobody
//! else writes. So what it decides of an event is what a live owner decides, and stays so when the owner changes. Two
//! things a live owner knows that a source does not say: the wall clock, by which it refused records whose time ran ahead
//! of it, and how far the source was written when it lost its end. The first is handed in ([`Replay::log_time_was`]).

use std::sync::Arc;

use bytes::Bytes;

use super::partition::{
    Checkpoint, Effect, Input, Partition, Problem, Settings, SourceRecord, Taken, Ticket,
};

/// Why a replay cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The owner would have stood still.
    #[error("the source cannot be judged from here: {0}")]
    Stalled(Problem),
    /// The owner asked for something that a replay has no answer to: a defect.
    #[error("the replay of a partition got out of step at offset {position}")]
    OutOfStep {
        /// The source offset that was due.
        position: i64,
    },
}

/// One partition's replay.
#[derive(Debug)]
pub struct Replay {
    partition: Partition,
    settings: Arc<Settings>,
    /// Source records are delivered under this ticket, once there is one.
    source: Option<Ticket>,
    /// The question where the dedupe horizon starts, and from which log time on, in milliseconds.
    horizon: Option<(Ticket, Option<i64>)>,
    effects: Vec<Effect>,
    /// The owner's clock; it moves only to close a batch.
    now_ms: u64,
    /// Batches so far, those that are not taken yet too.
    written: i64,
    batches: Vec<Bytes>,
    stalled: Option<Problem>,
}

impl Replay {
    /// A replay from a head that is known, or from the beginning. [`Replay::start`] comes next.
    pub fn new(settings: Arc<Settings>, known: Option<Checkpoint>) -> Self {
        let mut replay = Self {
            partition: Partition::new(Arc::clone(&settings)),
            settings,
            source: None,
            horizon: None,
            effects: Vec::new(),
            now_ms: 0,
            written: 0,
            batches: Vec::new(),
            stalled: None,
        };
        // Nothing lies on the log that this owner sees; what came before the head is known.
        let known = known.map(|known| Checkpoint {
            delta_position: 0,
            base: None,
            ..known
        });
        let metadata = known.map(|known| (known.head, known.metadata()));
        let committed = metadata.as_ref().map(|(head, text)| (*head, text.as_str()));
        replay.tell(Input::Committed(committed));
        replay
    }

    /// From which log time on the source must be handed in, in milliseconds; `None` when from its beginning.
    pub fn horizon_ms(&self) -> Option<i64> {
        self.horizon.and_then(|(_, log_time_ms)| log_time_ms)
    }

    /// Starts: `offset` is the first one at or after [`Replay::horizon_ms`], `low` and `high` are the ends of the source.
    ///
    /// # Errors
    /// When the source ends before the head.
    pub fn start(&mut self, offset: Option<i64>, low: i64, high: i64) -> Result<(), ReplayError> {
        let Some((ticket, _)) = self.horizon.take() else {
            return Err(self.out_of_step());
        };
        self.tell(Input::HorizonStart {
            ticket,
            offset,
            low,
            high,
        });
        match self.source {
            Some(_) => Ok(()),
            None => Err(self.out_of_step()),
        }
    }

    /// The next source offset.
    pub fn position(&self) -> i64 {
        self.partition.progress().position
    }

    /// What the chain says of the log time behind the records that come next: whichever of them lies beyond was refused
    /// for its time. `None` when it does not say; then no record is.
    pub fn log_time_was(&mut self, log_time_us: Option<i64>) {
        let known = log_time_us.filter(|log_time_us| *log_time_us > 0);
        self.partition.see_log_time_was(known);
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// When the owner would have stood still, or a defect keeps it from taking the record.
    pub fn take(&mut self, record: &SourceRecord<'_>) -> Result<(), ReplayError> {
        let Some(ticket) = self.source else {
            return Err(self.out_of_step());
        };
        // A full batch is written, and then there is room.
        for _ in 0..2 {
            let taken = self
                .partition
                .take(ticket, record, self.now_ms, &mut self.effects);
            match taken {
                Taken::Done => {}
                // It lies in the dead-letter topic already, or did.
                Taken::DeadLetter(_) => self.tell(Input::DeadLettersAcknowledged {
                    incarnation: self.partition.incarnation(),
                    count: 1,
                    bytes: record.letter_bytes(),
                }),
                Taken::Full => {
                    self.tell(Input::Tick);
                    continue;
                }
            }
            if !self.effects.is_empty() {
                self.settle();
            }
            return self
                .stalled
                .take()
                .map_or(Ok(()), |problem| Err(ReplayError::Stalled(problem)));
        }
        Err(self.out_of_step())
    }

    /// Everything below `offset` was handed in: closes the batch that ends there.
    ///
    /// # Errors
    /// As [`Replay::take`].
    pub fn reach(&mut self, offset: i64) -> Result<(), ReplayError> {
        let Some(ticket) = self.source else {
            return Err(self.out_of_step());
        };
        self.tell(Input::EndOfPartition { ticket, offset });
        self.now_ms = self.now_ms.saturating_add(self.settings.batch_wait_ms + 1);
        self.tell(Input::Tick);
        let progress = self.partition.progress();
        if let Some(problem) = self.stalled.take() {
            return Err(ReplayError::Stalled(problem));
        }
        if progress.head < offset {
            return Err(self.out_of_step());
        }
        Ok(())
    }

    /// The batches since the last call, in order.
    pub fn batches(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.batches)
    }

    fn out_of_step(&mut self) -> ReplayError {
        match self.stalled.take() {
            Some(problem) => ReplayError::Stalled(problem),
            None => ReplayError::OutOfStep {
                position: self.position(),
            },
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        self.partition.handle(input, self.now_ms, &mut self.effects);
        self.settle();
    }

    /// Does what the owner asks for, until it asks for nothing more.
    fn settle(&mut self) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let answer = match effect {
            Effect::AskChain { ticket } => Input::ChainBounds {
                ticket,
                low: 0,
                high: self.written,
            },
            Effect::WriteBatch { ticket, batch, .. } => {
                self.batches.push(batch);
                self.written += 1;
                Input::BatchDelivered {
                    ticket,
                    offset: self.written - 1,
                }
            }
            Effect::FindHorizon {
                ticket,
                log_time_ms,
            } => {
                (self.horizon, self.source) = (Some((ticket, log_time_ms)), None);
                return;
            }
            Effect::SeekSource { ticket, .. } => {
                self.source = Some(ticket);
                return;
            }
            // What is gone is counted as missing, which is all that can be done.
            Effect::Problem(Problem::SourceTruncated { .. }) => return,
            Effect::Problem(problem) => {
                self.stalled = Some(problem);
                return;
            }
            Effect::ReadChain { .. }
            | Effect::Commit { .. }
            | Effect::Confirmed(_)
            | Effect::Stopped => return,
        };
        self.partition
            .handle(answer, self.now_ms, &mut self.effects);
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
