//! The consumer as a program of its own. What it does is in the library.

use std::process::ExitCode;

use clap::Parser;
use streamgauge_settings::ConfigArgs;

/// Condenses events into chained delta batches, exactly once.
#[derive(Debug, Parser)]
#[command(
    name = "streamgauge-consumer",
    version,
    after_help = "Example:\n  streamgauge-consumer --config consumer.toml --set kafka.brokers=broker:9092"
)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    streamgauge_service::main_with(Args::parse().config, streamgauge_consumer::run).await
}
