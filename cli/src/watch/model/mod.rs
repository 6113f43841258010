//! What is shown, made of what was answered: a pure function of the last two answers and the time.
//!
//! Where something is not known it is absent here, never 0 and never what it was before.

#[cfg(test)]
pub mod examples;
mod findings;
mod flow;
mod ledger;
mod parts;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use self::{
    findings::{Finding, Weight},
    flow::{FlowRow, Lag, LatencyRow, PartitionRow},
    ledger::LedgerView,
    parts::{
        Admission, AlertsView, Breaker, BreakerState, Door, FiringAlert, ServiceRow, Spool, State,
    },
};
use super::visits::Visits;
use crate::times;

/// The word for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The first answers are still to come.
    Asking,
    /// Nothing to do.
    Healthy,
    /// Nothing is broken, something is worth a look.
    Look,
    /// Something is broken.
    Broken,
}

/// Everything that is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// When, in UTC.
    pub at: String,
    /// The word for all of it.
    pub verdict: Verdict,
    /// What is broken and what is worth a look, the worst first.
    pub findings: Vec<Finding>,
    /// The services.
    pub services: Vec<ServiceRow>,
    /// How many events pass each step.
    pub flow: Vec<FlowRow>,
    /// How long steps take.
    pub latency: Vec<LatencyRow>,
    /// How far the consumer is behind.
    pub lag: Lag,
    /// The same and the ledger, per partition.
    pub partitions: Vec<PartitionRow>,
    /// How events ended.
    pub ledger: LedgerView,
    /// The circuit breakers.
    pub breakers: Vec<Breaker>,
    /// Who is let in; absent when the producer is away.
    pub admission: Option<Admission>,
    /// What waits on the producer's disk; absent when it has no spool.
    pub spool: Option<Spool>,
    /// The canary's doors, none when it is off; absent when analytics is away.
    pub canary: Option<Vec<Door>>,
    /// What fires.
    pub alerts: AlertsView,
}

impl Model {
    /// What is to be shown now.
    pub fn of(visits: &Visits, now_us: i64) -> Self {
        let mut model = Self {
            at: times::show(now_us - now_us.rem_euclid(1_000_000)),
            verdict: Verdict::Asking,
            findings: Vec::new(),
            services: parts::services(visits, now_us),
            flow: flow::flow(visits),
            latency: flow::latency(visits),
            lag: flow::lag(visits),
            partitions: flow::partitions(visits),
            ledger: ledger::ledger(visits),
            breakers: parts::breakers(visits),
            admission: parts::admission(visits),
            spool: parts::spool(visits),
            canary: parts::canary(visits),
            alerts: parts::alerts(visits, now_us),
        };
        model.findings = findings::findings(&model, visits);
        model.verdict = model.judge();
        model
    }

    fn judge(&self) -> Verdict {
        let worst = self.findings.first().map(|finding| finding.weight);
        match worst {
            Some(Weight::Broken) => Verdict::Broken,
            _ if self.services.iter().any(|row| row.state == State::Asking) => Verdict::Asking,
            Some(Weight::Look) => Verdict::Look,
            None => Verdict::Healthy,
        }
    }
}
