//! Comparing two sets of rows, each as of one moment, row by row in bounded pages.
//!
//! The moments differ: the served rows go on being written. So each side is completed by the deltas that it does not hold
//! yet, up to a position that is the later of the two, and the completed rows are compared. Neither store promises the
//! order in which the other would return its rows, so that each side is read once in its own order and looked up in the
//! other by key.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::difference::{Difference, Figures, Totals, Where};
use crate::{
    checkpoint, load,
    store::{BucketRow, Slot, Snapshot, Store, StoreError},
    view::{CellValue, ChainRow, Fold, Limits, UserPage, UserPageKey},
};

/// Bounds of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Rows that are read at once.
    pub page_rows: u32,
    /// Most differences that are listed; all are counted.
    pub listed_max: usize,
}

/// How two sets of rows compare.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Per series and length of bucket.
    pub series: BTreeMap<(String, i64), Totals>,
    /// User pages.
    pub users: Totals,
    /// The first rows that differ, the finest buckets first.
    pub listed: Vec<Difference>,
}

impl Comparison {
    /// Over everything.
    pub fn total(&self) -> Totals {
        let all = self.series.values().chain([&self.users]);
        all.fold(Totals::default(), |sum, part| Totals {
            rows: sum.rows + part.rows,
            differing: sum.differing + part.differing,
            less: sum.less + part.less,
            served: sum.served.saturating_add(part.served),
            rebuilt: sum.rebuilt.saturating_add(part.rebuilt),
        })
    }

    fn bucket(
        &mut self,
        key: &BucketKey,
        served: Option<Figures>,
        rebuilt: Option<Figures>,
        bounds: Bounds,
    ) {
        let totals = self.series.entry((key.2.to_string(), key.0)).or_default();
        if totals.take(served.as_ref(), rebuilt.as_ref()) && self.listed.len() < bounds.listed_max {
            let at = Where::Bucket {
                tier_s: key.0,
                bucket_s: key.1,
                series: key.2.to_string(),
                key: key.3.to_string(),
            };
            self.listed.push(Difference {
                at,
                served,
                rebuilt,
            });
        }
    }

    fn user(
        &mut self,
        key: &UserPageKey,
        served: Option<Figures>,
        rebuilt: Option<Figures>,
        bounds: Bounds,
    ) {
        let differs = self.users.take(served.as_ref(), rebuilt.as_ref());
        if differs && self.listed.len() < bounds.listed_max {
            let at = Where::User {
                user_id: key.user_id.to_string(),
                page_url: key.page_url.to_string(),
                event_type: key.event_type.to_string(),
            };
            self.listed.push(Difference {
                at,
                served,
                rebuilt,
            });
        }
    }
}

type BucketKey = (i64, i64, Arc<str>, Arc<str>);

fn key_of(row: &BucketRow) -> BucketKey {
    let (series, key) = (Arc::clone(&row.series), Arc::clone(&row.key));
    (row.tier_s, row.bucket_s, series, key)
}

/// PostgreSQL's text holds no NUL: what stands for it is the same here.
fn user_key(key: &UserPageKey) -> UserPageKey {
    let text = |text: &Arc<str>| {
        if text.contains('\0') {
            Arc::from(text.replace('\0', "\u{fffd}"))
        } else {
            Arc::clone(text)
        }
    };
    UserPageKey {
        user_id: text(&key.user_id),
        page_url: text(&key.page_url),
        event_type: text(&key.event_type),
    }
}

/// A set of rows as of one moment, and what completes it.
pub(super) struct Side {
    snapshot: Box<dyn Snapshot>,
    buckets: HashMap<BucketKey, CellValue>,
    users: BTreeMap<UserPageKey, (u64, i64)>,
}

impl Side {
    pub fn new(snapshot: Box<dyn Snapshot>) -> Self {
        Self {
            snapshot,
            buckets: HashMap::new(),
            users: BTreeMap::new(),
        }
    }

