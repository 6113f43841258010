//! The errors a caller of this crate can meet. They never cross the wire:
//! clients get protocol error codes, chosen where the request is handled.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why a broker could not be started or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the setting {setting} is not usable: {reason}")]
    Config {
        setting: &'static str,
        reason: String,
    },
    #[error("cannot listen on {address}")]
    Bind {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the data folder {path} is in use by another broker")]
    DataDirInUse { path: PathBuf },
    #[error("{action} {path} failed")]
    Storage {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} cannot be read: {reason}")]
    Corrupt { path: PathBuf, reason: String },
    #[error("the topic name {name:?} is not allowed")]
    InvalidTopicName { name: String },
    #[error("{partitions} partitions are not allowed: {reason}")]
    InvalidPartitions {
        partitions: i32,
        reason: &'static str,
    },
    #[error("the topic setting {key} does not accept {value:?}")]
    InvalidTopicConfig { key: String, value: String },
    #[error("the topic {name} exists with {existing} partitions, not {requested}")]
    TopicExists {
        name: String,
        existing: i32,
        requested: i32,
    },
    #[error("the topic {name} does not exist")]
    UnknownTopic { name: String },
    #[error("starting the broker's runtime failed")]
    Runtime { source: io::Error },
    #[error("the broker has stopped")]
    Stopped,
}

impl BrokerError {
    /// Wraps an IO error with what was being done to which path.
    pub(crate) fn storage(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> BrokerError {
        let path = path.to_path_buf();
        move |source| BrokerError::Storage {
            action,
            path,
            source,
        }
    }
}
