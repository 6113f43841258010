//! What is away, slow or elsewhere: the log, the database, another instance. Answers go on where they can, and nothing is
//! lost or counted twice.

mod common;

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use common::{NOW_S, faulty::Faulty, running::*};
use serde_json::{Value, json};
use streamgauge_analytics::{
    Config,
    store::{self, SqliteStore, Store},
};
use streamgauge_broker::{Broker, BrokerConfig};

/// A range that memory does not hold: the store answers.
const OLD: &str = "/v1/top?by=page_url&last=2h&limit=50";
/// A range that memory holds.
const RECENT: &str = "/v1/top?by=page_url&last=10m&limit=50";

async fn fill(writer: &mut Writer, batches: i64) {
    for n in 0..batches {
        let partition = (n % i64::from(PARTITIONS)) as i32;
        let events = some_events(NOW_S - 300 + n, 20);
        writer.valid(partition, events, vec![]).await;
    }
}

fn faulty(config: &Config) -> Arc<Faulty> {
    Faulty::new(store::open(&config.store).expect("a store"))
}

async fn end(broker: Broker) {
    broker.shutdown(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_the_log_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    analytics.until_unmet("log", "metrics-data").await;
    // The store was read and is empty: that is an answer.
    let ledger = || async { analytics.get("/v1/ledger").await };
    until(|| async { ledger().await.0 == 200 }).await;
    assert_eq!(ledger().await.1["total"]["head"], 0);
    topics(&broker).await;
    analytics.until_ready().await;
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_while_the_log_is_away_answers_from_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let brokers = broker.bootstrap();
    let mut writer = Writer::new(&brokers);
    let analytics = Analytics::start(config(folder.path(), &brokers)).await;
    fill(&mut writer, 9).await;
    analytics.until_head(writer.total()).await;
    let (old, recent) = (analytics.answer(OLD).await, analytics.answer(RECENT).await);
    analytics.stop().await;
    end(broker).await;

    let again = Analytics::start(config(folder.path(), &brokers)).await;
    again.until_unmet("log", "").await;
    until(|| async { again.get("/v1/ledger").await.0 == 200 }).await;
    assert_eq!(
        again.answer("/v1/ledger").await["total"]["head"],
        writer.total()
    );
    assert_eq!(again.answer(OLD).await["entries"], old["entries"]);
    assert_eq!(again.answer(RECENT).await["entries"], recent["entries"]);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_goes_away_later_costs_no_answers_and_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = broker(folder.path()).await;
    topics(&first).await;
    let (brokers, listen) = (first.bootstrap(), first.local_addr());
    let mut writer = Writer::new(&brokers);
    let analytics = Analytics::start(config(folder.path(), &brokers)).await;
    analytics.until_ready().await;
    fill(&mut writer, 3).await;
    analytics.until_head(writer.total()).await;
    until(|| async { analytics.metric("kafka_reachable").await == Some(1.0) }).await;
    end(first).await;
    until(|| async { analytics.metric("kafka_reachable").await == Some(0.0) }).await;
    assert_eq!(analytics.get("/readyz").await.0, 200);
    assert_eq!(
        analytics.answer(OLD).await["total"]["count"],
        writer.total()
    );

    let again = Broker::start(BrokerConfig {
        data_dir: folder.path().join("log"),
        listen,
        ..BrokerConfig::default()
    });
    let again = again.await.expect("the same broker");
    fill(&mut writer, 3).await;
    analytics.until_head(writer.total()).await;
    until(|| async { analytics.metric("kafka_reachable").await == Some(1.0) }).await;
    analytics.stop().await;
    end(again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_of_two_instances_that_writes_no_checkpoint_answers_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut busy = config(folder.path(), &broker.bootstrap());
    busy.checkpoint.interval_ms = 50;
    let mut lazy = config(folder.path(), &broker.bootstrap());
    lazy.checkpoint.interval_ms = 3_600_000;
    // A machine under load must not make the difference.
    lazy.query.attempts_max = 1_000;
    let busy = Analytics::start(busy).await;
    busy.until_ready().await;
    let lazy = Analytics::start(lazy).await;
    lazy.until_ready().await;
    for round in 0..5 {
        fill(&mut writer, 6).await;
        busy.until_head(writer.total()).await;
        lazy.until_head(writer.total()).await;
        // The store is at a checkpoint that holds all of it.
        until(|| async { busy.metric("view_pending_cells").await == Some(0.0) }).await;
        for instance in [&busy, &lazy] {
            let total = instance.answer(OLD).await["total"]["count"].clone();
            assert_eq!(total, writer.total(), "round {round}");
            let user = instance.answer("/analytics/events?user_id=user-3").await;
            let wanted = writer.oracle.count(|event| event.user == "user-3");
            assert_eq!(user["count"], wanted, "round {round}");
        }
    }
    busy.stop().await;
    lazy.stop().await;
}

/// How many cells may wait for a checkpoint in these tests.
const CELLS_MAX: usize = 100;

async fn reading_waits(break_it: impl Fn(&Faulty), mend_it: impl Fn(&Faulty)) {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = config(folder.path(), &broker.bootstrap());
    config.checkpoint.cells_max = CELLS_MAX;
    config.checkpoint.interval_ms = 3_600_000;
    // One batch at a time, however many a slow machine finds waiting.
    config.apply.batches_max = 1;
    config.fetch.chunk_records_max = 1;
    let store = faulty(&config);
    break_it(&store);
    let analytics = Analytics::start_with(config, store.clone()).await;
    analytics.until_ready().await;
    // Each batch brings some 60 cells: all of them would be far beyond twice the bound.
    fill(&mut writer, 60).await;
    let pending = || async {
        analytics
            .metric("view_pending_cells")
            .await
            .unwrap_or_default()
    };
    until(|| async { pending().await >= 2.0 * CELLS_MAX as f64 }).await;
    // What is frozen and what is fresh are each at most one batch over the bound.
    assert!(
        pending().await < 4.0 * CELLS_MAX as f64,
        "{}",
        pending().await
    );
    let head = &analytics.answer("/v1/ledger").await["total"]["head"];
    assert!(head.as_i64() < Some(writer.total()), "{head}");
    assert_eq!(analytics.answer(RECENT).await["total"]["count"], *head);
    mend_it(&store);
    analytics.until_head(writer.total()).await;
    assert_eq!(
        analytics.answer(OLD).await["total"]["count"],
        writer.total()
    );
    analytics.until_ready().await;
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_waits_for_a_checkpoint_that_lags_behind() {
    reading_waits(
        |store| store.faults.hold_checkpoints(true),
        |store| store.faults.hold_checkpoints(false),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_waits_while_checkpoints_fail() {
    reading_waits(
        |store| store.faults.checkpoints_fail.store(true, SeqCst),
        |store| store.faults.checkpoints_fail.store(false, SeqCst),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_hangs_does_not_keep_the_service_from_ending() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = config(folder.path(), &broker.bootstrap());
    config.shutdown_deadline_ms = 1_000;
    let store = faulty(&config);
    store.faults.hold_checkpoints(true);
    let analytics = Analytics::start_with(config, store).await;
    fill(&mut writer, 3).await;
    analytics.until_head(writer.total()).await;
    let begun = || async { analytics.metric("view_pending_cells").await > Some(0.0) };
    until(begun).await;
    tokio::time::timeout(Duration::from_secs(30), analytics.stop())
        .await
        .expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_at_the_start_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut config = config(folder.path(), &broker.bootstrap());
    config.store.connect.max_ms = 50;
    let store = faulty(&config);
    store.faults.is_away.store(true, SeqCst);
    let analytics = Analytics::start_with(config, store.clone()).await;
    analytics.until_unmet("store", "away on purpose").await;
    let (status, body) = analytics.get("/v1/ledger").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("not_ready")));
    assert_eq!(analytics.get("/livez").await.0, 200);
    store.faults.is_away.store(false, SeqCst);
    analytics.until_ready().await;
    assert_eq!(analytics.answer("/v1/ledger").await["total"]["head"], 0);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_later_holds_reading_and_recent_ranges_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = config(folder.path(), &broker.bootstrap());
    config.store.write.max_ms = 50;
    let store = faulty(&config);
    let analytics = Analytics::start_with(config, store.clone()).await;
    fill(&mut writer, 6).await;
    analytics.until_head(writer.total()).await;
    let before = writer.total();
    store.faults.is_away.store(true, SeqCst);
    fill(&mut writer, 6).await;
    analytics.until_unmet("store", "away on purpose").await;
    assert_eq!(analytics.answer(RECENT).await["total"]["count"], before);
    let (status, body) = analytics.get(OLD).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(body["error"]["code"], "store_unavailable");
    store.faults.is_away.store(false, SeqCst);
    analytics.until_head(writer.total()).await;
    analytics.until_ready().await;
    // The breaker gives the store another chance soon.
    until(|| async { analytics.get(OLD).await.1["total"]["count"] == writer.total() }).await;
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_outcome_was_not_heard_of_counts_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let config = config(folder.path(), &broker.bootstrap());
    let store = faulty(&config);
    store.faults.silent_applies.store(4, SeqCst);
    let analytics = Analytics::start_with(config, store.clone()).await;
    fill(&mut writer, 12).await;
    analytics.until_head(writer.total()).await;
    // As many more as it takes to use the faults up.
    while store.faults.silent_applies.load(SeqCst) > 0 {
        fill(&mut writer, 1).await;
        analytics.until_head(writer.total()).await;
    }
    for path in [OLD, RECENT] {
        let total = &analytics.answer(path).await["total"]["count"];
        assert_eq!(*total, writer.total(), "{path}");
    }
    writer.source().await;
    until(|| async { analytics.answer("/v1/ledger").await["balanced"] == true }).await;
    let ledger = analytics.answer("/v1/ledger").await;
    assert_eq!(ledger["total"]["void_batches"], 0);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_too_long_is_given_up_at_both_doors() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut config = config(folder.path(), &broker.bootstrap());
    config.http.request_timeout_ms = 50;
    config.grpc.request_timeout_ms = 50;
    let store = faulty(&config);
    let analytics = Analytics::start_with(config, store.clone()).await;
    analytics.until_ready().await;
    store.faults.scans_hang.store(true, SeqCst);
    let (status, body) = analytics.get("/v1/top?last=2h").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("deadline_exceeded"))
    );
    let refused = analytics
        .calls()
        .await
        .top(common::top("all", NOW_S - 7_200, NOW_S))
        .await
        .expect_err("too late");
    assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_a_store_that_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut config = config(folder.path(), &broker.bootstrap());
    config.store.operation_timeout_ms = 50;
    let store = faulty(&config);
    let analytics = Analytics::start_with(config, store.clone()).await;
    analytics.until_ready().await;
    store.faults.scans_hang.store(true, SeqCst);
    let (status, body) = analytics.get("/v1/top?last=2h").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("store_unavailable"))
    );
    let failed = "db_operation_duration_seconds_count{op=\"scan\",outcome=\"error\"}";
    assert!(analytics.metric(failed).await >= Some(1.0));
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_version_ends_the_service_with_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    let config = config(folder.path(), &broker.bootstrap());
    from_the_future(folder.path()).await;
    let analytics = Analytics::start(config).await;
    let error = analytics
        .task
        .await
        .expect("no panic")
        .expect_err("it cannot be read");
    assert!(error.to_string().contains("99"), "{error}");
}

