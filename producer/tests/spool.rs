//! Kafka goes away and comes back, and with a spool nobody is refused meanwhile: nothing is lost, nobody overtakes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use common::{Producer, broker_on, config, eventually};
use serde_json::{Value, json};
use streamgauge_producer::Config;
use streamgauge_proto::v1::ProducerLedgerRequest;
use streamgauge_proto::v1::producer_ledger_client::ProducerLedgerClient;
use tempfile::TempDir;
use tokio::net::TcpListener;

/// How long an outage's end may take to be noticed on a busy machine: connections are tried again, then the breaker.
const PATIENCE: Duration = Duration::from_secs(60);

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// With a spool, and quick to notice an outage.
fn spooling(address: SocketAddr, spool: &TempDir) -> Config {
    let mut config = config(&address.to_string());
    config.kafka.request_timeout_ms = 300;
    config.publisher.delivery_timeout_ms = 300;
    (config.limits.request_timeout_ms, config.limits.stall_ms) = (6_000, 500);
    config.breaker.consecutive_failures = 2;
    (config.breaker.open_min_ms, config.breaker.open_max_ms) = (200, 400);
    config.spool.enabled = true;
    config.spool.dir = spool.path().join("spool");
    config
}

fn event(user: &str, number: usize) -> String {
    format!(r#"{{"event_id":"{user}-{number}","user_id":"{user}","event_type":"x"}}"#)
}

/// One event of each user, in one request; true when all were accepted.
async fn send(producer: &Producer, number: usize) -> bool {
    let events: Vec<_> = ["a", "b", "c"].map(|user| event(user, number)).into();
    let body = format!("[{}]", events.join(","));
    let answer = producer.post("/v1/events", body).await;
    if answer.status == 200 {
        assert_eq!(answer.json()["accepted"], 3, "{}", answer.text);
    } else {
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.header("retry-after").is_some());
    }
    answer.status == 200
}

fn records(partitions: &Value) -> u64 {
    let partitions = partitions.as_array().unwrap().iter();
    partitions.map(|one| one["records"].as_u64().unwrap()).sum()
}

/// The ledger, which adds up at any moment: of the spool what waited and came, what waits, was drained, is lost and was
/// put aside.
async fn account(producer: &Producer) -> [u64; 6] {
    let ledger = producer.get("/v1/ledger").await.json();
    let spool = &ledger["spool"];
    let terms = [
        "waiting_at_start",
        "spooled",
        "waiting",
        "drained",
        "lost",
        "put_aside",
    ];
    let [at_start, spooled, waiting, drained, lost, put_aside] =
        terms.map(|term| spool[term].as_u64().unwrap());
    assert_eq!(
        at_start + spooled,
        waiting + drained + lost + put_aside,
        "{ledger}"
    );
    assert_eq!(
        (&ledger["balanced"], &spool["balanced"]),
        (&json!(true), &json!(true))
    );
    let accepted = ledger["accepted"].as_u64().unwrap();
    assert!(
        accepted <= spooled + records(&ledger["partitions"]),
        "{ledger}"
    );
    assert!(drained <= records(&spool["partitions"]), "{ledger}");
    [at_start, spooled, waiting, drained, lost, put_aside]
}

