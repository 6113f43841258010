//! Every setting of the broker, with its bound and its unit in its name. This
//! module only holds and checks values; it never reads files or environment.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::BrokerError;

/// When written records are forced to the disk. A killed process loses nothing
/// in any of these: the page cache outlives it. They differ in what a power
/// cut or a kernel crash may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// `fdatasync` before an acknowledgement; concurrent requests share one.
    /// Consumers see only what is synced.
    Always,
    /// Every `fsync_interval_ms`: a power cut takes at most that much.
    Interval,
    /// Only when a segment is complete and at shutdown.
    Never,
}

/// Settings of a [`crate::Broker`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// Folder that holds all topics and committed offsets. One broker at a time.
    pub data_dir: PathBuf,
    /// How long to wait for another broker to let go of `data_dir`.
    pub data_dir_lock_wait_ms: u64,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Host name told to clients; the bound address when absent.
    pub advertised_host: Option<String>,
    /// Threads that serve requests, apart from those that wait for the disk.
    pub worker_threads: usize,
    /// When records are forced to the disk.
    pub fsync: Fsync,
    /// Pause between forced writes with `fsync = "interval"`.
    pub fsync_interval_ms: u64,
    /// A segment file is closed before it grows past this size.
    pub segment_bytes: u64,
    /// Bytes of log between two entries of a segment's sparse index.
    pub index_interval_bytes: u64,
    /// Segments whose newest record is older are deleted; -1 keeps them.
    pub retention_ms: i64,
    /// Oldest segments are deleted while a partition is larger; -1 keeps them.
    pub retention_bytes: i64,
    /// Pause between looks for segments to delete.
    pub retention_check_interval_ms: u64,
    /// Largest request frame accepted; a larger one closes its connection.
    pub max_request_bytes: usize,
    /// Largest frame of a request other than Produce.
    pub max_control_request_bytes: usize,
    /// Most array elements one request may hold.
    pub max_request_elements: usize,
    /// Sum of the sizes of frames being read or handled at one time.
    pub max_inflight_request_bytes: usize,
    /// Time for a frame to arrive once its first byte has. A large frame holds a
    /// share of `max_inflight_request_bytes` meanwhile.
    pub frame_read_timeout_ms: u64,
    /// Largest record batch accepted, compressed as it arrives.
    pub max_message_bytes: usize,
    /// What the records of one batch may swell to when they are decompressed.
    pub max_decompressed_bytes: usize,
    /// Largest fetch response, whatever the client allows.
    pub fetch_max_bytes: usize,
    /// Sum of the records read for fetch responses that are not yet sent. Beyond
    /// it a fetch gets one batch at a time.
    pub max_inflight_fetch_bytes: usize,
    /// Longest wait of a fetch, whatever the client asks.
    pub fetch_wait_ms_max: u64,
    /// Connections open at one time; more are closed at once.
    pub max_connections: usize,
    /// A connection without a request for this long is closed.
    pub connection_idle_ms: u64,
    /// A response that the client does not read for this long closes its connection.
    pub response_write_timeout_ms: u64,
    /// Partitions that are opened, and scanned after a crash, at one time.
    pub recovery_threads: usize,
    /// Partitions of a topic created without a count.
    pub num_partitions: i32,
    /// Partitions of all topics together.
    pub max_partitions: usize,
    /// Whether asking for a topic creates it.
    pub auto_create_topics: bool,
    /// Idempotent producers silent for this long are forgotten.
    pub producer_id_expiration_ms: u64,
    /// Idempotent producers remembered per partition; the most silent goes first.
    pub max_producer_ids_per_partition: usize,
    /// Shortest session timeout a group member may ask for.
    pub group_session_timeout_ms_min: u64,
    /// Longest session timeout a group member may ask for.
    pub group_session_timeout_ms_max: u64,
    /// How long a new group waits for more members before its first assignment.
    pub group_initial_rebalance_delay_ms: u64,
    /// Members of one group.
    pub group_max_members: usize,
    /// Ways of assigning partitions that one member may offer.
    pub group_max_protocols: usize,
    /// What the members of one group say of themselves, and again what they are
    /// assigned.
    pub group_metadata_max_bytes: usize,
    /// Groups with members or committed offsets.
    pub max_groups: usize,
    /// Longest metadata string of a committed offset.
    pub offset_metadata_max_bytes: usize,
    /// Offsets of a group without members are dropped this long after its last
    /// commit; -1 keeps them.
    pub offsets_retention_ms: i64,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        BrokerConfig {
            data_dir: PathBuf::from("data/log"),
            data_dir_lock_wait_ms: 5_000,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9092)),
            advertised_host: None,
            worker_threads: 2,
            fsync: Fsync::Interval,
            fsync_interval_ms: 1_000,
            segment_bytes: 256 * 1024 * 1024,
            index_interval_bytes: 16 * 1024,
            retention_ms: 7 * 24 * 60 * 60 * 1000,
            retention_bytes: -1,
            retention_check_interval_ms: 30_000,
            max_request_bytes: 100 * 1024 * 1024,
            max_control_request_bytes: 8 * 1024 * 1024,
            max_request_elements: 100_000,
            max_inflight_request_bytes: 256 * 1024 * 1024,
            frame_read_timeout_ms: 30_000,
            max_message_bytes: 1024 * 1024 + 12,
            max_decompressed_bytes: 16 * 1024 * 1024,
            fetch_max_bytes: 55 * 1024 * 1024,
            max_inflight_fetch_bytes: 256 * 1024 * 1024,
            fetch_wait_ms_max: 60_000,
            max_connections: 512,
            connection_idle_ms: 600_000,
            response_write_timeout_ms: 60_000,
            recovery_threads: 4,
            num_partitions: 1,
            max_partitions: 2_000,
            auto_create_topics: false,
            producer_id_expiration_ms: 24 * 60 * 60 * 1000,
            max_producer_ids_per_partition: 10_000,
            group_session_timeout_ms_min: 500,
            group_session_timeout_ms_max: 1_800_000,
            group_initial_rebalance_delay_ms: 0,
            group_max_members: 1_000,
            group_max_protocols: 16,
            group_metadata_max_bytes: 4 * 1024 * 1024,
            max_groups: 1_000,
            offset_metadata_max_bytes: 4_096,
            offsets_retention_ms: 7 * 24 * 60 * 60 * 1000,
        }
    }
}

