//! The embedded log alone: a Kafka-protocol broker for one machine, with health and metrics over HTTP.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_lifecycle::{
    Exposition, ExpositionConfig, Health, HttpDoor, HttpServerConfig, Outcome, Shutdown, Tasks,
    ops_router, signal,
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
SIGINT and SIGTERM.")]
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
    /// Time for requests to finish at shutdown, in milliseconds.
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
    let stop = Shutdown::new();
    let tasks = doors(&config, http, exposition, &broker, &stop);
    output.note(format!("listening on {}", broker.local_addr()))?;
    signal().await;
    stop.trigger();
    let deadline = Duration::from_millis(config.shutdown_deadline_ms);
    // Whoever looks sees it stop, and it is not held up by them.
    let (outcome, ()) = tokio::join!(tasks.wait(deadline), broker.shutdown(deadline));
    telemetry.shutdown(deadline).await;
    match outcome {
        Outcome::Clean | Outcome::DeadlineExceeded { .. } => Ok(Exit::Ok),
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
    stop: &Shutdown,
) -> Tasks {
    let deadline = Duration::from_millis(config.shutdown_deadline_ms) / 2;
    let metrics = Metrics::new(SERVICE);
    let of_log = Box::new(LogMetrics::new(broker.stats_reader()));
    let health = Health::new(SERVICE);
    metrics.with(|registry| {
        registry.register_collector(of_log);
        registry.register_collector(Box::new(health.clone()));
    });
    // It answers once its folder is open, which it is by now.
    health.condition("log").up();
    let mut tasks = Tasks::new(stop.clone());
    let door = HttpDoor {
        listener: http,
        metrics: exposition,
        config: config.http.server.clone(),
        shutdown: stop.clone(),
        deadline,
    };
    door.open(&mut tasks, metrics.encoder(), |exposed| {
        ops_router(health, exposed)
    });
    tasks
}
