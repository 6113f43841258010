//! A store that fails on purpose: away, slow to checkpoint, silent about an outcome, moved by somebody else.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::SeqCst},
    },
};

use futures::{FutureExt, future::BoxFuture};
use streamgauge_analytics::{
    store::{
        Advance, CheckpointState, CheckpointWrite, Connections, Contents, DeltaRow, Scan, Scanned,
        Slot, Slots, Store, StoreError, StoreFuture, Sums, SumsOf, Swapped, UserFilter, UserPages,
    },
    view::ChainRow,
};
use tokio::sync::watch;

/// What goes wrong.
pub struct Faults {
    /// Nothing works.
    pub is_away: AtomicBool,
    /// Checkpoints fail.
    pub checkpoints_fail: AtomicBool,
    /// Checkpoints wait.
    checkpoints_wait: watch::Sender<bool>,
    /// Reading rows never ends.
    pub scans_hang: AtomicBool,
    /// So many applications succeed and tell that they failed.
    pub silent_applies: AtomicU32,
    /// Before so many scans another instance moves the checkpoint.
    pub moves: AtomicU32,
    named: AtomicI64,
}

impl Faults {
    /// Lets checkpoints wait, or go on.
    pub fn hold_checkpoints(&self, hold: bool) {
        self.checkpoints_wait.send_replace(hold);
    }
}

/// A store, and what goes wrong with it.
pub struct Faulty {
    inner: Arc<dyn Store>,
    pub faults: Arc<Faults>,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let faults = Faults {
            is_away: AtomicBool::new(false),
            checkpoints_fail: AtomicBool::new(false),
            checkpoints_wait: watch::Sender::new(false),
            scans_hang: AtomicBool::new(false),
            silent_applies: AtomicU32::new(0),
            moves: AtomicU32::new(0),
            named: AtomicI64::new(7_000_000),
        };
        let faults = Arc::new(faults);
        Arc::new(Self { inner, faults })
    }

    fn unless_away<'a, T: Send + 'a>(
        &'a self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        async move {
            if self.faults.is_away.load(SeqCst) {
                return Err(failure("the database is away on purpose"));
            }
            work.await
        }
        .boxed()
    }

    /// Moves the checkpoint without changing a row, as another instance may at any time.
    async fn move_checkpoint(&self) -> Result<(), StoreError> {
        let slot = self.inner.served().await?;
        let state = self.inner.checkpoint_state(slot).await?;
        let write = CheckpointWrite {
            slot,
            from: state.generation,
            to: self.faults.named.fetch_add(1, SeqCst),
            positions: state.positions,
            buckets: Vec::new(),
            users: Vec::new(),
        };
        self.inner.checkpoint(&write).await.map(drop)
    }
}

fn failure(message: &str) -> StoreError {
    StoreError::Database {
        op: "do anything",
        source: sqlx::Error::Io(std::io::Error::other(message)),
    }
}

fn take_one(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
        .is_ok()
}

impl Store for Faulty {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        self.unless_away(self.inner.migrate())
    }

    fn served(&self) -> StoreFuture<'_, Slot> {
        self.unless_away(self.inner.served())
    }

    fn contents(&self, slot: Slot) -> StoreFuture<'_, Contents> {
        self.unless_away(self.inner.contents(slot))
    }

    fn chains<'a>(&'a self, partitions: &'a [i32]) -> StoreFuture<'a, Vec<ChainRow>> {
        self.unless_away(self.inner.chains(partitions))
    }

    fn checkpoint_state(&self, slot: Slot) -> StoreFuture<'_, CheckpointState> {
        self.unless_away(self.inner.checkpoint_state(slot))
    }

    fn deltas(&self, partition: i32, from: i64, limit: u32) -> StoreFuture<'_, Vec<DeltaRow>> {
        self.unless_away(self.inner.deltas(partition, from, limit))
    }

    fn apply<'a>(&'a self, advances: &'a [Advance]) -> StoreFuture<'a, Swapped> {
        self.unless_away(async move {
            let swapped = self.inner.apply(advances).await?;
            if take_one(&self.faults.silent_applies) {
                return Err(failure("the connection was cut after the commit"));
            }
            Ok(swapped)
        })
    }

    fn checkpoint<'a>(&'a self, write: &'a CheckpointWrite) -> StoreFuture<'a, Swapped> {
        self.unless_away(async move {
            let mut waits = self.faults.checkpoints_wait.subscribe();
            let _ = waits.wait_for(|waits| !waits).await;
            if self.faults.checkpoints_fail.load(SeqCst) {
                return Err(failure("no checkpoint, on purpose"));
            }
            self.inner.checkpoint(write).await
        })
    }

    fn trim<'a>(&'a self, slot: Slot, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, ()> {
        self.unless_away(self.inner.trim(slot, positions))
    }

    fn scan<'a>(&'a self, scan: Scan<'a>) -> StoreFuture<'a, Scanned> {
        self.unless_away(async move {
            if self.faults.scans_hang.load(SeqCst) {
                return futures::future::pending().await;
            }
            if take_one(&self.faults.moves) {
                self.move_checkpoint().await?;
            }
            self.inner.scan(scan).await
        })
    }

    fn user_pages<'a>(&'a self, filter: UserFilter<'a>) -> StoreFuture<'a, UserPages> {
        self.unless_away(self.inner.user_pages(filter))
    }

    fn expire(&self, slot: Slot, tier_s: i64, before_s: i64, limit: u32) -> StoreFuture<'_, u64> {
        self.unless_away(self.inner.expire(slot, tier_s, before_s, limit))
    }

    fn slots(&self) -> &dyn Slots {
        self.inner.slots()
    }

    fn sums<'a>(&'a self, sums: SumsOf<'a>) -> StoreFuture<'a, Sums> {
        self.unless_away(self.inner.sums(sums))
    }

    fn connections(&self) -> Connections {
        self.inner.connections()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}
