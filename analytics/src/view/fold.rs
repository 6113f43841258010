//! The writer's side of the view: folds batches in, one by one, and publishes what results.
//!
//! There is one writer. It must apply what the store has accepted and nothing else, and publish only after that.

use std::{collections::BTreeMap, sync::Arc};

use streamgauge_audit::{Counted, Notes};
use streamgauge_proto::v1::DeltaBatch;

use super::{
    Cell, CellValue, ChainRow, Frozen, Key, Keys, Overlay, SeriesId, SourceEnd, UserPage,
    UserPageKey, View,
};
use crate::store::Slot;

/// Bounds of the view.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Seconds that are kept in full, back from the clock.
    pub recent_seconds: i64,
    /// Most bytes of recent cells; the oldest minutes go first.
    pub recent_bytes_max: usize,
    /// Seconds after its end that a block waits for late events before it is built.
    pub settle_after_s: i64,
}

/// What one application changed, for whoever watches.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Seconds that changed, ascending.
    pub seconds: Vec<i64>,
    /// Parts of sketches that could not be read, and were left out.
    pub unreadable_sketches: u64,
}

/// What a tick did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settled {
    /// Parts of sketches that could not be read, and were left out.
    pub unreadable_sketches: u64,
}

/// The writer's state.
#[derive(Debug)]
pub struct Fold {
    view: View,
    keys: Keys,
    limits: Limits,
    recent_bytes: usize,
    /// Per partition, the position from which its records belong to the overlay.
    checkpointed: BTreeMap<i32, i64>,
    /// Per partition, the position that the rows had reached from which the recent seconds were loaded. A power cut may
    /// leave the chain behind them: what is read again must not count again.
    loaded: BTreeMap<i32, i64>,
    /// Per partition, the latest batches that count, at most so many.
    counted: BTreeMap<i32, Counted>,
    batches_known_max: usize,
}

impl Fold {
    /// An empty fold whose memory reaches back from `now_s`.
    pub fn new(
        limits: Limits,
        now_s: i64,
        generation: i64,
        checkpointed: BTreeMap<i32, i64>,
    ) -> Self {
        let keys = Keys::default();
        let view = View {
            keys: keys.sibling(),
            recent_from_s: recent_from(&limits, now_s),
            generation,
            ..View::default()
        };
        Self {
            view,
            keys,
            limits,
            recent_bytes: 0,
            loaded: checkpointed.clone(),
            checkpointed,
            counted: BTreeMap::new(),
            batches_known_max: 0,
        }
    }

    /// The fold over these rows of the store.
    #[must_use]
    pub fn over(mut self, slot: Slot) -> Self {
        self.view.slot = slot;
        self
    }

    /// Remembers at most so many batches of a partition to know a copy of one by.
    #[must_use]
    pub fn knowing(mut self, batches_max: usize) -> Self {
        self.batches_known_max = batches_max;
        self
    }

    /// From now on so many seconds are kept; those that are gone do not come back.
    pub fn keep_recent_s(&mut self, seconds: i64) {
        self.limits.recent_seconds = seconds;
    }

    /// The view as it is now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Size of the recent cells.
    pub fn recent_bytes(&self) -> usize {
        self.recent_bytes
    }

    /// Size of the keys.
    pub fn keys_bytes(&self) -> usize {
        self.keys.size_bytes()
    }

    /// The row of a partition.
    pub fn row(&self, partition: i32) -> ChainRow {
        self.view
            .chains
            .get(&partition)
            .copied()
            .unwrap_or_else(|| ChainRow::new(partition))
    }

    /// Replaces the row of a partition.
    pub fn set_row(&mut self, row: ChainRow) {
        self.view.as_of_us = self.view.as_of_us.max(row.as_of_us);
        self.view.chains.insert(row.partition, row);
    }

    /// The log was read to its end: what follows goes on from there.
    pub fn close_gap(&mut self, partition: i32) {
        if let Some(row) = self.view.chains.get_mut(&partition) {
            row.gap = false;
        }
    }

    /// Sets the ends of the source partitions.
    pub fn set_source_ends(&mut self, ends: BTreeMap<i32, SourceEnd>) {
        self.view.source_ends = ends;
    }

