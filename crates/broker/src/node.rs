//! What all connections of one broker share, and the background work on it:
//! syncing, retention, group deadlines.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::config::{BrokerConfig, Fsync};
use crate::durable;
use crate::error::BrokerError;
use crate::faults::Faults;
use crate::group::coordinator::{Coordinator, TICK};
use crate::log::Partition;
use crate::producer_ids::ProducerIds;
use crate::stats::{BrokerStats, Counters, PartitionStats};
use crate::topics::Topics;

/// The one node's id, as clients see it.
pub const NODE_ID: i32 = 1;
const LOCK_RETRY: Duration = Duration::from_millis(20);
const OFFSET_EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
/// Memory for frames and for fetched records is counted in pieces of this size.
pub const UNIT_BYTES: usize = 1024;

pub struct Node {
    pub config: BrokerConfig,
    pub faults: Arc<Faults>,
    pub counters: Counters,
    pub topics: Topics,
    pub groups: Coordinator,
    pub producer_ids: ProducerIds,
    pub cluster_id: String,
    pub host: String,
    pub port: u16,
    /// Set when the broker stops.
    pub stopping: CancellationToken,
    /// Bounds the memory of frames being read or handled.
    pub frame_units: Arc<Semaphore>,
    /// Bounds the memory of records that were fetched and are not yet sent.
    pub fetch_units: Arc<Semaphore>,
    /// Held as long as anything may still write to the data folder.
    _lock: DataDirLock,
}

/// Keeps other brokers off a data folder.
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Takes the folder, waiting a while for a broker that is on its way out.
    pub async fn take(config: &BrokerConfig) -> Result<DataDirLock, BrokerError> {
        let dir = &config.data_dir;
        fs::create_dir_all(dir).map_err(BrokerError::storage("creating", dir))?;
        let path = dir.join("lock");
        let file = File::create(&path).map_err(BrokerError::storage("creating", &path))?;
        let deadline = Instant::now() + Duration::from_millis(config.data_dir_lock_wait_ms);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DataDirLock { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_RETRY).await;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(BrokerError::DataDirInUse { path: dir.clone() });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(BrokerError::storage("locking", &path)(error));
                }
            }
        }
    }
}

impl Node {
    /// Opens everything in the data folder. Waits for the disk.
    pub fn open(
        config: BrokerConfig,
        lock: DataDirLock,
        address: SocketAddr,
        faults: Arc<Faults>,
    ) -> Result<Node, BrokerError> {
        let dir: PathBuf = config.data_dir.clone();
        let storage = || BrokerError::storage("opening", &dir);
        let units = |bytes: usize| Arc::new(Semaphore::new(bytes / UNIT_BYTES));
        Ok(Node {
            topics: Topics::open(&dir.join("topics"), &config)?,
            groups: Coordinator::open(&dir, &config).map_err(storage())?,
            producer_ids: ProducerIds::open(&dir).map_err(storage())?,
            cluster_id: load_cluster_id(&dir).map_err(storage())?,
            host: advertised_host(&config, address),
            port: address.port(),
            faults,
            counters: Counters::default(),
            stopping: CancellationToken::new(),
            frame_units: units(config.max_inflight_request_bytes),
            fetch_units: units(config.max_inflight_fetch_bytes),
            config,
            _lock: lock,
        })
    }

    pub fn stats(&self) -> BrokerStats {
        let partitions = self.topics.all().into_iter().flat_map(|topic| {
            let described =
                topic
                    .partitions
                    .iter()
                    .enumerate()
                    .map(|(index, log)| PartitionStats {
                        topic: topic.name.clone(),
                        partition: index as i32,
                        log_start: log.log_start(),
                        log_end: log.high_watermark(),
                        size_bytes: log.size_bytes(),
                        recovery_cut_bytes: log.recovery_cut_bytes(),
                        recovery_damage: log.recovery_damage(),
                        damaged_reads: log.damaged_reads(),
                        recovery_set_aside_bytes: log.recovery_set_aside_bytes(),
                    });
            described.collect::<Vec<_>>()
        });
        BrokerStats {
            groups: self.groups.names().len() as u64,
            partitions: partitions.collect(),
            ..self.counters.read()
        }
    }

