//! Analytics as a program of its own. What it does is in the library.

use std::process::ExitCode;

use clap::Parser;
use streamgauge_settings::ConfigArgs;

/// Applies delta batches from Kafka to a store and answers queries over HTTP and gRPC.
#[derive(Debug, Parser)]
#[command(
    name = "streamgauge-analytics",
    version,
    after_help = "Example:\n  streamgauge-analytics --config analytics.toml --set store.url=postgres://db/streamgauge"
)]
struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    streamgauge_service::main_with(Args::parse().config, streamgauge_analytics::run).await
}
