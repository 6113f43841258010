//! What monitoring costs: throughput of submissions with metrics scraped and one trace in a hundred exported, against the
//! same system with neither, and latency and processor time at a steady rate, which say more: at full speed both depend on
//! how full everything is. Rounds of both systems alternate, since other work on the machine comes and goes; medians are
//! compared.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use streamgauge_tests::{collector::Collector, system::System};
use tokio::{
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval, interval_at},
};

use crate::{
    failure::{Failure, Outcome},
    options::Options,
};

/// What it should cost at most.
const AIM: f64 = 0.03;
/// Below this nothing fails: a lock in the hot path, or an export that is waited for, costs a multiple of it.
const BOUND_MIN: f64 = 0.15;
/// Beyond this everything fails, however far rounds lie apart.
const BOUND_MAX: f64 = 0.5;
/// Requests at once, and events in each.
const CLIENTS: usize = 8;
const BATCH: usize = 100;
/// How often everything is scraped, as the repository's configuration does.
const SCRAPE: Duration = Duration::from_secs(10);
/// Time for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The steady rate: events a second that leave the machine room.
const STEADY: f64 = 5_000.0;
/// Longest wait for what was accepted to be counted, and how often it is looked.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
const SETTLE_POLL: Duration = Duration::from_millis(50);
/// Before the first round is measured.
const WARM_UP: Duration = Duration::from_secs(2);

/// One round of one system: its throughput at full speed, the rest at the steady rate.
#[derive(Clone, Copy)]
struct Round {
    events_per_second: f64,
    p99_ms: f64,
    cpu_us_per_event: f64,
}

/// How fast clients send.
#[derive(Clone, Copy)]
enum Pace {
    /// Each its next batch when the one before is answered.
    FullSpeed,
    /// All together so many events a second.
    Steady(f64),
}

/// What one measurement found.
struct Measured {
    events_per_second: f64,
    p99_ms: f64,
    cpu_us_per_event: f64,
}

impl Pace {
    /// When a client sends; none when it need not wait. Clients take turns.
    fn turns(self, began: Instant, client: usize) -> Option<Interval> {
        let Self::Steady(events_per_second) = self else {
            return None;
        };
        let between = Duration::from_secs_f64((CLIENTS * BATCH) as f64 / events_per_second);
        let first = began + between.mul_f64(client as f64 / CLIENTS as f64);
        let mut turns = interval_at(first, between);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(turns)
    }
}

/// Runs the part.
pub async fn run(options: &Options) -> Outcome {
    let collector = Collector::start().await;
    let traced = format!("each.telemetry.otlp_endpoint={}", collector.endpoint());
    let with = System::start(&[&traced, "each.telemetry.sample_ratio=0.01"]).await;
    let without = System::start(&["each.telemetry.sample_ratio=0"]).await;
    let ids = Arc::new(AtomicU64::new(0));
    let length = Duration::from_secs(options.cost_seconds.max(1));
    for system in [&with, &without] {
        measure(system, &ids, Pace::FullSpeed, WARM_UP).await?;
    }
    let _scraper = Scraper::start(&with);
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for round in 0..options.cost_rounds.max(1) {
        // Whoever goes first in one round goes second in the next.
        for step in 0..2 {
            if (round + step) % 2 == 0 {
                on.push(round_of(&with, &ids, length).await?);
            } else {
                off.push(round_of(&without, &ids, length).await?);
            }
        }
    }
    judge(&on, &off)
}

/// Half of the time at full speed, half at the steady rate.
async fn round_of(system: &System, ids: &Arc<AtomicU64>, length: Duration) -> Outcome<Round> {
    let steady = measure(system, ids, Pace::Steady(STEADY), length / 2).await?;
    let full = measure(system, ids, Pace::FullSpeed, length / 2).await?;
    // What is still to be counted belongs to nobody else's round.
    settle(system).await?;
    Ok(Round {
        events_per_second: full.events_per_second,
        p99_ms: steady.p99_ms,
        cpu_us_per_event: steady.cpu_us_per_event,
    })
}

