//! The store and the fold over it: exactly once under crashes and two writers, checkpoints that no query sees halves of,
//! late amendments, retention. Each test runs against SQLite, and against PostgreSQL where there is one.

mod common;

use std::{sync::Arc, time::Duration};

use common::*;
use streamgauge_analytics::{
    Config,
    apply::{self, ApplyError, Polled},
    checkpoint::Checkpointed,
    retention,
    store::{Scan, Segment, Slot, Store},
};
use streamgauge_lifecycle::Shutdown;
use streamgauge_proto::v1;

/// Events of some minutes around `start`, with users, pages and values that repeat.
fn events(start: i64, count: u32) -> Vec<Event> {
    let value = |n: u32| (!n.is_multiple_of(3)).then_some(f64::from(n % 100));
    (0..count)
        .map(|n| event(start + i64::from(n % 200), n % 37, n % 11, value(n)))
        .collect()
}

async fn total(instance: &Instance, from_s: i64, to_s: i64) -> v1::Aggregate {
    let answer = instance
        .service()
        .top(top("page_url", from_s, to_s))
        .await
        .expect("an answer");
    answer.total.expect("a total")
}

#[tokio::test]
async fn a_crash_between_commit_and_publish_counts_once() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut log = Log::default();
        (0..10).for_each(|n| log.push(&events(NOW_S - 300 + n, 50)));
        let instance = Instance::start(open(), Config::default()).await;
        let mut prepared = instance.prepare(0, &log, 4);
        prepared.write(&instance.store).await.expect("written");
        // It dies here: the store has it, the view never did.
        drop((prepared, instance));
        let mut again = Instance::start(open(), Config::default()).await;
        assert_eq!(again.fold.row(0).delta_position, 4);
        again.follow(0, &log, 100).await;
        assert_eq!(total(&again, NOW_S - 900, NOW_S).await.count, 500);
        assert_eq!(again.fold.row(0).ledger.imbalance(), 0);
    }
}

#[tokio::test]
async fn an_outcome_that_was_not_heard_of_is_found_out() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut log = Log::default();
        (0..6).for_each(|n| log.push(&events(NOW_S - 300 + n, 20)));
        let mut instance = Instance::start(open(), Config::default()).await;
        let (mut heard, mut lost) = (instance.prepare(0, &log, 3), instance.prepare(0, &log, 3));
        lost.write(&instance.store)
            .await
            .expect("committed, though the answer was lost");
        heard.write(&instance.store).await.expect("found committed");
        heard.apply(&mut instance.fold, &instance.metrics);
        instance.follow(0, &log, 10).await;
        assert_eq!(total(&instance, NOW_S - 900, NOW_S).await.count, 120);
        let stored = instance.store.deltas(0, 0, 100).await.expect("deltas");
        assert_eq!(stored.len(), 6);
    }
}

#[tokio::test]
async fn two_instances_on_one_store_count_once() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut logs = [Log::default(), Log::default(), Log::default()];
        let mut one = Instance::start(open(), Config::default()).await;
        let mut other = Instance::start(open(), Config::default()).await;
        let mut expected = 0;
        for round in 0..40usize {
            for (partition, log) in logs.iter_mut().enumerate() {
                log.push(&events(NOW_S - 600 + round as i64, 10 + partition as u32));
                expected += 10 + partition as u64;
            }
            // In step, apart, and with polls that end at different records.
            for (partition, log) in logs.iter().enumerate() {
                let partition = partition as i32;
                if round % 3 != 0 {
                    one.follow(partition, log, 1 + round % 4).await;
                }
                if round % 4 != 1 {
                    other.follow(partition, log, 1 + round % 3).await;
                }
            }
            match round % 7 {
                2 => drop(one.checkpoint().await),
                4 => drop(other.checkpoint().await),
                _ => {}
            }
        }
        for (partition, log) in logs.iter().enumerate() {
            one.follow(partition as i32, log, 1_000).await;
            other.follow(partition as i32, log, 1_000).await;
        }
        // Whoever is second is overtaken, follows, and then succeeds.
        assert!(matches!(
            one.checkpoint().await,
            Some(Checkpointed::Done | Checkpointed::Overtaken)
        ));
        for instance in [&mut one, &mut other] {
            instance.checkpoint().await;
            instance.checkpoint().await;
            // From memory, from the store with the overlay, and from an instance that has only the store.
            assert_eq!(total(instance, NOW_S - 900, NOW_S).await.count, expected);
            assert_eq!(total(instance, NOW_S - 7_200, NOW_S).await.count, expected);
        }
        let fresh = Instance::start(open(), Config::default()).await;
        assert_eq!(total(&fresh, NOW_S - 900, NOW_S).await.count, expected);
        assert_eq!(total(&fresh, NOW_S - 7_200, NOW_S).await.count, expected);
        for (partition, log) in logs.iter().enumerate() {
            let row = fresh.fold.row(partition as i32);
            assert_eq!(row.ledger.outcomes().counted, log.head as u64);
            assert_eq!(row.ledger.valid_batches(), 40);
        }
    }
}

