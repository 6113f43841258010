//! What the tests share: batches made from events, stores of both kinds, and an instance without Kafka.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod faulty;
pub mod running;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use prost::Message;
use streamgauge_analytics::{
    Config,
    alerts::Alerts,
    apply::{self, Polled},
    checkpoint::{self, Checkpointed},
    load,
    metrics::AnalyticsMetrics,
    service::{Service, SharedView},
    store::{Durability, PostgresStore, SqliteStore, Store},
    view::Fold,
};
use streamgauge_chain::sketch::{Quantiles, UserHash, Users};
use streamgauge_kafka::ChunkBuilder;
use streamgauge_lifecycle::{Clock, ManualClock};
use streamgauge_proto::v1;
use streamgauge_telemetry::Metrics;

/// A moment at which a day begins, so that tiers align.
pub const NOW_S: i64 = 1_700_006_400;

/// An event, as far as aggregates know it.
#[derive(Clone, Debug)]
pub struct Event {
    pub second: i64,
    pub user: String,
    pub page: String,
    pub kind: String,
    pub value: Option<f64>,
}

pub fn event(second: i64, user: u32, page: u32, value: Option<f64>) -> Event {
    Event {
        second,
        user: format!("user-{user}"),
        page: format!("/page/{page}"),
        kind: String::from(if page.is_multiple_of(2) {
            "view"
        } else {
            "click"
        }),
        value,
    }
}

#[derive(Default)]
struct Strings(Vec<String>);

impl Strings {
    fn index(&mut self, text: &str) -> u32 {
        let known = self.0.iter().position(|known| known == text);
        known.unwrap_or_else(|| {
            self.0.push(text.to_owned());
            self.0.len() - 1
        }) as u32
    }
}

/// The series that the batches of the tests carry.
pub const SERIES: [&str; 4] = ["all", "event_type", "page_url", "event_type,page_url"];

fn dimension<'a>(event: &'a Event, name: &str) -> &'a str {
    if name == "event_type" {
        &event.kind
    } else {
        &event.page
    }
}

/// The batch that counts these events from an offset on.
pub fn batch(from: i64, events: &[Event]) -> v1::DeltaBatch {
    let mut strings = Strings::default();
    let series = SERIES
        .iter()
        .map(|name| series(name, events, &mut strings))
        .collect();
    let mut pages: BTreeMap<(u32, u32, u32), (u64, i64)> = BTreeMap::new();
    let mut types: BTreeMap<u32, u64> = BTreeMap::new();
    for event in events {
        let key = [&event.user, &event.page, &event.kind].map(|text| strings.index(text));
        let entry = pages.entry((key[0], key[1], key[2])).or_default();
        *entry = (entry.0 + 1, entry.1.max(event.second * 1_000_000));
        *types.entry(key[2]).or_default() += 1;
    }
    let user_page = |((user_id, page_url, event_type), (count, last_us))| v1::UserPageCount {
        user_id,
        page_url,
        event_type,
        count,
        last_us,
    };
    let counted = events.len() as u64;
    v1::DeltaBatch {
        from,
        to: from + counted as i64,
        outcomes: Some(v1::Outcomes {
            counted,
            ..v1::Outcomes::default()
        }),
        watermark_us: events
            .iter()
            .map(|event| event.second * 1_000_000)
            .max()
            .unwrap_or(0),
        oldest_received_us: NOW_S * 1_000_000,
        series,
        user_pages: pages.into_iter().map(user_page).collect(),
        types: types
            .into_iter()
            .map(|(event_type, count)| v1::TypeCount { event_type, count })
            .collect(),
        writer: String::from("test/1"),
        strings: strings.0,
        ..v1::DeltaBatch::default()
    }
}

