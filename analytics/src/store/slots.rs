//! Two sets of rows in one store, and what a rebuild does with the one that is not served.
//!
//! Deltas and chains are there once: they are the fold of the log whichever rows are served. A rebuild fills the other
//! rows, pins the deltas that it does not hold yet, and at last moves one number that says which rows are served. Until
//! then nothing that is served knows of it, and afterwards the rows that were served stay as they are until the next one.

use std::collections::BTreeMap;

use super::{BucketRow, CheckpointState, Shift, StoreFuture};
use crate::view::UserPage;

/// One of the two sets of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Slot {
    /// The one that a new store serves.
    #[default]
    First,
    /// The other one.
    Second,
}

impl Slot {
    /// The other set.
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// Its number in the store.
    pub const fn number(self) -> i64 {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }

    /// The set of this number.
    pub(super) const fn of_number(number: i64) -> Self {
        if number == 1 {
            Self::Second
        } else {
            Self::First
        }
    }
}

/// What a rebuild does. `owner` is a number that no other rebuild has drawn.
pub trait Slots: Send + Sync {
    /// Takes the lock of rebuilds for so long; `false` when another rebuild holds it.
    fn lock(&self, owner: i64, lease_ms: i64) -> StoreFuture<'_, bool>;

    /// Holds the lock for so long from now on; `false` when it was lost.
    fn renew(&self, owner: i64, lease_ms: i64) -> StoreFuture<'_, bool>;

    /// Gives the lock and the pins back.
    fn unlock(&self, owner: i64) -> StoreFuture<'_, ()>;

    /// Keeps the deltas from these positions on for as long as the lock is held; `false` when it was lost.
    fn pin<'a>(&'a self, owner: i64, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, bool>;

    /// Empties rows that are not served, and names their checkpoint; `false` when the lock was lost or they are served, and
    /// nothing was changed.
    ///
    /// It keeps every other writer from the rows first, and looks at the lock then. A rebuild that takes the lock over
    /// empties the same rows before it does anything with them, and so comes after this one.
    fn wipe(&self, owner: i64, slot: Slot, name: i64) -> StoreFuture<'_, bool>;

    /// Serves these rows from now on, keeps what they hold otherwise than the chains say, and gives the lock back; `false`
    /// when the lock was lost or their checkpoint bears another name, and nothing was changed.
    fn swap<'a>(
        &'a self,
        owner: i64,
        to: Slot,
        name: i64,
        shifts: &'a BTreeMap<i32, Shift>,
    ) -> StoreFuture<'a, bool>;

    /// All rows of a set as they are at one moment.
    fn snapshot(&self, slot: Slot) -> StoreFuture<'_, Box<dyn Snapshot>>;
}

/// Rows of one moment, for as long as it is held.
pub trait Snapshot: Send {
    /// How far they reach.
    fn state(&self) -> &CheckpointState;

    /// At most `limit` rows after this one, in an order of the store's own, fine buckets before coarse ones.
    fn buckets<'a>(
        &'a mut self,
        after: Option<&'a BucketRow>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<BucketRow>>;

    /// The rows that there are for the same buckets, series and keys.
    fn buckets_like<'a>(&'a mut self, rows: &'a [BucketRow]) -> StoreFuture<'a, Vec<BucketRow>>;

    /// At most `limit` user pages after this one, in an order of the store's own.
    fn users<'a>(
        &'a mut self,
        after: Option<&'a UserPage>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<UserPage>>;

    /// What there is for the same users, pages and event types.
    fn users_like<'a>(&'a mut self, pages: &'a [UserPage]) -> StoreFuture<'a, Vec<UserPage>>;
}
