//! A rebuild that is killed: nobody who asks notices, and the next one ends well.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

/// The moments are drawn from it.
const SEED: u64 = 20_261_122;
/// So many die while rows are filled, and as many between then and the swap.
const OF_EACH: usize = 3;
/// A rebuild that can be hit in each of its steps, whose lock is given up soon.
const SLOW: [&str; 12] = [
    "--set",
    "events_per_second_max=3000",
    "--set",
    "slice_records_max=100",
    "--set",
    "compare_rows_max=100",
    "--set",
    "last_events_max=500",
    "--set",
    "progress_interval_ms=1",
    "--set",
    "lease_ms=1000",
];

/// When it dies.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// Once so many percent of the events are done that were there when it began.
    percent: f64,
    /// And so long after.
    then: Duration,
}

/// Percents that it tells while it works, each as it comes.
fn percents(child: &mut Child) -> impl Iterator<Item = f64> + use<> {
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    lines.map_while(Result::ok).filter_map(|line| {
        let told: Value = serde_json::from_str(&line).ok()?;
        told["progress"]["percent"].as_f64()
    })
}

fn slow(system: &System, arguments: &[&str]) -> Child {
    let mut command = system.rebuild(&[], &[&SLOW, arguments].concat());
    let command = command.arg("--json");
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("it runs")
}

/// How long it takes from when the last event is done that was there at the beginning: pins, comparison, swap.
fn finishing(system: &System) -> Duration {
    let mut child = slow(system, &["--dry-run"]);
    let mut all_done = None;
    for percent in percents(&mut child) {
        if percent >= 100.0 {
            all_done.get_or_insert_with(Instant::now);
        }
    }
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}");
    all_done.expect("all events were done").elapsed()
}

/// Kills one with SIGKILL: no handler runs, nothing is given back. Tells whether it was cut off before it had swapped.
async fn kill(system: &Arc<System>, store: &Arc<dyn Store>, moment: Moment) -> bool {
    let before = store.served().await.expect("served");
    let begun = blocking(system, move |system| {
        let mut child = slow(system, &[]);
        let mut told = percents(&mut child);
        let reached = told.any(|percent| percent >= moment.percent);
        assert!(reached, "it ended before {moment:?}");
        // Whoever cannot be told of progress gives up.
        (child, told)
    });
    let (mut child, told) = begun.await;
    tokio::time::sleep(moment.then).await;
    let was_alive = child.try_wait().expect("a child").is_none();
    // It may have ended already.
    let _ = child.kill();
    child.wait().expect("it ends");
    drop(told);
    was_alive && store.served().await.expect("served") == before
}

/// Runs until one can be begun: the lock of a dead one expires.
async fn rebuilt(system: &Arc<System>) {
    let end = Instant::now() + DEADLINE;
    loop {
        let (code, found, said) = blocking(system, |system| rebuild(system, &[])).await;
        if code == 2 && said.contains("another rebuild is under way") {
            assert!(Instant::now() < end, "{said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let (swapped, equal) = (&"swapped".into(), &Value::Bool(true));
        assert_eq!(
            (code, &found["ending"], &found["equal"]),
            (0, swapped, equal),
            "{found} {said}"
        );
        return;
    }
}

/// Work that waits for a process.
async fn blocking<T: Send + 'static>(
    system: &Arc<System>,
    work: impl FnOnce(&System) -> T + Send + 'static,
) -> T {
    let system = Arc::clone(system);
    let done = tokio::task::spawn_blocking(move || work(&system));
    done.await.expect("no panic")
}

/// The moments of all deaths: the first half while rows are filled, the second until all is done.
fn moments(finishing: Duration) -> Vec<Moment> {
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut moments = Vec::new();
    for _ in 0..OF_EACH {
        moments.push(Moment {
            percent: rng.random_range(1.0..90.0),
            then: Duration::ZERO,
        });
    }
    for nth in 0..OF_EACH {
        // Each in its own part of the time, so that none of the steps is left out.
        let part = (nth as f64 + rng.random_range(0.0..1.0)) / OF_EACH as f64;
        moments.push(Moment {
            percent: 100.0,
            then: finishing.mul_f64(part),
        });
    }
    moments
}

/// Sends until it is told to stop; returns how many events were acknowledged.
fn sending(system: &Arc<System>, done: &Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    let (system, done) = (Arc::clone(system), Arc::clone(done));
    tokio::task::spawn_blocking(move || {
        let mut sent = 0;
        for seed in 1_000.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let seed = format!("--seed={seed}");
            // A second of load.
            let load = [
                "--count=100",
                "--rate=100",
                "--batch=10",
                "--span=30m",
                &seed,
            ];
            let (code, found, said) =
                run(&system, &[&["send-events", "--json"], &load[..]].concat());
            assert_eq!(code, 0, "{found} {said}");
            sent += 100;
        }
        sent
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rebuild_that_is_killed_is_noticed_by_nobody_and_the_next_one_ends_well() {
    let system = Arc::new(start().await);
    let (client, analytics) = (client(), system.analytics());
    sends(&system, 3_000, 1);
    until_known(&client, &analytics).await;
    until_served(&client, &analytics, 3_000).await;
    let asking = Asking::start(&analytics);
    let done = Arc::new(AtomicBool::new(false));
    let load = sending(&system, &done);

    let store = store_of(&system);
    let mut deaths = Vec::new();
    let finishing = blocking(&system, finishing).await;
    for moment in moments(finishing) {
        deaths.push((moment, kill(&system, &store, moment).await));
        rebuilt(&system).await;
    }
    store.close().await;
    let was_cut_off = |death: &(Moment, bool)| death.1;
    let (filling, finishing) = deaths.split_at(OF_EACH);
    assert!(filling.iter().all(was_cut_off), "{deaths:?}");
    assert!(finishing.iter().any(was_cut_off), "{deaths:?}");

    done.store(true, Ordering::Relaxed);
    let sent = 3_000 + load.await.expect("every event was taken");
    until_served(&client, &analytics, sent).await;
    assert!(asking.end().await > 100);
    let (code, found, said) = rebuild(&system, &["--dry-run"]);
    assert_eq!(code, 0, "{found} {said}");
    let (code, found, said) = run(&system, &["audit", "--json"]);
    assert_eq!(code, 0, "{found} {said}");
}
