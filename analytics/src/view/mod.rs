//! The view: what queries see, as an immutable snapshot that the writer replaces as a whole.
//!
//! A view and the store are folds of the same log. The view holds every recent second in full and, for older seconds,
//! what was applied since the last checkpoint (the overlay), so that `store ⊕ overlay` is the whole truth for any
//! range. A reader takes one pointer and never waits for the writer; nothing here does IO.

mod cell;
mod fold;
mod key;
mod overlay;
mod partition;
mod seconds;

use std::{collections::BTreeMap, sync::Arc};

use streamgauge_audit::Notes;

pub use cell::{CellValue, Parts, union_quantiles, union_users};
pub use fold::{Fold, Limits, Published, Settled};
pub use key::{Key, Keys, SeriesId, SeriesNames, dimensions_of};
pub use overlay::{Overlay, UserPage, UserPageKey};
pub use partition::{ChainRow, Judged, Offered};
pub use seconds::{Cell, CellRef, Seconds};

use crate::store::Slot;

/// An overlay that a checkpoint is writing.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The rows that it adds to.
    pub slot: Slot,
    /// Name of the checkpoint that it adds to.
    pub from: i64,
    /// Name of the checkpoint that it becomes.
    pub to: i64,
    /// What to add.
    pub overlay: Arc<Overlay>,
    /// Per partition, the position that the store reaches with it.
    pub positions: BTreeMap<i32, i64>,
}

/// What was found when the ends of a source partition were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceEnd {
    /// The first offset that the log still holds.
    pub low: i64,
    /// One past the last offset.
    pub high: i64,
    /// The chain's head just before; the source must reach at least so far.
    pub head_before: i64,
}

/// What queries see.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The series seen so far.
    pub names: Arc<SeriesNames>,
    /// No keys, but the hash function of those in the view.
    pub keys: Keys,
    /// Every second from `recent_from_s` on, in full.
    pub recent: Seconds,
    /// The first second that memory answers for.
    pub recent_from_s: i64,
    /// What a checkpoint under way is writing: part of the answer until the store has it.
    pub frozen: Option<Frozen>,
    /// What was applied since the last checkpoint began.
    pub fresh: Overlay,
    /// The store's rows that the overlays add to.
    pub slot: Slot,
    /// Name of the store's checkpoint that the overlays add to. Names are drawn at random, so that no two instances
    /// mean different contents by one name.
    pub generation: i64,
    /// The ledger of each partition.
    pub chains: BTreeMap<i32, ChainRow>,
    /// Ends of the source partitions, where known.
    pub source_ends: BTreeMap<i32, SourceEnd>,
    /// What was met in the log beside the ledger, per partition, since memory was built.
    pub notes: BTreeMap<i32, Notes>,
    /// Buckets that end before this are final, microseconds.
    pub watermark_us: i64,
    /// The clock at the latest applied delta, microseconds.
    pub as_of_us: i64,
}

impl View {
    /// The overlays that complete the store's rows as of the checkpoint named, or `None` when this view knows of none.
    pub fn overlays_at(&self, generation: i64) -> Option<Vec<&Overlay>> {
        match &self.frozen {
            Some(frozen) if generation == frozen.from => Some(vec![&frozen.overlay, &self.fresh]),
            Some(frozen) if generation == frozen.to => Some(vec![&self.fresh]),
            None if generation == self.generation => Some(vec![&self.fresh]),
            _ => None,
        }
    }
}
