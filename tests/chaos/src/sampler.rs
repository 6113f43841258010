//! What is watched during a run: how far the store lies behind the log, and the memory of each process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use streamgauge_kafka::{FetchConfig, KafkaConfig, LogReader};
use streamgauge_tests::system::number;
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    failure::Failure,
    system::{PARTITIONS, Pids, System},
};

/// How often both are looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for one look at the lag: a client that has lost sight of a leader asks, looks for it, and asks again, for
/// a second each.
const LOOK_TIMEOUT: Duration = Duration::from_secs(4);
/// A client that has not told the ends of the log for so long is replaced, for it is the system that is measured.
const BLIND_MAX: Duration = Duration::from_secs(20);
/// Looks in a row that must agree before a system counts as recovered, and how long they must go on agreeing.
const LOOKS: usize = 3;
const STEADY: Duration = Duration::from_secs(2);

/// How far the store was behind at a moment; not known when the log or analytics did not answer.
type Look = (Instant, Option<u64>);

/// Watches a system until it is dropped.
pub struct Sampler {
    state: Arc<Mutex<State>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Default)]
struct State {
    looks: Vec<Look>,
    /// Why the last look told nothing, if it did not.
    blind: Option<String>,
    /// Clients that were replaced.
    replaced: u32,
    peaks_kib: BTreeMap<String, u64>,
}

impl Sampler {
    /// Starts to watch.
    pub fn start(system: &System) -> Result<Self, Failure> {
        let state = Arc::<Mutex<State>>::default();
        let client = reqwest::Client::builder().timeout(LOOK_TIMEOUT).build();
        let lag = Lag {
            kafka: system.kafka(),
            reader: system.reader()?,
            topic: system.topics().events.clone(),
            client: client.map_err(Failure::http("an HTTP client"))?,
            ledger: format!("{}/v1/ledger", system.url("analytics")),
        };
        let lags = tokio::spawn(watch_lag(lag, Arc::clone(&state)));
        let memory = tokio::spawn(watch_memory(system.pids(), Arc::clone(&state)));
        Ok(Self {
            state,
            tasks: [lags, memory],
        })
    }

    /// The largest lag seen since a moment, in events.
    pub fn lag_peak(&self, since: Instant) -> u64 {
        let state = self.state.lock().expect("no holder panics");
        state
            .looks
            .iter()
            .filter(|look| look.0 >= since)
            .filter_map(|look| look.1)
            .max()
            .unwrap_or(0)
    }

    /// What was seen last.
    pub fn last(&self) -> String {
        let state = self.state.lock().expect("no holder panics");
        let lag = state.looks.last().and_then(|look| look.1);
        match (lag, &state.blind) {
            (Some(lag), _) => format!("{lag} events at last"),
            (None, Some(why)) => format!("not known at last: {why}"),
            (None, None) => String::from("never looked at"),
        }
    }

    /// How often the client that asks for the ends of the log was replaced.
    pub fn replaced(&self) -> u32 {
        self.state.lock().expect("no holder panics").replaced
    }

    /// The largest resident memory of each process so far, in MiB.
    pub fn peaks_mib(&self) -> BTreeMap<String, u64> {
        let state = self.state.lock().expect("no holder panics");
        let peaks = state.peaks_kib.iter();
        peaks
            .map(|(name, kib)| (name.clone(), kib.div_ceil(1024)))
            .collect()
    }

