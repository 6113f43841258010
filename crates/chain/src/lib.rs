//! The chain: how any reader of `metrics-data` decides which delta batches count.
//!
//! A batch covers a half-open range of source offsets. It is valid when its `from` equals the
//! head that the batches before it have reached; then its `to` is the new head. Any other batch
//! is void, for every reader alike. So the order of the log decides, as a compare-and-swap
//! would, and each source offset is counted by exactly one valid batch.
//!
//! The consumer (which writes batches), analytics (which applies them) and the audit (which adds
//! them up) all use this code. It is pure: no IO, no clock, no randomness, no panic on any input.

pub mod canary;
pub mod delta;
mod ledger;
#[cfg(feature = "mutations")]
pub mod mutation;
mod rule;
pub mod sketch;

pub use delta::{DeltaError, TraceBytes};
pub use ledger::{Ledger, Outcomes};
pub use rule::{Chain, Range, Step, Verdict};
