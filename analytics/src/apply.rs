//! Applying what was read: judges records, moves the store, and only then the view.
//!
//! The store's compare-and-swap decides between instances. Losing it is no failure: the winner has written what this one
//! was about to write, for both fold the same log.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use streamgauge_audit::Met;
use streamgauge_chain::delta::{self, DeltaError};
use streamgauge_kafka::Chunk;
use streamgauge_proto::v1::DeltaBatch;

use crate::{
    metrics::{APPLIED, AnalyticsMetrics, BatchVerdict},
    store::{Advance, DeltaRow, Store, StoreError, Swapped},
    view::{ChainRow, Fold, Judged, Offered, Published},
};

/// Records of one poll, by partition, in the order of the log.
#[derive(Debug, Default)]
pub struct Polled {
    partitions: BTreeMap<i32, Vec<Record>>,
    records: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Record {
    offset: i64,
    payload: Bytes,
    batch: Result<DeltaBatch, DeltaError>,
    judged: Judged,
}

impl Record {
    fn offered(&self) -> Offered {
        let batch = self.batch.as_ref().ok()?;
        Some((delta::range(batch).ok()?, delta::outcomes(batch)))
    }
}

impl Polled {
    /// Takes the records of a chunk in.
    pub fn push(&mut self, chunk: &Chunk) {
        for record in chunk.iter() {
            let payload = Bytes::copy_from_slice(record.payload.unwrap_or_default());
            self.push_record(chunk.partition(), record.offset, payload);
        }
    }

    /// Takes one record in; those of a partition come in the order of the log.
    pub fn push_record(&mut self, partition: i32, offset: i64, payload: Bytes) {
        self.bytes += payload.len();
        self.records += 1;
        let batch = delta::decode(&payload);
        self.partitions.entry(partition).or_default().push(Record {
            offset,
            payload,
            batch,
            judged: Judged::Held,
        });
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Their size.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }
}

/// What a poll came to.
#[derive(Debug, Default)]
pub struct Applied {
    /// Records that count, with their partition.
    valid: Vec<(i32, Record)>,
    /// What changed in the view.
    pub changed: Published,
    /// Partitions whose row moved.
    pub moved: Vec<i32>,
}

impl Applied {
    /// The batches that count: partition, offset, batch.
    pub fn batches(&self) -> impl Iterator<Item = (i32, i64, &DeltaBatch)> {
        self.valid.iter().filter_map(|(partition, record)| {
            Some((*partition, record.offset, record.batch.as_ref().ok()?))
        })
    }
}

/// A poll that is judged and stands to be written.
#[derive(Debug, Default)]
pub struct Prepared {
    partitions: Vec<Move>,
}

#[derive(Debug)]
struct Move {
    before: ChainRow,
    after: ChainRow,
    records: Vec<Record>,
    /// Whether the store has it.
    written: bool,
}

/// Why a poll was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store failed; nothing is known to have been written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store stands before what memory holds, or elsewhere: memory has to be built anew.
    #[error(
        "the store's chain of partition {partition}, at {found}, is not what memory's, at {expected}, leads to"
    )]
    Diverged {
        /// The partition.
        partition: i32,
        /// The store's position.
        found: i64,
        /// Memory's position.
        expected: i64,
    },
}

/// Judges the records of a poll by the rows in memory.
pub fn prepare(fold: &Fold, polled: Polled, now_us: i64, metrics: &AnalyticsMetrics) -> Prepared {
    let mut prepared = Prepared::default();
    for (partition, mut records) in polled.partitions {
        let before = fold.row(partition);
        let mut after = before;
        // What was judged already, before or in this very poll, comes again after a seek.
        records.retain_mut(|record| {
            let is_new = record.offset >= after.delta_position;
            if is_new {
                record.judged = take(&mut after, record, now_us);
                report(partition, record, metrics);
            }
            is_new
        });
        if after.delta_position > before.delta_position {
            prepared.partitions.push(Move {
                before,
                after,
                records,
                written: false,
            });
        }
    }
    prepared
}

fn take(row: &mut ChainRow, record: &Record, now_us: i64) -> Judged {
    let judged = row.take(record.offset, record.offered());
    if let (Judged::Valid { .. }, Ok(batch)) = (judged, &record.batch) {
        row.watermark_us = row.watermark_us.max(batch.watermark_us);
        row.as_of_us = now_us;
    }
    judged
}

/// Tells what was decided: the log line and the metric together.
fn report(partition: i32, record: &Record, metrics: &AnalyticsMetrics) {
    let offset = record.offset;
    let verdict = match (record.judged, &record.batch) {
        (Judged::Valid { hole: 0 }, _) => BatchVerdict::Valid,
        (Judged::Valid { hole }, _) => {
            tracing::error!(
                partition,
                offset,
                missing = hole,
                "retention removed delta batches before they were read; their events are counted as missing"
            );
            metrics.core.error("apply", "hole");
            metrics.missing.inc_by(hole);
            BatchVerdict::Valid
        }
        (Judged::Held, _) => BatchVerdict::Held,
        (Judged::Void, Ok(batch)) => {
            tracing::info!(
                partition,
                offset,
                from = batch.from,
                to = batch.to,
                writer = batch.writer,
                "void batch: it does not continue the chain"
            );
            BatchVerdict::Void
        }
        (Judged::Void, Err(error)) => {
            tracing::error!(partition, offset, %error, "a record is not a delta batch; it counts for nobody");
            metrics.core.error("apply", "undecodable");
            BatchVerdict::Undecodable
        }
    };
    metrics.batch(verdict, 1);
}

