//! Faults against a whole system of real processes on real Kafka and PostgreSQL, under load, and an oracle that knows
//! only what was acknowledged.
//!
//! A run starts a system of its own, puts it under load, strikes it with one fault, waits until the log is covered, and
//! holds the log, the store and the audit against the oracle. It reaches the system by its public surface alone.

pub mod canary;
pub mod failure;
pub mod faults;
pub mod judge;
pub mod load;
pub mod log_check;
pub mod options;
pub mod oracle;
pub mod report;
pub mod sampler;
pub mod stack;
pub mod system;
pub mod toxiproxy;
pub mod trial;
pub mod volume;
