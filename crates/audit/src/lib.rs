//! Whether the books balance: one way to judge, for the command that reads the log itself and for the service that
//! follows it.
//!
//! [`Fold`] adds a partition's batches up by the rule that every reader obeys. [`PartitionFacts`] holds the result
//! against the ends of the source, the dead letters and the store; [`StoreSums`] holds what the store's rows add up to
//! against what its chains counted, and what a rebuild counted otherwise; [`ProducerFacts`] holds what a producer accepted
//! against its spool and the log. Each names what does not add up as a [`Break`]: where, by how much, since which offset.
//! [`Notes`] say where the records lie that count for nobody. Pure: no IO, no clock, no panic.

mod breaks;
mod fold;
mod notes;
mod partition;
mod producer;
mod rebuilt;
mod sums;
mod terms;

pub use breaks::{Break, Stage, What};
pub use fold::{Covered, Fold};
pub use notes::{Counted, Kind, Met, Notes, Spot, SpotLine, Spots, Stray, Strays};
pub use partition::{PartitionFacts, store_outcomes};
pub use producer::{Acknowledged, ProducerFacts, SpoolFacts};
pub use rebuilt::{Rebuilt, Shift};
pub use sums::{Pair, StoreSums, Whole};
pub use terms::{Terms, whole};
