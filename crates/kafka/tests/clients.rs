//! The clients against a log: the embedded one, or the one that `STREAMGAUGE_TEST_BROKERS` names.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_kafka::{
    FetchConfig, Follower, GroupConfig, GroupReader, KafkaConfig, KafkaError, LogReader,
    Membership, Polled, PublishError, Publisher, PublisherConfig, Record, admin, murmur2_partition,
};
use tokio::sync::{mpsc, watch};

const PARTITIONS: i32 = 3;

struct Log {
    kafka: KafkaConfig,
    topic: String,
    _embedded: Option<(Broker, tempfile::TempDir)>,
}

/// A log with a fresh topic.
async fn log(name: &str) -> Log {
    let unique = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let (brokers, embedded) = match std::env::var("STREAMGAUGE_TEST_BROKERS") {
        Ok(brokers) => (brokers, None),
        Err(_) => {
            let folder = tempfile::tempdir().unwrap();
            let config = BrokerConfig {
                data_dir: folder.path().to_owned(),
                listen: "127.0.0.1:0".parse().unwrap(),
                ..BrokerConfig::default()
            };
            let broker = Broker::start(config).await.unwrap();
            (broker.bootstrap(), Some((broker, folder)))
        }
    };
    let kafka = KafkaConfig {
        brokers,
        ..KafkaConfig::default()
    };
    let log = Log {
        kafka,
        topic: format!("{name}-{unique}"),
        _embedded: embedded,
    };
    admin::ensure_topics(&log.kafka, &[log.spec(PARTITIONS)])
        .await
        .unwrap();
    log
}

impl Log {
    fn spec(&self, partitions: i32) -> admin::TopicSpec {
        admin::TopicSpec {
            name: self.topic.clone(),
            partitions,
            replication: 1,
            config: Vec::new(),
        }
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.kafka, &PublisherConfig::default(), None).unwrap()
    }

    fn reader(&self) -> LogReader {
        LogReader::new(&self.kafka, &FetchConfig::default(), None).unwrap()
    }

    fn record<'a>(&'a self, key: &'a [u8], payload: &'a [u8]) -> Record<'a> {
        Record {
            topic: &self.topic,
            partition: None,
            key: Some(key),
            payload: Some(payload),
            timestamp_ms: Some(1_700_000_000_000),
            headers: &[],
        }
    }

    /// Writes `count` records keyed by number; panics unless all are acknowledged.
    async fn fill(&self, publisher: &Publisher, count: usize) {
        let mut batch = publisher.batch();
        for number in 0..count {
            let key = number.to_string();
            batch.push(self.record(key.as_bytes(), key.as_bytes()));
        }
        let outcome = batch.finish().await;
        assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    }
}

/// Takes from a mailbox until `count` records came; fails after 30 s.
async fn take(mailbox: &mut mpsc::Receiver<Polled>, count: usize) -> Vec<(i64, Vec<u8>)> {
    let mut records = Vec::new();
    while records.len() < count {
        let polled = tokio::time::timeout(Duration::from_secs(30), mailbox.recv()).await;
        match polled
            .expect("records come in time")
            .expect("the reader lives")
        {
            Polled::Records(chunk) => records.extend(
                chunk
                    .iter()
                    .map(|record| (record.offset, record.payload.unwrap().to_vec())),
            ),
            Polled::End { .. } | Polled::OutOfRange => {}
        }
    }
    records
}

/// A member whose changes are taken as they come.
struct Member {
    reader: Arc<GroupReader>,
    owned: watch::Receiver<Vec<i32>>,
}

