//! What else is asked beside `/metrics`, as it is answered in JSON: the ledger of analytics, and the
//! alerts as analytics or Alertmanager tell them. Pure; unknown fields are passed over, missing ones have defaults.

use serde::{Deserialize, Serialize};

/// Most alerts that are kept; a system on fire has fewer.
const ALERTS_MAX: usize = 500;

/// `GET /v1/ledger` of analytics.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Ledger {
    /// How its offsets ended, per partition.
    #[serde(default)]
    pub partitions: Vec<Row>,
    /// In all.
    #[serde(default)]
    pub total: Row,
    /// Whether everything that is compared adds up.
    pub balanced: bool,
    /// The equation over all partitions.
    #[serde(default)]
    pub equation: String,
    /// What does not add up.
    #[serde(default)]
    pub breaks: Vec<Break>,
    /// What was not compared, and what is worth a look.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// How the source offsets of a partition ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Row {
    /// Which partition.
    pub partition: i32,
    /// Where the chain begins.
    pub base: i64,
    /// Up to where the chain reaches.
    pub head: i64,
    /// End of the source; -1 when it is not known.
    pub source_end: i64,
    /// Counted.
    pub counted: i64,
    /// Seen before.
    pub duplicate: i64,
    /// Too late to be counted.
    pub late: i64,
    /// In the dead-letter topic.
    pub dead_lettered: i64,
    /// Gone from the log before they were read.
    pub missing: i64,
    /// Offsets without a record.
    pub no_record: i64,
    /// Batches that counted.
    pub valid_batches: i64,
    /// Batches that did not.
    pub void_batches: i64,
    /// Anything but 0 is a defect.
    pub imbalance: i64,
    /// Offsets that no batch covers yet; -1 when the end is not known.
    pub in_flight: i64,
}

/// One thing that does not add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Break {
    /// A sentence.
    #[serde(default)]
    pub message: String,
}

impl Ledger {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it is no ledger; says why.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| format!("no ledger: {error}"))
    }
}

/// How much an alert weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody is woken.
    Critical,
    /// For working hours.
    Warning,
    /// For machines, as the watchdog that always fires.
    Info,
}

impl Severity {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }

    /// An alert that does not say how much it weighs is worth a look.
    fn of(label: Option<&str>) -> Self {
        match label {
            Some("critical" | "page" | "error") => Self::Critical,
            Some("info" | "none") => Self::Info,
            _ => Self::Warning,
        }
    }
}

/// A firing alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// How much it weighs.
    pub severity: Severity,
    /// Its name.
    pub name: String,
    /// The service that it is about, where it says so.
    pub service: String,
    /// The partition that it is about, where it says so.
    pub partition: String,
    /// Since when, as it was written.
    pub since: String,
    /// What it says.
    pub summary: String,
}

