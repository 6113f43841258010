//! One service alone, so that a single binary serves a cluster too, and the settings of each.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use streamgauge_service::{Deps, Listeners, Settings};
use streamgauge_settings::ConfigArgs;

use crate::{
    audit::AuditConfig,
    broker::BrokerAloneConfig,
    error::{CliError, Exit},
    output::Output,
    rebuild::RebuildConfig,
    up::UpConfig,
};

/// Run the write side alone: events in over HTTP and gRPC, into Kafka
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Example:
  streamgauge producer --config producer.toml --set kafka.brokers=kafka:9092

Environment variables begin with STREAMGAUGE_PRODUCER_. Stops on SIGINT and SIGTERM.")]
pub struct ProducerArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Run the stream processor alone: events from Kafka, delta batches back into it
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Example:
  streamgauge consumer --config consumer.toml --set kafka.brokers=kafka:9092

Environment variables begin with STREAMGAUGE_CONSUMER_. Stops on SIGINT and SIGTERM.")]
pub struct ConsumerArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Run the read side alone: delta batches from Kafka, into the store, out of queries
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Example:
  streamgauge analytics --config analytics.toml --set store.url=postgres://db/streamgauge

Environment variables begin with STREAMGAUGE_ANALYTICS_. Stops on SIGINT and SIGTERM.")]
pub struct AnalyticsArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the producer.
///
/// # Errors
/// When its settings are to be printed and cannot be.
pub async fn producer(args: ProducerArgs, output: &mut Output) -> Result<ExitCode, CliError> {
    serve(args.config, streamgauge_producer::run, output).await
}

/// Runs the consumer.
///
/// # Errors
/// When its settings are to be printed and cannot be.
pub async fn consumer(args: ConsumerArgs, output: &mut Output) -> Result<ExitCode, CliError> {
    serve(args.config, streamgauge_consumer::run, output).await
}

/// Runs analytics.
///
/// # Errors
/// When its settings are to be printed and cannot be.
pub async fn analytics(args: AnalyticsArgs, output: &mut Output) -> Result<ExitCode, CliError> {
    serve(args.config, streamgauge_analytics::run, output).await
}

/// Runs a service, or prints the settings that it would run with.
async fn serve<S: Settings>(
    args: ConfigArgs,
    run: impl AsyncFnOnce(S, Listeners, Deps) -> Result<(), S::Error>,
    output: &mut Output,
) -> Result<ExitCode, CliError> {
    if !args.print_config {
        return Ok(streamgauge_service::main_with(args, run).await);
    }
    let settings: S = args
        .loader(S::ENV_PREFIX)
        .load()
        .map_err(|error| CliError::Settings(Box::new(error)))?;
    settings.check().map_err(CliError::Settings)?;
    Ok(show(&settings, output)?.into())
}

/// Show the settings of a service, as a file that it reads
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Example:
  streamgauge config show producer > producer.toml")]
pub struct ConfigCommandArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum ConfigCommand {
    /// Print the defaults of a service as TOML
    #[command(after_long_help = "\
Example:
  streamgauge config show producer")]
    Show {
        /// Whose settings
        #[arg(value_enum)]
        service: Service,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Service {
    /// All in one process
    Up,
    /// The write side
    Producer,
    /// The stream processor
    Consumer,
    /// The read side
    Analytics,
    /// The embedded log
    Broker,
    /// The audit
    Audit,
    /// The rebuild
    Rebuild,
}

/// Prints settings.
///
/// # Errors
/// When they cannot be printed.
pub fn config(args: &ConfigCommandArgs, output: &mut Output) -> Result<Exit, CliError> {
    let ConfigCommand::Show { service } = args.command;
    match service {
        Service::Up => show(&UpConfig::default(), output),
        Service::Producer => show(&streamgauge_producer::Config::default(), output),
        Service::Consumer => show(&streamgauge_consumer::Config::default(), output),
        Service::Analytics => show(&streamgauge_analytics::Config::default(), output),
        Service::Broker => show(&BrokerAloneConfig::default(), output),
        Service::Audit => show(&AuditConfig::default(), output),
        Service::Rebuild => show(&RebuildConfig::default(), output),
    }
}

fn show(config: &impl Serialize, output: &mut Output) -> Result<Exit, CliError> {
    output.settings(config)?;
    Ok(Exit::Ok)
}
