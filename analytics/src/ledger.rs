//! The ledger as an answer: how every source offset ended, per partition and in all.

use std::collections::BTreeSet;

use streamgauge_proto::v1;

use crate::view::{ChainRow, View};

/// The ledger of a view.
pub fn answer(view: &View) -> v1::LedgerResponse {
    // A partition may have a source and no batch yet: what lies in it is in flight, and must show.
    let known: BTreeSet<i32> = view
        .chains
        .keys()
        .chain(view.source_ends.keys())
        .copied()
        .collect();
    let partitions: Vec<v1::PartitionLedger> = known
        .into_iter()
        .map(|partition| {
            let row = view.chains.get(&partition).copied();
            let row = row.unwrap_or_else(|| ChainRow::new(partition));
            let source_end = view.source_ends.get(&partition).copied();
            line(&row, source_end.unwrap_or(-1))
        })
        .collect();
    let balanced = partitions.iter().all(|line| line.imbalance == 0);
    let total = partitions.iter().fold(none(), |sum, line| add(sum, line));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_without_a_batch_shows_what_is_in_flight() {
        let mut view = View::default();
        view.chains.insert(0, ChainRow::new(0));
        view.source_ends.extend([(0, 0), (3, 7)]);
        let ledger = answer(&view);
        let ends: Vec<_> = ledger
            .partitions
            .iter()
            .map(|line| (line.partition, line.head, line.source_end))
            .collect();
        assert_eq!(ends, [(0, 0, 0), (3, 0, 7)]);
        assert_eq!(ledger.total.map(|total| total.source_end), Some(7));
        assert!(ledger.balanced);
    }
}
