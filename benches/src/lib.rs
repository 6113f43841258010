//! Load and clocks for measurements side by side with Kafka's own tools.
//!
//! Nothing here judges: it makes load, reads clocks and prints a line of JSON per measurement.
//! `scripts/bench` puts the lines of one run beside each other and computes the ratios.

pub mod drain;
pub mod events;
pub mod fill;
pub mod freshness;
pub mod http;
pub mod usage;
