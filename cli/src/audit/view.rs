//! What an audit tells, for machines.

use serde::Serialize;
use streamgauge_audit::{
    Break, PartitionFacts, Rebuilt, Shift, SpoolFacts, SpotLine, StoreSums, Terms, What,
};

use super::{range::RangeLine, report::Report};
use crate::times;

/// The document.
#[derive(Serialize)]
pub struct View {
    balanced: bool,
    partitions: Vec<PartitionView>,
    total: Terms,
    equation: String,
    breaks: Vec<BreakView>,
    producers: Vec<ProducerView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aggregates: Option<AggregatesView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<RangeView>,
    remarks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letters_not_compared: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_not_compared: Option<String>,
}

#[derive(Serialize)]
struct PartitionView {
    partition: i32,
    start: i64,
    end: i64,
    head: i64,
    #[serde(flatten)]
    terms: Terms,
    valid_batches: u64,
    void_batches: u64,
    stray_batches: u64,
    undecodable: u64,
    spots: Vec<SpotLine>,
    about_to_be_missing: i64,
    dead_letters_found: Option<u64>,
    store_head: Option<i64>,
    truncated: bool,
}

#[derive(Serialize)]
struct BreakView {
    partition: Option<i32>,
    by: i64,
    since: Option<i64>,
    what: What,
    message: String,
}

#[derive(Serialize)]
struct ProducerView {
    producer: String,
    received: u64,
    accepted: u64,
    rejected: u64,
    failed: u64,
    in_flight: u64,
    acknowledged_records: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    spool: Option<SpoolView>,
}

#[derive(Serialize)]
struct SpoolView {
    waiting_at_start: u64,
    spooled: u64,
    waiting: u64,
    drained: u64,
    lost: u64,
    put_aside: u64,
    acknowledged_records: u64,
}

#[derive(Serialize)]
struct AggregatesView {
    counted: u64,
    in_rows: Option<u64>,
    bucket_s: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rebuilt: Option<RebuiltView>,
}

#[derive(Serialize)]
struct RebuiltView {
    generation: u64,
    #[serde(flatten)]
    total: Shift,
    partitions: Vec<RebuiltPartitionView>,
}

#[derive(Serialize)]
struct RebuiltPartitionView {
    partition: i32,
    #[serde(flatten)]
    shift: Shift,
}

#[derive(Serialize)]
struct RangeView {
    from: Option<String>,
    to: Option<String>,
    total: Terms,
    partitions: Vec<RangeLine>,
}

impl From<&Break> for BreakView {
    fn from(found: &Break) -> Self {
        Self {
            partition: found.partition,
            by: found.by,
            since: found.since,
            what: found.what,
            message: found.to_string(),
        }
    }
}

impl From<&PartitionFacts> for PartitionView {
    fn from(facts: &PartitionFacts) -> Self {
        let ledger = &facts.fold.ledger;
        Self {
            partition: facts.partition,
            start: ledger.base(),
            end: facts.source_high,
            head: ledger.head(),
            terms: facts.terms(),
            valid_batches: ledger.valid_batches(),
            void_batches: ledger.void_batches(),
            stray_batches: facts.fold.notes.strays().count(),
            undecodable: facts.fold.notes.spots().undecodable.count(),
            spots: facts.fold.notes.lines(),
            about_to_be_missing: facts.about_to_be_missing(),
            dead_letters_found: facts.dead_letters,
            store_head: facts.store.as_ref().map(|store| store.head),
            truncated: facts.fold.truncated,
        }
    }
}

impl From<&SpoolFacts> for SpoolView {
    fn from(spool: &SpoolFacts) -> Self {
        Self {
            waiting_at_start: spool.waiting_at_start,
            spooled: spool.spooled,
            waiting: spool.waiting,
            drained: spool.drained,
            lost: spool.lost,
            put_aside: spool.put_aside,
            acknowledged_records: spool.acknowledged_records(),
        }
    }
}

impl From<&StoreSums> for AggregatesView {
    fn from(sums: &StoreSums) -> Self {
        Self {
            counted: sums.counted,
            in_rows: sums.whole.map(|whole| whole.events),
            bucket_s: sums.whole.map(|whole| whole.tier_s),
            rebuilt: sums.rebuilt.as_ref().map(RebuiltView::from),
        }
    }
}

impl From<&Rebuilt> for RebuiltView {
    fn from(rebuilt: &Rebuilt) -> Self {
        let parts = rebuilt.partitions.iter();
        let parts = parts.map(|(partition, shift)| RebuiltPartitionView {
            partition: *partition,
            shift: *shift,
        });
        Self {
            generation: rebuilt.generation,
            total: rebuilt.total(),
            partitions: parts.collect(),
        }
    }
}

/// The document of a report.
pub fn of(report: &Report) -> View {
    let breaks = report.breaks();
    let producers = report.said.producers.iter().map(|one| ProducerView {
        producer: one.name.clone(),
        received: one.received,
        accepted: one.accepted,
        rejected: one.rejected,
        failed: one.failed,
        in_flight: one.in_flight,
        acknowledged_records: one.acknowledged_records(),
        spool: one.spool.as_ref().map(SpoolView::from),
    });
    View {
        balanced: breaks.is_empty(),
        partitions: report.facts.iter().map(PartitionView::from).collect(),
        total: report.total(),
        equation: report.total().to_string(),
        breaks: breaks.iter().map(BreakView::from).collect(),
        producers: producers.collect(),
        aggregates: report.sums().map(AggregatesView::from),
        range: range(report),
        remarks: report.remarks(),
        dead_letters_not_compared: report.dead_letters_unknown.clone(),
        store_not_compared: report.store_not_compared().map(str::to_owned),
    }
}

fn range(report: &Report) -> Option<RangeView> {
    let range = report.range?;
    let partitions = report.range_lines();
    let mut total = Terms::default();
    partitions.iter().for_each(|line| total += line.terms);
    Some(RangeView {
        from: range.from_us.map(times::show),
        to: range.to_us.map(times::show),
        total,
        partitions,
    })
}
