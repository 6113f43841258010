//! A producer on port 0 beside a broker of its own.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::SocketAddr;
use std::time::Duration;

use prost::Message;
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_kafka::{FetchConfig, KafkaConfig, LogReader};
use streamgauge_lifecycle::{Shutdown, SystemClock};
use streamgauge_producer::{Config, Deps, Error, bind, run};
use streamgauge_proto::v1::Event;
use streamgauge_proto::v1::SubmittedEvent;
use streamgauge_telemetry::{FinishedSpans, Metrics, Telemetry};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

pub const PARTITIONS: i32 = 3;
pub const TOPIC: &str = "analytics-events";

pub struct Producer {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub metrics: Metrics,
    pub spans: FinishedSpans,
    pub shutdown: Shutdown,
    pub task: JoinHandle<Result<(), Error>>,
    pub client: reqwest::Client,
    pub kafka: KafkaConfig,
}

pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

/// A record of the topic.
#[derive(Clone, Debug)]
pub struct Written {
    pub key: Vec<u8>,
    pub event: Event,
    pub timestamp_ms: i64,
    pub traceparent: Option<String>,
}

pub async fn broker(dir: &TempDir) -> Broker {
    broker_on(dir, SocketAddr::from(([127, 0, 0, 1], 0))).await
}

pub async fn broker_on(dir: &TempDir, listen: SocketAddr) -> Broker {
    let config = BrokerConfig {
        listen,
        data_dir: dir.path().to_owned(),
        ..BrokerConfig::default()
    };
    Broker::start(config).await.unwrap()
}

/// Settings for tests: free ports, quick to notice.
pub fn config(brokers: &str) -> Config {
    let mut config = Config::default();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    (config.http.listen, config.grpc.listen) = (any, any);
    config.kafka.brokers = brokers.to_owned();
    config.topics.partitions = PARTITIONS;
    (
        config.topics.connect.initial_ms,
        config.topics.connect.max_ms,
    ) = (50, 200);
    config.topics.check_interval_ms = 100;
    config.shutdown_deadline_ms = 20_000;
    config
}

impl Producer {
    /// Starts and does not wait for the log.
    pub async fn launch(config: Config) -> Self {
        let listeners = bind(&config).await.unwrap();
        let (http, grpc) = (
            listeners.http.local_addr().unwrap(),
            listeners.grpc.local_addr().unwrap(),
        );
        let (telemetry, spans) = Telemetry::in_memory();
        let metrics = Metrics::new("producer");
        let shutdown = Shutdown::new();
        let deps = Deps {
            metrics: metrics.clone(),
            tracer: telemetry.tracer("producer"),
            clock: SystemClock::shared(),
            shutdown: shutdown.clone(),
        };
        let kafka = config.kafka.clone();
        let task = tokio::spawn(run(config, listeners, deps));
        let client = reqwest::Client::new();
        Self {
            http,
            grpc,
            metrics,
            spans,
            shutdown,
            task,
            client,
            kafka,
        }
    }

    /// Starts and waits until it is ready.
    pub async fn start(config: Config) -> Self {
        let producer = Self::launch(config).await;
        eventually("the producer is ready", async || {
            producer.get("/readyz").await.status == 200
        })
        .await;
        producer
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// A connection to its gRPC door.
    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).unwrap();
        endpoint.connect().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.client.get(self.url(path))).await
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        answer(self.client.post(self.url(path)).body(body)).await
    }

    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let request = self.client.post(self.url(path)).body(body);
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        answer(request).await
    }

    /// Everything in the topic, by partition and offset.
    pub async fn written(&self) -> Vec<Written> {
        // The producer may be set to be impatient; who looks afterwards is not.
        let patient = KafkaConfig {
            request_timeout_ms: 60_000,
            ..self.kafka.clone()
        };
        let reader = LogReader::new(&patient, &FetchConfig::default(), None).unwrap();
        let mut written = Vec::new();
        for partition in 0..PARTITIONS {
            let marks = reader.watermarks(TOPIC, partition).await.unwrap();
            let each = |chunk: &streamgauge_kafka::Chunk| {
                written.extend(chunk.iter().map(|record| {
                    Written {
                        key: record.key.unwrap_or_default().to_vec(),
                        event: Event::decode(record.payload.unwrap_or_default()).unwrap(),
                        timestamp_ms: record.timestamp_ms,
                        traceparent: record
                            .headers
                            .get("traceparent")
                            .map(|header| String::from_utf8(header.to_vec()).unwrap()),
                    }
                }));
            };
            reader
                .read_range(TOPIC, partition, marks.low, marks.high, each)
                .await
                .unwrap();
        }
        written
    }

    /// The value of one series.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.encode();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no series {series} in\n{text}"));
        value.split(' ').next().unwrap_or_default().parse().unwrap()
    }

    /// The sum over all series of one name.
    pub fn metric_sum(&self, name: &str) -> f64 {
        let text = self.metrics.encode();
        let series = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        series
            .filter_map(|rest| {
                rest.split_once("} ")?
                    .1
                    .split(' ')
                    .next()?
                    .parse::<f64>()
                    .ok()
            })
            .sum()
    }

    /// Checks the ledger and returns received, accepted, rejected and failed.
    #[track_caller]
    pub fn ledger(&self) -> [f64; 4] {
        let received = self.metric("events_received_total");
        let accepted = self.metric("events_accepted_total");
        let rejected = self.metric_sum("events_rejected_total");
        let failed = self.metric_sum("events_failed_total");
        assert_eq!(
            received,
            accepted + rejected + failed,
            "the ledger balances"
        );
        assert_eq!(
            received,
            self.metric_sum("events_processed_total"),
            "and agrees with what was processed"
        );
        [received, accepted, rejected, failed]
    }

    pub async fn stop(self) -> Result<(), Error> {
        self.shutdown.trigger();
        tokio::time::timeout(Duration::from_secs(60), self.task)
            .await
            .expect("it stops")
            .unwrap()
    }
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The code of a refusal.
    pub fn code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer {
        status,
        headers,
        text: response.text().await.unwrap(),
    }
}

/// An event as a message.
pub fn message(user_id: &str) -> SubmittedEvent {
    SubmittedEvent {
        user_id: user_id.to_owned(),
        event_type: "x".to_owned(),
        ..SubmittedEvent::default()
    }
}

/// Waits for a condition, for at most 15 seconds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
}
