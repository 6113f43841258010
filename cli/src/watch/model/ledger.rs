//! How events ended, and whether it adds up: what analytics judges, and what each service says of
//! its own part.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::watch::{
    answers::Ledger,
    openmetrics::Scrape,
    visits::{Service, Visits},
};

/// The difference that one service found in one place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Which service.
    pub service: &'static str,
    /// Which place.
    pub stage: String,
    /// Events; anything but 0 is a defect.
    pub imbalance: f64,
}

/// The ledger, as far as it is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LedgerView {
    /// What analytics answered; else why it did not.
    pub judged: Result<Ledger, String>,
    /// Offsets of each outcome a second, as the ledger moved, in the order of [`LedgerView::outcomes`].
    pub per_second: Vec<Option<f64>>,
    /// `ledger_imbalance` of every service.
    pub stages: Vec<Stage>,
    /// Whether the producer's sums add up; absent when it is away.
    pub producer_difference: Option<f64>,
    /// Refused for good, by reason.
    pub rejected: BTreeMap<String, f64>,
    /// Not accepted, by reason.
    pub failed: BTreeMap<String, f64>,
    /// Dead letters since the consumer started, by reason.
    pub dead_letters: BTreeMap<String, f64>,
}

impl LedgerView {
    /// How the offsets ended, by name.
    pub fn outcomes(ledger: &Ledger) -> [(&'static str, i64); 6] {
        let total = &ledger.total;
        [
            ("counted", total.counted),
            ("duplicate", total.duplicate),
            ("late", total.late),
            ("dead-lettered", total.dead_lettered),
            ("missing", total.missing),
            ("no record", total.no_record),
        ]
    }

    /// Whether everything adds up; `None` when nobody tells.
    pub fn balanced(&self) -> Option<bool> {
        let judged = self.judged.as_ref().ok().map(|ledger| ledger.balanced);
        let stages = (!self.stages.is_empty())
            .then(|| self.stages.iter().all(|stage| stage.imbalance == 0.0));
        match (judged, stages) {
            (None, None) => None,
            (judged, stages) => Some(judged.unwrap_or(true) && stages.unwrap_or(true)),
        }
    }
}

/// What the services tell of it.
pub fn ledger(visits: &Visits) -> LedgerView {
    let analytics = visits.of(Service::Analytics);
    let ledger_of = |visit: &Option<crate::watch::visits::Visit>| {
        let visit = visit.as_ref()?;
        visit.ledger.clone()
    };
    let judged = ledger_of(&analytics.last);
    let judged = judged.unwrap_or_else(|| Err(String::from("not asked yet")));
    let before = ledger_of(&analytics.before).and_then(Result::ok);
    let seconds = analytics.earlier().map(|(_, seconds)| seconds);
    let scrape = |service| visits.of(service).scrape();
    let reasons = |service, name: &str| {
        let by = scrape(service).map(|scrape| scrape.by(name, "reason"));
        let mut by = by.unwrap_or_default();
        by.retain(|_, events| *events > 0.0);
        by
    };
    LedgerView {
        per_second: rates(judged.as_ref().ok(), before.as_ref(), seconds),
        judged,
        stages: stages(visits),
        producer_difference: scrape(Service::Producer).and_then(difference),
        rejected: reasons(Service::Producer, "events_rejected_total"),
        failed: reasons(Service::Producer, "events_failed_total"),
        dead_letters: reasons(Service::Consumer, "dlq_events_total"),
    }
}

fn rates(now: Option<&Ledger>, before: Option<&Ledger>, seconds: Option<f64>) -> Vec<Option<f64>> {
    let Some(now) = now else {
        return Vec::new();
    };
    let before = before.map(LedgerView::outcomes);
    let outcomes = LedgerView::outcomes(now).into_iter().enumerate();
    let rate = |(index, (_, offsets)): (usize, (&str, i64))| {
        let grew = offsets - before.as_ref()?[index].1;
        (grew >= 0).then_some(grew as f64 / seconds?)
    };
    outcomes.map(rate).collect()
}

fn stages(visits: &Visits) -> Vec<Stage> {
    let of = |service: Service| {
        let scrape = visits.of(service).scrape();
        let stages = scrape.map(|scrape| scrape.by("ledger_imbalance", "stage"));
        stages
            .unwrap_or_default()
            .into_iter()
            .map(move |(stage, imbalance)| Stage {
                service: service.name(),
                stage,
                imbalance,
            })
    };
    Service::ALL.into_iter().flat_map(of).collect()
}

/// Every event that was received is accepted, rejected or failed; these move together.
fn difference(scrape: &Scrape) -> Option<f64> {
    let sum = |name| scrape.sum(name);
    let ended =
        sum("events_accepted_total")? + sum("events_rejected_total")? + sum("events_failed_total")?;
    Some(sum("events_received_total")? - ended)
}
