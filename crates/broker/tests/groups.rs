//! Consumer groups through a real client.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::{
    ConsumerProtocolSubscription, GroupId, JoinGroupRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use streamgauge_broker::Broker;
use support::*;

const PARTITIONS: i32 = 4;

/// A consumer that polls on a thread of its own and shows what it has.
struct Member {
    /// What it has had, the latest last.
    assigned: Arc<Mutex<Vec<BTreeSet<i32>>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Member {
    fn start(bootstrap: &str, settings: &[(&str, &str)]) -> Member {
        let mut config = client(bootstrap);
        config
            .set("group.id", "workers")
            .set("session.timeout.ms", "1000")
            .set("heartbeat.interval.ms", "100")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "20");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&["work"]).unwrap();
        let member = Member {
            assigned: Arc::default(),
            seen: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (assigned, seen) = (Arc::clone(&member.assigned), Arc::clone(&member.seen));
        let stop = Arc::clone(&member.stop);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(5)) {
                    seen.lock().push(Seen::of(&message));
                }
                let current = consumer.assignment().unwrap();
                let partitions = current.elements().iter().map(|e| e.partition()).collect();
                let mut assigned = assigned.lock();
                if assigned.last() != Some(&partitions) {
                    assigned.push(partitions);
                }
            }
        });
        Member {
            thread: Some(thread),
            ..member
        }
    }

    fn assigned(&self) -> BTreeSet<i32> {
        self.assigned.lock().last().cloned().unwrap_or_default()
    }

    fn has_had(&self, partitions: usize) -> bool {
        let assigned = self.assigned.lock();
        assigned.iter().any(|set| set.len() == partitions)
    }

    /// Where the records with this value are that it has read. A group reads again what it had not committed when its
    /// members changed or its session ended, so that records may be seen more than once.
    fn read(&self, value: &[u8]) -> BTreeSet<(i32, i64)> {
        let seen = self.seen.lock();
        let of_value = seen.iter().filter(|seen| seen.value == value);
        of_value.map(|seen| (seen.partition, seen.offset)).collect()
    }

    /// Leaves the group in order.
    fn leave(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn all() -> BTreeSet<i32> {
    (0..PARTITIONS).collect()
}

fn share(members: &[&Member]) -> bool {
    let sets: Vec<BTreeSet<i32>> = members.iter().map(|member| member.assigned()).collect();
    let union: BTreeSet<i32> = sets.iter().flatten().copied().collect();
    let total: usize = sets.iter().map(BTreeSet::len).sum();
    union == all() && total == PARTITIONS as usize && sets.iter().all(|set| !set.is_empty())
}

async fn members_come_and_go(strategy: &str) {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("work", PARTITIONS).await.unwrap();
    let settings = [("partition.assignment.strategy", strategy)];
    let bootstrap = broker.bootstrap();
    let first = Member::start(&bootstrap, &settings);
    eventually("the first to have all", || first.assigned() == all()).await;
    let second = Member::start(&bootstrap, &settings);
    eventually("both to share", || share(&[&first, &second])).await;
    let target = bootstrap.clone();
    blocking(move || fill(&target, "work", None, 400, b"value")).await;
    eventually("all records", || {
        let mut read = first.read(b"value");
        read.extend(second.read(b"value"));
        read.len() == 400
    })
    .await;
    blocking(move || first.leave()).await;
    eventually("the second to have all", || second.assigned() == all()).await;
    blocking(move || second.leave()).await;
    stop(broker).await;
}

#[tokio::test]
async fn members_share_by_range() {
    members_come_and_go("range").await;
}

#[tokio::test]
async fn members_share_cooperatively() {
    members_come_and_go("cooperative-sticky").await;
}

/// Joins the group through the raw protocol and gets a share. It never says
/// anything more, as a process that is killed.
async fn join_and_fall_silent(broker: &Broker) -> Raw {
    let mut client = Raw::connect(broker).await;
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let subscription = ConsumerProtocolSubscription::default().with_topics(vec![text("work")]);
    let mut metadata = BytesMut::from(&0i16.to_be_bytes()[..]);
    subscription.encode(&mut metadata, 0).unwrap();
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(metadata.freeze());
    let mut join = JoinGroupRequest::default()
        .with_group_id(GroupId(text("workers")))
        .with_session_timeout_ms(1_000)
        .with_rebalance_timeout_ms(30_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    join.member_id = client.call(5, &join).await.member_id;
    let joined = client.call(5, &join).await;
    assert_eq!(joined.error_code, 0);
    let sync = SyncGroupRequest::default()
        .with_group_id(join.group_id.clone())
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id);
    let synced = client.call(3, &sync).await;
    assert!(synced.error_code == 0 && !synced.assignment.is_empty());
    client
}

async fn a_lost_member_loses_its_partitions(hangs_up: bool) {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("work", PARTITIONS).await.unwrap();
    let bootstrap = broker.bootstrap();
    let survivor = Member::start(&bootstrap, &[]);
    eventually("the first to have all", || survivor.assigned() == all()).await;
    let mut lost = Some(join_and_fall_silent(&broker).await);
    eventually("the second to have its share", || survivor.has_had(2)).await;
    if hangs_up {
        lost = None;
    }
    eventually("the survivor to have all again", || {
        survivor.assigned() == all()
    })
    .await;
    drop(lost);
    blocking(move || survivor.leave()).await;
    stop(broker).await;
}

#[tokio::test]
async fn a_silent_member_loses_its_partitions_after_its_session() {
    a_lost_member_loses_its_partitions(false).await;
}

#[tokio::test]
async fn a_killed_member_loses_its_partitions_after_its_session() {
    a_lost_member_loses_its_partitions(true).await;
}

#[tokio::test]
async fn a_static_member_comes_back_to_its_partitions_without_a_rebalance() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("work", PARTITIONS).await.unwrap();
    let bootstrap = broker.bootstrap();
    let one = [
        ("group.instance.id", "one"),
        ("session.timeout.ms", "20000"),
    ];
    let two = [
        ("group.instance.id", "two"),
        ("session.timeout.ms", "20000"),
    ];
    let first = Member::start(&bootstrap, &one);
    eventually("the first to have all", || first.assigned() == all()).await;
    let second = Member::start(&bootstrap, &two);
    eventually("both to share", || share(&[&first, &second])).await;
    let had = second.assigned();
    // A static member that closes does not leave.
    blocking(move || second.leave()).await;
    let second = Member::start(&bootstrap, &two);
    eventually("the second to be back", || second.assigned() == had).await;
    assert!(share(&[&first, &second]));
    blocking(move || {
        first.leave();
        second.leave();
    })
    .await;
    stop(broker).await;
}

