//! The watch as its user meets it: a snapshot of a running system, and the view on a terminal, which
//! is given back whatever happens.

mod common;
mod terminal;

use std::{
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use common::{Up, binary, nowhere};
use serde_json::Value;
use streamgauge::watch::screen::Screen;
use terminal::{Terminal, pause};

/// Longest wait for a condition.
const DEADLINE: Duration = Duration::from_secs(60);
const SENT: u64 = 700;
/// Set for the process that panics on purpose.
const PANICS: &str = "STREAMGAUGE_TEST_PANICS";
const ALTERNATE_SCREEN: &str = "\u{1b}[?1049h";
const USUAL_SCREEN: &str = "\u{1b}[?1049l";

/// The view on a terminal, with these flags.
fn on_terminal(up: &Up, terminal: &Terminal, flags: &[&str]) -> Child {
    let mut command = up.command(&[&["watch"], flags].concat());
    terminal.carries(&mut command);
    command.spawn().expect("it starts")
}

/// The exit code, what was printed and what was said beside it.
fn ran(mut command: Command) -> (i32, String, String) {
    let output = command.output().expect("it runs");
    let code = output.status.code().expect("an exit code");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (code, text(&output.stdout), text(&output.stderr))
}

fn ended(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().expect("waited") {
            return status;
        }
        assert!(Instant::now() < end, "it does not end");
        pause();
    }
}

/// Asks for snapshots until everything that was sent is applied.
fn until_applied(up: &Up) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let (code, out, err) = ran(up.command(&["watch", "--once", "--json", "--interval-ms=200"]));
        let model: Value = serde_json::from_str(&out).expect("JSON");
        let total = |row: usize| model["flow"][row]["total"].as_f64();
        if code == 0 && total(5) == Some(SENT as f64) {
            return model;
        }
        assert!(Instant::now() < end, "{code} {out} {err}");
    }
}

/// The line that begins so.
#[track_caller]
fn line<'a>(text: &'a str, start: &str) -> &'a str {
    let found = text.lines().find(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("no line `{start}` in:\n{text}"))
}

fn snapshots(up: &Up) {
    let model = until_applied(up);
    assert_eq!(model["verdict"], "healthy", "{model}");
    let (code, out, err) = ran(up.command(&["watch", "--once", "--interval-ms=200"]));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(!out.contains('\u{1b}'), "{out}");
    assert!(line(&out, "streamgauge").contains("HEALTHY"), "{out}");
    for name in ["received", "accepted", "processed", "applied"] {
        let row: Vec<&str> = line(&out, name).split_whitespace().take(3).collect();
        assert_eq!(row[2], SENT.to_string(), "{out}");
    }
    assert!(
        line(&out, "ledger").contains("balanced: counted 700"),
        "{out}"
    );
    assert!(line(&out, "canary").ends_with("off"), "{out}");
    assert!(line(&out, "alerts").ends_with("not configured"), "{out}");

    let away = format!("--consumer-http={}", nowhere());
    let (code, out, err) = ran(up.command(&["watch", "--once", "--interval-ms=200", &away]));
    assert_eq!(code, 1, "{out} {err}");
    assert!(line(&out, "consumer").contains("NO ANSWER"), "{out}");
    assert!(line(&out, "BROKEN").contains("refused"), "{out}");
    assert!(
        line(&out, "applied").contains("700"),
        "the others go on: {out}"
    );
}

fn views(up: &Up) {
    let mut terminal = Terminal::new(80, 24);
    assert!(terminal.is_as_before());
    let mut watch = on_terminal(up, &terminal, &["--interval-ms=200"]);
    for text in [ALTERNATE_SCREEN, "[1 Overview]", "HEALTHY", "700", "q quit"] {
        terminal.shows(text);
    }
    assert!(!terminal.is_as_before(), "keys come one by one");
    terminal.types("3");
    terminal.shows("[3 Ledger]");
    terminal.shows("adds up");
    terminal.types("\t");
    terminal.shows("[4 Alerts]");
    assert!(terminal.text().contains("\u{1b}[38;5;"), "it has colour");
    terminal.types("q");
    assert_eq!(ended(&mut watch).code(), Some(0));
    terminal.shows(USUAL_SCREEN);
    assert!(terminal.is_as_before());
}

fn a_signal_ends_it(up: &Up) {
    let terminal = Terminal::new(60, 15);
    let mut watch = on_terminal(up, &terminal, &["--no-color"]);
    terminal.shows("HEALTHY");
    let pid = watch.id().to_string();
    let asked = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(asked.expect("kill runs").success());
    assert_eq!(ended(&mut watch).code(), Some(0));
    terminal.shows(USUAL_SCREEN);
    assert!(terminal.is_as_before());
    assert!(
        !terminal.text().contains("\u{1b}[38;5;"),
        "{:?}",
        terminal.text()
    );
}

#[test]
fn a_running_system_is_shown() {
    let up = Up::start(&[]);
    let count = format!("--count={SENT}");
    let (code, _, err) = ran(up.command(&["send-events", "--json", &count]));
    assert_eq!(code, 0, "{err}");
    snapshots(&up);
    views(&up);
    a_signal_ends_it(&up);
}

#[test]
fn when_nothing_runs_it_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = nowhere();
    let mut command = binary(folder.path());
    command.args(["watch", "--once"]);
    for service in ["producer", "consumer", "analytics"] {
        command.arg(format!("--{service}-http={nowhere}"));
    }
    let (code, out, err) = ran(command);
    assert_eq!(code, 1, "{out} {err}");
    assert!(err.contains("error: no service answers"), "{err}");
    assert!(
        out.contains(&format!("analytics does not answer at {nowhere}")),
        "{out}"
    );
}

#[test]
fn without_a_terminal_it_names_the_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = binary(folder.path());
    command.arg("watch");
    let (code, out, err) = ran(command);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("--once"), "{err}");
}

/// The test runs itself once more, on a terminal, and panics there.
#[test]
fn a_panic_leaves_the_terminal_as_it_was() {
    const NAME: &str = "a_panic_leaves_the_terminal_as_it_was";
    if std::env::var_os(PANICS).is_some() {
        let _screen = Screen::enter().expect("a terminal");
        panic!("on purpose");
    }
    let terminal = Terminal::new(80, 24);
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args([NAME, "--exact", "--nocapture"])
        .env(PANICS, "1");
    terminal.carries(&mut command);
    let mut child = command.spawn().expect("it starts");
    assert!(!ended(&mut child).success());
    terminal.shows("on purpose");
    let text = terminal.text();
    let at = |text: &str, part: &str| {
        text.find(part)
            .unwrap_or_else(|| panic!("no {part:?} in {text:?}"))
    };
    let (taken, given_back) = (at(&text, ALTERNATE_SCREEN), at(&text, USUAL_SCREEN));
    assert!(
        taken < given_back && given_back < at(&text, "on purpose"),
        "{text:?}"
    );
    assert_eq!(
        text.matches(USUAL_SCREEN).count(),
        1,
        "given back once: {text:?}"
    );
    assert!(terminal.is_as_before());
}
