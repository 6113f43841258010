//! The program around a service: reads the settings, starts telemetry, serves until a signal, drains.

use std::{error::Error, process::ExitCode};

use serde::{Serialize, de::DeserializeOwned};
use streamgauge_lifecycle::{
    BoxError, Deadline, EXIT_WRONG_SETTINGS, Shutdown, Stage, SystemClock, exit_code, fail, signal,
    write_line,
};
use streamgauge_settings::ConfigArgs;
use streamgauge_telemetry::{Metrics, TelemetryConfig};

use crate::{Deps, Listeners};

/// What the program has to know of a service's settings.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// The service's name in logs, traces and metrics.
    const SERVICE: &'static str;
    /// What the names of environment variables begin with.
    const ENV_PREFIX: &'static str;
    /// Why the service cannot start or go on.
    type Error: Error + Send + Sync + 'static;

    /// Checks what no single setting can tell about itself.
    ///
    /// # Errors
    /// Names the setting and the rule.
    fn check(&self) -> Result<(), BoxError>;

    /// Of logs and traces.
    fn telemetry(&self) -> &TelemetryConfig;

    /// The brokers, for whoever reads the log.
    fn brokers(&self) -> &str;

    /// The time from a signal to the end of the process.
    fn deadline(&self, shutdown: &Shutdown) -> Deadline;

    /// Listens where they say.
    fn bind(&self) -> impl Future<Output = Result<Listeners, Self::Error>>;
}

/// The whole program of a service; returns what it ends with.
pub async fn main_with<S: Settings>(
    args: ConfigArgs,
    run: impl AsyncFnOnce(S, Listeners, Deps) -> Result<(), S::Error>,
) -> ExitCode {
    let ended = match settings(&args) {
        Ok(Some(settings)) => program(settings, run).await.map_err(|error| {
            let code = exit_code(&*error);
            (error, code)
        }),
        Ok(None) => Ok(()),
        Err(error) => Err((error, EXIT_WRONG_SETTINGS)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, code)) => fail(&format!("streamgauge-{}", S::SERVICE), &*error, code),
    }
}

/// The settings; none when they were only to be printed.
fn settings<S: Settings>(args: &ConfigArgs) -> Result<Option<S>, BoxError> {
    let settings: S = args.loader(S::ENV_PREFIX).load()?;
    settings.check()?;
    if args.print_config {
        let text = streamgauge_settings::print(&settings);
        write_line(&mut std::io::stdout(), text.trim_end())?;
        return Ok(None);
    }
    Ok(Some(settings))
}

async fn program<S: Settings>(
    settings: S,
    run: impl AsyncFnOnce(S, Listeners, Deps) -> Result<(), S::Error>,
) -> Result<(), BoxError> {
    let listeners = settings.bind().await?;
    let http = listeners.http.local_addr()?.to_string();
    let grpc = listeners.grpc.local_addr()?.to_string();
    let telemetry = streamgauge_telemetry::init(S::SERVICE, &http, settings.telemetry())?;
    let shutdown = Shutdown::new();
    let deps = Deps {
        metrics: Metrics::new(S::SERVICE),
        tracer: telemetry.tracer(S::SERVICE),
        clock: SystemClock::shared(),
        shutdown: shutdown.clone(),
    };
    let brokers = settings.brokers();
    tracing::info!(http, grpc, brokers, "{} started", S::SERVICE);
    let signalled = tokio::spawn(async move {
        signal().await;
        shutdown.trigger();
    });
    let deadline = settings.deadline(&deps.shutdown);
    let result = run(settings, listeners, deps).await;
    signalled.abort();
    telemetry.shutdown(deadline.left(Stage::Telemetry)).await;
    Ok(result?)
}
