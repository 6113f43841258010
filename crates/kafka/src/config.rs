//! Settings of the clients, and how they become librdkafka properties.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use serde::{Deserialize, Serialize};

use crate::{KafkaError, StatsSink};

/// How long a request may be on the way, in milliseconds.
const SOCKET_TIMEOUT_MS: &str = "10000";

/// How to reach Kafka.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// Bootstrap addresses, `host:port` separated by commas.
    pub brokers: String,
    /// How the client names itself to the broker.
    pub client_id: String,
    /// Time for a metadata, offset or administrative request, in milliseconds.
    pub request_timeout_ms: u64,
    /// How often librdkafka reports its statistics, in milliseconds; 0 switches them off.
    pub statistics_interval_ms: u64,
    /// Transport security.
    pub security: SecurityProtocol,
    /// SASL mechanism, for example `SCRAM-SHA-512`; empty without SASL.
    pub sasl_mechanism: String,
    /// SASL user; empty without SASL.
    pub sasl_username: String,
    /// File that holds the SASL password.
    pub sasl_password_file: Option<PathBuf>,
    /// File with the certificate authorities to trust (PEM); the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Further librdkafka properties by their own names. They win over everything above. With `debug`, as in
    /// `debug = "broker,cgrp"`, the client tells what it does, at level `debug` of the log's target `kafka`.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: String::from("127.0.0.1:9092"),
            client_id: String::from("streamgauge"),
            request_timeout_ms: 10_000,
            statistics_interval_ms: 5_000,
            security: SecurityProtocol::Plaintext,
            sasl_mechanism: String::new(),
            sasl_username: String::new(),
            sasl_password_file: None,
            ca_file: None,
            properties: BTreeMap::new(),
        }
    }
}

/// Transport security of the connection to Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    /// Neither encryption nor authentication.
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL without encryption.
    SaslPlaintext,
    /// SASL over TLS.
    SaslSsl,
}

/// Settings of a writing client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublisherConfig {
    /// Most records in the local queue; beyond it a push fails at once. A short queue is faster:
    /// 20,000 moves a third more records per second than 500,000.
    pub queue_messages_max: u32,
    /// Most bytes in the local queue, in KiB.
    pub queue_kib_max: u32,
    /// How long a record waits for companions, in milliseconds.
    pub linger_ms: f64,
    /// Most bytes in one batch to a partition.
    pub batch_bytes_max: u32,
    /// Largest record, in bytes, that the client sends.
    pub message_bytes_max: u32,
    /// Compression of batches.
    pub compression: Compression,
    /// Time in which a record is acknowledged or its outcome is an error, in milliseconds.
    pub delivery_timeout_ms: u32,
}

impl Default for PublisherConfig {
    fn default() -> Self {
        Self {
            queue_messages_max: 50_000,
            queue_kib_max: 65_536,
            linger_ms: 2.0,
            batch_bytes_max: 262_144,
            message_bytes_max: 1_000_000,
            compression: Compression::Lz4,
            delivery_timeout_ms: 8_000,
        }
    }
}

/// Compression of record batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// As they are.
    None,
    /// gzip: small and slow.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4: the best speed for most events.
    Lz4,
    /// Zstandard: the best size for its speed.
    Zstd,
}

/// Settings of a reading client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FetchConfig {
    /// How long the broker holds an empty fetch, in milliseconds. librdkafka's default of 500
    /// costs a quarter of a second end to end.
    pub wait_ms: u32,
    /// Most bytes that one fetch returns, in KiB.
    pub fetch_kib_max: u32,
    /// Most bytes prefetched and not yet handed over, in KiB.
    pub queue_kib_max: u32,
    /// Most records in one chunk that is handed over.
    pub chunk_records_max: usize,
    /// Most bytes in one chunk, in KiB; one larger record still makes a chunk.
    pub chunk_kib_max: usize,
    /// How long a full mailbox is waited for before its partition is paused, in milliseconds.
    /// Pausing throws prefetched records away, so that a short wait is the cheaper one.
    pub stall_before_pause_ms: u64,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            wait_ms: 20,
            fetch_kib_max: 8_192,
            queue_kib_max: 16_384,
            chunk_records_max: 2_000,
            chunk_kib_max: 512,
            stall_before_pause_ms: 250,
        }
    }
}

