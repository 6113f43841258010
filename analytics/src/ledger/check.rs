//! Reading the store back: its chains against those in memory, and what its rows add up to against what was counted.
//!
//! Once in a while, and when an audit asks for it. The cost is bounded: one row per partition, the longest buckets of one
//! series, and the shorter ones of a stretch of time that ends now.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use streamgauge_audit::{Break, Fold, Notes, Pair, PartitionFacts, Stage, StoreSums, What, Whole};
use streamgauge_chain::canary;
use streamgauge_lifecycle::{SharedClock, Shutdown};
use tokio::sync::Notify;

use super::facts::{self, line};
use crate::{
    config::Config,
    metrics::AnalyticsMetrics,
    service::SharedView,
    store::{Segment, Slot, Store, StoreError, Sums, SumsOf, TIERS_S},
    view::{ChainRow, View},
};

/// The series that together hold every event.
const EVERY_EVENT: [&str; 2] = [canary::ALL, canary::SERIES];
/// Wait before rows and memory are read again, when a checkpoint came in between.
const AGAIN: Duration = Duration::from_millis(5);
/// Buckets so close to the end of their retention are left out.
const MARGIN_S: i64 = 120;
/// How far back buckets of each length are compared with those of the next, in seconds.
const BACK_S: [i64; 3] = [3_600, 2 * 86_400, 60 * 86_400];

/// What the store was found to hold.
#[derive(Clone, Debug)]
pub struct Check {
    /// When, microseconds.
    pub checked_at_us: i64,
    /// The chains.
    pub rows: Vec<ChainRow>,
    /// What the rows add up to; `None` when there is nothing to add up, or not all at one moment.
    pub sums: Option<StoreSums>,
    row_breaks: Vec<Break>,
    /// Why the sums were left out.
    left_out: Option<&'static str>,
}

impl Check {
    /// Everything that does not add up.
    pub fn breaks(&self) -> Vec<Break> {
        let sums = self.sums.iter().flat_map(StoreSums::breaks);
        self.row_breaks.iter().cloned().chain(sums).collect()
    }

    /// What is to be said of it.
    pub fn remarks(&self) -> Vec<String> {
        let left_out = self.left_out;
        let left_out =
            left_out.map(|reason| format!("the store's rows were not added up: {reason}"));
        let rebuilt = self.sums.as_ref().and_then(|sums| sums.rebuilt.as_ref());
        let rebuilt = rebuilt.filter(|rebuilt| rebuilt.is_different());
        let rebuilt = rebuilt.map(ToString::to_string);
        left_out.into_iter().chain(rebuilt).collect()
    }
}

/// Reads the store back.
pub struct Checker {
    store: Arc<dyn Store>,
    view: SharedView,
    clock: SharedClock,
    metrics: AnalyticsMetrics,
    config: Arc<Config>,
    overtaken: Arc<Notify>,
    last: ArcSwapOption<Check>,
}

impl Checker {
    /// Reads `store` back and holds it against `view`.
    pub fn new(
        store: Arc<dyn Store>,
        view: SharedView,
        clock: SharedClock,
        metrics: AnalyticsMetrics,
        config: Arc<Config>,
        overtaken: Arc<Notify>,
    ) -> Self {
        Self {
            store,
            view,
            clock,
            metrics,
            config,
            overtaken,
            last: ArcSwapOption::empty(),
        }
    }

    /// What was found last.
    pub fn last(&self) -> Option<Arc<Check>> {
        self.last.load_full()
    }