/// Waits until everything that was accepted is counted.
async fn settle(system: &System) -> Outcome<()> {
    let url = format!("{}/v1/ledger", system.analytics());
    let end = Instant::now() + SETTLE_DEADLINE;
    while system.get(&url).await["total"]["in_flight"] != 0 {
        if Instant::now() >= end {
            let waited = format!("events are still in flight after {SETTLE_DEADLINE:?}");
            return Err(Failure::Unmet(waited));
        }
        tokio::time::sleep(SETTLE_POLL).await;
    }
    Ok(())
}

fn judge(on: &[Round], off: &[Round]) -> Outcome {
    let compare = |value: fn(&Round) -> f64| {
        let [on, off] = [on, off].map(|rounds| median(rounds.iter().map(value).collect()));
        (on, off, on / off - 1.0)
    };
    let (events_on, events_off, events) = compare(|round| round.events_per_second);
    let (p99_on, p99_off, p99) = compare(|round| round.p99_ms);
    let (cpu_on, cpu_off, cpu) = compare(|round| round.cpu_us_per_event);
    let [events_spread, p99_spread, cpu_spread] = [
        spread(off, |round| round.events_per_second),
        spread(off, |round| round.p99_ms),
        spread(off, |round| round.cpu_us_per_event),
    ];
    let text = format!(
        "at full speed {events_on:.0} against {events_off:.0} events/s ({:+.1}%); at {STEADY} a second p99 {p99_on:.1} against \
         {p99_off:.1} ms ({:+.1}%), processor time {cpu_on:.1} against {cpu_off:.1} µs an event ({:+.1}%); aim {:.0}%; medians of {} rounds each, half of \
         which lie within {:.0}%, {:.0}% and {:.0}% of each other without monitoring",
        100.0 * events,
        100.0 * p99,
        100.0 * cpu,
        100.0 * AIM,
        off.len(),
        100.0 * events_spread,
        100.0 * p99_spread,
        100.0 * cpu_spread,
    );
    if -events > bound(events_spread) || p99 > bound(p99_spread) || cpu > bound(cpu_spread) {
        return Err(Failure::Unmet(format!(
            "dearer than noise explains: {text}"
        )));
    }
    Ok(text)
}

/// The cost that is taken for one: the aim, and two standard errors of a difference of two medians. For seven rounds each
/// that is about as much as their middle half lies apart.
fn bound(spread: f64) -> f64 {
    (AIM + spread).clamp(BOUND_MIN, BOUND_MAX)
}

/// How far the middle half of rounds lie apart, as a share of their median.
fn spread(rounds: &[Round], value: fn(&Round) -> f64) -> f64 {
    let mut values: Vec<_> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let quarter = values.len() / 4;
    (values[values.len() - 1 - quarter] - values[quarter]) / median(values)
}

/// Processor time that a system's processes have used.
fn cpu_seconds(system: &System) -> Outcome<f64> {
    /// The kernel counts in hundredths of a second for whoever asks.
    const TICKS_PER_SECOND: f64 = 100.0;
    let mut ticks = 0.0;
    for pid in system.processes.iter().filter_map(|process| process.pid()) {
        let path = format!("/proc/{pid}/stat");
        let text = std::fs::read_to_string(&path).map_err(Failure::io(path))?;
        // The name, in brackets, may hold anything; user and system time are the twelfth and thirteenth behind it.
        let fields = text
            .rsplit_once(')')
            .map_or("", |(_, after)| after)
            .split_whitespace();
        let times = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<f64>().ok());
        ticks += times.sum::<f64>();
    }
    Ok(ticks / TICKS_PER_SECOND)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Submits from several clients for so long.
