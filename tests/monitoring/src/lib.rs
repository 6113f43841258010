//! The proof that the monitoring works against a live system: the real Prometheus and Alertmanager with the repository's
//! own rules and routes, real faults, and a webhook receiver that says when who heard of them.
//!
//! Only time is made shorter. The system is reached by its public surface: HTTP, gRPC, topics, signals, files.

pub mod alertmanager;
pub mod bench;
pub mod cost;
pub mod failure;
pub mod faults;
pub mod inbox;
pub mod live;
pub mod load;
pub mod options;
pub mod prometheus;
pub mod report;
pub mod shorten;
pub mod story;
pub mod traces;
