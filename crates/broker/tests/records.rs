//! Records in and out through a real client: nothing lost, nothing doubled,
//! nothing changed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use rdkafka::Message;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use support::*;

#[tokio::test]
async fn topics_are_created_described_and_deleted_by_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let admin: AdminClient<DefaultClientContext> = client(&broker.bootstrap()).create().unwrap();
    let topic =
        || NewTopic::new("events", 6, TopicReplication::Fixed(1)).set("retention.ms", "1000");
    let created = admin
        .create_topics(&[topic()], &AdminOptions::new())
        .await
        .unwrap();
    assert!(created[0].is_ok(), "{created:?}");
    let again = admin
        .create_topics(&[topic()], &AdminOptions::new())
        .await
        .unwrap();
    assert!(again[0].is_err());
    broker.create_topic("events", 6).await.unwrap();
    broker.create_topic("events", 7).await.unwrap_err();

    let bootstrap = broker.bootstrap();
    let partitions = blocking(move || {
        let metadata = reader(&bootstrap)
            .fetch_metadata(Some("events"), LIMIT)
            .unwrap();
        metadata.topics()[0].partitions().len()
    })
    .await;
    assert_eq!(partitions, 6);

    use rdkafka::admin::ResourceSpecifier;
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic("events")], &AdminOptions::new())
        .await
        .unwrap();
    let described = described.into_iter().next().unwrap().unwrap();
    let retention = described.get("retention.ms").unwrap().value.clone();
    assert_eq!(retention.as_deref(), Some("1000"));

    admin
        .delete_topics(&["events"], &AdminOptions::new())
        .await
        .unwrap();
    assert!(broker.stats().partitions.is_empty());
    stop(broker).await;
}

#[tokio::test]
async fn every_codec_comes_back_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    for codec in ["none", "gzip", "lz4", "zstd", "snappy"] {
        broker.create_topic(codec, 2).await.unwrap();
        let bootstrap = broker.bootstrap();
        blocking(move || {
            let producer = producer(&bootstrap, &[("compression.codec", codec)]);
            for n in 0..500 {
                let key = format!("{n}");
                let value = format!("{codec} {n} ").repeat(20);
                let headers = OwnedHeaders::new().insert(Header {
                    key: "traceparent",
                    value: Some(&key),
                });
                let record = BaseRecord::to(codec)
                    .key(&key)
                    .payload(&value)
                    .headers(headers);
                producer.send(record).map_err(|(error, _)| error).unwrap();
            }
            settle(&producer);
            check_codec(&bootstrap, codec);
        })
        .await;
    }
    stop(broker).await;
}

fn check_codec(bootstrap: &str, codec: &str) {
    let consumer = reader(bootstrap);
    let mut assignment = rdkafka::TopicPartitionList::new();
    for partition in 0..2 {
        let from = rdkafka::Offset::Beginning;
        assignment
            .add_partition_offset(codec, partition, from)
            .unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut left = 500;
    while left > 0 {
        match consumer.poll(LIMIT).unwrap() {
            Ok(message) => {
                let key = std::str::from_utf8(message.key().unwrap())
                    .unwrap()
                    .to_owned();
                let expected = format!("{codec} {key} ").repeat(20);
                assert_eq!(message.payload().unwrap(), expected.as_bytes());
                let header = message.headers().unwrap().get(0);
                assert_eq!(header.value, Some(key.as_bytes()));
                left -= 1;
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn lost_acknowledgements_and_cut_connections_double_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("once", 3).await.unwrap();
    let (bootstrap, faults) = (broker.bootstrap(), broker.faults());
    blocking(move || {
        let producer = producer(&bootstrap, &[("batch.num.messages", "50")]);
        for n in 0..6_000 {
            if n % 1_000 == 100 {
                faults.drop_acknowledgements(2);
            }
            if n % 1_000 == 600 {
                faults.cut_connections();
            }
            send(&producer, "once", None, &format!("{n:08}"), b"value");
            if n % 100 == 0 {
                producer.poll(Duration::from_millis(2));
            }
        }
        settle(&producer);
        assert!(faults.acknowledgements_dropped() > 0);
        assert_each_once(&producer, &bootstrap, "once", 3);
    })
    .await;
    assert!(broker.stats().batches_duplicate > 0);
    stop(broker).await;
}

/// Every record acknowledged is in the log exactly where it was said to be,
/// and nothing else is there.
fn assert_each_once(producer: &TestProducer, bootstrap: &str, topic: &str, partitions: i32) {
    let stored = producer.context().stored.lock().clone();
    let mut seen: Vec<(String, (i32, i64))> = read_all(bootstrap, topic, partitions)
        .into_iter()
        .map(|seen| (seen.key, (seen.partition, seen.offset)))
        .collect();
    seen.sort();
    assert_eq!(seen, stored.into_iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn idempotence_outlives_a_restart_of_the_broker() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("once", 1).await.unwrap();
    let address = broker.local_addr();
    let bootstrap = broker.bootstrap();
    let producer = blocking(move || {
        let producer = producer(&bootstrap, &[("batch.num.messages", "10")]);
        for n in 0..500 {
            send(&producer, "once", None, &format!("{n:08}"), b"value");
        }
        settle(&producer);
        producer
    })
    .await;
    // The next batch is stored, but the client does not hear of it before the
    // broker is gone.
    let faults = broker.faults();
    faults.drop_acknowledgements(1);
    let producer = blocking(move || {
        send(&producer, "once", None, "lost", b"value");
        producer
    })
    .await;
    eventually("the dropped acknowledgement", || {
        faults.acknowledgements_dropped() == 1
    })
    .await;
    drop(broker);
    let restarted = streamgauge_broker::BrokerConfig {
        listen: address,
        ..config(dir.path())
    };
    let broker = streamgauge_broker::Broker::start(restarted).await.unwrap();
    let bootstrap = broker.bootstrap();
    blocking(move || {
        for n in 500..600 {
            send(&producer, "once", None, &format!("{n:08}"), b"value");
        }
        settle(&producer);
        assert_each_once(&producer, &bootstrap, "once", 1);
    })
    .await;
    stop(broker).await;
}

#[tokio::test]
async fn a_batch_larger_than_allowed_is_refused_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("sizes", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    blocking(move || {
        let producer = producer(
            &bootstrap,
            &[
                ("message.max.bytes", "5000000"),
                ("enable.idempotence", "false"),
            ],
        );
        send(&producer, "sizes", None, "large", &vec![7; 2_000_000]);
        send(&producer, "sizes", None, "small", b"value");
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(2));
        }
        let failed = producer.context().failed.lock().clone();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].contains("MessageSizeTooLarge"), "{failed:?}");
        assert_eq!(read_all(&bootstrap, "sizes", 1).len(), 1);
    })
    .await;
    stop(broker).await;
}

#[tokio::test]
async fn a_refusing_disk_is_retried_until_it_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("full", 1).await.unwrap();
    let (bootstrap, faults) = (broker.bootstrap(), broker.faults());
    faults.refuse_appends(true);
    faults.delay_appends(Duration::from_millis(1));
    let producer = blocking(move || {
        let producer = producer(&bootstrap, &[]);
        for n in 0..100 {
            send(&producer, "full", None, &format!("{n:08}"), b"value");
        }
        producer
    })
    .await;
    eventually("a few requests", || broker.stats().requests > 10).await;
    assert_eq!(broker.stats().records_appended, 0);
    faults.refuse_appends(false);
    let bootstrap = broker.bootstrap();
    blocking(move || {
        settle(&producer);
        assert_each_once(&producer, &bootstrap, "full", 1);
    })
    .await;
    stop(broker).await;
}

