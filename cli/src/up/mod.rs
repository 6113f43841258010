//! `streamgauge up`: the embedded log and the three services in one process.

mod banner;
mod config;
mod lock;
mod refuse;
mod system;

use std::{fs, io, net::IpAddr, path::PathBuf, time::Instant};

use clap::Args;
use streamgauge_settings::ConfigArgs;

pub use self::config::{ENV_PREFIX, UpConfig};
use self::{
    lock::FolderLock,
    system::{Drained, System},
};
use crate::{
    endpoints::FILE_NAME,
    error::{CliError, Exit, describe},
    output::{Output, Paint},
    signals::Signals,
    times,
};

/// Run a whole system in one process: log, producer, consumer, analytics
///
/// Everything is kept in one folder; started again, everything is still there. SIGINT (Ctrl-C) and
/// SIGTERM drain: the producer first, then the consumer, analytics and the log. A second signal
/// aborts. Neither that nor kill -9 nor a power cut loses what was acknowledged: the log is synced to
/// the disk before it acknowledges, and requests that wait share one sync. `broker.fsync=interval`
/// acknowledges sooner and takes more on slow disks; a power cut may then cost the last
/// `broker.fsync_interval_ms` of acknowledged events, and leave the store ahead of the log, so that
/// analytics refuses to go on.
///
/// Settings come from defaults, then --config, then environment variables that begin with
/// STREAMGAUGE_UP_, then --set and the flags below.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge up
  streamgauge up --data-dir other --port-offset 1000
  streamgauge up --ephemeral-ports --json
  streamgauge up --set telemetry.log.filter=info --set producer.http.listen=0.0.0.0:8081
  streamgauge up --set broker.fsync=interval
  streamgauge up --print-config > up.toml

Once all is ready, endpoints.json in the data folder holds all addresses and the process id; the
other commands read it with --endpoints.

Exit codes: 0 drained; 2 a setting, the data folder or a port cannot be used; 3 a part failed or was
not ready in time; 4 not everything drained in time, or aborted.")]
pub struct UpArgs {
    /// The folder that holds everything [default: data]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Listen on this address [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Add this to each port, so that several systems run side by side [default: 0]
    #[arg(long, value_name = "N")]
    port_offset: Option<u16>,
    /// Take free ports
    #[arg(long)]
    ephemeral_ports: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl UpArgs {
    /// The settings in effect.
    ///
    /// # Errors
    /// When one is wrong.
    fn load(&self) -> Result<UpConfig, CliError> {
        let mut loader = self.config.loader(ENV_PREFIX);
        if let Some(folder) = &self.data_dir {
            loader = loader.override_with("data_dir", folder);
        }
        if let Some(host) = &self.host {
            loader = loader.override_with("host", host);
        }
        if let Some(offset) = &self.port_offset {
            loader = loader.override_with("port_offset", offset);
        }
        if self.ephemeral_ports {
            loader = loader.override_with("ephemeral_ports", true);
        }
        loader
            .load()
            .map_err(|error| CliError::Settings(Box::new(error)))
    }
}

/// Runs the command until a signal.
///
/// # Errors
/// When it does not come up, or a part fails.
pub async fn run(args: UpArgs, output: &mut Output) -> Result<Exit, CliError> {
    let mut config = args.load()?;
    if args.config.print_config {
        output.settings(&config)?;
        return Ok(Exit::Ok);
    }
    config.settle()?;
    let _lock = FolderLock::take(&config.data_dir)?;
    let addresses = config.data_dir.join(FILE_NAME);
    forget(&addresses)?;
    // From here on a signal drains what has been started.
    let mut signals = Signals::new()?;
    let (mut system, stopping) = start(&config, &mut signals, output).await?;
    if stopping {
        return stop(system, &config, &mut signals, output).await;
    }
    let started = tokio::select! {
        ready = system.ready(config.ready_timeout()) => ready,
        () = signals.next() => return stop(system, &config, &mut signals, output).await,
    };
    let up = async {
        started?;
        system.endpoints.write(&addresses)?;
        let usual = config.has_usual_addresses();
        banner::print(&system.endpoints, &config.data_dir, usual, output)?;
        Ok::<(), CliError>(())
    };
    let ended = match up.await {
        Err(error) => Some(error),
        Ok(()) => tokio::select! {
            error = system.watch() => Some(error),
            () = signals.next() => None,
        },
    };
    let exit = stop(system, &config, &mut signals, output).await;
    forget(&addresses)?;
    ended.map_or(exit, Err)
}

/// Addresses of a system that is not there would mislead.
fn forget(addresses: &std::path::Path) -> Result<(), CliError> {
    match fs::remove_file(addresses) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CliError::file("remove", addresses, error))
        }
        _ => Ok(()),
    }
}

/// Starts the parts; says whether a signal asked meanwhile to stop them again. A log that is being
/// opened is not left half way; a second signal ends the process as a crash would.
async fn start(
    config: &UpConfig,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<(System, bool), CliError> {
    let mut stopping = false;
    let starting = System::start(config.clone());
    tokio::pin!(starting);
    loop {
        tokio::select! {
            started = &mut starting => return started.map(|system| (system, stopping)),
            () = signals.next() => {
                if std::mem::replace(&mut stopping, true) {
                    output.labelled(Paint::Yellow, "aborted", "the log was still being opened")?;
                    std::process::exit(Exit::Partial as i32);
                }
                output.note("stopping once the log is open; a second signal aborts")?;
            }
        }
    }
}

/// Drains, unless a second signal cuts it short.
async fn stop(
    system: System,
    config: &UpConfig,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<Exit, CliError> {
    output.note("draining; a second signal aborts")?;
    let started = Instant::now();
    let drained = tokio::select! {
        drained = system.drain(config.drain_budget()) => drained,
        () = signals.next() => {
            let text = "not everything was drained; nothing that was acknowledged is lost";
            output.labelled(Paint::Yellow, "aborted", text)?;
            return Ok(Exit::Partial);
        }
    };
    tell(&drained, started, output)
}

fn tell(drained: &Drained, started: Instant, output: &mut Output) -> Result<Exit, CliError> {
    for (part, error) in &drained.failed {
        output.labelled(Paint::Red, part, &describe(&**error))?;
    }
    for part in &drained.late {
        output.labelled(Paint::Red, part, "did not end in time and was cut off")?;
    }
    for left in drained.log.told() {
        output.labelled(
            Paint::Red,
            "the embedded log",
            &format!("not finished: {left}"),
        )?;
    }
    if drained.is_complete() {
        let took = times::show_duration(started.elapsed());
        output.note(format!(
            "drained in {took}: producer, consumer, analytics, log"
        ))?;
        return Ok(Exit::Ok);
    }
    Ok(Exit::Partial)
}
