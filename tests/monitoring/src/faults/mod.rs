//! Faults, each with the alerts that it must raise. Faults of a group share a bench and run side by side where they do
//! not disturb each other.

use std::time::Duration;

use tokio::time::Instant;

use crate::{bench::Watch, failure::Outcome, inbox::Alert, report::AlertRow};

pub mod clients;
pub mod held;
pub mod monitoring;
pub mod processes;
pub mod store;

/// What a group found out.
#[derive(Default)]
pub struct Found {
    /// What became of its alerts.
    pub alerts: Vec<AlertRow>,
    /// What else it looked at, by name.
    pub steps: Vec<(&'static str, Outcome)>,
}

impl From<Vec<AlertRow>> for Found {
    fn from(alerts: Vec<AlertRow>) -> Self {
        Self {
            alerts,
            steps: Vec::new(),
        }
    }
}

/// Longest wait for a notification. The longest `for:` with its window is 75 seconds here (45 minutes in the rules).
const FIRE_DEADLINE: Duration = Duration::from_secs(120);
/// Longest wait for the end of an alert: windows of an hour are two minutes here.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(170);

/// Makes a fault, waits until its alerts were heard of, ends it, and waits until they were heard to be over.
pub async fn prove<Held, const N: usize>(
    watch: &Watch,
    fault: &'static str,
    alerts: [Alert; N],
    strike: impl AsyncFnOnce() -> Outcome<Held>,
    heal: impl AsyncFnOnce(Held) -> Outcome<()>,
) -> Vec<AlertRow> {
    let mut rows: Vec<_> = alerts.iter().map(|alert| row(alert, fault)).collect();
    let before: Vec<_> = alerts
        .iter()
        .map(|alert| watch.inbox.active(*alert))
        .collect();
    let began = Instant::now();
    let held = match strike().await {
        Ok(held) => held,
        Err(failure) => return failed(rows, &format!("the fault could not be made: {failure}")),
    };
    for ((row, alert), before) in rows.iter_mut().zip(alerts).zip(before) {
        if !before.is_empty() {
            row.problem = Some(format!("fired before the fault: {before:?}"));
            continue;
        }
        row.fired = watch
            .inbox
            .fired(alert, began, FIRE_DEADLINE.saturating_sub(began.elapsed()))
            .await;
        if row.fired.is_none() {
            let state = watch.prometheus.state(alert.name).await;
            row.problem = Some(format!("not heard of within {FIRE_DEADLINE:?}; {state}"));
        }
    }
    let healed = Instant::now();
    if let Err(failure) = heal(held).await {
        return failed(rows, &format!("the fault could not be ended: {failure}"));
    }
    for (row, alert) in rows
        .iter_mut()
        .zip(alerts)
        .filter(|(row, _)| row.problem.is_none())
    {
        let left = RESOLVE_DEADLINE.saturating_sub(healed.elapsed());
        row.resolved = watch.inbox.resolved(alert, healed, left).await;
        if row.resolved.is_none() {
            let state = watch.prometheus.state(alert.name).await;
            row.problem = Some(format!("not over within {RESOLVE_DEADLINE:?}; {state}"));
        }
    }
    rows
}

fn row(alert: &Alert, fault: &'static str) -> AlertRow {
    AlertRow {
        alert: alert.name,
        fault,
        fired: None,
        resolved: None,
        problem: None,
    }
}

fn failed(mut rows: Vec<AlertRow>, problem: &str) -> Vec<AlertRow> {
    for row in &mut rows {
        row.problem.get_or_insert_with(|| problem.to_owned());
    }
    rows
}
