//! A broker killed with -9 under load loses nothing that it acknowledged and
//! doubles nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rdkafka::producer::Producer;
use support::*;

struct Killed {
    child: Child,
    address: SocketAddr,
}

impl Killed {
    fn start(dir: &Path, listen: &str, fsync: &str) -> Killed {
        let mut child = Command::new(env!("CARGO_BIN_EXE_streamgauge-broker"))
            .arg("--data-dir")
            .arg(dir)
            .args(["--listen", listen, "--fsync", fsync, "--topic", "load:3"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        let address = address.parse().unwrap();
        Killed { child, address }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn kill_under_load(fsync: &'static str, rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Killed::start(dir.path(), "127.0.0.1:0", fsync);
    let address = broker.address.to_string();
    let producer = producer(
        &address,
        &[
            ("batch.num.messages", "200"),
            ("message.timeout.ms", "60000"),
        ],
    );
    let mut sent = 0;
    for round in 0..rounds {
        let goal = producer.context().stored.lock().len() + 500 + round * 300;
        while producer.context().stored.lock().len() < goal {
            for _ in 0..100 {
                send(&producer, "load", None, &format!("{sent:08}"), b"value");
                sent += 1;
            }
            producer.poll(Duration::from_millis(1));
        }
        // Requests are in flight at this moment.
        broker.kill();
        broker = Killed::start(dir.path(), &address, fsync);
    }
    settle(&producer);
    let stored = producer.context().stored.lock().clone();
    assert_eq!(stored.len(), sent);
    let mut seen: Vec<(String, (i32, i64))> = read_all(&address, "load", 3)
        .into_iter()
        .map(|seen| (seen.key, (seen.partition, seen.offset)))
        .collect();
    seen.sort();
    assert_eq!(seen, stored.into_iter().collect::<Vec<_>>());
    broker.kill();
}

#[tokio::test]
async fn killed_under_load_every_acknowledged_record_is_there_once() {
    blocking(|| kill_under_load("interval", 5)).await;
}

#[tokio::test]
async fn killed_under_load_with_fsync_always() {
    blocking(|| kill_under_load("always", 2)).await;
}
