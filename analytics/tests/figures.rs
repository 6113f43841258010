//! Figures held against a plain count: windows, users with many pages, and what is read again after a loss.

mod common;

use std::sync::{Arc, atomic::Ordering::SeqCst};

use common::{faulty::Faulty, *};
use streamgauge_analytics::{
    Config, load,
    store::{Durability, SqliteStore, Store, StoreError},
};
use streamgauge_proto::v1;

fn sqlite(folder: &tempfile::TempDir) -> Arc<dyn Store> {
    let path = folder.path().join("analytics.db");
    Arc::new(SqliteStore::new(path, Durability::Normal, 2))
}

fn events(start: i64, count: u32) -> Vec<Event> {
    let value = |n: u32| (!n.is_multiple_of(3)).then_some(f64::from(n % 100));
    (0..count)
        .map(|n| event(start + i64::from(n * 7 % 200), n % 37, n % 5, value(n)))
        .collect()
}

async fn counted(instance: &Instance, from_s: i64) -> u64 {
    let request = top("page_url", from_s, NOW_S);
    let answer = instance.service().top(request).await.expect("an answer");
    answer.total.expect("a total").count
}

#[tokio::test]
async fn windows_are_what_a_plain_count_says() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut instance = Instance::start(open(), Config::default()).await;
        let (mut log, mut oracle) = (Log::default(), Oracle::default());
        // Old and recent seconds: the store and memory both have a part.
        for start in [NOW_S - 4_000, NOW_S - 3_900, NOW_S - 400, NOW_S - 300] {
            let events = events(start, 150);
            log.push(&events);
            oracle.0.extend(events);
            instance.follow(0, &log, 10).await;
            if start == NOW_S - 3_900 {
                instance.checkpoint().await;
            }
        }
        for from_s in [NOW_S - 4_200, NOW_S - 600] {
            for (step_s, window_s) in [(10, 10), (10, 30), (60, 180), (30, 300)] {
                let request = v1::SeriesRequest {
                    by: String::from("event_type"),
                    range: range(from_s, from_s + 600),
                    step_s,
                    window_s,
                    ..v1::SeriesRequest::default()
                };
                let answer = instance.service().series(request).await.expect("an answer");
                for kind in ["view", "click"] {
                    let what = format!("{kind} from {from_s}, {window_s} s each {step_s} s");
                    let series = answer.series.iter().find(|series| series.key == [kind]);
                    let points = &series.expect("the key").points;
                    hold(points, &oracle, kind, from_s, step_s, window_s, &what);
                }
            }
        }
    }
}

/// Holds the points of one key against the events themselves.
fn hold(
    points: &[v1::Point],
    oracle: &Oracle,
    kind: &str,
    from_s: i64,
    step_s: u32,
    window_s: u32,
    what: &str,
) {
    let (step_s, window_s) = (i64::from(step_s), i64::from(window_s));
    let mut expected = 0;
    for start in (from_s..from_s + 600).step_by(step_s as usize) {
        let window = start + step_s - window_s..start + step_s;
        let events: Vec<&Event> = oracle
            .0
            .iter()
            .filter(|event| event.kind == kind && window.contains(&event.second))
            .collect();
        let point = points
            .iter()
            .find(|point| point.start_us == start * 1_000_000);
        let Some(first) = events.first() else {
            assert!(point.is_none(), "{what}: nothing at {start}");
            continue;
        };
        expected += 1;
        let value = point.and_then(|point| point.value.as_ref());
        let value = value.unwrap_or_else(|| panic!("{what}: {first:?} is missing at {start}"));
        let values: Vec<f64> = events.iter().filter_map(|event| event.value).collect();
        assert_eq!(value.count, events.len() as u64, "{what} at {start}");
        assert_eq!(value.value_count, values.len() as u64, "{what} at {start}");
        assert!(
            (value.sum - values.iter().sum::<f64>()).abs() < 1e-6,
            "{what} at {start}"
        );
        let users: std::collections::BTreeSet<_> = events.iter().map(|event| &event.user).collect();
        assert!(
            (value.users - users.len() as f64).abs() < 0.5,
            "{what} at {start}"
        );
    }
    assert_eq!(points.len(), expected, "{what}");
}

#[tokio::test]
async fn event_types_add_up_over_more_pages_than_an_answer_lists() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut config = Config::default();
        config.query.keys_max = 2;
        let mut instance = Instance::start(open(), config).await;
        let mut log = Log::default();
        for page in 0..9 {
            log.push(&[event(NOW_S - 100, 1, page, None)]);
            instance.follow(0, &log, 10).await;
            if page == 4 {
                instance.checkpoint().await;
            }
        }
        let service = instance.service();
        let events = service.user_events("user-1", "").await.expect("an answer");
        let expected = [(String::from("click"), 4), (String::from("view"), 5)];
        assert_eq!(events.count, 9);
        assert_eq!(
            events.by_event_type.into_iter().collect::<Vec<_>>(),
            expected
        );
    }
}

