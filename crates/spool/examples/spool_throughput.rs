//! Measures the spool on this machine's disk: appends that share syncs, then reading all of it back.
//! `cargo run --release --example spool_throughput -- FOLDER [TASKS] [RECORDS IN AN APPEND] [SECONDS]`

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use streamgauge_spool::{Deps, Disk, ErrorKind, Limits, Observer, Records, Spool, open};

const RECORD_BYTES: usize = 250;

struct Nobody;

impl Observer for Nobody {
    fn error(&self, _: ErrorKind) {}
    fn lost(&self, _: u64) {}
}

async fn append_until(spool: Spool, records: usize, end: Instant) -> (u64, Duration) {
    let (mut appended, mut slowest) = (0, Duration::ZERO);
    while Instant::now() < end {
        let mut batch = Records::default();
        for _ in 0..records {
            batch.push(0, |out| out.resize(out.len() + RECORD_BYTES, b'x'));
        }
        let begun = Instant::now();
        if spool.append(batch).await.is_err() {
            break;
        }
        slowest = slowest.max(begun.elapsed());
        appended += records as u64;
    }
    (appended, slowest)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("name a folder")?);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (tasks, records, seconds) = (number(64)?, number(10)?, number(5)?);
    let limits = Limits {
        bytes_max: 16 << 30,
        segment_bytes: 64 << 20,
        group_bytes_max: 4 << 20,
        queue_appends_max: 1_024,
    };
    let deps = Deps {
        files: Arc::new(Disk),
        observer: Arc::new(Nobody),
        salts: Box::new(|| 42),
    };
    let (spool, mut drainer) = open(&dir, limits, Duration::from_millis(100), deps)?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds as u64);
    let appending: Vec<_> = (0..tasks)
        .map(|_| tokio::spawn(append_until(spool.clone(), records, end)))
        .collect();
    let (mut appended, mut slowest) = (0, Duration::ZERO);
    for one in appending {
        let (more, slow) = one.await?;
        appended += more;
        slowest = slowest.max(slow);
    }
    let per_second = appended as f64 / begun.elapsed().as_secs_f64();
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{tasks} tasks, {records} records of {RECORD_BYTES} bytes an append: {per_second:.0} records/s, slowest append {slowest:?}"
    )?;
    let begun = Instant::now();
    while !spool.is_idle() {
        let stretch = drainer.next(2_000, 1 << 20).await?;
        drainer
            .acknowledge(&stretch, stretch.records().len() as u64)
            .await?;
    }
    let per_second = appended as f64 / begun.elapsed().as_secs_f64();
    writeln!(out, "read back and forgotten: {per_second:.0} records/s")?;
    Ok(())
}
