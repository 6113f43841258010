//! Questions and answers: pure functions over cells, whatever they come from.
//!
//! Nothing here reads a clock, a store or a view; [`crate::service`] does.

mod aggregate;
mod cover;
mod keys;
mod series;
mod top;

pub use aggregate::Gather;
pub use cover::{Cover, cover};
pub use keys::Filter;
pub use series::{SeriesQuery, series};
pub use top::{TopQuery, distinct, top};

/// The key that stands for all keys beyond a limit.
pub const OTHER: &str = "(other)";
