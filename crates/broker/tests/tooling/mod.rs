//! Runs the tools of others against a broker: those of Apache Kafka, and kcat.

use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use streamgauge_broker::Broker;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::support::start;

/// What a tool may take. A virtual machine alone takes ten seconds to start where much else runs.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// They end soon: what makes a long run fast only makes a short one slow.
const SHORT_LIVED: [&str; 2] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];

/// A broker and the tools that ask it.
pub struct Tools {
    script: String,
    pub broker: Broker,
    folder: TempDir,
}

impl Tools {
    /// None where the environment names no tools; the tests with clients stand for them there.
    pub async fn from_env() -> Option<Tools> {
        let script = std::env::var("STREAMGAUGE_TEST_KAFKA_TOOLS").ok()?;
        let folder = tempfile::tempdir().unwrap();
        let broker = start(&folder.path().join("log")).await;
        Some(Tools {
            script,
            broker,
            folder,
        })
    }

    /// A path for a file of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs one of Kafka's own; words are parted by spaces.
    pub async fn kafka(&self, class: &str, args: &str) -> Ran {
        self.kafka_fed(class, args, b"").await
    }

    /// The same for one that wants its verb before all else.
    pub async fn kafka_verb(&self, class: &str, verb: &str) -> Ran {
        let mut command = self.java(class);
        command.args([verb, "--bootstrap-server", &self.broker.bootstrap()]);
        run(command, b"").await
    }

    pub async fn kafka_fed(&self, class: &str, args: &str, input: &[u8]) -> Ran {
        run(self.kafka_command(class, args), input).await
    }

    fn kafka_command(&self, class: &str, args: &str) -> Command {
        let mut command = self.java(class);
        command
            .arg("--bootstrap-server")
            .arg(self.broker.bootstrap());
        command.args(args.split_whitespace());
        command
    }

    fn java(&self, class: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg("tool").args(SHORT_LIVED).arg(class);
        command
    }

    pub async fn kcat(&self, args: &str, input: &[u8]) -> Ran {
        let mut command = Command::new(&self.script);
        command.args(["kcat", "-b", &self.broker.bootstrap()]);
        command.args(args.split_whitespace());
        run(command, input).await
    }

    /// Starts one of Kafka's own that goes on until it is told to end.
    pub fn start(&self, name: &str, class: &str, args: &str) -> Running {
        let said = self.path(name);
        let mut command = self.kafka_command(class, args);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&said).unwrap())
            .kill_on_drop(true);
        let child = command.spawn().unwrap();
        Running { child, said }
    }
}

/// What a tool said until its end.
pub struct Ran {
    status: ExitStatus,
    pub out: Vec<u8>,
    err: String,
}

async fn run(mut command: Command, input: &[u8]) -> Ran {
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = async {
        // One that reads nothing may have gone already.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let both = async { tokio::join!(feeding, child.wait_with_output()).1 };
    let ended = tokio::time::timeout(LIMIT, both).await;
    let output = ended
        .unwrap_or_else(|_| panic!("it did not end: {command:?}"))
        .unwrap();
    Ran {
        status: output.status,
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ran {
    /// All it said, for a person.
    pub fn said(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.out), self.err)
    }

    /// It ended well and said all of these.
    pub fn works(self, expected: &[&str]) -> Ran {
        assert!(self.status.success(), "{}: {}", self.status, self.said());
        self.says(expected)
    }

    /// It ended in vain and named what is not to be had.
    pub fn fails_with(self, named: &str) -> Ran {
        assert!(!self.status.success(), "{}", self.said());
        self.says(&[named])
    }

    pub fn says(self, expected: &[&str]) -> Ran {
        let said = self.said();
        for text in expected {
            assert!(said.contains(text), "{text:?} is not in: {said}");
        }
        self
    }

    /// Its output without the lines that a virtual machine logs there.
    pub fn records(&self) -> Vec<u8> {
        let lines = self.out.split_inclusive(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.starts_with(b"[20"))
            .flatten()
            .copied()
            .collect()
    }

    pub fn events(&self) -> Vec<Value> {
        events(&self.out)
    }
}

/// What Kafka's verifiable clients say, one JSON object a line; the last line may be half written.
fn events(said: &[u8]) -> Vec<Value> {
    let lines = said.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .filter(Value::is_object)
        .collect()
}

pub fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["name"] == name)
        .collect()
}

/// A tool that goes on; dropping it kills it.
pub struct Running {
    child: Child,
    said: PathBuf,
}

impl Running {
    pub fn events(&self) -> Vec<Value> {
        events(&std::fs::read(&self.said).unwrap())
    }

    /// Asks it to end in order, and waits until it has.
    pub async fn end(mut self) -> Vec<Value> {
        let id = self.child.id().unwrap().to_string();
        let asked = Command::new("kill").args(["-TERM", &id]).status().await;
        assert!(asked.unwrap().success());
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        ended.expect("it did not end").unwrap();
        self.events()
    }
}

/// Waits for something that tools bring about.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < LIMIT, "waited too long for: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}