#[tokio::test]
async fn rows_that_a_power_cut_left_ahead_of_the_chain_count_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = tempfile::tempdir().expect("a folder");
    let deltas = |at: &tempfile::TempDir| at.path().join("analytics.deltas.db");
    let mut log = Log::default();
    let mut instance = Instance::start(sqlite(&folder), Config::default()).await;
    log.push(&events(NOW_S - 300, 100));
    instance.follow(0, &log, 10).await;
    instance.store.close().await;
    std::fs::copy(deltas(&folder), deltas(&kept)).expect("kept");

    let mut instance = Instance::start(sqlite(&folder), Config::default()).await;
    log.push(&events(NOW_S - 290, 100));
    log.push(&events(NOW_S - 280, 100));
    instance.follow(0, &log, 10).await;
    instance.checkpoint().await;
    instance.store.close().await;
    // The chains' file loses its last commits; the rows' file keeps the checkpoint.
    std::fs::copy(deltas(&kept), deltas(&folder)).expect("set back");
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", deltas(&folder).display()));
    }

    let mut again = Instance::start(sqlite(&folder), Config::default()).await;
    assert_eq!(again.fold.row(0).delta_position, 1);
    again.follow(0, &log, 10).await;
    log.push(&events(NOW_S - 270, 50));
    again.follow(0, &log, 10).await;
    for from_s in [NOW_S - 600, NOW_S - 7_200] {
        assert_eq!(counted(&again, from_s).await, 350, "from {from_s}");
    }
    assert_eq!(again.fold.row(0).ledger.outcomes().counted, 350);
    again.checkpoint().await;
    let last = Instance::start(sqlite(&folder), Config::default()).await;
    for from_s in [NOW_S - 600, NOW_S - 7_200] {
        assert_eq!(counted(&last, from_s).await, 350, "from {from_s}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_moves_while_it_is_read_is_never_half_of_an_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Faulty::new(sqlite(&folder));
    let mut log = Log::default();
    let mut instance = Instance::start(store.clone(), Config::default()).await;
    log.push(&events(NOW_S - 300, 100));
    instance.follow(0, &log, 10).await;
    instance.checkpoint().await;
    log.push(&events(NOW_S - 200, 100));
    instance.follow(0, &log, 10).await;

    store.faults.moves.store(3, SeqCst);
    let again = Instance::start(store.clone(), Config::default()).await;
    assert_eq!(store.faults.moves.load(SeqCst), 0);
    for from_s in [NOW_S - 600, NOW_S - 7_200] {
        assert_eq!(counted(&again, from_s).await, 200, "from {from_s}");
    }
    store.faults.moves.store(u32::MAX, SeqCst);
    let opened: Arc<dyn Store> = store.clone();
    let error = load::load(&opened, &Config::default(), NOW_S).await;
    let error = error.expect_err("it never stands still");
    assert!(matches!(error, StoreError::Moved), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn more_queries_than_there_are_places_for_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Faulty::new(sqlite(&folder));
    let mut config = Config::default();
    config.query.concurrent_max = 2;
    let instance = Instance::start(store.clone(), config).await;
    store.faults.scans_hang.store(true, SeqCst);
    let service = Arc::new(instance.service());
    let ask = || service.top(top("all", NOW_S - 7_200, NOW_S));
    let (mut one, mut other) = (Box::pin(ask()), Box::pin(ask()));
    assert!(futures::poll!(&mut one).is_pending() && futures::poll!(&mut other).is_pending());
    let refused = ask().await.expect_err("no place");
    assert_eq!(refused.code.as_str(), "overloaded");
    assert!(refused.retry_after_seconds().is_some());
    drop(one);
    let mut next = Box::pin(ask());
    assert!(futures::poll!(&mut next).is_pending(), "a place came free");
}

#[tokio::test]
async fn many_cells_give_the_same_answer_on_another_thread() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut instance = Instance::start(sqlite(&folder), Config::default()).await;
    let mut log = Log::default();
    log.push(&events(NOW_S - 300, 200));
    instance.follow(0, &log, 10).await;
    let request = || top("event_type,page_url", NOW_S - 600, NOW_S);
    let here = instance.service().top(request()).await.expect("an answer");
    let mut config = Config::default();
    config.query.inline_cells_max = 1;
    instance.config = Arc::new(config);
    let there = instance.service().top(request()).await.expect("an answer");
    assert_eq!(here, there);
}
