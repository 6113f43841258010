//! The command line as its user meets it: the built binary, its output and its exit codes.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Up, binary, nowhere};
use flate2::{Compression, write::GzEncoder};
use serde_json::Value;

/// Longest wait for a process to end that was asked to.
const END_DEADLINE: Duration = Duration::from_secs(40);

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error} in: {}\n{}", self.out, self.err))
    }

    /// Requires an exit code; what was printed explains a difference.
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.err);
        self
    }

    /// Requires that standard error says all of this.
    fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.err.contains(text), "no `{text}` in: {}", self.err);
        }
        self
    }
}

fn run_in(state: &Path, endpoints: Option<&Path>, arguments: &[&str], input: &[u8]) -> Ran {
    let endpoints = endpoints.map(|path| ("STREAMGAUGE_ENDPOINTS", path));
    let mut child = binary(state)
        .envs(endpoints)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that does not read its input may have closed it.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let (out, err) = (text(output.stdout), text(output.stderr));
    for stream in [&out, &err] {
        assert!(
            !stream.contains('\u{1b}'),
            "colour off a terminal: {stream:?}"
        );
    }
    Ran {
        code: output.status.code().expect("an exit code"),
        out,
        err,
    }
}

fn run(arguments: &[&str]) -> Ran {
    let state = tempfile::tempdir().expect("a folder");
    run_in(state.path(), None, arguments, b"")
}

#[test]
fn each_command_helps_with_an_example() {
    let commands = [
        "up",
        "send-events",
        "import",
        "query series",
        "query top",
        "query distinct",
        "query user",
        "query names",
        "audit",
        "dlq list",
        "dlq show",
        "dlq replay",
        "dlq drop",
        "rebuild",
        "health",
        "watch",
        "config show",
        "producer",
        "consumer",
        "analytics",
        "broker",
    ];
    for name in commands {
        let mut arguments: Vec<&str> = name.split(' ').collect();
        arguments.push("--help");
        let help = run(&arguments).exits(0).out;
        let example = format!("  streamgauge {name}");
        assert!(
            help.contains("Example") && help.contains(&example),
            "{name}: {help}"
        );
    }
    run(&[]).exits(2).says(&["Usage"]);
    assert!(run(&["--version"]).exits(0).out.starts_with("streamgauge "));
}

#[test]
fn wrong_use_exits_2_and_says_what_is_wrong() {
    run(&["fly"]).exits(2).says(&["fly"]);
    run(&["send-events", "--batch", "0"])
        .exits(2)
        .says(&["--batch"]);
    run(&["import", "--format", "ndjson", "/no/such/file"])
        .exits(2)
        .says(&["error: cannot open /no/such/file", "because"]);
    run(&["import", "--format", "combined", "--map", "user_id=a", "-"])
        .exits(2)
        .says(&["combined has no names"]);
    run(&["up", "--set", "brokr.fsync=always"])
        .exits(2)
        .says(&["brokr.fsync"]);
    run(&["up", "--set", "producer.telemetry.sample_ratio=1"])
        .exits(2)
        .says(&[
            "producer.telemetry.sample_ratio has no effect",
            "set telemetry.sample_ratio",
        ]);
    run(&["health", "--endpoints", "/no/such.json"])
        .exits(2)
        .says(&["/no/such.json"]);
    run(&["dlq", "replay"])
        .exits(2)
        .says(&["say which dead letters", "--all"]);
    run(&["dlq", "show", "5"])
        .exits(2)
        .says(&["TOPIC/PARTITION/OFFSET"]);
}

