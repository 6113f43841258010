//! Clocks that are an hour off: those of clients by what they say, those of a service by libfaketime.

use std::{path::PathBuf, time::Duration};

use super::READY_WITHIN;
use crate::{
    failure::Failure,
    trial::{Setup, Trial},
};

/// How far a clock is off, in seconds.
const HOUR: i64 = 3_600;
/// How long a service runs with a wrong clock.
const SPELL: Duration = Duration::from_secs(6);

/// A third of the users are an hour ahead, a third an hour behind.
pub fn setup(setup: &mut Setup<'_>) {
    setup.load = Some(Box::new(|load| load.clocks_off_s = vec![0, HOUR, -HOUR]));
}

/// The consumer, then the producer, an hour behind and an hour ahead, and right again. Each is drained before its clock
/// jumps: log time follows the producer's clock, and a retry across a jump ahead of more than the dedupe horizon is
/// not recognised.
pub async fn clocks(trial: &mut Trial<'_>) -> Result<(), Failure> {
    let library = library()?;
    for name in ["analytics", "consumer", "producer"] {
        for off in [-HOUR, HOUR, 0] {
            let (code, _) = trial.system.terminate(name).await;
            trial.require(code == Some(0), || format!("{name} ended with {code:?}"));
            let process = trial.system.process(name);
            process.set_environment(environment(&library, off));
            trial.system.start_again(name);
            trial.ready_within(name, READY_WITHIN * 2).await?;
            tokio::time::sleep(SPELL).await;
        }
        trial.healed().await;
    }
    Ok(())
}

/// Shifts the wall clock of a process; durations go by the right clock.
fn environment(library: &PathBuf, off_s: i64) -> Vec<(String, String)> {
    if off_s == 0 {
        return Vec::new();
    }
    [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", format!("{off_s:+}")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", String::from("1")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Debian's libfaketime for programs with threads.
fn library() -> Result<PathBuf, Failure> {
    let folders = std::fs::read_dir("/usr/lib").map_err(Failure::io("/usr/lib"))?;
    let candidates = folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let mut found = candidates.filter(|path| path.exists());
    found.next().ok_or_else(|| {
        Failure::Unmet(String::from(
            "libfaketimeMT.so.1 is not there: apt-get install faketime",
        ))
    })
}