impl Member {
    fn join(log: &Log, config: &GroupConfig) -> Self {
        let (reader, mut changes) =
            GroupReader::spawn(&log.kafka, config, &log.topic, None).unwrap();
        let reader = Arc::new(reader);
        let (sender, owned) = watch::channel(Vec::new());
        let weak = Arc::downgrade(&reader);
        tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                sender.send_modify(|owned| match change {
                    Membership::Assigned(partitions) => owned.extend(partitions),
                    Membership::Revoked(gone) | Membership::Lost(gone) => {
                        owned.retain(|partition| !gone.contains(partition));
                        if let Some(reader) = weak.upgrade() {
                            reader.acknowledge_revoked();
                        }
                    }
                });
            }
        });
        Self { reader, owned }
    }

    /// Waits until what this member owns fulfils the condition.
    async fn until(&mut self, condition: impl Fn(&[i32]) -> bool) -> Vec<i32> {
        let settled = self.owned.wait_for(|owned| condition(owned));
        let owned = tokio::time::timeout(Duration::from_secs(30), settled).await;
        owned
            .expect("the group settles in time")
            .expect("the member lives")
            .clone()
    }

    async fn leave(self) {
        let reader = Arc::into_inner(self.reader).expect("nobody else holds the reader");
        assert!(reader.close(Duration::from_secs(20)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_once_and_a_mismatch_names_both_counts() {
    let log = log("topics").await;
    admin::ensure_topics(&log.kafka, &[log.spec(PARTITIONS)])
        .await
        .unwrap();
    let count = admin::partition_count(&log.kafka, &log.topic)
        .await
        .unwrap();
    assert_eq!(count, Some(PARTITIONS));
    assert_eq!(
        admin::partition_count(&log.kafka, "absent").await.unwrap(),
        None
    );
    let error = admin::ensure_topics(&log.kafka, &[log.spec(5)])
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            KafkaError::PartitionMismatch {
                found: 3,
                expected: 5,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_an_error_that_names_it() {
    let kafka = KafkaConfig {
        brokers: String::from("127.0.0.1:1"),
        request_timeout_ms: 300,
        ..KafkaConfig::default()
    };
    let error = admin::partition_count(&kafka, "any").await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    let config = PublisherConfig {
        delivery_timeout_ms: 300,
        ..PublisherConfig::default()
    };
    let publisher = Publisher::new(&kafka, &config, None).unwrap();
    let record = Record {
        topic: "any",
        partition: Some(0),
        key: None,
        payload: Some(b"x"),
        timestamp_ms: None,
        headers: &[],
    };
    let error = publisher.send(record).await.unwrap_err();
    assert!(error.is_outage() && error.is_retryable(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_acknowledged_as_one_and_read_back_whole() {
    let log = log("batch").await;
    let publisher = log.publisher();
    log.fill(&publisher, 3_000).await;
    let reader = log.reader();
    let mut seen = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let ends = reader.watermarks(&log.topic, partition).await.unwrap();
        assert_eq!(ends.low, 0);
        reader
            .read_range(&log.topic, partition, ends.low, ends.high, |chunk| {
                for record in chunk.iter() {
                    let key = record.key.unwrap();
                    assert_eq!(murmur2_partition(key, PARTITIONS), partition);
                    assert_eq!(record.timestamp_ms, 1_700_000_000_000);
                    seen.insert(key.to_vec(), record.payload.unwrap().to_vec());
                }
            })
            .await
            .unwrap();
    }
    assert_eq!(seen.len(), 3_000);
    let after = reader
        .offset_for_time(&log.topic, 0, 1_800_000_000_000)
        .await
        .unwrap();
    let before = reader.offset_for_time(&log.topic, 0, 1).await.unwrap();
    assert_eq!((before, after), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_tombstones_and_places_survive() {
    let log = log("headers").await;
    let publisher = log.publisher();
    let headers: [(&str, &[u8]); 2] = [("traceparent", b"00-1"), ("empty", b"")];
    let record = Record {
        partition: Some(1),
        headers: &headers,
        ..log.record(b"k", b"v")
    };
    assert_eq!(publisher.send(record).await.unwrap().offset, 0);
    let tombstone = Record {
        payload: None,
        headers: &[],
        ..record
    };
    let place = publisher.send(tombstone).await.unwrap();
    assert_eq!((place.partition, place.offset), (1, 1));
    let mut records = 0;
    log.reader()
        .read_range(&log.topic, 1, 0, 2, |chunk| {
            for record in chunk.iter() {
                records += 1;
                assert_eq!(record.payload.is_none(), record.offset == 1);
                let found: Vec<_> = record.headers.collect();
                assert_eq!(found.len(), if record.offset == 0 { 2 } else { 0 });
            }
        })
        .await
        .unwrap();
    assert_eq!(records, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_fails_alone() {
    let log = log("large").await;
    let publisher = log.publisher();
    let large = vec![b'x'; 2 * 1024 * 1024];
    let mut batch = publisher.batch();
    batch.push(log.record(b"a", b"small"));
    batch.push(log.record(b"b", &large));
    batch.push(log.record(b"c", b"small"));
    let outcome = batch.finish().await;
    assert_eq!(outcome.failed, [(1, PublishError::TooLarge)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_reads_commits_and_goes_on_where_it_said() {
    let log = log("member").await;
    let publisher = log.publisher();
    log.fill(&publisher, 300).await;
    let config = GroupConfig {
        group: log.topic.clone(),
        ..GroupConfig::default()
    };
    let mut member = Member::join(&log, &config);
    member.until(|owned| owned.len() == 3).await;
    let reader = &member.reader;
    assert_eq!(reader.committed(0).await.unwrap(), None);
    let (sender, mut mailbox) = mpsc::channel(8);
    reader.start(0, 0, sender.clone());
    let total = log.reader().watermarks(&log.topic, 0).await.unwrap().high;
    let first = take(&mut mailbox, total as usize).await;
    assert_eq!(
        first.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(),
        (0..total).collect::<Vec<_>>()
    );
    // Going back delivers again from there, and only from there.
    let (sender, mut mailbox) = mpsc::channel(8);
    reader.start(0, 10, sender);
    assert_eq!(take(&mut mailbox, total as usize - 10).await, first[10..]);
    reader.commit(0, 17, String::from("{\"d\":5}"));
    let committed = loop {
        if let Some(found) = reader.committed(0).await.unwrap() {
            break found;
        }
    };
    assert_eq!(committed, (17, String::from("{\"d\":5}")));
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_holds_its_partition_and_loses_nothing() {
    let log = log("full").await;
    let publisher = log.publisher();
    log.fill(&publisher, 5_000).await;
    let fetch = FetchConfig {
        chunk_records_max: 50,
        stall_before_pause_ms: 20,
        ..FetchConfig::default()
    };
    let config = GroupConfig {
        group: log.topic.clone(),
        fetch,
        ..GroupConfig::default()
    };
    let mut member = Member::join(&log, &config);
    member.until(|owned| owned.len() == 3).await;
    let reader = &member.reader;
    let (slow_sender, mut slow) = mpsc::channel(1);
    let (quick_sender, mut quick) = mpsc::channel(64);
    reader.start(0, 0, slow_sender);
    reader.start(1, 0, quick_sender);
    let ends = log.reader();
    let (slow_end, quick_end) = (
        ends.watermarks(&log.topic, 0).await.unwrap().high as usize,
        ends.watermarks(&log.topic, 1).await.unwrap().high as usize,
    );
    // The quick one comes through while nobody reads the slow one's mailbox.
    assert_eq!(take(&mut quick, quick_end).await.len(), quick_end);
    let records = take(&mut slow, slow_end).await;
    let offsets: Vec<_> = records.iter().map(|(offset, _)| *offset as usize).collect();
    assert_eq!(offsets, (0..slow_end).collect::<Vec<_>>());
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_to_a_second_member_and_back() {
    let log = log("rebalance").await;
    let config = GroupConfig {
        group: log.topic.clone(),
        ..GroupConfig::default()
    };
    let mut one = Member::join(&log, &config);
    one.until(|owned| owned.len() == 3).await;
    let mut two = Member::join(&log, &config);
    let of_two = two.until(|owned| !owned.is_empty()).await;
    let of_one = one.until(|owned| owned.len() == 3 - of_two.len()).await;
    assert!(of_two.iter().all(|partition| !of_one.contains(partition)));
    two.leave().await;
    one.until(|owned| owned.len() == 3).await;
    one.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_reads_every_partition_and_seeks() {
    let log = log("follower").await;
    let publisher = log.publisher();
    log.fill(&publisher, 300).await;
    let (sender, mut mailbox) = mpsc::channel(8);
    let starts: Vec<_> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
    let fetch = FetchConfig::default();
    let follower = Follower::spawn(&log.kafka, &fetch, &log.topic, &starts, &sender, None).unwrap();
    let (mut records, mut ends) = (0, 0);
    while records < 300 || ends < PARTITIONS {
        let polled = tokio::time::timeout(Duration::from_secs(30), mailbox.recv()).await;
        match polled.expect("in time").expect("the follower lives").1 {
            Polled::Records(chunk) => records += chunk.len(),
            Polled::End { .. } => ends += 1,
            Polled::OutOfRange => panic!("nothing was truncated"),
        }
    }
    assert_eq!(records, 300);
    follower.seek(2, 5);
    let first = loop {
        let polled = tokio::time::timeout(Duration::from_secs(30), mailbox.recv()).await;
        if let (2, Polled::Records(chunk)) = polled.expect("in time").expect("the follower lives") {
            break chunk.first_offset();
        }
    };
    assert_eq!(first, Some(5));
    assert!(follower.close(Duration::from_secs(10)).await);
}
