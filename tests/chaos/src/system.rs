//! A system under test: real processes on real components, or one process that holds everything.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use streamgauge_kafka::{FetchConfig, KafkaConfig, LogReader};
use streamgauge_tests::{
    exposition,
    process::{Launch, Process, free_port},
};
use tempfile::TempDir;
use tokio::{process::Command, time::Instant};

use crate::{
    failure::Failure,
    stack::{PROXIED, Stack},
};

/// Partitions of each topic.
pub const PARTITIONS: i32 = 4;
/// Longest wait for a system to be ready at its start.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Longest wait for an answer of a service.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The processes that run, by name, with their ids; whoever measures them looks here.
pub type Pids = Arc<Mutex<BTreeMap<String, u32>>>;

/// What a system runs on.
pub enum Ground<'a> {
    /// Kafka and PostgreSQL, a process for each service.
    Stack {
        /// The components.
        stack: &'a Stack,
        /// These services reach Kafka through toxiproxy, by the listeners of [`PROXIED`].
        proxied: &'static [&'static str],
        /// The port by which analytics reaches PostgreSQL.
        postgres_port: u16,
    },
    /// `streamgauge up`, its data in this folder.
    Embedded {
        /// The data folder.
        data: PathBuf,
    },
}

/// What to start.
pub struct Blueprint<'a> {
    /// Names the system's topics, group and database.
    pub id: String,
    /// The binary.
    pub binary: PathBuf,
    /// `SERVICE.KEY=VALUE`, or `each.KEY=VALUE` for all.
    pub settings: Vec<String>,
    /// Variables of every process.
    pub environment: Vec<(String, String)>,
    /// What it runs on.
    pub ground: Ground<'a>,
}

/// The topics of one system.
#[derive(Clone, Debug)]
pub struct Topics {
    /// Events.
    pub events: String,
    /// Delta batches.
    pub metrics: String,
    /// Dead letters.
    pub dead_letters: String,
}

/// A system under test. Dropping it kills its processes.
pub struct System {
    processes: BTreeMap<String, Process>,
    /// HTTP and gRPC ports by process; of an embedded system, by service.
    ports: BTreeMap<String, [u16; 2]>,
    pids: Pids,
    folder: TempDir,
    client: reqwest::Client,
    binary: PathBuf,
    brokers: String,
    topics: Topics,
    /// How to start another consumer.
    consumer: Launch,
}

impl System {
    /// Starts a system and waits until it is ready.
    pub async fn start(blueprint: Blueprint<'_>) -> Result<Self, Failure> {
        let folder = TempDir::with_prefix(format!("chaos-{}-", blueprint.id));
        let folder = folder.map_err(Failure::io("a folder for logs"))?;
        let ports: BTreeMap<String, [u16; 2]> = PROXIED
            .map(|service| (service.to_owned(), [free_port(), free_port()]))
            .into();
        let embedded = matches!(blueprint.ground, Ground::Embedded { .. });
        let topics = if embedded {
            Topics::usual()
        } else {
            Topics::of(&blueprint.id)
        };
        let client = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build();
        let mut system = Self {
            processes: BTreeMap::new(),
            ports,
            pids: Pids::default(),
            folder,
            client: client.map_err(Failure::http("an HTTP client"))?,
            binary: blueprint.binary.clone(),
            brokers: String::new(),
            topics,
            consumer: Launch {
                binary: blueprint.binary.clone(),
                arguments: Vec::new(),
                environment: blueprint.environment.clone(),
            },
        };
        match &blueprint.ground {
            Ground::Embedded { data } => system.start_embedded(&blueprint, data),
            Ground::Stack {
                stack,
                proxied,
                postgres_port,
            } => {
                let database = stack.database(&blueprint.id, *postgres_port).await?;
                system.brokers = local(stack.kafka_port);
                system.start_services(&blueprint, stack, proxied, &database);
            }
        }
        for service in PROXIED {
            system.ready(service, READY_DEADLINE).await?;
        }
        Ok(system)
    }

    fn start_embedded(&mut self, blueprint: &Blueprint<'_>, data: &Path) {
        let mut arguments = vec![String::from("up"), String::from("--data-dir")];
        arguments.push(data.display().to_string());
        for (service, [http, grpc]) in &self.ports {
            set(
                &mut arguments,
                &format!("{service}.http.listen"),
                local(*http),
            );
            set(
                &mut arguments,
                &format!("{service}.grpc.listen"),
                local(*grpc),
            );
        }
        self.brokers = local(free_port());
        set(&mut arguments, "broker.listen", self.brokers.clone());
        // The run has a canary of its own, once the fault has healed.
        set(
            &mut arguments,
            "analytics.canary.enabled",
            String::from("false"),
        );
        for setting in &blueprint.settings {
            let own = setting.strip_prefix("each.").unwrap_or(setting);
            arguments.extend([String::from("--set"), own.to_owned()]);
        }
        self.launch("up", arguments, &blueprint.environment);
    }

