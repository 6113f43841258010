//! What the operating system and the Tokio runtime say about this process, read afresh for each scrape.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::Handle;

/// The unit of times in `/proc/self/stat`: `USER_HZ`, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// `process_*`, from `/proc`. What cannot be read is left out.
#[derive(Debug)]
pub(crate) struct ProcessCollector {
    started: f64,
}

impl ProcessCollector {
    pub(crate) fn new() -> Self {
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        ProcessCollector {
            started: process_start().unwrap_or(started.as_secs_f64()),
        }
    }
}

/// When the process began, in unix seconds.
fn process_start() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let since_boot: f64 = stat_fields(&stat)?.get(19)?.parse().ok()?;
    let kernel = std::fs::read_to_string("/proc/stat").ok()?;
    let boot = kernel
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + since_boot / TICKS_PER_SECOND)
}

/// The fields after the name, which stands in parentheses and may hold anything; the first is the state.
fn stat_fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields = stat_fields(&stat)?;
    let user: f64 = fields.get(11)?.parse().ok()?;
    let system: f64 = fields.get(12)?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// A line of `/proc/self/status`, without its unit.
fn status(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_start_matches(':')
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn max_fds() -> Option<i64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_fds() -> Option<i64> {
    // The listing itself holds one open.
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as i64 - 1)
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |name| status(&text, name).map(|kilobytes| kilobytes * 1_024);
        if let Some(seconds) = cpu_seconds() {
            let metric = ConstCounter::new(seconds);
            encode(
                &mut encoder,
                "process_cpu_seconds",
                "Processor time spent",
                &metric,
            )?;
        }
        let start = ConstGauge::new(self.started);
        encode(
            &mut encoder,
            "process_start_time_seconds",
            "When the process began, in unix time",
            &start,
        )?;
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Memory in use",
                kilobytes("VmRSS"),
            ),
            (
                "process_virtual_memory_bytes",
                "Memory mapped",
                kilobytes("VmSize"),
            ),
            ("process_threads", "Threads", status(&text, "Threads")),
            ("process_open_fds", "File descriptors in use", open_fds()),
            (
                "process_max_fds",
                "File descriptors that may be in use",
                max_fds(),
            ),
        ] {
            if let Some(value) = value {
                encode(&mut encoder, name, help, &ConstGauge::new(value))?;
            }
        }
        Ok(())
    }
}

/// `tokio_*`, about the runtime that the service runs in.
pub(crate) struct RuntimeCollector {
    handle: Handle,
}

impl RuntimeCollector {
    pub(crate) fn new(handle: Handle) -> Self {
        RuntimeCollector { handle }
    }
}

impl fmt::Debug for RuntimeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeCollector")
    }
}

impl Collector for RuntimeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let runtime = self.handle.metrics();
        let workers = runtime.num_workers();
        let busy: Duration = (0..workers)
            .map(|worker| runtime.worker_total_busy_duration(worker))
            .sum();
        for (name, help, value) in [
            ("tokio_workers", "Worker threads of the runtime", workers),
            (
                "tokio_alive_tasks",
                "Tasks that have not ended",
                runtime.num_alive_tasks(),
            ),
            (
                "tokio_global_queue_depth",
                "Tasks that wait for any worker",
                runtime.global_queue_depth(),
            ),
        ] {
            encode(&mut encoder, name, help, &ConstGauge::new(value as i64))?;
        }
        let busy = ConstCounter::new(busy.as_secs_f64());
        encode(
            &mut encoder,
            "tokio_worker_busy_seconds",
            "Time that workers were busy",
            &busy,
        )
    }
}

fn encode(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    // The registry ends its own help texts with a full stop.
    let help = format!("{help}.");
    metric.encode(encoder.encode_descriptor(name, &help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[test]
    fn it_knows_this_process() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector::new()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let prefix = format!("{name} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
                .parse()
                .unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_threads") >= 1.0);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-5.0..86_400.0).contains(&age), "{age}");
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let fields = stat_fields("42 (a) b (c) S 1 2 3").unwrap();
        assert_eq!(fields, ["S", "1", "2", "3"]);
    }
}
