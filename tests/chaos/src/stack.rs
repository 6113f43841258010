//! The real components, as the scripts of `tests/stack` run them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::{
    failure::Failure,
    toxiproxy::{Proxy, Toxiproxy},
};

/// Services, in the order of the Kafka listeners that are advertised through toxiproxy.
pub const PROXIED: [&str; 3] = ["producer", "consumer", "analytics"];

/// The ports of the components, and where their scripts are.
#[derive(Clone)]
pub struct Stack {
    scripts: PathBuf,
    /// Variables that the Kafka of this stack is run with.
    kafka: Vec<(String, String)>,
    /// Kafka's plain listener.
    pub kafka_port: u16,
    /// For each of [`PROXIED`]: Kafka's own port, and the one that it advertises.
    pub kafka_proxies: [(u16, u16); 3],
    /// PostgreSQL's port.
    pub postgres_port: u16,
    /// Toxiproxy.
    pub toxiproxy: Toxiproxy,
}

impl Stack {
    /// The stack that the environment describes, as `scripts/chaos` sets it.
    pub fn from_environment() -> Result<Self, Failure> {
        let scripts = std::env::var("STREAMGAUGE_CHAOS_STACK");
        let scripts = PathBuf::from(scripts.unwrap_or_else(|_| String::from("tests/stack")));
        let mut kafka_proxies = [(0, 0); 3];
        let text = variable("KAFKA_PROXIES")?;
        for (slot, pair) in kafka_proxies.iter_mut().zip(text.split_whitespace()) {
            let ports = pair.split_once(':');
            let ports = ports.and_then(|(own, told)| Some((own.parse().ok()?, told.parse().ok()?)));
            *slot = ports.ok_or_else(|| Failure::Unmet(format!("KAFKA_PROXIES: {pair}")))?;
        }
        Ok(Self {
            scripts,
            kafka: Vec::new(),
            kafka_port: port("KAFKA_PORT")?,
            kafka_proxies,
            postgres_port: port("POSTGRES_PORT")?,
            toxiproxy: Toxiproxy::new(port("TOXIPROXY_PORT")?),
        })
    }

    /// A second Kafka whose data lie in this folder, on ports of its own and without proxies.
    pub fn with_kafka_on(&self, data: &Path) -> Self {
        let mut other = self.clone();
        other.kafka_port = self.kafka_port + 400;
        other.kafka = vec![
            (String::from("KAFKA_PORT"), other.kafka_port.to_string()),
            (
                String::from("KAFKA_CONTROLLER_PORT"),
                (other.kafka_port + 1).to_string(),
            ),
            (String::from("KAFKA_PROXIES"), String::new()),
            (String::from("KAFKA_HEAP"), String::from("512m")),
            (String::from("KAFKA_DATA"), data.display().to_string()),
        ];
        other
    }

    /// Puts a proxy between Kafka and one of [`PROXIED`], or makes the one that is there anew.
    pub async fn proxy_kafka(&self, service: &str) -> Result<Proxy, Failure> {
        let place = PROXIED.iter().position(|name| *name == service);
        let (own, told) = self.kafka_proxies[place.expect("it is one of the services")];
        self.toxiproxy.proxy(service, told, own).await
    }

    /// `start`, `halt` (orderly, the data stay), `kill` (the same with -9), `stop` (the data go too) or
    /// `tool CLASS ARGUMENTS`.
    pub async fn kafka(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.script("kafka.sh", arguments).await
    }

    /// `start`, `halt` (at once, the data stay), `idle` (it gets the processor when nobody else wants it) or `usual`.
    pub async fn postgres(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.script("postgres.sh", arguments).await
    }

    async fn script(&self, name: &str, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new(self.scripts.join(name));
        command.args(arguments);
        command.envs(self.kafka.iter().cloned());
        run(&mut command).await
    }

    /// Makes an empty database and returns how to reach it on this port, which a proxy may have.
    pub async fn database(&self, name: &str, port: u16) -> Result<String, Failure> {
        let server = format!("postgres://postgres@127.0.0.1:{}", self.postgres_port);
        let mut command = Command::new("psql");
        command.args([&format!("{server}/postgres"), "-q", "-c"]);
        run(command.arg(format!("CREATE DATABASE {name}"))).await?;
        Ok(format!("postgres://postgres@127.0.0.1:{port}/{name}"))
    }
}

/// Runs a program to its end; what it said is returned, or is part of the failure.
pub async fn run(command: &mut Command) -> Result<String, Failure> {
    let text = format!("{:?}", command.as_std());
    // A server that a script leaves behind would hold a pipe open: its output goes to a file.
    let file = tempfile::NamedTempFile::new().map_err(Failure::io("a file for output"))?;
    let handles = file.reopen().and_then(|one| Ok((one.try_clone()?, one)));
    let (output, errors) = handles.map_err(Failure::io("a file for output"))?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let status = command.status().await.map_err(Failure::io(text.clone()))?;
    let output = std::fs::read_to_string(file.path()).unwrap_or_default();
    if status.success() {
        return Ok(output);
    }
    Err(Failure::Command {
        command: text,
        status: status.to_string(),
        output,
    })
}

fn variable(name: &str) -> Result<String, Failure> {
    std::env::var(name).map_err(|_| {
        Failure::Unmet(format!(
            "{name} is not set; run scripts/chaos, which sets it"
        ))
    })
}

fn port(name: &str) -> Result<u16, Failure> {
    let text = variable(name)?;
    text.parse()
        .map_err(|_| Failure::Unmet(format!("{name} is not a port: {text}")))
}