    fn start_services(
        &mut self,
        blueprint: &Blueprint<'_>,
        stack: &Stack,
        proxied: &[&str],
        database: &str,
    ) {
        for (place, service) in PROXIED.into_iter().enumerate() {
            let mut arguments = self.service_arguments(service, &blueprint.settings);
            if service == "analytics" {
                set(&mut arguments, "store.url", database.to_owned());
            }
            if service == "consumer" {
                // One that comes later reaches Kafka straight.
                self.consumer.arguments.clone_from(&arguments);
                let brokers = self.brokers.clone();
                set(&mut self.consumer.arguments, "kafka.brokers", brokers);
            }
            let brokers = if proxied.contains(&service) {
                local(stack.kafka_proxies[place].1)
            } else {
                self.brokers.clone()
            };
            set(&mut arguments, "kafka.brokers", brokers);
            listen(&mut arguments, self.ports[service]);
            self.launch(service, arguments, &blueprint.environment);
        }
    }

    fn service_arguments(&self, service: &str, settings: &[String]) -> Vec<String> {
        let topics = &self.topics;
        let mut arguments = vec![service.to_owned()];
        set(&mut arguments, "topics.events", topics.events.clone());
        if service != "analytics" {
            set(&mut arguments, "topics.partitions", PARTITIONS.to_string());
        }
        if service != "producer" {
            set(&mut arguments, "topics.metrics", topics.metrics.clone());
        }
        match service {
            "consumer" => {
                let dead_letters = topics.dead_letters.clone();
                set(&mut arguments, "topics.dead_letters", dead_letters);
                set(&mut arguments, "group.group", topics.events.clone());
            }
            "analytics" => set(&mut arguments, "topics.group", topics.events.clone()),
            _ => {}
        }
        for setting in settings {
            let own = setting.strip_prefix(&format!("{service}."));
            if let Some(own) = own.or_else(|| setting.strip_prefix("each.")) {
                arguments.extend([String::from("--set"), own.to_owned()]);
            }
        }
        arguments
    }

    fn launch(&mut self, name: &str, arguments: Vec<String>, environment: &[(String, String)]) {
        let launch = Launch {
            binary: self.binary.clone(),
            arguments,
            environment: environment.to_vec(),
        };
        let process = Process::launch(name, launch, self.folder.path());
        self.processes.insert(name.to_owned(), process);
        self.note_pid(name);
    }

    /// Starts one more consumer, in the same group.
    pub fn add_consumer(&mut self, name: &str) {
        let ports = *self
            .ports
            .entry(name.to_owned())
            .or_insert_with(|| [free_port(), free_port()]);
        let mut arguments = self.consumer.arguments.clone();
        listen(&mut arguments, ports);
        let environment = self.consumer.environment.clone();
        self.launch(name, arguments, &environment);
    }

    /// A process by its name.
    pub fn process(&mut self, name: &str) -> &mut Process {
        self.processes
            .get_mut(name)
            .expect("a fault names processes of its own system")
    }

    /// The names of the processes.
    pub fn names(&self) -> Vec<String> {
        self.processes.keys().cloned().collect()
    }

    /// Kills a process with SIGKILL.
    pub fn kill(&mut self, name: &str) {
        self.process(name).kill();
        self.note_pid(name);
    }

    /// Starts a process that has ended.
    pub fn start_again(&mut self, name: &str) {
        self.process(name).start_again();
        self.note_pid(name);
    }

