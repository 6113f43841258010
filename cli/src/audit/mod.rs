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

use self::{dead_letters::DeadLetters, fold::Fold, judge::PartitionFacts, report::Report};
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
  streamgauge audit --config audit.toml --set kafka.sasl_username=auditor

Exit codes: 0 balanced; 1 broken; 2 wrong use; 3 the log does not answer.")]
pub struct AuditArgs {
    /// Wait this long for analytics
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = times::duration)]
    timeout: Duration,
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
        output.line(streamgauge_settings::print(&config))?;
        return Ok(Exit::Ok);
    }
    // The store is asked first: then the log, which it follows, can only be further on.
    let store = store_ledger(&endpoints, args.timeout).await;
    let brokers = config.kafka.brokers.clone();
    let report = Audit::new(config).map_err(|error| unreachable(&brokers, error))?;
    let report = report
        .run(store)
        .await
        .map_err(|error| unreachable(&brokers, error))?;
    report.print(output)?;
    Ok(report.exit())
}

async fn store_ledger(
    endpoints: &Endpoints,
    timeout: Duration,
) -> Result<Vec<PartitionLedger>, String> {
    let ask = async {
        let mut analytics = Analytics::connect(&endpoints.analytics_grpc, timeout).await?;
        let answer = analytics.calls.ledger(LedgerRequest {}).await;
        answer.map_err(|status| analytics.refused(status))
    };
    ask.await
        .map(|answer| answer.into_inner().partitions)
        .map_err(|error| describe(&error))
}

fn unreachable(brokers: &str, error: KafkaError) -> CliError {
    match error {
        KafkaError::Config { .. } => CliError::Settings(Box::new(error)),
        error => CliError::unreachable("the log", brokers, error),
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
    async fn run(&self, store: Result<Vec<PartitionLedger>, String>) -> Result<Report, KafkaError> {
        let partitions = self.partitions().await?;
        let bar = progress_bar::counting("records");
        let mut folds = Vec::new();
        for partition in 0..partitions {
            let known = store.as_ref().ok();
            let known = known.and_then(|all| all.iter().find(|row| row.partition == partition));
            folds.push(
                self.fold(partition, known.map(|row| row.head), &bar)
                    .await?,
            );
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
                store: store
                    .as_ref()
                    .ok()
                    .and_then(|all| all.iter().find(|row| row.partition == partition))
                    .cloned(),
                fold,
            });
        }
        bar.finish_and_clear();
        Ok(Report {
            facts,
            dead_letters_unknown: letters.incomplete,
            dead_letters_foreign: letters.foreign,
            store_unknown: store.err(),
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
