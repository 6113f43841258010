//! The parts of a system: services, breakers, admission, spool, canary and alerts.

use serde::Serialize;

use super::flow::quantiles;
use crate::{
    times,
    watch::{
        answers::Alert,
        histogram::{Histogram, Quantiles},
        openmetrics::Scrape,
        visits::{Alerts, Service, Teller, Visits, Watched},
    },
};

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The first answer is still to come.
    Asking,
    /// It takes work.
    Ready,
    /// It answers and takes no work.
    NotReady,
    /// It is going.
    Draining,
    /// It does not answer.
    Away,
}

impl State {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Ready => "ready",
            Self::NotReady => "NOT READY",
            Self::Draining => "draining",
            Self::Away => "NO ANSWER",
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceRow {
    /// Its name.
    pub name: &'static str,
    /// Where it is looked for.
    pub address: String,
    /// How it is.
    pub state: State,
    /// Why, unless it is ready; or why its metrics cannot be read.
    pub reason: Option<String>,
    /// Memory in use.
    pub memory_bytes: Option<f64>,
    /// Processors in use.
    pub cpus: Option<f64>,
    /// Since it started.
    pub up_seconds: Option<f64>,
    /// Errors since it started.
    pub errors: Option<f64>,
}

/// The services, in the order in which events pass.
pub fn services(visits: &Visits, now_us: i64) -> Vec<ServiceRow> {
    let row = |watched: &Watched| {
        let (state, reason) = state(watched);
        let sum = |name| watched.scrape().and_then(|scrape| scrape.sum(name));
        let started = sum("process_start_time_seconds");
        ServiceRow {
            name: watched.service.name(),
            address: watched.address.clone(),
            state,
            reason,
            memory_bytes: sum("process_resident_memory_bytes"),
            cpus: watched.per_second(|scrape| scrape.sum("process_cpu_seconds_total")),
            up_seconds: started.map(|started| (now_us as f64 / 1e6 - started).max(0.0)),
            errors: sum("errors_total"),
        }
    };
    visits.services.iter().map(row).collect()
}

fn state(watched: &Watched) -> (State, Option<String>) {
    let Some(last) = &watched.last else {
        return (State::Asking, None);
    };
    let report = match &last.health {
        Err(reason) => return (State::Away, Some(reason.clone())),
        Ok(report) => report,
    };
    if report.shutting_down {
        return (State::Draining, None);
    }
    if !report.ready {
        let down = report.conditions.iter().filter(|one| !one.ready);
        let down: Vec<String> = down
            .map(|one| format!("{}: {}", one.name, one.detail))
            .collect();
        return (State::NotReady, Some(down.join("; ")));
    }
    let unread = last.scrape.as_ref().err();
    (
        State::Ready,
        unread.map(|reason| format!("/metrics: {reason}")),
    )
}

/// How a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// One call tries.
    HalfOpen,
    /// Calls are refused.
    Open,
}

impl BreakerState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "OPEN",
        }
    }
}

/// A circuit breaker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breaker {
    /// Whose.
    pub service: &'static str,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: BreakerState,
    /// How often it opened since the service started.
    pub opened: f64,
}

/// Every breaker of every service.
pub fn breakers(visits: &Visits) -> Vec<Breaker> {
    let of = |service: Service| {
        let scrape = visits.of(service).scrape();
        let states = scrape.map(|scrape| scrape.by("circuit_breaker_state", "breaker"));
        states
            .unwrap_or_default()
            .into_iter()
            .map(move |(name, value)| Breaker {
                service: service.name(),
                state: breaker_state(value),
                opened: scrape.map_or(0.0, |scrape| opened(scrape, &name)),
                name,
            })
    };
    Service::ALL.into_iter().flat_map(of).collect()
}

/// 0 closed, 1 half-open, 2 open.
fn breaker_state(value: f64) -> BreakerState {
    if value < 0.5 {
        BreakerState::Closed
    } else if value < 1.5 {
        BreakerState::HalfOpen
    } else {
        BreakerState::Open
    }
}

fn opened(scrape: &Scrape, breaker: &str) -> f64 {
    scrape
        .with("circuit_breaker_transitions_total", "breaker", breaker)
        .filter(|series| series.label("to") == Some("open"))
        .map(|series| series.value)
        .sum()
}

/// Who is let in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Admission {
    /// Units of work under way.
    pub in_flight: f64,
    /// How many may be.
    pub limit: f64,
    /// Turned away a second because there is too much to do.
    pub shed_per_second: Option<f64>,
    /// Turned away a second because a client has used up its allowance.
    pub limited_per_second: Option<f64>,
}

/// The producer's admission.
pub fn admission(visits: &Visits) -> Option<Admission> {
    let producer = visits.of(Service::Producer);
    let scrape = producer.scrape()?;
    Some(Admission {
        in_flight: scrape.sum("admission_in_flight")?,
        limit: scrape.sum("admission_limit")?,
        shed_per_second: producer.per_second(|scrape| scrape.sum("admission_rejected_total")),
        limited_per_second: producer.per_second(|scrape| scrape.sum("rate_limited_total")),
    })
}

