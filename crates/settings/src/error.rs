//! What can be wrong with the settings. Each message names the setting and its source, and says what to do.

use std::path::PathBuf;

use thiserror::Error;

#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SettingsError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration file {} is not valid {format}: {detail}", path.display())]
    Malformed {
        path: PathBuf,
        format: &'static str,
        detail: String,
    },
    #[error(
        "the configuration file {} has none of the endings .toml, .yaml and .yml; rename it to the format it is in",
        path.display()
    )]
    UnknownFormat { path: PathBuf },
    #[error("--set {assignment} is not of the form KEY=VALUE, as in --set kafka.brokers=host:9092")]
    Assignment { assignment: String },
    /// There is no such setting.
    #[error("unknown setting `{key}` ({origin}){}", near(.nearest.as_deref()))]
    UnknownKey {
        key: String,
        origin: String,
        nearest: Option<String>,
    },
    /// The setting exists, but not with this value.
    #[error("setting `{key}` ({origin}): {detail}")]
    Invalid {
        key: String,
        origin: String,
        detail: String,
    },
    /// Two sources disagree on whether a key is a group of settings or a single one.
    #[error("setting `{key}` ({origin}): {detail}")]
    Shape {
        key: String,
        origin: String,
        detail: &'static str,
    },
    #[error("the setting `{key}` cannot be represented: {detail}")]
    Unrepresentable { key: String, detail: String },
}

fn near(nearest: Option<&str>) -> String {
    nearest.map_or_else(
        || "; --print-config lists the settings there are".to_owned(),
        |nearest| format!("; did you mean `{nearest}`?"),
    )
}
