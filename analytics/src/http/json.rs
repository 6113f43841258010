//! The answers as JSON: the fields of the messages under their names, times as RFC 3339 without their `_us`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use streamgauge_proto::v1;

use crate::service;

/// A time; `null` when there is none.
fn time(us: i64) -> Option<String> {
    let known = (us > 0).then_some(us)?;
    Timestamp::from_microsecond(known)
        .ok()
        .map(|time| time.to_string())
}

/// [`v1::AnswerInfo`].
#[derive(Debug, Serialize)]
pub struct Info {
    as_of: Option<String>,
    watermark: Option<String>,
    r#final: bool,
    unit: String,
    distinct_error: f64,
    quantile_error: f64,
    resolution_s: u32,
}

impl From<Option<v1::AnswerInfo>> for Info {
    fn from(info: Option<v1::AnswerInfo>) -> Self {
        let info = info.unwrap_or_default();
        Self {
            as_of: time(info.as_of_us),
            watermark: time(info.watermark_us),
            r#final: info.r#final,
            unit: info.unit,
            distinct_error: info.distinct_error,
            quantile_error: info.quantile_error,
            resolution_s: info.resolution_s,
        }
    }
}

/// [`v1::Aggregate`].
#[derive(Debug, Serialize)]
pub struct Aggregate {
    count: u64,
    value_count: u64,
    sum: f64,
    min: Option<f64>,
    max: Option<f64>,
    users: f64,
    quantiles: Vec<f64>,
}

impl From<Option<v1::Aggregate>> for Aggregate {
    fn from(value: Option<v1::Aggregate>) -> Self {
        let value = value.unwrap_or_default();
        Self {
            count: value.count,
            value_count: value.value_count,
            sum: value.sum,
            min: value.min,
            max: value.max,
            users: value.users,
            quantiles: value.quantiles,
        }
    }
}

/// [`v1::KeySeries`].
#[derive(Debug, Serialize)]
pub struct KeySeries {
    key: Vec<String>,
    points: Vec<Point>,
}

/// [`v1::Point`].
#[derive(Debug, Serialize)]
pub struct Point {
    start: Option<String>,
    value: Aggregate,
    r#final: bool,
}

impl From<v1::KeySeries> for KeySeries {
    fn from(series: v1::KeySeries) -> Self {
        let points = series.points.into_iter().map(|point| Point {
            start: time(point.start_us),
            value: point.value.into(),
            r#final: point.r#final,
        });
        Self {
            key: series.key,
            points: points.collect(),
        }
    }
}

/// [`v1::SeriesResponse`].
#[derive(Debug, Serialize)]
pub struct Series {
    info: Info,
    series: Vec<KeySeries>,
}

impl From<v1::SeriesResponse> for Series {
    fn from(answer: v1::SeriesResponse) -> Self {
        Self {
            info: answer.info.into(),
            series: answer.series.into_iter().map(KeySeries::from).collect(),
        }
    }
}

/// [`v1::TopResponse`].
#[derive(Debug, Serialize)]
pub struct Top {
    info: Info,
    entries: Vec<TopEntry>,
    total: Aggregate,
    keys: u64,
}

/// [`v1::TopEntry`].
#[derive(Debug, Serialize)]
pub struct TopEntry {
    key: Vec<String>,
    value: Aggregate,
}

impl From<v1::TopResponse> for Top {
    fn from(answer: v1::TopResponse) -> Self {
        let entry = |entry: v1::TopEntry| TopEntry {
            key: entry.key,
            value: entry.value.into(),
        };
        Self {
            info: answer.info.into(),
            entries: answer.entries.into_iter().map(entry).collect(),
            total: answer.total.into(),
            keys: answer.keys,
        }
    }
}

/// [`v1::DistinctUsersResponse`].
#[derive(Debug, Serialize)]
pub struct DistinctUsers {
    info: Info,
    users: f64,
    lower: f64,
    upper: f64,
}

impl From<v1::DistinctUsersResponse> for DistinctUsers {
    fn from(answer: v1::DistinctUsersResponse) -> Self {
        let v1::DistinctUsersResponse {
            info,
            users,
            lower,
            upper,
        } = answer;
        Self {
            info: info.into(),
            users,
            lower,
            upper,
        }
    }
}

/// [`v1::UserActivityResponse`].
#[derive(Debug, Serialize)]
pub struct UserActivity {
    info: Info,
    user_id: String,
    count: u64,
    pages: Vec<PageActivity>,
}

/// [`v1::PageActivity`].
#[derive(Debug, Serialize)]
pub struct PageActivity {
    page_url: String,
    event_type: String,
    count: u64,
    last: Option<String>,
}

