//! A rebuild beside a running system, as its user meets it: figures are compared, a wrong one is named and mended, events
//! go on flowing, and no query is left without an answer. The system runs on the embedded log and SQLite, or on the Kafka
//! and the PostgreSQL that the variables of the end-to-end tests name.

mod apart;
#[path = "../common/mod.rs"]
mod common;
mod killed;
mod otherwise;
mod running;

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use streamgauge_analytics::{
    checkpoint::random_name,
    config::StoreConfig,
    store::{self, CheckpointWrite, Store, Swapped},
    view::CellValue,
};
use streamgauge_tests::system::System;

use self::common::binary;

/// Longest wait for a condition.
const DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for an answer: none may wait for a rebuild.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Runs a command: its exit code, its document, and what it said beside.
fn ran(command: &mut Command) -> (i32, Value, String) {
    let output = command.output().expect("it runs");
    let code = output.status.code().expect("an exit code");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (code, document, said)
}

/// A command that talks to a system: its exit code, its document, and what it said beside.
fn run(system: &System, arguments: &[&str]) -> (i32, Value, String) {
    ran(&mut system.client(arguments))
}

fn rebuild(system: &System, arguments: &[&str]) -> (i32, Value, String) {
    rebuild_by(system, &[], arguments)
}

/// As these settings judge, `SERVICE.KEY=VALUE`, instead of those that the system was started with.
fn rebuild_by(system: &System, settings: &[&str], arguments: &[&str]) -> (i32, Value, String) {
    ran(system.rebuild(settings, arguments).arg("--json"))
}

#[track_caller]
fn sends(system: &System, count: u64, seed: u64) {
    let (count, seed) = (format!("--count={count}"), format!("--seed={seed}"));
    let arguments = ["send-events", "--json", "--span=30m", &count, &seed];
    let (code, sent, said) = run(system, &arguments);
    assert_eq!(code, 0, "{sent} {said}");
}

/// One in which swaps are noticed soon, checkpoints come often, and every query needs the store.
async fn start() -> System {
    System::start(&[
        "analytics.store.swap_poll_ms=50",
        "analytics.checkpoint.interval_ms=200",
        "analytics.view.recent_seconds=0",
    ])
    .await
}

fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().timeout(ANSWER_DEADLINE);
    client.build().expect("a client")
}

/// How many events the store answers for.
async fn served(client: &reqwest::Client, analytics: &str) -> u64 {
    let url = format!("{analytics}/v1/top?by=event_type&last=40m");
    let response = client.get(url).send().await.expect("an answer");
    let status = response.status();
    let body = response.text().await.expect("a body");
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    answer["total"]["count"].as_u64().expect("a count")
}

/// A series is known from its first event on.
async fn until_known(client: &reqwest::Client, analytics: &str) {
    let (url, end) = (
        format!("{analytics}/v1/series/names"),
        Instant::now() + DEADLINE,
    );
    loop {
        let answer = client.get(&url).send().await.expect("an answer");
        if answer.text().await.expect("a body").contains("event_type") {
            return;
        }
        assert!(Instant::now() < end, "no series");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_served(client: &reqwest::Client, analytics: &str, count: u64) {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = served(client, analytics).await;
        if found == count {
            return;
        }
        assert!(Instant::now() < end, "{found} of {count}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The ledger once it covers so many offsets.
async fn until_covered(client: &reqwest::Client, analytics: &str, offsets: u64) -> Value {
    let (url, end) = (
        format!("{analytics}/v1/ledger?check_store=true"),
        Instant::now() + DEADLINE,
    );
    loop {
        let answer = client.get(&url).send().await.expect("an answer");
        let ledger: Value = answer.json().await.expect("JSON");
        if ledger["total"]["head"] == offsets {
            return ledger;
        }
        assert!(Instant::now() < end, "{ledger}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Audits until the rows of this generation are those that answer; every audit on the way must balance.
fn audited(audit: impl Fn() -> (i32, Value, String), generation: u64) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let (code, found, said) = audit();
        assert_eq!(
            (code, &found["balanced"]),
            (0, &Value::Bool(true)),
            "{found} {said}"
        );
        if found["aggregates"]["rebuilt"]["generation"] == generation {
            return found;
        }
        assert!(Instant::now() < end, "{found}");
    }
}

/// Somebody who asks all the while, and is never left without an answer nor answered less than before.
struct Asking {
    done: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Asking {
    fn start(analytics: &str) -> Self {
        let (done, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let task = tokio::spawn({
            let (client, analytics) = (client(), analytics.to_owned());
            let (done, asked) = (Arc::clone(&done), Arc::clone(&asked));
            async move {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let count = served(&client, &analytics).await;
                    assert!(count >= last, "{count} after {last}");
                    last = count;
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { done, asked, task }
    }

    /// Ends it; returns how many answers there were.
    async fn end(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.task.await.expect("every query was answered");
        self.asked.load(Ordering::Relaxed)
    }
}

/// The system's store, as another process opens it.
fn store_of(system: &System) -> Arc<dyn Store> {
    let config = StoreConfig {
        url: system.store_url().into(),
        connections_max: 1,
        ..StoreConfig::default()
    };
    store::open(&config).expect("a store")
}

/// Adds events that never were to the first bucket of a series and a length, as an instance of the service would write
/// them; returns its key.
async fn corrupt(system: &System, series: &str, tier_s: i64, count: u64) -> String {
    let store = store_of(system);
    let slot = store.served().await.expect("served");
    let end = Instant::now() + DEADLINE;
    loop {
        let mut rows = store.slots().snapshot(slot).await.expect("a snapshot");
        let state = rows.state().clone();
        let page = rows.buckets(None, 100_000).await.expect("a page");
        drop(rows);
        let mut wanted = page
            .iter()
            .filter(|row| *row.series == *series && row.tier_s == tier_s);
        let mut row = wanted.next().expect("a bucket").clone();
        row.value = CellValue::default();
        row.value.count = count;
        let key = row.key.to_string();
        let write = CheckpointWrite {
            slot,
            from: state.generation,
            to: random_name(),
            positions: state.positions,
            buckets: vec![row],
            users: Vec::new(),
        };
        // The running service may have been first.
        if store.checkpoint(&write).await.expect("written") == Swapped::Done {
            store.close().await;
            return key;
        }
        assert!(Instant::now() < end, "always overtaken");
    }
}

#[test]
fn what_cannot_be_rebuilt_is_said_before_anything_is_done() {
    let state = tempfile::tempdir().expect("a folder");
    let output = binary(state.path())
        .current_dir(state.path())
        .args(["rebuild", "--dry-run"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("there is no store at") && said.contains("--data-dir"),
        "{said}"
    );
    assert!(!state.path().join("data").exists(), "nothing was made");
}
