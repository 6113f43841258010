//! The ledger as an answer: it balances while nobody tampers, and names the spot when somebody does, in the log or in the
//! store.

mod common;

use std::path::Path;

use common::{NOW_S, batch, running::*};
use prost::Message;
use serde_json::{Value, json};
use sqlx::Connection;

async fn fill(writer: &mut Writer, batches: i64) {
    for n in 0..batches {
        let partition = (n % i64::from(PARTITIONS)) as i32;
        let events = some_events(NOW_S - 300 + n, 20);
        writer.valid(partition, events, vec![]).await;
    }
}

async fn checked(analytics: &Analytics) -> Value {
    analytics.answer("/v1/ledger?check_store=true").await
}

/// Waits until the store was read back with nothing left to write, and the end of the source is known: these tests write
/// the source last, which looks like batches that nothing in the source stands for until then.
async fn until_summed(analytics: &Analytics, events: i64) -> Value {
    let mut found = Value::Null;
    for _ in 0..3_000 {
        found = checked(analytics).await;
        let store = &found["store"];
        if store["counted"] == events
            && store["whole"]["events"] == events
            && found["total"]["source_end"] == events
        {
            return found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("not summed up: {found}");
}

/// Waits until the rows hold so many events, and nothing is left for a checkpoint.
async fn until_in_rows(folder: &Path, events: i64) {
    let url = format!("sqlite:{}", folder.join("analytics.db").display());
    let sql = "SELECT COALESCE(SUM(count), 0) FROM bucket WHERE series = 'all' AND tier_s = 86400";
    until(|| async {
        let mut shell = sqlx::SqliteConnection::connect(&url).await.expect("a file");
        let found: i64 = sqlx::query_scalar(sql)
            .fetch_one(&mut shell)
            .await
            .expect("a sum");
        found == events
    })
    .await;
}

/// A statement in one of the files of the store, by somebody with a SQL shell.
async fn tamper(folder: &Path, file: &str, sql: &'static str) {
    let url = format!("sqlite:{}", folder.join(file).display());
    let mut shell = sqlx::SqliteConnection::connect(&url).await.expect("a file");
    let done = sqlx::query(sql).execute(&mut shell).await;
    assert!(done.expect("done").rows_affected() > 0, "{sql}");
    shell.close().await.expect("closed");
}

fn breaks(ledger: &Value) -> Vec<(Value, Value, Value, Value)> {
    let found = ledger["breaks"].as_array().expect("a list");
    let one = |found: &Value| {
        (
            found["partition"].clone(),
            found["by"].clone(),
            found["since"].clone(),
            found["what"].clone(),
        )
    };
    found.iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_balance_to_the_last_row_at_both_doors() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    fill(&mut writer, 9).await;
    writer.source().await;
    analytics.until_head(writer.total()).await;
    let total = writer.total();
    let found = until_summed(&analytics, total).await;
    assert_eq!(found["balanced"], true, "{found}");
    assert_eq!(found["store"]["rows"].as_array().map(Vec::len), Some(3));
    until(|| async {
        let found = analytics.answer("/v1/ledger").await;
        found["total"]["in_flight"] == 0
    })
    .await;
    let found = analytics.answer("/v1/ledger").await;
    let equation = found["equation"].as_str().expect("text");
    assert!(
        equation.starts_with("end - start = 180 = 180 counted"),
        "{equation}"
    );
    let request = streamgauge_proto::v1::LedgerRequest { check_store: true };
    let twin = analytics.calls().await.ledger(request).await;
    let twin = twin.expect("an answer").into_inner();
    assert!(twin.balanced && twin.breaks.is_empty());
    assert_eq!(twin.equation, equation);
    assert_eq!(twin.store.expect("read back").counted, total as u64);
    let (status, _) = analytics.get("/v1/ledger?check_store=maybe").await;
    assert_eq!(status, 400);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_lies_beyond_a_removed_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = config(folder.path(), &broker.bootstrap());
    config.ledger.check_interval_ms = 50;
    let analytics = Analytics::start(config).await;
    fill(&mut writer, 3).await;
    analytics.until_head(writer.total()).await;
    // As if the batch of 20 to 50 had been taken out of the log.
    let events = some_events(NOW_S - 100, 10);
    writer.raw(1, &batch(50, &events).encode_to_vec()).await;
    writer.heads[1] = 60;
    writer.source().await;
    let named = [(json!(1), json!(30), json!(20), json!("batches_gone"))];
    until(|| async { breaks(&analytics.answer("/v1/ledger").await) == named }).await;
    let found = analytics.answer("/v1/ledger").await;
    assert_eq!(found["balanced"], false);
    assert_eq!(found["partitions"][1]["stray_batches"], 1);
    let log = "ledger_imbalance{stage=\"log\"}";
    until(|| async { analytics.metric(log).await == Some(30.0) }).await;
    // Somebody writes what was lacking: the chain goes on, and the books balance again.
    let lacking = some_events(NOW_S - 100, 40);
    writer.raw(1, &batch(20, &lacking).encode_to_vec()).await;
    until(|| async { analytics.answer("/v1/ledger").await["balanced"] == true }).await;
    until(|| async { analytics.metric(log).await == Some(0.0) }).await;
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_added_by_hand_are_named_by_their_spot_at_both_doors() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    let counted = batch(0, &some_events(NOW_S - 100, 10)).encode_to_vec();
    writer.raw(1, &counted).await;
    writer.heads[1] = 10;
    writer.source().await;
    writer.raw(1, &counted).await;
    let forged = batch(3, &some_events(NOW_S - 100, 4)).encode_to_vec();
    writer.raw(1, &forged).await;
    writer.raw(1, b"not a batch").await;
    let said = [
        "partition 1: 2 batches are void and count for nobody; the first lies at offset 1 of metrics-data",
        "partition 1: 1 of them are, byte for byte, batches that count; the first lies at offset 1",
        "partition 1: 1 of them contradict batches that count; the first lies at offset 2",
        "partition 1: 1 records of metrics-data are no batches and count for nobody; the first lies at offset 3",
    ];
    let says = |remarks: &[String]| {
        let said = said.iter();
        said.filter(|part| remarks.iter().any(|remark| remark.starts_with(*part)))
            .count()
    };
    until(|| async {
        let found = analytics.answer("/v1/ledger").await;
        let remarks = found["remarks"].as_array().expect("a list");
        let remarks: Vec<String> = remarks
            .iter()
            .filter_map(|remark| remark.as_str().map(String::from))
            .collect();
        says(&remarks) == said.len() && found["balanced"] == true
    })
    .await;
    let request = streamgauge_proto::v1::LedgerRequest { check_store: false };
    let twin = analytics.calls().await.ledger(request).await;
    assert_eq!(says(&twin.expect("an answer").into_inner().remarks), 4);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_batch_that_goes_on_with_the_chain_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    fill(&mut writer, 3).await;
    let mut forged = batch(20, &some_events(NOW_S - 100, 10));
    forged.types.clear();
    writer.raw(1, &forged.encode_to_vec()).await;
    writer.heads[1] = 30;
    writer.source().await;
    let named = [(json!(1), json!(10), json!(20), json!("batch_contents"))];
    until(|| async { breaks(&analytics.answer("/v1/ledger").await) == named }).await;
    let found = analytics.answer("/v1/ledger").await;
    assert_eq!(found["balanced"], false);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_command_compares_is_named_at_both_doors() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    analytics.until_head(0).await;
    let found = analytics.answer("/v1/ledger").await;
    let remarks = found["remarks"].as_array().expect("a list");
    let request = streamgauge_proto::v1::LedgerRequest { check_store: false };
    let twin = analytics.calls().await.ledger(request).await;
    let twin = twin.expect("an answer").into_inner().remarks;
    for left_out in [
        "dead letters",
        "producers and their spools",
        "before they were applied",
        "the contents of batches",
    ] {
        let names = |remark: &str| {
            remark.contains(left_out)
                && remark.contains("`streamgauge audit`")
                && !remark.contains("  ")
        };
        let here = remarks.iter().any(|one| names(one.as_str().expect("text")));
        let there = twin.iter().any(|remark| names(remark));
        assert!(here && there, "{left_out}: {found}, {twin:?}");
    }
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_chain_that_was_altered_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = config(folder.path(), &broker.bootstrap());
    config.ledger.check_interval_ms = 50;
    let analytics = Analytics::start(config).await;
    fill(&mut writer, 3).await;
    writer.source().await;
    analytics.until_head(writer.total()).await;
    until_summed(&analytics, writer.total()).await;
    let cases = [
        (
            "UPDATE chain SET head = head + 3 WHERE partition = 1",
            "UPDATE chain SET head = head - 3 WHERE partition = 1",
            (json!(1), json!(3), json!(0), json!("store_imbalance")),
        ),
        (
            "UPDATE chain SET head = head + 3, counted = counted + 3 WHERE partition = 1",
            "UPDATE chain SET head = head - 3, counted = counted - 3 WHERE partition = 1",
            (json!(1), json!(3), json!(20), json!("store_off_chain")),
        ),
        (
            "UPDATE chain SET counted = counted - 2, late = late + 2 WHERE partition = 2",
            "UPDATE chain SET counted = counted + 2, late = late - 2 WHERE partition = 2",
            (json!(2), json!(-2), json!(0), json!("store_differs")),
        ),
        (
            "UPDATE chain SET delta_position = delta_position - 1, head = head - 5, counted = counted - 5 \
             WHERE partition = 0",
            "UPDATE chain SET delta_position = delta_position + 1, head = head + 5, counted = counted + 5 \
             WHERE partition = 0",
            (json!(0), json!(5), json!(15), json!("store_row")),
        ),
    ];
    let store = "ledger_imbalance{stage=\"store\"}";
    for (alter, mend, named) in cases {
        tamper(folder.path(), "analytics.deltas.db", alter).await;
        let found = checked(&analytics).await;
        let by = named.1.as_i64().expect("a number").abs() as f64;
        // Terms that trade places differ both ways by as much.
        let (partition, size, since, what) = &breaks(&found)[0];
        assert_eq!(
            (partition, size.as_i64().map(i64::abs), since, what),
            (&named.0, Some(by as i64), &named.2, &named.3),
            "{alter}: {found}"
        );
        assert_eq!(found["balanced"], false);
        until(|| async { analytics.metric(store).await == Some(by) }).await;
        tamper(folder.path(), "analytics.deltas.db", mend).await;
        let found = checked(&analytics).await;
        assert_eq!(found["balanced"], true, "{mend}: {found}");
    }
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_altered_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    fill(&mut writer, 3).await;
    writer.source().await;
    analytics.until_head(writer.total()).await;
    until_summed(&analytics, writer.total()).await;
    until_in_rows(folder.path(), writer.total()).await;
    // One row of the longest buckets: all of them add up to five more than was counted.
    let day = "UPDATE bucket SET count = count + 5 WHERE series = 'all' AND tier_s = 86400 AND bucket_s = \
               (SELECT MAX(bucket_s) FROM bucket WHERE series = 'all' AND tier_s = 86400)";
    tamper(folder.path(), "analytics.db", day).await;
    let found = checked(&analytics).await;
    assert_eq!(found["balanced"], false, "{found}");
    assert!(
        breaks(&found).contains(&(Value::Null, json!(5), Value::Null, json!("aggregates"))),
        "{found}"
    );
    let mend = "UPDATE bucket SET count = count - 5 WHERE series = 'all' AND tier_s = 86400 AND bucket_s = \
                (SELECT MAX(bucket_s) FROM bucket WHERE series = 'all' AND tier_s = 86400)";
    tamper(folder.path(), "analytics.db", mend).await;
    assert_eq!(checked(&analytics).await["balanced"], true);
    // One row of a minute: it is no longer what its hour says.
    let minute = "UPDATE bucket SET count = count + 4 WHERE series = 'all' AND tier_s = 60 AND bucket_s = \
                  (SELECT MAX(bucket_s) FROM bucket WHERE series = 'all' AND tier_s = 60)";
    tamper(folder.path(), "analytics.db", minute).await;
    let found = checked(&analytics).await;
    let tiers: Vec<&Value> = found["breaks"].as_array().expect("a list").iter().collect();
    assert!(
        tiers.iter().all(|one| one["what"] == "tiers") && !tiers.is_empty(),
        "{found}"
    );
    let said = tiers[0]["message"].as_str().expect("text");
    assert!(said.contains("buckets of"), "{said}");
    analytics.stop().await;
}
