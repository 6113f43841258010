//! Rows made anew beside those that are served: equal when nothing is wrong, different where something is, swapped in
//! without a gap, and harmless when they are given up. Each test runs against SQLite, and against PostgreSQL where there
//! is one.

mod common;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use common::*;
use streamgauge_analytics::{
    Config,
    checkpoint::{Checkpointed, random_name},
    rebuild::{Bounds, Comparison, Generation, RebuildError, Where},
    store::{
        BucketRow, CheckpointWrite, Durability, Rebuilt, Shift, Slot, SqliteStore, Store, SumsOf,
        Swapped,
    },
    view::{CellValue, ChainRow},
};
use streamgauge_chain::{Outcomes, delta};

const BOUNDS: Bounds = Bounds {
    // Less than there are rows, so that pages follow each other.
    page_rows: 37,
    listed_max: 10,
};

fn some_events(n: i64) -> Vec<Event> {
    let value = |user: u32| user.is_multiple_of(3).then_some(f64::from(user) / 7.0);
    (0..60u32)
        .map(|user| {
            event(
                NOW_S - 3_000 + n * 200 + i64::from(user),
                user % 17,
                user % 5,
                value(user),
            )
        })
        .collect()
}

fn log_of(batches: i64) -> Log {
    let mut log = Log::default();
    (0..batches).for_each(|n| log.push(&some_events(n)));
    log
}

async fn begin(store: &Arc<dyn Store>) -> Generation {
    begin_for(store, Duration::from_secs(30))
        .await
        .expect("begun")
}

async fn begin_for(store: &Arc<dyn Store>, lease: Duration) -> Result<Generation, RebuildError> {
    let clock = Arc::new(streamgauge_lifecycle::ManualClock::new(NOW_S * 1_000_000));
    let config = Arc::new(Config::default());
    Generation::begin(Arc::clone(store), config, clock, lease).await
}

/// Adds the batches between two positions of the log.
async fn add(generation: &mut Generation, log: &Log, positions: std::ops::Range<i64>) {
    for payload in &log.records[positions.start as usize..positions.end as usize] {
        let batch = delta::decode(payload).expect("a batch");
        generation.add(0, &batch).await.expect("added");
    }
}

fn position(rows: &[ChainRow]) -> i64 {
    rows.first().map_or(0, |row| row.delta_position)
}

/// Rebuilds up to where the chain stands now; returns the generation and how it compares.
async fn rebuilt(store: &Arc<dyn Store>, log: &Log) -> (Generation, Comparison) {
    let mut generation = begin(store).await;
    let comparison = fill(&mut generation, log).await;
    (generation, comparison)
}

async fn fill(generation: &mut Generation, log: &Log) -> Comparison {
    let reached = position(&generation.pin(1).await.expect("pinned"));
    add(generation, log, 0..reached).await;
    let positions = BTreeMap::from([(0, reached)]);
    generation.complete(positions).await.expect("complete");
    generation.compare(BOUNDS).await.expect("compared")
}

async fn total(instance: &Instance) -> u64 {
    let answer = instance
        .service()
        // Less than an hour, so that minutes are read.
        .top(top("page_url", NOW_S - 3_060, NOW_S))
        .await
        .expect("an answer");
    answer.total.expect("a total").count
}

async fn pages_of_a_user(instance: &Instance) -> u64 {
    let request = streamgauge_proto::v1::UserActivityRequest {
        user_id: String::from("user-3"),
        ..Default::default()
    };
    let answer = instance.service().user_activity(request).await;
    answer.expect("an answer").count
}

