//! Where a log starts and ends, as clients see it: by time, after retention,
//! after deletion; and waiting at its end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{
    ApiKey, BrokerId, FetchRequest, FetchResponse, RequestHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::BaseRecord;
use rdkafka::{Offset, TopicPartitionList};
use streamgauge_broker::{Broker, BrokerConfig};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends records a second apart from `start_ms` on, a batch each hundred.
fn fill_timed(bootstrap: &str, topic: &str, count: i64, start_ms: i64) {
    let producer = producer(bootstrap, &[("batch.num.messages", "100")]);
    for n in 0..count {
        let key = format!("{n:08}");
        let record = BaseRecord::to(topic)
            .key(&key)
            .payload("value")
            .partition(0)
            .timestamp(start_ms + n * 1_000);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    settle(&producer);
}

fn offset_at(bootstrap: &str, topic: &str, timestamp: i64) -> Offset {
    let mut wanted = TopicPartitionList::new();
    let at = Offset::Offset(timestamp);
    wanted.add_partition_offset(topic, 0, at).unwrap();
    let found = reader(bootstrap).offsets_for_times(wanted, LIMIT).unwrap();
    found.elements()[0].offset()
}

#[tokio::test]
async fn offsets_are_found_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        segment_bytes: 1024 * 1024 + 12,
        retention_ms: -1,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    broker.create_topic("timed", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    blocking(move || {
        let start = 1_700_000_000_000;
        fill_timed(&bootstrap, "timed", 1_000, start);
        for n in [0, 1, 99, 100, 555, 999] {
            let found = offset_at(&bootstrap, "timed", start + n * 1_000);
            assert_eq!(found, Offset::Offset(n));
            let found = offset_at(&bootstrap, "timed", start + n * 1_000 - 500);
            assert_eq!(found, Offset::Offset(n));
        }
        let past_the_end = offset_at(&bootstrap, "timed", start + 1_000_000);
        assert_eq!(past_the_end, Offset::End);
    })
    .await;
    stop(broker).await;
}

#[tokio::test]
async fn retention_by_size_moves_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        max_message_bytes: 20_000,
        segment_bytes: 100_000,
        retention_bytes: 300_000,
        retention_check_interval_ms: 20,
        ..config(dir.path())
    };
    let broker = Broker::start(config.clone()).await.unwrap();
    broker.create_topic("sized", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    let target = bootstrap.clone();
    blocking(move || {
        let producer = producer(&target, &[("batch.size", "10000")]);
        for n in 0..2_000 {
            send(&producer, "sized", Some(0), &format!("{n:08}"), &[7; 500]);
        }
        settle(&producer);
    })
    .await;
    eventually("the log to shrink", || {
        broker.stats().partitions[0].size_bytes < 420_000
    })
    .await;
    let log = broker.stats().partitions[0].clone();
    assert!(log.size_bytes >= 300_000 && log.log_start > 0, "{log:?}");
    blocking(move || {
        assert_eq!(watermarks(&bootstrap, "sized", 0), (log.log_start, 2_000));
        let seen = read_all(&bootstrap, "sized", 1);
        assert_eq!(seen[0].offset, log.log_start);
        assert_eq!(seen.len() as i64, 2_000 - log.log_start);
    })
    .await;
    drop(broker);
    let broker = Broker::start(config).await.unwrap();
    assert_eq!(broker.stats().partitions[0].log_start, log.log_start);
    stop(broker).await;
}

#[tokio::test]
async fn retention_by_age_moves_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        retention_ms: 3_600_000,
        retention_check_interval_ms: 20,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    broker.create_topic("aged", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    let target = bootstrap.clone();
    blocking(move || fill_timed(&target, "aged", 100, 1_700_000_000_000)).await;
    eventually("the old records to go", || {
        broker.stats().partitions[0].log_start == 100
    })
    .await;
    blocking(move || {
        fill(&bootstrap, "aged", Some(0), 10, b"fresh");
        let seen = read_all(&bootstrap, "aged", 1);
        assert_eq!((seen.len(), seen[0].offset), (10, 100));
    })
    .await;
    stop(broker).await;
}

