//! A consumer on free ports beside an embedded broker, and an independent reader of what it writes.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use prost::Message;
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_chain::{Ledger, Verdict, delta};
use streamgauge_consumer::{Config, Deps, Error, bind, run};
use streamgauge_kafka::{
    FetchConfig, KafkaConfig, LogReader, Publisher, PublisherConfig, Record, Watermarks,
};
use streamgauge_lifecycle::{Shutdown, SystemClock};
use streamgauge_proto::v1::{DeltaBatch, Event};
use streamgauge_telemetry::{FinishedSpans, Metrics, Telemetry};
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub const PARTITIONS: i32 = 3;
pub const EVENTS: &str = "analytics-events";
pub const DEAD: &str = "analytics-events.dlq";
pub const DELTAS: &str = "metrics-data";

/// The longest wait for any condition.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker and what tests read and write it with.
pub struct Log {
    broker: Option<Broker>,
    pub kafka: KafkaConfig,
    pub publisher: Publisher,
    pub reader: LogReader,
    _dir: TempDir,
}

impl Log {
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let broker = Broker::start(BrokerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: dir.path().to_owned(),
            group_session_timeout_ms_min: 500,
            group_initial_rebalance_delay_ms: 0,
            ..BrokerConfig::default()
        })
        .await
        .unwrap();
        Self::on(broker, dir).await
    }

    /// On a broker that is there, with the three topics still to be made.
    pub async fn on(broker: Broker, dir: TempDir) -> Self {
        let kafka = KafkaConfig {
            brokers: broker.bootstrap(),
            ..KafkaConfig::default()
        };
        let publisher = Publisher::new(&kafka, &PublisherConfig::default(), None).unwrap();
        let reader = LogReader::new(&kafka, &FetchConfig::default(), None).unwrap();
        Self {
            broker: Some(broker),
            kafka,
            publisher,
            reader,
            _dir: dir,
        }
    }

    /// Stops the broker and starts it again on the same folder.
    pub async fn restart(&mut self, settings: BrokerConfig) {
        if let Some(broker) = self.broker.take() {
            broker.shutdown(Duration::from_secs(5)).await;
        }
        self.broker = Some(Broker::start(settings).await.unwrap());
    }

    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    /// With the three topics.
    pub async fn with_topics() -> Self {
        let log = Self::start().await;
        for topic in [EVENTS, DEAD, DELTAS] {
            log.broker().create_topic(topic, PARTITIONS).await.unwrap();
        }
        log
    }

    pub fn config(&self) -> Config {
        config(&self.kafka.brokers)
    }

    /// Writes events as the producer does.
    pub async fn produce(&self, events: &[Event]) {
        let mut batch = self.publisher.batch();
        for event in events {
            let payload = event.encode_to_vec();
            batch.push(record(event.user_id.as_bytes(), Some(&payload), &[]));
        }
        assert!(batch.finish().await.failed.is_empty());
    }

    pub async fn produce_raw(&self, record: Record<'_>) -> (i32, i64) {
        let delivery = self.publisher.send(record).await.unwrap();
        (delivery.partition, delivery.offset)
    }

    /// The ends of a partition, of which a client knows nothing for a moment after its broker came back.
    async fn ends(&self, topic: &str, partition: i32) -> Watermarks {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.reader.watermarks(topic, partition).await {
                Ok(ends) => return ends,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything in a partition: offset, payload, headers.
    pub async fn read(&self, topic: &str, partition: i32) -> Vec<Stored> {
        let ends = self.ends(topic, partition).await;
        let mut found = Vec::new();
        self.reader
            .read_range(topic, partition, ends.low, ends.high, |chunk| {
                found.extend(chunk.iter().map(|record| {
                    Stored {
                        key: record.key.map(<[u8]>::to_vec),
                        payload: record.payload.map(<[u8]>::to_vec),
                        headers: record
                            .headers
                            .map(|(name, value)| {
                                (name.to_owned(), value.unwrap_or_default().to_vec())
                            })
                            .collect(),
                    }
                }));
            })
            .await
            .unwrap();
        found
    }

    /// What any reader makes of `metrics-data`.
    pub async fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for partition in 0..PARTITIONS {
            let mut ledger = Ledger::starting_at(0);
            for stored in self.read(DELTAS, partition).await {
                let batch = delta::decode(&stored.payload.unwrap()).unwrap();
                let range = delta::range(&batch).unwrap();
                if ledger.offer(range, delta::outcomes(&batch)) == Verdict::Valid {
                    totals.add(&batch);
                } else {
                    totals.void += 1;
                }
            }
            assert_eq!(ledger.imbalance(), 0);
            let outcomes = ledger.outcomes();
            totals.counted += outcomes.counted;
            totals.duplicate += outcomes.duplicate;
            totals.dead_lettered += outcomes.dead_lettered;
            totals.late += outcomes.late;
            totals.missing += outcomes.missing;
            totals.covered += ledger.head();
        }
        totals
    }

    /// Waits until the valid batches cover so many source offsets.
    pub async fn covered(&self, offsets: i64) -> Totals {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let totals = self.totals().await;
            if totals.covered >= offsets {
                return totals;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{totals:?} instead of {offsets} offsets"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A record as it lies in the log.
#[derive(Clone, Debug)]
pub struct Stored {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Stored {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| std::str::from_utf8(value).unwrap())
    }
}

/// What the valid batches add up to.
#[derive(Debug, Default)]
pub struct Totals {
    pub covered: i64,
    pub counted: u64,
    pub duplicate: u64,
    pub dead_lettered: u64,
    pub late: u64,
    pub missing: u64,
    pub void: u64,
    /// Count by page, from the series `page_url`.
    pub pages: BTreeMap<String, u64>,
    /// Count and sum of the series `all`.
    pub all: (u64, f64),
    pub user_pages: BTreeMap<(String, String), u64>,
    pub traces: Vec<Vec<u8>>,
    pub writers: std::collections::BTreeSet<String>,
}

impl Totals {
    fn add(&mut self, batch: &DeltaBatch) {
        let text = |id: u32| batch.strings[id as usize].clone();
        for series in &batch.series {
            for cell in &series.cells {
                match series.series.as_str() {
                    "page_url" => *self.pages.entry(text(cell.key[0])).or_default() += cell.count,
                    "all" => self.all = (self.all.0 + cell.count, self.all.1 + cell.sum),
                    _ => {}
                }
            }
        }
        for page in &batch.user_pages {
            *self
                .user_pages
                .entry((text(page.user_id), text(page.page_url)))
                .or_default() += page.count;
        }
        self.traces
            .extend(batch.traces.iter().map(|trace| trace.to_vec()));
        self.writers.insert(batch.writer.clone());
    }
}

pub fn record<'a>(
    key: &'a [u8],
    payload: Option<&'a [u8]>,
    headers: &'a [(&'a str, &'a [u8])],
) -> Record<'a> {
    Record {
        topic: EVENTS,
        partition: None,
        key: Some(key),
        payload,
        timestamp_ms: None,
        headers,
    }
}

