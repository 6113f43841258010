//! `streamgauge audit`: every event accounted for, from the log itself.
//!
//! It reads `metrics-data` from its beginning with the rule that consumer and analytics obey, and
//! holds the result against the ends of the source, the dead letters, the store and what producers
//! acknowledged. It judges by itself, by the same code as analytics, and changes nothing.

mod books;
mod dead_letters;
mod range;
mod report;
mod services;
mod view;
mod watch;

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use streamgauge_kafka::{FetchConfig, KafkaConfig, KafkaError};
use streamgauge_settings::ConfigArgs;

use self::{books::Books, services::Services};
use crate::{
    endpoints::EndpointArgs,
    error::{CliError, Exit},
    output::Output,
    times,
};

/// Add up producers, both topics, dead letters and the store, and say whether the books balance
///
/// For each partition: end - start = counted + duplicate + late + dead-lettered + missing +
/// no record + in flight. What producers accepted must lie in the log or wait in their spools; what the
/// store holds, and what its rows add up to, must be what the batches that it applied say. Runs against
/// a live system.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge audit
  streamgauge audit --watch --every 5s
  streamgauge audit --from now-1h --to now
  streamgauge audit --brokers kafka1:9092,kafka2:9092 --producers p1:50051,p2:50051 --json
  streamgauge audit --no-store --no-producers
  streamgauge audit --config audit.toml --set kafka.sasl_username=auditor

Exit codes: 0 balanced; 1 broken; 2 wrong use, or topics that are not there or do not match; 3 the log
does not answer, or analytics does not, so that the store was not compared (--no-store accepts that).
A producer that does not answer is told, and is no reason to fail: it keeps no state.
With --watch: 1 when any round was broken, else the code of the last round.

A range (--from, --to) is one of log time: when the producer took the event. The offsets of that time
are taken from the source; a batch that lies across an edge of the range is counted whole, and the
range that this makes is printed. Whether the books balance is judged over everything all the same.")]
pub struct AuditArgs {
    /// Wait this long for each service
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = times::duration)]
    timeout: Duration,
    /// Do not compare the store
    #[arg(long)]
    no_store: bool,
    /// The gRPC addresses of all producers [default: that of --producer-grpc]
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    producers: Vec<String>,
    /// Do not ask the producers
    #[arg(long, conflicts_with = "producers")]
    no_producers: bool,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    range: range::RangeArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// Whether and how often it is repeated.
#[derive(Clone, Debug, Args)]
struct WatchArgs {
    /// Repeat until Ctrl-C: a line when something changed, and a sign of life when nothing did; with --json one
    /// document per line
    #[arg(long, conflicts_with_all = ["from", "to"])]
    watch: bool,
    /// Time between two rounds
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = times::duration, requires = "watch")]
    every: Duration,
}

/// The settings of an audit; their environment variables begin with `STREAMGAUGE_AUDIT_`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// How to reach Kafka. `--brokers` wins over `kafka.brokers`.
    pub kafka: KafkaConfig,
    /// How to read.
    pub fetch: FetchConfig,
    /// The topics.
    pub topics: TopicsConfig,
    /// Most dead letters that are compared; 16 bytes each. With more they are not compared.
    pub dead_letters_max: usize,
    /// Most batches of a partition that are remembered to know a copy of one by; 150 bytes each.
    pub batches_known_max: usize,
    /// With --watch: most batches of a partition by which the store may lag and still be compared; 100 bytes each.
    pub watch_batches_max: usize,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            kafka: KafkaConfig {
                client_id: String::from("streamgauge-audit"),
                ..KafkaConfig::default()
            },
            fetch: FetchConfig::default(),
            topics: TopicsConfig::default(),
            dead_letters_max: 10_000_000,
            batches_known_max: 20_000,
            watch_batches_max: 100_000,
        }
    }
}

/// The topics that are added up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicsConfig {
    /// Events, as the producer writes them.
    pub events: String,
    /// Delta batches, as the consumer writes them.
    pub metrics: String,
    /// Records that are not counted.
    pub dead_letters: String,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self {
            events: String::from("analytics-events"),
            metrics: String::from("metrics-data"),
            dead_letters: String::from("analytics-events.dlq"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the settings are wrong or the log does not answer.
pub async fn run(args: AuditArgs, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = args.endpoints.resolve()?;
    let mut loader = args.config.loader("STREAMGAUGE_AUDIT");
    if args.endpoints.brokers.is_some() || args.endpoints.endpoints.is_some() {
        loader = loader.override_with("kafka.brokers", &endpoints.brokers);
    }
    let config: AuditConfig = loader
        .load()
        .map_err(|error| CliError::Settings(Box::new(error)))?;
    if args.config.print_config {
        output.settings(&config)?;
        return Ok(Exit::Ok);
    }
    let range = args.range.resolve(times::now_us())?;
    let producers = if args.no_producers {
        Vec::new()
    } else if args.producers.is_empty() {
        vec![endpoints.producer_grpc.clone()]
    } else {
        args.producers.clone()
    };
    let services = Services {
        analytics: (!args.no_store).then(|| endpoints.analytics_grpc.clone()),
        producers,
        timeout: args.timeout,
    };
    let brokers = config.kafka.brokers.clone();
    let trail = if args.watch.watch {
        config.watch_batches_max.max(1)
    } else {
        0
    };
    let mut books =
        Books::new(config, range, trail).map_err(|error| unreachable(&brokers, error))?;
    if args.watch.watch {
        return watch::run(books, &services, &brokers, args.watch.every, output).await;
    }
    let report = books
        .look(services.ask().await)
        .await
        .map_err(|error| unreachable(&brokers, error))?;
    report.print(output)?;
    Ok(report.exit())
}

fn unreachable(brokers: &str, error: KafkaError) -> CliError {
    match error {
        KafkaError::Config { .. } => CliError::Settings(Box::new(error)),
        KafkaError::UnknownTopic(topic) => CliError::usage(format!(
            "topic {topic} does not exist at {brokers}: set topics.events and topics.metrics to the names that the \
             services use"
        )),
        KafkaError::PartitionMismatch {
            topic,
            found,
            expected,
        } => CliError::usage(format!(
            "topic {topic} has {found} partitions and the events' topic has {expected}: topics.events and \
             topics.metrics are not of one system, or one of them was made anew"
        )),
        error => CliError::unreachable("the log", brokers, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_do_not_fit_are_wrong_use() {
        let unknown = unreachable("h:1", KafkaError::UnknownTopic(String::from("events")));
        assert_eq!(unknown.exit(), Exit::Usage);
        assert!(
            unknown.to_string().contains("topic events does not exist"),
            "{unknown}"
        );
        let mismatch = KafkaError::PartitionMismatch {
            topic: String::from("metrics"),
            found: 3,
            expected: 4,
        };
        let mismatch = unreachable("h:1", mismatch);
        assert_eq!(mismatch.exit(), Exit::Usage);
        assert!(mismatch.to_string().contains("metrics has 3"), "{mismatch}");
    }
}