    /// Asks a process to drain and waits for its end; returns its exit code and how long it took.
    pub async fn terminate(&mut self, name: &str) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        let code = self.process(name).terminate().await;
        self.note_pid(name);
        (code, begun.elapsed())
    }

    fn note_pid(&mut self, name: &str) {
        let pid = self.processes.get(name).and_then(Process::pid);
        let mut pids = self.pids.lock().expect("no holder panics");
        match pid {
            Some(pid) => pids.insert(name.to_owned(), pid),
            None => pids.remove(name),
        };
    }

    /// Where the ids of the processes stand.
    pub fn pids(&self) -> Pids {
        Arc::clone(&self.pids)
    }

    /// Waits until a service is ready; returns how long that took.
    pub async fn ready(&self, name: &str, deadline: Duration) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let url = format!("{}/readyz", self.url(name));
        while !self.answers_ok(&url).await {
            if begun.elapsed() > deadline {
                let tail = self.processes.get(name).map(Process::tail);
                return Err(Failure::Unmet(format!(
                    "{name} is not ready after {deadline:?}\n{}",
                    tail.unwrap_or_default()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(begun.elapsed())
    }

    /// Whether a URL answers 200 now.
    pub async fn answers_ok(&self, url: &str) -> bool {
        let answer = self.client.get(url).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    /// A service's base URL.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}", self.http_address(name))
    }

    /// A service's HTTP address, `host:port`.
    pub fn http_address(&self, name: &str) -> String {
        local(self.http_port(name))
    }

    /// A service's gRPC address, `host:port`.
    pub fn grpc_address(&self, name: &str) -> String {
        local(self.ports[name][1])
    }

    /// A service's HTTP port.
    pub fn http_port(&self, name: &str) -> u16 {
        self.ports[name][0]
    }

    /// The JSON that analytics answers to a path.
    pub async fn ask(&self, path: &str) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.url("analytics"));
        let answer = self.client.get(&url).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let answer = answer.map_err(Failure::http(url.clone()))?;
        answer.json().await.map_err(Failure::http(url))
    }

    /// What a service tells on `/metrics` of the series of this name with these labels, in all.
    pub async fn metric(&self, service: &str, name: &str, labels: &str) -> Result<f64, Failure> {
        let url = format!("{}/metrics", self.url(service));
        let answer = self.client.get(&url).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let answer = answer.map_err(Failure::http(url.clone()))?;
        let text = answer.text().await.map_err(Failure::http(url))?;
        exposition::sum(&text, name, labels)
            .ok_or_else(|| Failure::Unmet(format!("{service} has no {name}{{{labels}}}")))
    }

    /// The system's topics.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The folder with the logs of the processes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to reach the system's log, past any proxy.
    pub fn kafka(&self) -> KafkaConfig {
        KafkaConfig {
            brokers: self.brokers.clone(),
            client_id: String::from("streamgauge-chaos"),
            request_timeout_ms: 5_000,
            statistics_interval_ms: 0,
            ..KafkaConfig::default()
        }
    }

    /// A reader of the system's log.
    pub fn reader(&self) -> Result<LogReader, Failure> {
        LogReader::new(&self.kafka(), &FetchConfig::default(), None)
            .map_err(Failure::kafka("a reader"))
    }

    /// Runs `streamgauge audit --json`; returns its exit code and what it said. It runs without the
    /// variables of the services, so that no mutation reaches it.
    pub async fn audit(&self) -> Result<(i32, Value), Failure> {
        let mut command = Command::new(&self.binary);
        command.args(["audit", "--json"]);
        for service in PROXIED {
            let name = service.to_uppercase();
            let [http, grpc] = self.ports[service].map(local);
            command.env(format!("STREAMGAUGE_ENDPOINT_{name}_HTTP"), http);
            command.env(format!("STREAMGAUGE_ENDPOINT_{name}_GRPC"), grpc);
        }
        let topics = &self.topics;
        command
            .env("STREAMGAUGE_ENDPOINT_BROKERS", &self.brokers)
            .env("STREAMGAUGE_AUDIT_TOPICS__EVENTS", &topics.events)
            .env("STREAMGAUGE_AUDIT_TOPICS__METRICS", &topics.metrics)
            .env(
                "STREAMGAUGE_AUDIT_TOPICS__DEAD_LETTERS",
                &topics.dead_letters,
            )
            .env("XDG_STATE_HOME", self.folder.path())
            .kill_on_drop(true);
        let output = command.output().await;
        let output = output.map_err(Failure::io("streamgauge audit"))?;
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let text = [output.stdout, output.stderr].concat();
            Value::String(String::from_utf8_lossy(&text).into_owned())
        });
        Ok((output.status.code().unwrap_or(-1), answer))
    }

    /// Copies the logs of the processes to a folder.
    pub fn keep_logs(&self, target: &Path) -> Result<(), Failure> {
        std::fs::create_dir_all(target).map_err(Failure::io(target.display().to_string()))?;
        for name in self.names() {
            let file = format!("{name}.log");
            let copied = std::fs::copy(self.folder.path().join(&file), target.join(&file));
            copied.map_err(Failure::io(format!("the log of {name}")))?;
        }
        Ok(())
    }
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

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn set(arguments: &mut Vec<String>, key: &str, value: String) {
    arguments.extend([String::from("--set"), format!("{key}={value}")]);
}

fn listen(arguments: &mut Vec<String>, [http, grpc]: [u16; 2]) {
    set(arguments, "http.listen", local(http));
    set(arguments, "grpc.listen", local(grpc));
}
