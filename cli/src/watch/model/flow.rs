//! How many events pass each step, how long it takes them, and how far behind the consumer is.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::watch::{
    answers::Row,
    histogram::{Histogram, Quantiles},
    openmetrics::Scrape,
    visits::{Service, Visits, Watched},
};

/// One step of the flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FlowRow {
    /// What became of the events.
    pub name: &'static str,
    /// How many a second, between the last two scrapes.
    pub per_second: Option<f64>,
    /// How many since the service started.
    pub total: Option<f64>,
}

type Count = fn(&Scrape) -> Option<f64>;

const FLOW: [(&str, Service, Count); 6] = [
    ("received", Service::Producer, |scrape| {
        scrape.sum("events_received_total")
    }),
    ("accepted", Service::Producer, |scrape| {
        scrape.sum("events_accepted_total")
    }),
    ("rejected", Service::Producer, |scrape| {
        scrape.sum("events_rejected_total")
    }),
    ("failed", Service::Producer, |scrape| {
        scrape.sum("events_failed_total")
    }),
    ("processed", Service::Consumer, processed),
    ("applied", Service::Analytics, applied),
];

/// Every end of an event; an offset without a record is none.
fn processed(scrape: &Scrape) -> Option<f64> {
    let ends = scrape.all("ledger_events_total").iter();
    let ends = ends.filter(|series| series.label("outcome") != Some("no_record"));
    let (mut sum, mut any) = (0.0, false);
    for series in ends {
        (sum, any) = (sum + series.value, true);
    }
    any.then_some(sum)
}

fn applied(scrape: &Scrape) -> Option<f64> {
    let mut applied = scrape
        .with("events_processed_total", "outcome", "applied")
        .peekable();
    applied.peek()?;
    Some(applied.map(|series| series.value).sum())
}

/// The steps in the order in which events pass them.
pub fn flow(visits: &Visits) -> Vec<FlowRow> {
    let rows = FLOW.iter().map(|(name, service, count)| {
        let watched = visits.of(*service);
        FlowRow {
            name,
            per_second: watched.per_second(count),
            total: watched.scrape().and_then(count),
        }
    });
    rows.collect()
}

/// How long one step takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LatencyRow {
    /// Which step.
    pub name: &'static str,
    /// Between the last two scrapes; absent when nothing passed.
    pub now: Option<Quantiles>,
    /// Since the service started.
    pub since_start: Option<Quantiles>,
}

const STAGES: &str = "event_processing_duration_seconds_bucket";
const END_TO_END: &str = "event_end_to_end_seconds_bucket";

/// Name, service, metric and, where it has stages, which.
const LATENCY: [(&str, Service, &str, Option<&str>); 6] = [
    ("end to end", Service::Analytics, END_TO_END, None),
    ("request", Service::Producer, STAGES, Some("request")),
    ("publish", Service::Producer, STAGES, Some("publish")),
    ("process", Service::Consumer, STAGES, Some("process")),
    ("apply", Service::Analytics, STAGES, Some("apply")),
    ("query", Service::Analytics, STAGES, Some("query")),
];

/// The steps that somebody waits for.
pub fn latency(visits: &Visits) -> Vec<LatencyRow> {
    let rows = LATENCY.iter().map(|(name, service, metric, stage)| {
        let histogram = |scrape: &Scrape| match stage {
            Some(stage) => Histogram::of(scrape.with(metric, "stage", stage)),
            None => Histogram::of(scrape.all(metric).iter()),
        };
        let (now, since_start) = quantiles(visits.of(*service), histogram);
        LatencyRow {
            name,
            now,
            since_start,
        }
    });
    rows.collect()
}

/// Of one histogram: between the last two scrapes, and since the start.
pub fn quantiles(
    watched: &Watched,
    histogram: impl Fn(&Scrape) -> Histogram,
) -> (Option<Quantiles>, Option<Quantiles>) {
    let last = watched.scrape().map(&histogram);
    let earlier = watched.earlier().map(|(scrape, _)| histogram(scrape));
    let now = last.as_ref().zip(earlier.as_ref());
    let now = now.and_then(|(last, earlier)| last.since(earlier)?.quantiles());
    (now, last.and_then(|last| last.quantiles()))
}

