//! What is broken and what is worth a look, in sentences: the reason for the verdict.

use serde::Serialize;

use super::{
    Model,
    parts::{AlertsView, BreakerState, ServiceRow, State},
};
use crate::{
    table::whole,
    watch::{
        answers::Severity,
        units,
        visits::{Service, Visits},
    },
};

/// From this age of the oldest unprocessed record on the lag is worth a look, as for the alert.
const LAG_LOOK_S: f64 = 30.0;
/// From this age on it is broken, as for the alert that wakes somebody.
const LAG_BROKEN_S: f64 = 300.0;

/// How much a finding weighs; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// It is broken.
    Broken,
    /// It is worth a look.
    Look,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// How much it weighs.
    pub weight: Weight,
    /// What it is.
    pub text: String,
}

struct Findings(Vec<Finding>);

impl Findings {
    fn broken(&mut self, text: impl Into<String>) {
        self.0.push(Finding {
            weight: Weight::Broken,
            text: text.into(),
        });
    }

    fn look(&mut self, text: impl Into<String>) {
        self.0.push(Finding {
            weight: Weight::Look,
            text: text.into(),
        });
    }
}

/// All of them, the worst first.
pub fn findings(model: &Model, visits: &Visits) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    services(model, visits, &mut found);
    ledger(model, &mut found);
    lag(model, &mut found);
    breakers(model, &mut found);
    producer(model, &mut found);
    canary(model, &mut found);
    alerts(model, &mut found);
    found.0.sort_by_key(|finding| finding.weight);
    found.0
}

fn services(model: &Model, visits: &Visits, found: &mut Findings) {
    for row in &model.services {
        let reason = row.reason.as_deref().unwrap_or_default();
        match row.state {
            State::Away => found.broken(format!(
                "{} does not answer at {}: {reason}",
                row.name, row.address
            )),
            State::NotReady => found.broken(format!("{} is not ready: {reason}", row.name)),
            State::Ready if !reason.is_empty() => {
                found.broken(format!("{} cannot be read: {reason}", row.name));
            }
            State::Draining => found.look(format!("{} is shutting down", row.name)),
            State::Ready | State::Asking => {}
        }
    }
    for watched in &visits.services {
        let skipped = watched.scrape().map_or(0, |scrape| scrape.lines_skipped);
        if skipped > 0 {
            let name = watched.service.name();
            found.look(format!(
                "{skipped} lines of the metrics of {name} cannot be read"
            ));
        }
    }
    let analytics = visits.of(Service::Analytics).scrape();
    if analytics.and_then(|scrape| scrape.sum("kafka_reachable")) == Some(0.0) {
        found.broken("analytics cannot reach the log");
    }
}

fn ledger(model: &Model, found: &mut Findings) {
    let ledger = &model.ledger;
    let is_there = model
        .services
        .iter()
        .any(|row| row.name == "analytics" && row.state == State::Ready);
    match &ledger.judged {
        Ok(judged) if !judged.balanced => {
            let first = judged.breaks.first().map_or("", |one| &one.message);
            found.broken(format!("the ledger does not balance: {first}"));
        }
        Ok(judged) if judged.total.missing > 0 => {
            let missing = whole(judged.total.missing);
            found.look(format!("{missing} events were gone before they were read"));
        }
        // Of a service that is away its row tells.
        Err(reason) if is_there => found.broken(format!("the ledger cannot be read: {reason}")),
        Ok(_) | Err(_) => {}
    }
    for stage in ledger.stages.iter().filter(|stage| stage.imbalance != 0.0) {
        found.broken(format!(
            "{} finds a difference of {} events (stage {})",
            stage.service,
            units::count(stage.imbalance),
            stage.stage
        ));
    }
    if let Some(difference) = ledger.producer_difference.filter(|events| *events != 0.0) {
        found.broken(format!(
            "the producer's sums differ by {} events",
            units::count(difference)
        ));
    }
}

fn lag(model: &Model, found: &mut Findings) {
    let seconds = model.lag.seconds.unwrap_or(0.0);
    let text = || {
        format!(
            "the oldest unprocessed event is {} old",
            units::seconds(seconds)
        )
    };
    if seconds >= LAG_BROKEN_S {
        found.broken(text());
    } else if seconds >= LAG_LOOK_S {
        found.look(text());
    }
}

fn breakers(model: &Model, found: &mut Findings) {
    for breaker in &model.breakers {
        let text = format!(
            "breaker {} of {} is {}",
            breaker.name,
            breaker.service,
            breaker.state.as_str()
        );
        match breaker.state {
            BreakerState::Open => found.broken(text),
            BreakerState::HalfOpen => found.look(text),
            BreakerState::Closed => {}
        }
    }
}

fn producer(model: &Model, found: &mut Findings) {
    if let Some(spool) = &model.spool {
        if spool.lost > 0.0 {
            found.broken(format!(
                "the spool lost {} events",
                units::count(spool.lost)
            ));
        }
        if spool.records > 0.0 {
            found.look(format!(
                "{} events wait in the producer's spool, the oldest for {}",
                units::count(spool.records),
                units::seconds(spool.oldest_seconds)
            ));
        }
    }
    let admission = model.admission.as_ref();
    let shed = admission.and_then(|admission| admission.shed_per_second);
    if let Some(shed) = shed.filter(|shed| *shed > 0.0) {
        found.look(format!("the producer sheds {} a second", units::rate(shed)));
    }
    let limited = admission.and_then(|admission| admission.limited_per_second);
    if let Some(limited) = limited.filter(|limited| *limited > 0.0) {
        found.look(format!(
            "clients are limited {} times a second",
            units::rate(limited)
        ));
    }
}

fn canary(model: &Model, found: &mut Findings) {
    for door in model.canary.iter().flatten() {
        if door.lost_per_second.is_some_and(|lost| lost > 0.0) {
            found.broken(format!("the canary loses events by {}", door.door));
        } else if door.lost > 0.0 {
            found.look(format!(
                "the canary lost {} events by {} since analytics started",
                units::count(door.lost),
                door.door
            ));
        }
    }
}

fn alerts(model: &Model, found: &mut Findings) {
    match &model.alerts {
        AlertsView::Silent { by_analytics, .. } => {
            // That analytics does not answer at all has been said.
            let is_away = |row: &ServiceRow| {
                row.name == Service::Analytics.name() && row.state == State::Away
            };
            if !by_analytics || !model.services.iter().any(is_away) {
                model
                    .alerts
                    .silence()
                    .into_iter()
                    .for_each(|text| found.broken(text));
            }
        }
        AlertsView::Known { firing, .. } => {
            for firing in firing {
                let alert = &firing.alert;
                let mut text = format!("alert {}", alert.name);
                if !alert.summary.is_empty() {
                    text = format!("{text}: {}", alert.summary);
                }
                match alert.severity {
                    Severity::Critical => found.broken(text),
                    Severity::Warning => found.look(text),
                    Severity::Info => {}
                }
            }
        }
        AlertsView::NotConfigured | AlertsView::Asking => {}
    }
}
