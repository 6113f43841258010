//! What following the log tells of each partition, as the judge wants it.

use std::collections::BTreeSet;

use streamgauge_audit::{Fold, PartitionFacts};
use streamgauge_proto::v1;

use crate::view::{ChainRow, View};

/// Everything known of each partition. One of which no batch came yet is there as soon as its source is known: what waits
/// there is in flight.
pub fn facts(view: &View) -> Vec<PartitionFacts> {
    let known: BTreeSet<i32> = view
        .chains
        .keys()
        .chain(view.source_ends.keys())
        .copied()
        .collect();
    known
        .into_iter()
        .map(|partition| of(view, partition))
        .collect()
}

fn of(view: &View, partition: i32) -> PartitionFacts {
    let row = view.chains.get(&partition).copied();
    let row = row.unwrap_or_else(|| ChainRow::new(partition));
    let notes = view.notes.get(&partition).copied().unwrap_or_default();
    let head = row.ledger.head();
    let (source_low, source_high) = match view.source_ends.get(&partition) {
        // Only a head that was known before the end was asked for can prove that the source lacks something.
        Some(end) if end.head_before > end.high => (end.low, end.high),
        Some(end) => (end.low, end.high.max(head)),
        None => (head.min(row.ledger.base()), head),
    };
    PartitionFacts {
        partition,
        source_low,
        source_high,
        fold: Fold::of(row.ledger, notes),
        dead_letters: None,
        store: None,
    }
}

/// The end of a source partition; -1 when it is not known.
pub fn source_end(view: &View, partition: i32) -> i64 {
    view.source_ends.get(&partition).map_or(-1, |end| end.high)
}

/// A chain's row as the ledger's line.
pub fn line(row: &ChainRow, source_end: i64) -> v1::PartitionLedger {
    let (ledger, outcomes) = (&row.ledger, row.ledger.outcomes());
    v1::PartitionLedger {
        partition: row.partition,
        base: ledger.base(),
        head: ledger.head(),
        source_end,
        counted: outcomes.counted,
        duplicate: outcomes.duplicate,
        late: outcomes.late,
        dead_lettered: outcomes.dead_lettered,
        missing: outcomes.missing,
        no_record: outcomes.no_record,
        valid_batches: ledger.valid_batches(),
        void_batches: ledger.void_batches(),
        delta_position: row.delta_position,
        imbalance: ledger.imbalance(),
        in_flight: if source_end < 0 {
            -1
        } else {
            (source_end - ledger.head()).max(0)
        },
        stray_batches: 0,
    }
}