#[derive(Deserialize)]
struct Posted {
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    annotations: Annotations,
    #[serde(default, rename = "startsAt")]
    starts_at: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Labels {
    alertname: String,
    severity: Option<String>,
    service: String,
    job: String,
    partition: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    summary: String,
    description: String,
}

/// Reads what Alertmanager answers at `/api/v2/alerts`: the heaviest first, then the oldest.
///
/// # Errors
/// When it is no list of alerts; says why.
pub fn alerts(body: &[u8]) -> Result<Vec<Alert>, String> {
    let posted: Vec<Posted> = serde_json::from_slice(body)
        .map_err(|error| format!("no alerts of Alertmanager's API v2: {error}"))?;
    Ok(heaviest_first(posted.into_iter().map(Alert::from)))
}

/// Reads what analytics answers at `/v1/alerts`, in the same order.
///
/// # Errors
/// When it is no such answer; says why.
pub fn told_alerts(body: &[u8]) -> Result<Vec<Alert>, String> {
    let told: Told = serde_json::from_slice(body).map_err(|error| format!("no alerts: {error}"))?;
    Ok(heaviest_first(told.alerts.into_iter().map(Alert::from)))
}

fn heaviest_first(alerts: impl Iterator<Item = Alert>) -> Vec<Alert> {
    let mut alerts: Vec<Alert> = alerts.collect();
    alerts.sort_by(|a, b| {
        let key = |alert: &Alert| (alert.severity, alert.since.clone(), alert.name.clone());
        key(a).cmp(&key(b))
    });
    alerts.truncate(ALERTS_MAX);
    alerts
}

/// What a service says of why it refused, if the answer is a refusal.
pub fn refusal(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Reason,
    }
    #[derive(Deserialize)]
    struct Reason {
        message: String,
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    Some(refusal.error.message)
}

#[derive(Deserialize)]
struct Told {
    alerts: Vec<ToldAlert>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ToldAlert {
    name: String,
    severity: String,
    service: String,
    starts_at: Option<String>,
    summary: String,
    description: String,
    labels: Labels,
}

fn or(first: String, second: String) -> String {
    if first.is_empty() { second } else { first }
}

impl From<ToldAlert> for Alert {
    fn from(told: ToldAlert) -> Self {
        Self {
            severity: Severity::of(Some(told.severity.as_str())),
            name: or(told.name, String::from("(without a name)")),
            service: or(told.service, told.labels.job),
            partition: told.labels.partition,
            since: told.starts_at.unwrap_or_default(),
            summary: or(told.summary, told.description),
        }
    }
}

impl From<Posted> for Alert {
    fn from(posted: Posted) -> Self {
        let Posted {
            labels,
            annotations,
            starts_at,
        } = posted;
        Self {
            severity: Severity::of(labels.severity.as_deref()),
            name: or(labels.alertname, String::from("(without a name)")),
            service: or(labels.service, labels.job),
            partition: labels.partition,
            since: starts_at,
            summary: or(annotations.summary, annotations.description),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn alerts_come_heaviest_first() {
        let body = br#"[
            {"labels":{"alertname":"Watchdog","severity":"info"},"startsAt":"2026-01-01T00:00:00Z"},
            {"labels":{"alertname":"B","severity":"warning","job":"streamgauge-consumer","partition":"3"},
             "annotations":{"description":"long"},"startsAt":"2026-01-02T00:00:00Z","status":{"state":"active"}},
            {"labels":{"alertname":"C"},"startsAt":"2026-01-01T00:00:00Z"},
            {"labels":{"alertname":"A","severity":"critical","service":"producer"},
             "annotations":{"summary":"short","description":"long"},"startsAt":"2026-01-03T00:00:00Z"}]"#;
        let found = alerts(body).expect("alerts");
        let told: Vec<_> = found
            .iter()
            .map(|alert| {
                (
                    alert.severity.as_str(),
                    alert.name.as_str(),
                    alert.service.as_str(),
                    alert.summary.as_str(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("critical", "A", "producer", "short"),
                ("warning", "C", "", ""),
                ("warning", "B", "streamgauge-consumer", "long"),
                ("info", "Watchdog", "", ""),
            ]
        );
        assert_eq!(found[2].partition, "3");
    }

    #[test]
    fn analytics_tells_them_in_its_own_words() {
        let body = br#"{"as_of":"2026-01-04T00:00:00Z","left_out":0,"alerts":[
            {"name":"B","severity":"warning","service":"","component":"","state":"firing",
             "starts_at":"2026-01-02T00:00:00Z","summary":"","description":"long",
             "labels":{"alertname":"B","job":"streamgauge-consumer","partition":"3"}},
            {"name":"A","severity":"critical","service":"producer","starts_at":null,"summary":"short"}]}"#;
        let found = told_alerts(body).expect("alerts");
        assert_eq!((found[0].name.as_str(), found[0].since.as_str()), ("A", ""));
        assert_eq!(found[0].severity, Severity::Critical);
        assert_eq!(found[1].service, "streamgauge-consumer");
        assert_eq!(found[1].partition, "3");
        assert_eq!(found[1].summary, "long");
        assert!(told_alerts(b"[]").is_err());
    }

    #[test]
    fn a_refusal_says_why() {
        let body = br#"{"error":{"code":"alerts_unavailable","message":"Alertmanager cannot be asked now: gone"}}"#;
        let reason = refusal(body).expect("a reason");
        assert_eq!(reason, "Alertmanager cannot be asked now: gone");
        assert_eq!(refusal(b"<html>"), None);
    }

    #[test]
    fn a_flood_of_alerts_is_cut() {
        let one = r#"{"labels":{"alertname":"A"}}"#;
        let body = format!("[{}]", vec![one; ALERTS_MAX + 1].join(","));
        assert_eq!(alerts(body.as_bytes()).expect("alerts").len(), ALERTS_MAX);
    }

    #[test]
    fn another_answer_is_told() {
        let error = alerts(b"404 page not found").expect_err("no alerts");
        assert!(error.contains("Alertmanager"), "{error}");
        let error = Ledger::parse(b"{}").expect_err("no verdict");
        assert!(error.contains("balanced"), "{error}");
    }

    #[test]
    fn a_ledger_of_another_version_is_read_as_far_as_known() {
        let body = br#"{"balanced":true,"total":{"partition":-1,"counted":7,"new":1},"later":{}}"#;
        let ledger = Ledger::parse(body).expect("a ledger");
        assert!(ledger.balanced);
        assert_eq!((ledger.total.counted, ledger.total.late), (7, 0));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = (Ledger::parse(&body), alerts(&body), told_alerts(&body), refusal(&body));
        }
    }
}
