//! The database is taken away: by a store that fails, by somebody who holds SQLite's write lock, and by cutting the wire
//! to a real PostgreSQL. Applying waits and loses nothing, recent ranges are answered from memory, others are refused at
//! once, and the breaker tells what it does.

mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use common::{NOW_S, faulty::Faulty, running::*};
use serde_json::Value;
use sqlx::Connection;
use streamgauge_analytics::{Config, store};
use streamgauge_settings::SecretUrl;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A range that memory does not hold: the store answers.
const OLD: &str = "/v1/top?by=page_url&last=2h&limit=50";
/// A range that memory holds.
const RECENT: &str = "/v1/top?by=page_url&last=10m&limit=50";
const STATE: &str = "circuit_breaker_state{breaker=\"store\"}";

async fn fill(writer: &mut Writer, batches: i64) {
    for n in 0..batches {
        let partition = (n % i64::from(PARTITIONS)) as i32;
        let events = some_events(NOW_S - 300 + n, 20);
        writer.valid(partition, events, vec![]).await;
    }
}

fn impatient(mut config: Config) -> Config {
    config.store.write.max_ms = 20;
    config.store.operation_timeout_ms = 300;
    config.store.bulk_timeout_ms = 300;
    config.store.breaker.consecutive_failures = 3;
    config.store.breaker.open_min_ms = 50;
    config.store.breaker.open_max_ms = 1_000;
    config
}

/// How a range was answered, and what `Retry-After` said.
async fn ask(analytics: &Analytics, path: &str) -> (u16, Option<String>, Value) {
    let url = format!("http://{}{path}", analytics.http);
    let response = analytics.client.get(url).send().await.expect("an answer");
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after");
    let after = after.map(|value| value.to_str().expect("text").to_owned());
    let text = response.text().await.expect("a body");
    (status, after, serde_json::from_str(&text).expect("JSON"))
}

async fn transitions(analytics: &Analytics, to: &str) -> f64 {
    let line = format!("circuit_breaker_transitions_total{{breaker=\"store\",to=\"{to}\"}}");
    analytics.metric(&line).await.expect("there from the start")
}

/// What must hold while the database is away, with this many events known before it went.
async fn holds_while_away(analytics: &Analytics, known: i64) {
    until(|| async { analytics.metric(STATE).await > Some(0.0) }).await;
    assert!(transitions(analytics, "open").await >= 1.0);
    let (status, _, body) = ask(analytics, RECENT).await;
    assert_eq!((status, &body["total"]["count"]), (200, &known.into()));
    let (status, after, body) = ask(analytics, OLD).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &"store_unavailable".into())
    );
    let seconds = after.expect("Retry-After").parse::<u64>();
    assert!(seconds.expect("seconds") >= 1);
    assert_eq!(analytics.answer("/v1/ledger").await["total"]["head"], known);
    analytics.until_unmet("store", "").await;
}

