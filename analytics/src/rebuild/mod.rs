//! Rebuilding: rows made anew beside those that are served, compared with them, and swapped in.
//!
//! This module knows the store; it does not read the source and judges no event. Whoever drives it hands in delta
//! batches that were recomputed from the source, as many as cover each partition up to a head that the chain has reached,
//! and tells at which position of `metrics-data` that was. The order is what makes it safe:
//!
//! 1. [`Generation::begin`] takes the lock and empties the rows that are not served.
//! 2. [`Generation::add`] fills them, as a checkpoint does, by the same code.
//! 3. [`Generation::pin`] keeps the deltas that the new rows will lack, and tells the heads to fill up to.
//! 4. [`Generation::compare`] adds both sets of rows up to the same position and tells where they differ.
//! 5. [`Generation::swap`] moves the number that says which rows are served, and keeps what they hold otherwise than the
//!    chains say.
//!
//! Until the last step nothing that is served has changed; a rebuild that dies leaves rows that nobody reads, a lock that
//! expires, and pins that no longer count. One that stood still until its lock expired can neither write nor empty rows
//! that another one has begun with or swapped in.

mod compare;
mod difference;
mod sink;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use streamgauge_chain::{Outcomes, delta};
use streamgauge_lifecycle::SharedClock;
use streamgauge_proto::v1::DeltaBatch;
use tokio::task::JoinHandle;

use self::{compare::Side, sink::Sink};
pub use self::{
    compare::{Bounds, Comparison},
    difference::{Difference, Figures, Totals, Where},
};
use crate::{
    checkpoint::random_name,
    config::Config,
    retention,
    store::{Shift, Slot, Store, StoreError},
    view::ChainRow,
};

/// Why a rebuild cannot go on. What is served is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Another rebuild is under way.
    #[error("another rebuild is under way, or one was cut off less than {lease_ms} ms ago")]
    Locked {
        /// How long the lock outlives its holder.
        lease_ms: i64,
    },
    /// The lock has expired, or somebody else has it: the deltas that are needed may be gone.
    #[error(
        "the lock of the rebuild was lost, as when this process or the store stood still for too long"
    )]
    LockLost,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Rows in the making.
pub struct Generation {
    store: Arc<dyn Store>,
    config: Arc<Config>,
    clock: SharedClock,
    owner: i64,
    served: Slot,
    sink: Sink,
    /// How the events of the batches ended that were added, per partition.
    judged: BTreeMap<i32, Outcomes>,
    /// The chains that the new rows are filled up to.
    pinned: Vec<ChainRow>,
    renewing: JoinHandle<()>,
}

