//! `streamgauge rebuild`: every aggregate counted again from the events themselves, beside the running system.
//!
//! It composes what decides in the consumer, which is pure, with what keeps rows in analytics: events are read from the
//! log, judged by the owner's own code, and written to rows that nobody is served from. When they have caught up they are
//! compared with what is served, and swapped in by one transaction. The services need not know of it before that.

mod error;
mod live;
mod pace;
mod report;
mod run;
mod settings;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Args;
use streamgauge_analytics::{
    metrics::AnalyticsMetrics,
    rebuild::{Generation, RebuildError},
    store::{self, Observed, Store},
};
use streamgauge_kafka::{FetchConfig, KafkaConfig, KafkaError, LogReader, admin};
use streamgauge_lifecycle::SystemClock;
use streamgauge_settings::ConfigArgs;
use streamgauge_telemetry::Metrics;

pub use self::settings::{ENV_PREFIX, RebuildConfig};
use self::{
    error::{Failure, store_failed},
    report::{Ending, Report},
    run::Rebuild,
    settings::SystemConfig,
};
use crate::{
    endpoints::EndpointArgs,
    error::{CliError, Exit},
    output::Output,
    signals::Signals,
};

/// Count every aggregate again from the events, compare it with what is served, and swap it in
///
/// Runs beside the running system, which goes on counting and answering. The settings by which it
/// counts are those of the system: of `streamgauge up` as it reads them, or with --separate those of
/// the consumer and of analytics. Where retention has removed events, the batches that counted them
/// stand in for them.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge rebuild --dry-run
  streamgauge rebuild --data-dir /var/lib/streamgauge
  streamgauge rebuild --separate --consumer-config consumer.toml --analytics-config analytics.toml
  streamgauge rebuild --set events_per_second_max=5000 --json
  streamgauge rebuild --prune