    /// Syncs everything and leaves it so that the next start needs no scan.
    pub fn close(&self) {
        for (name, index, partition) in self.partitions() {
            if let Err(error) = partition.close() {
                warn!(topic = name, partition = index, %error, "closing a log failed");
            }
        }
        if let Err(error) = self.groups.offsets.sync() {
            warn!(%error, "syncing committed offsets failed");
        }
    }

    fn partitions(&self) -> Vec<(String, usize, Arc<Partition>)> {
        let topics = self.topics.all().into_iter();
        topics
            .flat_map(|topic| {
                let logs = topic.partitions.iter().enumerate();
                logs.map(|(index, log)| (topic.name.clone(), index, Arc::clone(log)))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn sync_all(&self) {
        for (name, index, partition) in self.partitions() {
            if let Err(error) = partition.sync() {
                warn!(topic = name, partition = index, %error, "syncing a log failed");
            }
        }
        if let Err(error) = self.groups.offsets.sync() {
            warn!(%error, "syncing committed offsets failed");
        }
    }

    pub fn enforce_retention(&self) {
        for (name, index, partition) in self.partitions() {
            if let Err(error) = partition.enforce_retention() {
                warn!(topic = name, partition = index, %error, "enforcing retention failed");
            }
        }
    }
}

/// With `fsync = "never"` only complete segments are synced, so it is enough
/// to look for those now and then.
const SEAL_INTERVAL: Duration = Duration::from_secs(10);

/// Forces written records to the disk in the rhythm the settings ask for.
pub async fn sync_regularly(node: Arc<Node>) {
    let period = match node.config.fsync {
        Fsync::Never => SEAL_INTERVAL,
        Fsync::Always | Fsync::Interval => Duration::from_millis(node.config.fsync_interval_ms),
    };
    every(node, period, |node| match node.config.fsync {
        Fsync::Never => node.partitions().iter().for_each(|(_, _, log)| {
            if let Err(error) = log.sync_if_rolled() {
                warn!(%error, "sealing a segment failed");
            }
        }),
        Fsync::Always | Fsync::Interval => node.sync_all(),
    })
    .await;
}

/// Deletes what is too old or too much.
pub async fn retain_regularly(node: Arc<Node>) {
    let period = Duration::from_millis(node.config.retention_check_interval_ms);
    every(node, period, Node::enforce_retention).await;
}

/// Drops the offsets of abandoned groups.
pub async fn expire_offsets_regularly(node: Arc<Node>) {
    every(node, OFFSET_EXPIRY_INTERVAL, |node| {
        node.groups.expire_offsets()
    })
    .await;
}

/// Lets groups act on their deadlines.
pub async fn tick_groups(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            _ = ticks.tick() => node.groups.tick(Instant::now()),
        }
    }
}

/// Repeats work that waits for the disk until the broker stops.
async fn every(node: Arc<Node>, period: Duration, work: fn(&Node)) {
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
        let shared = Arc::clone(&node);
        if tokio::task::spawn_blocking(move || work(&shared))
            .await
            .is_err()
        {
            warn!("background work on the log panicked");
        }
    }
}

fn advertised_host(config: &BrokerConfig, address: SocketAddr) -> String {
    match &config.advertised_host {
        Some(host) => host.clone(),
        None if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        None => address.ip().to_string(),
    }
}

fn load_cluster_id(dir: &Path) -> io::Result<String> {
    let path = dir.join("cluster-id");
    if let Some(bytes) = durable::read_if_present(&path)? {
        return Ok(String::from_utf8_lossy(&bytes).trim().to_owned());
    }
    let id = Uuid::new_v4().simple().to_string();
    durable::write_atomic(&path, id.as_bytes())?;
    Ok(id)
}