#[test]
fn silence_exits_3_and_names_the_address() {
    let nowhere = nowhere();
    let at = |flag: &str| format!("{flag}={nowhere}");
    let (http, grpc) = (at("--producer-http"), at("--producer-grpc"));
    let (consumer, analytics) = (at("--consumer-http"), at("--analytics-http"));
    let found = run(&["health", &http, &consumer, &analytics]).exits(3);
    assert!(found.out.contains("no answer"), "{}", found.out);
    let found = run(&["health", "--json", &http, &consumer, &analytics]).exits(3);
    assert_eq!(found.json()["ready"], false);
    run(&["send-events", "--count=1", "--retry-for=0s", &http])
        .exits(3)
        .says(&[&nowhere]);
    run(&[
        "send-events",
        "--grpc",
        "--count=1",
        "--retry-for=0s",
        &grpc,
    ])
    .exits(3)
    .says(&["cannot reach the producer"]);
    run(&["query", &at("--analytics-grpc"), "top", "--by=page_url"])
        .exits(3)
        .says(&["cannot reach analytics", &nowhere]);
    run(&["dlq", &at("--consumer-grpc"), "list"])
        .exits(3)
        .says(&["cannot reach the consumer", &nowhere]);
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let error = |ran: Ran| -> Value {
        assert_eq!(ran.out, "", "the error is not the result");
        serde_json::from_str(&ran.err).expect("one document")
    };
    let found = error(run(&["--json", "import", "--format", "csv", "/no/such/file"]).exits(2));
    assert_eq!(found["error"], "cannot open /no/such/file");
    assert_eq!(found["exit_code"], 2);
    assert!(found["causes"][0].is_string(), "{found}");
    let found = error(run(&["health", "--json", "--fast"]).exits(2));
    assert!(
        found["error"]
            .as_str()
            .is_some_and(|text| text.contains("--fast")),
        "{found}"
    );
}

#[test]
fn settings_that_are_shown_can_be_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    for service in [
        "up",
        "producer",
        "consumer",
        "analytics",
        "broker",
        "audit",
        "rebuild",
    ] {
        let shown = run(&["config", "show", service]).exits(0).out;
        let path = folder.path().join(format!("{service}.toml"));
        fs::write(&path, &shown).expect("written");
        let path = path.display().to_string();
        let again = run(&[service, "--config", &path, "--print-config"])
            .exits(0)
            .out;
        assert_eq!(again, shown, "{service}");
        let json = run(&[service, "--config", &path, "--print-config", "--json"]).exits(0);
        assert!(json.json().is_object(), "{service}");
    }
    let shown = run(&["config", "show", "up"]).out;
    assert!(shown.contains("fsync = \"always\""), "{shown}");
}

