//! A whole service on the embedded broker, and who writes to the log as the consumer does.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use prost::Message;
use serde_json::Value;
use streamgauge_analytics::{
    Config, Deps, Error, Listeners,
    store::{self, Store},
};
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_kafka::{KafkaConfig, Publisher, PublisherConfig, Record};
use streamgauge_lifecycle::{ManualClock, Shutdown};
use streamgauge_proto::v1::analytics_client::AnalyticsClient;
use streamgauge_settings::SecretUrl;
use streamgauge_telemetry::{FinishedSpans, Metrics, Telemetry, TraceContext};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::{Event, NOW_S, Oracle, batch, event};

pub const PARTITIONS: i32 = 3;

pub async fn broker(folder: &Path) -> Broker {
    let broker = Broker::start(BrokerConfig {
        data_dir: folder.join("log"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..BrokerConfig::default()
    });
    broker.await.expect("a broker")
}

pub async fn topics(broker: &Broker) {
    for topic in ["analytics-events", "metrics-data"] {
        broker
            .create_topic(topic, PARTITIONS)
            .await
            .expect("a topic");
    }
}

pub fn config(folder: &Path, brokers: &str) -> Config {
    let mut config = Config::default();
    config.kafka = KafkaConfig {
        brokers: String::from(brokers),
        request_timeout_ms: 2_000,
        ..config.kafka
    };
    config.store.url = SecretUrl::new(format!("sqlite:{}", folder.join("analytics.db").display()));
    config.topics.wait_ms = 50;
    config.topics.ends_interval_ms = 50;
    config.checkpoint.interval_ms = 200;
    config.shutdown_deadline_ms = 20_000;
    config
}

/// A service under test.
pub struct Analytics {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub shutdown: Shutdown,
    pub task: JoinHandle<Result<(), Error>>,
    pub spans: FinishedSpans,
    pub client: reqwest::Client,
}

impl Analytics {
    pub async fn start(config: Config) -> Self {
        let store = store::open(&config.store).expect("a store");
        Self::start_with(config, store).await
    }

    /// Over a store that is handed in.
    pub async fn start_with(config: Config, store: Arc<dyn Store>) -> Self {
        let free = || tokio::net::TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners {
            http: free().await.expect("a port"),
            grpc: free().await.expect("a port"),
            metrics: None,
        };
        let (http, grpc) = (listeners.http.local_addr(), listeners.grpc.local_addr());
        let (telemetry, spans) = Telemetry::in_memory();
        let shutdown = Shutdown::new();
        let deps = Deps {
            metrics: Metrics::new("analytics"),
            tracer: telemetry.tracer("analytics"),
            clock: Arc::new(ManualClock::new(NOW_S * 1_000_000)),
            shutdown: shutdown.clone(),
        };
        let task = tokio::spawn(streamgauge_analytics::run_with_store(
            config, listeners, deps, store,
        ));
        Self {
            http: http.expect("an address"),
            grpc: grpc.expect("an address"),
            shutdown,
            task,
            spans,
            client: reqwest::Client::new(),
        }
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.http);
        let response = self.client.get(url).send().await.expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    pub async fn answer(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub async fn calls(&self) -> AnalyticsClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).expect("an address");
        AnalyticsClient::new(endpoint.connect().await.expect("connected"))
    }

    /// Waits until as many source offsets are accounted for.
    pub async fn until_head(&self, head: i64) {
        until(|| async { self.get("/v1/ledger").await.1["total"]["head"] == head }).await;
    }

    /// Waits until the service is ready.
    pub async fn until_ready(&self) {
        until(|| async { self.get("/readyz").await.0 == 200 }).await;
    }

    /// Waits until a condition of readiness is not met, for a reason that says this.
    pub async fn until_unmet(&self, name: &str, reason: &str) {
        until(|| async {
            let (status, body) = self.get("/health").await;
            let conditions = body["conditions"].as_array().cloned().unwrap_or_default();
            let is_meant = |condition: &Value| {
                let detail = condition["detail"].as_str().unwrap_or_default();
                condition["name"] == name && condition["ready"] == false && detail.contains(reason)
            };
            status == 503 && conditions.iter().any(is_meant)
        })
        .await;
    }

    pub async fn metric(&self, line: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics").await;
        let text = body.as_str()?;
        let found = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?;
        found.split(' ').next()?.parse().ok()
    }

    pub async fn stop(self) {
        self.shutdown.trigger();
        self.task.await.expect("no panic").expect("a clean end");
    }
}

pub async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .expect("the condition holds in time");
}

/// Writes to the log as the consumer does.
pub struct Writer {
    publisher: Publisher,
    pub heads: [i64; PARTITIONS as usize],
    pub oracle: Oracle,
}

impl Writer {
    pub fn new(brokers: &str) -> Self {
        let kafka = KafkaConfig {
            brokers: String::from(brokers),
            ..KafkaConfig::default()
        };
        let publisher =
            Publisher::new(&kafka, &PublisherConfig::default(), None).expect("a publisher");
        Self {
            publisher,
            heads: [0; PARTITIONS as usize],
            oracle: Oracle::default(),
        }
    }

    pub async fn raw(&self, partition: i32, payload: &[u8]) {
        let record = Record {
            topic: "metrics-data",
            partition: Some(partition),
            key: None,
            payload: Some(payload),
            timestamp_ms: None,
            headers: &[],
        };
        self.publisher.send(record).await.expect("written");
    }

    pub async fn valid(
        &mut self,
        partition: i32,
        events: Vec<Event>,
        traces: Vec<TraceContext>,
    ) -> Vec<u8> {
        let head = &mut self.heads[partition as usize];
        let mut batch = batch(*head, &events);
        *head = batch.to;
        batch.traces = traces
            .iter()
            .map(|trace| trace.to_bytes().to_vec().into())
            .collect();
        let payload = batch.encode_to_vec();
        self.raw(partition, &payload).await;
        self.oracle.0.extend(events);
        payload
    }

    /// The events themselves, so that the source topic ends where the chain does.
    pub async fn source(&self) {
        for (partition, head) in self.heads.iter().enumerate() {
            let mut batch = self.publisher.batch();
            for _ in 0..*head {
                batch.push(Record {
                    topic: "analytics-events",
                    partition: Some(partition as i32),
                    key: None,
                    payload: Some(b"an event"),
                    timestamp_ms: None,
                    headers: &[],
                });
            }
            assert!(batch.finish().await.failed.is_empty());
        }
    }

    pub fn total(&self) -> i64 {
        self.heads.iter().sum()
    }
}

pub fn some_events(start: i64, count: u32) -> Vec<Event> {
    let value = |n: u32| n.is_multiple_of(2).then_some(f64::from(n));
    (0..count)
        .map(|n| event(start + i64::from(n % 90), n % 23, n % 7, value(n)))
        .collect()
}