impl Prepared {
    /// The batches that count: partition, offset, batch.
    pub fn valid(&self) -> impl Iterator<Item = (i32, i64, &DeltaBatch)> {
        self.partitions.iter().flat_map(|one| {
            let valid = |record: &&Record| matches!(record.judged, Judged::Valid { .. });
            let batches = one.records.iter().filter(valid);
            batches.filter_map(move |record| {
                Some((
                    one.after.partition,
                    record.offset,
                    record.batch.as_ref().ok()?,
                ))
            })
        })
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Writes what the store has not. May be repeated until it succeeds, whatever became of the attempts before.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub async fn write(&mut self, store: &Arc<dyn Store>) -> Result<(), ApplyError> {
        loop {
            let moves: Vec<&Move> = self.partitions.iter().filter(|one| !one.written).collect();
            let advances: Vec<Advance> = moves.into_iter().map(Move::advance).collect();
            if advances.is_empty() || store.apply(&advances).await? == Swapped::Done {
                self.partitions
                    .iter_mut()
                    .for_each(|one| one.written = true);
                return Ok(());
            }
            self.reconcile(store).await?;
        }
    }

    /// Finds out how far the store is, and leaves to be written what it lacks.
    async fn reconcile(&mut self, store: &Arc<dyn Store>) -> Result<(), ApplyError> {
        let wanted: Vec<i32> = self
            .partitions
            .iter()
            .map(|one| one.after.partition)
            .collect();
        let found = store.chains(&wanted).await?;
        for one in self.partitions.iter_mut().filter(|one| !one.written) {
            let partition = one.after.partition;
            let row = found.iter().find(|row| row.partition == partition);
            let row = row.copied().unwrap_or_else(|| ChainRow::new(partition));
            if row.delta_position >= one.after.delta_position {
                // Retention may have outrun one of the two: then what memory would hold is not what the winner wrote.
                if !row.includes(&one.after) {
                    return Err(one.diverged(&row));
                }
                one.written = true;
            } else if row.delta_position >= one.before.delta_position {
                one.rebase(row)?;
            } else {
                return Err(one.diverged(&row));
            }
        }
        Ok(())
    }

    /// Applies to memory what the store has accepted.
    pub fn apply(self, fold: &mut Fold, metrics: &AnalyticsMetrics) -> Applied {
        let mut applied = Applied::default();
        for one in self.partitions {
            let partition = one.after.partition;
            one.note(fold);
            fold.set_row(one.after);
            applied.moved.push(partition);
            for record in one.records {
                if let (Judged::Valid { .. }, Ok(batch)) = (record.judged, &record.batch) {
                    fold.apply(partition, record.offset, batch, &mut applied.changed);
                    count_types(batch, metrics);
                    applied.valid.push((partition, record));
                }
            }
        }
        fold.fit();
        applied.changed.seconds.sort_unstable();
        applied.changed.seconds.dedup();
        applied
    }
}

impl Move {
    /// Notes what is worth a look beside the ledger.
    fn note(&self, fold: &mut Fold) {
        let mut head = self.before.ledger.head();
        let (notes, counted) = fold.notes(self.after.partition);
        for record in &self.records {
            let (Some((range, outcomes)), Ok(batch)) = (record.offered(), &record.batch) else {
                notes.undecodable(record.offset);
                continue;
            };
            let met = Met {
                at: record.offset,
                range,
                outcomes,
                payload: &record.payload,
            };
            match record.judged {
                Judged::Valid { .. } => {
                    head = head.max(range.to());
                    notes.valid(&met, batch, counted);
                }
                Judged::Void => notes.void(head, &met, counted),
                // What leads up to it is gone: nothing is known of it.
                Judged::Held => {}
            }
        }
    }

    fn advance(&self) -> Advance {
        let valid = |record: &&Record| {
            matches!(record.judged, Judged::Valid { .. })
                && record.offset >= self.before.delta_position
        };
        let row = |record: &Record| DeltaRow {
            offset: record.offset,
            payload: record.payload.clone(),
        };
        let deltas = self.records.iter().filter(valid).map(row).collect();
        Advance {
            before: self.before,
            after: self.after,
            deltas,
        }
    }

    /// The store holds the first of the records already: the move begins where it stands.
    fn rebase(&mut self, row: ChainRow) -> Result<(), ApplyError> {
        let mut after = row;
        for record in self
            .records
            .iter()
            .filter(|record| record.offset >= row.delta_position)
        {
            let judged = take(&mut after, record, self.after.as_of_us);
            // Whether a gap is still open is no matter where both agree on what counts.
            let valid = |judged| matches!(judged, Judged::Valid { .. });
            if valid(judged) != valid(record.judged) {
                return Err(self.diverged(&row));
            }
        }
        if after.ledger != self.after.ledger {
            return Err(self.diverged(&row));
        }
        self.before = row;
        Ok(())
    }

    fn diverged(&self, row: &ChainRow) -> ApplyError {
        ApplyError::Diverged {
            partition: self.after.partition,
            found: row.delta_position,
            expected: self.before.delta_position,
        }
    }
}

fn count_types(batch: &DeltaBatch, metrics: &AnalyticsMetrics) {
    for entry in &batch.types {
        let name = batch
            .strings
            .get(entry.event_type as usize)
            .map_or("", String::as_str);
        metrics.core.events(name, APPLIED, entry.count);
    }
}