#[tokio::test]
async fn committed_offsets_and_metadata_outlive_restarts() {
    let dir = tempfile::tempdir().unwrap();
    for clean in [true, false] {
        let broker = start(dir.path()).await;
        broker.create_topic("work", PARTITIONS).await.unwrap();
        let bootstrap = broker.bootstrap();
        blocking(move || {
            let consumer = reader(&bootstrap);
            let mut offsets = TopicPartitionList::new();
            for partition in 0..PARTITIONS {
                let offset = Offset::Offset(i64::from(partition) * 10);
                offsets
                    .add_partition_offset("work", partition, offset)
                    .unwrap();
                let mut element = offsets.find_partition("work", partition).unwrap();
                element.set_metadata(format!("derived from {partition}"));
            }
            consumer.commit(&offsets, CommitMode::Sync).unwrap();
        })
        .await;
        match clean {
            true => stop(broker).await,
            false => drop(broker),
        }
        let broker = start(dir.path()).await;
        let bootstrap = broker.bootstrap();
        blocking(move || {
            let mut wanted = TopicPartitionList::new();
            for partition in 0..PARTITIONS {
                wanted.add_partition("work", partition);
            }
            let found = reader(&bootstrap).committed_offsets(wanted, LIMIT).unwrap();
            for element in found.elements() {
                let partition = element.partition();
                assert_eq!(element.offset(), Offset::Offset(i64::from(partition) * 10));
                assert_eq!(element.metadata(), format!("derived from {partition}"));
            }
            let groups = reader(&bootstrap).fetch_group_list(None, LIMIT).unwrap();
            assert_eq!(groups.groups()[0].name(), "reader");
        })
        .await;
        stop(broker).await;
    }
}

#[tokio::test]
async fn a_group_resumes_where_it_committed_after_the_broker_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("work", PARTITIONS).await.unwrap();
    let address = broker.local_addr();
    let bootstrap = broker.bootstrap();
    let settings = [("auto.commit.interval.ms", "20")];
    let member = Member::start(&bootstrap, &settings);
    let target = bootstrap.clone();
    blocking(move || fill(&target, "work", None, 100, b"before")).await;
    eventually("the records before", || member.read(b"before").len() == 100).await;
    stop(broker).await;
    let config = streamgauge_broker::BrokerConfig {
        listen: address,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    blocking(move || fill(&bootstrap, "work", None, 100, b"after")).await;
    eventually("the records after", || member.read(b"after").len() == 100).await;
    blocking(move || member.leave()).await;
    stop(broker).await;
}

#[tokio::test]
async fn the_newer_group_protocol_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("work", PARTITIONS).await.unwrap();
    let mut config = client(&broker.bootstrap());
    config
        .set("group.id", "newer")
        .set("group.protocol", "consumer");
    let refused = blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&["work"]).unwrap();
        let started = Instant::now();
        loop {
            match consumer.poll(Duration::from_millis(10)) {
                Some(polled) => return polled.err().unwrap(),
                None => assert!(started.elapsed() < LIMIT, "it was never refused"),
            }
        }
    });
    let refused = refused.await;
    let code = refused.rdkafka_error_code();
    assert_eq!(
        code,
        Some(RDKafkaErrorCode::UnsupportedVersion),
        "{refused}"
    );
    stop(broker).await;
}
