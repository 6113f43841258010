//! How fast a consumer drains a backlog, seen from outside by its status.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::usage;

/// How often the status is asked for.
const POLL: Duration = Duration::from_millis(25);

/// A drain to watch.
#[derive(Clone, Debug, clap::Args)]
pub struct Drain {
    /// The consumer's status.
    #[arg(long, default_value = "http://127.0.0.1:8082/v1/status")]
    pub status: String,
    /// Source records in the backlog, over all partitions.
    #[arg(long)]
    pub records: i64,
    /// Longest wait, in seconds.
    #[arg(long, default_value_t = 300)]
    pub limit_seconds: u64,
    /// The consumer's process.
    #[arg(long)]
    pub pid: Option<u32>,
}

/// Waits until the heads of all partitions cover the backlog; the clock starts with the first
/// record that is covered.
///
/// # Errors
/// A sentence, when it does not come to an end in time.
pub async fn run(drain: &Drain) -> Result<Value, String> {
    let client = reqwest::Client::new();
    let limit = Instant::now() + Duration::from_secs(drain.limit_seconds);
    let (mut began, mut base) = (None, 0);
    while Instant::now() < limit {
        let covered = heads(&client, &drain.status).await.unwrap_or(0);
        if covered > 0 && began.is_none() {
            (began, base) = (
                Some((Instant::now(), drain.pid.and_then(usage::cpu_seconds))),
                covered,
            );
        }
        if let Some((began, cpu_before)) = began
            && covered >= drain.records
        {
            let seconds = began.elapsed().as_secs_f64();
            let cpu = drain
                .pid
                .and_then(usage::cpu_seconds)
                .zip(cpu_before)
                .map(|(a, b)| a - b);
            let records = (drain.records - base) as f64;
            return Ok(json!({
                "measure": "drain", "events": drain.records, "seconds": seconds,
                "events_per_second": (records / seconds) as u64,
                "cpu_seconds_per_million": cpu.map(|cpu| cpu * 1e6 / records),
                "peak_rss_mib": drain.pid.and_then(usage::peak_rss_mib),
            }));
        }
        tokio::time::sleep(POLL).await;
    }
    Err(format!(
        "{} records were not drained in {} s",
        drain.records, drain.limit_seconds
    ))
}

async fn heads(client: &reqwest::Client, url: &str) -> Option<i64> {
    let status: Value = client.get(url).send().await.ok()?.json().await.ok()?;
    let partitions = status["partitions"].as_array()?;
    Some(
        partitions
            .iter()
            .filter_map(|partition| partition["head"].as_i64())
            .sum(),
    )
}