Exit codes: 0 swapped, or with --dry-run equal; 1 different and not swapped; 2 it cannot be done, as when
another rebuild is under way; 3 the log or the store does not answer; 4 stopped. Unless it is 0 without
--dry-run, what is served is as it was.")]
pub struct RebuildArgs {
    /// Compare only, and say what differs
    #[arg(long)]
    dry_run: bool,
    /// Swap even where the rebuilt figures are less than what is served
    #[arg(long, conflicts_with = "dry_run")]
    accept: bool,
    /// Rebuild from what is left when both events and the batches that counted them are gone
    #[arg(long)]
    from_truncated: bool,
    /// Delete the rows that were served before the last swap, and do nothing else
    #[arg(long, conflicts_with_all = ["dry_run", "accept", "from_truncated"])]
    prune: bool,
    /// The folder of a running `streamgauge up` [default: data]
    #[arg(long, value_name = "DIR", conflicts_with = "separate")]
    data_dir: Option<PathBuf>,
    /// The settings file of a running `streamgauge up`
    #[arg(long, value_name = "FILE", conflicts_with = "separate")]
    up_config: Option<PathBuf>,
    /// The services run separately; take their settings as they do
    #[arg(long)]
    separate: bool,
    /// The settings file of the consumer
    #[arg(long, value_name = "FILE", requires = "separate")]
    consumer_config: Option<PathBuf>,
    /// The settings file of analytics
    #[arg(long, value_name = "FILE", requires = "separate")]
    analytics_config: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// Runs the command.
///
/// # Errors
/// When it cannot be done; what is served is as it was.
pub async fn run(args: RebuildArgs, output: &mut Output) -> Result<Exit, CliError> {
    let config: RebuildConfig = args
        .config
        .loader(ENV_PREFIX)
        .load()
        .map_err(|error| CliError::Settings(Box::new(error)))?;
    if args.config.print_config {
        output.settings(&config)?;
        return Ok(Exit::Ok);
    }
    config.check()?;
    let system = SystemConfig::load(&args)?;
    let brokers = system.consumer.kafka.brokers.clone();
    let store = open(&system).await.map_err(store_failed)?;
    let done = with_store(&args, &config, &system, &store, output).await;
    store.close().await;
    match done {
        Err(Failure::Stopped) => {
            output.note(Failure::Stopped.to_string())?;
            Ok(Exit::Partial)
        }
        done => done.map_err(|failure| failure.told(&brokers)),
    }
}

async fn open(system: &SystemConfig) -> Result<Arc<dyn Store>, store::StoreError> {
    let config = &system.analytics.store;
    let metrics = AnalyticsMetrics::register(&Metrics::new("rebuild"));
    let store = store::open(config)?;
    let store = Observed::new(store, config, metrics);
    store.migrate().await?;
    Ok(Arc::new(store))
}

async fn with_store(
    args: &RebuildArgs,
    config: &RebuildConfig,
    system: &SystemConfig,
    store: &Arc<dyn Store>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let kafka = KafkaConfig {
        client_id: String::from("streamgauge-rebuild"),
        ..system.consumer.kafka.clone()
    };
    // Asked before anything is begun: without the log there is nothing to do.
    let partitions = if args.prune {
        0
    } else {
        partitions(&kafka, system).await?
    };
    let analytics = Arc::new(system.analytics.clone());
    let lease = Duration::from_millis(config.lease_ms);
    let clock = SystemClock::shared();
    let generation = Generation::begin(Arc::clone(store), analytics, clock, lease).await?;
    if args.prune {
        generation.discard().await?;
        let text = "the rows that are not served were deleted";
        output.line(text).map_err(CliError::from)?;
        return Ok(Exit::Ok);
    }
    let settings = system.consumer.partition().map_err(wrong)?;
    let mut rebuild = Rebuild {
        config,
        system,
        settings: Arc::new(settings),
        reader: LogReader::new(&kafka, &FetchConfig::default(), None)?,
        generation,
        from_truncated: args.from_truncated,
        stop: on_signal()?,
    };
    let done = rebuild.run(partitions, output).await;
    finish(args, rebuild.generation, done, output).await
}

async fn finish(
    args: &RebuildArgs,
    generation: Generation,
    done: Result<
        (
            Vec<run::Rebuilt>,
            streamgauge_analytics::rebuild::Comparison,
            pace::Pace,
        ),
        Failure,
    >,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let (partitions, comparison, pace) = match done {
        Ok(done) => done,
        Err(failure) => {
            // What failed first is what matters; the lock expires by itself.
            let _ = generation.discard().await;
            return Err(failure);
        }
    };
    let ending = match (args.dry_run, comparison.total().less > 0 && !args.accept) {
        (true, _) => Ending::DryRun,
        (false, true) => Ending::Refused,
        (false, false) => Ending::Swapped,
    };
    if ending == Ending::Swapped {
        generation.swap().await?;
    } else {
        generation.discard().await?;
    }
    let (events, took) = pace.finish();
    let report = Report {
        partitions,
        comparison,
        ending,
        events,
        took,
    };
    report.print(output).map_err(CliError::from)?;
    Ok(report.exit())
}

fn wrong(error: impl std::error::Error + Send + Sync + 'static) -> CliError {
    CliError::Settings(Box::new(error))
}

/// The partitions of both topics, which are as many.
async fn partitions(kafka: &KafkaConfig, system: &SystemConfig) -> Result<i32, Failure> {
    let topics = &system.consumer.topics;
    let count = |topic: &String| {
        let topic = topic.clone();
        async move {
            let count = admin::partition_count(kafka, &topic).await?;
            count.ok_or(KafkaError::UnknownTopic(topic))
        }
    };
    let (expected, found) = (count(&topics.events).await?, count(&topics.metrics).await?);
    if expected == found {
        return Ok(expected);
    }
    Err(KafkaError::PartitionMismatch {
        topic: topics.metrics.clone(),
        found,
        expected,
    }
    .into())
}

/// Set by the first signal, so that the rebuild ends in order; the second one ends the process.
fn on_signal() -> Result<Arc<AtomicBool>, CliError> {
    let mut signals = Signals::new()?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    tokio::spawn(async move {
        loop {
            signals.next().await;
            if told.swap(true, Ordering::Relaxed) {
                std::process::exit(Exit::Partial as i32);
            }
        }
    });
    Ok(stop)
}

impl From<store::StoreError> for Failure {
    fn from(error: store::StoreError) -> Self {
        Self::Store(RebuildError::Store(error))
    }
}
