//! Dead letters from their poison to their being counted, by the command line alone.

use std::time::Duration;

use prost::Message;
use serde_json::Value;
use streamgauge_kafka::{Publisher, PublisherConfig, Record};
use streamgauge_proto::v1::Event;
use streamgauge_tests::system::{System, number};
use tokio::time::Instant;

/// Runs a command, which must end with this code, and reads its JSON.
#[track_caller]
fn json(system: &System, code: i32, arguments: &[&str]) -> Value {
    let (ended, text) = system.command(&[arguments, &["--json"]].concat());
    assert_eq!(ended, code, "{arguments:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error} in {text}"))
}

/// What a replay says in the end.
#[track_caller]
fn assert_replay(found: &Value, selected: u64, done: u64, skipped: u64) {
    let seen = ["selected", "done", "skipped"].map(|name| number(&found[name]));
    assert_eq!(seen, [selected, done, skipped], "{found}");
    assert_eq!(found["finished"], true, "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_mended_and_counted_once_however_often_it_is_replayed() {
    let system = System::start(&[]).await;
    let publisher =
        Publisher::new(&system.kafka(), &PublisherConfig::default(), None).expect("plain settings");
    let now_us = now_us_of_the_machine();
    let poison = Event {
        event_id: String::from("e-1"),
        user_id: String::from("u"),
        occurred_at_us: now_us,
        received_at_us: now_us,
        properties: br#"{"kind":"click"}"#.to_vec().into(),
        ..Event::default()
    };
    let record = Record {
        topic: system.events_topic(),
        partition: None,
        key: Some(b"u"),
        payload: Some(&poison.encode_to_vec()),
        timestamp_ms: None,
        headers: &[("origin", b"test")],
    };
    publisher.send(record).await.expect("written");
    system.settled_with(0, 1).await;

    let found = json(&system, 0, &["dlq", "list", "--reason=missing_field"]);
    assert_eq!(
        found["letters"].as_array().map(Vec::len),
        Some(1),
        "{found}"
    );
    let first = found["letters"][0]["id"].clone();
    let id = format!("{}/{}", first["partition"], first["offset"]);
    let shown = json(&system, 0, &["dlq", "show", &id])[0].clone();
    assert_eq!(
        shown["body"]["event"]["properties"]["kind"], "click",
        "{shown}"
    );
    assert_eq!(shown["headers"][0]["name"], "origin", "{shown}");
    assert_eq!(shown["detail"], "event_type is absent or empty", "{shown}");

    // As it is it fails again, and keeps where it failed first.
    let replay = ["dlq", "replay", "--reason=missing_field"];
    assert_replay(&json(&system, 0, &replay), 1, 1, 0);
    system.settled_with(0, 2).await;
    let found = json(&system, 0, &["dlq", "list", "--state=open"]);
    let again = &found["letters"][0];
    assert_eq!(
        (&again["attempts"], &again["first"]["id"]),
        (&2.into(), &first),
        "{found}"
    );
    assert_eq!(number(&found["states"]["replayed"]), 1, "{found}");

    // Mended it counts, once.
    let mend = [&replay[..], &["--rename=properties.kind=event_type"]].concat();
    let (code, text) = system.command(&[&mend[..], &["--dry-run"]].concat());
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("would be replayed") && text.contains("\"event_type\":\"click\""),
        "{text}"
    );
    assert_replay(&json(&system, 0, &mend), 1, 1, 1);
    system.settled_with(1, 2).await;
    assert_replay(&json(&system, 0, &mend), 0, 0, 2);
    let insist = [&mend[..], &["--again"]].concat();
    assert_replay(&json(&system, 0, &insist), 2, 2, 0);
    let ledger = duplicates(&system, 2).await;
    assert_eq!(number(&ledger["total"]["counted"]), 1, "{ledger}");
    assert_eq!(ledger["balanced"], true, "{ledger}");
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mended_is_refused_and_can_be_dropped() {
    let system = System::start(&[]).await;
    let publisher =
        Publisher::new(&system.kafka(), &PublisherConfig::default(), None).expect("plain settings");
    let record = Record {
        topic: system.events_topic(),
        partition: None,
        key: Some(b"u"),
        payload: Some(b"\xffgarbage"),
        timestamp_ms: None,
        headers: &[],
    };
    publisher.send(record).await.expect("written");
    system.settled_with(0, 1).await;
    let found = json(&system, 1, &["dlq", "replay", "--all", "--set=user_id=v"]);
    assert_eq!(number(&found["refused"]), 1, "{found}");
    let why = found["outcomes"][0]["message"].as_str().unwrap_or_default();
    assert!(why.contains("nothing to edit"), "{found}");
    assert_replay(
        &json(&system, 0, &["dlq", "drop", "--all", "--dry-run"]),
        1,
        1,
        0,
    );
    assert_replay(&json(&system, 0, &["dlq", "drop", "--all"]), 1, 1, 0);
    assert_replay(&json(&system, 0, &["dlq", "drop", "--all"]), 0, 0, 1);
    let (code, text) = system.command(&["dlq", "show"]);
    assert_eq!(code, 0, "{text}");
    for part in ["dropped", "undecodable", "ff67617262616765 (hex, 8 bytes)"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let (code, text) = system.command(&["dlq", "show", "0/99999"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("there is no dead letter"), "{text}");
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
}

/// Waits until the ledger knows so many duplicates.
async fn duplicates(system: &System, count: u64) -> Value {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let url = format!("{}/v1/ledger", system.analytics());
        let ledger = system.get(&url).await;
        if number(&ledger["total"]["duplicate"]) == count {
            return ledger;
        }
        assert!(Instant::now() < end, "not {count} duplicates: {ledger}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn now_us_of_the_machine() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_micros() as i64
}
