//! The ends of the source partitions, asked for once in a while: what is in flight, and how far the consumer is behind.
//! A dead consumer exports no lag; this service does it from outside.

use std::{collections::BTreeMap, time::Duration};

use streamgauge_kafka::LogReader;
use streamgauge_lifecycle::{SharedClock, Shutdown};
use tokio::sync::watch;

use crate::{
    config::TopicsConfig, metrics::AnalyticsMetrics, service::SharedView, view::SourceEnd,
};

/// Ends of the source partitions, where known.
#[derive(Clone, Debug, Default)]
pub struct SourceEnds {
    /// The ends, and when they were asked for, by the monotonic clock.
    pub by_partition: BTreeMap<i32, (SourceEnd, Duration)>,
}

/// Asks until the shutdown.
pub struct Watcher {
    pub reader: LogReader,
    pub topics: TopicsConfig,
    pub partitions: i32,
    pub view: SharedView,
    pub metrics: AnalyticsMetrics,
    pub clock: SharedClock,
    pub ends: watch::Sender<SourceEnds>,
}

impl Watcher {
    /// Asks until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let period = Duration::from_millis(self.topics.ends_interval_ms.max(10));
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.triggered() => return,
            }
            tokio::select! {
                () = self.ask() => {}
                () = shutdown.triggered() => return,
            }
        }
    }

    async fn ask(&self) {
        let mut found = self.ends.borrow().clone();
        for partition in 0..self.partitions {
            let (asked_at, head_before) = (self.clock.monotonic(), self.head(partition));
            match self.reader.watermarks(&self.topics.events, partition).await {
                Ok(watermarks) => {
                    let end = SourceEnd {
                        low: watermarks.low,
                        high: watermarks.high,
                        head_before,
                    };
                    found.by_partition.insert(partition, (end, asked_at));
                }
                Err(error) => {
                    tracing::debug!(partition, %error, "the end of a source partition is not known");
                    self.metrics.core.error("kafka", "ends");
                    // The other partitions would only wait for the same broker.
                    found.by_partition.clear();
                    break;
                }
            }
        }
        self.metrics.log_reachable(!found.by_partition.is_empty());
        self.tell_lag(&found);
        self.ends.send_replace(found);
    }

    /// Where the chain stands; at the beginning while nobody knows.
    fn head(&self, partition: i32) -> i64 {
        let view = self.view.load_full();
        let row = view.and_then(|view| view.chains.get(&partition).copied());
        row.map_or(0, |row| row.ledger.head())
    }

    fn tell_lag(&self, found: &SourceEnds) {
        // Until the store was read nobody knows how far its chain is.
        let Some(view) = self.view.load_full() else {
            return;
        };
        for (partition, (end, _)) in &found.by_partition {
            let head = view
                .chains
                .get(partition)
                .map_or(0, |row| row.ledger.head());
            let (group, topic) = (&self.topics.group, &self.topics.events);
            self.metrics
                .core
                .set_lag(group, topic, *partition, (end.high - head).max(0));
        }
    }
}