async fn drained(producer: &Producer) {
    let waiting = async {
        while producer.metric("spool_records") > 0.0
            || producer.metric("circuit_breaker_state{breaker=\"publish\"}") > 0.0
        {
            // Only traffic closes a breaker.
            producer.post("/v1/events", event("probe", 0)).await;
            account(producer).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the spool is drained and the breaker closed");
}

/// The numbers of each user's events, in the order in which the log has them first.
async fn logged(producer: &Producer) -> BTreeMap<String, Vec<usize>> {
    let mut users = BTreeMap::<String, Vec<usize>>::new();
    for written in producer.written().await {
        let (user, number) = written.event.event_id.split_once('-').unwrap();
        let (user, number) = (user.to_owned(), number.parse().unwrap());
        assert_eq!(written.event.user_id, user);
        assert_eq!(written.key, user.as_bytes());
        assert_eq!(written.timestamp_ms, written.event.received_at_us / 1_000);
        let numbers = users.entry(user).or_default();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    users.remove("probe");
    users
}

async fn assert_logged(producer: &Producer, numbers: std::ops::Range<usize>) {
    let expected: Vec<usize> = numbers.collect();
    let users = logged(producer).await;
    assert_eq!(users.len(), 3);
    for (user, numbers) in users {
        assert_eq!(numbers, expected, "user {user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_costs_no_event_and_no_order() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let mut broker = broker_on(&dir, address).await;
    let producer = Producer::start(spooling(address, &spool)).await;
    let mut sent = 0;
    for _ in 0..2 {
        for _ in 0..5 {
            assert!(send(&producer, sent).await);
            sent += 1;
        }
        let idle = async || producer.metric("spool_records") == 0.0;
        eventually("nothing waits while Kafka is there", idle).await;
        broker.shutdown(Duration::from_secs(2)).await;
        for _ in 0..20 {
            assert!(send(&producer, sent).await, "the spool takes it");
            sent += 1;
        }
        assert_eq!(producer.metric("spool_records"), 60.0);
        assert!(producer.metric("spool_bytes") > 60.0);
        let says = async || {
            let health = producer.get("/health").await;
            health.status == 200 && health.text.contains("60 events wait")
        };
        eventually("it is ready, and health says what waits", says).await;
        let ages = async || producer.metric("spool_oldest_age_seconds") > 1.0;
        eventually("the oldest grows older", ages).await;
        broker = broker_on(&dir, address).await;
        // Those that come while it drains go behind what waits.
        for _ in 0..10 {
            assert!(send(&producer, sent).await);
            sent += 1;
        }
        drained(&producer).await;
    }
    assert_logged(&producer, 0..sent).await;
    assert_eq!(producer.metric("spool_bytes"), 0.0);
    assert!(producer.metric("spool_drained_total") >= 120.0);
    assert_eq!(
        producer.metric("spool_drained_total"),
        producer.metric("spool_written_total")
    );
    assert!(producer.metric("spool_uncertain_total") >= 3.0);
    assert_eq!(producer.metric("spool_lost_total"), 0.0);
    let [received, accepted, ..] = producer.ledger();
    assert_eq!(received, accepted);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_survives_a_restart_and_goes_first() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let broker = broker_on(&dir, address).await;
    let producer = Producer::start(spooling(address, &spool)).await;
    broker.shutdown(Duration::from_secs(2)).await;
    for number in 0..5 {
        assert!(send(&producer, number).await);
    }
    producer.stop().await.unwrap();

    // Kafka is still away; but an earlier run has seen it.
    let producer = Producer::start(spooling(address, &spool)).await;
    assert_eq!(producer.metric("spool_records"), 15.0);
    assert!(
        producer
            .get("/health")
            .await
            .text
            .contains("no Kafka broker")
    );
    for number in 5..10 {
        assert!(send(&producer, number).await);
    }
    let _broker = broker_on(&dir, address).await;
    assert!(send(&producer, 10).await);
    drained(&producer).await;
    assert_logged(&producer, 0..11).await;
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_beside_a_silent_log_that_was_seen_before_keeps_nobody_out() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let broker = broker_on(&dir, address).await;
    let producer = Producer::start(spooling(address, &spool)).await;
    producer.stop().await.unwrap();
    broker.shutdown(Duration::from_secs(2)).await;

    // Whoever connects waits for an answer, for as long as one look for Kafka may take.
    let _silent = TcpListener::bind(address).await.unwrap();
    let mut config = spooling(address, &spool);
    config.kafka.request_timeout_ms = 60_000;
    let producer = Producer::launch(config).await;
    eventually(
        "it does not wait for the end of the first look",
        async || {
            let health = producer.get("/health").await;
            health.status == 200 && health.text.contains("has not answered yet")
        },
    )
    .await;
    assert!(send(&producer, 0).await);
    assert_eq!(producer.metric("spool_records"), 3.0);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_damage_has_cost_stands_in_the_ledger_at_both_doors() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let broker = broker_on(&dir, address).await;
    let producer = Producer::start(spooling(address, &spool)).await;
    assert_eq!(account(&producer).await, [0; 6]);
    broker.shutdown(Duration::from_secs(2)).await;
    for number in 0..5 {
        assert!(send(&producer, number).await);
    }
    assert_eq!(account(&producer).await, [0, 15, 15, 0, 0, 0]);
    producer.stop().await.unwrap();

    let files = std::fs::read_dir(spool.path().join("spool")).unwrap();
    let mut segments: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|found| found == "seg"));
    let first = segments.iter().min().unwrap();
    let mut bytes = std::fs::read(first).unwrap();
    bytes[streamgauge_spool::frame::HEAD_BYTES + 2] ^= 0x40;
    std::fs::write(first, bytes).unwrap();

    let producer = Producer::start(spooling(address, &spool)).await;
    let [at_start, _, waiting, ..] = account(&producer).await;
    assert_eq!(
        (at_start, waiting),
        (15, 15),
        "it is not known before it is read"
    );
    let _broker = broker_on(&dir, address).await;
    drained(&producer).await;
    let [at_start, spooled, waiting, drained, lost, put_aside] = account(&producer).await;
    assert_eq!((at_start, waiting, lost, put_aside), (15, 0, 1, 0));
    assert_eq!(drained, 14 + spooled);
    let twin = ProducerLedgerClient::new(producer.channel().await)
        .read(ProducerLedgerRequest {})
        .await
        .unwrap();
    let twin = twin.into_inner().spool.unwrap();
    assert_eq!(
        (twin.waiting_at_start, twin.lost, twin.drained),
        (15, 1, drained)
    );
    assert!(twin.balanced);
    let on_log: u64 = twin.partitions.iter().map(|one| one.records).sum();
    assert_eq!(on_log, drained);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_adds_up_at_any_moment_while_events_come_and_kafka_goes() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let broker = broker_on(&dir, address).await;
    let producer = Producer::start(spooling(address, &spool)).await;
    let (client, url) = (producer.client.clone(), producer.url("/v1/events"));
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            let (client, url) = (client.clone(), url.clone());
            tokio::spawn(async move {
                for number in 0..100 {
                    let event = event(&format!("s{sender}"), number);
                    let sent = client.post(&url).body(event).send().await;
                    assert!(sent.unwrap().status().as_u16() < 504);
                }
            })
        })
        .collect();
    for _ in 0..20 {
        account(&producer).await;
    }
    broker.shutdown(Duration::from_secs(2)).await;
    while !senders.iter().all(tokio::task::JoinHandle::is_finished) {
        account(&producer).await;
    }
    for sender in senders {
        sender.await.unwrap();
    }
    let _broker = broker_on(&dir, address).await;
    drained(&producer).await;
    account(&producer).await;
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_never_seen_is_waited_for() {
    let (spool, address) = (TempDir::new().unwrap(), free_address().await);
    let producer = Producer::launch(spooling(address, &spool)).await;
    eventually("readiness says why", async || {
        let health = producer.get("/health").await;
        health.status == 503 && health.text.contains("no Kafka broker")
    })
    .await;
    let answer = producer.post("/v1/events", event("a", 0)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "not_ready"));
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_refuses_with_503_and_keeps_what_it_took() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let broker = broker_on(&dir, address).await;
    let mut config = spooling(address, &spool);
    (config.spool.bytes_max, config.spool.segment_bytes) = (4_096, 1_024);
    let producer = Producer::start(config).await;
    broker.shutdown(Duration::from_secs(2)).await;
    let mut taken = 0;
    while send(&producer, taken).await {
        taken += 1;
        assert!(taken < 100, "it must be full by now");
    }
    assert!(taken > 3);
    assert!(producer.metric("spool_bytes") <= 4_096.0);
    assert_eq!(producer.metric("spool_errors_total{kind=\"full\"}"), 1.0);
    assert_eq!(
        producer.metric("events_failed_total{reason=\"spool_full\"}"),
        3.0
    );
    let many = format!("[{}]", vec![event("a", taken); 40].join(","));
    let answer = producer.post("/v1/events", many).await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert_eq!(answer.code(), "log_unavailable");
    let _broker = broker_on(&dir, address).await;
    drained(&producer).await;
    assert!(send(&producer, taken).await);
    // A busy machine may have sent that one by way of the spool as well.
    drained(&producer).await;
    assert_logged(&producer, 0..taken + 1).await;
    producer.ledger();
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_never_makes_a_false_accepted() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let broker = broker_on(&dir, address).await;
    let producer = Producer::start(spooling(address, &spool)).await;
    assert!(send(&producer, 0).await);
    let folder = spool.path().join("spool");
    std::fs::remove_dir_all(&folder).unwrap();
    broker.shutdown(Duration::from_secs(2)).await;
    for _ in 0..3 {
        assert!(!send(&producer, 1).await);
    }
    assert!(producer.metric("spool_errors_total{kind=\"write\"}") >= 3.0);
    assert_eq!(
        producer.metric("events_failed_total{reason=\"spool_failed\"}"),
        9.0
    );
    let not_ready = async || producer.get("/readyz").await.status == 503;
    eventually("nothing can take events, and readiness is down", not_ready).await;
    let says = async || {
        producer
            .get("/health")
            .await
            .text
            .contains("cannot be written")
    };
    eventually("health says why", says).await;
    let failed = producer.metric("spool_errors_total{kind=\"write\"}");
    std::fs::create_dir_all(&folder).unwrap();
    // Nobody sends to a service that is not ready, so that it has to find out by itself.
    let ready = async || producer.get("/readyz").await.status == 200;
    eventually("readiness is up again, without an event", ready).await;
    let says = async || {
        let health = producer.get("/health").await.text;
        health.contains("events go to the spool") && !health.contains("cannot be written")
    };
    eventually("health says so", says).await;
    assert!(send(&producer, 1).await, "the disk is back, Kafka is not");
    assert_eq!(
        producer.metric("spool_errors_total{kind=\"write\"}"),
        failed
    );
    let _broker = broker_on(&dir, address).await;
    drained(&producer).await;
    assert_logged(&producer, 0..2).await;
    assert_eq!(producer.ledger()[3], 9.0);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_producers_do_not_share_a_folder() {
    let (dir, spool, address) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        free_address().await,
    );
    let _broker = broker_on(&dir, address).await;
    let first = Producer::start(spooling(address, &spool)).await;
    let second = Producer::launch(spooling(address, &spool)).await;
    let error = second.task.await.unwrap().unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("in use by process"), "{source}");
    first.stop().await.unwrap();
}
