//! The answer: the lines, the equation, what does not add up, and what was not compared.

use streamgauge_audit::{Break, PartitionFacts, Rebuilt, StoreSums, Terms, whole};
use streamgauge_proto::v1;

use super::{
    Check,
    facts::{self, line, source_end},
};
use crate::view::{ChainRow, View};

/// What the command compares and this does not: whoever reads `balanced` must know.
const LEFT_OUT: &str = "not compared here, but by `streamgauge audit`: dead letters; what producers and their spools say; \
    batches that were cut off before they were applied (here they count as missing); the contents of batches that were \
    applied before this service started";

/// The ledger of a view, with what the store was last found to hold.
pub fn answer(view: &View, check: Option<&Check>) -> v1::LedgerResponse {
    let known = facts::facts(view);
    let partitions: Vec<v1::PartitionLedger> = known
        .iter()
        .map(|facts| {
            let partition = facts.partition;
            let row = view.chains.get(&partition).copied();
            let row = row.unwrap_or_else(|| ChainRow::new(partition));
            v1::PartitionLedger {
                stray_batches: facts.fold.notes.strays().count(),
                ..line(&row, source_end(view, partition))
            }
        })
        .collect();
    let found = breaks(&known, check);
    let mut terms = Terms::default();
    known.iter().for_each(|facts| terms += facts.terms());
    v1::LedgerResponse {
        as_of_us: view.as_of_us,
        total: Some(partitions.iter().fold(none(), add)),
        balanced: found.is_empty(),
        breaks: found.iter().map(broken).collect(),
        equation: terms.to_string(),
        remarks: remarks(view, &known, check),
        store: check.map(store_check),
        partitions,
    }
}

/// Everything that does not add up.
pub fn breaks(known: &[PartitionFacts], check: Option<&Check>) -> Vec<Break> {
    let followed = known.iter().flat_map(PartitionFacts::breaks);
    let stored = check.iter().flat_map(|check| check.breaks());
    followed.chain(stored).collect()
}

fn remarks(view: &View, known: &[PartitionFacts], check: Option<&Check>) -> Vec<String> {
    let mut remarks = Vec::new();
    for facts in known {
        let (partition, lost) = (facts.partition, facts.about_to_be_missing());
        if !view.source_ends.contains_key(&partition) {
            remarks.push(format!(
                "partition {partition}: the end of the source is not known now, so that nothing is said of what is in \
                 flight"
            ));
        }
        if lost > 0 {
            remarks.push(format!(
                "partition {partition}: retention removed {} events that no batch covers; they will be counted as \
                 missing",
                whole(lost)
            ));
        }
        let spots = facts.fold.notes.sentences().into_iter();
        remarks.extend(spots.map(|spot| format!("partition {partition}: {spot}")));
    }
    remarks.push(String::from(LEFT_OUT));
    match check {
        None => remarks.push(String::from("the store's rows were not read back yet")),
        Some(check) => remarks.extend(check.remarks()),
    }
    remarks
}

fn broken(found: &Break) -> v1::LedgerBreak {
    v1::LedgerBreak {
        partition: found.partition.unwrap_or(-1),
        by: found.by,
        since: found.since.unwrap_or(-1),
        what: String::from(found.what.as_str()),
        message: found.to_string(),
    }
}

fn store_check(check: &Check) -> v1::StoreCheck {
    let none = StoreSums::default();
    let sums = check.sums.as_ref().unwrap_or(&none);
    let pair = |pair: &streamgauge_audit::Pair| v1::StorePair {
        finer_s: pair.finer_s as u32,
        coarser_s: pair.coarser_s as u32,
        since_s: pair.since_s,
        finer: pair.finer,
        coarser: pair.coarser,
    };
    v1::StoreCheck {
        checked_at_us: check.checked_at_us,
        rows: check.rows.iter().map(|row| line(row, -1)).collect(),
        counted: sums.counted,
        whole: sums.whole.map(|whole| v1::StoreWhole {
            tier_s: whole.tier_s as u32,
            events: whole.events,
            complete: whole.is_complete,
        }),
        pairs: sums.pairs.iter().map(pair).collect(),
        rebuilt: sums.rebuilt.as_ref().map(store_rebuilt),
    }
}

fn store_rebuilt(rebuilt: &Rebuilt) -> v1::StoreRebuilt {
    let parts = rebuilt.partitions.iter();
    let parts = parts.map(|(partition, shift)| v1::RebuiltPartition {
        partition: *partition,
        counted: shift.counted,
        duplicate: shift.duplicate,
        late: shift.late,
        dead_lettered: shift.dead_lettered,
        missing: shift.missing,
        no_record: shift.no_record,
    });
    v1::StoreRebuilt {
        generation: rebuilt.generation,
        partitions: parts.collect(),
    }
}

fn none() -> v1::PartitionLedger {
    v1::PartitionLedger {
        partition: -1,
        ..v1::PartitionLedger::default()
    }
}

/// Adds a partition to the total. An end that is not known makes the total's unknown too.
fn add(sum: v1::PartitionLedger, line: &v1::PartitionLedger) -> v1::PartitionLedger {
    let known = |one: i64, other: i64| {
        if one < 0 || other < 0 {
            -1
        } else {
            one + other
        }
    };
    v1::PartitionLedger {
        partition: -1,
        base: sum.base + line.base,
        head: sum.head + line.head,
        source_end: known(sum.source_end, line.source_end),
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
        in_flight: known(sum.in_flight, line.in_flight),
        stray_batches: sum.stray_batches + line.stray_batches,
    }
}
