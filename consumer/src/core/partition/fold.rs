//! The fold of `metrics-data`: what the log says so far.

use streamgauge_chain::{Chain, DeltaError, Range, Step, delta};

use super::{Base, Checkpoint, Effect, Place, Problem, history::History};
use crate::core::dedupe::Horizon;

/// The state of the chain after every record below `next`.
#[derive(Debug)]
pub(super) struct Fold {
    pub chain: Chain,
    /// The next offset of `metrics-data`.
    pub next: i64,
    /// Log time at the head.
    pub log_time_us: i64,
    /// Watermark at the head.
    pub watermark_us: i64,
    pub void: u64,
    /// Part of the chain is gone, and what is left was not read to its end yet.
    pub truncated: bool,
    /// Behind what is gone a batch was found that tells where the chain goes on.
    pub resumed: bool,
    /// The source ended here once, before the head: what it holds from here up to the head was
    /// written to offsets that are accounted for.
    pub reused_from: Option<i64>,
    /// The read that is under way has left something out.
    pub doubtful: bool,
    /// The place where the last doubtful read had its gap. A second read that has it too is right.
    doubted: Option<i64>,
    /// What was refused within the dedupe horizon.
    pub history: History,
    /// Batches below `next` that are read again for the history alone.
    past: Option<Past>,
}

/// An own batch that counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmed {
    pub range: Range,
    pub dead_lettered: u64,
    pub log_time_us: i64,
    pub watermark_us: i64,
}

/// The chain from a place before the one that is known, up to that one.
#[derive(Debug)]
struct Past {
    chain: Chain,
    next: i64,
    log_time_us: i64,
    /// A read has left something out for good.
    gap: bool,
}

impl Fold {
    /// Nothing is known yet.
    pub fn new(horizon: Horizon) -> Self {
        Self {
            chain: Chain::at(0),
            next: 0,
            log_time_us: 0,
            watermark_us: 0,
            void: 0,
            truncated: false,
            resumed: false,
            reused_from: None,
            doubtful: false,
            doubted: None,
            history: History::starting_at(horizon, Place::default()),
            past: None,
        }
    }

    /// Starts from a state that is known.
    pub fn restore(&mut self, checkpoint: Checkpoint) {
        self.chain = Chain::at(checkpoint.head);
        self.next = checkpoint.delta_position;
        self.log_time_us = checkpoint.log_time_us;
        self.watermark_us = checkpoint.watermark_us;
        self.reused_from = checkpoint.reused_from;
        let base = checkpoint.base.unwrap_or(Base {
            place: self.place(),
            refusing: false,
        });
        self.history.restart(base.place);
        self.past = base.refusing.then_some(Past {
            chain: Chain::at(base.place.head),
            next: base.place.delta_position,
            log_time_us: base.place.log_time_us,
            gap: false,
        });
        self.end_past_if_due();
    }

    /// Where the chain is now.
    fn place(&self) -> Place {
        Place {
            head: self.chain.head(),
            delta_position: self.next,
            log_time_us: self.log_time_us,
        }
    }

    /// The next offset of `metrics-data` that is to be read.
    pub fn due(&self) -> i64 {
        self.past.as_ref().map_or(self.next, |past| past.next)
    }

    /// The log begins at `low`: what lies before cannot be read again.
    pub fn see_low(&mut self, low: i64) {
        if self.past.as_ref().is_some_and(|past| past.next < low) {
            self.forget_past();
        }
    }

    /// What was refused before this place is judged by the log time here from now on.
    pub fn forget_past(&mut self) {
        self.past = None;
        self.history.restart(self.place());
    }

    /// A read has come to its end at `next`.
    pub fn read_to(&mut self, next: i64) {
        self.end_past();
        self.next = self.next.max(next);
    }

    /// The past has come to where the fold began. If it was not the chain that leads there it tells nothing.
    fn end_past(&mut self) {
        if self
            .past
            .take()
            .is_some_and(|past| past.chain.head() != self.chain.head())
        {
            self.history.restart(self.place());
        }
    }

