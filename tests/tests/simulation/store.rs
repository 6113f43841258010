//! The store as a model: the transactions of the store's seam over maps, and every way in which a real one leaves its
//! caller in doubt. A transaction may fail, commit without being heard of, or commit long after it was given up; its
//! future waits before and after the commit, so that a crash can come at either point.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use streamgauge_analytics::{
    store::{
        Advance, CheckpointState, CheckpointWrite, Connections, Contents, DeltaRow, Scan, Scanned,
        Shift, Slot, Slots, Snapshot, Store, StoreError, StoreFuture, Sums, SumsOf, Swapped,
        UserFilter, UserPages,
    },
    view::{CellValue, ChainRow},
};

use crate::random::Random;

/// Tier, start of the bucket, series, key.
type BucketKey = (i64, i64, String, String);

/// What the store holds, of the one partition that there is.
#[derive(Debug)]
pub struct Contained {
    random: Random,
    /// Nothing fails any more.
    pub calm: bool,
    /// Whoever writes last wins: the mutation that must be found.
    ignore_swap: bool,
    pub chain: Option<ChainRow>,
    deltas: BTreeMap<i64, Bytes>,
    pub generation: i64,
    position: i64,
    series: BTreeSet<String>,
    rows: BTreeMap<BucketKey, CellValue>,
    pub users: BTreeMap<String, u64>,
    /// Transactions that were given up and may yet commit.
    late: Vec<Transaction>,
    pub seen: Seen,
}

/// What has happened to transactions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub failed: u64,
    pub unheard: u64,
    pub late: u64,
    pub conflicts: u64,
}

#[derive(Clone, Debug)]
enum Transaction {
    Apply(Vec<Advance>),
    Checkpoint(CheckpointWrite),
}

/// What is to become of a transaction.
enum Fate {
    Commits,
    CommitsUnheard,
    Fails,
    MayYetCommit,
}

impl Contained {
    fn fate(&mut self) -> Fate {
        match self.random.below(100) {
            _ if self.calm => Fate::Commits,
            0..80 => Fate::Commits,
            80..88 => Fate::CommitsUnheard,
            88..95 => Fate::Fails,
            _ => Fate::MayYetCommit,
        }
    }

    fn commit(&mut self, transaction: &Transaction) -> Swapped {
        let swapped = match transaction {
            Transaction::Apply(advances) => self.apply(advances),
            Transaction::Checkpoint(write) => self.checkpoint(write),
        };
        self.seen.conflicts += u64::from(swapped == Swapped::Conflict);
        swapped
    }

    fn apply(&mut self, advances: &[Advance]) -> Swapped {
        for advance in advances {
            let expected = match &self.chain {
                None => advance.before.delta_position == 0,
                Some(row) => {
                    advance.before.delta_position > 0
                        && row.delta_position == advance.before.delta_position
                        && row.includes(&advance.before)
                }
            };
            if !expected && !self.ignore_swap {
                return Swapped::Conflict;
            }
            self.chain = Some(advance.after);
            let deltas = advance.deltas.iter();
            self.deltas
                .extend(deltas.map(|delta| (delta.offset, delta.payload.clone())));
        }
        Swapped::Done
    }

    fn checkpoint(&mut self, write: &CheckpointWrite) -> Swapped {
        if write.from != self.generation && !self.ignore_swap {
            return Swapped::Conflict;
        }
        self.generation = write.to;
        if let Some(position) = write.positions.get(&0) {
            self.position = *position;
        }
        for row in &write.buckets {
            self.series.insert(row.series.to_string());
            let (series, key) = (row.series.to_string(), row.key.to_string());
            let place = (row.tier_s, row.bucket_s, series, key);
            self.rows.entry(place).or_default().absorb(&row.value);
        }
        for page in &write.users {
            let page_url = page.key.page_url.to_string();
            *self.users.entry(page_url).or_default() += page.count;
        }
        Swapped::Done
    }

