//! Comparing two sets of rows, each as of one moment, row by row in bounded pages.
//!
//! The moments differ: the served rows go on being written. So each side is completed by the deltas that it does not hold
//! yet, up to a position that is the later of the two, and the completed rows are compared. Neither store promises the
//! order in which the other would return its rows, so that each side is read once in its own order and looked up in the
//! other by key.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use super::difference::{Difference, Figures, Totals, Where};
use crate::{
    checkpoint, load,
    store::{BucketRow, Slot, Snapshot, Store, StoreError, StoreFuture},
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
}

impl Comparison {
    /// Takes a pair of rows in.
    fn take<K: Kind>(
        &mut self,
        key: &K::Key,
        served: Option<Figures>,
        rebuilt: Option<Figures>,
        bounds: Bounds,
    ) {
        let differs = K::totals(self, key).take(served.as_ref(), rebuilt.as_ref());
        if differs && self.listed.len() < bounds.listed_max {
            let at = K::place(key);
            self.listed.push(Difference {
                at,
                served,
                rebuilt,
            });
        }
    }
}

type BucketKey = (i64, i64, Arc<str>, Arc<str>);

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
    users: HashMap<UserPageKey, (u64, i64)>,
}

impl Side {
    pub fn new(snapshot: Box<dyn Snapshot>) -> Self {
        Self {
            snapshot,
            buckets: HashMap::new(),
            users: HashMap::new(),
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
        self.buckets = rows_of.map(|row| (Buckets::key(&row), row.value)).collect();
        for page in rows.users {
            let sum = self.users.entry(user_key(&page.key)).or_default();
            *sum = (sum.0.saturating_add(page.count), sum.1.max(page.last_us));
        }
        Ok(())
    }
}

/// A kind of rows: what differs between comparing buckets and comparing user pages.
trait Kind {
    /// A row as the store gives it.
    type Row: Sync;
    /// What is the same of a row in both sets, and of what completes it.
    type Key: Clone + Eq + Ord + Hash;
    /// What deltas add to a row.
    type More;

    /// See [`Snapshot::buckets`].
    fn page<'a>(
        snapshot: &'a mut dyn Snapshot,
        after: Option<&'a Self::Row>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<Self::Row>>;

    /// See [`Snapshot::buckets_like`].
    fn like<'a>(
        snapshot: &'a mut dyn Snapshot,
        rows: &'a [Self::Row],
    ) -> StoreFuture<'a, Vec<Self::Row>>;

    /// The key of a row.
    fn key(row: &Self::Row) -> Self::Key;

    /// What deltas add to one side.
    fn more(side: &Side) -> &HashMap<Self::Key, Self::More>;

    /// The figures of a row with what deltas add to it.
    fn figures(row: Option<&Self::Row>, more: Option<&Self::More>) -> Figures;

    /// Where a pair is counted.
    fn totals<'a>(comparison: &'a mut Comparison, key: &Self::Key) -> &'a mut Totals;

    /// How a row is named.
    fn place(key: &Self::Key) -> Where;
}

struct Buckets;

impl Kind for Buckets {
    type Row = BucketRow;
    type Key = BucketKey;
    type More = CellValue;

    fn page<'a>(
        snapshot: &'a mut dyn Snapshot,
        after: Option<&'a BucketRow>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<BucketRow>> {
        snapshot.buckets(after, limit)
    }

    fn like<'a>(
        snapshot: &'a mut dyn Snapshot,
        rows: &'a [BucketRow],
    ) -> StoreFuture<'a, Vec<BucketRow>> {
        snapshot.buckets_like(rows)
    }

    fn key(row: &BucketRow) -> BucketKey {
        let (series, key) = (Arc::clone(&row.series), Arc::clone(&row.key));
        (row.tier_s, row.bucket_s, series, key)
    }

    fn more(side: &Side) -> &HashMap<BucketKey, CellValue> {
        &side.buckets
    }

    fn figures(row: Option<&BucketRow>, more: Option<&CellValue>) -> Figures {
        let mut value = CellValue::default();
        let parts = row.map(|row| &row.value).into_iter().chain(more);
        parts.for_each(|part| value.absorb(part));
        Figures::of(&value)
    }

    fn totals<'a>(comparison: &'a mut Comparison, key: &BucketKey) -> &'a mut Totals {
        let series = (key.2.to_string(), key.0);
        comparison.series.entry(series).or_default()
    }

    fn place(key: &BucketKey) -> Where {
        Where::Bucket {
            tier_s: key.0,
            bucket_s: key.1,
            series: key.2.to_string(),
            key: key.3.to_string(),
        }
    }
}

struct Users;

impl Kind for Users {
    type Row = UserPage;
    type Key = UserPageKey;
    type More = (u64, i64);