/// Settings of a group member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupConfig {
    /// The consumer group.
    pub group: String,
    /// Fixed member name; with it a restart within the session time-out moves no partition.
    pub instance_id: Option<String>,
    /// A member that sends no heartbeat for so long is out of the group, in milliseconds.
    pub session_timeout_ms: u32,
    /// A member that does not poll for so long leaves the group, in milliseconds.
    pub poll_interval_ms_max: u32,
    /// How partitions are assigned.
    pub assignment: Assignment,
    /// How long a rebalance waits for the owners of revoked partitions to stop, in milliseconds.
    pub revoke_timeout_ms: u64,
    /// How records are fetched.
    pub fetch: FetchConfig,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            group: String::from("streamgauge-consumer"),
            instance_id: None,
            session_timeout_ms: 10_000,
            poll_interval_ms_max: 60_000,
            assignment: Assignment::Range,
            revoke_timeout_ms: 5_000,
            fetch: FetchConfig::default(),
        }
    }
}

/// How a group assigns partitions to its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assignment {
    /// Neighbouring partitions to each member; every change stops all members for a moment. It
    /// settles fastest: 0.1 s against 6 s for cooperative-sticky.
    Range,
    /// Only partitions that move are stopped.
    CooperativeSticky,
}

impl KafkaConfig {
    /// The time-out of metadata, offset and administrative requests.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// Properties that every client shares. Statistics that nobody takes are not made: a client that is polled seldom
    /// would keep them all.
    pub(crate) fn client(&self, stats: Option<&StatsSink>) -> Result<ClientConfig, KafkaError> {
        let statistics_interval_ms = stats.map_or(0, |_| self.statistics_interval_ms);
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", &self.client_id)
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("retry.backoff.ms", "50")
            // As long as this, not its usual minute, a client waits for a request for a topic that was lost with the
            // bootstrap connection before it asks again.
            .set("socket.timeout.ms", SOCKET_TIMEOUT_MS)
            .set("topic.metadata.refresh.interval.ms", "60000")
            .set("allow.auto.create.topics", "false")
            .set("statistics.interval.ms", statistics_interval_ms.to_string());
        self.set_security(&mut client)?;
        Ok(client)
    }

    /// Applies [`KafkaConfig::properties`], which win over everything else.
    pub(crate) fn finish(&self, mut client: ClientConfig) -> Result<ClientConfig, KafkaError> {
        for (name, value) in &self.properties {
            if name.ends_with("password") {
                let cause = String::from("give it by kafka.sasl_password_file");
                return Err(KafkaError::Config {
                    setting: name.clone(),
                    cause,
                });
            }
            client.set(name, value);
        }
        // The client's own level would hold back what the property asks for.
        if client
            .get("debug")
            .is_some_and(|facilities| !facilities.is_empty())
        {
            client.set_log_level(RDKafkaLogLevel::Debug);
        }
        Ok(client)
    }

