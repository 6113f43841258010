//! The settings of the spool.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use streamgauge_kafka::PublisherConfig;
use streamgauge_spool::{Limits, frame};

use super::record::RECORD_EXTRA_BYTES_MAX;

/// Where events wait on the disk while Kafka is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// Whether there is one. Without it events are refused while Kafka is away.
    pub enabled: bool,
    /// Its folder; one process at a time may have it.
    pub dir: PathBuf,
    /// Room on the disk, in bytes. Beyond it events are refused with 503.
    pub bytes_max: u64,
    /// A file of the spool is closed once it holds so many bytes; space is given back file by file.
    pub segment_bytes: u64,
    /// Most bytes that share one sync of the disk.
    pub sync_group_bytes_max: usize,
    /// Requests that may wait for the disk; those beyond wait before it, until their deadline.
    pub queue_requests_max: usize,
    /// Most events in one batch to Kafka when the spool is drained.
    pub drain_batch_events_max: usize,
    /// Most bytes in one batch to Kafka when the spool is drained.
    pub drain_batch_bytes_max: usize,
    /// How often, in milliseconds, it is written down how far the spool is drained. What was published since, and one
    /// batch, may be published again after a crash.
    pub drain_position_interval_ms: u64,
    /// How often an event that Kafka refuses is tried before the spool puts it aside and goes on.
    pub drain_attempts_max: u32,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            dir: PathBuf::from("spool"),
            bytes_max: 1 << 30,
            segment_bytes: 64 << 20,
            sync_group_bytes_max: 4 << 20,
            queue_requests_max: 1_024,
            drain_batch_events_max: 2_000,
            drain_batch_bytes_max: 1 << 20,
            drain_position_interval_ms: 100,
            drain_attempts_max: 5,
        }
    }
}

impl SpoolConfig {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            bytes_max: self.bytes_max,
            segment_bytes: self.segment_bytes,
            group_bytes_max: self.sync_group_bytes_max,
            queue_appends_max: self.queue_requests_max,
        }
    }

    pub(super) fn position_interval(&self) -> Duration {
        Duration::from_millis(self.drain_position_interval_ms)
    }

    /// What must hold, with the setting that breaks it.
    pub(crate) fn rules(&self, publisher: &PublisherConfig) -> [(bool, &'static str, String); 4] {
        let record_bytes = publisher.message_bytes_max as usize + RECORD_EXTRA_BYTES_MAX;
        let queue_bytes = (publisher.queue_kib_max as usize).saturating_mul(1024);
        [
            (
                self.segment_bytes > 0 && self.segment_bytes <= self.bytes_max / 2,
                "spool.segment_bytes",
                format!(
                    "it must be at least 1 and at most half of spool.bytes_max ({}), or no space is given back before all is drained",
                    self.bytes_max
                ),
            ),
            (
                self.queue_requests_max > 0 && self.drain_attempts_max > 0,
                "spool.queue_requests_max",
                String::from("it must be at least 1, as must spool.drain_attempts_max"),
            ),
            (
                (1..=publisher.queue_messages_max as usize).contains(&self.drain_batch_events_max)
                    && (1..=queue_bytes).contains(&self.drain_batch_bytes_max),
                "spool.drain_batch_events_max",
                format!(
                    "it must be from 1 to publisher.queue_messages_max ({}), and spool.drain_batch_bytes_max from 1 to the bytes of publisher.queue_kib_max ({queue_bytes})",
                    publisher.queue_messages_max
                ),
            ),
            (
                !self.enabled || record_bytes <= frame::BODY_BYTES_MAX,
                "publisher.message_bytes_max",
                format!(
                    "with a spool it must be below {}",
                    frame::BODY_BYTES_MAX - RECORD_EXTRA_BYTES_MAX
                ),
            ),
        ]
    }
}
