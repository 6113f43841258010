//! The command line.

use clap::{Parser, ValueEnum};

/// Prove that the monitoring works against a live system
///
/// Needs Prometheus, Alertmanager, sqlite3 and Node.js; `scripts/test-monitoring` sees to that.
#[derive(Clone, Debug, Parser)]
#[command(name = "streamgauge-monitoring", version)]
pub struct Options {
    /// Only these parts; may be repeated
    #[arg(long, value_name = "PART", value_enum)]
    pub only: Vec<Part>,
    /// Seconds of each measurement of what monitoring costs
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    pub cost_seconds: u64,
    /// Rounds of measurements; each has one with monitoring and one without
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub cost_rounds: usize,
}

/// A part of the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// promtool and amtool, every panel's query, exemplars and traces, the canary: on a system that is well
    Live,
    /// Faults that clients make
    Clients,
    /// Poison, and a consumer that is held
    Held,
    /// Processes that die
    Processes,
    /// A store that takes no writes
    Store,
    /// Faults of the monitoring itself
    Monitoring,
    /// What monitoring costs
    Cost,
}

impl Options {
    /// Whether a part was asked for.
    pub fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}
