//! A rebuild beside a running system, as its user meets it: figures are compared, a wrong one is named and mended, events
//! go on flowing, and no query is left without an answer.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Up, binary};
use serde_json::Value;
use streamgauge_analytics::{
    checkpoint::random_name,
    store::{CheckpointWrite, Durability, SqliteStore, Store, Swapped},
    view::CellValue,
};
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_tests::process::free_port;
use tempfile::TempDir;

/// Longest wait for a condition.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a command: its exit code, its document, and what it said beside.
fn ran(command: &mut Command) -> (i32, Value, String) {
    let output = command.output().expect("it runs");
    let code = output.status.code().expect("an exit code");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (code, document, said)
}

impl Up {
    /// A command that talks to it: its exit code and its document.
    fn run(&self, arguments: &[&str]) -> (i32, Value, String) {
        ran(&mut self.command(arguments))
    }

    fn rebuild(&self, arguments: &[&str]) -> (i32, Value, String) {
        self.rebuild_by(&[], arguments)
    }

    /// As the settings `KEY=VALUE` judge, instead of those that it was started with.
    fn rebuild_by(&self, settings: &[&str], arguments: &[&str]) -> (i32, Value, String) {
        let data = format!("--data-dir={}", self.data().display());
        let mut command = self.command(&[&["rebuild", "--json", &data], arguments].concat());
        for setting in settings {
            let (key, value) = setting.split_once('=').expect("KEY=VALUE");
            let name = key.to_ascii_uppercase().replace('.', "__");
            command.env(format!("STREAMGAUGE_UP_{name}"), value);
        }
        ran(&mut command)
    }

    #[track_caller]
    fn sends(&self, count: u64, seed: u64) {
        let (count, seed) = (format!("--count={count}"), format!("--seed={seed}"));
        let arguments = ["send-events", "--json", "--span=30m", &count, &seed];
        let (code, sent, said) = self.run(&arguments);
        assert_eq!(code, 0, "{sent} {said}");
    }
}

/// One in which swaps are noticed soon, checkpoints come often, and every query needs the store.
fn start() -> Up {
    Up::start(&[
        "analytics.store.swap_poll_ms=50",
        "analytics.checkpoint.interval_ms=200",
        "analytics.view.recent_seconds=0",
    ])
}

/// How many events the store answers for.
async fn served(client: &reqwest::Client, http: &str) -> u64 {
    let url = format!("http://{http}/v1/top?by=event_type&last=40m");
    let response = client.get(url).send().await.expect("an answer");
    let status = response.status();
    let body = response.text().await.expect("a body");
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    answer["total"]["count"].as_u64().expect("a count")
}