#[tokio::test]
async fn with_fsync_always_all_is_acknowledged_and_readable() {
    let dir = tempfile::tempdir().unwrap();
    let config = streamgauge_broker::BrokerConfig {
        fsync: streamgauge_broker::Fsync::Always,
        ..config(dir.path())
    };
    let broker = streamgauge_broker::Broker::start(config).await.unwrap();
    broker.create_topic("synced", 2).await.unwrap();
    let bootstrap = broker.bootstrap();
    blocking(move || {
        let producer = producer(&bootstrap, &[("batch.num.messages", "20")]);
        for n in 0..1_000 {
            send(&producer, "synced", None, &format!("{n:08}"), b"value");
        }
        settle(&producer);
        assert_each_once(&producer, &bootstrap, "synced", 2);
    })
    .await;
    stop(broker).await;
}

#[tokio::test]
async fn transactions_are_refused_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let bootstrap = broker.bootstrap();
    blocking(move || {
        let producer = producer(&bootstrap, &[("transactional.id", "tx")]);
        producer.init_transactions(LIMIT).unwrap_err();
    })
    .await;
    stop(broker).await;
}

/// A batch of one record with this body, as a client would send it that does not know what it does.
fn made(codec: u8, body: &[u8]) -> bytes::Bytes {
    let mut tail = vec![0, codec];
    tail.extend(0i32.to_be_bytes());
    tail.extend(1_000i64.to_be_bytes());
    tail.extend(1_000i64.to_be_bytes());
    tail.extend((-1i64).to_be_bytes());
    tail.extend((-1i16).to_be_bytes());
    tail.extend((-1i32).to_be_bytes());
    tail.extend(1i32.to_be_bytes());
    tail.extend(body);
    let mut batch = 0i64.to_be_bytes().to_vec();
    batch.extend((tail.len() as i32 + 9).to_be_bytes());
    batch.extend((-1i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c::crc32c(&tail).to_be_bytes());
    batch.extend(tail);
    batch.into()
}

#[tokio::test]
async fn a_batch_that_no_reader_could_read_is_refused_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("events", 1).await.unwrap();
    // A record of no key, the value `x` and no headers.
    let record = [14, 0, 0, 0, 1, 2, b'x', 0];
    let error = |error: ResponseError| error.code();
    let cases = [
        (made(3, &record), error(ResponseError::InvalidRecord)),
        (made(4, b"nothing"), error(ResponseError::InvalidRecord)),
        (made(0, &record[..5]), error(ResponseError::InvalidRecord)),
        (
            made(6, &record),
            error(ResponseError::UnsupportedCompressionType),
        ),
        (made(0, &record), 0),
    ];
    let mut client = Raw::connect(&broker).await;
    for (records, expected) in cases {
        let data = PartitionProduceData::default().with_records(Some(records));
        let topic = TopicProduceData::default()
            .with_name(TopicName(StrBytes::from_static_str("events")))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_topic_data(vec![topic]);
        let answer = client.call(9, &request).await;
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!(
            partition.error_code, expected,
            "{:?}",
            partition.error_message
        );
    }
    assert_eq!(broker.stats().batches_refused, 4);
    let bootstrap = broker.bootstrap();
    let seen = blocking(move || read_all(&bootstrap, "events", 1)).await;
    assert_eq!(seen.len(), 1);
    stop(broker).await;
}
