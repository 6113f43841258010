//! A whole system under test, in one process or in three, and the questions that tests ask it.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;
use streamgauge_kafka::KafkaConfig;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    oracle::Expected,
    process::{Process, binary, free_port},
};

/// Longest wait for a system to be ready, starts of a cold Kafka group included.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for an answer to become what it must be.
const SETTLE_DEADLINE: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Where a system keeps its log and its store.
enum Environment {
    /// The embedded log and SQLite, everything in one process.
    Embedded,
    /// Kafka and PostgreSQL, one process per service.
    Stack { brokers: String, database: String },
}

impl Environment {
    /// As the variables say; each system gets a database of its own.
    fn detect(id: &str) -> Self {
        let brokers = std::env::var("STREAMGAUGE_TEST_BROKERS");
        let postgres = std::env::var("STREAMGAUGE_TEST_POSTGRES_URL");
        let (Ok(brokers), Ok(postgres)) = (brokers, postgres) else {
            return Self::Embedded;
        };
        let name = format!("test_{id}");
        let created = Command::new("psql")
            .args([
                postgres.as_str(),
                "-q",
                "-c",
                &format!("CREATE DATABASE {name}"),
            ])
            .status();
        assert!(
            created.expect("psql runs").success(),
            "the database {name} cannot be created"
        );
        let (server, _) = postgres
            .rsplit_once('/')
            .expect("a database URL names a database");
        Self::Stack {
            brokers,
            database: format!("{server}/{name}"),
        }
    }
}

/// Ports of one system; they stay the same over restarts.
#[derive(Clone, Copy)]
struct Ports {
    producer: [u16; 2],
    consumer: [u16; 2],
    analytics: [u16; 2],
    broker: u16,
    /// Health and metrics of a log that runs alone.
    broker_http: u16,
}

impl Ports {
    fn free() -> Self {
        Self {
            producer: [free_port(), free_port()],
            consumer: [free_port(), free_port()],
            analytics: [free_port(), free_port()],
            broker: free_port(),
            broker_http: free_port(),
        }
    }
}

/// The topics of one system; several share a Kafka.
#[derive(Clone)]
struct Topics {
    events: String,
    metrics: String,
    dead_letters: String,
}

impl Topics {
    fn usual() -> Self {
        Self {
            events: String::from("analytics-events"),
            metrics: String::from("metrics-data"),
            dead_letters: String::from("analytics-events.dlq"),
        }
    }

    fn of(id: &str) -> Self {
        Self {
            events: format!("events-{id}"),
            metrics: format!("metrics-{id}"),
            dead_letters: format!("dead-{id}"),
        }
    }
}

/// A system under test. Dropping it kills its processes.
pub struct System {
    /// Its processes, in the order in which data flows.
    pub processes: Vec<Process>,
    ports: Ports,
    folder: TempDir,
    client: reqwest::Client,
    brokers: String,
    topics: Topics,
    database: Option<String>,
    /// As it was started with them.
    settings: Vec<String>,
}

impl System {
    /// Starts a system with a log and a store of its own and waits until it is ready. `settings`
    /// are `SERVICE.KEY=VALUE`, or `each.KEY=VALUE` for what one process sets once and three set
    /// each.
    pub async fn start(settings: &[&str]) -> Self {
        let ports = Ports::free();
        let folder = tempfile::tempdir().expect("a folder can be made");
        let id = format!("{}_{}", std::process::id(), ports.producer[0]);
        let environment = Environment::detect(&id);
        let topics = match environment {
            Environment::Embedded => Topics::usual(),
            Environment::Stack { .. } => Topics::of(&id),
        };
        let processes = match &environment {
            Environment::Embedded => {
                let arguments = embedded(&ports, folder.path(), settings);
                vec![Process::start("up", arguments, folder.path())]
            }
            Environment::Stack { brokers, database } => ["producer", "consumer", "analytics"]
                .map(|service| {
                    let mut arguments = service_arguments(service, &ports, &topics, settings);
                    set(&mut arguments, "kafka.brokers", brokers);
                    if service == "analytics" {
                        set(&mut arguments, "store.url", database);
                    }
                    Process::start(service, arguments, folder.path())
                })
                .into(),
        };
        let (brokers, database) = match environment {
            Environment::Embedded => (local(ports.broker), None),
            Environment::Stack { brokers, database } => (brokers, Some(database)),
        };
        let mut system = Self::over(processes, ports, folder, brokers, topics).await;
        system.database = database;
        system.settings = owned(settings);
        system
    }