#[test]
fn settings_that_do_not_fit_each_other_end_a_service_before_it_starts() {
    for (service, setting, value) in [
        ("producer", "limits.request_timeout_ms", "100"),
        ("consumer", "batch.records_max", "0"),
        ("analytics", "view.recent_seconds", "999999"),
    ] {
        let set = format!("--set={setting}={value}");
        run(&[service, &set]).exits(2).says(&[setting]);
        run(&[service, &set, "--print-config"])
            .exits(2)
            .says(&[setting]);
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_its_setting() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = listener.local_addr().expect("bound");
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let mut arguments = vec![String::from("up"), format!("--data-dir={data}")];
    let parts = [
        "producer.http",
        "producer.grpc",
        "consumer.http",
        "consumer.grpc",
        "analytics.http",
        "analytics.grpc",
    ];
    for part in parts.into_iter().chain(["broker"]) {
        let address = if part == "consumer.http" {
            taken.to_string()
        } else {
            String::from("127.0.0.1:0")
        };
        arguments.extend([String::from("--set"), format!("{part}.listen={address}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&arguments)
        .exits(2)
        .says(&[&taken.to_string(), "http.listen"]);
}

impl Up {
    /// A command that talks to it.
    fn run(&self, arguments: &[&str]) -> Ran {
        self.feed(arguments, b"")
    }

    fn feed(&self, arguments: &[&str], input: &[u8]) -> Ran {
        run_in(
            self.folder.path(),
            Some(&self.endpoints_file()),
            arguments,
            input,
        )
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).expect("written");
        path.display().to_string()
    }

    /// Asks it to stop; its exit code and what it said.
    fn stop(mut self) -> (i32, String) {
        terminate(&self.child);
        let end = Instant::now() + END_DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                break status;
            }
            assert!(Instant::now() < end, "it does not end");
            pause();
        };
        assert!(!self.endpoints_file().exists(), "its addresses are gone");
        (status.code().unwrap_or(-1), self.notes())
    }
}

#[allow(clippy::disallowed_methods, reason = "polls for the end of a process")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// What an import says of itself.
#[track_caller]
fn assert_import(ran: Ran, accepted: u64, counted: u64, duplicate: u64) {
    let found = ran.exits(0).json();
    let (records, ledger) = (&found["records"], &found["ledger"]);
    assert_eq!(records["accepted"], accepted, "{found}");
    assert_eq!(ledger["counted"], counted, "{found}");
    assert_eq!(ledger["duplicate"], duplicate, "{found}");
    assert_eq!(ledger["in_flight"], 0, "{found}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Each format, packed and plain, from a file and from standard input.
fn imports(up: &Up) {
    let line = |user: usize| {
        format!("{{\"user_id\":\"u{user}\",\"event_type\":\"click\",\"page_url\":\"/n\"}}\n")
    };
    let ndjson: String = (0..20).map(line).collect();
    let plain = up.file("events.ndjson", ndjson.as_bytes());
    let import = ["import", "--json", "--format"];
    let with = |rest: &[&'static str]| -> Vec<&str> { [&import[..], rest].concat() };
    let mut arguments = with(&["ndjson"]);
    arguments.push(&plain);
    assert_import(up.run(&arguments), 20, 20, 0);
    // Packed, from elsewhere, over the other protocol: the same content, hence the same ids.
    let packed = gzip(ndjson.as_bytes());
    assert_import(
        up.feed(&with(&["ndjson", "--http", "-"]), &packed),
        20,
        0,
        20,
    );

    let orders = "customer;amount\nann;2.5\nbob;4\n";
    let orders = up.file("orders.csv", orders.as_bytes());
    let csv = [
        "csv",
        "--map=user_id=customer,value=amount",
        "--constant=event_type=order",
        "--delimiter=;",
    ];
    let mut arguments = with(&csv);
    arguments.push(&orders);
    assert_import(up.run(&arguments), 2, 2, 0);

    let access = "203.0.113.9 - - [17/May/2015:10:05:03 +0000] \"GET /favicon.ico HTTP/1.1\" 200 3638 \"-\" \"curl\"\n";
    let access = up.file("access.log.gz", &gzip(access.repeat(3).as_bytes()));
    let mut arguments = with(&["combined"]);
    arguments.push(&access);
    assert_import(up.run(&arguments), 3, 3, 0);
    let top = [
        "query",
        "top",
        "--json",
        "--by=page_url",
        "--from=2015-05-17",
        "--to=2015-05-18",
    ];
    let top = up.run(&top).exits(0).json();
    assert!(top.to_string().contains("/favicon.ico"), "{top}");

    // Beyond the horizon the journal stands in for the ids.
    let beyond = [
        "import",
        "--json",
        "--format=ndjson",
        "--dedupe-horizon=0s",
        &plain,
    ];
    let refused = up.run(&beyond).exits(1).json();
    assert_eq!(refused["refused"], "already_in", "{refused}");
    let beyond = ["import", "--format=ndjson", "--dedupe-horizon=0s", &plain];
    up.run(&beyond)
        .exits(1)
        .says(&["refused", "is already in", "--again"]);
    let again = [
        "import",
        "--json",
        "--format=ndjson",
        "--dedupe-horizon=0s",
        "--again",
        &plain,
    ];
    assert_import(up.run(&again), 20, 0, 20);
    let unreadable = up
        .feed(
            &["import", "--format=ndjson", "-"],
            b"{\"user_id\":\"u\"}\nno\n",
        )
        .exits(1);
    unreadable.says(&["not in: line 2"]);
}

fn audits(up: &Up) {
    let found = up.run(&["audit", "--json"]).exits(0).json();
    assert_eq!(found["balanced"], true, "{found}");
    assert_eq!(found["total"]["duplicate"], 40, "{found}");
    let away = format!("--analytics-grpc={}", nowhere());
    let found = up.run(&["audit", &away]).exits(3);
    assert!(
        found.out.contains("balanced, store not compared"),
        "{}",
        found.out
    );
    let found = up.run(&["audit", "--no-store", &away]).exits(0);
    assert!(
        found.out.contains("balanced, store not compared"),
        "{}",
        found.out
    );
    up.run(&["audit", "--set=topics.events=other"])
        .exits(2)
        .says(&["topic other does not exist"]);
    up.run(&["audit", "--set=topics.events=other", "--json"])
        .exits(2)
        .says(&["exit_code"]);
}

/// Begins a change of limits and never sends it.
fn stuck_request(producer: &str) -> TcpStream {
    let mut stuck = TcpStream::connect(producer).expect("it listens");
    let head = format!(
        "PUT /v1/admin/rate-limits HTTP/1.1\r\nhost: {producer}\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n"
    );
    stuck.write_all(head.as_bytes()).expect("sent");
    let mut asked = [0; 12];
    stuck.read_exact(&mut asked).expect("an answer");
    assert_eq!(&asked, b"HTTP/1.1 100");
    stuck
}

#[test]
fn a_system_that_is_not_finished_at_its_deadline_exits_4_and_says_with_what() {
    let up = Up::start(&["shutdown_deadline_ms=4000"]);
    let stuck = stuck_request(up.endpoints["producer"]["http"].as_str().expect("text"));
    let (code, notes) = up.stop();
    assert_eq!(code, 4, "{notes}");
    assert!(notes.contains("http: 1 request"), "{notes}");
    drop(stuck);
}

#[test]
fn a_service_that_is_not_finished_at_its_deadline_exits_4_and_says_with_what() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = binary(folder.path())
        .args(["producer", "--set=kafka.brokers=127.0.0.1:1"])
        .args([
            "--set=http.listen=127.0.0.1:0",
            "--set=grpc.listen=127.0.0.1:0",
        ])
        .arg("--set=shutdown_deadline_ms=1500")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut lines = lines.map(|line| line.expect("text"));
    let started = lines
        .by_ref()
        .find(|line| line.contains("producer started"));
    let stuck = stuck_request(&listens_at(&started.expect("it says that it started")));
    terminate(&child);
    let said: Vec<String> = lines.collect();
    let code = child.wait().expect("waited").code();
    assert_eq!(code, Some(4), "{said:?}");
    let (last, logged) = said.split_last().expect("it says why");
    assert!(last.ends_with("http: 1 request"), "{last}");
    let cut = |line: &String| line.contains("cut off") && line.contains("1 request");
    assert!(logged.iter().any(cut), "{logged:?}");
    drop(stuck);
}

/// The address of the HTTP door, from the line of the log that tells of the start.
fn listens_at(line: &str) -> String {
    let line: Value = serde_json::from_str(line).expect("JSON");
    let http = line.get("http").or_else(|| line["fields"].get("http"));
    http.and_then(Value::as_str).expect("an address").to_owned()
}

fn terminate(child: &Child) {
    let pid = child.id().to_string();
    let asked = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(asked.expect("kill runs").success());
}

#[test]
fn a_system_from_its_start_to_its_end() {
    let up = Up::start(&[]);
    assert_eq!(up.run(&["health", "--json"]).exits(0).json()["ready"], true);
    imports(&up);
    let sent = up
        .run(&["send-events", "--json", "--count=500"])
        .exits(0)
        .json();
    assert_eq!(
        (&sent["asked"], &sent["accepted"]),
        (&500.into(), &500.into())
    );
    audits(&up);
    let data = format!("--data-dir={}", up.data().display());
    let pid = up.endpoints["pid"].to_string();
    run(&["up", "--ephemeral-ports", &data]).exits(2).says(&[
        "is in use by process",
        &pid,
        "--data-dir",
    ]);
    let (code, notes) = up.stop();
    assert_eq!(code, 0, "{notes}");
    assert!(notes.contains("drained in"), "{notes}");
}