    /// Looks until the shutdown.
    pub async fn run(&self, shutdown: Shutdown) {
        let period = Duration::from_millis(self.config.ledger.check_interval_ms.max(10));
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = Vec::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.triggered() => return,
            }
            let looked = tokio::select! {
                looked = self.look() => looked,
                () = shutdown.triggered() => return,
            };
            if let Err(error) = looked {
                tracing::debug!(%error, "the store is read back later");
                self.metrics.core.error("ledger", "store");
            }
            self.tell(&mut known);
        }
    }

    /// Logs what is newly broken, and shows all of it as metrics.
    fn tell(&self, known: &mut Vec<Break>) {
        let Some(view) = self.view.load_full() else {
            return;
        };
        let last = self.last();
        let found = super::answer::breaks(&facts::facts(&view), last.as_deref());
        for fresh in found.iter().filter(|one| !known.contains(one)) {
            tracing::error!(what = fresh.what.as_str(), by = fresh.by, "{fresh}");
        }
        for stage in [Stage::Log, Stage::Store] {
            let of_stage = found.iter().filter(|one| one.what.stage() == stage);
            let sum = of_stage.fold(0i64, |sum, one| sum.saturating_add(one.by.saturating_abs()));
            self.metrics.ledger_stage(stage, sum);
        }
        *known = found;
    }

    /// Looks once.
    ///
    /// # Errors
    /// Whatever the store says.
    pub async fn look(&self) -> Result<(), StoreError> {
        // Before the rows are read: what the store has accepted by then it must hold.
        let Some(before) = self.view.load_full() else {
            return Ok(());
        };
        let partitions: Vec<i32> = before.chains.keys().copied().collect();
        let rows = self.store.chains(&partitions).await?;
        let row_breaks = row_breaks(&before, &rows);
        let (sums, left_out) = match self.sums().await? {
            Ok(sums) => (Some(sums), None),
            Err(reason) => (None, Some(reason)),
        };
        self.last.store(Some(Arc::new(Check {
            checked_at_us: self.clock.now_us(),
            rows,
            sums,
            row_breaks,
            left_out,
        })));
        Ok(())
    }

    /// What the rows add up to, or why they were not added up.
    async fn sums(&self) -> Result<Result<StoreSums, &'static str>, StoreError> {
        let now_s = self.clock.now_us().div_euclid(1_000_000);
        let plan = Plan::new(&self.config.retention.floors(now_s), now_s);
        for _ in 0..self.config.query.attempts_max.max(1) {
            let asked = SumsOf {
                slot: self
                    .view
                    .load_full()
                    .map_or(Slot::default(), |view| view.slot),
                series: &EVERY_EVENT,
                segments: &plan.segments,
            };
            let sums = self.store.sums(asked).await?;
            let Some(view) = self.view.load_full() else {
                break;
            };
            if view.overlays_at(sums.generation).is_some() {
                let judged = plan.judge(&sums, &view);
                // No user's event was counted yet, or the series is not configured: then some are nowhere.
                let has_all = view.names.id(canary::ALL).is_some();
                return Ok(
                    judged.and_then(|found| match has_all || found.breaks().is_empty() {
                        true => Ok(found),
                        false => Err("there is no series `all`"),
                    }),
                );
            }
            self.overtaken.notify_one();
            tokio::time::sleep(AGAIN).await;
        }
        Ok(Err("checkpoints came faster than they could be read"))
    }
}

/// Rows that are not as they were written. A row that is further on is another instance's, or came after the view.
fn row_breaks(view: &View, rows: &[ChainRow]) -> Vec<Break> {
    let mut breaks = Vec::new();
    for (partition, kept) in &view.chains {
        let Some(row) = rows.iter().find(|row| row.partition == *partition) else {
            if kept.delta_position > 0 {
                let ledger = &kept.ledger;
                let (by, since) = (ledger.head() - ledger.base(), ledger.base());
                breaks.push(Break::at(*partition, by, since, What::StoreRow));
            }
            continue;
        };
        if row.delta_position < kept.delta_position {
            let (by, since) = (
                kept.ledger.head() - row.ledger.head(),
                row.ledger.head().min(kept.ledger.head()),
            );
            breaks.push(Break::at(*partition, by, since, What::StoreRow));
        } else if row.delta_position == kept.delta_position && row.ledger != kept.ledger {
            breaks.extend(altered(kept, row));
        }
    }
    breaks
}

/// What is wrong with a row that stands where memory stands.
fn altered(kept: &ChainRow, row: &ChainRow) -> Vec<Break> {
    let mut fold = Fold::of(kept.ledger, Notes::default());
    let is_same_head = row.ledger.head() == kept.ledger.head();
    fold.at_store_head = is_same_head.then_some(kept.ledger);
    let facts = PartitionFacts {
        partition: kept.partition,
        source_low: kept.ledger.base(),
        source_high: kept.ledger.head(),
        fold,
        dead_letters: None,
        store: Some(line(row, -1)),
    };
    facts.breaks()
}

/// Which rows are added up.
struct Plan {
    segments: Vec<Segment>,
    whole_s: i64,
    is_complete: bool,
    /// Shorter and longer buckets since a second, in the order of the segments after the first.
    pairs: Vec<(i64, i64, i64)>,
}

impl Plan {
    /// All rows of the longest buckets that are kept for ever, or else of the longest; and the recent rows of each length
    /// against those of the next.
    fn new(floors: &[i64; 4], now_s: i64) -> Self {
        let for_ever = (0..TIERS_S.len())
            .rev()
            .find(|tier| floors[*tier] == i64::MIN);
        let whole_s = TIERS_S[for_ever.unwrap_or(TIERS_S.len() - 1)];
        let mut segments = vec![Segment {
            tier_s: whole_s,
            range: i64::MIN..i64::MAX,
        }];
        let mut pairs = Vec::new();
        for (finer, back_s) in BACK_S.into_iter().enumerate() {
            let (finer_s, coarser_s) = (TIERS_S[finer], TIERS_S[finer + 1]);
            let kept = floors[finer]
                .max(floors[finer + 1])
                .saturating_add(MARGIN_S);
            let since_s = kept.max(now_s - back_s);
            let since_s = since_s.div_euclid(coarser_s) * coarser_s + coarser_s;
            pairs.push((finer_s, coarser_s, since_s));
            segments.extend([finer_s, coarser_s].map(|tier_s| Segment {
                tier_s,
                range: since_s..i64::MAX,
            }));
        }
        Self {
            segments,
            whole_s,
            is_complete: for_ever.is_some(),
            pairs,
        }
    }