fn series(name: &str, events: &[Event], strings: &mut Strings) -> v1::SeriesDelta {
    let dimensions: Vec<&str> = if name == "all" {
        Vec::new()
    } else {
        name.split(',').collect()
    };
    let mut cells: BTreeMap<(i64, Vec<u32>), Vec<&Event>> = BTreeMap::new();
    for event in events {
        let key = dimensions
            .iter()
            .map(|name| strings.index(dimension(event, name)))
            .collect();
        cells.entry((event.second, key)).or_default().push(event);
    }
    let cells = cells.into_iter().map(|((bucket_s, key), events)| {
        let (mut users, mut quantiles) = (Users::new(), Quantiles::new());
        let values: Vec<f64> = events.iter().filter_map(|event| event.value).collect();
        values.iter().for_each(|value| quantiles.insert(*value));
        events
            .iter()
            .for_each(|event| users.insert(UserHash::of(event.user.as_bytes())));
        v1::Cell {
            bucket_s,
            key,
            count: events.len() as u64,
            value_count: values.len() as u64,
            sum: values.iter().sum(),
            min: values.iter().copied().reduce(f64::min).unwrap_or(0.0),
            max: values.iter().copied().reduce(f64::max).unwrap_or(0.0),
            users: users.to_bytes().into(),
            quantiles: if values.is_empty() {
                Vec::new()
            } else {
                quantiles.to_bytes()
            }
            .into(),
        }
    });
    v1::SeriesDelta {
        series: name.to_owned(),
        cells: cells.collect(),
    }
}

/// A log of one partition, as a reader sees it: offset and payload.
#[derive(Default)]
pub struct Log {
    pub records: Vec<Vec<u8>>,
    pub head: i64,
}

impl Log {
    pub fn push(&mut self, events: &[Event]) {
        let batch = batch(self.head, events);
        self.head = batch.to;
        self.records.push(batch.encode_to_vec());
    }

    pub fn push_raw(&mut self, payload: &[u8]) {
        self.records.push(payload.to_vec());
    }
}

/// Temporary stores: SQLite always, PostgreSQL where the environment names one.
pub struct Stores {
    folder: tempfile::TempDir,
    postgres: Option<String>,
}

static SCHEMAS: AtomicU32 = AtomicU32::new(0);

impl Stores {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let postgres = std::env::var("STREAMGAUGE_TEST_POSTGRES_URL").ok();
        Self { folder, postgres }
    }

    /// One function per kind of store; each call opens the same store again.
    pub async fn each(&self) -> Vec<Box<dyn Fn() -> Arc<dyn Store>>> {
        let path = self.folder.path().join("analytics.db");
        let mut openers: Vec<Box<dyn Fn() -> Arc<dyn Store>>> = vec![Box::new(move || {
            Arc::new(SqliteStore::new(path.clone(), Durability::Normal, 2))
        })];
        if let Some(url) = &self.postgres {
            let name = format!(
                "t{}_{}",
                std::process::id(),
                SCHEMAS.fetch_add(1, Ordering::Relaxed)
            );
            create_schema(url, &name).await;
            let separator = if url.contains('?') { '&' } else { '?' };
            let url = format!("{url}{separator}options[search_path]={name}");
            openers.push(Box::new(move || {
                let timeout = std::time::Duration::from_secs(10);
                Arc::new(PostgresStore::new(&url, 4, timeout).expect("a URL"))
            }));
        }
        openers
    }
}

async fn create_schema(url: &str, name: &str) {
    use sqlx::Connection;
    let mut connection = sqlx::PgConnection::connect(url).await.expect("PostgreSQL");
    let sql = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {name}"));
    sqlx::query(sql)
        .execute(&mut connection)
        .await
        .expect("a schema");
}

/// An instance of the service without Kafka: a fold over a store, moved by hand.
pub struct Instance {
    pub store: Arc<dyn Store>,
    pub fold: Fold,
    pub view: SharedView,
    pub metrics: AnalyticsMetrics,
    pub config: Arc<Config>,
    pub clock: Arc<ManualClock>,
}