    fn end_past_if_due(&mut self) {
        if self
            .past
            .as_ref()
            .is_some_and(|past| past.next >= self.next)
        {
            self.end_past();
        }
    }

    /// Takes in a batch from before the place that is known. What is no batch was told when it was read first.
    fn learn(&mut self, offset: i64, payload: Option<&[u8]>) {
        let Some(past) = &mut self.past else {
            return;
        };
        past.gap |= offset > past.next;
        past.next = offset + 1;
        if let Ok(batch) = delta::decode(payload.unwrap_or_default())
            && let Ok(range) = delta::range(&batch)
            && let Step::Valid { .. } = past.chain.step(Some(range), past.gap)
        {
            past.log_time_us = past.log_time_us.max(batch.log_time_us);
            let behind = Place {
                head: range.to(),
                delta_position: past.next,
                log_time_us: past.log_time_us,
            };
            let dead_lettered = delta::outcomes(&batch).dead_lettered;
            self.history.add(range, dead_lettered, behind);
        }
        self.end_past_if_due();
    }

    /// The state as it is committed.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            head: self.chain.head(),
            delta_position: self.next,
            log_time_us: self.log_time_us,
            watermark_us: self.watermark_us,
            reused_from: self.reused_from,
            base: Some(self.history.base()),
        }
    }

    /// Whether it is to be read again what is due, because a read goes on or ends beyond.
    /// Nothing else than batches is ever written to `metrics-data`, so that its offsets have no
    /// gaps but those that retention leaves at its beginning.
    pub fn doubts(&mut self) -> bool {
        let due = self.due();
        self.doubtful = self.doubted != Some(due);
        self.doubted = Some(due);
        self.doubtful
    }

    /// Folds a record in; returns the range of a valid batch. A record below `next` is in
    /// already. One that is not a batch counts for nobody.
    pub fn offer(&mut self, offset: i64, payload: Option<&[u8]>) -> Result<Option<Range>, Problem> {
        let expected = self.due();
        if offset < expected || self.doubtful {
            return Ok(None);
        }
        if offset > expected && !self.truncated && self.doubts() {
            return Err(Problem::ChainIncomplete { expected });
        }
        if offset < self.next {
            self.learn(offset, payload);
            return Ok(None);
        }
        self.end_past();
        self.next = offset + 1;
        let not_a_batch = |cause: DeltaError| Problem::NotABatch {
            offset,
            cause: cause.to_string(),
        };
        let batch = delta::decode(payload.unwrap_or_default()).map_err(not_a_batch)?;
        let range = delta::range(&batch).map_err(not_a_batch)?;
        match self.chain.step(Some(range), self.truncated) {
            Step::Valid { hole } => {
                self.resumed = true;
                self.log_time_us = self.log_time_us.max(batch.log_time_us);
                self.watermark_us = self.watermark_us.max(batch.watermark_us);
                if hole > 0 {
                    // What was refused in the hole is not known.
                    self.history.restart(Place {
                        head: range.from(),
                        ..self.place()
                    });
                }
                let dead_lettered = delta::outcomes(&batch).dead_lettered;
                self.history.add(range, dead_lettered, self.place());
                Ok(Some(range))
            }
            Step::Void | Step::Held => {
                self.void += 1;
                Ok(None)
            }
        }
    }

    /// As [`Fold::offer`], for a caller that reports problems as effects.
    pub fn offer_or_report(
        &mut self,
        offset: i64,
        payload: Option<&[u8]>,
        effects: &mut Vec<Effect>,
    ) -> Option<Range> {
        self.offer(offset, payload).unwrap_or_else(|problem| {
            effects.push(Effect::Problem(problem));
            None
        })
    }

    /// Takes over the own batch that was confirmed without reading it again.
    pub fn confirm(&mut self, batch: &Confirmed, offset: i64) {
        self.chain = Chain::at(batch.range.to());
        self.next = offset + 1;
        self.log_time_us = self.log_time_us.max(batch.log_time_us);
        self.watermark_us = self.watermark_us.max(batch.watermark_us);
        self.history
            .add(batch.range, batch.dead_lettered, self.place());
    }
}