/// An event of now.
pub fn event(number: u64) -> Event {
    let now_us = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros() as i64;
    Event {
        event_id: format!("event-{number}"),
        user_id: format!("user-{}", number % 97),
        event_type: String::from("view"),
        occurred_at_us: now_us,
        received_at_us: now_us,
        page_url: format!("/page/{}", number % 7),
        value: Some(1.0),
        ..Event::default()
    }
}

pub fn events(numbers: std::ops::Range<u64>) -> Vec<Event> {
    numbers.map(event).collect()
}

/// Settings for tests: free ports, quick to notice.
pub fn config(brokers: &str) -> Config {
    let mut config = Config::default();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    (config.http.listen, config.grpc.listen) = (any, any);
    config.kafka.brokers = brokers.to_owned();
    config.kafka.statistics_interval_ms = 200;
    config.topics.partitions = PARTITIONS;
    (
        config.topics.connect.initial_ms,
        config.topics.connect.max_ms,
    ) = (50, 200);
    config.group.session_timeout_ms = 2_000;
    config.batch.wait_ms = 10;
    config.owner.commit_interval_ms = 100;
    config.owner.status_interval_ms = 50;
    config.shutdown_deadline_ms = 15_000;
    config
}

/// A running consumer.
pub struct Consumer {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub metrics: Metrics,
    pub spans: FinishedSpans,
    pub shutdown: Shutdown,
    pub task: JoinHandle<Result<(), Error>>,
    client: reqwest::Client,
}

impl Consumer {
    /// Starts and does not wait.
    pub async fn launch(config: Config) -> Self {
        let listeners = bind(&config).await.unwrap();
        let http = listeners.http.local_addr().unwrap();
        let grpc = listeners.grpc.local_addr().unwrap();
        let (telemetry, spans) = Telemetry::in_memory();
        let (metrics, shutdown) = (Metrics::new("consumer"), Shutdown::new());
        let deps = Deps {
            metrics: metrics.clone(),
            tracer: telemetry.tracer("consumer"),
            clock: SystemClock::shared(),
            shutdown: shutdown.clone(),
        };
        let task = tokio::spawn(run(config, listeners, deps));
        Self {
            http,
            grpc,
            metrics,
            spans,
            shutdown,
            task,
            client: reqwest::Client::new(),
        }
    }

    /// Starts and waits until it is ready.
    pub async fn start(config: Config) -> Self {
        let consumer = Self::launch(config).await;
        consumer
            .until(async |it| it.get("/readyz").await.0 == 200, "ready")
            .await;
        consumer
    }

    pub async fn stop(self) {
        self.shutdown.trigger();
        self.task.await.unwrap().unwrap();
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = self
            .client
            .get(format!("http://{}{path}", self.http))
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub async fn post(&self, path: &str, body: &'static str) -> (u16, String) {
        let request = self
            .client
            .post(format!("http://{}{path}", self.http))
            .body(body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub async fn partitions(&self) -> Vec<serde_json::Value> {
        let status: serde_json::Value =
            serde_json::from_str(&self.get("/v1/status").await.1).unwrap();
        status["partitions"].as_array().unwrap().clone()
    }

    /// Waits for a condition.
    pub async fn until(&self, condition: impl AsyncFn(&Self) -> bool, what: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !condition(self).await {
            let health = self.get("/health").await.1;
            assert!(
                tokio::time::Instant::now() < deadline,
                "not {what}: {health}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn metric(&self, line: &str) -> bool {
        self.metrics.encode().lines().any(|found| found == line)
    }
}
