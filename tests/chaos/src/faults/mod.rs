//! The faults, by number: how each system is set up, and how it is struck.

mod clocks;
mod data;
mod disks;
mod mean;
mod monitoring;
mod network;
mod overload;
mod processes;
mod spool;

use std::time::Duration;

use crate::{
    failure::Failure,
    options::Options,
    report::Row,
    stack::Stack,
    system::Ground,
    trial::{Setup, Trial},
};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table below says what each is")]
pub enum Fault {
    Kills,
    Zombie,
    Drain,
    Broker,
    Network,
    LostAnswers,
    DiskFull,
    Database,
    Cache,
    Poison,
    SlowConsumer,
    Storm,
    Clocks,
    Monitoring,
    Overload,
    Truncation,
    PowerCut,
    Spool,
}

/// What is known of a fault.
pub struct Entry {
    /// The fault.
    pub fault: Fault,
    /// Its number.
    pub number: u8,
    /// Its name on the command line and in the table.
    pub name: &'static str,
    /// Whether it is one of those that every change must pass.
    pub usual: bool,
    /// What is done.
    pub what: &'static str,
}

/// All faults.
pub const FAULTS: [Entry; 18] = [
    entry(
        Fault::Kills,
        1,
        "kills",
        true,
        "each service killed with -9 at random moments; ready within 10 s",
    ),
    entry(
        Fault::Zombie,
        2,
        "zombie",
        true,
        "a consumer stopped, then one whose writes are held up, past its session time-out while another takes over",
    ),
    entry(
        Fault::Drain,
        3,
        "drain",
        true,
        "SIGTERM under load; no 5xx once readiness is down",
    ),
    entry(
        Fault::Broker,
        4,
        "broker",
        true,
        "Kafka stopped and restarted, then killed with -9 and restarted",
    ),
    entry(
        Fault::Network,
        5,
        "network",
        true,
        "latency, low bandwidth, silence and resets between each service and Kafka",
    ),
    entry(
        Fault::LostAnswers,
        6,
        "lost-answers",
        true,
        "answers lost on their way to clients, who retry",
    ),
    entry(
        Fault::DiskFull,
        7,
        "disk-full",
        false,
        "Kafka's disk full, then emptied",
    ),
    entry(
        Fault::Database,
        8,
        "database",
        true,
        "PostgreSQL stopped; then connections cut while commits are under way",
    ),
    entry(Fault::Cache, 9, "cache", false, "Redis down"),
    entry(
        Fault::Poison,
        10,
        "poison",
        true,
        "garbage, truncated, oversized, empty and wrongly keyed records written straight to the topic",
    ),
    entry(
        Fault::SlowConsumer,
        11,
        "slow-consumer",
        false,
        "the consumer gets a tenth of the time, or a hundredth where that is enough",
    ),
    entry(
        Fault::Storm,
        12,
        "storm",
        false,
        "a second consumer joins or leaves every 10 s",
    ),
    entry(
        Fault::Clocks,
        13,
        "clocks",
        false,
        "clients and one service an hour ahead and an hour behind",
    ),
    entry(
        Fault::Monitoring,
        14,
        "monitoring",
        false,
        "the trace collector and Prometheus silent, slow or away",
    ),
    entry(
        Fault::Overload,
        15,
        "overload",
        false,
        "ten times the capacity, beside slow senders, decompression bombs and 10,000 client addresses",
    ),
    entry(
        Fault::Truncation,
        16,
        "truncation",
        true,
        "both topics cut by DeleteRecords beyond what was read",
    ),
    entry(
        Fault::PowerCut,
        17,
        "power-cut",
        true,
        "the embedded system killed with -9, and its disk cut off with all that was not synced",
    ),
    entry(
        Fault::Spool,
        18,
        "spool",
        true,
        "as broker, but the producer has a spool and is killed the while; nobody is refused",
    ),
];

const fn entry(
    fault: Fault,
    number: u8,
    name: &'static str,
    usual: bool,
    what: &'static str,
) -> Entry {
    Entry {
        fault,
        number,
        name,
        usual,
        what,
    }
}

/// The faults that the command line asks for.
///
/// # Errors
/// Names the one that does not exist.
pub fn chosen(options: &Options) -> Result<Vec<&'static Entry>, Failure> {
    if options.only.is_empty() {
        let wanted = |entry: &&Entry| options.full || entry.usual;
        return Ok(FAULTS.iter().filter(wanted).collect());
    }
    let find = |name: &String| {
        let found = FAULTS
            .iter()
            .find(|entry| entry.name == name || entry.number.to_string() == *name);
        found.ok_or_else(|| Failure::Unmet(format!("there is no fault {name}; --list tells")))
    };
    options.only.iter().map(find).collect()
}