#[tokio::test]
async fn an_instance_that_retention_outran_overwrites_nothing() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut log = Log::default();
        (0..8).for_each(|n| log.push(&events(NOW_S - 300 + n, 5)));
        let mut slow = Instance::start(open(), Config::default()).await;
        let mut prompt = Instance::start(open(), Config::default()).await;
        prompt.follow(0, &log, 6).await;
        // Retention took what the slow one had not read: to it, the first five batches are a hole.
        let mut polled = Polled::default();
        polled.push_record(0, 5, log.records[5].clone().into());
        let mut prepared = apply::prepare(&slow.fold, polled, NOW_S * 1_000_000, &slow.metrics);
        let error = prepared.write(&slow.store).await.expect_err("no hole");
        assert!(matches!(error, ApplyError::Diverged { .. }), "{error}");
        // Nor may it go on from there, where both stand at the same place of the log and of the source.
        prepared.apply(&mut slow.fold, &slow.metrics);
        assert_eq!(slow.fold.row(0).ledger.outcomes().missing, 25);
        let mut prepared = slow.prepare(0, &log, 2);
        let error = prepared
            .write(&slow.store)
            .await
            .expect_err("not its chain");
        assert!(matches!(error, ApplyError::Diverged { .. }), "{error}");
        let rows = slow.store.chains(&[0]).await.expect("the chain");
        assert_eq!(rows[0].ledger, prompt.fold.row(0).ledger);
        prompt.follow(0, &log, 10).await;
        assert_eq!(total(&prompt, NOW_S - 900, NOW_S).await.count, 40);
    }
}

#[tokio::test]
async fn a_store_that_went_back_in_time_is_noticed() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut log = Log::default();
        (0..4).for_each(|n| log.push(&events(NOW_S - 300 + n, 5)));
        let mut instance = Instance::start(open(), Config::default()).await;
        instance.follow(0, &log, 2).await;
        // As if a backup had been put in its place: memory is ahead of an empty store.
        let empty = tempfile::tempdir().expect("a folder");
        let durability = streamgauge_analytics::store::Durability::Normal;
        let path = empty.path().join("other.db");
        let other = streamgauge_analytics::store::SqliteStore::new(path, durability, 1);
        other.migrate().await.expect("migrated");
        instance.store = Arc::new(other);
        let mut prepared = instance.prepare(0, &log, 2);
        let error = prepared
            .write(&instance.store)
            .await
            .expect_err("the store is behind");
        assert!(
            matches!(
                error,
                ApplyError::Diverged {
                    partition: 0,
                    found: 0,
                    expected: 2
                }
            ),
            "{error}"
        );
    }
}

/// While batches are applied and checkpoints written, every query sees each event exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_during_a_checkpoint_never_sees_doubles_or_gaps() {
    let stores = Stores::new();
    for open in stores.each().await {
        // Nothing is recent, so that every answer needs the store and the overlay.
        let mut config = Config::default();
        config.view.recent_seconds = 0;
        let mut instance = Instance::start(open(), config).await;
        let service = Arc::new(instance.service());
        let applied = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let stop = Shutdown::new();
        let mut log = Log::default();
        // A series is known from its first event on.
        let round_of = |round: i64| -> Vec<Event> {
            (0..30)
                .map(|n| event(NOW_S - 3_600 + round, n, n % 7, None))
                .collect()
        };
        log.push(&round_of(0));
        instance.follow(0, &log, 10).await;
        applied.store(30, std::sync::atomic::Ordering::SeqCst);
        let reading = tokio::spawn({
            let (service, applied, stop) =
                (Arc::clone(&service), Arc::clone(&applied), stop.clone());
            async move {
                let mut queries = 0;
                while !stop.is_triggered() {
                    let before = applied.load(std::sync::atomic::Ordering::SeqCst);
                    let request = top("page_url", NOW_S - 4_000, NOW_S);
                    let answer = service.top(request).await.expect("an answer");
                    let count = answer.total.expect("a total").count;
                    let after = applied.load(std::sync::atomic::Ordering::SeqCst) + 30;
                    assert!(
                        (before..=after).contains(&count),
                        "{before} <= {count} <= {after}"
                    );
                    let request = v1::UserActivityRequest {
                        user_id: String::from("user-1"),
                        ..v1::UserActivityRequest::default()
                    };
                    let count = service
                        .user_activity(request)
                        .await
                        .expect("an answer")
                        .count;
                    let after = applied.load(std::sync::atomic::Ordering::SeqCst) / 30 + 1;
                    assert!(
                        (before / 30..=after).contains(&count),
                        "{before}/30 <= {count} <= {after}"
                    );
                    queries += 1;
                }
                queries
            }
        });
        for round in 1..120i64 {
            log.push(&round_of(round));
            instance.follow(0, &log, 10).await;
            applied.fetch_add(30, std::sync::atomic::Ordering::SeqCst);
            if round % 3 == 0 {
                assert!(matches!(
                    instance.checkpoint().await,
                    Some(Checkpointed::Done)
                ));
            }
        }
        stop.trigger();
        assert!(reading.await.expect("no assertion failed") > 20);
        assert_eq!(total(&instance, NOW_S - 4_000, NOW_S).await.count, 3_600);
    }
}

