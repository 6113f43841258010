//! How the canary's events are told from users' events.
//!
//! They go the way of every event and are accounted for like every event, but they are kept apart from users' figures:
//! they add to one series of their own and to no other, and to no user's pages.

/// Their event type.
pub const EVENT_TYPE: &str = "streamgauge.canary";

/// Their series; no other series may have the name. It has one key per user of the canary.
pub const SERIES: &str = "canary";

/// The series of all users' events. What it holds and what [`SERIES`] holds is all that was counted.
pub const ALL: &str = "all";