#[tokio::test]
async fn a_rebuild_beside_a_system_that_runs_on_is_equal_and_swapped_in_without_a_gap() {
    let stores = Stores::new();
    for open in stores.each().await {
        let log = log_of(14);
        let mut live = Instance::start(open(), Config::default()).await;
        live.follow(0, &log, 5).await;
        live.checkpoint().await;
        live.follow(0, &log, 2).await;

        let store = open();
        let mut generation = begin(&store).await;
        let first = position(&generation.chains().await.expect("chains"));
        add(&mut generation, &log, 0..first).await;
        // The system runs on while it is caught up with.
        live.follow(0, &log, 2).await;
        let pinned = position(&generation.pin(1).await.expect("pinned"));
        assert_eq!((first, pinned), (7, 9));
        live.follow(0, &log, 2).await;
        assert!(matches!(live.checkpoint().await, Some(Checkpointed::Done)));
        let kept = store.deltas(0, 0, 100).await.expect("deltas");
        assert_eq!(kept.first().map(|delta| delta.offset), Some(5), "pinned");
        add(&mut generation, &log, first..pinned).await;
        let positions = BTreeMap::from([(0, pinned)]);
        generation.complete(positions).await.expect("complete");
        let comparison = generation.compare(BOUNDS).await.expect("compared");
        let found = comparison.total();
        assert!(found.rows > 500 && comparison.users.rows > 0, "{found:?}");
        assert_eq!(found.differing, 0, "{:?}", comparison.listed);
        assert_eq!(found.served, found.rebuilt);

        live.follow(0, &log, 1).await;
        assert_eq!(total(&live).await, 12 * 60);
        generation.swap().await.expect("swapped");
        assert_eq!(store.served().await.expect("served"), Slot::Second);
        // Whoever has not noticed goes on over the rows from before, and harms nobody.
        assert_eq!(total(&live).await, 12 * 60);
        live.follow(0, &log, 1).await;
        assert!(matches!(live.checkpoint().await, Some(Checkpointed::Done)));
        assert_eq!(total(&live).await, 13 * 60);
        let mut anew = Instance::start(open(), Config::default()).await;
        assert_eq!(anew.fold.view().slot, Slot::Second);
        assert_eq!(total(&anew).await, 13 * 60);
        anew.follow(0, &log, 1).await;
        assert!(matches!(anew.checkpoint().await, Some(Checkpointed::Done)));
        assert_eq!(total(&anew).await, 14 * 60);
        assert_eq!(pages_of_a_user(&anew).await, 14 * 4);
        let kept = store.deltas(0, 0, 100).await.expect("deltas");
        assert!(kept.is_empty(), "nobody needs them any more");
        assert_eq!(anew.fold.row(0).ledger.imbalance(), 0);
        // And back again, into the rows that were served first.
        let (generation, comparison) = rebuilt(&store, &log).await;
        assert_eq!(comparison.total().differing, 0, "{:?}", comparison.listed);
        generation.swap().await.expect("swapped");
        let again = Instance::start(open(), Config::default()).await;
        assert_eq!(again.fold.view().slot, Slot::First);
        assert_eq!(total(&again).await, 14 * 60);
    }
}

/// Adds events that never were to one page and minute.
async fn corrupt(store: &Arc<dyn Store>, count: u64) {
    let slot = store.served().await.expect("served");
    let mut rows = store.slots().snapshot(slot).await.expect("a snapshot");
    let state = rows.state().clone();
    let mut row = None;
    let mut after = None;
    while row.is_none() {
        let page = rows.buckets(after.as_ref(), 100).await.expect("a page");
        let minute = |row: &&BucketRow| row.tier_s == 60 && *row.series == *"page_url";
        row = page.iter().find(minute).cloned();
        after = page.last().cloned();
    }
    drop(rows);
    let mut row = row.expect("a row");
    row.value = CellValue::default();
    row.value.count = count;
    let write = CheckpointWrite {
        slot,
        from: state.generation,
        to: random_name(),
        positions: state.positions,
        buckets: vec![row],
        users: Vec::new(),
    };
    let written = store.checkpoint(&write).await.expect("written");
    assert_eq!(written, Swapped::Done);
}

#[tokio::test]
async fn a_wrong_figure_is_named_and_mended() {
    let stores = Stores::new();
    for open in stores.each().await {
        let log = log_of(6);
        let mut live = Instance::start(open(), Config::default()).await;
        live.follow(0, &log, 6).await;
        live.checkpoint().await;
        let store = open();
        corrupt(&store, 7).await;
        let wrong = Instance::start(open(), Config::default()).await;
        assert_eq!(total(&wrong).await, 6 * 60 + 7);

        let (generation, comparison) = rebuilt(&store, &log).await;
        let found = comparison.total();
        assert_eq!(
            (found.differing, found.less),
            (1, 1),
            "{:?}",
            comparison.listed
        );
        assert_eq!(found.served, found.rebuilt + 7);
        let named = comparison.listed.first().expect("listed");
        assert!(
            matches!(&named.at, Where::Bucket { tier_s: 60, series, .. } if series == "page_url")
        );
        let (served, mended) = (named.served.expect("a row"), named.rebuilt.expect("a row"));
        assert_eq!(served.count, mended.count + 7);
        // Given up, nothing has changed; swapped in, it is mended.
        generation.discard().await.expect("discarded");
        let wrong = Instance::start(open(), Config::default()).await;
        assert_eq!(total(&wrong).await, 6 * 60 + 7);
        let (generation, _) = rebuilt(&store, &log).await;
        generation.swap().await.expect("swapped");
        let mended = Instance::start(open(), Config::default()).await;
        assert_eq!(total(&mended).await, 6 * 60);
    }
}

