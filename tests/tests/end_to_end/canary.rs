//! The canary: its events come back by both doors, stand in nobody's figures, and are missed when they do not come back.

use std::time::Duration;

use serde_json::json;
use streamgauge_tests::system::{System, number};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
const USERS_EVENTS: u64 = 7;

const SETTINGS: [&str; 4] = [
    "analytics.canary.enabled=true",
    "analytics.canary.interval_ms=100",
    "analytics.canary.timeout_ms=3000",
    "analytics.canary.start_grace_ms=90000",
];

/// The sum of a counter of the canary over a door.
async fn counter(system: &System, what: &str, door: &str) -> u64 {
    let text = reqwest::get(format!("{}/metrics", system.analytics())).await;
    let text = text.expect("it answers").text().await.expect("text");
    let series = format!("canary_events_{what}_total{{door=\"{door}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.expect("a series from the start")
        .parse()
        .expect("a number")
}

/// Waits until the counter of each door is at least this.
async fn both_reach(system: &System, what: &str, least: u64) {
    let end = Instant::now() + PATIENCE;
    for door in ["http", "grpc"] {
        loop {
            let found = counter(system, what, door).await;
            if found >= least {
                break;
            }
            assert!(Instant::now() < end, "{what} over {door}: {found}");
            sleep(POLL).await;
        }
    }
}

async fn post(url: String, body: serde_json::Value) {
    let answer = reqwest::Client::new().post(url).json(&body).send().await;
    assert_eq!(answer.expect("it answers").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_canary_comes_back_apart_from_users_figures_and_is_missed_when_it_does_not() {
    let system = System::start(&SETTINGS).await;
    both_reach(&system, "received", 10).await;
    for door in ["http", "grpc"] {
        assert_eq!(counter(&system, "lost", door).await, 0, "{door}");
    }

    let events: Vec<_> = (0..USERS_EVENTS)
        .map(|n| json!({ "user_id": format!("u{n}"), "event_type": "click" }))
        .collect();
    let url = format!("{}/v1/events", system.producer());
    post(url, json!({ "events": events })).await;
    let end = Instant::now() + PATIENCE;
    let top = format!("{}/v1/top?by=event_type&last=1h", system.analytics());
    loop {
        let answer = system.get(&top).await;
        let total = number(&answer["total"]["count"]);
        if total == USERS_EVENTS {
            assert_eq!(answer["entries"][0]["key"], json!(["click"]), "{answer}");
            assert_eq!(number(&answer["keys"]), 1, "{answer}");
            break;
        }
        assert!(total < USERS_EVENTS && Instant::now() < end, "{answer}");
        sleep(POLL).await;
    }
    let all = format!("{}/v1/top?by=all&last=1h", system.analytics());
    let all = system.get(&all).await;
    assert_eq!(number(&all["total"]["count"]), USERS_EVENTS, "{all}");

    // The books know of everybody's events, and balance while more of them come.
    let ledger = format!("{}/v1/ledger?check_store=true", system.analytics());
    let ledger = system.get(&ledger).await;
    assert_eq!(ledger["balanced"], json!(true), "{ledger:#}");

    post(format!("{}/v1/pause", system.consumer()), json!({})).await;
    both_reach(&system, "lost", 2).await;
    post(format!("{}/v1/resume", system.consumer()), json!({})).await;
    let received = counter(&system, "received", "http").await;
    both_reach(&system, "received", received + 5).await;
}