    /// For each partition the later of the two positions.
    pub fn common_positions(one: &Self, other: &Self) -> BTreeMap<i32, i64> {
        let mut reached = one.snapshot.state().positions.clone();
        for (partition, position) in &other.snapshot.state().positions {
            let later = reached.entry(*partition).or_default();
            *later = (*later).max(*position);
        }
        reached
    }

    /// Adds the deltas between the rows and these positions.
    pub async fn complete(
        &mut self,
        store: &Arc<dyn Store>,
        reached: &BTreeMap<i32, i64>,
        floors: &[i64; 4],
    ) -> Result<(), StoreError> {
        let limits = Limits {
            recent_seconds: 0,
            recent_bytes_max: 0,
            settle_after_s: 0,
        };
        let mut fold = Fold::new(limits, 0, 0, BTreeMap::new()).over(Slot::default());
        for (partition, position) in reached {
            let held = self.snapshot.state().positions.get(partition).copied();
            let row = ChainRow {
                delta_position: *position,
                ..ChainRow::new(*partition)
            };
            load::replay(store, &row, held.unwrap_or(0), |offset, batch| {
                fold.overlay(*partition, offset, batch);
            })
            .await?;
        }
        let Some(frozen) = fold.freeze(1) else {
            return Ok(());
        };
        let rows = checkpoint::rows(&frozen, &fold.view().names, floors);
        let rows_of = rows.buckets.into_iter();
        self.buckets = rows_of.map(|row| (key_of(&row), row.value)).collect();
        for page in rows.users {
            let sum = self.users.entry(user_key(&page.key)).or_default();
            *sum = (sum.0.saturating_add(page.count), sum.1.max(page.last_us));
        }
        Ok(())
    }

    fn bucket(&self, key: &BucketKey, row: Option<&CellValue>) -> Option<Figures> {
        let more = self.buckets.get(key);
        if row.is_none() && more.is_none() {
            return None;
        }
        let mut value = CellValue::default();
        row.into_iter()
            .chain(more)
            .for_each(|part| value.absorb(part));
        Some(Figures::of(&value))
    }

    fn user(&self, key: &UserPageKey, row: Option<&UserPage>) -> Option<Figures> {
        let more = self.users.get(key);
        if row.is_none() && more.is_none() {
            return None;
        }
        let row = row.map_or((0, i64::MIN), |page| (page.count, page.last_us));
        let more = more.copied().unwrap_or((0, i64::MIN));
        Some(Figures {
            count: row.0.saturating_add(more.0),
            last_us: row.1.max(more.1),
            ..Figures::default()
        })
    }
}

/// Compares; buckets that start before their tier's floor are left out.
pub(super) async fn sides(
    mut served: Side,
    mut rebuilt: Side,
    floors: [i64; 4],
    bounds: Bounds,
) -> Result<Comparison, StoreError> {
    let mut comparison = Comparison::default();
    buckets(&mut served, &mut rebuilt, floors, bounds, &mut comparison).await?;
    users(&mut served, &mut rebuilt, bounds, &mut comparison).await?;
    Ok(comparison)
}

