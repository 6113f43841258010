//! The fold of `metrics-data`: what the log says so far.

use streamgauge_chain::{Chain, DeltaError, Range, Verdict, delta};

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
    pub valid: u64,
    pub void: u64,
    /// Part of the chain is gone: a batch that starts beyond the head stands for the lost ones.
    pub truncated: bool,
}

impl Default for Fold {
    fn default() -> Self {
        Self {
            chain: Chain::at(0),
            next: 0,
            log_time_us: 0,
            watermark_us: 0,
            valid: 0,
            void: 0,
            truncated: false,
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
    }

    /// The state as it is committed.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            head: self.chain.head(),
            delta_position: self.next,
            log_time_us: self.log_time_us,
            watermark_us: self.watermark_us,
        }
    }

    /// Folds a record in; returns the range of a valid batch. A record below `next` is in
    /// already. One that is not a batch counts for nobody.
    pub fn offer(&mut self, offset: i64, payload: Option<&[u8]>) -> Result<Option<Range>, Problem> {
        if offset < self.next {
            return Ok(None);
        }
        self.next = offset + 1;
        let not_a_batch = |cause: DeltaError| Problem::NotABatch {
            offset,
            cause: cause.to_string(),
        };
        let batch = delta::decode(payload.unwrap_or_default()).map_err(not_a_batch)?;
        let range = delta::range(&batch).map_err(not_a_batch)?;
        // Writers never start beyond the head. When one seems to, the batches that led there are
        // among those that retention removed.
        if self.truncated && range.from() > self.chain.head() {
            self.chain = Chain::at(range.from());
        }
        match self.chain.offer(range) {
            Verdict::Valid => {
                self.valid += 1;
                self.log_time_us = self.log_time_us.max(batch.log_time_us);
                self.watermark_us = self.watermark_us.max(batch.watermark_us);
                Ok(Some(range))
            }
            Verdict::Void => {
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
        self.valid += 1;
    }
}
