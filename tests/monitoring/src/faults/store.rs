//! A store that does not take writes, and one that was tampered with.

use std::{path::PathBuf, process::Stdio, time::Duration};

use streamgauge_tests::system::System;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use crate::{
    bench::Bench,
    failure::{Failure, Outcome},
    faults::{Found, prove},
    inbox::Alert,
    load::{Load, Mix},
};

/// Longest wait for a figure to show in Prometheus.
const SHOWN: Duration = Duration::from_secs(60);

/// Runs the group.
pub async fn run() -> Outcome<Found> {
    let system = System::start(&[
        "analytics.store.operation_timeout_ms=2000",
        "analytics.store.bulk_timeout_ms=2000",
        "analytics.store.breaker.open_max_ms=2000",
        "analytics.checkpoint.interval_ms=1000",
        "analytics.ledger.check_interval_ms=1000",
    ])
    .await;
    let bench = Bench::beside(system).await?;
    let (system, watch) = (&bench.system, bench.watch());
    let _usual = Load::start(system, "usual", Mix::USUAL)?;
    watch
        .prometheus
        .until("job:event_end_to_end_seconds:p99_5m", SHOWN)
        .await?;
    watch
        .prometheus
        .until(
            "sum(event_processing_duration_seconds_count{stage=\"checkpoint\"}) > 0",
            SHOWN,
        )
        .await?;
    let files = databases(system)?;

    let mut rows = prove(
        &watch,
        "a row of the store is changed behind its back",
        [Alert::named("LedgerImbalance")],
        async || tamper(&files, 1).await,
        async |()| tamper(&files, -1).await,
    )
    .await;
    rows.extend(
        prove(
            &watch,
            "another program holds the database's lock",
            [
                Alert::named("DatabaseErrors"),
                Alert::named("CheckpointStalled"),
            ],
            async || lock(&files).await,
            release,
        )
        .await,
    );
    Ok(rows.into())
}

/// The files of the store, that of the rows among them.
fn databases(system: &System) -> Outcome<Vec<PathBuf>> {
    let folder = system.folder().join("data");
    let entries = std::fs::read_dir(&folder).map_err(Failure::io(folder.display().to_string()))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|kind| kind == "db"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(Failure::Unmet(format!(
            "no database in {}",
            folder.display()
        )));
    }
    Ok(files)
}

/// Makes the latest day of all events hold more events than were counted, or so many fewer.
async fn tamper(files: &[PathBuf], more: i64) -> Outcome<()> {
    let sql = format!(
        ".timeout 5000\nUPDATE bucket SET count = count + {more} WHERE series = 'all' AND tier_s = 86400 \
         AND bucket_s = (SELECT max(bucket_s) FROM bucket WHERE series = 'all' AND tier_s = 86400);\n"
    );
    for file in files {
        let mut child = sqlite(file)?;
        let mut input = child
            .stdin
            .take()
            .ok_or_else(|| Failure::Unmet(String::from("sqlite3 takes no input")))?;
        input
            .write_all(sql.as_bytes())
            .await
            .map_err(Failure::io("sqlite3"))?;
        drop(input);
        let output = child
            .wait_with_output()
            .await
            .map_err(Failure::io("sqlite3"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        // Only one of the files has that table.
        if !errors.is_empty() && !errors.contains("no such table") {
            return Err(Failure::Unmet(format!("sqlite3: {errors}")));
        }
    }
    Ok(())
}

/// Takes the write lock of every file, and keeps it as long as the processes live.
async fn lock(files: &[PathBuf]) -> Outcome<Vec<Child>> {
    let mut held = Vec::new();
    for file in files {
        let mut child = sqlite(file)?;
        let input = child
            .stdin
            .as_mut()
            .ok_or_else(|| Failure::Unmet(String::from("sqlite3 takes no input")))?;
        let sql = b".timeout 5000\nBEGIN IMMEDIATE;\n";
        input.write_all(sql).await.map_err(Failure::io("sqlite3"))?;
        held.push(child);
    }
    Ok(held)
}

async fn release(held: Vec<Child>) -> Outcome<()> {
    for mut child in held {
        drop(child.stdin.take());
        child.wait().await.map_err(Failure::io("sqlite3"))?;
    }
    Ok(())
}

fn sqlite(file: &PathBuf) -> Outcome<Child> {
    let mut command = Command::new("sqlite3");
    command
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::io("sqlite3"))
}
