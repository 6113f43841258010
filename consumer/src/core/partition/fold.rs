//! The fold of `metrics-data`: what the log says so far.

use streamgauge_chain::{Chain, DeltaError, Range, Step, delta};

use super::{Checkpoint, Effect, Problem};

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
}

impl Default for Fold {
    fn default() -> Self {
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
        }
    }
}

impl Fold {
    /// Starts from a state that is known.
    pub fn restore(&mut self, checkpoint: Checkpoint) {
        self.chain = Chain::at(checkpoint.head);
        self.next = checkpoint.delta_position;
        self.log_time_us = checkpoint.log_time_us;
        self.watermark_us = checkpoint.watermark_us;
        self.reused_from = checkpoint.reused_from;
    }

    /// The state as it is committed.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            head: self.chain.head(),
            delta_position: self.next,
            log_time_us: self.log_time_us,
            watermark_us: self.watermark_us,
            reused_from: self.reused_from,
        }
    }

    /// Whether it is to be read again what lies at `next`, because a read goes on or ends beyond.
    /// Nothing else than batches is ever written to `metrics-data`, so that its offsets have no
    /// gaps but those that retention leaves at its beginning.
    pub fn doubts(&mut self) -> bool {
        self.doubtful = self.doubted != Some(self.next);
        self.doubted = Some(self.next);
        self.doubtful
    }

    /// Folds a record in; returns the range of a valid batch. A record below `next` is in
    /// already. One that is not a batch counts for nobody.
    pub fn offer(&mut self, offset: i64, payload: Option<&[u8]>) -> Result<Option<Range>, Problem> {
        if offset < self.next || self.doubtful {
            return Ok(None);
        }
        let expected = self.next;
        if offset > expected && !self.truncated && self.doubts() {
            return Err(Problem::ChainIncomplete { expected });
        }
        self.next = offset + 1;
        let not_a_batch = |cause: DeltaError| Problem::NotABatch {
            offset,
            cause: cause.to_string(),
        };
        let batch = delta::decode(payload.unwrap_or_default()).map_err(not_a_batch)?;
        let range = delta::range(&batch).map_err(not_a_batch)?;
        match self.chain.step(Some(range), self.truncated) {
            Step::Valid { .. } => {
                self.resumed = true;
                self.log_time_us = self.log_time_us.max(batch.log_time_us);
                self.watermark_us = self.watermark_us.max(batch.watermark_us);
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
    pub fn confirm(&mut self, range: Range, offset: i64, log_time_us: i64, watermark_us: i64) {
        self.chain = Chain::at(range.to());
        self.next = offset + 1;
        self.log_time_us = self.log_time_us.max(log_time_us);
        self.watermark_us = self.watermark_us.max(watermark_us);
    }
}