    /// Lets one of the transactions that were given up commit after all.
    pub fn land_late(&mut self) {
        if !self.late.is_empty() {
            let place = self.random.index(self.late.len());
            let transaction = self.late.swap_remove(place);
            self.seen.late += 1;
            self.commit(&transaction);
        }
    }

    /// Events by key, as the rows of one tier have them.
    pub fn counts(&self, tier_s: i64) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for ((_, _, _, key), value) in self.rows.iter().filter(|(place, _)| place.0 == tier_s) {
            *counts.entry(key.clone()).or_default() += value.count;
        }
        counts
    }
}

impl fmt::Display for Contained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (generation, position) = (self.generation, self.position);
        let rows: u64 = self.counts(1).values().sum();
        write!(f, "its checkpoint {generation:x} of {position} with {rows}")
    }
}

/// The store of one world.
#[derive(Debug)]
pub struct ModelStore(Mutex<Contained>);

impl ModelStore {
    pub fn new(random: Random, ignore_swap: bool) -> Self {
        Self(Mutex::new(Contained {
            random,
            calm: false,
            ignore_swap,
            chain: None,
            deltas: BTreeMap::new(),
            generation: 0,
            position: 0,
            series: BTreeSet::new(),
            rows: BTreeMap::new(),
            users: BTreeMap::new(),
            late: Vec::new(),
            seen: Seen::default(),
        }))
    }

    pub fn lock(&self) -> MutexGuard<'_, Contained> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn transact(&self, transaction: Transaction) -> Result<Swapped, StoreError> {
        pause().await;
        let swapped = {
            let mut contained = self.lock();
            match contained.fate() {
                Fate::Commits => Ok(contained.commit(&transaction)),
                Fate::CommitsUnheard => {
                    contained.seen.unheard += 1;
                    contained.commit(&transaction);
                    Err(in_doubt("a transaction"))
                }
                Fate::Fails => {
                    contained.seen.failed += 1;
                    Err(in_doubt("a transaction"))
                }
                Fate::MayYetCommit => {
                    contained.late.push(transaction);
                    Err(in_doubt("a transaction"))
                }
            }
        };
        pause().await;
        swapped
    }

    /// A read is of one moment, and may fail.
    async fn read<T>(&self, read: impl FnOnce(&Contained) -> T) -> Result<T, StoreError> {
        pause().await;
        let mut contained = self.lock();
        if !contained.calm && contained.random.percent(5) {
            return Err(in_doubt("a read"));
        }
        Ok(read(&contained))
    }
}

fn in_doubt(op: &'static str) -> StoreError {
    StoreError::TimedOut {
        op,
        setting: "none, it is simulated",
        limit_ms: 0,
    }
}

/// Waits for the next poll.
async fn pause() {
    let mut waited = false;
    poll_fn(|_| {
        if std::mem::replace(&mut waited, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// What no simulated instance asks for.
fn never<'a, T: Send + 'a>(op: &'static str) -> StoreFuture<'a, T> {
    async move { Err(in_doubt(op)) }.boxed()
}

/// There is no rebuild here, and one set of rows.
impl Slots for ModelStore {
    fn lock(&self, _owner: i64, _lease_ms: i64) -> StoreFuture<'_, bool> {
        never("lock")
    }

    fn renew(&self, _owner: i64, _lease_ms: i64) -> StoreFuture<'_, bool> {
        never("renew")
    }

    fn unlock(&self, _owner: i64) -> StoreFuture<'_, ()> {
        never("unlock")
    }

    fn pin<'a>(&'a self, _owner: i64, _positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, bool> {
        never("pin")
    }

    fn wipe(&self, _owner: i64, _slot: Slot, _name: i64) -> StoreFuture<'_, bool> {
        never("wipe")
    }

    fn swap<'a>(
        &'a self,
        _owner: i64,
        _to: Slot,
        _name: i64,
        _shifts: &'a BTreeMap<i32, Shift>,
    ) -> StoreFuture<'a, bool> {
        never("swap")
    }

    fn snapshot(&self, _slot: Slot) -> StoreFuture<'_, Box<dyn Snapshot>> {
        never("snapshot")
    }
}

