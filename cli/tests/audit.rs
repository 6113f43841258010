//! The audit as its user meets it, over books that somebody tampered with: its words and its exit code.

mod common;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use common::{Up, binary};
use prost::Message;
use serde_json::Value;
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_chain::Outcomes;
use streamgauge_consumer::dead_letter::{SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC};
use streamgauge_kafka::{
    ChunkBuilder, FetchConfig, KafkaConfig, LogReader, Publisher, PublisherConfig, Record,
};
use streamgauge_proto::v1::{DeltaBatch, TypeCount};
use tempfile::TempDir;

const EVENTS: &str = "analytics-events";
const METRICS: &str = "metrics-data";
const DEAD_LETTERS: &str = "analytics-events.dlq";
const PARTITIONS: i32 = 2;
/// Longest wait for a line of output.
const DEADLINE: Duration = Duration::from_secs(60);
/// Log time of the first event, milliseconds; each is a second after the one before.
const BEGAN_MS: i64 = 1_700_000_000_000;

struct Ran {
    code: i32,
    text: String,
}

impl Ran {
    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    #[track_caller]
    fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.text.contains(text), "no `{text}` in: {}", self.text);
        }
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// Runs it; with `--json` only what it says on standard output counts.
async fn run(state: &Path, arguments: Vec<String>) -> Ran {
    let json = arguments.iter().any(|argument| argument == "--json");
    let mut command = binary(state);
    let output = tokio::task::spawn_blocking(move || command.args(arguments).output());
    let output = output.await.expect("no panic").expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut said = text(&output.stdout);
    if !json {
        said.push_str(&text(&output.stderr));
    }
    Ran {
        code: output.status.code().expect("an exit code"),
        text: said,
    }
}

/// A log without services, written by hand.
struct Log {
    broker: Broker,
    folder: TempDir,
    publisher: Publisher,
}

fn counted(events: u64) -> Outcomes {
    Outcomes {
        counted: events,
        ..Outcomes::default()
    }
}

fn batch(from: i64, to: i64, outcomes: Outcomes) -> Vec<u8> {
    DeltaBatch {
        from,
        to,
        outcomes: Some(outcomes.into()),
        strings: vec![String::from("click")],
        types: vec![TypeCount {
            event_type: 0,
            count: outcomes.counted,
        }],
        ..DeltaBatch::default()
    }
    .encode_to_vec()
}

impl Log {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let broker = Broker::start(BrokerConfig {
            data_dir: folder.path().join("log"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..BrokerConfig::default()
        });
        let broker = broker.await.expect("a broker");
        for topic in [EVENTS, METRICS, DEAD_LETTERS] {
            let created = broker.create_topic(topic, PARTITIONS).await;
            created.expect("a topic");
        }
        let kafka = KafkaConfig {
            brokers: broker.bootstrap(),
            ..KafkaConfig::default()
        };
        let publisher = Publisher::new(&kafka, &PublisherConfig::default(), None);
        Self {
            broker,
            folder,
            publisher: publisher.expect("plain settings"),
        }
    }

    /// 40 events in partition 1, in batches of ten, the last of which are one that is late and nine that count.
    async fn with_books() -> Self {
        let log = Self::new().await;
        for n in 0..40 {
            log.event(n).await;
        }
        for from in [0, 10, 20] {
            log.delta(METRICS, &batch(from, from + 10, counted(10)))
                .await;
        }
        log.letter(DEAD_LETTERS, 39).await;
        let outcomes = Outcomes {
            late: 1,
            ..counted(9)
        };
        log.delta(METRICS, &batch(30, 40, outcomes)).await;
        log
    }

    async fn write(
        &self,
        topic: &str,
        payload: &[u8],
        at_ms: Option<i64>,
        headers: &[(&str, &[u8])],
    ) {
        let record = Record {
            topic,
            partition: Some(1),
            key: None,
            payload: Some(payload),
            timestamp_ms: at_ms,
            headers,
        };
        self.publisher.send(record).await.expect("written");
    }

    async fn event(&self, n: i64) {
        let at_ms = Some(BEGAN_MS + n * 1_000);
        self.write(EVENTS, b"an event", at_ms, &[]).await;
    }

    async fn delta(&self, topic: &str, payload: &[u8]) {
        self.write(topic, payload, None, &[]).await;
    }