/// What a store keeps of the rebuild that made a set of rows.
async fn kept(store: &Arc<dyn Store>, slot: Slot) -> Option<Rebuilt> {
    let asked = SumsOf {
        slot,
        series: &["all"],
        segments: &[],
    };
    store.sums(asked).await.expect("sums").rebuilt
}

#[tokio::test]
async fn what_was_judged_otherwise_is_kept_until_the_rows_are_made_anew() {
    let stores = Stores::new();
    for open in stores.each().await {
        let log = log_of(6);
        let mut live = Instance::start(open(), Config::default()).await;
        live.follow(0, &log, 6).await;
        live.checkpoint().await;
        let store = open();
        let mut generation = begin(&store).await;
        let reached = position(&generation.pin(1).await.expect("pinned"));
        add(&mut generation, &log, 1..reached).await;
        // All events of the first batch are late now.
        let mut batch = delta::decode(&log.records[0]).expect("a batch");
        (batch.series, batch.types, batch.user_pages) = Default::default();
        batch.outcomes = Some(
            Outcomes {
                late: 60,
                ..Outcomes::default()
            }
            .into(),
        );
        generation.add(0, &batch).await.expect("added");
        let positions = BTreeMap::from([(0, reached)]);
        generation.complete(positions).await.expect("complete");
        assert_eq!(kept(&store, Slot::Second).await, None, "nothing is served");
        generation.swap().await.expect("swapped");
        let shift = Shift {
            counted: -60,
            late: 60,
            ..Shift::default()
        };
        let first = Rebuilt {
            generation: 1,
            partitions: BTreeMap::from([(0, shift)]),
        };
        assert_eq!(kept(&store, Slot::Second).await, Some(first.clone()));
        // Whoever still shows the rows from before holds them against the chains as they are.
        assert_eq!(kept(&store, Slot::First).await, None);

        for (n, slot) in [(2, Slot::First), (3, Slot::Second)] {
            let (generation, _) = rebuilt(&store, &log).await;
            generation.swap().await.expect("swapped");
            let equal = Rebuilt {
                generation: n,
                partitions: BTreeMap::from([(0, Shift::default())]),
            };
            assert_eq!(kept(&store, slot).await, Some(equal));
            if slot == Slot::First {
                assert_eq!(kept(&store, Slot::Second).await, Some(first.clone()));
            }
        }
    }
}

#[tokio::test]
async fn rows_changed_by_hand_are_found_whichever_way_they_are_wrong() {
    use sqlx::Connection;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("analytics.db");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::new(path.clone(), Durability::Normal, 2));
    let log = log_of(4);
    let mut live = Instance::start(Arc::clone(&store), Config::default()).await;
    live.follow(0, &log, 4).await;
    live.checkpoint().await;
    let url = format!("sqlite:{}", path.display());
    let mut by_hand = sqlx::SqliteConnection::connect(&url).await.expect("a file");
    for sql in [
        "UPDATE bucket SET count = count - 1 WHERE series = 'all' AND tier_s = 86400",
        "DELETE FROM bucket WHERE series = 'event_type' AND tier_s = 86400",
        "UPDATE user_page SET count = count + 2 WHERE user_id = 'user-3' AND page_url = '/page/3'",
        "UPDATE bucket SET users = x'00' WHERE series = 'page_url' AND tier_s = 86400",
    ] {
        let changed = sqlx::query(sql).execute(&mut by_hand).await;
        assert!(changed.expect("changed").rows_affected() > 0);
    }
    by_hand.close().await.expect("closed");
    let (generation, comparison) = rebuilt(&store, &log).await;
    let of = |series: &str| comparison.series[&(String::from(series), 86_400)];
    let days = of("all").rows;
    assert_eq!((of("all").differing, of("all").less), (days, 0));
    assert_eq!(of("event_type").served, 0);
    assert_eq!(
        (of("event_type").rebuilt, of("event_type").less),
        (4 * 60, 0)
    );
    assert!(of("page_url").differing > 0, "sketches that cannot be read");
    assert_eq!(comparison.users.less, comparison.users.differing);
    assert!(comparison.users.less > 0);
    generation.swap().await.expect("swapped");
    let (generation, comparison) = rebuilt(&store, &log).await;
    assert_eq!(comparison.total().differing, 0, "{:?}", comparison.listed);
    generation.discard().await.expect("discarded");
}