#[tokio::test]
async fn answers_after_a_restart_are_those_before_it() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut log = Log::default();
        let mut instance = Instance::start(open(), Config::default()).await;
        for n in 0..20 {
            log.push(&events(NOW_S - 3_000 + n * 150, 100));
            instance.follow(0, &log, 10).await;
            if n % 6 == 5 {
                instance.checkpoint().await;
            }
        }
        let again = Instance::start(open(), Config::default()).await;
        for (from, to) in [
            (NOW_S - 600, NOW_S),
            (NOW_S - 7_200, NOW_S),
            (NOW_S - 2_999, NOW_S - 1),
        ] {
            for by in SERIES {
                let request = v1::SeriesRequest {
                    by: String::from(by),
                    range: range(from, to),
                    step_s: 60,
                    window_s: 180,
                    quantiles: vec![0.5],
                    limit: 5,
                    ..v1::SeriesRequest::default()
                };
                let before = instance
                    .service()
                    .series(request.clone())
                    .await
                    .expect("an answer");
                let after = again.service().series(request).await.expect("an answer");
                same_series(&before.series, &after.series);
                assert_eq!(before.info, after.info);
            }
        }
        assert_eq!(
            instance.service().ledger().expect("loaded"),
            again.service().ledger().expect("loaded")
        );
        assert_eq!(
            instance.service().list_series().expect("loaded"),
            again.service().list_series().expect("loaded")
        );
    }
}

fn same_series(one: &[v1::KeySeries], other: &[v1::KeySeries]) {
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(other) {
        assert_eq!(
            (&one.key, one.points.len()),
            (&other.key, other.points.len())
        );
        for (one, other) in one.points.iter().zip(&other.points) {
            let (left, right) = (
                one.value.clone().expect("a value"),
                other.value.clone().expect("a value"),
            );
            assert_eq!(
                (one.start_us, left.count, left.value_count),
                (other.start_us, right.count, right.value_count)
            );
            assert_eq!((left.min, left.max), (right.min, right.max));
            assert!((left.sum - right.sum).abs() < 1e-6 && (left.users - right.users).abs() < 1e-3);
        }
    }
}

