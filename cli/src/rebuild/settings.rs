//! What a rebuild is told: its own settings, and those by which the running system counts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use streamgauge_lifecycle::reachable;
use streamgauge_settings::ConfigArgs;

use super::RebuildArgs;
use crate::{
    endpoints::{EndpointsFile, FILE_NAME},
    error::CliError,
    up::{self, UpConfig},
};

/// What the names of environment variables begin with.
pub const ENV_PREFIX: &str = "STREAMGAUGE_REBUILD";

/// The settings of a rebuild.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RebuildConfig {
    /// Most source events that are read per second, so that the running system does not suffer; 0: no bound.
    pub events_per_second_max: u64,
    /// Source offsets that are read at once.
    pub slice_records_max: u32,
    /// Delta batches that are read at once.
    pub slice_batches_max: u32,
    /// The last events are recomputed while deltas are kept back; so few are left then.
    pub last_events_max: u64,
    /// Rounds of catching up with the running system, after which the last events are begun however many they are.
    pub rounds_max: u32,
    /// Rows that are compared at once.
    pub compare_rows_max: u32,
    /// Most differences that are listed; all are counted.
    pub differences_max: usize,
    /// After so long without a sign of life a rebuild is taken for dead, in milliseconds.
    pub lease_ms: u64,
    /// How often progress is told where standard error is no terminal, in milliseconds.
    pub progress_interval_ms: u64,
}

impl Default for RebuildConfig {
    fn default() -> Self {
        Self {
            events_per_second_max: 50_000,
            slice_records_max: 10_000,
            slice_batches_max: 200,
            last_events_max: 20_000,
            rounds_max: 20,
            compare_rows_max: 1_000,
            differences_max: 50,
            lease_ms: 30_000,
            progress_interval_ms: 5_000,
        }
    }
}

impl RebuildConfig {
    /// Whether the settings can be used.
    ///
    /// # Errors
    /// Names the setting that cannot.
    pub fn check(&self) -> Result<(), CliError> {
        let rules = [
            ("slice_records_max", self.slice_records_max > 0),
            ("slice_batches_max", self.slice_batches_max > 0),
            ("compare_rows_max", self.compare_rows_max > 0),
            ("progress_interval_ms", self.progress_interval_ms > 0),
        ];
        if let Some((setting, _)) = rules.iter().find(|(_, kept)| !kept) {
            return Err(CliError::usage(format!("{setting} must be at least 1")));
        }
        if self.lease_ms < 1_000 {
            return Err(CliError::usage(
                "lease_ms must be at least 1000, so that it can be renewed in time",
            ));
        }
        Ok(())
    }
}

/// The settings by which the running system counts and keeps.
pub struct SystemConfig {
    /// How events are judged and aggregated.
    pub consumer: streamgauge_consumer::Config,
    /// Where the rows are, and how long they are kept.
    pub analytics: streamgauge_analytics::Config,
}

fn wrong(error: impl std::error::Error + Send + Sync + 'static) -> CliError {
    CliError::Settings(Box::new(error))
}

fn file_of(config: Option<&PathBuf>) -> ConfigArgs {
    ConfigArgs {
        config: config.cloned(),
        set: Vec::new(),
        print_config: false,
    }
}

impl SystemConfig {
    /// As the system itself reads them.
    ///
    /// # Errors
    /// When they cannot be read, or say nothing of a store.
    pub fn load(args: &RebuildArgs) -> Result<Self, CliError> {
        let mut system = if args.separate {
            Self::of_services(args)?
        } else {
            Self::of_up(args)?
        };
        if args.endpoints.brokers.is_some() || args.endpoints.endpoints.is_some() {
            system.use_log(args.endpoints.resolve()?.brokers);
        }
        // Both sets of rows are read at once.
        let readers = &mut system.analytics.store.connections_max;
        *readers = (*readers).max(2);
        system.consumer.check().map_err(wrong)?;
        system.check_store()?;
        Ok(system)
    }

    fn of_services(args: &RebuildArgs) -> Result<Self, CliError> {
        Ok(Self {
            consumer: file_of(args.consumer_config.as_ref())
                .loader(streamgauge_consumer::ENV_PREFIX)
                .load()
                .map_err(wrong)?,
            analytics: file_of(args.analytics_config.as_ref())
                .loader(streamgauge_analytics::ENV_PREFIX)
                .load()
                .map_err(wrong)?,
        })
    }

    fn of_up(args: &RebuildArgs) -> Result<Self, CliError> {
        let mut loader = file_of(args.up_config.as_ref()).loader(up::ENV_PREFIX);
        if let Some(folder) = &args.data_dir {
            loader = loader.override_with("data_dir", folder);
        }
        let mut config: UpConfig = loader.load().map_err(wrong)?;
        config.settle()?;
        let found = config.data_dir.join(FILE_NAME);
        let brokers = match EndpointsFile::read(&found) {
            Ok(file) => reachable(file.broker),
            Err(_) => reachable(config.broker.listen),
        };
        let mut system = Self {
            consumer: config.consumer,
            analytics: config.analytics,
        };
        system.use_log(brokers.to_string());
        Ok(system)
    }

    fn use_log(&mut self, brokers: String) {
        self.consumer.kafka.brokers.clone_from(&brokers);
        self.analytics.kafka.brokers = brokers;
    }

    /// A file that is not there would be made, and found empty.
    fn check_store(&self) -> Result<(), CliError> {
        let url = self.analytics.store.url.expose();
        let path = url
            .strip_prefix("sqlite://")
            .or_else(|| url.strip_prefix("sqlite:"));
        match path {
            Some(path) if !std::path::Path::new(path).is_file() => Err(CliError::usage(format!(
                "there is no store at {path}: name the folder of the running system with --data-dir, or its settings with \
                 --separate and --analytics-config"
            ))),
            _ => Ok(()),
        }
    }
}
