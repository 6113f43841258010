//! A broker killed with -9 under load loses nothing that it acknowledged and
//! doubles nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::{GroupId, OffsetCommitRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use rdkafka::consumer::Consumer;
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};
use support::*;

struct Killed {
    child: Child,
    address: SocketAddr,
}

impl Killed {
    fn start(dir: &Path, listen: &str, fsync: &str) -> Killed {
        let mut child = Command::new(env!("CARGO_BIN_EXE_streamgauge-broker"))
            .arg("--data-dir")
            .arg(dir)
            .args(["--listen", listen, "--fsync", fsync, "--topic", "load:3"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        let address = address.parse().unwrap();
        Killed { child, address }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn kill_under_load(fsync: &'static str, rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Killed::start(dir.path(), "127.0.0.1:0", fsync);
    let address = broker.address.to_string();
    let producer = producer(
        &address,
        &[
            ("batch.num.messages", "200"),
            ("message.timeout.ms", "60000"),
        ],
    );
    let mut sent = 0;
    for round in 0..rounds {
        let goal = producer.context().stored.lock().len() + 500 + round * 300;
        while producer.context().stored.lock().len() < goal {
            for _ in 0..100 {
                send(&producer, "load", None, &format!("{sent:08}"), b"value");
                sent += 1;
            }
            producer.poll(Duration::from_millis(1));
        }
        // Requests are in flight at this moment.
        broker.kill();
        broker = Killed::start(dir.path(), &address, fsync);
    }
    settle(&producer);
    let stored = producer.context().stored.lock().clone();
    assert_eq!(stored.len(), sent);
    let mut seen: Vec<(String, (i32, i64))> = read_all(&address, "load", 3)
        .into_iter()
        .map(|seen| (seen.key, (seen.partition, seen.offset)))
        .collect();
    seen.sort();
    assert_eq!(seen, stored.into_iter().collect::<Vec<_>>());
    broker.kill();
}

#[tokio::test]
async fn killed_under_load_every_acknowledged_record_is_there_once() {
    blocking(|| kill_under_load("interval", 5)).await;
}

#[tokio::test]
async fn killed_under_load_with_fsync_always() {
    blocking(|| kill_under_load("always", 2)).await;
}

/// What is committed for the one partition that is used, with its metadata.
fn committed(address: &str) -> (i64, String) {
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition("load", 0);
    let found = reader(address).committed_offsets(wanted, LIMIT).unwrap();
    let element = &found.elements()[0];
    let Offset::Offset(offset) = element.offset() else {
        panic!("nothing is committed");
    };
    (offset, element.metadata().to_owned())
}

fn commit_request(offset: i64) -> OffsetCommitRequest {
    let text = |text: String| StrBytes::from_string(text);
    let partition = OffsetCommitRequestPartition::default()
        .with_committed_offset(offset)
        .with_committed_metadata(Some(text(format!("derived from {offset}"))));
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text("load".to_owned())))
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text("reader".to_owned())))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

/// Commits rising offsets until the broker goes, noting what it confirms.
async fn commit_until_killed(address: SocketAddr, first: i64, confirmed: Arc<AtomicI64>) {
    let mut client = Raw::connect_to(address).await;
    let mut offset = first;
    while let Ok(answer) = client.try_call(7, &commit_request(offset)).await {
        assert_eq!(answer.topics[0].partitions[0].error_code, 0);
        confirmed.store(offset, Ordering::SeqCst);
        offset += 1;
    }
}

async fn kill_while_committing(fsync: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let start = move |listen: String| {
        let path = path.clone();
        blocking(move || Killed::start(&path, &listen, fsync))
    };
    let mut broker = start("127.0.0.1:0".to_owned()).await;
    let address = broker.address;
    let mut next = 1;
    for _ in 0..3 {
        let confirmed = Arc::new(AtomicI64::new(0));
        let committing = commit_until_killed(address, next, Arc::clone(&confirmed));
        let committing = tokio::spawn(committing);
        eventually("some commits", || {
            confirmed.load(Ordering::SeqCst) >= next + 50
        })
        .await;
        blocking(move || broker.kill()).await;
        committing.await.unwrap();
        let last = confirmed.load(Ordering::SeqCst);
        broker = start(address.to_string()).await;
        let (offset, metadata) = blocking(move || committed(&address.to_string())).await;
        // The one that was under way may be there without being confirmed.
        assert!((last..=last + 1).contains(&offset), "{offset}, not {last}");
        assert_eq!(metadata, format!("derived from {offset}"));
        next = offset + 1;
    }
    blocking(move || broker.kill()).await;
}

#[tokio::test]
async fn killed_while_committing_every_confirmed_offset_is_there() {
    kill_while_committing("interval").await;
}

#[tokio::test]
async fn killed_while_committing_with_fsync_always() {
    kill_while_committing("always").await;
}