#[tokio::test]
async fn tiers_agree_and_late_events_amend_them() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut instance = Instance::start(open(), Config::default()).await;
        let day = NOW_S - 86_400;
        let mut oracle = Oracle::default();
        let mut log = Log::default();
        for n in 0..30i64 {
            let mut events = events(day + n * 2_800, 60);
            // Late by hours, into seconds that a checkpoint holds already.
            events.extend(
                (0..5).map(|user| event(day + (n / 2) * 2_800, 1_000 + user, 3, Some(1.5))),
            );
            log.push(&events);
            oracle.0.extend(events);
            instance.follow(0, &log, 10).await;
            if n % 4 == 3 {
                instance.checkpoint().await;
            }
        }
        instance.checkpoint().await;
        let expected = oracle.count(|event| (day..NOW_S).contains(&event.second));
        for tier_s in [1, 60, 3_600, 86_400] {
            let segments = [Segment {
                tier_s,
                range: day..NOW_S,
            }];
            let scan = Scan {
                slot: Slot::First,
                series: "page_url",
                segments: &segments,
                rows_max: 100_000,
                quantiles: false,
            };
            let rows = instance.store.scan(scan).await.expect("rows").rows;
            let counted: u64 = rows.iter().map(|(_, _, value)| value.count).sum();
            let sum: f64 = rows.iter().map(|(_, _, value)| value.sum).sum();
            assert_eq!(counted, expected, "tier {tier_s}");
            let wanted: f64 = oracle.0.iter().filter_map(|event| event.value).sum();
            assert!((sum - wanted).abs() < 1e-6, "tier {tier_s}");
        }
        for step_s in [60, 3_600, 86_400] {
            let request = v1::SeriesRequest {
                by: String::from("all"),
                range: range(day, NOW_S),
                step_s,
                ..v1::SeriesRequest::default()
            };
            let answer = instance.service().series(request).await.expect("an answer");
            let points = &answer.series[0].points;
            let counted: u64 = points
                .iter()
                .filter_map(|point| point.value.as_ref())
                .map(|value| value.count)
                .sum();
            assert_eq!(counted, expected, "step {step_s}");
        }
        let users = oracle.users(|_| true) as f64;
        let request = v1::DistinctUsersRequest {
            range: range(day, NOW_S),
            ..Default::default()
        };
        let answer = instance
            .service()
            .distinct_users(request)
            .await
            .expect("an answer");
        assert!(
            (answer.users - users).abs() <= 0.05 * users,
            "{} of {users}",
            answer.users
        );
        assert!(answer.lower <= answer.users && answer.users <= answer.upper);
    }
}

#[tokio::test]
async fn what_was_in_the_log_twice_or_is_no_batch_counts_for_nobody() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut log = Log::default();
        log.push(&events(NOW_S - 300, 10));
        let first = log.records[0].clone();
        log.push_raw(&first);
        log.push_raw(b"not a batch");
        log.push_raw(b"");
        log.push(&events(NOW_S - 200, 10));
        let mut instance = Instance::start(open(), Config::default()).await;
        instance.follow(0, &log, 100).await;
        let again = Instance::start(open(), Config::default()).await;
        for instance in [&instance, &again] {
            let row = instance.fold.row(0);
            assert_eq!(
                (row.ledger.valid_batches(), row.ledger.void_batches()),
                (2, 3)
            );
            assert_eq!((row.delta_position, row.ledger.head()), (5, 20));
            assert_eq!(total(instance, NOW_S - 900, NOW_S).await.count, 20);
        }
    }
}

#[tokio::test]
async fn buckets_far_ahead_of_the_clock_are_there_after_a_restart() {
    const DAY: i64 = 86_400;
    let stores = Stores::new();
    for open in stores.each().await {
        let ahead = [
            (0, 50),
            (DAY + 3_600, 50),
            (40 * DAY, 50),
            (3_000 * DAY, 10),
        ];
        let mut log = Log::default();
        for (start, count) in ahead {
            log.push(&events(NOW_S + start, count));
        }
        let mut before = Instance::start(open(), Config::default()).await;
        before.follow(0, &log, 10).await;
        before.checkpoint().await;
        let after = Instance::start(open(), Config::default()).await;
        for (start, count) in ahead {
            let (from_s, to_s) = (NOW_S + start, NOW_S + start + 200);
            for instance in [&before, &after] {
                let found = total(instance, from_s, to_s).await.count;
                assert_eq!(found, u64::from(count), "{start}");
            }
        }
        // More than is read at once: memory answers from where it holds everything, the store for what lies before.
        let mut tight = Config::default();
        tight.query.rows_max = 20;
        let tight = Instance::start(open(), tight).await;
        let from_s = tight.fold.view().recent_from_s - NOW_S;
        assert!(from_s > 40 * DAY && from_s < 3_000 * DAY, "{from_s}");
        for (start, length, count) in [(40 * DAY + 10, 5, 5), (3_000 * DAY, 200, 10)] {
            let (from_s, to_s) = (NOW_S + start, NOW_S + start + length);
            assert_eq!(total(&tight, from_s, to_s).await.count, count, "{start}");
        }
    }
}

