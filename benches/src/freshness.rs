//! From submission to queryable, as a user sees it, under a steady load.
//!
//! Every tenth of a second a marker event with a user of its own is submitted and then asked for
//! until the answer counts it; the clock runs from before its submission.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{events::Events, usage};

/// How often the answer is asked for.
const POLL: Duration = Duration::from_millis(2);
/// Events in one request of the load.
const BATCH: usize = 100;
/// Time between two markers.
const MARKER_EVERY: Duration = Duration::from_millis(100);

/// A run.
#[derive(Clone, Debug, clap::Args)]
pub struct Freshness {
    /// The producer.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    pub producer: String,
    /// Analytics.
    #[arg(long, default_value = "http://127.0.0.1:8083")]
    pub analytics: String,
    /// Events per second of the load beside.
    #[arg(long, default_value_t = 10_000)]
    pub rate: usize,
    /// Seconds.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Processes whose peak memory is told.
    #[arg(long)]
    pub pid: Vec<u32>,
}

/// Runs the load and the markers.
///
/// # Errors
/// A sentence, when a marker does not come through within ten seconds.
pub async fn run(freshness: &Freshness) -> Result<Value, String> {
    let client = reqwest::Client::new();
    let end = Instant::now() + Duration::from_secs(freshness.seconds);
    let load = tokio::spawn(steady(client.clone(), freshness.clone(), end));
    let (mut fresh, mut queries) = (Vec::new(), Vec::new());
    let mut next = tokio::time::interval(MARKER_EVERY);
    for number in 0u64.. {
        next.tick().await;
        if Instant::now() >= end {
            break;
        }
        fresh.push(marker(&client, freshness, number, &mut queries).await?);
    }
    let (sent, late) = load.await.map_err(|error| error.to_string())?;
    let (p50, p99) = usage::percentiles_ms(fresh);
    let (query_p50, query_p99) = usage::percentiles_ms(queries);
    let memory: Vec<_> = freshness
        .pid
        .iter()
        .filter_map(|pid| usage::peak_rss_mib(*pid))
        .collect();
    Ok(json!({
        "measure": "freshness", "rate": sent / freshness.seconds as usize, "late_requests": late,
        "p50_ms": p50, "p99_ms": p99, "query_p50_ms": query_p50, "query_p99_ms": query_p99,
        "peak_rss_mib": memory,
    }))
}

async fn marker(
    client: &reqwest::Client,
    freshness: &Freshness,
    number: u64,
    queries: &mut Vec<u64>,
) -> Result<u64, String> {
    let user = format!("marker-{}-{number}", std::process::id());
    let event = json!({ "user_id": user, "event_type": "marker", "page_url": "/marker" });
    let began = Instant::now();
    let answer = client
        .post(format!("{}/v1/events", freshness.producer))
        .json(&event)
        .send()
        .await;
    let status = answer.map_err(|error| error.to_string())?.status();
    if status != 200 {
        return Err(format!("a marker was refused: {status}"));
    }
    let url = format!(
        "{}/analytics/events?user_id={user}&page_url=/marker",
        freshness.analytics
    );
    while began.elapsed() < Duration::from_secs(10) {
        let asked = Instant::now();
        let answer = client
            .get(&url)
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let answer: Value = answer.json().await.map_err(|error| error.to_string())?;
        queries.push(asked.elapsed().as_micros() as u64);
        if answer["count"].as_u64() == Some(1) {
            return Ok(began.elapsed().as_micros() as u64);
        }
        tokio::time::sleep(POLL).await;
    }
    Err(format!("the marker of {user} did not come through in 10 s"))
}

/// Sends batches at the rate asked for; returns events sent and requests that came late.
async fn steady(client: reqwest::Client, freshness: Freshness, end: Instant) -> (usize, usize) {
    let mut events = Events::new(11, 50_000, 1_000);
    let every = Duration::from_secs_f64(BATCH as f64 / freshness.rate.max(1) as f64);
    let mut next = tokio::time::interval(every);
    let (mut sent, mut late) = (0, 0);
    let mut under_way = tokio::task::JoinSet::new();
    while Instant::now() < end {
        next.tick().await;
        let list: Vec<_> = (0..BATCH).map(|_| events.json()).collect();
        let request = client
            .post(format!("{}/v1/events", freshness.producer))
            .header("content-type", "application/json")
            .body(format!("[{}]", list.join(",")));
        under_way.spawn(async move { request.send().await.is_ok_and(|a| a.status() == 200) });
        sent += BATCH;
        while let Some(done) = under_way.try_join_next() {
            late += usize::from(!matches!(done, Ok(true)));
        }
    }
    late += under_way
        .join_all()
        .await
        .into_iter()
        .filter(|ok| !ok)
        .count();
    (sent, late)
}
