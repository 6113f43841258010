//! The ledger as an answer: how every source offset ended, per partition and in all.

use std::collections::BTreeSet;

use streamgauge_proto::v1;

use crate::view::{ChainRow, View};

/// The ledger of a view. A partition of which no batch came yet is in it as soon as its source is known: what waits there
/// is in flight.
pub fn answer(view: &View) -> v1::LedgerResponse {
    let known: BTreeSet<i32> = view
        .chains
        .keys()
        .chain(view.source_ends.keys())
        .copied()
        .collect();
    let line_of = |partition: i32| {
        let row = view.chains.get(&partition).copied();
        let end = view.source_ends.get(&partition).copied();
        line(
            &row.unwrap_or_else(|| ChainRow::new(partition)),
            end.unwrap_or(-1),
        )
    };
    let partitions: Vec<v1::PartitionLedger> = known.into_iter().map(line_of).collect();
    let balanced = partitions.iter().all(|line| line.imbalance == 0);
    let total = partitions.iter().fold(none(), add);
    v1::LedgerResponse {
        as_of_us: view.as_of_us,
        partitions,
        total: Some(total),
        balanced,
    }
}

/// The sum of the partitions' imbalances, signs aside.
pub fn imbalance(view: &View) -> i64 {
    let each = view.chains.values().map(|row| row.ledger.imbalance());
    each.fold(0i64, |sum, offsets| {
        sum.saturating_add(offsets.saturating_abs())
    })
}

fn none() -> v1::PartitionLedger {
    v1::PartitionLedger {
        partition: -1,
        ..v1::PartitionLedger::default()
    }
}

fn line(row: &ChainRow, source_end: i64) -> v1::PartitionLedger {
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
    }
}

/// Adds a partition to the total. An end that is not known makes the total's unknown too.
fn add(sum: v1::PartitionLedger, line: &v1::PartitionLedger) -> v1::PartitionLedger {
    let unknown = sum.source_end < 0 || line.source_end < 0;
    v1::PartitionLedger {
        partition: -1,
        base: sum.base + line.base,
        head: sum.head + line.head,
        source_end: if unknown {
            -1
        } else {
            sum.source_end + line.source_end
        },
        counted: sum.counted + line.counted,
        duplicate: sum.duplicate + line.duplicate,
        late: sum.late + line.late,
        dead_lettered: sum.dead_lettered + line.dead_lettered,
        missing: sum.missing + line.missing,
        no_record: sum.no_record + line.no_record,
        valid_batches: sum.valid_batches + line.valid_batches,
        void_batches: sum.void_batches + line.void_batches,
        delta_position: sum.delta_position + line.delta_position,
        imbalance: sum.imbalance.saturating_add(line.imbalance),
    }
}