impl From<v1::UserActivityResponse> for UserActivity {
    fn from(answer: v1::UserActivityResponse) -> Self {
        let pages = answer.pages.into_iter().map(|page| PageActivity {
            page_url: page.page_url,
            event_type: page.event_type,
            count: page.count,
            last: time(page.last_us),
        });
        Self {
            info: answer.info.into(),
            user_id: answer.user_id,
            count: answer.count,
            pages: pages.collect(),
        }
    }
}

/// The answer to `/analytics/events`, flat, for clients that know this shape.
#[derive(Debug, Serialize)]
pub struct UserEvents {
    user_id: String,
    page_url: Option<String>,
    count: u64,
    by_event_type: BTreeMap<String, u64>,
    unit: &'static str,
    as_of: Option<String>,
    r#final: bool,
}

impl UserEvents {
    /// Of one user, of one page when it is named.
    pub fn new(events: service::UserEvents, user_id: String, page_url: String) -> Self {
        Self {
            user_id,
            page_url: (!page_url.is_empty()).then_some(page_url),
            count: events.count,
            by_event_type: events.by_event_type,
            unit: "events",
            as_of: time(events.info.as_of_us),
            r#final: events.info.r#final,
        }
    }
}

/// [`v1::AlertsResponse`].
#[derive(Debug, Serialize)]
pub struct Alerts {
    as_of: Option<String>,
    alerts: Vec<Alert>,
    left_out: u32,
}

impl From<v1::AlertsResponse> for Alerts {
    fn from(answer: v1::AlertsResponse) -> Self {
        Self {
            as_of: time(answer.as_of_us),
            alerts: answer.alerts.into_iter().map(Alert::from).collect(),
            left_out: answer.left_out,
        }
    }
}

/// [`v1::Alert`].
#[derive(Debug, Serialize)]
pub struct Alert {
    name: String,
    severity: String,
    service: String,
    component: String,
    state: &'static str,
    starts_at: Option<String>,
    summary: String,
    description: String,
    runbook_url: String,
    dashboard_url: String,
    labels: BTreeMap<String, String>,
    fingerprint: String,
}

impl From<v1::Alert> for Alert {
    fn from(alert: v1::Alert) -> Self {
        Self {
            state: match alert.state() {
                v1::AlertState::Silenced => "silenced",
                v1::AlertState::Inhibited => "inhibited",
                v1::AlertState::Firing | v1::AlertState::Unspecified => "firing",
            },
            name: alert.name,
            severity: alert.severity,
            service: alert.service,
            component: alert.component,
            starts_at: time(alert.starts_at_us),
            summary: alert.summary,
            description: alert.description,
            runbook_url: alert.runbook_url,
            dashboard_url: alert.dashboard_url,
            labels: alert.labels.into_iter().collect(),
            fingerprint: alert.fingerprint,
        }
    }
}

/// [`v1::LedgerResponse`].
#[derive(Debug, Serialize)]
pub struct Ledger {
    as_of: Option<String>,
    partitions: Vec<PartitionLedger>,
    total: PartitionLedger,
    balanced: bool,
    equation: String,
    breaks: Vec<LedgerBreak>,
    remarks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreCheck>,
}

/// [`v1::LedgerBreak`].
#[derive(Debug, Serialize)]
pub struct LedgerBreak {
    partition: Option<i32>,
    by: i64,
    since: Option<i64>,
    what: String,
    message: String,
}

/// [`v1::StoreCheck`].
#[derive(Debug, Serialize)]
pub struct StoreCheck {
    checked_at: Option<String>,
    rows: Vec<PartitionLedger>,
    counted: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<StoreWhole>,
    pairs: Vec<StorePair>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rebuilt: Option<StoreRebuilt>,
}

/// [`v1::StoreRebuilt`].
#[derive(Debug, Serialize)]
pub struct StoreRebuilt {
    generation: u64,
    partitions: Vec<RebuiltPartition>,
}

/// [`v1::RebuiltPartition`].
#[derive(Debug, Serialize)]
pub struct RebuiltPartition {
    partition: i32,
    counted: i64,
    duplicate: i64,
    late: i64,
    dead_lettered: i64,
    missing: i64,
    no_record: i64,
}

/// [`v1::StoreWhole`].
#[derive(Debug, Serialize)]
pub struct StoreWhole {
    tier_s: u32,
    events: u64,
    complete: bool,
}

/// [`v1::StorePair`].
#[derive(Debug, Serialize)]
pub struct StorePair {
    finer_s: u32,
    coarser_s: u32,
    since_s: i64,
    finer: u64,
    coarser: u64,
}