/// A series is known from its first event on.
async fn until_known(client: &reqwest::Client, http: &str) {
    let (url, end) = (
        format!("http://{http}/v1/series/names"),
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

async fn until_served(client: &reqwest::Client, http: &str, count: u64) {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = served(client, http).await;
        if found == count {
            return;
        }
        assert!(Instant::now() < end, "{found} of {count}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Adds events that never were to the first bucket of a series and a length, as an instance of the service would write
/// them; returns its key.
async fn corrupt(up: &Up, series: &str, tier_s: i64, count: u64) -> String {
    let path = up.data().join("analytics.db");
    let store = SqliteStore::new(path, Durability::Normal, 1);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_running_system_is_rebuilt_while_it_counts_and_answers() {
    let up = Arc::new(start());
    let http = up.endpoints["analytics"]["http"]
        .as_str()
        .expect("an address");
    let client = reqwest::Client::new();
    up.sends(3_000, 1);
    // The same ids again: duplicates, then as now.
    up.sends(1_000, 1);
    until_known(&client, http).await;
    until_served(&client, http, 3_000).await;

    let (code, found, said) = up.rebuild(&["--dry-run"]);
    assert_eq!(
        (code, &found["equal"]),
        (0, &Value::Bool(true)),
        "{found} {said}"
    );
    assert_eq!(found["ending"], "dry_run");
    assert!(
        found["total"]["rows"].as_u64().expect("rows") > 1_000,
        "{found}"
    );
    for partition in found["partitions"].as_array().expect("partitions") {
        assert_eq!(partition["ledger"], partition["rebuilt"], "{partition}");
    }

    let key = corrupt(&up, "page_url", 1, 9).await;
    for (arguments, ending) in [(&["--dry-run"][..], "dry_run"), (&[], "refused")] {
        let (code, found, said) = up.rebuild(arguments);
        assert_eq!(
            (code, &found["ending"]),
            (1, &ending.into()),
            "{found} {said}"
        );
        assert_eq!(found["total"]["differing"], 1, "{found}");
        let named = &found["differences"][0];
        assert_eq!(named["at"]["key"].to_string(), key, "{found}");
        let (before, after) = (&named["served"]["count"], &named["rebuilt"]["count"]);
        assert_eq!(before.as_u64(), after.as_u64().map(|count| count + 9));
    }

    // Events flow and queries are asked all the while; `served` fails on any answer but a good one.
    let (done, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let asking = tokio::spawn({
        let (client, http) = (client.clone(), http.to_owned());
        let (done, asked) = (Arc::clone(&done), Arc::clone(&asked));
        async move {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let count = served(&client, &http).await;
                assert!(count >= last, "{count} after {last}");
                last = count;
                asked.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let sending = tokio::task::spawn_blocking({
        let up = Arc::clone(&up);
        move || (2..6).for_each(|seed| up.sends(500, seed))
    });
    let (code, found, said) = tokio::task::spawn_blocking({
        let up = Arc::clone(&up);
        move || up.rebuild(&["--accept"])
    })
    .await
    .expect("no panic");
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    sending.await.expect("sent");
    until_served(&client, http, 5_000).await;
    // Until the rows that were swapped in are those that answer.
    let end = Instant::now() + DEADLINE;
    loop {
        let (code, found, said) = up.rebuild(&["--dry-run"]);
        if code == 0 {
            break;
        }
        assert!(Instant::now() < end, "{found} {said}");
    }
    done.store(true, Ordering::Relaxed);
    asking.await.expect("every query was answered");
    assert!(asked.load(Ordering::Relaxed) > 20);

    let (code, audit, said) = up.run(&["audit", "--json"]);
    assert_eq!(
        (code, &audit["balanced"]),
        (0, &Value::Bool(true)),
        "{audit} {said}"
    );
    let (code, _, said) = up.rebuild(&["--prune"]);
    assert_eq!(code, 0, "{said}");
    until_served(&client, http, 5_000).await;
}

/// The ledger once it covers so many offsets.
async fn until_covered(client: &reqwest::Client, http: &str, offsets: u64) -> Value {
    let (url, end) = (
        format!("http://{http}/v1/ledger?check_store=true"),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn figures_that_were_judged_otherwise_balance_and_are_told() {
    let up = Up::start(&[
        "analytics.store.swap_poll_ms=50",
        "analytics.checkpoint.interval_ms=200",
        "consumer.events.accepted_age_hours=1",
    ]);
    let http = up.endpoints["analytics"]["http"].as_str().expect("a text");
    let client = reqwest::Client::new();
    let sends = |count: &str, seed: &str| {
        let arguments = [
            "send-events",
            "--json",
            "--span=3h",
            "--count",
            count,
            "--seed",
            seed,
        ];
        let (code, sent, said) = up.run(&arguments);
        assert_eq!(code, 0, "{sent} {said}");
    };
    let audit = || up.run(&["audit", "--json"]);
    sends("900", "1");
    let ledger = until_covered(&client, http, 900).await;
    let late = ledger["total"]["late"].as_i64().expect("a number");
    assert!(late > 300, "{ledger}");
    let (code, found, said) = audit();
    assert_eq!(code, 0, "{found} {said}");
    assert!(found["aggregates"]["rebuilt"].is_null(), "{found}");

    let longer = ["consumer.events.accepted_age_hours=168"];
    let (code, found, said) = up.rebuild_by(&longer, &[]);
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    let found = audited(audit, 1);
    let shift = &found["aggregates"]["rebuilt"];
    assert_eq!(
        (&shift["counted"], &shift["late"]),
        (&late.into(), &(-late).into()),
        "{found}"
    );
    // What comes afterwards is judged by the system alone, and the rows take it in as the chains do.
    sends("300", "2");
    let ledger = until_covered(&client, http, 1_200).await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    let line = format!("rebuilt: {late} counted more, {late} late less, since generation 1");
    let remarks = ledger["remarks"].as_array().expect("a list");
    assert!(remarks.contains(&line.clone().into()), "{ledger}");
    assert_eq!(audited(audit, 1)["aggregates"]["rebuilt"], *shift);
    let output = up.command(&["audit"]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().any(|said| said == line), "{text}");

    // Whoever damages the rows afterwards is found out all the same.
    corrupt(&up, "all", 86_400, 5).await;
    let end = Instant::now() + DEADLINE;
    let found = loop {
        let (code, found, _) = audit();
        if code == 1 {
            break found;
        }
        assert!(Instant::now() < end, "{found}");
    };
    let named = &found["breaks"][0];
    assert_eq!(
        (&named["what"], &named["by"]),
        (&"aggregates".into(), &5.into()),
        "{found}"
    );
    // Judged as the system does, nothing is left of it.
    let (code, found, said) =
        up.rebuild_by(&["consumer.events.accepted_age_hours=1"], &["--accept"]);
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    let end = Instant::now() + DEADLINE;
    while audit().1["aggregates"]["rebuilt"]["generation"] != 2 {
        assert!(Instant::now() < end);
    }
    let found = audited(audit, 2);
    assert_eq!(found["aggregates"]["rebuilt"]["counted"], 0, "{found}");
    let output = up.command(&["audit"]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("rebuilt:"), "{text}");
}

/// The services of a system as processes of their own, on a log whose source keeps little.
struct Apart {
    services: Vec<Child>,
    folder: TempDir,
    producer: String,
    analytics: String,
    analytics_grpc: String,
    brokers: String,
}

/// Ids are remembered for so little log time that a short history holds several horizons.
const CONSUMER: &str =
    "[dedupe]\nhorizon_ms = 400\n[topics]\npartitions = 2\n[batch]\nwait_ms = 20\n";

impl Apart {
    fn start(brokers: String) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut apart = Self {
            services: Vec::new(),
            folder,
            producer: format!("127.0.0.1:{}", free_port()),
            analytics: format!("127.0.0.1:{}", free_port()),
            analytics_grpc: format!("127.0.0.1:{}", free_port()),
            brokers,
        };
        let analytics = format!(
            "[store]\nurl = \"sqlite:{}\"\nswap_poll_ms = 50\n[checkpoint]\ninterval_ms = 200\n[view]\nrecent_seconds = 0\n",
            apart.path("analytics.db").display()
        );
        fs::write(apart.path("consumer.toml"), CONSUMER).expect("written");
        fs::write(apart.path("analytics.toml"), analytics).expect("written");
        let (producer, http) = (apart.producer.clone(), apart.analytics.clone());
        let anywhere = "127.0.0.1:0";
        let grpc = apart.analytics_grpc.clone();
        let partitions = ["--set", "topics.partitions=2"];
        apart.service("producer", [&producer, anywhere], &partitions);
        let consumer = apart.path("consumer.toml").display().to_string();
        apart.service("consumer", [anywhere; 2], &["--config", &consumer]);
        let analytics = apart.path("analytics.toml").display().to_string();
        apart.service("analytics", [&http, &grpc], &["--config", &analytics]);
        apart
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn service(&mut self, name: &str, [http, grpc]: [&str; 2], arguments: &[&str]) {
        let notes = fs::File::create(self.path(&format!("{name}.log"))).expect("a file");
        let set = |key: &str, value: &str| format!("{key}={value}");
        let child = binary(self.folder.path())
            .arg(name)
            .args(["--set", &set("kafka.brokers", &self.brokers)])
            .args(["--set", &set("http.listen", http)])
            .args(["--set", &set("grpc.listen", grpc)])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(notes)
            .spawn()
            .expect("the binary starts");
        self.services.push(child);
    }

    fn run(&self, arguments: &[&str]) -> (i32, Value, String) {
        ran(binary(self.folder.path()).args(arguments))
    }

    fn rebuild(&self, arguments: &[&str]) -> (i32, Value, String) {
        let consumer = format!("--consumer-config={}", self.path("consumer.toml").display());
        let analytics = format!(
            "--analytics-config={}",
            self.path("analytics.toml").display()
        );
        let brokers = format!("--brokers={}", self.brokers);
        let own = [
            "rebuild",
            "--json",
            "--separate",
            &consumer,
            &analytics,
            &brokers,
        ];
        self.run(&[&own[..], arguments].concat())
    }

    #[track_caller]
    fn sends(&self, count: u64, seed: u64) {
        let (count, seed) = (format!("--count={count}"), format!("--seed={seed}"));
        let to = format!("--producer-http={}", self.producer);
        let arguments = [
            "send-events",
            "--json",
            "--http",
            "--span=30m",
            &to,
            &count,
            &seed,
        ];
        let (code, sent, said) = self.run(&arguments);
        assert_eq!(code, 0, "{sent} {said}");
    }

    /// What the services wrote.
    fn notes(&self) -> String {
        let read = |name| fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        ["producer", "consumer", "analytics"].map(read).concat()
    }

    async fn until_ready(&self, client: &reqwest::Client) {
        for address in [&self.producer, &self.analytics] {
            let url = format!("http://{address}/readyz");
            let end = Instant::now() + DEADLINE;
            loop {
                match client.get(&url).send().await {
                    Ok(answer) if answer.status() == 200 => break,
                    _ => assert!(Instant::now() < end, "{url}: {}", self.notes()),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for service in &mut self.services {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

/// A log that keeps little of these topics.
async fn forgetful(folder: &Path, topics: &[&str]) -> Broker {
    let broker = Broker::start(BrokerConfig {
        data_dir: folder.join("log"),
        listen: ([127, 0, 0, 1], 0).into(),
        ..Default::default()
    })
    .await
    .expect("a broker");
    for topic in ["analytics-events", "metrics-data", "analytics-events.dlq"] {
        let little: &[_] = match topics.contains(&topic) {
            true => &[("segment.bytes", "16384"), ("retention.bytes", "65536")],
            false => &[],
        };
        let settings = little
            .iter()
            .map(|(key, value)| (String::from(*key), String::from(*value)));
        let created = broker.create_topic_with(topic, 2, settings.collect()).await;
        created.expect("a topic");
    }
    broker
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_the_source_has_lost_is_taken_from_the_batches_that_counted_it() {
    let log = tempfile::tempdir().expect("a folder");
    let broker = forgetful(log.path(), &["analytics-events"]).await;
    let apart = Apart::start(broker.bootstrap());
    let client = reqwest::Client::new();
    apart.until_ready(&client).await;
    let mut sent = 0;
    for seed in 0..12 {
        apart.sends(400, seed);
        // Once more, at once: duplicates within the horizon, or events anew beyond it, then as now.
        apart.sends(100, seed);
        sent += 500;
        // What is left of the source must hold more log time than the horizon.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    until_covered(&client, &apart.analytics, sent).await;
    broker.enforce_retention().await.expect("enforced");

    let (code, found, said) = apart.rebuild(&["--dry-run"]);
    assert_eq!(
        (code, &found["equal"]),
        (0, &Value::Bool(true)),
        "{found} {said}"
    );
    let mut judged_again = 0;
    for partition in found["partitions"].as_array().expect("partitions") {
        let number = |name: &str| partition[name].as_i64().expect("a number");
        assert!(number("source_low") > 0, "{found}");
        assert!(
            number("from_deltas_below") >= number("source_low"),
            "{found}"
        );
        judged_again += number("head") - number("from_deltas_below");
        assert_eq!(partition["ledger"], partition["rebuilt"], "{partition}");
    }
    assert!(judged_again > 0, "{found}");
    let (code, found, said) = apart.rebuild(&[]);
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    apart.sends(300, 99);
    let end = Instant::now() + DEADLINE;
    while apart.rebuild(&["--dry-run"]).0 != 0 {
        assert!(Instant::now() < end);
    }
    drop(apart);
    broker.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_neither_topic_holds_is_left_out_where_that_is_accepted_and_the_books_balance() {
    let log = tempfile::tempdir().expect("a folder");
    let broker = forgetful(log.path(), &["analytics-events", "metrics-data"]).await;
    let apart = Apart::start(broker.bootstrap());
    let client = reqwest::Client::new();
    apart.until_ready(&client).await;
    let mut sent = 0;
    for seed in 0..8 {
        apart.sends(800, seed);
        sent += 800;
        until_covered(&client, &apart.analytics, sent).await;
    }
    broker.enforce_retention().await.expect("enforced");

    let (code, found, said) = apart.rebuild(&["--accept"]);
    assert_eq!(code, 2, "{found} {said}");
    assert!(said.contains("--from-truncated"), "{said}");
    let (code, found, said) = apart.rebuild(&["--from-truncated"]);
    assert_eq!(
        (code, &found["ending"]),
        (1, &"refused".into()),
        "{found} {said}"
    );
    let (code, found, said) = apart.rebuild(&["--from-truncated", "--accept"]);
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    let brokers = format!("--brokers={}", apart.brokers);
    let grpc = format!("--analytics-grpc={}", apart.analytics_grpc);
    let audit = || apart.run(&["audit", "--json", "--no-producers", &brokers, &grpc]);
    let told = audited(audit, 1);
    let shift = |name: &str| {
        told["aggregates"]["rebuilt"][name]
            .as_i64()
            .expect("a number")
    };
    let total = |of: &str| {
        let partitions = found["partitions"].as_array().expect("partitions");
        let counted = partitions.iter().map(|one| one[of]["counted"].as_i64());
        counted.map(|one| one.expect("a number")).sum::<i64>()
    };
    assert!(shift("counted") < -1_000, "{told}");
    assert_eq!(
        shift("counted"),
        total("rebuilt") - total("ledger"),
        "{told}"
    );
    drop(apart);
    broker.shutdown(Duration::from_secs(5)).await;
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