    fn judge(&self, sums: &Sums, view: &View) -> Result<StoreSums, &'static str> {
        // After a power cut the rows may be ahead of the chains, which are read from the log again.
        let is_behind = |(partition, position): (&i32, &i64)| {
            let row = view.chains.get(partition);
            row.map_or(0, |row| row.delta_position) < *position
        };
        if sums.positions.iter().any(is_behind) {
            return Err("the chains are still catching up with the rows");
        }
        let counted = view
            .chains
            .values()
            .map(|row| row.ledger.outcomes().counted);
        let mut events = sums.events.iter().copied();
        let whole = Whole {
            tier_s: self.whole_s,
            events: events.next().unwrap_or(0) + waiting(view, sums.generation),
            is_complete: self.is_complete,
        };
        let mut pairs = Vec::new();
        for (finer_s, coarser_s, since_s) in &self.pairs {
            pairs.push(Pair {
                finer_s: *finer_s,
                coarser_s: *coarser_s,
                since_s: *since_s,
                finer: events.next().unwrap_or(0),
                coarser: events.next().unwrap_or(0),
            });
        }
        Ok(StoreSums {
            counted: counted.sum(),
            rebuilt: sums.rebuilt.clone(),
            whole: Some(whole),
            pairs,
        })
    }
}

/// Events that no checkpoint holds yet.
fn waiting(view: &View, generation: i64) -> u64 {
    let ids = EVERY_EVENT.map(|name| view.names.id(name));
    let overlays = view.overlays_at(generation).unwrap_or_default();
    let cells = overlays
        .into_iter()
        .flat_map(|overlay| overlay.seconds.all_cells());
    let of_series = cells.filter(|(_, series, _)| ids.contains(&Some(*series)));
    of_series.map(|(_, _, cell)| cell.value.count).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use streamgauge_chain::{Ledger, Outcomes};

    use super::*;

    fn row(head: i64, counted: u64, position: i64) -> ChainRow {
        let outcomes = Outcomes {
            counted,
            ..Outcomes::default()
        };
        ChainRow {
            ledger: Ledger::restored(0, head, outcomes, 1, 0),
            delta_position: position,
            ..ChainRow::new(0)
        }
    }

    fn view(row: ChainRow) -> View {
        View {
            chains: BTreeMap::from([(0, row)]),
            ..View::default()
        }
    }

    #[test]
    fn a_row_that_is_as_it_was_written_or_further_on_is_right() {
        let kept = row(10, 10, 1);
        for stored in [kept, row(20, 20, 2)] {
            assert_eq!(row_breaks(&view(kept), &[stored]), []);
        }
        assert_eq!(row_breaks(&view(ChainRow::new(0)), &[]), []);
    }

    #[test]
    fn a_row_that_was_altered_is_named() {
        let kept = row(10, 10, 1);
        let cases = [
            (vec![row(13, 10, 1)], What::StoreImbalance, 3, 0),
            (vec![row(13, 13, 1)], What::StoreOffChain, 3, 10),
            (vec![row(10, 7, 1)], What::StoreImbalance, 3, 0),
            (vec![row(0, 0, 0)], What::StoreRow, 10, 0),
            (vec![], What::StoreRow, 10, 0),
        ];
        for (rows, what, by, since) in cases {
            let breaks = row_breaks(&view(kept), &rows);
            assert_eq!(breaks, [Break::at(0, by, since, what)], "{rows:?}");
        }
    }

    #[test]
    fn what_retention_may_have_taken_is_not_compared() {
        let now_s = 1_700_000_000;
        let floors = [now_s - 600, now_s - 86_400, i64::MIN, i64::MIN];
        let plan = Plan::new(&floors, now_s);
        assert_eq!((plan.whole_s, plan.is_complete), (86_400, true));
        for (finer_s, coarser_s, since_s) in &plan.pairs {
            assert_eq!(since_s % coarser_s, 0);
            let tier = TIERS_S
                .iter()
                .position(|tier| tier == finer_s)
                .expect("a tier");
            assert!(*since_s > floors[tier], "{finer_s}");
        }
        let plan = Plan::new(&floors.map(|floor| floor.max(now_s - 999_999)), now_s);
        assert!(!plan.is_complete);
    }
}