impl From<v1::LedgerBreak> for LedgerBreak {
    fn from(found: v1::LedgerBreak) -> Self {
        Self {
            partition: (found.partition >= 0).then_some(found.partition),
            by: found.by,
            since: (found.since >= 0).then_some(found.since),
            what: found.what,
            message: found.message,
        }
    }
}

impl From<v1::StoreRebuilt> for StoreRebuilt {
    fn from(rebuilt: v1::StoreRebuilt) -> Self {
        let part = |part: v1::RebuiltPartition| RebuiltPartition {
            partition: part.partition,
            counted: part.counted,
            duplicate: part.duplicate,
            late: part.late,
            dead_lettered: part.dead_lettered,
            missing: part.missing,
            no_record: part.no_record,
        };
        Self {
            generation: rebuilt.generation,
            partitions: rebuilt.partitions.into_iter().map(part).collect(),
        }
    }
}

impl From<v1::StoreCheck> for StoreCheck {
    fn from(check: v1::StoreCheck) -> Self {
        let pair = |pair: v1::StorePair| StorePair {
            finer_s: pair.finer_s,
            coarser_s: pair.coarser_s,
            since_s: pair.since_s,
            finer: pair.finer,
            coarser: pair.coarser,
        };
        Self {
            checked_at: time(check.checked_at_us),
            rows: check.rows.into_iter().map(PartitionLedger::from).collect(),
            counted: check.counted,
            whole: check.whole.map(|whole| StoreWhole {
                tier_s: whole.tier_s,
                events: whole.events,
                complete: whole.complete,
            }),
            pairs: check.pairs.into_iter().map(pair).collect(),
            rebuilt: check.rebuilt.map(StoreRebuilt::from),
        }
    }
}

/// [`v1::PartitionLedger`].
#[derive(Debug, Serialize)]
pub struct PartitionLedger {
    partition: i32,
    base: i64,
    head: i64,
    source_end: i64,
    counted: u64,
    duplicate: u64,
    late: u64,
    dead_lettered: u64,
    missing: u64,
    no_record: u64,
    valid_batches: u64,
    void_batches: u64,
    delta_position: i64,
    imbalance: i64,
    in_flight: i64,
    stray_batches: u64,
}

impl From<v1::PartitionLedger> for PartitionLedger {
    fn from(line: v1::PartitionLedger) -> Self {
        Self {
            partition: line.partition,
            base: line.base,
            head: line.head,
            source_end: line.source_end,
            counted: line.counted,
            duplicate: line.duplicate,
            late: line.late,
            dead_lettered: line.dead_lettered,
            missing: line.missing,
            no_record: line.no_record,
            valid_batches: line.valid_batches,
            void_batches: line.void_batches,
            delta_position: line.delta_position,
            imbalance: line.imbalance,
            in_flight: line.in_flight,
            stray_batches: line.stray_batches,
        }
    }
}

impl From<v1::LedgerResponse> for Ledger {
    fn from(answer: v1::LedgerResponse) -> Self {
        Self {
            as_of: time(answer.as_of_us),
            partitions: answer
                .partitions
                .into_iter()
                .map(PartitionLedger::from)
                .collect(),
            total: answer.total.unwrap_or_default().into(),
            balanced: answer.balanced,
            equation: answer.equation,
            breaks: answer.breaks.into_iter().map(LedgerBreak::from).collect(),
            remarks: answer.remarks,
            store: answer.store.map(StoreCheck::from),
        }
    }
}

/// [`v1::ListSeriesResponse`].
#[derive(Debug, Serialize)]
pub struct Names {
    series: Vec<Name>,
}

/// [`v1::SeriesInfo`].
#[derive(Debug, Serialize)]
pub struct Name {
    name: String,
    dimensions: Vec<String>,
}

impl From<v1::ListSeriesResponse> for Names {
    fn from(answer: v1::ListSeriesResponse) -> Self {
        let name = |series: v1::SeriesInfo| Name {
            name: series.name,
            dimensions: series.dimensions,
        };
        Self {
            series: answer.series.into_iter().map(name).collect(),
        }
    }
}

/// [`v1::WatchResponse`].
#[derive(Debug, Serialize)]
pub struct Watch {
    info: Info,
    changed: Vec<KeySeries>,
    skipped: u64,
}

impl From<v1::WatchResponse> for Watch {
    fn from(message: v1::WatchResponse) -> Self {
        Self {
            info: message.info.into(),
            changed: message.changed.into_iter().map(KeySeries::from).collect(),
            skipped: message.skipped,
        }
    }
}
