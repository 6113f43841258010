//! A backlog of encoded events, written straight to the log.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use streamgauge_kafka::{
    KafkaConfig, KafkaError, Publisher, PublisherConfig, Record, admin, admin::TopicSpec,
};

use crate::events::Events;

/// Records in one batch of acknowledgements.
const BATCH: usize = 10_000;

/// A backlog.
#[derive(Clone, Debug, clap::Args)]
pub struct Fill {
    /// Bootstrap address.
    #[arg(long, default_value = "127.0.0.1:9092")]
    pub brokers: String,
    /// The topic, created when missing.
    #[arg(long, default_value = "analytics-events")]
    pub topic: String,
    /// Its partitions.
    #[arg(long, default_value_t = 12)]
    pub partitions: i32,
    /// Events.
    #[arg(long, default_value_t = 3_000_000)]
    pub events: usize,
}

/// Writes the backlog.
///
/// # Errors
/// When Kafka does not take it.
pub async fn run(fill: &Fill) -> Result<Value, KafkaError> {
    let kafka = KafkaConfig {
        brokers: fill.brokers.clone(),
        ..KafkaConfig::default()
    };
    let topic = TopicSpec {
        name: fill.topic.clone(),
        partitions: fill.partitions,
        replication: 1,
        config: Vec::new(),
    };
    admin::ensure_topics(&kafka, &[topic]).await?;
    let publisher = Publisher::new(&kafka, &PublisherConfig::default(), None)?;
    let (began, mut events) = (Instant::now(), Events::new(7, 50_000, 1_000));
    let mut written = 0;
    while written < fill.events {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut batch = publisher.batch();
        for _ in 0..BATCH.min(fill.events - written) {
            let (key, payload) = events.record(now.as_micros() as i64);
            batch.push(Record {
                topic: &fill.topic,
                partition: None,
                key: Some(key.as_bytes()),
                payload: Some(&payload),
                timestamp_ms: Some(now.as_millis() as i64),
                headers: &[],
            });
        }
        written += batch.len();
        if let Some((_, error)) = batch.finish().await.failed.into_iter().next() {
            return Err(KafkaError::Config {
                setting: fill.topic.clone(),
                cause: error.to_string(),
            });
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(json!({ "measure": "fill", "events": written, "seconds": seconds }))
}