impl Instance {
    pub async fn start(store: Arc<dyn Store>, config: Config) -> Self {
        store.migrate().await.expect("migrated");
        let clock = Arc::new(ManualClock::new(NOW_S * 1_000_000));
        let fold = load::load(&store, &config, NOW_S).await.expect("loaded");
        let instance = Self {
            store,
            view: Arc::new(ArcSwapOption::from_pointee(fold.view().clone())),
            fold,
            metrics: AnalyticsMetrics::register(&Metrics::new("analytics")),
            config: Arc::new(config),
            clock,
        };
        instance.publish();
        instance
    }

    /// Applies what the log holds beyond this instance's position, at most `records`.
    pub async fn follow(&mut self, partition: i32, log: &Log, records: usize) {
        let prepared = self.prepare(partition, log, records);
        self.finish(prepared).await;
    }

    pub fn prepare(&self, partition: i32, log: &Log, records: usize) -> apply::Prepared {
        let from = self.fold.row(partition).delta_position;
        let mut builder = ChunkBuilder::new(partition);
        for (offset, payload) in log
            .records
            .iter()
            .enumerate()
            .skip(from as usize)
            .take(records)
        {
            builder.push(offset as i64, -1, None, Some(payload), []);
        }
        let mut polled = Polled::default();
        builder.take().iter().for_each(|chunk| polled.push(chunk));
        apply::prepare(&self.fold, polled, self.clock.now_us(), &self.metrics)
    }

    pub async fn finish(&mut self, mut prepared: apply::Prepared) {
        prepared.write(&self.store).await.expect("written");
        prepared.apply(&mut self.fold, &self.metrics);
        self.publish();
    }

    pub fn publish(&self) {
        let view = Arc::new(self.fold.view().clone());
        self.view.store(Some(view));
    }

    pub async fn checkpoint(&mut self) -> Option<Checkpointed> {
        let name = i64::from(SCHEMAS.fetch_add(1, Ordering::Relaxed))
            + 1_000_000
            + i64::from(std::process::id()) * 1_000_000_000;
        let frozen = self.fold.freeze(name)?;
        self.publish();
        let floors = self.config.retention.floors(NOW_S);
        let rows = checkpoint::rows(&frozen, &self.fold.view().names, &floors);
        let done = checkpoint::write(Arc::clone(&self.store), rows).await;
        match &done {
            Checkpointed::Done => self.fold.thaw(),
            Checkpointed::Overtaken => {
                load::overlay(&self.store, &mut self.fold)
                    .await
                    .expect("followed");
            }
            Checkpointed::Failed(_) => {}
        }
        self.publish();
        Some(done)
    }

    pub fn service(&self) -> Service {
        let alerts = Alerts::new(&self.config.alerts, self.clock.clone());
        Service::new(
            Arc::clone(&self.view),
            Arc::clone(&self.store),
            alerts.expect("settings"),
            self.clock.clone(),
            self.metrics.clone(),
            Arc::clone(&self.config),
        )
    }
}

/// What the answers should be, counted plainly.
#[derive(Default)]
pub struct Oracle(pub Vec<Event>);

impl Oracle {
    pub fn count(&self, keep: impl Fn(&Event) -> bool) -> u64 {
        self.0.iter().filter(|event| keep(event)).count() as u64
    }

    pub fn users(&self, keep: impl Fn(&Event) -> bool) -> usize {
        let users = self
            .0
            .iter()
            .filter(|event| keep(event))
            .map(|event| &event.user);
        users.collect::<BTreeSet<_>>().len()
    }
}

pub fn range(from_s: i64, to_s: i64) -> Option<v1::TimeRange> {
    Some(v1::TimeRange {
        from_us: from_s * 1_000_000,
        to_us: to_s * 1_000_000,
    })
}

pub fn top(by: &str, from_s: i64, to_s: i64) -> v1::TopRequest {
    let by = String::from(by);
    v1::TopRequest {
        by,
        range: range(from_s, to_s),
        limit: 100,
        ..v1::TopRequest::default()
    }
}