async fn from_the_future(folder: &Path) {
    use sqlx::Connection;
    let path = folder.join("analytics.db");
    let store = SqliteStore::new(path.clone(), store::Durability::Normal, 1);
    store.migrate().await.expect("migrated");
    store.close().await;
    let url = format!("sqlite:{}", path.display());
    let mut rows = sqlx::SqliteConnection::connect(&url).await.expect("a file");
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
               VALUES (99, 'later', TRUE, x'00', 0)";
    sqlx::query(sql).execute(&mut rows).await.expect("written");
    rows.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_retention_was_faster_it_goes_on_where_the_log_begins() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Broker::start(BrokerConfig {
        data_dir: folder.path().join("log"),
        listen: ([127, 0, 0, 1], 0).into(),
        max_message_bytes: 64 * 1024,
        segment_bytes: 64 * 1024,
        retention_bytes: 64 * 1024,
        ..BrokerConfig::default()
    });
    let broker = broker.await.expect("a broker");
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let first = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    fill(&mut writer, 3).await;
    first.until_head(writer.total()).await;
    first.stop().await;
    // So much that what comes next for the store is no longer there.
    for n in 0..300 {
        let events = some_events(NOW_S - 300 + n % 100, 60);
        writer.valid(0, events, vec![]).await;
    }
    broker.enforce_retention().await.expect("enforced");
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    analytics.until_head(writer.total()).await;
    let ledger = analytics.answer("/v1/ledger").await;
    let missing = |ledger: &Value| ledger["total"]["missing"].as_i64();
    assert!(missing(&ledger) > Some(0), "{ledger}");
    assert_eq!(ledger["total"]["imbalance"], 0);
    // The other partitions were not harmed, and all go on.
    fill(&mut writer, 6).await;
    analytics.until_head(writer.total()).await;
    analytics.until_ready().await;
    let later = analytics.answer("/v1/ledger").await;
    assert_eq!(missing(&later), missing(&ledger));
    analytics.stop().await;
}