async fn measure(
    system: &System,
    ids: &Arc<AtomicU64>,
    pace: Pace,
    length: Duration,
) -> Outcome<Measured> {
    let url = format!("{}/v1/events", system.producer());
    let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
    let http = http.map_err(Failure::http("a client"))?;
    let (began, cpu_before) = (Instant::now(), cpu_seconds(system)?);
    let clients = (0..CLIENTS).map(|client| {
        let (http, url, ids) = (http.clone(), url.clone(), ids.clone());
        tokio::spawn(async move {
            let mut latencies_ms = Vec::new();
            let mut turns = pace.turns(began, client);
            while began.elapsed() < length {
                if let Some(turns) = &mut turns {
                    turns.tick().await;
                }
                let batch = batch(&ids);
                let sent = Instant::now();
                let answer = http
                    .post(&url)
                    .json(&batch)
                    .send()
                    .await?
                    .error_for_status()?;
                answer.bytes().await?;
                latencies_ms.push(sent.elapsed().as_secs_f64() * 1000.0);
            }
            Ok::<_, reqwest::Error>(latencies_ms)
        })
    });
    let mut latencies_ms = Vec::new();
    for client in futures::future::join_all(clients).await {
        let client = client.map_err(|error| Failure::Unmet(format!("a client: {error}")))?;
        latencies_ms.extend(client.map_err(Failure::http("the producer"))?);
    }
    let seconds = began.elapsed().as_secs_f64();
    latencies_ms.sort_by(f64::total_cmp);
    let p99_ms = latencies_ms.get(latencies_ms.len() * 99 / 100).copied();
    let events = (latencies_ms.len() * BATCH) as f64;
    Ok(Measured {
        events_per_second: events / seconds,
        p99_ms: p99_ms.unwrap_or(f64::NAN),
        cpu_us_per_event: (cpu_seconds(system)? - cpu_before) * 1e6 / events,
    })
}

fn batch(ids: &AtomicU64) -> Vec<Value> {
    let first = ids.fetch_add(BATCH as u64, Ordering::Relaxed);
    let events = (first..first + BATCH as u64).map(|number| {
        json!({
            "event_id": format!("cost-{number}"),
            "user_id": format!("user-{}", number % 1000),
            "event_type": "click",
            "page_url": format!("/page/{}", number % 20),
            "value": 1.5,
        })
    });
    events.collect()
}

/// Reads all three `/metrics` as a Prometheus would, until it is dropped.
struct Scraper(JoinHandle<()>);

impl Drop for Scraper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Scraper {
    fn start(system: &System) -> Self {
        let urls = [system.producer(), system.consumer(), system.analytics()];
        Self(tokio::spawn(async move {
            let http = reqwest::Client::new();
            let mut moments = interval(SCRAPE);
            loop {
                moments.tick().await;
                for url in &urls {
                    let request = http.get(format!("{url}/metrics"));
                    let request =
                        request.header("Accept", "application/openmetrics-text; version=1.0.0");
                    if let Ok(answer) = request.send().await {
                        let _ = answer.bytes().await;
                    }
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(events_per_second: [f64; 4], cpu_us_per_event: f64) -> Vec<Round> {
        let round = |value| Round {
            events_per_second: value,
            p99_ms: 10_000.0 / value,
            cpu_us_per_event,
        };
        events_per_second.into_iter().map(round).collect()
    }

    #[test]
    fn a_cost_beyond_the_noise_fails_and_one_within_it_does_not() {
        let off = rounds([1000.0, 1010.0, 990.0, 1000.0], 10.0);
        assert!(judge(&rounds([980.0, 990.0, 970.0, 980.0], 10.2), &off).is_ok());
        // Slower by much, and slower by little but at more work.
        assert!(judge(&rounds([400.0, 410.0, 390.0, 400.0], 10.2), &off).is_err());
        assert!(judge(&rounds([980.0, 990.0, 970.0, 980.0], 12.0), &off).is_err());
    }

    #[test]
    fn medians_are_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