    fn page<'a>(
        snapshot: &'a mut dyn Snapshot,
        after: Option<&'a UserPage>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<UserPage>> {
        snapshot.users(after, limit)
    }

    fn like<'a>(
        snapshot: &'a mut dyn Snapshot,
        rows: &'a [UserPage],
    ) -> StoreFuture<'a, Vec<UserPage>> {
        snapshot.users_like(rows)
    }

    fn key(row: &UserPage) -> UserPageKey {
        user_key(&row.key)
    }

    fn more(side: &Side) -> &HashMap<UserPageKey, (u64, i64)> {
        &side.users
    }

    fn figures(row: Option<&UserPage>, more: Option<&(u64, i64)>) -> Figures {
        let row = row.map_or((0, i64::MIN), |page| (page.count, page.last_us));
        let more = more.copied().unwrap_or((0, i64::MIN));
        Figures {
            count: row.0.saturating_add(more.0),
            last_us: row.1.max(more.1),
            ..Figures::default()
        }
    }

    fn totals<'a>(comparison: &'a mut Comparison, _key: &UserPageKey) -> &'a mut Totals {
        &mut comparison.users
    }

    fn place(key: &UserPageKey) -> Where {
        Where::User {
            user_id: key.user_id.to_string(),
            page_url: key.page_url.to_string(),
            event_type: key.event_type.to_string(),
        }
    }
}

/// Compares; buckets that start before their tier's floor are left out.
pub(super) async fn sides(
    mut served: Side,
    mut rebuilt: Side,
    floors: [i64; 4],
    bounds: Bounds,
) -> Result<Comparison, StoreError> {
    let is_kept = |row: &BucketRow| {
        let mut tiers = crate::store::TIERS_S.iter().zip(floors);
        let floor = tiers.find(|(length, _)| **length == row.tier_s);
        floor.is_none_or(|(_, floor)| floor <= row.bucket_s)
    };
    let mut comparison = Comparison::default();
    let into = (&mut comparison, bounds);
    rows::<Buckets>(&mut served, &mut rebuilt, is_kept, into).await?;
    let into = (&mut comparison, bounds);
    rows::<Users>(&mut served, &mut rebuilt, |_| true, into).await?;
    Ok(comparison)
}

/// Compares rows of one kind: each set is read once in its own order and looked up in the other, then comes what deltas
/// alone tell of.
async fn rows<K: Kind>(
    served: &mut Side,
    rebuilt: &mut Side,
    is_kept: impl Fn(&K::Row) -> bool,
    (comparison, bounds): (&mut Comparison, Bounds),
) -> Result<(), StoreError> {
    // Keys that deltas have added to, so that what is left over is theirs alone.
    let mut seen: HashSet<K::Key> = HashSet::new();
    for is_served in [true, false] {
        let mut after: Option<K::Row> = None;
        loop {
            let (read, other) = match is_served {
                true => (&mut *served, &mut *rebuilt),
                false => (&mut *rebuilt, &mut *served),
            };
            let page = K::page(&mut *read.snapshot, after.as_ref(), bounds.page_rows).await?;
            let found = K::like(&mut *other.snapshot, &page).await?;
            let found: HashMap<K::Key, K::Row> =
                found.into_iter().map(|row| (K::key(&row), row)).collect();
            for row in page.iter().filter(|row| is_kept(row)) {
                let key = K::key(row);
                let pair = match (is_served, found.get(&key)) {
                    (true, there) => (Some(row), there),
                    (false, None) => (None, Some(row)),
                    // Compared already, when the served rows were read.
                    (false, Some(_)) => continue,
                };
                let (one, two) = (
                    figures::<K>(served, &key, pair.0),
                    figures::<K>(rebuilt, &key, pair.1),
                );
                comparison.take::<K>(&key, one, two, bounds);
                if K::more(served).contains_key(&key) || K::more(rebuilt).contains_key(&key) {
                    seen.insert(key);
                }
            }
            match page.into_iter().last() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
    }
    let deltas = K::more(served).keys().chain(K::more(rebuilt).keys());
    let rest: BTreeSet<&K::Key> = deltas.filter(|key| !seen.contains(*key)).collect();
    for key in rest {
        let (one, two) = (
            figures::<K>(served, key, None),
            figures::<K>(rebuilt, key, None),
        );
        comparison.take::<K>(key, one, two, bounds);
    }
    Ok(())
}

/// The figures of one side; none where neither a row nor a delta tells of the key.
fn figures<K: Kind>(side: &Side, key: &K::Key, row: Option<&K::Row>) -> Option<Figures> {
    let more = K::more(side).get(key);
    (row.is_some() || more.is_some()).then(|| K::figures(row, more))
}