    /// As [`System::start`], on the embedded log and SQLite, with a process for the log and one for each service, so
    /// that each can be killed by itself.
    pub async fn start_apart(settings: &[&str]) -> Self {
        let ports = Ports::free();
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (brokers, topics) = (local(ports.broker), Topics::usual());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut arguments = vec![String::from("broker")];
        set(&mut arguments, "broker.listen", &brokers);
        set(&mut arguments, "http.listen", &local(ports.broker_http));
        set(&mut arguments, "broker.data_dir", &path("log"));
        let mut processes = vec![Process::start("broker", arguments, folder.path())];
        for service in ["producer", "consumer", "analytics"] {
            let mut arguments = service_arguments(service, &ports, &topics, settings);
            set(&mut arguments, "kafka.brokers", &brokers);
            match service {
                "producer" => {
                    set(&mut arguments, "spool.enabled", "true");
                    set(&mut arguments, "spool.dir", &path("spool"));
                }
                "analytics" => {
                    let url = format!("sqlite:{}", path("analytics.db"));
                    set(&mut arguments, "store.url", &url);
                }
                _ => {}
            }
            processes.push(Process::start(service, arguments, folder.path()));
        }
        let mut system = Self::over(processes, ports, folder, brokers, topics).await;
        system.settings = owned(settings);
        system
    }

    /// A system of processes that were just started, once it is ready.
    async fn over(
        processes: Vec<Process>,
        ports: Ports,
        folder: TempDir,
        brokers: String,
        topics: Topics,
    ) -> Self {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .build()
            .expect("a client without TLS can be built");
        let mut system = Self {
            processes,
            ports,
            folder,
            client,
            brokers,
            topics,
            database: None,
            settings: Vec::new(),
        };
        system.ready().await;
        system
    }

    /// The process of this name.
    pub fn process(&mut self, name: &str) -> &mut Process {
        let mut processes = self.processes.iter_mut();
        let process = processes.find(|process| process.name() == name);
        process.expect("a process of this system")
    }

