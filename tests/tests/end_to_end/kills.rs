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
    let mut retried = 0;
    for round in 0..KILLS {
        // Piece after piece until the kills of this round are over, so that each hits the load.
        let (over, mut killing) = tokio::sync::watch::channel(false);
        let submit = tokio::spawn({
            let url = url.clone();
            async move {
                let mut pieces = Vec::new();
                while !*killing.borrow_and_update() {
                    let piece = load(&format!("r{round}p{}", pieces.len()), 500);
                    pieces.push(piece.submit(&url).await);
                }
                pieces
            }
        });
        for process in &mut system.processes {
            tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
            process.kill();
            process.start_again();
        }
        system.ready().await;
        over.send_replace(true);
        for (piece, seen) in submit.await.expect("the load is acknowledged") {
            retried += seen.retried_requests;
            expected.add(piece);
        }
    }
    assert!(retried > 0, "no kill hit the load");
    system.agrees_with(&expected).await;
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_nothing_and_everything_is_there_afterwards() {
    let mut system = System::start(&[]).await;
    let url = system.producer();
    let (expected, _) = load("before", 5_000).submit(&url).await;
    // At once: what is acknowledged may still be under way to the store.
    for process in &mut system.processes {
        assert_eq!(process.terminate().await, Some(0), "{}", process.tail());
    }
    for process in &mut system.processes {
        process.start_again();
    }
    system.ready().await;
    system.agrees_with(&expected).await;
}