#[tokio::test]
async fn deleted_records_are_gone_and_readers_learn_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("cut", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    let target = bootstrap.clone();
    blocking(move || fill(&target, "cut", Some(0), 100, b"value")).await;
    let admin: AdminClient<DefaultClientContext> = client(&bootstrap).create().unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets
        .add_partition_offset("cut", 0, Offset::Offset(40))
        .unwrap();
    admin
        .delete_records(&offsets, &AdminOptions::new())
        .await
        .unwrap();
    drop(broker);
    let broker = start(dir.path()).await;
    let bootstrap = broker.bootstrap();
    blocking(move || {
        assert_eq!(watermarks(&bootstrap, "cut", 0), (40, 100));
        assert_eq!(read_all(&bootstrap, "cut", 1)[0].offset, 40);
        let consumer: BaseConsumer = client(&bootstrap)
            .set("group.id", "late")
            .set("auto.offset.reset", "error")
            .create()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset("cut", 0, Offset::Offset(10))
            .unwrap();
        consumer.assign(&assignment).unwrap();
        let error = consumer.poll(LIMIT).unwrap().err().unwrap().to_string();
        assert!(error.contains("AutoOffsetReset"), "{error}");
    })
    .await;
    stop(broker).await;
}

/// A fetch of several partitions that would wait for a minute.
fn long_fetch(topic: &str, partitions: i32) -> Vec<u8> {
    let wanted = (0..partitions).map(|partition| {
        FetchPartition::default()
            .with_partition(partition)
            .with_partition_max_bytes(1_000_000)
    });
    let topic = FetchTopic::default()
        .with_topic(TopicName(StrBytes::from_string(topic.to_owned())))
        .with_partitions(wanted.collect());
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(60_000)
        .with_min_bytes(1)
        .with_max_bytes(1_000_000)
        .with_topics(vec![topic]);
    let header = RequestHeader::default()
        .with_request_api_key(ApiKey::Fetch as i16)
        .with_request_api_version(11);
    let mut frame = Vec::new();
    header.encode(&mut frame, 1).unwrap();
    request.encode(&mut frame, 11).unwrap();
    [&(frame.len() as i32).to_be_bytes()[..], &frame].concat()
}

#[tokio::test]
async fn a_waiting_fetch_answers_when_data_comes_to_any_of_its_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("live", 3).await.unwrap();
    let mut stream = TcpStream::connect(broker.local_addr()).await.unwrap();
    stream.write_all(&long_fetch("live", 3)).await.unwrap();
    eventually("the fetch to be waiting", || broker.stats().requests == 1).await;
    let bootstrap = broker.bootstrap();
    blocking(move || fill(&bootstrap, "live", Some(2), 1, b"value")).await;
    // Half its wait is long past what an answer takes, whatever else runs.
    let answered = tokio::time::timeout(LIMIT, stream.read_i32()).await;
    let mut body = vec![0; answered.unwrap().unwrap() as usize];
    stream.read_exact(&mut body).await.unwrap();
    let mut body = bytes::Bytes::from(body).split_off(4);
    let answer = FetchResponse::decode(&mut body, 11).unwrap();
    let found: Vec<(i32, i64)> = answer.responses[0]
        .partitions
        .iter()
        .map(|partition| (partition.partition_index, partition.high_watermark))
        .collect();
    assert_eq!(found, [(0, 0), (1, 0), (2, 1)]);
    stop(broker).await;
}

#[tokio::test]
async fn a_consumer_at_the_end_sees_records_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("live", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    blocking(move || {
        let consumer = client(&bootstrap)
            .set("group.id", "live")
            .set("fetch.wait.max.ms", "60000")
            .set("socket.timeout.ms", "90000")
            .create::<BaseConsumer>()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        let from = Offset::Beginning;
        assignment.add_partition_offset("live", 0, from).unwrap();
        consumer.assign(&assignment).unwrap();
        let producer = producer(&bootstrap, &[]);
        for n in 0..20 {
            send(&producer, "live", Some(0), &format!("{n}"), b"value");
            poll_until(&consumer, "the record", |seen| {
                seen.is_some_and(|seen| seen.key == format!("{n}"))
            });
        }
    })
    .await;
    stop(broker).await;
}
