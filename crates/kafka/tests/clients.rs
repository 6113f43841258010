//! The clients against a log: the embedded one, or the one that `STREAMGAUGE_TEST_BROKERS` names.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_kafka::{
    Assignment, FetchConfig, Follower, GroupConfig, GroupReader, KafkaConfig, KafkaError,
    LogReader, Membership, Polled, PublishError, Publisher, PublisherConfig, Record, admin,
    murmur2_partition,
};
use tokio::sync::{mpsc, watch};

const PARTITIONS: i32 = 3;
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Removes what lies below an offset, as retention does.
async fn truncate(log: &Log, partition: i32, below: i64) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &log.kafka.brokers)
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&log.topic, partition, Offset::Offset(below))
        .unwrap();
    let deleted = admin.delete_records(&list, &AdminOptions::new()).await;
    let deleted = deleted.unwrap();
    let element = deleted.find_partition(&log.topic, partition).unwrap();
    element.error().unwrap();
    assert_eq!(element.offset(), Offset::Offset(below));
}

/// Takes from a mailbox until `count` records came; fails after 30 s.
async fn take(mailbox: &mut mpsc::Receiver<Polled>, count: usize) -> Vec<(i64, Vec<u8>)> {
    let mut records = Vec::new();
    while records.len() < count {
        let polled = tokio::time::timeout(PATIENCE, mailbox.recv()).await;
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
        let owned = tokio::time::timeout(PATIENCE, settled).await;
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
        let polled = tokio::time::timeout(PATIENCE, mailbox.recv()).await;
        match polled.expect("in time").expect("the follower lives").1 {
            Polled::Records(chunk) => records += chunk.len(),
            Polled::End { .. } => ends += 1,
            Polled::OutOfRange => panic!("nothing was truncated"),
        }
    }
    assert_eq!(records, 300);
    follower.seek(2, 5);
    let first = loop {
        let polled = tokio::time::timeout(PATIENCE, mailbox.recv()).await;
        if let (2, Polled::Records(chunk)) = polled.expect("in time").expect("the follower lives") {
            break chunk.first_offset();
        }
    };
    assert_eq!(first, Some(5));
    assert!(follower.close(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_given_up_takes_nothing_from_the_next() {
    let log = log("cancelled").await;
    let publisher = log.publisher();
    log.fill(&publisher, 30_000).await;
    let fetch = FetchConfig {
        chunk_records_max: 10,
        ..FetchConfig::default()
    };
    let reader = LogReader::new(&log.kafka, &fetch, None).unwrap();
    let high = reader.watermarks(&log.topic, 0).await.unwrap().high;
    for round in 0..20 {
        let (first, mut seen) = mpsc::channel(1);
        let (given_up, topic) = (reader.clone(), log.topic.clone());
        let reading = tokio::spawn(async move {
            let from = round * 7;
            let read = given_up.read_range(&topic, 0, from, high, |_| {
                let _ = first.try_send(());
            });
            let _ = read.await;
        });
        seen.recv().await;
        reading.abort();
        let mut offsets = Vec::new();
        reader
            .read_range(&log.topic, 0, 0, 500, |chunk| {
                offsets.extend(chunk.iter().map(|record| record.offset));
            })
            .await
            .unwrap();
        assert_eq!(offsets, (0..500).collect::<Vec<_>>(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_before_the_range_is_over_is_no_end() {
    let log = log("short").await;
    let publisher = log.publisher();
    log.fill(&publisher, 30).await;
    let kafka = KafkaConfig {
        request_timeout_ms: 500,
        ..log.kafka.clone()
    };
    let reader = LogReader::new(&kafka, &FetchConfig::default(), None).unwrap();
    let high = reader.watermarks(&log.topic, 0).await.unwrap().high;
    let mut records = 0;
    let error = reader
        .read_range(&log.topic, 0, 0, high + 1, |chunk| records += chunk.len())
        .await
        .unwrap_err();
    assert!(
        matches!(error, KafkaError::Stalled { offset, .. } if offset == high),
        "{error}"
    );
    assert_eq!(records as i64, high, "what is there is handed over");
}

/// Takes until the first record at or beyond `low`; an answer that it is out of range is followed
/// by moving there.
async fn take_up(mailbox: &mut mpsc::Receiver<Polled>, low: i64, mut go: impl FnMut()) -> i64 {
    loop {
        let polled = tokio::time::timeout(PATIENCE, mailbox.recv()).await;
        match polled.expect("it goes on").expect("the reader lives") {
            Polled::OutOfRange => go(),
            Polled::Records(chunk) if chunk.next_offset() > Some(low) => {
                let first = chunk.iter().map(|record| record.offset);
                return first.filter(|offset| *offset >= low).min().unwrap();
            }
            Polled::Records(_) | Polled::End { .. } => {}
        }
    }
}

/// A member stands still while retention takes what it has not read, then goes on where the log
/// begins.
async fn truncated_under_a_member(assignment: Assignment) {
    let log = log("lagging").await;
    let publisher = log.publisher();
    log.fill(&publisher, 3_000).await;
    let config = GroupConfig {
        group: log.topic.clone(),
        assignment,
        ..GroupConfig::default()
    };
    let mut member = Member::join(&log, &config);
    member.until(|owned| owned.len() == 3).await;
    let high = log.reader().watermarks(&log.topic, 0).await.unwrap().high;
    truncate(&log, 0, high - 5).await;
    let reader = &member.reader;
    let (sender, mut mailbox) = mpsc::channel(8);
    let (other, mut others) = mpsc::channel(64);
    reader.start(1, 0, other.clone());
    let of_other = log.reader().watermarks(&log.topic, 1).await.unwrap().high;
    take(&mut others, of_other as usize).await;
    reader.start(0, 3, sender.clone());
    let first = take_up(&mut mailbox, high - 5, || {
        reader.start(0, high - 5, sender.clone());
    });
    assert_eq!(first.await, high - 5);
    // The neighbour goes on where it was, or from where it is told.
    log.fill(&publisher, 300).await;
    let first = take_up(&mut others, of_other, || {
        reader.start(1, of_other, other.clone());
    });
    assert_eq!(first.await, of_other);
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_goes_on_behind_what_was_truncated() {
    truncated_under_a_member(Assignment::Range).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooperative_member_goes_on_behind_what_was_truncated() {
    truncated_under_a_member(Assignment::CooperativeSticky).await;
}

/// Retention has taken the beginning of every partition, as it has of any topic that is old enough. A new member is
/// assigned all of them at once, and its owners come one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_member_of_an_old_topic_reads_every_partition() {
    let log = log("old").await;
    log.fill(&log.publisher(), 300).await;
    let mut lows = Vec::new();
    for partition in 0..PARTITIONS {
        let marks = log.reader().watermarks(&log.topic, partition).await;
        let low = marks.unwrap().high - 2;
        truncate(&log, partition, low).await;
        lows.push(low);
    }
    for round in 0..8 {
        let config = GroupConfig {
            group: format!("{}-{round}", log.topic),
            ..GroupConfig::default()
        };
        let mut member = Member::join(&log, &config);
        member.until(|owned| owned.len() == 3).await;
        let mut mailboxes = Vec::new();
        for (partition, low) in (0..).zip(&lows) {
            tokio::time::sleep(Duration::from_millis(round * 7)).await;
            let (sender, mailbox) = mpsc::channel(8);
            member.reader.start(partition, *low, sender.clone());
            mailboxes.push((partition, *low, sender, mailbox));
        }
        for (partition, low, sender, mut mailbox) in mailboxes {
            let reader = &member.reader;
            let first = take_up(&mut mailbox, low, || {
                reader.start(partition, low, sender.clone());
            });
            assert_eq!(first.await, low, "partition {partition}, round {round}");
        }
        member.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_behind_what_was_truncated() {
    let log = log("behind").await;
    let publisher = log.publisher();
    log.fill(&publisher, 300).await;
    let high = log.reader().watermarks(&log.topic, 0).await.unwrap().high;
    truncate(&log, 0, high - 2).await;
    let (sender, mut mailbox) = mpsc::channel(8);
    let starts = [(0, 1), (1, 0)];
    let fetch = FetchConfig::default();
    let follower = Follower::spawn(&log.kafka, &fetch, &log.topic, &starts, &sender, None).unwrap();
    let mut found = Vec::new();
    while found.is_empty() {
        let polled = tokio::time::timeout(PATIENCE, mailbox.recv()).await;
        match polled.expect("it goes on").expect("the follower lives") {
            (0, Polled::OutOfRange) => follower.seek(0, high - 2),
            (0, Polled::Records(chunk)) => {
                found.extend(chunk.iter().map(|record| record.offset));
            }
            _ => {}
        }
    }
    assert_eq!(found[0], high - 2);
    assert!(follower.close(Duration::from_secs(10)).await);
}

/// Anyone may write a header name that is not UTF-8, which Rust's own client cannot read.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_name_that_is_not_text_costs_the_headers_only() {
    let log = log("names").await;
    let publisher = log.publisher();
    // SAFETY: librdkafka takes bytes, and the name goes nowhere else.
    #[allow(unsafe_code, invalid_from_utf8_unchecked)]
    let name = unsafe { std::str::from_utf8_unchecked(b"bad-\xff") };
    let headers = [(name, &b"1"[..])];
    for number in 0..3 {
        let record = Record {
            partition: Some(0),
            headers: if number == 1 { &headers } else { &[] },
            ..log.record(b"k", b"v")
        };
        publisher.send(record).await.unwrap();
    }
    let mut unreadable = Vec::new();
    log.reader()
        .read_range(&log.topic, 0, 0, 3, |chunk| {
            unreadable.extend(chunk.iter().map(|record| {
                assert_eq!(record.payload, Some(&b"v"[..]));
                record.headers.is_unreadable()
            }));
        })
        .await
        .unwrap();
    assert_eq!(unreadable, [false, true, false]);
    let (sender, mut mailbox) = mpsc::channel(8);
    let fetch = FetchConfig::default();
    let follower =
        Follower::spawn(&log.kafka, &fetch, &log.topic, &[(0, 0)], &sender, None).unwrap();
    let mut records = 0;
    while records < 3 {
        let polled = tokio::time::timeout(PATIENCE, mailbox.recv()).await;
        if let Polled::Records(chunk) = polled.expect("in time").expect("it lives").1 {
            records += chunk.len();
        }
    }
    assert!(follower.close(Duration::from_secs(10)).await);
}
