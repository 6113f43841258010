//! The producer's ledger over both doors: every event accounted for, and where the log says it lies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{PARTITIONS, Producer, broker, config, eventually};
use serde_json::{Value, json};
use streamgauge_kafka::{FetchConfig, LogReader};
use streamgauge_proto::v1::ProducerLedgerRequest;
use streamgauge_proto::v1::producer_ledger_client::ProducerLedgerClient;
use tempfile::TempDir;

fn sum(ledger: &Value) -> u64 {
    ["accepted", "rejected", "failed", "in_flight"]
        .iter()
        .map(|term| ledger[term].as_u64().unwrap())
        .sum()
}

fn events(users: std::ops::Range<u32>) -> String {
    let event = |n: u32| json!({"user_id": format!("u{n}"), "event_type": "click"});
    json!({"events": users.map(event).collect::<Vec<_>>()}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_accounted_for_and_lies_where_it_says() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let empty = producer.get("/v1/ledger").await.json();
    assert_eq!(
        (&empty["received"], &empty["balanced"]),
        (&json!(0), &json!(true))
    );
    assert_eq!(empty["partitions"], json!([]));

    for batch in 0..4 {
        let answer = producer
            .post("/v1/events", events(batch * 25..batch * 25 + 25))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let mixed =
        r#"[{"user_id":"u","event_type":"x"},{"user_id":"","event_type":"x"},{"event_type":"x"}]"#;
    producer.post("/v1/events", mixed).await;
    let ledger = producer.get("/v1/ledger").await.json();
    assert_eq!(
        (
            &ledger["received"],
            &ledger["accepted"],
            &ledger["rejected"],
            &ledger["failed"]
        ),
        (&json!(103), &json!(101), &json!(2), &json!(0)),
        "{ledger}"
    );
    assert_eq!(ledger["balanced"], true);
    assert_eq!(ledger["topic"], common::TOPIC);

    let reader = LogReader::new(&producer.kafka, &FetchConfig::default(), None).unwrap();
    let mut records = 0;
    for one in ledger["partitions"].as_array().unwrap() {
        let partition = one["partition"].as_i64().unwrap() as i32;
        let ends = reader.watermarks(common::TOPIC, partition).await.unwrap();
        assert_eq!(one["first_offset"], ends.low, "{one}");
        assert_eq!(one["last_offset"], ends.high - 1, "{one}");
        records += one["records"].as_u64().unwrap();
    }
    assert_eq!(records, 101);
    assert!(ledger["partitions"].as_array().unwrap().len() <= PARTITIONS as usize);

    let twin = ProducerLedgerClient::new(producer.channel().await)
        .read(ProducerLedgerRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(twin.balanced);
    assert_eq!((twin.received, twin.accepted, twin.rejected), (103, 101, 2));
    assert_eq!(
        twin.partitions.iter().map(|one| one.records).sum::<u64>(),
        101
    );
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_balances_while_events_fail_and_clients_go_away() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.limits.request_timeout_ms = 3_000;
    config.publisher.delivery_timeout_ms = 1_000;
    let producer = Producer::start(config).await;
    producer.post("/v1/events", events(0..10)).await;
    broker.shutdown(Duration::from_secs(1)).await;
    let request = |n: u32| {
        let (client, url) = (producer.client.clone(), producer.url("/v1/events"));
        async move {
            // Some clients wait for less time than an answer takes.
            let patience = Duration::from_millis(u64::from(20 + n * 100));
            let sent = client.post(url).body(events(n * 10..n * 10 + 10));
            sent.timeout(patience).send().await.is_ok()
        }
    };
    let tasks: Vec<_> = (1..9).map(|n| tokio::spawn(request(n))).collect();
    for task in tasks {
        task.await.unwrap();
        let ledger = producer.get("/v1/ledger").await.json();
        assert_eq!(ledger["balanced"], true, "{ledger}");
        assert_eq!(ledger["received"].as_u64(), Some(sum(&ledger)), "{ledger}");
    }
    eventually("nothing is under way", async || {
        producer.get("/v1/ledger").await.json()["in_flight"] == 0
    })
    .await;
    let ledger = producer.get("/v1/ledger").await.json();
    assert_eq!(ledger["accepted"], 10, "{ledger}");
    assert!(ledger["failed"].as_u64() > Some(0), "{ledger}");
    drop(producer);
}