    /// Waits until the lag is at most `bound` events again and stays there; returns how long after `since` that was.
    pub async fn recovered(
        &self,
        since: Instant,
        bound: u64,
        deadline: Duration,
    ) -> Option<Duration> {
        while since.elapsed() < deadline + STEADY {
            let found = {
                let state = self.state.lock().expect("no holder panics");
                let after: Vec<Look> = state
                    .looks
                    .iter()
                    .filter(|(at, _)| *at >= since)
                    .copied()
                    .collect();
                recovered_at(&after, bound)
            };
            if let Some(at) = found.filter(|at| *at - since < deadline) {
                return Some(at - since);
            }
            tokio::time::sleep(INTERVAL).await;
        }
        None
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The first of the looks since which the lag has been within the bound, once that has lasted.
fn recovered_at(looks: &[Look], bound: u64) -> Option<Instant> {
    let beyond = |look: &Look| look.1.is_none_or(|lag| lag > bound);
    let begins = looks.iter().rposition(beyond).map_or(0, |last| last + 1);
    let steady = &looks[begins..];
    let (first, last) = (steady.first()?.0, steady.last()?.0);
    (steady.len() >= LOOKS && last - first >= STEADY).then_some(first)
}

struct Lag {
    kafka: KafkaConfig,
    reader: LogReader,
    topic: String,
    client: reqwest::Client,
    ledger: String,
}

impl Lag {
    /// Events between the heads in the store and the ends of the log.
    async fn look(&self) -> Result<u64, Blind> {
        let ledger = self.heads().await.map_err(Blind::Store)?;
        let partitions = ledger["partitions"].as_array().into_iter().flatten();
        let heads: u64 = partitions.map(|one| number(&one["head"])).sum();
        let ends = tokio::time::timeout(LOOK_TIMEOUT, self.ends()).await;
        let ends = ends.map_err(|_| Blind::Log(format!("no answer in {LOOK_TIMEOUT:?}")))??;
        Ok(ends.saturating_sub(heads))
    }

    async fn heads(&self) -> Result<Value, reqwest::Error> {
        let answer = self.client.get(&self.ledger).send().await?;
        answer.error_for_status()?.json().await
    }

    async fn ends(&self) -> Result<u64, Blind> {
        let mut ends = 0;
        for partition in 0..PARTITIONS {
            let marks = self.reader.watermarks(&self.topic, partition).await;
            let marks = marks.map_err(|error| Blind::Log(error.to_string()))?;
            ends += marks.high.max(0).cast_unsigned();
        }
        Ok(ends)
    }
}

/// Who did not tell how far things are.
#[derive(Debug, thiserror::Error)]
enum Blind {
    #[error("the store: {0}")]
    Store(reqwest::Error),
    #[error("the log: {0}")]
    Log(String),
}

async fn watch_lag(mut lag: Lag, state: Arc<Mutex<State>>) {
    let mut blind_since = None;
    loop {
        let found = lag.look().await;
        let now = Instant::now();
        blind_since = match &found {
            Err(Blind::Log(_)) => blind_since.or(Some(now)),
            _ => None,
        };
        {
            let mut state = state.lock().expect("no holder panics");
            state.blind = found.as_ref().err().map(ToString::to_string);
            state.looks.push((now, found.ok()));
        }
        if blind_since.is_some_and(|since| now - since >= BLIND_MAX) {
            let fresh = LogReader::new(&lag.kafka, &FetchConfig::default(), None);
            if let Ok(fresh) = fresh {
                lag.reader = fresh;
                state.lock().expect("no holder panics").replaced += 1;
            }
            blind_since = None;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn watch_memory(pids: Pids, state: Arc<Mutex<State>>) {
    loop {
        let running = pids.lock().expect("no holder panics").clone();
        for (name, pid) in running {
            let Some(kib) = peak_kib(pid) else {
                continue;
            };
            let mut state = state.lock().expect("no holder panics");
            let peak = state.peaks_kib.entry(name).or_default();
            *peak = (*peak).max(kib);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The most memory that a process has had resident, as the kernel keeps it.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovered_is_what_stays_so() {
        let begun = Instant::now();
        let at = |second: u64| begun + Duration::from_secs(second);
        let lags = [
            Some(900),
            Some(10),
            None,
            Some(20),
            Some(21),
            Some(5),
            Some(0),
            Some(20),
        ];
        let looks: Vec<Look> = (0..).map(at).zip(lags).collect();
        assert_eq!(recovered_at(&looks, 20), Some(at(5)));
        assert_eq!(recovered_at(&looks[..7], 20), None, "two looks are too few");
        let quick: Vec<Look> = looks[5..].iter().map(|look| (at(5), look.1)).collect();
        assert_eq!(recovered_at(&quick, 20), None, "it has not lasted");
        assert_eq!(recovered_at(&[], 20), None);
    }

    #[test]
    fn a_process_has_memory() {
        assert!(peak_kib(std::process::id()).is_some_and(|kib| kib > 100));
        assert_eq!(peak_kib(u32::MAX), None);
    }
}