impl Generation {
    /// Takes the lock and empties the rows that are not served. The lock is held until the end, or until this process
    /// has not renewed it for `lease`.
    ///
    /// # Errors
    /// When another rebuild is under way or takes the lock over, or the store fails.
    pub async fn begin(
        store: Arc<dyn Store>,
        config: Arc<Config>,
        clock: SharedClock,
        lease: Duration,
    ) -> Result<Self, RebuildError> {
        let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        let owner = random_name();
        if !store.slots().lock(owner, lease_ms).await? {
            return Err(RebuildError::Locked { lease_ms });
        }
        let renewing = tokio::spawn(renew(Arc::clone(&store), owner, lease));
        let prepared = async {
            let served = store.served().await?;
            let name = random_name();
            if !store.slots().wipe(owner, served.other(), name).await? {
                return Err(RebuildError::LockLost);
            }
            Ok::<_, RebuildError>((served, name))
        };
        let (served, name) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                renewing.abort();
                // The lock expires by itself.
                let _ = store.slots().unlock(owner).await;
                return Err(error);
            }
        };
        let sink = Sink::new(Arc::clone(&store), &config, served.other(), name);
        Ok(Self {
            store,
            config,
            clock,
            owner,
            served,
            sink,
            judged: BTreeMap::new(),
            pinned: Vec::new(),
            renewing,
        })
    }

    /// Where the chains are now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn chains(&self) -> Result<Vec<ChainRow>, RebuildError> {
        Ok(self.store.contents(self.served).await?.chains)
    }

    /// Adds a recomputed batch.
    ///
    /// # Errors
    /// When the store fails, or another rebuild has these rows.
    pub async fn add(&mut self, partition: i32, batch: &DeltaBatch) -> Result<(), RebuildError> {
        let floors = retention::kept_from(&self.config.retention, self.now_s());
        self.sink.add(partition, batch, &floors).await?;
        *self.judged.entry(partition).or_default() += delta::outcomes(batch);
        Ok(())
    }

    /// From now on no delta is deleted that the new rows may lack; the chains stand where they are told to stand, or
    /// beyond.
    ///
    /// # Errors
    /// When the store fails, or the lock was lost.
    pub async fn pin(&mut self, partitions: i32) -> Result<Vec<ChainRow>, RebuildError> {
        let reached = self.store.checkpoint_state(self.served).await?.positions;
        let position = |partition| (partition, reached.get(&partition).copied().unwrap_or(0));
        let pins = (0..partitions).map(position).collect();
        if !self.store.slots().pin(self.owner, &pins).await? {
            return Err(RebuildError::LockLost);
        }
        // Read only now: whoever deletes what lies beyond has seen the pins.
        self.pinned = self.chains().await?;
        Ok(self.pinned.clone())
    }

    /// Writes what is left, and tells the rows how far they reach.
    ///
    /// # Errors
    /// As [`Generation::add`].
    pub async fn complete(&mut self, positions: BTreeMap<i32, i64>) -> Result<(), RebuildError> {
        let floors = retention::kept_from(&self.config.retention, self.now_s());
        self.sink.flush(&floors).await?;
        self.sink.set_positions(positions).await
    }

    /// Compares the new rows with those that are served, both up to the same positions of `metrics-data`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn compare(&self, bounds: Bounds) -> Result<Comparison, RebuildError> {
        // What queries count on; rows below it may be gone already, from either.
        let floors = self.config.retention.floors(self.now_s());
        let served = self.store.slots().snapshot(self.served).await?;
        let rebuilt = self.store.slots().snapshot(self.served.other()).await?;
        let (mut served, mut rebuilt) = (Side::new(served), Side::new(rebuilt));
        let reached = Side::common_positions(&served, &rebuilt);
        served.complete(&self.store, &reached, &floors).await?;
        rebuilt.complete(&self.store, &reached, &floors).await?;
        compare::sides(served, rebuilt, floors, bounds)
            .await
            .map_err(RebuildError::from)
    }

    /// Serves the new rows from now on. Those that were served stay until the next rebuild, or until they are pruned.
    ///
    /// # Errors
    /// When the store fails, or the lock was lost and the rows may be another rebuild's; then nothing has changed.
    pub async fn swap(self) -> Result<(), RebuildError> {
        let swapped = self
            .store
            .slots()
            .swap(
                self.owner,
                self.served.other(),
                self.sink.name(),
                &self.shifts(),
            )
            .await;
        self.renewing.abort();
        match swapped {
            Ok(true) => Ok(()),
            Ok(false) => Err(RebuildError::LockLost),
            // The commit may have been done although it was not heard of.
            Err(error) => match self.store.served().await {
                Ok(slot) if slot == self.served.other() => Ok(()),
                _ => Err(error.into()),
            },
        }
    }

    /// Empties the new rows again and gives the lock back.
    ///
    /// # Errors
    /// When the lock was lost, and the rows are left alone: they may be another rebuild's, or served. When the store fails;
    /// the lock expires by itself then.
    pub async fn discard(self) -> Result<(), RebuildError> {
        let slots = self.store.slots();
        // However long it takes, the lock is renewed until the rows are empty.
        let wiped = slots
            .wipe(self.owner, self.served.other(), random_name())
            .await;
        self.renewing.abort();
        slots.unlock(self.owner).await?;
        if wiped? {
            Ok(())
        } else {
            Err(RebuildError::LockLost)
        }
    }

    /// What the new rows hold otherwise than the chains say. What the chains take in from where they were pinned on, the
    /// rows take in as well: so it stays as it is for as long as these rows are served.
    fn shifts(&self) -> BTreeMap<i32, Shift> {
        let shift = |row: &ChainRow| {
            let again = self.judged.get(&row.partition).copied();
            let then = row.ledger.outcomes();
            let shift = Shift::between(&then, &again.unwrap_or_default());
            (row.partition, shift)
        };
        self.pinned.iter().map(shift).collect()
    }

    fn now_s(&self) -> i64 {
        self.clock.now_us().div_euclid(1_000_000)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Renews the lock until it is lost or the task is ended. Who needs the lock finds out by itself.
async fn renew(store: Arc<dyn Store>, owner: i64, lease: Duration) {
    let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    loop {
        tokio::time::sleep(lease / 4).await;
        match store.slots().renew(owner, lease_ms).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => tracing::warn!(%error, "the lock of the rebuild could not be renewed"),
        }
    }
}
