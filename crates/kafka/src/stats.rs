//! The few of librdkafka's statistics that the services show.

use std::sync::Arc;

use rdkafka::Statistics;

/// Receives statistics at the interval that [`crate::KafkaConfig::statistics_interval_ms`] sets.
pub type StatsSink = Arc<dyn Fn(&Stats) + Send + Sync>;

/// What a client says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Records in the local producer queue.
    pub queue_messages: u64,
    /// Bytes in the local producer queue.
    pub queue_bytes: u64,
    /// Bytes prefetched and not yet handed over.
    pub fetch_queue_bytes: u64,
    /// Rebalances since the start.
    pub rebalances: i64,
    /// Whether the client is a settled member of its group, with partitions or without.
    pub is_member: bool,
    /// One entry per broker that was ever connected.
    pub brokers: Vec<BrokerStats>,
}

/// What a client says about a broker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrokerStats {
    /// `host:port/id`.
    pub name: String,
    /// Median round trip over the last interval, in seconds.
    pub rtt_seconds: f64,
    /// Median throttling over the last interval, in seconds.
    pub throttle_seconds: f64,
}

impl From<&Statistics> for Stats {
    fn from(native: &Statistics) -> Self {
        let fetch_queue_bytes = native
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values())
            .map(|partition| partition.fetchq_size)
            .sum();
        let brokers = native
            .brokers
            .values()
            .filter(|broker| broker.nodeid >= 0)
            .map(|broker| BrokerStats {
                name: broker.name.clone(),
                rtt_seconds: broker
                    .rtt
                    .as_ref()
                    .map_or(0.0, |window| window.p50 as f64 / 1e6),
                throttle_seconds: broker
                    .throttle
                    .as_ref()
                    .map_or(0.0, |window| window.p50 as f64 / 1e3),
            })
            .collect();
        Self {
            queue_messages: native.msg_cnt,
            queue_bytes: native.msg_size,
            fetch_queue_bytes,
            is_member: native
                .cgrp
                .as_ref()
                .is_some_and(|group| group.state == "up" && group.join_state == "steady"),
            rebalances: native.cgrp.as_ref().map_or(0, |group| group.rebalance_cnt),
            brokers,
        }
    }
}
