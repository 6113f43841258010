//! What is watched during a run: how far the store lies behind the log, and the memory of each process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use streamgauge_kafka::LogReader;
use streamgauge_tests::system::number;
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    failure::Failure,
    system::{PARTITIONS, Pids, System},
};

/// How often both are looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for one look at the lag.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks in a row that must agree before a system counts as recovered.
const LOOKS: usize = 3;

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
    peaks_kib: BTreeMap<String, u64>,
}

impl Sampler {
    /// Starts to watch.
    pub fn start(system: &System) -> Result<Self, Failure> {
        let state = Arc::<Mutex<State>>::default();
        let client = reqwest::Client::builder().timeout(LOOK_TIMEOUT).build();
        let lag = Lag {
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

    /// The largest lag seen so far, in events.
    pub fn lag_peak(&self) -> u64 {
        let state = self.state.lock().expect("no holder panics");
        state
            .looks
            .iter()
            .filter_map(|look| look.1)
            .max()
            .unwrap_or(0)
    }

    /// The largest resident memory of each process so far, in MiB.
    pub fn peaks_mib(&self) -> BTreeMap<String, u64> {
        let state = self.state.lock().expect("no holder panics");
        let peaks = state.peaks_kib.iter();
        peaks
            .map(|(name, kib)| (name.clone(), kib.div_ceil(1024)))
            .collect()
    }

    /// Waits until the lag is at most `bound` events again, for good; returns how long after `since` that was.
    pub async fn recovered(
        &self,
        since: Instant,
        bound: u64,
        deadline: Duration,
    ) -> Option<Duration> {
        while since.elapsed() < deadline {
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
            if let Some(at) = found {
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

/// The first of so many looks in a row that found the lag within the bound.
fn recovered_at(looks: &[Look], bound: u64) -> Option<Instant> {
    let within = |look: &Look| look.1.is_some_and(|lag| lag <= bound);
    let run = looks.windows(LOOKS).find(|run| run.iter().all(within));
    run.map(|run| run[0].0)
}

struct Lag {
    reader: LogReader,
    topic: String,
    client: reqwest::Client,
    ledger: String,
}

impl Lag {
    /// Events between the heads in the store and the ends of the log.
    async fn look(&self) -> Option<u64> {
        let answer = self.client.get(&self.ledger).send().await.ok()?;
        let ledger: Value = answer.json().await.ok()?;
        let heads: u64 = ledger["partitions"]
            .as_array()?
            .iter()
            .map(|one| number(&one["head"]))
            .sum();
        let mut ends = 0;
        for partition in 0..PARTITIONS {
            let marks = self.reader.watermarks(&self.topic, partition).await.ok()?;
            ends += marks.high.max(0).cast_unsigned();
        }
        Some(ends.saturating_sub(heads))
    }
}

async fn watch_lag(lag: Lag, state: Arc<Mutex<State>>) {
    loop {
        let found = tokio::time::timeout(LOOK_TIMEOUT, lag.look()).await;
        let look = (Instant::now(), found.ok().flatten());
        state.lock().expect("no holder panics").looks.push(look);
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
    fn a_single_low_look_is_no_recovery() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut looks = vec![(at(0), Some(900)), (at(1), Some(10)), (at(2), None)];
        looks.extend([(at(3), Some(20)), (at(4), Some(5)), (at(5), Some(0))]);
        assert_eq!(recovered_at(&looks, 20), Some(at(3)));
        assert_eq!(recovered_at(&looks[..5], 20), None);
    }

    #[test]
    fn a_process_has_memory() {
        assert!(peak_kib(std::process::id()).is_some_and(|kib| kib > 100));
        assert_eq!(peak_kib(u32::MAX), None);
    }
}
