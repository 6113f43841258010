//! Kafka that is not there yet, goes away, or loses its answers: nothing is called accepted that is not in the log.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Producer, broker, broker_on, config, eventually};
use streamgauge_lifecycle::{EXIT_UNFINISHED, exit_code};
use streamgauge_producer::Error;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const EVENT: &str = r#"{"user_id":"u","event_type":"x"}"#;

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_a_log_that_is_not_there_yet() {
    let address = free_address().await;
    let mut config = config(&address.to_string());
    config.kafka.request_timeout_ms = 300;
    let producer = Producer::launch(config).await;
    assert_eq!(producer.get("/livez").await.status, 200);
    eventually("readiness says why", async || {
        producer
            .get("/health")
            .await
            .text
            .contains("no Kafka broker")
    })
    .await;
    assert_eq!(producer.get("/readyz").await.status, 503);
    let answer = producer.post("/v1/events", EVENT).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "not_ready"));
    assert_eq!(answer.header("retry-after"), Some("1"));

    let dir = TempDir::new().unwrap();
    let _broker = broker_on(&dir, address).await;
    eventually("the producer is ready", async || {
        producer.get("/readyz").await.status == 200
    })
    .await;
    let sent = async || producer.post("/v1/events", EVENT).await.status == 200;
    eventually("an event is taken", sent).await;
    assert_eq!(producer.written().await.len(), 1);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_other_partitions_is_named() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    broker.create_topic(common::TOPIC, 5).await.unwrap();
    let producer = Producer::launch(config(&broker.bootstrap())).await;
    let says = async || {
        let health = producer.get("/health").await.text;
        health.contains("has 5 partitions") && health.contains('3')
    };
    eventually("readiness names both counts", says).await;
    assert_eq!(producer.post("/v1/events", EVENT).await.status, 503);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_503_until_it_heals() {
    let dir = TempDir::new().unwrap();
    let address = free_address().await;
    let first = broker_on(&dir, address).await;
    let mut config = config(&address.to_string());
    config.publisher.delivery_timeout_ms = 300;
    (config.limits.request_timeout_ms, config.limits.stall_ms) = (1_300, 500);
    config.breaker.consecutive_failures = 2;
    (config.breaker.open_min_ms, config.breaker.open_max_ms) = (200, 400);
    let producer = Producer::start(config).await;
    let mut accepted = 0;
    assert_eq!(producer.post("/v1/events", EVENT).await.status, 200);
    accepted += 1;

    first.shutdown(Duration::from_secs(2)).await;
    let mut codes = Vec::new();
    for _ in 0..4 {
        let answer = producer.post("/v1/events", EVENT).await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.header("retry-after").is_some());
        codes.push(answer.text);
    }
    assert!(
        codes[0].contains("\"verdicts\":[{\"status\":\"retry\",\"event_id\""),
        "{}",
        codes[0]
    );
    let refused = |text: &String| text.contains("\"error\":{\"code\":\"log_unavailable\"");
    assert!(
        codes.iter().any(refused),
        "the breaker spares what would fail: {codes:?}"
    );
    assert!(
        producer.metric("circuit_breaker_transitions_total{breaker=\"publish\",to=\"open\"}")
            >= 1.0
    );
    let not_ready = async || producer.get("/readyz").await.status == 503;
    eventually("readiness is down", not_ready).await;

    let _second = broker_on(&dir, address).await;
    let mut healed = async || {
        let ok = producer.post("/v1/events", EVENT).await.status == 200;
        accepted += usize::from(ok);
        ok
    };
    eventually("events are taken again", &mut healed).await;
    eventually("the breaker is closed and readiness up", async || {
        producer.metric("circuit_breaker_state{breaker=\"publish\"}") == 0.0
            && producer.get("/readyz").await.status == 200
    })
    .await;
    let [_, counted, ..] = producer.ledger();
    assert_eq!(counted, accepted as f64);
    assert!(
        producer.written().await.len() >= accepted,
        "every accepted event is in the log"
    );
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_acknowledgement_is_made_up_for() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    broker.faults().drop_acknowledgements(1);
    let answer = producer.post("/v1/events", EVENT).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(broker.faults().acknowledgements_dropped(), 1);
    assert_eq!(
        producer.written().await.len(),
        1,
        "written once, thanks to the idempotent producer"
    );
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_a_hurry_is_told_to_retry() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    broker.faults().delay_appends(Duration::from_millis(600));
    let answer = producer
        .post_with("/v1/events", &[("x-timeout-ms", "100")], EVENT)
        .await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["verdicts"][0]["code"], "deadline_exceeded");
    assert_eq!(producer.ledger(), [1.0, 0.0, 0.0, 1.0]);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_event_whose_fate_is_unknown_is_refused_with_the_id_to_retry_with() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let activity = r#"{"user_id":"u","activity_type":"x"}"#;
    for (path, event) in [("/ingest", EVENT), ("/activity", activity)] {
        let before = producer.written().await.len();
        broker.faults().delay_appends(Duration::from_millis(600));
        let answer = producer
            .post_with(path, &[("x-timeout-ms", "100")], event)
            .await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert_eq!(answer.code(), "deadline_exceeded");
        assert!(answer.header("retry-after").is_some());
        let event_id = answer.json()["error"]["event_id"]
            .as_str()
            .unwrap()
            .to_owned();
        broker.faults().delay_appends(Duration::ZERO);
        let again = event.replacen('{', &format!("{{\"event_id\":\"{event_id}\","), 1);
        assert_eq!(producer.post(path, again).await.status, 200);
        // The first was written after all.
        let both = async || producer.written().await.len() == before + 2;
        eventually("both are in the log", both).await;
        let written = producer.written().await;
        let same = written.iter().filter(|one| one.event.event_id == event_id);
        assert_eq!(same.count(), 2, "whoever counts by id counts one");
    }
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_503_and_loses_nothing_that_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.publisher.delivery_timeout_ms = 300;
    (config.limits.request_timeout_ms, config.limits.stall_ms) = (1_300, 500);
    (config.breaker.open_min_ms, config.breaker.open_max_ms) = (100, 200);
    let producer = Producer::start(config).await;
    assert_eq!(producer.post("/v1/events", EVENT).await.status, 200);
    broker.faults().refuse_appends(true);
    for _ in 0..3 {
        let answer = producer.post("/v1/events", EVENT).await;
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(producer.written().await.len(), 1);
    broker.faults().refuse_appends(false);
    let taken = async || producer.post("/v1/events", EVENT).await.status == 200;
    eventually("events are taken again", taken).await;
    let [_, accepted, ..] = producer.ledger();
    assert_eq!(accepted, 2.0);
    assert!(producer.written().await.len() >= 2);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doors_stay_open_for_a_while_after_readiness_went_down() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.shutdown_delay_ms = 3_000;
    let producer = Producer::start(config).await;
    producer.shutdown.trigger();
    let not_ready = async || producer.get("/readyz").await.status == 503;
    eventually("readiness is down", not_ready).await;
    assert_eq!(
        producer.post("/v1/events", EVENT).await.status,
        200,
        "who has not noticed yet is still served"
    );
    let address = producer.http;
    producer.stop().await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_what_is_under_way() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    broker.faults().delay_appends(Duration::from_millis(400));
    let under_way = tokio::spawn(
        producer
            .client
            .post(producer.url("/v1/events"))
            .body(EVENT)
            .send(),
    );
    eventually("the event is in flight", async || {
        producer.metric("events_in_flight") == 1.0
    })
    .await;
    producer.shutdown.trigger();
    assert_eq!(under_way.await.unwrap().unwrap().status(), 200);
    assert_eq!(producer.ledger(), [1.0, 1.0, 0.0, 0.0]);
    let address = producer.http;
    producer.stop().await.unwrap();
    assert!(
        TcpStream::connect(address).await.is_err(),
        "the door is closed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_cut_at_the_deadline_is_named() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.shutdown_deadline_ms = 1_000;
    let producer = Producer::start(config).await;
    let mut stuck = TcpStream::connect(producer.http).await.unwrap();
    let head =
        "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
    stuck.write_all(head.as_bytes()).await.unwrap();
    // Its body is waited for.
    let mut asked = [0; 12];
    stuck.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    let began = tokio::time::Instant::now();
    let error = producer.stop().await.unwrap_err();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(exit_code(&error), EXIT_UNFINISHED);
    match error {
        Error::Unfinished(unfinished) => assert_eq!(unfinished.left(), ["http: 1 request"]),
        other => panic!("{other}"),
    }
}
