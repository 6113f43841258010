//! Records written straight to the topic, which no producer checked.

use std::time::Duration;

use streamgauge_kafka::{Publisher, PublisherConfig, Record};
use streamgauge_tests::system::{System, number};
use tokio::time::Instant;

/// A key or a value as the log holds it.
type Bytes<'a> = Option<&'a [u8]>;

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_dead_lettered_and_its_neighbours_are_counted() {
    let system = System::start(&[]).await;
    let publisher =
        Publisher::new(&system.kafka(), &PublisherConfig::default(), None).expect("plain settings");
    let poison: [(Bytes<'_>, Bytes<'_>); 5] = [
        (Some(b"u"), Some(b"raw garbage")),
        (Some(b"u"), Some(b"")),
        (Some(b"u"), None),
        (None, Some(b"\xff\xff\xff\xff")),
        (Some(b"u"), Some(&[0x0a; 600_000])),
    ];
    let good = serde_json::json!([
        { "user_id": "u", "event_type": "click", "page_url": "/a" },
        { "user_id": "u", "event_type": "click", "page_url": "/b" },
    ]);
    let topic = system.events_topic();
    for (key, payload) in poison {
        let record = Record {
            topic,
            partition: Some(0),
            key,
            payload,
            timestamp_ms: None,
            headers: &[],
        };
        publisher
            .send(record)
            .await
            .expect("the log takes anything");
        let answer = reqwest::Client::new()
            .post(format!("{}/v1/events", system.producer()))
            .json(&good)
            .send()
            .await
            .expect("the producer answers");
        assert_eq!(answer.status(), 200);
    }
    let ledger = system.settled_with(10, 5).await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_consumer_holds_and_a_resumed_one_catches_up() {
    let system = System::start(&[]).await;
    let client = reqwest::Client::new();
    let post = |path: &str| {
        client
            .post(format!("{}{path}", system.consumer()))
            .json(&serde_json::json!({}))
    };
    assert_eq!(
        post("/v1/pause").send().await.expect("it answers").status(),
        200
    );
    let event = serde_json::json!({ "user_id": "u", "event_type": "click" });
    let answer = client
        .post(format!("{}/v1/events", system.producer()))
        .json(&event)
        .send()
        .await;
    assert_eq!(answer.expect("it answers").status(), 200);
    // Held: the event lies in the log and stays in flight.
    let held = Instant::now() + Duration::from_secs(60);
    loop {
        let ledger = system
            .get(&format!("{}/v1/ledger", system.analytics()))
            .await;
        assert_eq!(number(&ledger["total"]["counted"]), 0, "{ledger}");
        let end = ledger["partitions"].as_array().into_iter().flatten();
        if end.map(|one| number(&one["source_end"])).sum::<u64>() == 1 {
            break;
        }
        assert!(
            Instant::now() < held,
            "the event is not in the log: {ledger}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        post("/v1/resume")
            .send()
            .await
            .expect("it answers")
            .status(),
        200
    );
    system.settled(1).await;
}
