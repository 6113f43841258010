//! What the tests share: brokers in temporary folders, clients, and waiting
//! for conditions.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request};
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use streamgauge_broker::{Broker, BrokerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const LIMIT: Duration = Duration::from_secs(60);

pub fn config(dir: &Path) -> BrokerConfig {
    BrokerConfig {
        data_dir: dir.to_path_buf(),
        listen: ([127, 0, 0, 1], 0).into(),
        ..BrokerConfig::default()
    }
}

pub async fn start(dir: &Path) -> Broker {
    Broker::start(config(dir)).await.unwrap()
}

pub async fn stop(broker: Broker) {
    broker.shutdown(Duration::from_secs(5)).await;
}

/// Runs blocking client code without holding up the test's runtime.
pub async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Waits until `condition` holds, looking again every few milliseconds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "waited too long for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A client that sends one request at a time and nothing by itself.
pub struct Raw(TcpStream);

impl Raw {
    pub async fn connect(broker: &Broker) -> Raw {
        Raw::connect_to(broker.local_addr()).await
    }

    pub async fn connect_to(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).await.unwrap();
        // A frame is sent in two pieces, and the second would wait for word of the first.
        stream.set_nodelay(true).unwrap();
        Raw(stream)
    }

    pub async fn send<R: Request>(&mut self, version: i16, request: &R) -> io::Result<()> {
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version);
        let mut frame = BytesMut::new();
        header
            .encode(&mut frame, R::header_version(version))
            .unwrap();
        request.encode(&mut frame, version).unwrap();
        self.0.write_i32(frame.len() as i32).await?;
        self.0.write_all(&frame).await
    }

    /// The size of the next answer, and the answer.
    pub async fn receive<R: Request>(&mut self, version: i16) -> io::Result<(usize, R::Response)> {
        let length = tokio::time::timeout(LIMIT, self.0.read_i32()).await;
        let mut body = vec![0; length.expect("no answer came")? as usize];
        self.0.read_exact(&mut body).await?;
        let (size, mut body) = (body.len(), Bytes::from(body));
        ResponseHeader::decode(&mut body, R::Response::header_version(version)).unwrap();
        Ok((size, R::Response::decode(&mut body, version).unwrap()))
    }

    /// An error means that the broker hung up.
    pub async fn try_call<R: Request>(
        &mut self,
        version: i16,
        request: &R,
    ) -> io::Result<R::Response> {
        self.send(version, request).await?;
        Ok(self.receive::<R>(version).await?.1)
    }

    pub async fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        self.try_call(version, request).await.unwrap()
    }
}

pub fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("broker.address.family", "v4")
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100")
        .set("retry.backoff.ms", "10")
        .set("retry.backoff.max.ms", "100");
    config
}

/// Remembers where each record ended up, by its key.
#[derive(Default)]
pub struct Deliveries {
    pub stored: parking_lot::Mutex<BTreeMap<String, (i32, i64)>>,
    pub failed: parking_lot::Mutex<Vec<String>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        match result {
            Ok(message) => {
                let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
                let place = (message.partition(), message.offset());
                assert_eq!(self.stored.lock().insert(key, place), None);
            }
            Err((error, _)) => self.failed.lock().push(error.to_string()),
        }
    }
}

pub type TestProducer = ThreadedProducer<Deliveries>;

pub fn producer(bootstrap: &str, settings: &[(&str, &str)]) -> TestProducer {
    let mut config = client(bootstrap);
    config
        .set("enable.idempotence", "true")
        .set("linger.ms", "1");
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config.create_with_context(Deliveries::default()).unwrap()
}

/// Sends a keyed record, waiting while the client's queue is full.
pub fn send(producer: &TestProducer, topic: &str, partition: Option<i32>, key: &str, value: &[u8]) {
    let mut record = BaseRecord::to(topic).key(key).payload(value);
    if let Some(partition) = partition {
        record = record.partition(partition);
    }
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((error, back)) => {
                assert!(error.to_string().contains("QueueFull"), "{error}");
                record = back;
                producer.poll(Duration::from_millis(1));
            }
        }
    }
}

/// Waits until nothing is in flight and everything was stored.
pub fn settle(producer: &TestProducer) {
    let started = Instant::now();
    while producer.in_flight_count() > 0 {
        assert!(started.elapsed() < LIMIT, "records are still in flight");
        producer.poll(Duration::from_millis(2));
    }
    assert_eq!(*producer.context().failed.lock(), Vec::<String>::new());
}

/// Sends `count` records named by their number and waits for them.
pub fn fill(bootstrap: &str, topic: &str, partition: Option<i32>, count: usize, value: &[u8]) {
    let producer = producer(bootstrap, &[]);
    for n in 0..count {
        send(&producer, topic, partition, &format!("{n:08}"), value);
    }
    settle(&producer);
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub partition: i32,
    pub offset: i64,
    pub key: String,
    pub value: Vec<u8>,
    pub timestamp: i64,
}

impl Seen {
    pub fn of(message: &impl Message) -> Seen {
        Seen {
            partition: message.partition(),
            offset: message.offset(),
            key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
            value: message.payload().unwrap_or_default().to_vec(),
            timestamp: message.timestamp().to_millis().unwrap_or(-1),
        }
    }
}

pub fn reader(bootstrap: &str) -> BaseConsumer {
    client(bootstrap)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", "20")
        .create()
        .unwrap()
}

/// Reads a topic from `from` to its end.
pub fn read_from(bootstrap: &str, topic: &str, partitions: i32, from: Offset) -> Vec<Seen> {
    let consumer = reader(bootstrap);
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment
            .add_partition_offset(topic, partition, from)
            .unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut ended = 0;
    let mut seen = Vec::new();
    let started = Instant::now();
    while ended < partitions {
        assert!(started.elapsed() < LIMIT, "the topic's end never came");
        match consumer.poll(Duration::from_millis(50)) {
            Some(Ok(message)) => seen.push(Seen::of(&message)),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    seen
}

pub fn read_all(bootstrap: &str, topic: &str, partitions: i32) -> Vec<Seen> {
    read_from(bootstrap, topic, partitions, Offset::Beginning)
}

/// First and next offset of a partition.
pub fn watermarks(bootstrap: &str, topic: &str, partition: i32) -> (i64, i64) {
    reader(bootstrap)
        .fetch_watermarks(topic, partition, LIMIT)
        .unwrap()
}

/// Polls a consumer until `done` says so.
pub fn poll_until<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    what: &str,
    mut done: impl FnMut(Option<Seen>) -> bool,
) {
    let started = Instant::now();
    loop {
        let seen = match consumer.poll(Duration::from_millis(10)) {
            Some(Ok(message)) => Some(Seen::of(&message)),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) | None => None,
            Some(Err(error)) => panic!("{what}: {error}"),
        };
        if done(seen) {
            return;
        }
        assert!(started.elapsed() < LIMIT, "waited too long for: {what}");
    }
}