    /// What was met in a partition beside the ledger, and the batches to know a copy by.
    pub fn notes(&mut self, partition: i32) -> (&mut Notes, &mut Counted) {
        let known_max = self.batches_known_max;
        let counted = self.counted.entry(partition);
        (
            self.view.notes.entry(partition).or_default(),
            counted.or_insert_with(|| Counted::of(known_max)),
        )
    }

    /// Raises the watermark; it never goes back.
    pub fn raise_watermark(&mut self, watermark_us: i64) {
        self.view.watermark_us = self.view.watermark_us.max(watermark_us);
    }

    /// Adds a recent cell that the store holds already.
    pub fn load_recent(&mut self, series: &str, second: i64, key_text: &str, value: CellValue) {
        let Some(key) = self.keys.from_text(key_text) else {
            return;
        };
        let series = self.series_id(series);
        self.put_recent(second, series, &key, |_| {
            Arc::new(Cell {
                key: Arc::clone(&key),
                value,
            })
        });
    }

    /// Learns a series by name.
    pub fn series_id(&mut self, name: &str) -> SeriesId {
        match self.view.names.id(name) {
            Some(id) => id,
            None => Arc::make_mut(&mut self.view.names).push(name),
        }
    }

    /// Applies a valid batch that stood at `offset` of its partition's log.
    pub fn apply(
        &mut self,
        partition: i32,
        offset: i64,
        batch: &DeltaBatch,
        changed: &mut Published,
    ) {
        let pending = offset >= self.checkpointed(partition);
        let recent = offset >= self.loaded.get(&partition).copied().unwrap_or(0);
        let text = |index: &u32| {
            batch
                .strings
                .get(*index as usize)
                .map_or("", String::as_str)
        };
        let mut values: Vec<&str> = Vec::new();
        for delta in &batch.series {
            let series = self.series_id(&delta.series);
            for cell in &delta.cells {
                values.clear();
                values.extend(cell.key.iter().map(text));
                let key = self.keys.intern(&values);
                let value = CellValue::from(cell);
                let put = Put {
                    second: cell.bucket_s,
                    series,
                    key: &key,
                    value: &value,
                    pending,
                    recent,
                };
                changed.unreadable_sketches += self.put(put);
                changed.seconds.push(cell.bucket_s);
            }
        }
        if pending {
            self.view.fresh.add_users(user_pages(batch));
        }
    }

    fn put(&mut self, put: Put<'_>) -> u64 {
        let Put {
            second,
            series,
            key,
            value,
            pending,
            recent,
        } = put;
        let mut unreadable = 0;
        let mut add = |cell: Option<&Arc<Cell>>| {
            let mut sum = cell.map(|cell| cell.value.clone()).unwrap_or_default();
            sum.absorb(value);
            unreadable += sum.compact_when_long();
            Arc::new(Cell {
                key: Arc::clone(key),
                value: sum,
            })
        };
        // Most cells are as recent as they are pending: then one cell serves both.
        let mut overlaid: Option<(Option<Arc<Cell>>, Arc<Cell>)> = None;
        if pending {
            self.view.fresh.upsert(second, series, key, |before| {
                let after = add(before);
                overlaid = Some((before.cloned(), Arc::clone(&after)));
                after
            });
        }
        if recent && second >= self.view.recent_from_s {
            self.put_recent(second, series, key, |before| match &overlaid {
                Some((overlay_before, after)) if same(overlay_before.as_ref(), before) => {
                    Arc::clone(after)
                }
                _ => add(before),
            });
        }
        unreadable
    }

    fn put_recent(
        &mut self,
        second: i64,
        series: SeriesId,
        key: &Arc<Key>,
        change: impl FnOnce(Option<&Arc<Cell>>) -> Arc<Cell>,
    ) {
        if second < self.view.recent_from_s {
            return;
        }
        let grown = self.view.recent.upsert(second, series, key, change);
        self.recent_bytes = self.recent_bytes.saturating_add_signed(grown);
    }

    /// Lets time pass: builds blocks, and drops what is no longer recent or does not fit.
    pub fn tick(&mut self, now_s: i64) -> Settled {
        let until = now_s - self.limits.settle_after_s;
        let (grown, unreadable_sketches) = self.view.recent.settle(until);
        self.recent_bytes = self.recent_bytes.saturating_add_signed(grown);
        self.drop_before(recent_from(&self.limits, now_s));
        self.fit();
        self.keys.forget_unused();
        Settled {
            unreadable_sketches,
        }
    }