/// How far behind the consumer is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lag {
    /// Records.
    pub records: Option<f64>,
    /// Age of the oldest.
    pub seconds: Option<f64>,
    /// By how many records a second it grows.
    pub growth_per_second: Option<f64>,
}

const RECORDS: &str = "kafka_consumer_lag";
const SECONDS: &str = "kafka_consumer_lag_seconds";

/// Over all partitions.
pub fn lag(visits: &Visits) -> Lag {
    let partitions = lags(visits);
    let records = partitions.values().filter_map(|lag| lag.records);
    let seconds = partitions.values().filter_map(|lag| lag.seconds);
    let consumer = visits.of(Service::Consumer);
    // Where the consumer is away, analytics still sees the group from outside.
    let teller = match consumer.scrape().and_then(|scrape| scrape.sum(RECORDS)) {
        Some(_) => consumer,
        None => visits.of(Service::Analytics),
    };
    let growth = || {
        let now = teller.scrape()?.sum(RECORDS)?;
        let (then, seconds) = teller.earlier()?;
        Some((now - then.sum(RECORDS)?) / seconds)
    };
    Lag {
        records: (!partitions.is_empty()).then(|| records.sum()),
        seconds: seconds.reduce(f64::max),
        growth_per_second: growth(),
    }
}

#[derive(Clone, Copy, Default)]
struct PartitionLag {
    records: Option<f64>,
    seconds: Option<f64>,
}

/// Per partition: what its owner tells, else what analytics sees from outside.
fn lags(visits: &Visits) -> BTreeMap<i32, PartitionLag> {
    let mut lags: BTreeMap<i32, PartitionLag> = BTreeMap::new();
    for service in [Service::Analytics, Service::Consumer] {
        let Some(scrape) = visits.of(service).scrape() else {
            continue;
        };
        for (partition, records) in per_partition(scrape, RECORDS) {
            lags.entry(partition).or_default().records = Some(records);
        }
        for (partition, seconds) in per_partition(scrape, SECONDS) {
            lags.entry(partition).or_default().seconds = Some(seconds);
        }
    }
    lags
}

fn per_partition(scrape: &Scrape, name: &str) -> Vec<(i32, f64)> {
    let by = scrape.by(name, "partition");
    by.into_iter()
        .filter_map(|(partition, value)| Some((partition.parse().ok()?, value)))
        .collect()
}

/// One partition of the topic of events.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartitionRow {
    /// Which one.
    pub partition: i32,
    /// Records that its owner has not processed.
    pub lag_records: Option<f64>,
    /// Age of the oldest of them.
    pub lag_seconds: Option<f64>,
    /// Counted a second, as the ledger moved.
    pub counted_per_second: Option<f64>,
    /// Its ledger; absent when analytics does not tell.
    pub ledger: Option<Row>,
}

/// All partitions that anybody knows of.
pub fn partitions(visits: &Visits) -> Vec<PartitionRow> {
    let lags = lags(visits);
    let analytics = visits.of(Service::Analytics);
    let rows = |visit: Option<&crate::watch::visits::Visit>| -> BTreeMap<i32, Row> {
        let ledger = visit.and_then(|visit| visit.ledger.as_ref()?.as_ref().ok());
        let rows = ledger.map(|ledger| ledger.partitions.iter());
        rows.into_iter()
            .flatten()
            .map(|row| (row.partition, *row))
            .collect()
    };
    let (last, before) = (
        rows(analytics.last.as_ref()),
        rows(analytics.before.as_ref()),
    );
    let seconds = analytics.earlier().map(|(_, seconds)| seconds);
    let known: BTreeSet<i32> = lags.keys().chain(last.keys()).copied().collect();
    let row = |partition: i32| {
        let lag = lags.get(&partition).copied().unwrap_or_default();
        let rate = || {
            let counted = last.get(&partition)?.counted - before.get(&partition)?.counted;
            (counted >= 0).then_some(counted as f64 / seconds?)
        };
        PartitionRow {
            partition,
            lag_records: lag.records,
            lag_seconds: lag.seconds,
            counted_per_second: rate(),
            ledger: last.get(&partition).copied(),
        }
    };
    known.into_iter().map(row).collect()
}
