//! What the tests of the command share: the binary, and a whole system that it runs.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// The binary, untouched by the settings of whoever runs the tests.
pub fn binary(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamgauge"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STREAMGAUGE_") {
            command.env_remove(name);
        }
    }
    command
        .env("XDG_STATE_HOME", state)
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    command
}

/// An address where nobody listens.
pub fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

/// `streamgauge up`; dropping it kills it.
pub struct Up {
    pub child: Child,
    pub folder: TempDir,
    /// As it printed them.
    pub endpoints: Value,
}

impl Up {
    /// Starts one with these settings, `KEY=VALUE` each, and waits until it is ready. Without the canary: every figure is
    /// the test's own.
    pub fn start(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let notes = fs::File::create(folder.path().join("notes")).expect("a file");
        let mut child = binary(folder.path())
            .args(["up", "--ephemeral-ports", "--json", "--data-dir"])
            .arg(folder.path().join("data"))
            .arg("--set=analytics.canary.enabled=false")
            .args(settings.iter().map(|setting| format!("--set={setting}")))
            .stdout(Stdio::piped())
            .stderr(notes)
            .spawn()
            .expect("the binary starts");
        let mut document = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        while !document.ends_with("\n}\n") {
            let read = lines.read_line(&mut document).expect("text");
            assert!(read > 0, "it ended: {}", notes_in(folder.path()));
        }
        Self {
            child,
            folder,
            endpoints: serde_json::from_str(&document).expect("the endpoints"),
        }
    }

    /// Where it keeps everything.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where it says where it is.
    pub fn endpoints_file(&self) -> PathBuf {
        self.data().join("endpoints.json")
    }

    /// What it said beside its output.
    pub fn notes(&self) -> String {
        notes_in(self.folder.path())
    }

    /// A command that talks to it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary(self.folder.path());
        command
            .env("STREAMGAUGE_ENDPOINTS", self.endpoints_file())
            .args(arguments);
        command
    }
}

fn notes_in(folder: &Path) -> String {
    fs::read_to_string(folder.join("notes")).unwrap_or_default()
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
