//! The command line arguments that every service shares.

use std::path::PathBuf;

use crate::Loader;

/// Flatten this into a service's arguments.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArgs {
    /// Read settings from this TOML or YAML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one value, as in --set kafka.brokers=host:9092; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the settings in effect, without secrets, and exit
    #[arg(long)]
    pub print_config: bool,
}

impl ConfigArgs {
    /// A loader over the file, the environment of this process and the assignments.
    pub fn loader(&self, env_prefix: &'static str) -> Loader {
        // Names or values that are not Unicode cannot be settings; `std::env::vars` would panic on them.
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Loader::new(env_prefix)
            .file(self.config.clone())
            .environment(vars)
            .set(&self.set)
    }
}
