//! The embedded log alone: a Kafka-protocol broker for one machine, with health and metrics over HTTP.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_lifecycle::{
    Deadline, Exposition, ExpositionConfig, Health, HttpDoor, HttpServerConfig, Outcome, Shutdown,
    Stage, Tasks, ops_router, signal,
};
use streamgauge_settings::ConfigArgs;
use streamgauge_telemetry::{Metrics, TelemetryConfig};
use tokio::net::TcpListener;

use crate::{
    error::{Cause, CliError, Exit},
    log_metrics::LogMetrics,
    output::Output,
};

/// Its name in log lines and metrics.
const SERVICE: &str = "broker";

/// What the names of environment variables begin with.
const ENV_PREFIX: &str = "STREAMGAUGE_BROKER";

/// Run the embedded log alone: a Kafka-protocol broker for one machine
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Example:
  streamgauge broker --set broker.data_dir=data/log --set broker.listen=127.0.0.1:9092

Health and metrics are at http.listen. Environment variables begin with STREAMGAUGE_BROKER_. Stops on
SIGINT and SIGTERM.

Exit codes: 0 stopped in order; 2 a setting, the folder or an address cannot be used; 3 a part failed;
4 not everything was finished by shutdown_deadline_ms.")]
pub struct BrokerArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// The settings of the embedded log on its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerAloneConfig {
    /// The log.
    pub broker: BrokerConfig,
    /// Health and metrics over HTTP.
    pub http: HttpConfig,
    /// Its log lines.
    pub telemetry: TelemetryConfig,
    /// Time from a shutdown to the end of the process, in milliseconds: for requests under way, closing the log's files
    /// and spans, all together.
    pub shutdown_deadline_ms: u64,
}

impl Default for BrokerAloneConfig {
    fn default() -> Self {
        Self {
            broker: BrokerConfig::default(),
            http: HttpConfig::default(),
            telemetry: TelemetryConfig::default(),
            shutdown_deadline_ms: 10_000,
        }
    }
}

/// Health and metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// How much the server puts up with.
    pub server: HttpServerConfig,
    /// `/metrics` on a listener of its own.
    pub metrics: ExpositionConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8084)),
            server: HttpServerConfig::default(),
            metrics: ExpositionConfig::default(),
        }
    }
}

/// Runs the embedded log until a signal.
///
/// # Errors
/// When a setting, the folder or an address cannot be used.
pub async fn run(args: BrokerArgs, output: &mut Output) -> Result<Exit, CliError> {
    let wrong = |error: Cause| CliError::Settings(error);
    let config: BrokerAloneConfig = args
        .config
        .loader(ENV_PREFIX)
        .load()
        .map_err(|error| wrong(error.into()))?;
    if args.config.print_config {
        output.settings(&config)?;
        return Ok(Exit::Ok);
    }
    let telemetry = streamgauge_telemetry::init(SERVICE, "embedded", &config.telemetry)
        .map_err(|error| wrong(error.into()))?;
    let http = streamgauge_lifecycle::bind("http.listen", config.http.listen)
        .await
        .map_err(|error| wrong(error.into()))?;
    let exposition = config.http.metrics.bind("http.metrics").await;
    let exposition = exposition.map_err(|error| wrong(error.into()))?;
    let broker = Broker::start(config.broker.clone())
        .await
        .map_err(|error| wrong(error.into()))?;
    let signalled = Shutdown::new();
    let stop = signalled.later();
    let total = Duration::from_millis(config.shutdown_deadline_ms);
    let deadline = Deadline::new(&stop, total);
    let health = Health::new(SERVICE);
    let tasks = doors(&config, http, exposition, &broker, &health, &deadline);
    output.note(format!("listening on {}", broker.local_addr()))?;
    signal().await;
    signalled.trigger();
    health.shutting_down();
    // Whoever looks meanwhile sees that it is on its way out, and is answered to the end.
    let of_log = broker.shutdown(deadline.left(Stage::Doors) * 9 / 10).await;
    stop.trigger();
    let outcome = tasks.wait(&deadline).await;
    telemetry.shutdown(deadline.left(Stage::Telemetry)).await;
    let left = of_log.told();
    let left = (!left.is_empty()).then(|| left.join(", "));
    match outcome.with_left(left) {
        Outcome::Clean => Ok(Exit::Ok),
        Outcome::Unfinished(unfinished) => Err(CliError::Unfinished(unfinished)),
        Outcome::Failed { task, error } => Err(CliError::Part {
            part: task,
            source: error,
        }),
    }
}

/// Health and metrics.
fn doors(
    config: &BrokerAloneConfig,
    http: TcpListener,
    exposition: Option<Exposition>,
    broker: &Broker,
    health: &Health,
    deadline: &Deadline,
) -> Tasks {
    let metrics = Metrics::new(SERVICE);
    let of_log = Box::new(LogMetrics::new(broker.stats_reader()));
    metrics.with(|registry| {
        registry.register_collector(of_log);
        registry.register_collector(Box::new(health.clone()));
    });
    // It answers once its folder is open, which it is by now.
    health.condition("log").up();
    let mut tasks = Tasks::new(deadline.shutdown().clone());
    let door = HttpDoor {
        listener: http,
        metrics: exposition,
        config: config.http.server.clone(),
        deadline: deadline.clone(),
    };
    door.open(&mut tasks, metrics.encoder(), |exposed| {
        ops_router(health.clone(), exposed)
    });
    tasks
}