/// What must hold once it is back.
async fn holds_afterwards(analytics: &Analytics, writer: &Writer) {
    writer.source().await;
    let total = writer.total();
    analytics.until_head(total).await;
    until(|| async { analytics.metric(STATE).await == Some(0.0) }).await;
    analytics.until_ready().await;
    assert!(transitions(analytics, "half_open").await >= 1.0);
    assert!(transitions(analytics, "closed").await >= 1.0);
    until(|| async { analytics.get(OLD).await.1["total"]["count"] == total }).await;
    assert_eq!(analytics.answer(RECENT).await["total"]["count"], total);
    until(|| async {
        let found = analytics.get("/v1/ledger?check_store=true").await.1;
        found["balanced"] == true && found["store"]["whole"]["events"] == total
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_is_left_alone_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let config = impatient(config(folder.path(), &broker.bootstrap()));
    let faulty = Faulty::new(store::open(&config.store).expect("a store"));
    let analytics = Analytics::start_with(config, faulty.clone()).await;
    fill(&mut writer, 6).await;
    analytics.until_head(writer.total()).await;
    let known = writer.total();
    faulty.faults.is_away.store(true, SeqCst);
    fill(&mut writer, 6).await;
    holds_while_away(&analytics, known).await;
    faulty.faults.is_away.store(false, SeqCst);
    holds_afterwards(&analytics, &writer).await;
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_refuses_without_asking() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = impatient(config(folder.path(), &broker.bootstrap()));
    // It hangs for so long that waiting for it would fail the test, and stays open once it is.
    config.store.operation_timeout_ms = 1_000;
    config.store.breaker.open_min_ms = 600_000;
    config.store.breaker.open_max_ms = 600_000;
    // Nothing else is asked of it, which would be answered and end the row of failures.
    config.checkpoint.interval_ms = 3_600_000;
    config.ledger.check_interval_ms = 3_600_000;
    config.store.swap_poll_ms = 3_600_000;
    let faulty = Faulty::new(store::open(&config.store).expect("a store"));
    let analytics = Analytics::start_with(config, faulty.clone()).await;
    fill(&mut writer, 3).await;
    analytics.until_head(writer.total()).await;
    faulty.faults.scans_hang.store(true, SeqCst);
    for _ in 0..3 {
        assert_eq!(ask(&analytics, OLD).await.0, 503);
    }
    assert_eq!(analytics.metric(STATE).await, Some(2.0));
    let scans = "db_operation_duration_seconds_count{op=\"scan\",outcome=\"error\"}";
    let before = analytics.metric(scans).await;
    for _ in 0..20 {
        assert_eq!(ask(&analytics, OLD).await.0, 503);
    }
    assert_eq!(analytics.metric(scans).await, before, "the store was asked");
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_asks_too_much_of_opens_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = impatient(config(folder.path(), &broker.bootstrap()));
    config.store.operation_timeout_ms = 30_000;
    config.store.bulk_timeout_ms = 30_000;
    config.query.rows_max = 1;
    let analytics = Analytics::start(config).await;
    fill(&mut writer, 3).await;
    analytics.until_head(writer.total()).await;
    // Once the rows are in the store.
    until(|| async { analytics.get(OLD).await.0 == 400 }).await;
    for _ in 0..10 {
        let (status, body) = analytics.get(OLD).await;
        assert_eq!(status, 400, "{body}");
    }
    assert_eq!(analytics.metric(STATE).await, Some(0.0));
    assert_eq!(transitions(&analytics, "open").await, 0.0);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_the_file_of_sqlite_holds_applying_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = impatient(config(folder.path(), &broker.bootstrap()));
    // Reading goes on beside a writer's lock; only what waits for the lock is to be heard of here.
    config.ledger.check_interval_ms = 3_600_000;
    config.checkpoint.interval_ms = 3_600_000;
    config.store.swap_poll_ms = 3_600_000;
    let analytics = Analytics::start(config).await;
    fill(&mut writer, 6).await;
    analytics.until_head(writer.total()).await;
    let known = writer.total();
    let url = format!(
        "sqlite:{}",
        folder.path().join("analytics.deltas.db").display()
    );
    let mut shell = sqlx::SqliteConnection::connect(&url).await.expect("a file");
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut shell)
        .await
        .expect("locked");
    fill(&mut writer, 6).await;
    until(|| async { analytics.metric(STATE).await > Some(0.0) }).await;
    analytics.until_unmet("store", "").await;
    assert_eq!(analytics.answer(RECENT).await["total"]["count"], known);
    sqlx::query("ROLLBACK")
        .execute(&mut shell)
        .await
        .expect("let go");
    analytics.until_head(writer.total()).await;
    analytics.until_ready().await;
    assert_eq!(
        analytics.answer(RECENT).await["total"]["count"],
        writer.total()
    );
    writer.source().await;
    until(|| async { analytics.answer("/v1/ledger").await["balanced"] == true }).await;
    analytics.stop().await;
}

/// A wire that can be cut: a proxy that forwards connections, or ends them all and takes no others.
struct Wire {
    address: SocketAddr,
    whole: Arc<watch::Sender<bool>>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let whole = Arc::new(watch::Sender::new(true));
        let state = Arc::clone(&whole);
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, mut state) = (target.clone(), state.subscribe());
                tokio::spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(&target).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = state.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self {
            address,
            whole,
            task,
        }
    }

    fn cut(&self) {
        self.whole.send_replace(false);
    }

    fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_is_taken_away_is_waited_for() {
    let Ok(url) = std::env::var("STREAMGAUGE_TEST_POSTGRES_URL") else {
        // Without the stack the tests above stand for it.
        return;
    };
    let name = format!("breaker_{}", std::process::id());
    let mut admin = sqlx::PgConnection::connect(&url).await.expect("PostgreSQL");
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create)
        .execute(&mut admin)
        .await
        .expect("a database");
    let (login, place) = url
        .rsplit_once('@')
        .expect("postgres://USER@HOST:PORT/DATABASE");
    let (target, _) = place.split_once('/').expect("a database is named");
    let wire = Wire::to(target.to_owned()).await;

    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = impatient(config(folder.path(), &broker.bootstrap()));
    config.store.operation_timeout_ms = 5_000;
    config.store.bulk_timeout_ms = 5_000;
    config.store.url = SecretUrl::new(format!("{login}@{}/{name}", wire.address));
    let analytics = Analytics::start(config).await;
    analytics.until_ready().await;
    fill(&mut writer, 6).await;
    analytics.until_head(writer.total()).await;
    let known = writer.total();
    for _ in 0..2 {
        wire.cut();
        let before = analytics.answer("/v1/ledger").await["total"]["head"].clone();
        fill(&mut writer, 6).await;
        holds_while_away(&analytics, before.as_i64().expect("a number")).await;
        wire.mend();
        holds_afterwards(&analytics, &writer).await;
    }
    assert!(writer.total() > known);
    analytics.stop().await;
}
