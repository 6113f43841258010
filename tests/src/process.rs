//! A child process that can be killed without mercy and started again.

use std::{
    collections::BTreeSet,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rand::Rng;
use tokio::time::Instant;

/// Longest wait for a process to end by itself.
const STOP_DEADLINE: Duration = Duration::from_secs(40);

/// What a process runs.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The executable.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its variables, beside `PATH`.
    pub environment: Vec<(String, String)>,
}

/// One process of a system under test.
pub struct Process {
    name: String,
    launch: Launch,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts `streamgauge ARGUMENTS`, its output appended to `FOLDER/NAME.log`.
    pub fn start(name: &str, arguments: Vec<String>, folder: &Path) -> Self {
        let launch = Launch {
            binary: binary(),
            arguments,
            environment: Vec::new(),
        };
        Self::launch(name, launch, folder)
    }

    /// Starts what `launch` says, its output appended to `FOLDER/NAME.log`.
    pub fn launch(name: &str, launch: Launch, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let mut process = Self {
            name: name.to_owned(),
            launch,
            log,
            child: None,
        };
        process.start_again();
        process
    }

    /// The process's name in this test.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// From the next start on it has these variables, beside `PATH`.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.launch.environment = environment;
    }

    /// Sends it a signal by name, as in `STOP`; says whether it was there to get it.
    pub fn signal(&self, signal: &str) -> bool {
        let Some(pid) = self.pid() else {
            return false;
        };
        Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(pid.to_string())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Starts it with the same arguments, after it ended or was killed.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let output = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the log file can be written");
        let errors = output.try_clone().expect("a file handle can be cloned");
        let child = Command::new(&self.launch.binary)
            .args(&self.launch.arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(self.launch.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .expect("the binary starts");
        self.child = Some(child);
    }

    /// Kills it with SIGKILL: no handler runs, nothing is flushed.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a running process can be killed");
        child.wait().expect("a killed process can be waited for");
    }

    /// Asks it to drain with SIGTERM and waits; returns its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        assert!(self.signal("TERM"), "{} had ended before", self.name);
        let mut child = self.child.take().expect("it runs");
        let end = Instant::now() + STOP_DEADLINE;
        loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                return status.code();
            }
            if Instant::now() > end {
                child.kill().expect("a running process can be killed");
                panic!(
                    "{} did not drain in {STOP_DEADLINE:?}:\n{}",
                    self.name,
                    self.tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The last lines that it wrote.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the end of {}'s log\n{}\n---", self.name, self.tail());
        }
    }
}

/// The `streamgauge` binary of the profile that this test was built with.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its path");
    let folder = test.parent().expect("a file lies in a folder");
    // Tests lie in PROFILE/deps; a harness is a binary and lies beside the one that it tests.
    let profile = match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().expect("a profile has a folder"),
        _ => folder,
    };
    let binary = profile.join("streamgauge");
    assert!(
        binary.exists(),
        "{} is missing: `cargo test --workspace` builds it, or `cargo test --workspace --test command --no-run`",
        binary.display()
    );
    binary
}

/// A port that was free a moment ago and stays the same over restarts. It lies below those that the
/// system gives to outgoing connections, or one of them could hold it while its owner is away. No port is given twice by
/// one process: tests that run side by side may not have taken theirs up yet.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::rng().random_range(PORTS);
        let is_new = GIVEN
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(port);
        if is_new && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