#[tokio::test]
async fn retention_deletes_by_tier_and_queries_say_so() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut config = Config::default();
        config.retention.rows_per_delete_max = 7;
        let mut instance = Instance::start(open(), config.clone()).await;
        let mut log = Log::default();
        let old = NOW_S - 40 * 3_600;
        log.push(&events(old, 100));
        // Beyond what seconds and minutes are kept for, from the start.
        log.push(&events(NOW_S - 60 * 86_400, 100));
        instance.follow(0, &log, 10).await;
        instance.checkpoint().await;
        let count = async |tier_s: i64| {
            let segments = [Segment {
                tier_s,
                range: 0..NOW_S,
            }];
            let scan = Scan {
                slot: Slot::First,
                series: "all",
                segments: &segments,
                rows_max: 10_000,
                quantiles: false,
            };
            let rows = instance.store.scan(scan).await.expect("rows").rows;
            rows.iter().map(|(_, _, value)| value.count).sum::<u64>()
        };
        assert_eq!(
            [
                count(1).await,
                count(60).await,
                count(3_600).await,
                count(86_400).await
            ],
            [100, 100, 200, 200]
        );
        let later = NOW_S + 20 * 3_600;
        let deleted =
            retention::expire(&*instance.store, &config.retention, later, &Shutdown::new()).await;
        assert!(deleted.expect("deleted") > 100);
        assert_eq!(
            [count(1).await, count(60).await, count(86_400).await],
            [0, 100, 200]
        );
        instance.clock.set(later * 1_000_000);
        let request = |step_s| v1::SeriesRequest {
            range: range(old, old + 3_600),
            step_s,
            ..v1::SeriesRequest::default()
        };
        let problem = instance
            .service()
            .series(request(10))
            .await
            .expect_err("seconds are gone");
        assert_eq!(problem.field.as_deref(), Some("step"), "{problem}");
        let answer = instance
            .service()
            .series(request(60))
            .await
            .expect("minutes are there");
        assert_eq!(answer.info.expect("info").resolution_s, 60);
    }
}

#[tokio::test]
async fn user_pages_add_up_over_store_and_memory() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut instance = Instance::start(open(), Config::default()).await;
        let mut log = Log::default();
        let mut oracle = Oracle::default();
        for n in 0..9i64 {
            let mut events = events(NOW_S - 300 + n, 100);
            events.push(Event {
                user: String::from("a\0b"),
                page: "/x".repeat(2_000),
                ..events[0].clone()
            });
            log.push(&events);
            oracle.0.extend(events);
            instance.follow(0, &log, 10).await;
            if n % 3 == 1 {
                instance.checkpoint().await;
            }
        }
        let again = Instance::start(open(), Config::default()).await;
        for user in ["user-3", "a\0b", "nobody"] {
            for page in ["", "/page/3"] {
                let request = v1::UserActivityRequest {
                    user_id: String::from(user),
                    page_url: String::from(page),
                    ..v1::UserActivityRequest::default()
                };
                let wanted = oracle
                    .count(|event| event.user == user && (page.is_empty() || event.page == page));
                for instance in [&instance, &again] {
                    let answer = instance
                        .service()
                        .user_activity(request.clone())
                        .await
                        .expect("an answer");
                    let listed: u64 = answer.pages.iter().map(|page| page.count).sum();
                    assert_eq!((answer.count, listed), (wanted, wanted), "{user} {page}");
                }
            }
        }
    }
}

#[tokio::test]
async fn memory_is_bounded_and_the_store_answers_for_the_rest() {
    let stores = Stores::new();
    for open in stores.each().await {
        let mut config = Config::default();
        config.view.recent_kib_max = 256;
        let mut instance = Instance::start(open(), config).await;
        let mut log = Log::default();
        for n in 0..12i64 {
            let events: Vec<Event> = (0..300)
                .map(|user| event(NOW_S - 840 + n * 60, user, user, Some(1.0)))
                .collect();
            log.push(&events);
            instance.follow(0, &log, 10).await;
            assert!(instance.fold.recent_bytes() <= 256 * 1024);
        }
        assert!(instance.fold.view().recent_from_s > NOW_S - 840);
        assert_eq!(total(&instance, NOW_S - 900, NOW_S).await.count, 3_600);
        instance.checkpoint().await;
        let again = Instance::start(open(), (*instance.config).clone()).await;
        assert!(again.fold.recent_bytes() <= 256 * 1024);
        assert_eq!(total(&again, NOW_S - 900, NOW_S).await.count, 3_600);
    }
}

#[tokio::test]
async fn a_store_that_fails_holds_nothing_back_that_it_had() {
    // The file's folder cannot be made: a file stands in its place.
    let folder = tempfile::tempdir().expect("a folder");
    let blocked = folder.path().join("blocked");
    std::fs::write(&blocked, b"").expect("a file");
    let durability = streamgauge_analytics::store::Durability::Full;
    let store = streamgauge_analytics::store::SqliteStore::new(blocked.join("a.db"), durability, 1);
    let failed = tokio::time::timeout(Duration::from_secs(20), store.migrate()).await;
    let error = failed.expect("in time").expect_err("no folder");
    assert!(error.is_retryable(), "{error}");
}
