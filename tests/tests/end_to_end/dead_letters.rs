//! Dead letters from their poison to their being counted, by the command line alone.

use std::time::Duration;

use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use streamgauge_kafka::{Publisher, PublisherConfig, Record};
use streamgauge_proto::v1::Event;
use streamgauge_tests::{
    process::Process,
    system::{System, number},
};
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
    let poison = typeless(1);
    let record = Record {
        topic: system.events_topic(),
        partition: None,
        key: Some(poison.user_id.as_bytes()),
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

/// A kill between the mark, the record and the mark again leaves nothing that is counted twice or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_replay_counts_nothing_twice() {
    const LETTERS: u64 = 3_000;
    let mut system = System::start(&["consumer.desk.per_second_max=1000000"]).await;
    let publisher =
        Publisher::new(&system.kafka(), &PublisherConfig::default(), None).expect("plain settings");
    let mut batch = publisher.batch();
    for number in 0..LETTERS {
        let event = typeless(number);
        let record = Record {
            topic: system.events_topic(),
            partition: None,
            key: Some(event.user_id.as_bytes()),
            payload: Some(&event.encode_to_vec()),
            timestamp_ms: None,
            headers: &[],
        };
        batch.push(record);
    }
    assert!(batch.finish().await.failed.is_empty());
    system.settled_with(0, LETTERS).await;
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..10 {
        let listening = begin_replay(&system).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..80))).await;
        let replays = |process: &&mut Process| ["up", "consumer"].contains(&process.name());
        for process in system.processes.iter_mut().filter(replays) {
            process.kill();
            process.start_again();
        }
        drop(listening);
        system.ready().await;
        let states = &json(&system, 0, &["dlq", "list", "--limit=1"])["states"];
        if number(&states["unfinished"]) > 0 || number(&states["open"]) == 0 {
            break;
        }
    }
    let mend = [
        "dlq",
        "replay",
        "--all",
        "--rename=properties.kind=event_type",
    ];
    json(&system, 0, &mend);
    let unfinished = ["--state=unfinished", "--again"];
    json(&system, 0, &[&mend[..2], &mend[3..], &unfinished].concat());
    let states = &json(&system, 0, &["dlq", "list", "--limit=1"])["states"];
    assert_eq!(number(&states["replayed"]), LETTERS, "{states}");
    let ledger = system.settled_with(LETTERS, LETTERS).await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
}

/// Starts a replay of everything and listens until it has done something; it goes on as long as the answer is held.
async fn begin_replay(system: &System) -> reqwest::Response {
    let body = serde_json::json!({
        "selection": { "all": true }, "rename": ["properties.kind=event_type"]
    });
    let mut answer = reqwest::Client::new()
        .post(format!("{}/v1/dead-letters/replay", system.consumer()))
        .body(body.to_string())
        .send()
        .await
        .expect("it answers");
    assert_eq!(answer.status(), 200);
    let mut text = String::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        text.push_str(&String::from_utf8_lossy(&chunk));
        let done = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if done
            .into_iter()
            .any(|line| number(&line["done"]) > 0 || line["finished"] == true)
        {
            return answer;
        }
    }
    panic!("it ended before it had done anything: {text}");
}

/// An event without its type, which one of its properties has.
fn typeless(number: u64) -> Event {
    let now_us = now_us_of_the_machine();
    Event {
        event_id: format!("e-{number}"),
        user_id: format!("u-{}", number % 50),
        occurred_at_us: now_us,
        received_at_us: now_us,
        properties: br#"{"kind":"click"}"#.to_vec().into(),
        ..Event::default()
    }
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
