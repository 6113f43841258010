//! `streamgauge audit`: every event accounted for, from the log itself.
//!
//! It reads `metrics-data` from its beginning with the rule that consumer and analytics obey, and
//! holds the result against the ends of the source, the dead letters and the store. It asks no
//! service to vouch for itself and changes nothing.

mod dead_letters;
mod fold;
mod judge;
mod report;

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use streamgauge_kafka::{FetchConfig, KafkaConfig, KafkaError, LogReader, admin};
use streamgauge_proto::v1::{LedgerRequest, PartitionLedger};
use streamgauge_settings::ConfigArgs;

use self::{
    dead_letters::DeadLetters,
    fold::Fold,
    judge::PartitionFacts,
    report::{Compared, Report},
};
use crate::{
    client::Analytics,
    endpoints::{EndpointArgs, Endpoints},
    error::{CliError, Exit, describe},
    output::Output,
    progress_bar, times,
};

/// Add up both topics, the dead letters and the store, and say whether the books balance
///
/// For each partition: end - start = counted + duplicate + late + dead-lettered + missing +
/// no record + in flight. What analytics says is compared with the batches that it applied.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge audit
  streamgauge audit --brokers kafka1:9092,kafka2:9092 --json
  streamgauge audit --no-store
  streamgauge audit --config audit.toml --set kafka.sasl_username=auditor

Exit codes: 0 balanced; 1 broken; 2 wrong use, or topics that are not there or do not match; 3 the log
does not answer, or analytics does not, so that the store was not compared (--no-store accepts that).")]
pub struct AuditArgs {
    /// Wait this long for analytics
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = times::duration)]
    timeout: Duration,
    /// Do not compare the store
    #[arg(long)]
    no_store: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
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
    // The store is asked first: then the log, which it follows, can only be further on.
    let store = if args.no_store {
        Store::LeftOut
    } else {
        store_ledger(&endpoints, args.timeout).await
    };
    let brokers = config.kafka.brokers.clone();
    let report = Audit::new(config).map_err(|error| unreachable(&brokers, error))?;
    let report = report
        .run(store)
        .await
        .map_err(|error| unreachable(&brokers, error))?;
    report.print(output)?;
    Ok(report.exit())
}