/// What waits on the producer's disk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spool {
    /// Events.
    pub records: f64,
    /// Bytes.
    pub bytes: f64,
    /// How many bytes it takes.
    pub bytes_limit: f64,
    /// Age of the oldest.
    pub oldest_seconds: f64,
    /// Events that were lost from it since the producer started.
    pub lost: f64,
}

/// The producer's spool.
pub fn spool(visits: &Visits) -> Option<Spool> {
    let scrape = visits.of(Service::Producer).scrape()?;
    let sum = |name| scrape.sum(name);
    Some(Spool {
        records: sum("spool_records")?,
        bytes: sum("spool_bytes")?,
        bytes_limit: sum("spool_bytes_limit").filter(|limit| *limit > 0.0)?,
        oldest_seconds: sum("spool_oldest_age_seconds").unwrap_or(0.0),
        lost: sum("spool_lost_total").unwrap_or(0.0),
    })
}

/// A way by which the canary's events go in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Door {
    /// Which one.
    pub door: String,
    /// Events sent since analytics started.
    pub sent: f64,
    /// Events that came out of a query.
    pub received: f64,
    /// Events that did not.
    pub lost: f64,
    /// Lost between the last two scrapes.
    pub lost_per_second: Option<f64>,
    /// From submission to the answer, between the last two scrapes.
    pub roundtrip: Option<Quantiles>,
    /// The same since analytics started.
    pub roundtrip_since_start: Option<Quantiles>,
}

/// The canary's doors, none when it is off; absent when analytics is away.
pub fn canary(visits: &Visits) -> Option<Vec<Door>> {
    let analytics = visits.of(Service::Analytics);
    let scrape = analytics.scrape()?;
    let doors = scrape.by("canary_events_sent_total", "door");
    let door = |(door, sent): (String, f64)| {
        let count = |scrape: &Scrape, name: &str| -> Option<f64> {
            let mut series = scrape.with(name, "door", &door).peekable();
            series.peek()?;
            Some(series.map(|series| series.value).sum())
        };
        let (roundtrip, roundtrip_since_start) = quantiles(analytics, |scrape| {
            Histogram::of(scrape.with("canary_roundtrip_seconds_bucket", "door", &door))
        });
        Door {
            sent,
            received: count(scrape, "canary_events_received_total").unwrap_or(0.0),
            lost: count(scrape, "canary_events_lost_total").unwrap_or(0.0),
            lost_per_second: analytics
                .per_second(|scrape| count(scrape, "canary_events_lost_total")),
            roundtrip,
            roundtrip_since_start,
            door: door.clone(),
        }
    };
    // Its metrics are there from the start, whether it is on or not.
    let is_on = doors.iter().any(|(_, sent)| *sent > 0.0);
    Some(match is_on {
        true => doors.into_iter().map(door).collect(),
        false => Vec::new(),
    })
}

/// What fires.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AlertsView {
    /// Neither the user nor analytics knows an Alertmanager.
    NotConfigured,
    /// The first answer is still to come.
    Asking,
    /// There is no answer.
    Silent {
        /// Whether analytics was asked for them, rather than Alertmanager itself.
        by_analytics: bool,
        /// Who was asked.
        address: String,
        /// Why not.
        reason: String,
    },
    /// What was answered.
    Known {
        /// Who was asked.
        address: String,
        /// The heaviest first.
        firing: Vec<FiringAlert>,
    },
}

impl AlertsView {
    /// Why what fires is not known, though somebody should know, in a sentence.
    pub fn silence(&self) -> Option<String> {
        match self {
            Self::Silent {
                by_analytics: true,
                reason,
                ..
            } => Some(format!("analytics cannot tell what fires: {reason}")),
            Self::Silent {
                address, reason, ..
            } => Some(format!(
                "Alertmanager does not answer at {address}: {reason}"
            )),
            Self::NotConfigured | Self::Asking | Self::Known { .. } => None,
        }
    }
}

/// A firing alert, and for how long.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FiringAlert {
    /// The alert.
    #[serde(flatten)]
    pub alert: Alert,
    /// For how long, where it says since when.
    pub for_seconds: Option<f64>,
}

/// The alerts.
pub fn alerts(visits: &Visits, now_us: i64) -> AlertsView {
    let address = visits.teller.address().to_owned();
    match &visits.alerts {
        Alerts::NotConfigured => AlertsView::NotConfigured,
        Alerts::NotAsked => AlertsView::Asking,
        Alerts::Silent(reason) => AlertsView::Silent {
            by_analytics: matches!(visits.teller, Teller::Analytics(_)),
            address,
            reason: reason.clone(),
        },
        Alerts::Known(alerts) => {
            let firing = alerts.iter().map(|alert| FiringAlert {
                alert: alert.clone(),
                for_seconds: times::absolute(&alert.since)
                    .map(|since_us| now_us.saturating_sub(since_us).max(0) as f64 / 1e6),
            });
            AlertsView::Known {
                address,
                firing: firing.collect(),
            }
        }
    }
}