    fn set_security(&self, client: &mut ClientConfig) -> Result<(), KafkaError> {
        let protocol = match self.security {
            SecurityProtocol::Plaintext => "plaintext",
            SecurityProtocol::Ssl => "ssl",
            SecurityProtocol::SaslPlaintext => "sasl_plaintext",
            SecurityProtocol::SaslSsl => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if let Some(file) = &self.ca_file {
            client.set("ssl.ca.location", file.display().to_string());
        }
        if !self.sasl_mechanism.is_empty() {
            client.set("sasl.mechanism", &self.sasl_mechanism);
            client.set("sasl.username", &self.sasl_username);
        }
        if let Some(file) = &self.sasl_password_file {
            let password = std::fs::read_to_string(file).map_err(|error| KafkaError::Config {
                setting: String::from("sasl_password_file"),
                cause: format!("{}: {error}", file.display()),
            })?;
            client.set("sasl.password", password.trim_end_matches(['\n', '\r']));
        }
        Ok(())
    }
}

impl PublisherConfig {
    pub(crate) fn apply(&self, client: &mut ClientConfig) {
        let compression = match self.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        };
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // The partitioner of every Java client, so that all agree on a user's partition.
            .set("partitioner", "murmur2_random")
            .set(
                "queue.buffering.max.messages",
                self.queue_messages_max.to_string(),
            )
            .set("queue.buffering.max.kbytes", self.queue_kib_max.to_string())
            .set("queue.buffering.max.ms", self.linger_ms.to_string())
            .set("batch.size", self.batch_bytes_max.to_string())
            .set("batch.num.messages", "10000")
            .set("message.max.bytes", self.message_bytes_max.to_string())
            .set("compression.codec", compression)
            .set("delivery.timeout.ms", self.delivery_timeout_ms.to_string())
            .set(
                "request.timeout.ms",
                self.delivery_timeout_ms.clamp(1_000, 30_000).to_string(),
            );
        #[cfg(feature = "mutations")]
        if crate::mutation::is_off() {
            client.set("enable.idempotence", "false");
        }
    }
}

impl FetchConfig {
    pub(crate) fn apply(&self, client: &mut ClientConfig) {
        let fetch_bytes = u64::from(self.fetch_kib_max) * 1024;
        client
            .set("fetch.wait.max.ms", self.wait_ms.to_string())
            .set(
                "fetch.message.max.bytes",
                (fetch_bytes / 4).max(1_048_576).to_string(),
            )
            .set("fetch.max.bytes", fetch_bytes.max(2_097_152).to_string())
            .set("queued.max.messages.kbytes", self.queue_kib_max.to_string())
            // One second by default: a full prefetch queue would stop the partition for that long.
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.error.backoff.ms", "50")
            .set("enable.partition.eof", "true")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Truncation must be told, never jumped over.
            .set("auto.offset.reset", "error");
    }
}

impl GroupConfig {
    pub(crate) fn apply(&self, client: &mut ClientConfig) {
        let strategy = match self.assignment {
            Assignment::Range => "range",
            Assignment::CooperativeSticky => "cooperative-sticky",
        };
        let heartbeat_ms = (self.session_timeout_ms / 3).max(1);
        client
            .set("group.id", &self.group)
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", heartbeat_ms.min(3_000).to_string())
            .set(
                "max.poll.interval.ms",
                self.poll_interval_ms_max
                    .max(self.session_timeout_ms)
                    .to_string(),
            )
            .set("partition.assignment.strategy", strategy);
        if let Some(instance) = &self.instance_id {
            client.set("group.instance.id", instance);
        }
        self.fetch.apply(client);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn statistics_are_made_only_for_somebody() {
        let kafka = KafkaConfig::default();
        let interval = |sink: Option<&StatsSink>| {
            let client = kafka.client(sink).unwrap();
            client.get("statistics.interval.ms").map(str::to_owned)
        };
        let sink: StatsSink = Arc::new(|_| ());
        assert_eq!(interval(None).as_deref(), Some("0"));
        assert_eq!(interval(Some(&sink)).as_deref(), Some("5000"));
    }

    #[test]
    fn a_client_told_to_debug_logs_what_it_does() {
        let mut kafka = KafkaConfig::default();
        let level = |kafka: &KafkaConfig| kafka.finish(ClientConfig::new()).unwrap().log_level;
        assert!(!matches!(level(&kafka), RDKafkaLogLevel::Debug));
        kafka
            .properties
            .insert(String::from("debug"), String::from("broker"));
        assert!(matches!(level(&kafka), RDKafkaLogLevel::Debug));
    }
}
