//! A bounded queue on disk for records that were promised to somebody and cannot be delivered yet.
//!
//! What it promises: a record whose append was confirmed is on the disk (a group of waiting appends shares one sync);
//! it is given back in the order of the appends, over kill -9 and restarts, until it is acknowledged; and damage is
//! told, never passed on: a record comes back byte for byte or is named as lost. The last few acknowledgements may be
//! forgotten in a crash, so that records come again: whoever takes them must be able to tell.
//!
//! It knows neither Kafka nor events: a record is a time and bytes. Memory is bounded by what one sync and one read
//! carry, the disk by [`Limits::bytes_max`].
//!
//! A spool is a folder of segments, append-only files of checksummed [`frame`]s. A segment's name says everything about
//! it, so that there is no header to be damaged. After a failed write or sync the segment is never written to again:
//! what the page cache makes of it is anybody's guess. The next segment's name says where the valid part ends.

mod append;
mod drain;
mod error;
mod files;
pub mod frame;
mod open;
mod position;
mod probe;
mod reader;
mod segment;
mod state;

#[cfg(test)]
mod faulty;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod spool_tests;

pub use append::{Records, Spool, WeakSpool};
pub use drain::Drainer;
pub use error::{AppendError, Damage, ErrorKind, Observer, SpoolError};
pub use files::{Appending, Disk, Files};
pub use open::{Deps, open};
pub use reader::{Stored, Stretch};
pub use state::{Account, Depth, Limits};
