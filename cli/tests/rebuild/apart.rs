//! Services apart on a log that keeps little: what it has lost is taken from the batches that counted it, or is left out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_tests::process::free_port;
use tempfile::TempDir;

use super::*;

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
    until_covered(&client, &format!("http://{}", apart.analytics), sent).await;
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
        until_covered(&client, &format!("http://{}", apart.analytics), sent).await;
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