    /// The producer's base URL.
    pub fn producer(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.producer[0])
    }

    /// The analytics service's base URL.
    pub fn analytics(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.analytics[0])
    }

    /// The producer's gRPC endpoint.
    pub fn producer_grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.producer[1])
    }

    /// The analytics service's gRPC endpoint.
    pub fn analytics_grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.analytics[1])
    }

    /// The consumer's base URL.
    pub fn consumer(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.consumer[0])
    }

    /// The base URL of the embedded log; none where it has no process of its own.
    pub fn log(&self) -> Option<String> {
        let alone = self.processes.iter().any(|one| one.name() == "broker");
        alone.then(|| format!("http://127.0.0.1:{}", self.ports.broker_http))
    }

    /// The system's own folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to reach the system's log.
    pub fn kafka(&self) -> KafkaConfig {
        KafkaConfig {
            brokers: self.brokers.clone(),
            ..KafkaConfig::default()
        }
    }

    /// Its PostgreSQL; none where it keeps its figures in SQLite.
    pub fn database_url(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// Where it keeps its figures, as the settings name it.
    pub fn store_url(&self) -> String {
        let file = match self.is_one() {
            true => "data/analytics.db",
            false => "analytics.db",
        };
        let path = self.folder.path().join(file);
        let database = self.database.clone();
        database.unwrap_or_else(|| format!("sqlite:{}", path.display()))
    }

    /// Whether one process is all of it.
    fn is_one(&self) -> bool {
        self.processes.iter().any(|one| one.name() == "up")
    }

    /// The topic that carries this system's events.
    pub fn events_topic(&self) -> &str {
        &self.topics.events
    }

    /// The topic that carries this system's delta batches.
    pub fn metrics_topic(&self) -> &str {
        &self.topics.metrics
    }

    /// Waits until every service says that it is ready.
    pub async fn ready(&mut self) {
        let end = Instant::now() + READY_DEADLINE;
        for url in [self.producer(), self.consumer(), self.analytics()] {
            while !self.answers_ok(&format!("{url}/readyz")).await {
                for process in &mut self.processes {
                    assert!(
                        process.is_running(),
                        "{} ended:\n{}",
                        process.name(),
                        process.tail()
                    );
                }
                assert!(
                    Instant::now() < end,
                    "{url} is not ready after {READY_DEADLINE:?}"
                );
                tokio::time::sleep(POLL).await;
            }
        }
    }

    async fn answers_ok(&self, url: &str) -> bool {
        self.client
            .get(url)
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 200)
    }

    /// The JSON that a URL answers; `Null` when it does not.
    pub async fn get(&self, url: &str) -> Value {
        match self.client.get(url).send().await {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }

    /// Waits until the ledger has counted so many events and covers all of the log; returns it.
    pub async fn settled(&self, counted: u64) -> Value {
        self.settled_with(counted, 0).await
    }

    /// As [`System::settled`], with so many dead letters beside.
    pub async fn settled_with(&self, counted: u64, dead_lettered: u64) -> Value {
        let end = Instant::now() + SETTLE_DEADLINE;
        loop {
            let ledger = self.get(&format!("{}/v1/ledger", self.analytics())).await;
            let total = &ledger["total"];
            let found = number(&total["counted"]);
            assert!(
                found <= counted,
                "{found} counted where {counted} were sent: {ledger}"
            );
            let covered = ledger["partitions"].as_array().is_some_and(|partitions| {
                partitions
                    .iter()
                    .all(|one| one["head"] == one["source_end"])
            });
            let dead = number(&total["dead_lettered"]);
            if found == counted && dead == dead_lettered && covered {
                return ledger;
            }
            assert!(
                Instant::now() < end,
                "not settled after {SETTLE_DEADLINE:?}: {ledger}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for the load to be counted and compares every figure with the oracle's.
    pub async fn agrees_with(&self, expected: &Expected) {
        let ledger = self.settled(expected.events).await;
        assert_eq!(ledger["balanced"], true, "{ledger}");
        assert_eq!(number(&ledger["total"]["missing"]), 0, "{ledger}");
        assert_eq!(number(&ledger["total"]["dead_lettered"]), 0, "{ledger}");
        let url = format!("{}/v1/top?by=page_url&last=1d&limit=1000", self.analytics());
        let top = self.get(&url).await;
        let found: std::collections::BTreeMap<String, u64> = top["entries"]
            .as_array()
            .unwrap_or_else(|| panic!("no entries: {top}"))
            .iter()
            .map(|entry| {
                let page = entry["key"][0].as_str().expect("pages are text").to_owned();
                (page, number(&entry["value"]["count"]))
            })
            .collect();
        assert_eq!(found, expected.pages);
        for ((user, page), count) in expected.users.iter().step_by(expected.users.len() / 20 + 1) {
            let url = format!(
                "{}/analytics/events?user_id={user}&page_url={page}",
                self.analytics()
            );
            let answer = self.get(&url).await;
            assert_eq!(
                number(&answer["count"]),
                *count,
                "{user} on {page}: {answer}"
            );
        }
    }

    /// Runs a command of the command line against this system; returns its exit code and output.
    pub fn command(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.client(arguments).output().expect("the binary starts");
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code().unwrap_or(-1), text.concat())
    }

    /// A rebuild of this system's figures, not run yet: by the settings that it was started with, before which these go.
    pub fn rebuild(&self, settings: &[&str], arguments: &[&str]) -> Command {
        let mut command = self.client(&["rebuild"]);
        let started_with = self.settings.iter().map(String::as_str);
        let settings = started_with.chain(settings.iter().copied());
        if self.is_one() {
            let data = self.folder.path().join("data");
            command.arg("--data-dir").arg(data);
            for setting in settings {
                let own = setting.strip_prefix("each.").unwrap_or(setting);
                variable(&mut command, "UP", own);
            }
        } else {
            command.arg("--separate");
            let Topics {
                events,
                metrics,
                dead_letters,
            } = &self.topics;
            let (brokers, url) = (&self.brokers, self.store_url());
            for service in ["CONSUMER", "ANALYTICS"] {
                variable(&mut command, service, &format!("kafka.brokers={brokers}"));
                variable(&mut command, service, &format!("topics.events={events}"));
                variable(&mut command, service, &format!("topics.metrics={metrics}"));
            }
            let letters = format!("topics.dead_letters={dead_letters}");
            variable(&mut command, "CONSUMER", &letters);
            variable(&mut command, "ANALYTICS", &format!("store.url={url}"));
            for setting in settings {
                let (service, own) = setting.split_once('.').expect("SERVICE.KEY=VALUE");
                match service {
                    "consumer" => variable(&mut command, "CONSUMER", own),
                    "analytics" => variable(&mut command, "ANALYTICS", own),
                    "each" => {
                        variable(&mut command, "CONSUMER", own);
                        variable(&mut command, "ANALYTICS", own);
                    }
                    _ => {}
                }
            }
        }
        command.args(arguments);
        command
    }

    /// A command of the command line that reaches this system, not run yet.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let [producer_http, producer_grpc] = self.ports.producer.map(local);
        let [consumer_http, consumer_grpc] = self.ports.consumer.map(local);
        let [analytics_http, analytics_grpc] = self.ports.analytics.map(local);
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env("STREAMGAUGE_ENDPOINT_PRODUCER_HTTP", producer_http)
            .env("STREAMGAUGE_ENDPOINT_PRODUCER_GRPC", producer_grpc)
            .env("STREAMGAUGE_ENDPOINT_CONSUMER_HTTP", consumer_http)
            .env("STREAMGAUGE_ENDPOINT_CONSUMER_GRPC", consumer_grpc)
            .env("STREAMGAUGE_ENDPOINT_ANALYTICS_HTTP", analytics_http)
            .env("STREAMGAUGE_ENDPOINT_ANALYTICS_GRPC", analytics_grpc)
            .env("STREAMGAUGE_ENDPOINT_BROKERS", &self.brokers)
            .env("STREAMGAUGE_AUDIT_TOPICS__EVENTS", &self.topics.events)
            .env("STREAMGAUGE_AUDIT_TOPICS__METRICS", &self.topics.metrics)
            .env(
                "STREAMGAUGE_AUDIT_TOPICS__DEAD_LETTERS",
                &self.topics.dead_letters,
            )
            .env("XDG_STATE_HOME", self.folder.path());
        command
    }
}

/// Sets `KEY=VALUE` of a service by its variable.
fn variable(command: &mut Command, service: &str, setting: &str) {
    let (key, value) = setting.split_once('=').expect("KEY=VALUE");
    let name = key.to_ascii_uppercase().replace('.', "__");
    command.env(format!("STREAMGAUGE_{service}_{name}"), value);
}

fn owned(settings: &[&str]) -> Vec<String> {
    settings.iter().map(|one| String::from(*one)).collect()
}

/// A count as JSON carries it: a number, or text where 64 bits do not fit a double.
pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .unwrap_or(0)
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn set(arguments: &mut Vec<String>, key: &str, value: &str) {
    arguments.extend([String::from("--set"), format!("{key}={value}")]);
}

fn embedded(ports: &Ports, folder: &Path, settings: &[&str]) -> Vec<String> {
    let mut arguments = vec![String::from("up"), String::from("--data-dir")];
    arguments.push(folder.join("data").display().to_string());
    for (service, [http, grpc]) in services(ports) {
        set(
            &mut arguments,
            &format!("{service}.http.listen"),
            &local(http),
        );
        set(
            &mut arguments,
            &format!("{service}.grpc.listen"),
            &local(grpc),
        );
    }
    set(&mut arguments, "broker.listen", &local(ports.broker));
    // Unless a test asks for it: every figure is the test's own.
    set(&mut arguments, "analytics.canary.enabled", "false");
    for setting in settings {
        let own = setting.strip_prefix("each.").unwrap_or(setting);
        arguments.extend([String::from("--set"), own.to_owned()]);
    }
    arguments
}

fn services(ports: &Ports) -> [(&'static str, [u16; 2]); 3] {
    [
        ("producer", ports.producer),
        ("consumer", ports.consumer),
        ("analytics", ports.analytics),
    ]
}

fn service_arguments(
    service: &str,
    ports: &Ports,
    topics: &Topics,
    settings: &[&str],
) -> Vec<String> {
    let mut arguments = vec![service.to_owned()];
    let listen = services(ports)
        .into_iter()
        .find(|(name, _)| *name == service);
    let (_, [http, grpc]) = listen.expect("one of the three");
    set(&mut arguments, "http.listen", &local(http));
    set(&mut arguments, "grpc.listen", &local(grpc));
    set(&mut arguments, "topics.events", &topics.events);
    if service != "analytics" {
        set(&mut arguments, "topics.partitions", "4");
    }
    if service != "producer" {
        set(&mut arguments, "topics.metrics", &topics.metrics);
    }
    match service {
        "consumer" => {
            set(&mut arguments, "topics.dead_letters", &topics.dead_letters);
            set(&mut arguments, "group.group", &topics.events);
        }
        "analytics" => {
            let [http, grpc] = ports.producer;
            set(&mut arguments, "topics.group", &topics.events);
            set(&mut arguments, "canary.producer_http", &local(http));
            set(&mut arguments, "canary.producer_grpc", &local(grpc));
        }
        _ => {}
    }
    for setting in settings {
        let own = setting
            .strip_prefix(&format!("{service}."))
            .or_else(|| setting.strip_prefix("each."));
        if let Some(own) = own {
            arguments.extend([String::from("--set"), own.to_owned()]);
        }
    }
    arguments
}