    async fn letter(&self, topic: &str, offset: i64) {
        let offset = offset.to_string();
        let headers: [(&str, &[u8]); 3] = [
            (SOURCE_TOPIC, EVENTS.as_bytes()),
            (SOURCE_PARTITION, b"1"),
            (SOURCE_OFFSET, offset.as_bytes()),
        ];
        self.write(topic, b"an event", None, &headers).await;
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let brokers = format!("--brokers={}", self.broker.bootstrap());
        let first = ["audit", "--no-store", "--no-producers"].map(String::from);
        let more = more.iter().map(|argument| (*argument).to_owned());
        first.into_iter().chain([brokers]).chain(more).collect()
    }

    async fn audit(&self, more: &[&str]) -> Ran {
        run(self.folder.path(), self.arguments(more)).await
    }
}

/// Copies a topic, all but one record of partition 1; other partitions hold nothing in these tests.
async fn copy_without(brokers: &str, from: &str, to: &str, left_out: i64) {
    let kafka = KafkaConfig {
        brokers: brokers.to_owned(),
        ..KafkaConfig::default()
    };
    let publisher = Publisher::new(&kafka, &PublisherConfig::default(), None).expect("settings");
    let reader = LogReader::new(&kafka, &FetchConfig::default(), None).expect("settings");
    for partition in 0..PARTITIONS {
        let ends = reader.watermarks(from, partition).await.expect("ends");
        let mut kept = ChunkBuilder::new(partition);
        let read = reader.read_range(from, partition, ends.low, ends.high, |chunk| {
            let records = chunk
                .iter()
                .filter(|record| partition != 1 || record.offset != left_out);
            for record in records {
                kept.push(record.offset, 0, record.key, record.payload, []);
            }
        });
        read.await.expect("read");
        for record in kept.take().iter().flat_map(|chunk| chunk.iter()) {
            let copied = Record {
                topic: to,
                partition: Some(partition),
                key: record.key,
                payload: record.payload,
                timestamp_ms: None,
                headers: &[],
            };
            publisher.send(copied).await.expect("copied");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn books_as_they_were_written_balance() {
    let log = Log::with_books().await;
    log.audit(&[]).await.exits(0).says(&[
        "end - start = 40 = 39 counted + 0 duplicate + 1 late + 0 dead-lettered + 0 missing + 0 no record + 0 in flight",
        "balanced, store not compared",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_added_to_metrics_data_counts_for_nobody_and_its_spot_is_named() {
    let log = Log::with_books().await;
    log.delta(METRICS, &batch(10, 20, counted(10))).await;
    log.delta(METRICS, &batch(12, 17, counted(5))).await;
    log.delta(METRICS, &batch(9_000, 9_010, counted(10))).await;
    log.delta(METRICS, b"not a batch").await;
    log.write(DEAD_LETTERS, b"of no source", None, &[]).await;
    let found = log.audit(&[]).await.exits(0).says(&[
        "end - start = 40 = 39 counted",
        "Partition 1: 3 batches are void and count for nobody; the first lies at offset 4 of metrics-data and covers 10 \
         to 20 of the source; the last lies at 6",
        "1 of them are, byte for byte, batches that count; the first lies at offset 4 of metrics-data and covers 10 to 20 \
         of the source, like the one at 1",
        "1 of them contradict batches that count; the first lies at offset 5 of metrics-data and covers 12 to 17 of the \
         source, unlike the one at 1",
        "the first lies at offset 6 of metrics-data and begins at 9000 of the source",
        "1 records of metrics-data are no batches and count for nobody; the first lies at offset 7",
        "1 records in the dead-letter topic name no source here; the first lies at offset 1 of its partition 1",
    ]);
    assert!(!found.text.contains("BROKEN"), "{}", found.text);
    let json = log.audit(&["--json"]).await.exits(0).json();
    let spots = json["partitions"][1]["spots"].as_array().expect("a list");
    let spots: Vec<_> = spots
        .iter()
        .map(|spot| (spot["what"].as_str(), spot["first_offset"].as_i64()))
        .collect();
    assert_eq!(
        spots,
        [
            (Some("void"), Some(4)),
            (Some("copy"), Some(4)),
            (Some("contradiction"), Some(5)),
            (Some("stray"), Some(6)),
            (Some("undecodable"), Some(7)),
        ]
    );
    assert_eq!(json["partitions"][0]["spots"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_added_that_goes_on_with_the_chain_is_named() {
    let log = Log::with_books().await;
    let forged = DeltaBatch {
        types: Vec::new(),
        ..DeltaBatch::decode(&batch(40, 43, counted(3))[..]).expect("a batch")
    };
    log.delta(METRICS, &forged.encode_to_vec()).await;
    log.audit(&[]).await.exits(1).says(&[
        "BROKEN at partition 1 by 3 since offset 40: the batches count offsets that the source does not have",
        "BROKEN at partition 1 by 3 since offset 40: a batch adds another number of events to its series",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_removed_from_metrics_data_is_named() {
    let log = Log::with_books().await;
    let copy = log.broker.create_topic("metrics-copy", PARTITIONS).await;
    copy.expect("a topic");
    // The second batch: source offsets 10 to 20.
    copy_without(&log.broker.bootstrap(), METRICS, "metrics-copy", 1).await;
    let found = log
        .audit(&["--set=topics.metrics=metrics-copy"])
        .await
        .exits(1)
        .says(&["BROKEN at partition 1 by 10 since offset 10: the chain stops here"]);
    assert_eq!(found.text.matches("BROKEN").count(), 1, "{}", found.text);
    let json = log
        .audit(&["--set=topics.metrics=metrics-copy", "--json"])
        .await
        .exits(1)
        .json();
    let broken = &json["breaks"][0];
    assert_eq!(
        (
            &broken["partition"],
            &broken["by"],
            &broken["since"],
            &broken["what"]
        ),
        (&1.into(), &10.into(), &10.into(), &"batches_gone".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_was_removed_is_named() {
    let log = Log::with_books().await;
    let empty = log.broker.create_topic("letters-copy", PARTITIONS).await;
    empty.expect("a topic");
    log.audit(&["--set=topics.dead_letters=letters-copy"])
        .await
        .exits(1)
        .says(&["BROKEN at partition 1 by 1 since offset 0: dead letters"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_log_time_is_widened_to_whole_batches() {
    let log = Log::with_books().await;
    // The 13th to the 25th event.
    let (from, to) = (BEGAN_MS + 12_000, BEGAN_MS + 25_000);
    let (from, to) = (format!("--from={from}"), format!("--to={to}"));
    log.audit(&[&from, &to]).await.exits(0).says(&[
        "range 2023-11-14T22:13:32Z to 2023-11-14T22:13:45Z: end - start = 20 = 20 counted",
        "Partition 1: the range is offsets 12 to 25; whole batches make it 10 to 30.",
        "balanced",
    ]);
    let json = log.audit(&[&from, &to, "--json"]).await.exits(0).json();
    let line = &json["range"]["partitions"][1];
    assert_eq!(
        (
            &line["from"],
            &line["to"],
            &line["covered_from"],
            &line["covered_to"]
        ),
        (&12.into(), &25.into(), &10.into(), &30.into())
    );
    log.audit(&["--from=now", "--to=now-1h"]).await.exits(2);
    log.audit(&["--watch", "--from=now-1h"]).await.exits(2);
}

/// A watch under way.
struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
    seen: BTreeSet<String>,
}

impl Watch {
    fn start(log: &Log, more: &[&str]) -> Self {
        let mut child = binary(log.folder.path())
            .args(log.arguments(more))
            .args(["--watch", "--every=100ms", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            lines,
            seen: BTreeSet::new(),
        }
    }

    /// Reads documents until one is as wanted.
    async fn until(mut self, wanted: impl Fn(&Value) -> bool + Send + 'static) -> Self {
        let reading = tokio::task::spawn_blocking(move || {
            loop {
                let mut line = String::new();
                let read = self.lines.read_line(&mut line).expect("text");
                assert!(read > 0, "it ended after: {:?}", self.seen);
                let found: Value = serde_json::from_str(&line).expect("a document per line");
                self.seen.insert(line);
                if wanted(&found) {
                    return self;
                }
            }
        });
        let read = tokio::time::timeout(DEADLINE, reading).await;
        read.expect("it says so in time").expect("no panic")
    }

    async fn interrupt(mut self) -> i32 {
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-INT", &pid]).status();
        assert!(asked.expect("kill runs").success());
        let ending = tokio::task::spawn_blocking(move || self.child.wait());
        let ended = tokio::time::timeout(DEADLINE, ending).await;
        let status = ended.expect("it ends in time").expect("no panic");
        status.expect("waited").code().expect("an exit code")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_changes_and_ends_with_the_worst_round() {
    let log = Log::with_books().await;
    let watch = Watch::start(&log, &[]);
    let watch = watch
        .until(|found| found["balanced"] == true && found["total"]["offsets"] == 40)
        .await;
    log.event(40).await;
    let watch = watch.until(|found| found["total"]["in_flight"] == 1).await;
    // The chain goes on, and what was read before is not read again.
    log.delta(METRICS, &batch(40, 41, counted(1))).await;
    let watch = watch.until(|found| found["total"]["counted"] == 40).await;
    let watch = watch.until(|found| found["heartbeat"] == true).await;
    assert_eq!(watch.interrupt().await, 0);

    let watch = Watch::start(&log, &[]);
    let watch = watch.until(|found| found["balanced"] == true).await;
    log.delta(METRICS, &batch(50, 60, counted(10))).await;
    for n in 41..60 {
        log.event(n).await;
    }
    let watch = watch
        .until(|found| found["breaks"][0]["what"] == "batches_gone")
        .await;
    // What was lacking is written after all: the last round balances, and the code tells of the worst.
    log.delta(METRICS, &batch(41, 60, counted(19))).await;
    let watch = watch.until(|found| found["total"]["counted"] == 59).await;
    assert_eq!(watch.interrupt().await, 1);
}

/// A system of its own in one process.
impl Up {
    fn brokers(&self) -> &str {
        self.endpoints["broker"].as_str().expect("an address")
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let at = format!("--endpoints={}", self.endpoints_file().display());
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        run(self.folder.path(), arguments.chain([at]).collect()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_system_balances_to_the_last_row_and_a_rewritten_log_does_not() {
    let up = Up::start(&["partitions=2"]);
    let sent = ["send-events", "--json", "--count=2000", "--rate=1000"];
    up.run(&sent).await.exits(0);
    let settled = async {
        loop {
            let found = up.run(&["audit", "--json"]).await.exits(0).json();
            let total = &found["total"];
            if total["counted"] == 2000 && found["aggregates"]["in_rows"] == 2000 {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(DEADLINE, settled)
        .await
        .expect("settled");
    assert_eq!(found["balanced"], true, "{found}");
    assert_eq!(found["aggregates"]["counted"], 2000, "{found}");
    let producer = &found["producers"][0];
    assert_eq!(
        (&producer["received"], &producer["accepted"]),
        (&2000.into(), &2000.into()),
        "{producer}"
    );
    assert!(
        producer["acknowledged_records"].as_u64() >= Some(2000),
        "{producer}"
    );
    up.run(&["audit", "--from=now-1h"])
        .await
        .exits(0)
        .says(&["range ", "2,000 counted"]);

    // The store has applied a batch that the copy lacks.
    let create = ["audit", "--set=topics.metrics=copy"];
    up.run(&create)
        .await
        .exits(2)
        .says(&["topic copy does not exist"]);
    let kafka = KafkaConfig {
        brokers: up.brokers().to_owned(),
        ..KafkaConfig::default()
    };
    let spec = streamgauge_kafka::admin::TopicSpec {
        name: String::from("copy"),
        partitions: PARTITIONS,
        replication: 1,
        config: Vec::new(),
    };
    let created = streamgauge_kafka::admin::ensure_topics(&kafka, &[spec]).await;
    created.expect("a topic");
    copy_without(up.brokers(), METRICS, "copy", 0).await;
    up.run(&create).await.exits(1).says(&[
        "BROKEN at partition 1 by",
        "since offset 0: the chain stops here",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_is_away_is_told_and_no_more() {
    let log = Log::with_books().await;
    let nowhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nowhere = nowhere.local_addr().expect("bound").to_string();
    let brokers = format!("--brokers={}", log.broker.bootstrap());
    let producers = format!("--producers={nowhere}");
    let arguments = ["audit", "--no-store", &brokers, &producers];
    run(log.folder.path(), arguments.map(String::from).into())
        .await
        .exits(0)
        .says(&["A producer was not compared", &nowhere]);
}
