//! The command line, and what it means for the size of a run.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

/// Strike a whole system with faults under load, and say what was lost, doubled or out of order
///
/// Needs Kafka, PostgreSQL and toxiproxy as `tests/stack` starts them; `scripts/chaos` does all of it.
#[derive(Clone, Debug, Parser)]
#[command(name = "streamgauge-chaos", version)]
pub struct Options {
    /// Print the faults and end
    #[arg(long)]
    pub list: bool,
    /// Only these faults, by number or name; may be repeated
    #[arg(long, value_name = "FAULT")]
    pub only: Vec<String>,
    /// All faults, at full length and 1,000,000 events each
    #[arg(long)]
    pub full: bool,
    /// Events of each run
    #[arg(long, value_name = "N")]
    pub events: Option<u64>,
    /// Events submitted per second
    #[arg(long, value_name = "N")]
    pub rate: Option<u32>,
    /// Users that the events are keyed over
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    pub users: u32,
    /// Seed of the load and of the moments at which faults strike
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Most resident memory of a service, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 768)]
    pub memory_mib_max: u64,
    /// Longest time from the end of a fault to the lag from before it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub recovery_s_max: u64,
    /// How many times slower than usual this machine may be: what a service takes to be ready is held to so much more.
    /// Losses, doubles and order are held to the same in any case
    #[arg(long, value_name = "FACTOR", default_value_t = 1)]
    pub slack: u32,
    /// The binary under test; by default the one beside this program
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Where the report and the logs of failed runs go
    #[arg(long, value_name = "FOLDER", default_value = "target/chaos")]
    pub output: PathBuf,
    /// A setting of the services, as in `consumer.telemetry.log.filter=debug`; may be repeated
    #[arg(long, value_name = "SERVICE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Keep the logs of the processes of every run, not only of those that failed
    #[arg(long)]
    pub keep_logs: bool,
    /// Switch one protection of `streamgauge-mutant` off: chain, dedupe or idempotence
    #[arg(long, value_name = "NAME")]
    pub mutation: Option<String>,
    /// Succeed only if every run finds losses or doubles: a harness that cannot fail proves nothing
    #[arg(long)]
    pub expect_damage: bool,
}

/// How large and how long runs are.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Least number of events; the load goes on until the fault is over.
    pub events: u64,
    /// Events per second.
    pub rate: u32,
    /// Kills of each service.
    pub kills: usize,
    /// How long something is away.
    pub outage: Duration,
    /// How long the database is away.
    pub database_outage: Duration,
    /// Cuts of connections, or of power.
    pub cuts: usize,
    /// Joins and leaves in a rebalance storm.
    pub changes: usize,
    /// How long each kind of network trouble lasts.
    pub trouble: Duration,
    /// Whether this is the full size.
    pub full: bool,
}

impl Options {
    /// The size that the command line asks for.
    pub fn size(&self) -> Size {
        let mut size = if self.full {
            Size {
                events: 1_000_000,
                rate: 8_000,
                kills: 20,
                outage: Duration::from_secs(20),
                database_outage: Duration::from_secs(300),
                cuts: 30,
                changes: 12,
                trouble: Duration::from_secs(8),
                full: true,
            }
        } else {
            Size {
                events: 50_000,
                rate: 2_500,
                kills: 7,
                outage: Duration::from_secs(6),
                database_outage: Duration::from_secs(10),
                cuts: 8,
                changes: 4,
                trouble: Duration::from_secs(2),
                full: false,
            }
        };
        size.events = self.events.unwrap_or(size.events);
        size.rate = self.rate.unwrap_or(size.rate).max(1);
        size
    }
}