async fn store_ledger(endpoints: &Endpoints, timeout: Duration) -> Store {
    let ask = async {
        let mut analytics = Analytics::connect(&endpoints.analytics_grpc, timeout).await?;
        let answer = analytics.calls.ledger(LedgerRequest {}).await;
        answer.map_err(|status| analytics.refused(status))
    };
    match ask.await {
        Ok(answer) => Store::Answered(answer.into_inner().partitions),
        Err(error) => Store::Silent(describe(&error)),
    }
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

/// What the store says.
enum Store {
    /// Its ledger, of the partitions that it has heard of.
    Answered(Vec<PartitionLedger>),
    /// Nothing; the reason.
    Silent(String),
    /// It is not asked.
    LeftOut,
}

impl Store {
    /// A partition that a store does not mention is one of which it has applied nothing.
    fn partition(&self, partition: i32) -> Option<PartitionLedger> {
        let Self::Answered(rows) = self else {
            return None;
        };
        let row = rows.iter().find(|row| row.partition == partition);
        Some(row.cloned().unwrap_or(PartitionLedger {
            partition,
            ..PartitionLedger::default()
        }))
    }

    fn compared(&self) -> Compared {
        match self {
            Self::Answered(_) => Compared::Yes,
            Self::Silent(reason) => Compared::No(reason.clone()),
            Self::LeftOut => Compared::LeftOut,
        }
    }
}

struct Audit {
    config: AuditConfig,
    reader: LogReader,
}

impl Audit {
    fn new(config: AuditConfig) -> Result<Self, KafkaError> {
        let reader = LogReader::new(&config.kafka, &config.fetch, None)?;
        Ok(Self { config, reader })
    }

    /// Batches before dead letters, dead letters before the ends of the source: each is written
    /// before what was read before it, so that nothing seems to be lacking that is only late.
    async fn run(&self, store: Store) -> Result<Report, KafkaError> {
        let partitions = self.partitions().await?;
        let bar = progress_bar::counting("records");
        let mut folds = Vec::new();
        for partition in 0..partitions {
            let store_head = store.partition(partition).map(|row| row.head);
            folds.push(self.fold(partition, store_head, &bar).await?);
        }
        let letters = self.dead_letters(&bar).await?;
        let mut facts = Vec::new();
        for (partition, fold) in (0..).zip(folds) {
            let source = self
                .reader
                .watermarks(&self.config.topics.events, partition)
                .await?;
            let (base, head) = (fold.ledger.base(), fold.ledger.head());
            facts.push(PartitionFacts {
                partition,
                source_low: source.low,
                source_high: source.high,
                dead_letters: letters.within(partition, base, head),
                store: store.partition(partition),
                fold,
            });
        }
        bar.finish_and_clear();
        Ok(Report {
            facts,
            dead_letters_unknown: letters.incomplete,
            dead_letters_foreign: letters.foreign,
            store: store.compared(),
        })
    }

    /// The partitions of the source, which those of the deltas equal.
    async fn partitions(&self) -> Result<i32, KafkaError> {
        let AuditConfig {
            kafka,
            topics: TopicsConfig {
                events, metrics, ..
            },
            ..
        } = &self.config;
        let count = |topic: String| async move {
            let count = admin::partition_count(kafka, &topic).await?;
            count.ok_or(KafkaError::UnknownTopic(topic))
        };
        let expected = count(events.clone()).await?;
        let found = count(metrics.clone()).await?;
        if found == expected {
            return Ok(expected);
        }
        Err(KafkaError::PartitionMismatch {
            topic: metrics.clone(),
            found,
            expected,
        })
    }

    async fn fold(
        &self,
        partition: i32,
        store_head: Option<i64>,
        bar: &indicatif::ProgressBar,
    ) -> Result<Fold, KafkaError> {
        let topic = &self.config.topics.metrics;
        let ends = self.reader.watermarks(topic, partition).await?;
        let mut fold = Fold::new(ends.low, store_head);
        self.reader
            .read_range(topic, partition, ends.low, ends.high, |chunk| {
                for record in chunk.iter() {
                    fold.record(record.payload);
                }
                bar.inc(chunk.len() as u64);
            })
            .await?;
        Ok(fold)
    }

    async fn dead_letters(&self, bar: &indicatif::ProgressBar) -> Result<DeadLetters, KafkaError> {
        let AuditConfig {
            kafka,
            topics:
                TopicsConfig {
                    events,
                    dead_letters: topic,
                    ..
                },
            ..
        } = &self.config;
        let mut letters = DeadLetters::of(events, self.config.dead_letters_max);
        let Some(partitions) = admin::partition_count(kafka, topic).await? else {
            letters.incomplete = Some(format!("there is no topic {topic}"));
            return Ok(letters);
        };
        for partition in 0..partitions {
            let ends = self.reader.watermarks(topic, partition).await?;
            if ends.low > 0 {
                letters
                    .incomplete
                    .get_or_insert(format!("retention has cut {topic}"));
            }
            self.reader
                .read_range(topic, partition, ends.low, ends.high, |chunk| {
                    chunk.iter().for_each(|record| letters.record(record));
                    bar.inc(chunk.len() as u64);
                })
                .await?;
        }
        Ok(letters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_the_store_does_not_mention_stands_at_its_beginning() {
        let row = PartitionLedger {
            partition: 1,
            head: 7,
            ..PartitionLedger::default()
        };
        let store = Store::Answered(vec![row]);
        let head = |store: &Store, partition| store.partition(partition).map(|row| row.head);
        assert_eq!((head(&store, 1), head(&store, 2)), (Some(7), Some(0)));
        assert_eq!(head(&Store::LeftOut, 1), None);
    }

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
