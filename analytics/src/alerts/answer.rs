//! Alertmanager's answer (version 2 of its API), and what is told of it. Pure; fields that are not known are passed
//! over, missing ones are empty.

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::Timestamp;
use serde::Deserialize;
use streamgauge_proto::v1;

/// One alert as Alertmanager writes it.
#[derive(Debug, Deserialize)]
struct Written {
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    status: Status,
    #[serde(default, rename = "startsAt")]
    starts_at: String,
    #[serde(default)]
    fingerprint: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    silenced_by: Vec<String>,
    inhibited_by: Vec<String>,
}

/// The alerts, the most severe first, then the oldest.
#[derive(Debug)]
pub struct Found {
    alerts: Vec<v1::Alert>,
}

impl Found {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it is none; says why.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let written: Vec<Written> = serde_json::from_slice(body)
            .map_err(|error| format!("its answer is not a list of alerts: {error}"))?;
        let mut alerts: Vec<v1::Alert> = written.into_iter().map(v1::Alert::from).collect();
        alerts.sort_by_key(|alert| {
            let weight = match alert.severity.as_str() {
                "critical" => 2,
                "info" | "none" => 0,
                _ => 1,
            };
            (Reverse(weight), alert.starts_at_us, alert.name.clone())
        });
        Ok(Self { alerts })
    }

    /// What is told of them: those that fire, or `all`; as many as `most`.
    pub fn answer(&self, as_of_us: i64, all: bool, most: usize) -> v1::AlertsResponse {
        let firing = i32::from(v1::AlertState::Firing);
        let wanted = self
            .alerts
            .iter()
            .filter(|alert| all || alert.state == firing);
        let left_out = wanted.clone().count().saturating_sub(most);
        v1::AlertsResponse {
            as_of_us,
            alerts: wanted.take(most).cloned().collect(),
            left_out: u32::try_from(left_out).unwrap_or(u32::MAX),
        }
    }
}

impl From<Written> for v1::Alert {
    fn from(mut written: Written) -> Self {
        let state = if !written.status.silenced_by.is_empty() {
            v1::AlertState::Silenced
        } else if !written.status.inhibited_by.is_empty() {
            v1::AlertState::Inhibited
        } else {
            v1::AlertState::Firing
        };
        let label = |name: &str| written.labels.get(name).cloned().unwrap_or_default();
        let mut annotation = |name: &str| written.annotations.remove(name).unwrap_or_default();
        let starts_at: Option<Timestamp> = written.starts_at.parse().ok();
        Self {
            name: label("alertname"),
            severity: label("severity"),
            service: label("service"),
            component: label("component"),
            state: state.into(),
            starts_at_us: starts_at.map_or(0, Timestamp::as_microsecond),
            summary: annotation("summary"),
            description: annotation("description"),
            runbook_url: annotation("runbook_url"),
            dashboard_url: annotation("dashboard_url"),
            fingerprint: written.fingerprint,
            labels: written.labels.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"[
      {"labels": {"alertname": "Watchdog", "severity": "none"}, "startsAt": "2026-01-01T00:00:00.000Z",
       "status": {"state": "active", "silencedBy": [], "inhibitedBy": []}},
      {"labels": {"alertname": "ConsumerLagHigh", "severity": "warning", "service": "consumer", "partition": "3"},
       "annotations": {"summary": "It lags", "description": "by far", "runbook_url": "https://x/r", "dashboard_url": "/d/y"},
       "startsAt": "2026-01-02T03:04:05.000006+00:00", "fingerprint": "abc", "status": {"state": "active"},
       "receivers": [{"name": "page"}]},
      {"labels": {"alertname": "Younger", "severity": "warning"}, "startsAt": "2026-01-03T00:00:00Z"},
      {"labels": {"alertname": "Down", "severity": "critical"}, "startsAt": "2026-01-04T00:00:00Z"},
      {"labels": {"alertname": "Hushed", "severity": "critical"}, "startsAt": "x",
       "status": {"state": "suppressed", "silencedBy": ["one"], "inhibitedBy": ["two"]}},
      {"labels": {"alertname": "Held", "severity": "warning"}, "startsAt": "2026-01-01T00:00:00Z",
       "status": {"state": "suppressed", "inhibitedBy": ["two"]}}
    ]"#;

    fn names(answer: &v1::AlertsResponse) -> Vec<&str> {
        let names = answer.alerts.iter().map(|alert| alert.name.as_str());
        names.collect()
    }

    #[test]
    fn the_most_severe_and_oldest_come_first() {
        let found = Found::parse(ANSWER.as_bytes()).expect("an answer");
        let answer = found.answer(7, false, 10);
        assert_eq!(
            names(&answer),
            ["Down", "ConsumerLagHigh", "Younger", "Watchdog"]
        );
        assert_eq!((answer.as_of_us, answer.left_out), (7, 0));
        let lag = &answer.alerts[1];
        assert_eq!(lag.starts_at_us, 1_767_323_045_000_006);
        assert_eq!(lag.summary, "It lags");
        assert_eq!(
            (lag.runbook_url.as_str(), lag.dashboard_url.as_str()),
            ("https://x/r", "/d/y")
        );
        assert_eq!(lag.labels["partition"], "3");
        assert_eq!(lag.fingerprint, "abc");
    }

    #[test]
    fn what_is_kept_quiet_is_told_when_asked_for() {
        let found = Found::parse(ANSWER.as_bytes()).expect("an answer");
        let answer = found.answer(7, true, 10);
        let states: Vec<(&str, v1::AlertState)> = answer
            .alerts
            .iter()
            .map(|alert| (alert.name.as_str(), alert.state()))
            .collect();
        assert!(states.contains(&("Hushed", v1::AlertState::Silenced)));
        assert!(states.contains(&("Held", v1::AlertState::Inhibited)));
        assert_eq!(answer.alerts.len(), 6);
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let found = Found::parse(ANSWER.as_bytes()).expect("an answer");
        let answer = found.answer(7, false, 1);
        assert_eq!((names(&answer), answer.left_out), (vec!["Down"], 3));
    }

    #[test]
    fn another_kind_of_answer_is_refused() {
        for body in ["{}", "<html>", "", r#"[{"annotations": {}}]"#] {
            let reason = Found::parse(body.as_bytes()).expect_err(body);
            assert!(reason.contains("not a list of alerts"), "{reason}");
        }
    }
}
