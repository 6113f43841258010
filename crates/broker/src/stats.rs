//! Counters of what the broker has done and where its logs stand, as plain
//! numbers. Names and labels of metrics belong to whoever exports them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reading of a running broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerStats {
    pub connections_open: u64,
    pub connections_accepted: u64,
    /// Closed at once because `max_connections` were open.
    pub connections_refused: u64,
    pub requests: u64,
    /// Connections closed because of a frame or request that made no sense.
    pub requests_malformed: u64,
    pub records_appended: u64,
    pub bytes_appended: u64,
    pub batches_appended: u64,
    /// Batches that were stored before and acknowledged again.
    pub batches_duplicate: u64,
    /// Produced batches answered with an error.
    pub batches_refused: u64,
    pub bytes_fetched: u64,
    pub groups: u64,
    pub partitions: Vec<PartitionStats>,
}

/// Where one partition's log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStats {
    pub topic: String,
    pub partition: i32,
    pub log_start: i64,
    pub log_end: i64,
    pub size_bytes: u64,
    /// What the last start cut off because it was torn or damaged.
    pub recovery_cut_bytes: u64,
    /// How much of that is kept in `*.damaged` files beside the log: sound
    /// records may stand in it. Anything but 0 wants a look.
    pub recovery_set_aside_bytes: u64,
    /// Signs that the last start found of a disk that has lost what was on it,
    /// each of which the log tells. Anything but 0 wants a look.
    pub recovery_damage: u64,
    /// Reads that met with bytes that are not what was written, and were
    /// refused. Anything but 0 means that the disk loses data.
    pub damaged_reads: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub connections_open: AtomicU64,
    pub connections_accepted: AtomicU64,
    pub connections_refused: AtomicU64,
    pub requests: AtomicU64,
    pub requests_malformed: AtomicU64,
    pub records_appended: AtomicU64,
    pub bytes_appended: AtomicU64,
    pub batches_appended: AtomicU64,
    pub batches_duplicate: AtomicU64,
    pub batches_refused: AtomicU64,
    pub bytes_fetched: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub fn read(&self) -> BrokerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BrokerStats {
            connections_open: get(&self.connections_open),
            connections_accepted: get(&self.connections_accepted),
            connections_refused: get(&self.connections_refused),
            requests: get(&self.requests),
            requests_malformed: get(&self.requests_malformed),
            records_appended: get(&self.records_appended),
            bytes_appended: get(&self.bytes_appended),
            batches_appended: get(&self.batches_appended),
            batches_duplicate: get(&self.batches_duplicate),
            batches_refused: get(&self.batches_refused),
            bytes_fetched: get(&self.bytes_fetched),
            groups: 0,
            partitions: Vec::new(),
        }
    }
}
