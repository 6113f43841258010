//! Runs the embedded log alone, for tests that kill it and for looking at it
//! with other tools. Settings come from flags; there is no other logic here.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use streamgauge_broker::{Broker, BrokerConfig, Fsync, Left};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: streamgauge-broker [--data-dir DIR] [--listen ADDRESS] \
                     [--fsync always|interval|never] [--topic NAME:PARTITIONS]...";
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
/// As every program of the product ends when its time to stop was over before
/// everything was done.
const EXIT_UNFINISHED: u8 = 4;

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(left) if left == Left::default() => ExitCode::SUCCESS,
        Ok(left) => {
            let left = left.told().join(", ");
            let _ = writeln!(
                std::io::stderr(),
                "streamgauge-broker: not finished: {left}"
            );
            ExitCode::from(EXIT_UNFINISHED)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "streamgauge-broker: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<Left, Failure> {
    let (config, topics) = parse(std::env::args().skip(1))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let broker = Broker::start(config).await?;
    for (name, partitions) in topics {
        broker.create_topic(&name, partitions).await?;
    }
    writeln!(std::io::stdout(), "listening on {}", broker.local_addr())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(broker.shutdown(SHUTDOWN_DEADLINE).await)
}

type Topics = Vec<(String, i32)>;

fn parse(mut args: impl Iterator<Item = String>) -> Result<(BrokerConfig, Topics), Failure> {
    let mut config = BrokerConfig::default();
    let mut topics = Vec::new();
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        match flag.as_str() {
            "--data-dir" => config.data_dir = value.into(),
            "--listen" => config.listen = value.parse()?,
            "--fsync" => {
                config.fsync = match value.as_str() {
                    "always" => Fsync::Always,
                    "interval" => Fsync::Interval,
                    "never" => Fsync::Never,
                    _ => return Err(USAGE.into()),
                }
            }
            "--topic" => {
                let (name, partitions) = value.split_once(':').ok_or(USAGE)?;
                topics.push((name.to_owned(), partitions.parse()?));
            }
            _ => return Err(USAGE.into()),
        }
    }
    Ok((config, topics))
}
