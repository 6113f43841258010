//! The producer as a program of its own. What it does is in the library.

use std::process::ExitCode;

use clap::Parser;
use streamgauge_settings::ConfigArgs;

/// Takes events in over HTTP and gRPC and writes them to Kafka.
#[derive(Debug, Parser)]
#[command(
    name = "streamgauge-producer",
    version,
    after_help = "Example:\n  streamgauge-producer --config producer.toml --set kafka.brokers=broker:9092"
)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    streamgauge_service::main_with(Args::parse().config, streamgauge_producer::run).await
}