impl Store for ModelStore {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        async { Ok(()) }.boxed()
    }

    fn served(&self) -> StoreFuture<'_, Slot> {
        self.read(|_| Slot::First).boxed()
    }

    fn contents(&self, _slot: Slot) -> StoreFuture<'_, Contents> {
        let read = |contained: &Contained| Contents {
            chains: contained.chain.into_iter().collect(),
            series: contained.series.iter().cloned().collect(),
        };
        self.read(read).boxed()
    }

    fn chains<'a>(&'a self, _partitions: &'a [i32]) -> StoreFuture<'a, Vec<ChainRow>> {
        self.read(|contained| contained.chain.into_iter().collect())
            .boxed()
    }

    fn checkpoint_state(&self, _slot: Slot) -> StoreFuture<'_, CheckpointState> {
        let read = |contained: &Contained| CheckpointState {
            generation: contained.generation,
            positions: BTreeMap::from([(0, contained.position)]),
        };
        self.read(read).boxed()
    }

    fn deltas(&self, _partition: i32, from: i64, limit: u32) -> StoreFuture<'_, Vec<DeltaRow>> {
        let read = move |contained: &Contained| {
            let found = contained.deltas.range(from..).take(limit as usize);
            found
                .map(|(offset, payload)| DeltaRow {
                    offset: *offset,
                    payload: payload.clone(),
                })
                .collect()
        };
        self.read(read).boxed()
    }

    fn apply<'a>(&'a self, advances: &'a [Advance]) -> StoreFuture<'a, Swapped> {
        self.transact(Transaction::Apply(advances.to_vec())).boxed()
    }

    fn checkpoint<'a>(&'a self, write: &'a CheckpointWrite) -> StoreFuture<'a, Swapped> {
        self.transact(Transaction::Checkpoint(write.clone()))
            .boxed()
    }

    fn trim<'a>(&'a self, _slot: Slot, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, ()> {
        async move {
            pause().await;
            let mut contained = self.lock();
            if let Some(position) = positions.get(&0) {
                contained.deltas = contained.deltas.split_off(position);
            }
            Ok(())
        }
        .boxed()
    }

    fn scan<'a>(&'a self, scan: Scan<'a>) -> StoreFuture<'a, Scanned> {
        let read = move |contained: &Contained| {
            let within = |place: &BucketKey| {
                let covers = |tier_s: i64, from: i64, to: i64| {
                    place.0 == tier_s && (from..to).contains(&place.1)
                };
                let mut segments = scan.segments.iter();
                place.2 == scan.series
                    && segments.any(|one| covers(one.tier_s, one.range.start, one.range.end))
            };
            let found = contained.rows.iter().filter(|(place, _)| within(place));
            Scanned {
                generation: contained.generation,
                rows: found
                    .map(|(place, value)| (place.1, place.3.clone(), value.clone()))
                    .collect(),
            }
        };
        self.read(read).boxed()
    }

    fn user_pages<'a>(&'a self, _filter: UserFilter<'a>) -> StoreFuture<'a, UserPages> {
        let read = |contained: &Contained| UserPages {
            generation: contained.generation,
            count: contained.users.values().sum(),
            ..UserPages::default()
        };
        self.read(read).boxed()
    }

    fn expire(
        &self,
        _slot: Slot,
        _tier_s: i64,
        _before_s: i64,
        _limit: u32,
    ) -> StoreFuture<'_, u64> {
        async { Ok(0) }.boxed()
    }

    fn slots(&self) -> &dyn Slots {
        self
    }

    fn sums<'a>(&'a self, _sums: SumsOf<'a>) -> StoreFuture<'a, Sums> {
        never("sums")
    }

    fn connections(&self) -> Connections {
        Connections::default()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