/// A batch header is 61 bytes; a smaller limit could hold no record.
const MESSAGE_BYTES_MIN: usize = 1_024;
/// Less would not hold the subscription of one ordinary member.
const GROUP_METADATA_BYTES_MIN: usize = 1_024;

impl BrokerConfig {
    /// Checks every bound that another part relies on.
    pub fn validate(&self) -> Result<(), BrokerError> {
        let checks: [(&'static str, bool, &str); 18] = [
            ("worker_threads", self.worker_threads >= 1, "at least 1"),
            (
                "fsync_interval_ms",
                self.fsync_interval_ms >= 1,
                "at least 1",
            ),
            (
                "segment_bytes",
                self.segment_bytes >= self.max_message_bytes as u64
                    && self.segment_bytes <= 2 * 1024 * 1024 * 1024,
                "at least max_message_bytes, at most 2 GiB",
            ),
            (
                "index_interval_bytes",
                (256..=1024 * 1024).contains(&self.index_interval_bytes),
                "256 bytes to 1 MiB",
            ),
            (
                "retention_check_interval_ms",
                self.retention_check_interval_ms >= 1,
                "at least 1",
            ),
            (
                "max_message_bytes",
                self.max_message_bytes >= MESSAGE_BYTES_MIN
                    && self.max_message_bytes <= self.max_request_bytes,
                "1 KiB to max_request_bytes",
            ),
            (
                "max_decompressed_bytes",
                self.max_decompressed_bytes >= self.max_message_bytes
                    && self.max_decompressed_bytes <= 1024 * 1024 * 1024,
                "max_message_bytes to 1 GiB",
            ),
            (
                "max_request_bytes",
                self.max_request_bytes <= 1024 * 1024 * 1024,
                "at most 1 GiB",
            ),
            (
                "max_inflight_request_bytes",
                self.max_inflight_request_bytes >= self.max_request_bytes,
                "at least max_request_bytes",
            ),
            (
                "frame_read_timeout_ms",
                self.frame_read_timeout_ms >= 1,
                "at least 1",
            ),
            (
                "max_inflight_fetch_bytes",
                self.max_inflight_fetch_bytes >= self.max_message_bytes
                    && self.max_inflight_fetch_bytes <= 1024 * 1024 * 1024 * 1024,
                "max_message_bytes to 1 TiB",
            ),
            ("recovery_threads", self.recovery_threads >= 1, "at least 1"),
            (
                "group_max_protocols",
                self.group_max_protocols >= 1,
                "at least 1",
            ),
            (
                "group_metadata_max_bytes",
                self.group_metadata_max_bytes >= GROUP_METADATA_BYTES_MIN,
                "at least 1 KiB",
            ),
            ("num_partitions", self.num_partitions >= 1, "at least 1"),
            ("max_connections", self.max_connections >= 1, "at least 1"),
            (
                "group_session_timeout_ms_min",
                self.group_session_timeout_ms_min <= self.group_session_timeout_ms_max,
                "at most group_session_timeout_ms_max",
            ),
            (
                "offset_metadata_max_bytes",
                self.offset_metadata_max_bytes <= 32_767,
                "at most 32767",
            ),
        ];
        for (setting, usable, reason) in checks {
            if !usable {
                let reason = format!("it must be {reason}");
                return Err(BrokerError::Config { setting, reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_survives_a_round_trip() {
        let config = BrokerConfig::default();
        config.validate().unwrap();
        let text = serde_json::to_string(&config).unwrap();
        let back: BrokerConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(config, back);
    }

    /// Each setting stands in the example file with its default. Its plain
    /// `key = value` lines are also JSON once quoted as such.
    #[test]
    fn the_example_file_shows_every_setting_with_its_default() {
        let example = include_str!("../broker.example.toml");
        let settings = example
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, value)| format!("\"{key}\": {value}"));
        let json = format!("{{{}}}", settings.collect::<Vec<_>>().join(","));
        let shown: BrokerConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(shown, BrokerConfig::default());
        let all = serde_json::to_value(BrokerConfig::default()).unwrap();
        for key in all.as_object().unwrap().keys() {
            assert!(example.contains(&format!("{key} = ")), "{key}");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        let error = serde_json::from_str::<BrokerConfig>(r#"{"segment_byte": 1}"#).unwrap_err();
        assert!(error.to_string().contains("segment_byte"), "{error}");
    }

    #[test]
    fn a_bound_out_of_range_names_its_setting() {
        let config = BrokerConfig {
            segment_bytes: 10,
            ..BrokerConfig::default()
        };
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("segment_bytes"), "{error}");
    }
}