async fn buckets(
    served: &mut Side,
    rebuilt: &mut Side,
    floors: [i64; 4],
    bounds: Bounds,
    comparison: &mut Comparison,
) -> Result<(), StoreError> {
    let kept = |row: &BucketRow| {
        let tier = crate::store::TIERS_S
            .iter()
            .position(|length| *length == row.tier_s);
        tier.is_none_or(|tier| floors[tier] <= row.bucket_s)
    };
    let mut seen: HashSet<BucketKey> = HashSet::new();
    let mut after: Option<BucketRow> = None;
    loop {
        let page = served
            .snapshot
            .buckets(after.as_ref(), bounds.page_rows)
            .await?;
        let found = rebuilt.snapshot.buckets_like(&page).await?;
        let found: HashMap<BucketKey, CellValue> = found
            .into_iter()
            .map(|row| (key_of(&row), row.value))
            .collect();
        for row in page.iter().filter(|row| kept(row)) {
            let key = key_of(row);
            let (one, other) = (
                served.bucket(&key, Some(&row.value)),
                rebuilt.bucket(&key, found.get(&key)),
            );
            comparison.bucket(&key, one, other, bounds);
            note(&mut seen, key, served, rebuilt);
        }
        match page.into_iter().last() {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    let mut after: Option<BucketRow> = None;
    loop {
        let page = rebuilt
            .snapshot
            .buckets(after.as_ref(), bounds.page_rows)
            .await?;
        let found = served.snapshot.buckets_like(&page).await?;
        let found: HashSet<BucketKey> = found.iter().map(key_of).collect();
        for row in page.iter().filter(|row| kept(row)) {
            let key = key_of(row);
            if found.contains(&key) {
                continue;
            }
            let one = served.bucket(&key, None);
            let other = rebuilt.bucket(&key, Some(&row.value));
            comparison.bucket(&key, one, other, bounds);
            note(&mut seen, key, served, rebuilt);
        }
        match page.into_iter().last() {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    let rest: BTreeSet<&BucketKey> = served
        .buckets
        .keys()
        .chain(rebuilt.buckets.keys())
        .collect();
    let rest = rest.into_iter().filter(|key| !seen.contains(*key));
    for key in rest {
        let (one, other) = (served.bucket(key, None), rebuilt.bucket(key, None));
        comparison.bucket(key, one, other, bounds);
    }
    Ok(())
}

/// Remembers what deltas have added to, so that what is left over is theirs alone.
fn note(seen: &mut HashSet<BucketKey>, key: BucketKey, served: &Side, rebuilt: &Side) {
    if served.buckets.contains_key(&key) || rebuilt.buckets.contains_key(&key) {
        seen.insert(key);
    }
}

async fn users(
    served: &mut Side,
    rebuilt: &mut Side,
    bounds: Bounds,
    comparison: &mut Comparison,
) -> Result<(), StoreError> {
    let mut seen: HashSet<UserPageKey> = HashSet::new();
    let mut after: Option<UserPage> = None;
    loop {
        let page = served
            .snapshot
            .users(after.as_ref(), bounds.page_rows)
            .await?;
        let found = rebuilt.snapshot.users_like(&page).await?;
        let found: HashMap<UserPageKey, UserPage> = found
            .into_iter()
            .map(|page| (user_key(&page.key), page))
            .collect();
        for row in &page {
            let key = user_key(&row.key);
            let (one, other) = (
                served.user(&key, Some(row)),
                rebuilt.user(&key, found.get(&key)),
            );
            comparison.user(&key, one, other, bounds);
            if served.users.contains_key(&key) || rebuilt.users.contains_key(&key) {
                seen.insert(key);
            }
        }
        match page.into_iter().last() {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    let mut after: Option<UserPage> = None;
    loop {
        let page = rebuilt
            .snapshot
            .users(after.as_ref(), bounds.page_rows)
            .await?;
        let found = served.snapshot.users_like(&page).await?;
        let found: HashSet<UserPageKey> = found.iter().map(|page| user_key(&page.key)).collect();
        for row in &page {
            let key = user_key(&row.key);
            if found.contains(&key) {
                continue;
            }
            let (one, other) = (served.user(&key, None), rebuilt.user(&key, Some(row)));
            comparison.user(&key, one, other, bounds);
            if served.users.contains_key(&key) || rebuilt.users.contains_key(&key) {
                seen.insert(key);
            }
        }
        match page.into_iter().last() {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    let rest: BTreeSet<&UserPageKey> = served.users.keys().chain(rebuilt.users.keys()).collect();
    for key in rest.into_iter().filter(|key| !seen.contains(*key)) {
        let (one, other) = (served.user(key, None), rebuilt.user(key, None));
        comparison.user(key, one, other, bounds);
    }
    Ok(())
}