/// Runs one fault from the start of its system to the judgement.
pub async fn run(entry: &Entry, options: &Options, stack: &Stack) -> Row {
    let mut row = Row::new(entry.number, entry.name);
    match entry.fault {
        Fault::Cache => {
            row.notes
                .push(String::from("not applicable yet: the product has no Redis"));
            row
        }
        Fault::DiskFull => disks::full(row, options, stack).await,
        Fault::PowerCut => disks::power_cut(row, options).await,
        Fault::Spool => spool::spool(row, options, stack).await,
        fault => {
            let setup = setup(fault, stack).await;
            let setup = match setup {
                Ok(setup) => setup,
                Err(failure) => return broken(row, &failure),
            };
            match Trial::begin(options, row.clone(), setup).await {
                Ok(mut trial) => {
                    let struck = strike(fault, &mut trial, stack).await;
                    trial.conclude(struck).await
                }
                Err(failure) => broken(row, &failure),
            }
        }
    }
}

/// A run that did not get as far as to strike.
fn broken(mut row: Row, failure: &Failure) -> Row {
    row.verdict = crate::report::Verdict::Failed;
    row.broken.push(failure.to_string());
    row
}

/// How the system is set up for a fault on real components.
async fn setup<'a>(fault: Fault, stack: &'a Stack) -> Result<Setup<'a>, Failure> {
    let mut setup = Setup {
        settings: Vec::new(),
        ground: Ground::Stack {
            stack,
            proxied: &[],
            postgres_port: stack.postgres_port,
        },
        load: Some(Box::new(|_| {})),
    };
    match fault {
        Fault::Kills => setup.settings = processes::KILLS_SETTINGS.map(String::from).into(),
        Fault::Storm => setup.settings = vec![String::from(processes::SHORT_SESSION)],
        Fault::Zombie => processes::setup_zombie(&mut setup, stack).await?,
        Fault::Drain => {
            setup.settings = vec![String::from("producer.shutdown_delay_ms=1000")];
        }
        Fault::Network => network::setup_network(&mut setup, stack).await?,
        // They bring their own load.
        Fault::LostAnswers => setup.load = None,
        Fault::Database => network::setup_database(&mut setup, stack).await?,
        Fault::Clocks => clocks::setup(&mut setup),
        Fault::Monitoring => monitoring::setup(&mut setup, stack).await?,
        Fault::Overload => overload::setup(&mut setup, stack).await?,
        _ => {}
    }
    Ok(setup)
}

async fn strike(fault: Fault, trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    match fault {
        Fault::Kills => processes::kills(trial).await,
        Fault::Zombie => processes::zombie(trial, stack).await,
        Fault::Drain => processes::drain(trial).await,
        Fault::SlowConsumer => processes::slow_consumer(trial).await,
        Fault::Storm => processes::storm(trial).await,
        Fault::Broker => network::broker(trial, stack).await,
        Fault::Network => network::network(trial, stack).await,
        Fault::LostAnswers => network::lost_answers(trial, stack).await,
        Fault::Database => network::database(trial, stack).await,
        Fault::Poison => data::poison(trial).await,
        Fault::Truncation => data::truncation(trial, stack).await,
        Fault::Clocks => clocks::clocks(trial).await,
        Fault::Monitoring => monitoring::monitoring(trial, stack).await,
        Fault::Overload => overload::overload(trial, stack).await,
        // These have systems of their own, or none.
        Fault::Cache | Fault::DiskFull | Fault::PowerCut | Fault::Spool => Ok(()),
    }
}

/// A service must be ready so long after its start.
const READY_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn chosen_by(arguments: &[&str]) -> Vec<u8> {
        let arguments = ["streamgauge-chaos"].iter().chain(arguments);
        let options = Options::parse_from(arguments);
        let entries = chosen(&options).expect("they exist");
        entries.iter().map(|entry| entry.number).collect()
    }

    #[test]
    fn numbers_are_in_order_and_eleven_are_usual() {
        assert_eq!(chosen_by(&["--full"]), (1..=18).collect::<Vec<u8>>());
        assert_eq!(chosen_by(&[]).len(), 11);
    }

    #[test]
    fn faults_are_found_by_name_and_by_number() {
        assert_eq!(chosen_by(&["--only", "zombie", "--only", "9"]), [2, 9]);
        let options = Options::parse_from(["streamgauge-chaos", "--only", "19"]);
        assert!(chosen(&options).is_err());
    }
}
