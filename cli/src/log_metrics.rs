//! What the embedded log tells about itself, as metrics: on its own `/metrics` where it runs alone, on the producer's,
//! since producing is what a log is for, where all is one process.

use std::fmt;

use streamgauge_broker::{BrokerStats, PartitionStats};
use streamgauge_telemetry::metric::{
    Collector, ConstCounter, ConstGauge, DescriptorEncoder, EncodeMetric, MetricEncoder, MetricType,
};

/// Most partitions that have series of their own; clients may make topics.
const PARTITIONS_MAX: usize = 128;

/// Reads the log's counters at each scrape.
pub struct LogMetrics {
    read: Box<dyn Fn() -> BrokerStats + Send + Sync>,
}

impl LogMetrics {
    /// Metrics of the log that is read so.
    pub fn new(read: impl Fn() -> BrokerStats + Send + Sync + 'static) -> Self {
        Self {
            read: Box::new(read),
        }
    }
}

impl fmt::Debug for LogMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogMetrics")
    }
}

impl Collector for LogMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = (self.read)();
        for (name, help, value) in counters(&stats) {
            let metric = ConstCounter::new(value);
            metric.encode(describe(&mut encoder, name, help, MetricType::Counter)?)?;
        }
        for (name, help, value) in [
            (
                "log_connections_open",
                "Connections of clients to the embedded log",
                stats.connections_open,
            ),
            (
                "log_groups",
                "Consumer groups that the embedded log knows",
                stats.groups,
            ),
        ] {
            let metric = ConstGauge::new(gauge(value));
            metric.encode(describe(&mut encoder, name, help, MetricType::Gauge)?)?;
        }
        partitions(&mut encoder, &stats.partitions)
    }
}

fn counters(stats: &BrokerStats) -> [(&'static str, &'static str, u64); 10] {
    [
        (
            "log_connections_accepted",
            "Connections that the embedded log has taken",
            stats.connections_accepted,
        ),
        (
            "log_connections_refused",
            "Connections closed at once because as many as allowed were open",
            stats.connections_refused,
        ),
        (
            "log_requests",
            "Requests of the Kafka protocol",
            stats.requests,
        ),
        (
            "log_requests_malformed",
            "Connections closed because of a request that made no sense",
            stats.requests_malformed,
        ),
        (
            "log_records_appended",
            "Records written to the embedded log",
            stats.records_appended,
        ),
        (
            "log_appended_bytes",
            "Bytes of record batches written to the embedded log",
            stats.bytes_appended,
        ),
        (
            "log_batches_appended",
            "Record batches written to the embedded log",
            stats.batches_appended,
        ),
        (
            "log_batches_duplicate",
            "Record batches that were stored before and acknowledged again",
            stats.batches_duplicate,
        ),
        (
            "log_batches_refused",
            "Produced record batches answered with an error",
            stats.batches_refused,
        ),
        (
            "log_fetched_bytes",
            "Bytes of record batches that clients were given",
            stats.bytes_fetched,
        ),
    ]
}

type Reading = fn(&PartitionStats) -> i64;

fn partitions(encoder: &mut DescriptorEncoder<'_>, found: &[PartitionStats]) -> fmt::Result {
    let readings: [(&str, &str, Reading); 7] = [
        (
            "log_start_offset",
            "The first offset that the embedded log still holds",
            |one| one.log_start,
        ),
        (
            "log_end_offset",
            "One past the last offset of the embedded log",
            |one| one.log_end,
        ),
        (
            "log_size_bytes",
            "Size of the embedded log's files",
            |one| gauge(one.size_bytes),
        ),
        (
            "log_recovery_cut_bytes",
            "What the last start cut off because it was torn or damaged",
            |one| gauge(one.recovery_cut_bytes),
        ),
        (
            "log_recovery_set_aside_bytes",
            "How much of that is kept in *.damaged files; anything but 0 wants a look",
            |one| gauge(one.recovery_set_aside_bytes),
        ),
        (
            "log_recovery_damage",
            "Signs that the last start found of records or files that are missing; anything but 0 means that the disk loses data",
            |one| gauge(one.recovery_damage),
        ),
        (
            "log_damaged_reads",
            "Reads that met with bytes that are not what was written; anything but 0 means that the disk loses data",
            |one| gauge(one.damaged_reads),
        ),
    ];
    for (name, help, reading) in readings {
        let mut family = describe(encoder, name, help, MetricType::Gauge)?;
        for one in found.iter().take(PARTITIONS_MAX) {
            let partition = one.partition.to_string();
            let labels = [("topic", one.topic.as_str()), ("partition", &partition)];
            ConstGauge::new(reading(one)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn describe<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
    kind: MetricType,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    // The registry ends its own help texts with a full stop.
    encoder.encode_descriptor(name, &format!("{help}."), None, kind)
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use streamgauge_telemetry::Metrics;

    use super::*;

    #[test]
    fn a_scrape_reads_the_log_and_is_bounded() {
        let partition = |partition| PartitionStats {
            topic: String::from("events"),
            partition,
            log_start: 3,
            log_end: 10,
            size_bytes: 700,
            recovery_cut_bytes: 0,
            recovery_set_aside_bytes: 0,
            recovery_damage: 0,
            damaged_reads: 0,
        };
        let stats = BrokerStats {
            records_appended: 7,
            connections_open: 2,
            partitions: (0..200).map(partition).collect(),
            ..BrokerStats::default()
        };
        let metrics = Metrics::new("producer");
        metrics.with(|registry| {
            registry.register_collector(Box::new(LogMetrics::new(move || stats.clone())));
        });
        let text = metrics.encode();
        for line in [
            "log_records_appended_total 7",
            "log_connections_open 2",
            "log_end_offset{topic=\"events\",partition=\"1\"} 10",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        let series = text
            .lines()
            .filter(|line| line.starts_with("log_end_offset{"));
        assert_eq!(series.count(), PARTITIONS_MAX);
    }
}
