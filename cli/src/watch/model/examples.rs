//! Systems as tests meet them, made of real answers.

use std::time::Duration;

use crate::{
    health::ServiceReport,
    watch::{
        ANALYTICS, CONSUMER, PRODUCER,
        answers::{Break, Ledger, Row, alerts},
        openmetrics::Scrape,
        visits::{Alerts, Service, Teller, Visit, Visits},
    },
};

/// An hour, two minutes and three seconds after the services of the examples started.
pub const NOW_US: i64 = (1_795_299_223 + 3723) * 1_000_000 + 900_000;

/// What the canary adds to the metrics of analytics.
pub const CANARY: &str = "\
canary_events_sent_total{door=\"http\"} 120
canary_events_received_total{door=\"http\"} 118
canary_events_lost_total{door=\"http\"} 0
canary_roundtrip_seconds_bucket{door=\"http\",le=\"0.1\"} 50
canary_roundtrip_seconds_bucket{door=\"http\",le=\"0.25\"} 118
canary_roundtrip_seconds_bucket{door=\"http\",le=\"+Inf\"} 118
# EOF
";

/// The text with other values for the series that begin so.
pub fn with(text: &str, changes: &[(&str, f64)]) -> String {
    let line = |line: &str| {
        let change = changes.iter().find(|(start, _)| line.starts_with(start));
        let series = line.rsplit_once(' ').map(|(series, _)| series);
        match (change, series) {
            (Some((_, value)), Some(series)) => format!("{series} {value}\n"),
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

/// What a service that is ready answers.
pub fn visit(at_s: u64, metrics: &str) -> Visit {
    Visit {
        at: Duration::from_secs(at_s),
        health: Ok(ServiceReport {
            ready: true,
            ..ServiceReport::default()
        }),
        scrape: Scrape::parse(metrics.as_bytes()).map_err(|error| error.to_string()),
        ledger: None,
    }
}

/// What becomes of asking one that is not there.
pub fn away(at_s: u64) -> Visit {
    let reason = || String::from("Connection refused");
    Visit {
        at: Duration::from_secs(at_s),
        health: Err(reason()),
        scrape: Err(reason()),
        ledger: None,
    }
}

/// A ledger that balances.
pub fn ledger(counted: i64) -> Ledger {
    let row = |partition, counted, in_flight| Row {
        partition,
        head: counted,
        source_end: counted + in_flight,
        counted,
        in_flight,
        valid_batches: 20,
        ..Row::default()
    };
    Ledger {
        partitions: (0..4)
            .map(|partition| row(partition, counted / 4, 3))
            .collect(),
        total: row(-1, counted, 12),
        balanced: true,
        equation: format!(
            "end - start = {} = {counted} counted + 12 in flight",
            counted + 12
        ),
        breaks: Vec::new(),
        remarks: vec![String::from("dead letters are not compared here")],
    }
}

/// A system of which nobody has answered yet.
pub fn asked() -> Visits {
    let address = |port| format!("127.0.0.1:{port}");
    Visits::new([address(8081), address(8082), address(8083)], None)
}

/// What analytics answers.
pub fn analytics(at_s: u64, metrics: &str, ledger: Ledger) -> Visit {
    Visit {
        ledger: Some(Ok(ledger)),
        ..visit(at_s, metrics)
    }
}

/// A healthy system under load, without a canary.
pub fn busy() -> Visits {
    let mut visits = asked();
    visits.take(Service::Producer, visit(1, PRODUCER));
    visits.take(Service::Consumer, visit(1, CONSUMER));
    visits.take(Service::Analytics, analytics(1, ANALYTICS, ledger(2000)));
    visits.alerts = Alerts::NotConfigured;
    let producer = [
        ("events_received_total", 3000.0),
        ("events_accepted_total", 2990.0),
        ("events_rejected_total{reason=\"missing_field\"}", 10.0),
        ("process_cpu_seconds_total", 1.92),
        ("admission_in_flight", 120.0),
    ];
    // Twenty requests more, between 10 and 25 ms.
    let producer = with(PRODUCER, &producer).replace("\"request\"} 20\n", "\"request\"} 40\n");
    visits.take(Service::Producer, visit(3, &producer));
    let consumer = [
        ("ledger_events_total{outcome=\"counted\"}", 2960.0),
        ("ledger_events_total{outcome=\"duplicate\"}", 4.0),
        (
            "kafka_consumer_lag{group=\"streamgauge-consumer\",topic=\"analytics-events\",partition=\"2\"}",
            26.0,
        ),
        (
            "kafka_consumer_lag_seconds{group=\"streamgauge-consumer\",topic=\"analytics-events\",partition=\"2\"}",
            0.052,
        ),
    ];
    visits.take(Service::Consumer, visit(3, &with(CONSUMER, &consumer)));
    let applied = [
        (
            "events_processed_total{event_type=\"click\",outcome=\"applied\"}",
            1457.0,
        ),
        ("event_end_to_end_seconds_bucket{le=\"0.05\"}", 480.0),
        ("event_end_to_end_seconds_bucket{le=\"0.1\"}", 2950.0),
        ("event_end_to_end_seconds_bucket{le=\"", 2960.0),
    ];
    let mut applied = with(ANALYTICS, &applied);
    // What lies below stays as it was.
    for bound in ["0.001", "0.005", "0.01", "0.025"] {
        let start = format!("event_end_to_end_seconds_bucket{{le=\"{bound}\"}}");
        applied = with(&applied, &[(&start, 0.0)]);
    }
    visits.take(Service::Analytics, analytics(3, &applied, ledger(2960)));
    visits
}

/// The same with much that is wrong: the consumer away, the books broken, a breaker open, events in
/// the spool, a canary that loses, alerts.
pub fn trouble() -> Visits {
    let mut visits = busy();
    let producer = [
        ("circuit_breaker_state", 2.0),
        (
            "circuit_breaker_transitions_total{breaker=\"publish\",to=\"open\"}",
            3.0,
        ),
        ("spool_records", 1500.0),
        ("spool_bytes_limit", 1_073_741_824.0),
        ("spool_bytes", 300_000.0),
        ("spool_oldest_age_seconds", 75.0),
        ("admission_rejected_total{reason=\"limit\"}", 500.0),
        ("events_received_total", 3000.0),
        ("events_accepted_total", 2990.0),
        ("events_failed_total{reason=\"overloaded\"}", 10.0),
    ];
    visits.take(Service::Producer, visit(4, &with(PRODUCER, &producer)));
    visits.take(Service::Consumer, away(4));
    let canary = |text: &str| ANALYTICS.replace("# EOF\n", text);
    let lost = with(CANARY, &[("canary_events_lost_total", 2.0)]);
    let mut broken = ledger(2960);
    broken.balanced = false;
    broken.partitions[2].imbalance = 7;
    broken.breaks.push(Break {
        message: String::from("partition 2 differs by 7 events since offset 511"),
    });
    let before = analytics(3, &canary(CANARY), ledger(2960));
    visits.take(Service::Analytics, before);
    visits.take(Service::Analytics, analytics(4, &canary(&lost), broken));
    let firing = br#"[
        {"labels":{"alertname":"ConsumerStopped","severity":"critical","service":"consumer"},
         "annotations":{"summary":"Events wait, and nothing was counted for ten minutes"},
         "startsAt":"2026-11-22T00:00:00Z"},
        {"labels":{"alertname":"PartitionSkew","severity":"warning","service":"consumer","partition":"2"},
         "annotations":{"summary":"One partition is far behind the others"},
         "startsAt":"2026-11-21T20:00:00Z"},
        {"labels":{"alertname":"Watchdog","severity":"info"},"startsAt":"2026-11-20T00:00:00Z"}]"#;
    visits.teller = Teller::Alertmanager(String::from("127.0.0.1:9093"));
    visits.alerts = Alerts::Known(alerts(firing).expect("alerts"));
    visits
}
