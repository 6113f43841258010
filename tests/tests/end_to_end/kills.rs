//! Kill anything, again and again, under load: every acknowledged event is counted once.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};
use streamgauge_tests::{oracle::Load, system::System};

/// Kills of each process.
const KILLS: usize = 10;

fn load(name: &str, events: usize) -> Load {
    Load {
        name: name.to_owned(),
        events,
        users: 400,
        pages: 60,
        batch: 50,
        connections: 8,
        duplicate_every: 97,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_event_is_counted_once_whatever_is_killed() {
    let mut system = System::start(&[]).await;
    let url = system.producer();
    let mut random = StdRng::seed_from_u64(1);
    let mut expected = streamgauge_tests::oracle::Expected::default();
    // Load goes on until the last kill is over, a piece at a time.
    for round in 0..KILLS {
        let piece = load(&format!("r{round}"), 3_000);
        let submit = tokio::spawn({
            let url = url.clone();
            async move { piece.submit(&url).await.0 }
        });
        for process in &mut system.processes {
            tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
            process.kill();
            process.start_again();
        }
        system.ready().await;
        let piece = submit.await.expect("the load is acknowledged");
        expected.events += piece.events;
        expected.pages.extend(piece.pages);
        expected.users.extend(piece.users);
    }
    system.agrees_with(&expected).await;
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_nothing_and_everything_is_there_afterwards() {
    let mut system = System::start(&[]).await;
    let url = system.producer();
    let (expected, _) = load("before", 5_000).submit(&url).await;
    system.agrees_with(&expected).await;
    for process in &mut system.processes {
        assert_eq!(process.terminate().await, Some(0), "{}", process.tail());
    }
    for process in &mut system.processes {
        process.start_again();
    }
    system.ready().await;
    system.agrees_with(&expected).await;
}