    /// Whether memory has reached its bound.
    pub fn is_full(&self) -> bool {
        self.recent_bytes > self.limits.recent_bytes_max
    }

    /// Drops what lies before `second`, so that the store answers for it.
    pub fn forget_before(&mut self, second: i64) {
        self.drop_before(second);
    }

    /// Drops the oldest minutes until memory is within its bound.
    pub fn fit(&mut self) {
        while self.is_full()
            && let Some(oldest) = self.view.recent.oldest_minute()
        {
            self.drop_before(oldest + 60);
        }
    }

    fn drop_before(&mut self, second: i64) {
        if second > self.view.recent_from_s {
            self.view.recent_from_s = second;
            let freed = self.view.recent.drop_before(second);
            self.recent_bytes = self.recent_bytes.saturating_sub(freed);
        }
    }

    /// Sets the overlay aside for a checkpoint named `next`, unless one is aside already: then that one is repeated.
    pub fn freeze(&mut self, next: i64) -> Option<Frozen> {
        if let Some(frozen) = &self.view.frozen {
            return Some(frozen.clone());
        }
        let moved = |(partition, row): (&i32, &ChainRow)| {
            self.checkpointed(*partition) < row.delta_position
        };
        if self.view.fresh.is_empty() && !self.view.chains.iter().any(moved) {
            return None;
        }
        for (partition, row) in &self.view.chains {
            let position = self.checkpointed.entry(*partition).or_default();
            *position = (*position).max(row.delta_position);
        }
        let frozen = Frozen {
            slot: self.view.slot,
            from: self.view.generation,
            to: next,
            overlay: Arc::new(std::mem::take(&mut self.view.fresh)),
            positions: self.checkpointed.clone(),
        };
        self.view.frozen = Some(frozen.clone());
        Some(frozen)
    }

    /// The checkpoint of the frozen overlay is in the store.
    pub fn thaw(&mut self) {
        if let Some(frozen) = self.view.frozen.take() {
            self.view.generation = frozen.to;
        }
        self.keys.forget_unused();
    }

    /// Another instance moved the checkpoint: the overlay is emptied, to be filled again by [`Fold::overlay`] with the
    /// records from `positions` on.
    pub fn adopt(&mut self, generation: i64, positions: BTreeMap<i32, i64>) {
        self.view.frozen = None;
        self.view.fresh = Overlay::default();
        self.view.generation = generation;
        self.checkpointed = positions;
    }

    /// Adds a batch that was applied before to the overlay alone.
    pub fn overlay(&mut self, partition: i32, offset: i64, batch: &DeltaBatch) {
        let recent_from = std::mem::replace(&mut self.view.recent_from_s, i64::MAX);
        self.apply(partition, offset, batch, &mut Published::default());
        self.view.recent_from_s = recent_from;
    }

    /// Position up to which the store's rows hold a partition.
    pub fn checkpointed(&self, partition: i32) -> i64 {
        self.checkpointed.get(&partition).copied().unwrap_or(0)
    }
}

struct Put<'a> {
    second: i64,
    series: SeriesId,
    key: &'a Arc<Key>,
    value: &'a CellValue,
    /// Whether it belongs to the overlay.
    pending: bool,
    /// Whether the recent seconds lack it.
    recent: bool,
}

fn same(one: Option<&Arc<Cell>>, other: Option<&Arc<Cell>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

fn recent_from(limits: &Limits, now_s: i64) -> i64 {
    (now_s - limits.recent_seconds).div_euclid(60) * 60
}

fn user_pages(batch: &DeltaBatch) -> Vec<UserPage> {
    if batch.user_pages.is_empty() {
        return Vec::new();
    }
    let strings: Vec<Arc<str>> = batch
        .strings
        .iter()
        .map(|text| Arc::from(text.as_str()))
        .collect();
    let empty: Arc<str> = Arc::from("");
    let text = |index: u32| strings.get(index as usize).unwrap_or(&empty).clone();
    let pages = batch.user_pages.iter().map(|page| UserPage {
        key: UserPageKey {
            user_id: text(page.user_id),
            page_url: text(page.page_url),
            event_type: text(page.event_type),
        },
        count: page.count,
        last_us: page.last_us,
    });
    pages.collect()
}