#[tokio::test]
async fn two_rebuilds_at_once_are_refused_and_a_dead_one_is_not_waited_for() {
    let stores = Stores::new();
    for open in stores.each().await {
        let log = log_of(3);
        let mut live = Instance::start(open(), Config::default()).await;
        live.follow(0, &log, 2).await;
        live.checkpoint().await;
        let store = open();
        let (first, _) = rebuilt(&store, &log).await;
        let clock = Arc::new(streamgauge_lifecycle::ManualClock::new(0));
        let config = Arc::new(Config::default());
        let lease = Duration::from_secs(5);
        let second = Generation::begin(open(), config, clock, lease).await;
        assert!(matches!(
            second.err(),
            Some(RebuildError::Locked { lease_ms: 5_000 })
        ));
        first.discard().await.expect("discarded");

        // One that dies: its pins no longer count, its lock goes to the next, and it can do nothing any more.
        let slots = store.slots();
        assert!(slots.lock(1, 200).await.expect("asked"));
        assert!(
            slots
                .pin(1, &BTreeMap::from([(0, 0)]))
                .await
                .expect("asked")
        );
        assert!(!slots.lock(2, 60_000).await.expect("asked"));
        running::until(|| async { slots.lock(2, 60_000).await.expect("asked") }).await;
        let nothing = BTreeMap::new();
        assert!(!slots.renew(1, 60_000).await.expect("asked"));
        assert!(!slots.pin(1, &BTreeMap::new()).await.expect("asked"));
        assert!(!slots.wipe(1, Slot::Second, 7).await.expect("asked"));
        assert!(
            !slots
                .swap(1, Slot::Second, 0, &nothing)
                .await
                .expect("asked")
        );
        // Whoever has the lock may empty what is not served, and swap in what it has named.
        assert!(!slots.wipe(2, Slot::First, 7).await.expect("asked"));
        assert_ne!(
            store
                .checkpoint_state(Slot::First)
                .await
                .expect("a state")
                .generation,
            7
        );
        assert!(slots.wipe(2, Slot::Second, 7).await.expect("asked"));
        assert!(
            !slots
                .swap(2, Slot::Second, 8, &nothing)
                .await
                .expect("asked")
        );
        slots.unlock(1).await.expect("nothing of its own");
        assert_eq!(store.served().await.expect("served"), Slot::First);
        live.follow(0, &log, 1).await;
        live.checkpoint().await;
        let left = store.deltas(0, 0, 10).await.expect("deltas");
        assert!(left.is_empty(), "the dead rebuild's pins hold nothing back");
        assert!(slots.renew(2, 60_000).await.expect("asked"));
        slots.unlock(2).await.expect("unlocked");
        assert!(slots.lock(3, 60_000).await.expect("asked"));
    }
}

/// A rebuild in a process of its own, as far as time goes: what runs in it stands still while nobody waits for it.
struct Stopped {
    process: tokio::runtime::Runtime,
    generation: Generation,
}

impl Stopped {
    /// Begins one that has pinned and written half of what there is, and stops it.
    fn begin(open: &dyn Fn() -> Arc<dyn Store>, log: &Log) -> Self {
        let process = runtime();
        let generation = process.block_on(async {
            let lease = Duration::from_millis(500);
            let mut generation = begin_for(&open(), lease).await.expect("begun");
            let reached = position(&generation.pin(1).await.expect("pinned"));
            add(&mut generation, log, 0..reached / 2).await;
            generation
        });
        Self {
            process,
            generation,
        }
    }

