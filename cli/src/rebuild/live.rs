//! What the live owners of a partition have written, read alongside the source: by its delta batches, in order.
//!
//! It says two things that the source does not. What the log time was when a record was judged, by which a record whose
//! time ran ahead of the clock is known; and what became of events that retention has removed from the source since.

use std::collections::VecDeque;

use streamgauge_analytics::view::{ChainRow, Judged};
use streamgauge_chain::delta;
use streamgauge_consumer::core::{dedupe::Horizon, partition::Checkpoint};
use streamgauge_kafka::{KafkaError, LogReader};
use streamgauge_proto::v1::DeltaBatch;

/// Up to where a log time holds.
#[derive(Clone, Copy, Debug)]
struct Mark {
    to: i64,
    log_time_us: i64,
}

/// One partition's batches, as far as they were read.
pub struct Live {
    row: ChainRow,
    /// The beginning of the log is gone: the chain is not known from its base on.
    pub is_cut: bool,
    marks: VecDeque<Mark>,
}

impl Live {
    /// Nothing read yet of a partition of `metrics-data` that begins at `low`.
    pub fn new(partition: i32, low: i64) -> Self {
        let row = ChainRow {
            delta_position: low,
            gap: low > 0,
            ..ChainRow::new(partition)
        };
        Self {
            row,
            is_cut: low > 0,
            marks: VecDeque::new(),
        }
    }

    /// The source offset up to which batches were read.
    pub fn head(&self) -> i64 {
        self.row.ledger.head()
    }

    /// Reads at most `most` records below `end`; returns the batches that count, and whether there is more.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn read(
        &mut self,
        reader: &LogReader,
        topic: &str,
        end: i64,
        most: u32,
    ) -> Result<(Vec<DeltaBatch>, bool), KafkaError> {
        let from = self.row.delta_position;
        let to = end.min(from.saturating_add(i64::from(most)));
        let mut records: Vec<(i64, Vec<u8>)> = Vec::new();
        reader
            .read_range(topic, self.row.partition, from, to, |chunk| {
                for record in chunk.iter() {
                    let payload = record.payload.unwrap_or_default().to_vec();
                    records.push((record.offset, payload));
                }
            })
            .await?;
        let valid = records
            .into_iter()
            .filter_map(|(offset, payload)| self.take(offset, &payload))
            .collect();
        self.row.delta_position = self.row.delta_position.max(to);
        Ok((valid, to < end))
    }

    fn take(&mut self, offset: i64, payload: &[u8]) -> Option<DeltaBatch> {
        let batch = delta::decode(payload).ok();
        let offered = batch
            .as_ref()
            .and_then(|batch| Some((delta::range(batch).ok()?, delta::outcomes(batch))));
        let judged = self.row.take(offset, offered);
        let batch = batch.filter(|_| matches!(judged, Judged::Valid { .. }))?;
        self.marks.push_back(Mark {
            to: batch.to,
            log_time_us: batch.log_time_us,
        });
        Some(batch)
    }

    /// The log time behind the batch that counted this offset; `None` when it was not read, or is gone. Offsets come in
    /// order, and what lies below is forgotten.
    pub fn log_time_us(&mut self, offset: i64) -> Option<i64> {
        while self.marks.front().is_some_and(|mark| mark.to <= offset) {
            self.marks.pop_front();
        }
        self.marks.front().map(|mark| mark.log_time_us)
    }
}

/// Where recomputing may begin when the source has lost its beginning: at the first end of a batch before which the
/// source still holds a whole horizon, so that nothing is counted that was a duplicate of an event that is gone.
#[derive(Clone, Copy, Debug)]
pub struct Boundary {
    /// The first offset that the source holds.
    low: i64,
    /// Log time there, at the latest.
    low_log_time_us: Option<i64>,
}

impl Boundary {
    pub const fn new(low: i64) -> Self {
        Self {
            low,
            low_log_time_us: None,
        }
    }

    /// Looks at the next batch that counts; tells from where to recompute once it is known.
    pub fn pass(&mut self, batch: &DeltaBatch, horizon_us: i64) -> Option<Checkpoint> {
        if batch.to <= self.low {
            return None;
        }
        let low_us = *self.low_log_time_us.get_or_insert(batch.log_time_us);
        let start_us = Horizon::new(horizon_us).start_us(batch.log_time_us);
        (start_us > low_us).then_some(Checkpoint {
            head: batch.to,
            delta_position: 0,
            log_time_us: batch.log_time_us,
            watermark_us: batch.watermark_us,
            reused_from: None,
            base: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(to: i64, log_time_us: i64) -> DeltaBatch {
        DeltaBatch {
            from: to - 10,
            to,
            log_time_us,
            ..DeltaBatch::default()
        }
    }

    #[test]
    fn recomputing_begins_a_whole_horizon_behind_what_is_gone() {
        let mut boundary = Boundary::new(25);
        for (to, log_time_us) in [
            (10, 1_000),
            (20, 2_000),
            (30, 3_000),
            (40, 3_400),
            (50, 3_800),
        ] {
            assert!(
                boundary.pass(&batch(to, log_time_us), 800).is_none(),
                "{to}"
            );
        }
        let found = boundary.pass(&batch(60, 4_000), 800).expect("far enough");
        assert_eq!((found.head, found.log_time_us), (60, 4_000));
    }
}