    /// Goes on where it stood, and gives up as the command does.
    fn go_on(self, reached: i64) {
        let mut generation = self.generation;
        self.process.block_on(async move {
            let completed = generation.complete(BTreeMap::from([(0, reached)])).await;
            assert!(
                matches!(completed, Err(RebuildError::LockLost)),
                "{completed:?}"
            );
            let discarded = generation.discard().await;
            assert!(
                matches!(discarded, Err(RebuildError::LockLost)),
                "{discarded:?}"
            );
        });
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Begins another rebuild as soon as the lock of the one that stands still has expired.
async fn take_over(store: &Arc<dyn Store>) -> Generation {
    loop {
        match begin_for(store, Duration::from_secs(30)).await {
            Ok(generation) => return generation,
            Err(RebuildError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A store that serves four batches, the log behind it, and who follows it.
async fn four_batches(open: &dyn Fn() -> Arc<dyn Store>) -> (Log, Instance) {
    let log = log_of(6);
    let mut live = Instance::start(open(), Config::default()).await;
    live.follow(0, &log, 4).await;
    live.checkpoint().await;
    (log, live)
}

#[test]
fn a_rebuild_that_stood_still_leaves_alone_what_another_one_has_swapped_in() {
    let (running, stores) = (runtime(), Stores::new());
    for open in running.block_on(stores.each()) {
        let (log, _) = running.block_on(four_batches(&open));
        let stopped = Stopped::begin(&open, &log);
        running.block_on(async {
            let store = open();
            let mut generation = take_over(&store).await;
            assert_eq!(fill(&mut generation, &log).await.total().differing, 0);
            generation.swap().await.expect("swapped");
            let mut live = Instance::start(store, Config::default()).await;
            live.follow(0, &log, 1).await;
            assert!(matches!(live.checkpoint().await, Some(Checkpointed::Done)));
        });
        stopped.go_on(4);
        running.block_on(async {
            let mut live = Instance::start(open(), Config::default()).await;
            assert_eq!(live.fold.view().slot, Slot::Second);
            assert_eq!(total(&live).await, 5 * 60);
            live.follow(0, &log, 1).await;
            assert_eq!(total(&live).await, 6 * 60);
        });
    }
}

#[test]
fn a_rebuild_that_stood_still_leaves_alone_what_another_one_is_about_to_swap_in() {
    let (running, stores) = (runtime(), Stores::new());
    for open in running.block_on(stores.each()) {
        let (log, _) = running.block_on(four_batches(&open));
        let stopped = Stopped::begin(&open, &log);
        let generation = running.block_on(async {
            let mut generation = take_over(&open()).await;
            fill(&mut generation, &log).await;
            generation
        });
        stopped.go_on(4);
        running.block_on(async {
            generation.swap().await.expect("swapped");
            let live = Instance::start(open(), Config::default()).await;
            assert_eq!(live.fold.view().slot, Slot::Second);
            assert_eq!(total(&live).await, 4 * 60);
        });
    }
}

#[tokio::test]
async fn a_rebuild_that_waits_for_the_rows_it_empties_keeps_its_lock() {
    use sqlx::{Connection, Executor};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("analytics.db");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::new(path.clone(), Durability::Normal, 2));
    store.migrate().await.expect("migrated");
    let lease = Duration::from_secs(2);
    let generation = begin_for(&store, lease).await.expect("begun");
    // Somebody is at the rows for longer than the lock lasts unless it is renewed.
    let url = format!("sqlite:{}", path.with_extension("second.db").display());
    let mut busy = sqlx::SqliteConnection::connect(&url).await.expect("a file");
    busy.execute("BEGIN IMMEDIATE").await.expect("begun");
    let discarding = tokio::spawn(generation.discard());
    tokio::time::sleep(lease * 3 / 2).await;
    assert!(!store.slots().lock(1, 60_000).await.expect("asked"));
    busy.execute("ROLLBACK").await.expect("ended");
    let discarded = discarding.await.expect("no panic");
    assert!(discarded.is_ok(), "{discarded:?}");
    assert!(
        store.slots().lock(1, 60_000).await.expect("asked"),
        "given back"
    );
}
