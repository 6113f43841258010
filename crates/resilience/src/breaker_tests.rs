//! When the breaker opens, how it closes, and what it does not count.

use super::*;

#[derive(Default)]
struct Recorder(Mutex<Vec<BreakerState>>);

impl BreakerObserver for Recorder {
    fn transition(&self, name: &'static str, to: BreakerState) {
        assert_eq!(name, "store");
        self.0.lock().push(to);
    }
}

fn breaker(config: &BreakerConfig) -> (Breaker, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    (Breaker::new("store", config, recorder.clone()), recorder)
}

fn quick() -> BreakerConfig {
    BreakerConfig {
        consecutive_failures: 3,
        open_min_ms: 20,
        open_max_ms: 60_000,
        ..BreakerConfig::default()
    }
}

fn fail(breaker: &Breaker, times: u32) {
    for _ in 0..times {
        breaker.try_acquire().unwrap().failure();
    }
}

fn succeed(breaker: &Breaker) {
    breaker.try_acquire().unwrap().success();
}

/// All that may become of a call.
const REPORTS: [fn(Permit<'_>); 4] = [
    |call| call.failure(),
    |call| call.success(),
    |call| call.neutral(),
    |call| drop(call),
];

/// Waits until the breaker lets a call through; the clock of failsafe is the real one.
async fn acquire(breaker: &Breaker) -> Permit<'_> {
    let acquired = async {
        loop {
            match breaker.try_acquire() {
                Ok(permit) => return permit,
                Err(open) => tokio::time::sleep(open.retry_after).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), acquired)
        .await
        .unwrap()
}

#[tokio::test]
async fn it_opens_probes_and_closes() {
    use BreakerState::{Closed, HalfOpen, Open};
    let (breaker, recorder) = breaker(&quick());
    fail(&breaker, 2);
    succeed(&breaker);
    fail(&breaker, 2);
    assert_eq!(
        breaker.state(),
        Closed,
        "a success in between starts the count anew"
    );
    fail(&breaker, 1);
    assert_eq!(breaker.state(), Open);
    let refused = breaker.try_acquire().unwrap_err();
    assert!(
        refused.retry_after <= Duration::from_millis(20),
        "{refused:?}"
    );

    let probe = acquire(&breaker).await;
    assert_eq!(breaker.state(), HalfOpen);
    probe.failure();
    assert_eq!(
        breaker.state(),
        Open,
        "a failed probe opens it again at once"
    );

    acquire(&breaker).await.success();
    assert_eq!(breaker.state(), Closed);
    assert_eq!(*recorder.0.lock(), [Open, HalfOpen, Open, HalfOpen, Closed]);
}

#[tokio::test]
async fn only_one_probe_goes_at_a_time() {
    let (breaker, _) = breaker(&quick());
    fail(&breaker, 3);
    let probe = acquire(&breaker).await;
    assert!(probe.is_probe());
    for _ in 0..100 {
        assert!(breaker.try_acquire().is_err());
    }
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    probe.success();
    let together = (breaker.try_acquire(), breaker.try_acquire());
    assert!(together.0.is_ok_and(|permit| !permit.is_probe()) && together.1.is_ok());
}

/// What a call that was let in before the breaker opened says, says nothing about now.
#[tokio::test]
async fn calls_of_another_time_are_not_listened_to() {
    use BreakerState::{Closed, HalfOpen, Open};
    for stale in REPORTS {
        let (breaker, recorder) = breaker(&quick());
        let early: Vec<_> = (0..3).map(|_| breaker.try_acquire().unwrap()).collect();
        let [to_open, to_half_open, to_closed] = <[_; 3]>::try_from(early).unwrap();
        fail(&breaker, 3);
        stale(to_open);
        assert_eq!(breaker.state(), Open);

        let probe = acquire(&breaker).await;
        stale(to_half_open);
        assert_eq!(breaker.state(), HalfOpen);
        assert!(breaker.try_acquire().is_err(), "the place is the probe's");
        probe.success();
        fail(&breaker, 2);
        stale(to_closed);
        assert_eq!(breaker.state(), Closed);
        fail(&breaker, 1);
        assert_eq!(*recorder.0.lock(), [Open, HalfOpen, Closed, Open]);
    }
}

#[tokio::test]
async fn a_probe_whose_place_was_given_to_another_is_not_listened_to() {
    for late in REPORTS {
        let (breaker, _) = breaker(&BreakerConfig {
            open_max_ms: 100,
            ..quick()
        });
        fail(&breaker, 3);
        let first = acquire(&breaker).await;
        let second = acquire(&breaker).await;
        late(first);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        second.success();
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}

#[tokio::test]
async fn a_probe_that_is_dropped_gives_its_place_back() {
    let (breaker, _) = breaker(&quick());
    fail(&breaker, 3);
    let probing = async {
        loop {
            let never = std::future::pending::<Result<(), ()>>();
            match breaker.call(|()| true, never).await {
                Err(BreakerError::Open(open)) => tokio::time::sleep(open.retry_after).await,
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::select! {
        () = probing => {}
        () = async {
            while breaker.state() != BreakerState::HalfOpen {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } => {}
    }
    assert!(breaker.try_acquire().is_ok());
}

#[tokio::test]
async fn a_probe_that_is_never_reported_expires() {
    let (breaker, _) = breaker(&BreakerConfig {
        open_max_ms: 30,
        ..quick()
    });
    fail(&breaker, 3);
    std::mem::forget(acquire(&breaker).await);
    assert!(acquire(&breaker).await.is_probe());
}

#[tokio::test]
async fn a_call_counts_only_what_is_a_failure() {
    let (breaker, _) = breaker(&quick());
    for _ in 0..10 {
        let result = breaker
            .call(|error| *error != "mine", async { Err::<(), _>("mine") })
            .await;
        assert!(matches!(result, Err(BreakerError::Inner("mine"))));
    }
    for _ in 0..3 {
        assert_eq!(breaker.state(), BreakerState::Closed);
        let _ = breaker
            .call(|_| true, async { Err::<(), _>("theirs") })
            .await;
    }
    let result = breaker.call(|_: &&str| true, async { Ok(1) }).await;
    assert!(matches!(result, Err(BreakerError::Open(_))), "{result:?}");
}

#[tokio::test]
async fn errors_about_the_question_do_not_part_failures_in_a_row() {
    let (breaker, _) = breaker(&quick());
    for error in ["theirs", "mine", "theirs", "mine", "mine", "theirs"] {
        assert_eq!(breaker.state(), BreakerState::Closed);
        let _ = breaker
            .call(|error| *error != "mine", async { Err::<(), _>(error) })
            .await;
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn errors_about_the_question_have_no_part_in_the_rate() {
    let (breaker, _) = breaker(&BreakerConfig {
        consecutive_failures: 1_000_000,
        failure_rate: Some(1.0),
        failure_rate_min_calls: 3,
        ..quick()
    });
    for _ in 0..3 {
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.try_acquire().unwrap().neutral();
        fail(&breaker, 1);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[tokio::test]
async fn a_probe_that_was_answered_closes_it_whatever_the_answer() {
    let (breaker, _) = breaker(&quick());
    fail(&breaker, 3);
    acquire(&breaker).await.neutral();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn a_rate_of_failures_opens_it_as_well() {
    let (breaker, _) = breaker(&BreakerConfig {
        consecutive_failures: 1_000_000,
        failure_rate: Some(0.4),
        failure_rate_min_calls: 10,
        ..quick()
    });
    for _ in 0..100 {
        succeed(&breaker);
        succeed(&breaker);
        fail(&breaker, 1);
    }
    assert_eq!(breaker.state(), BreakerState::Closed, "a third failed");
    for _ in 0..1_000 {
        if breaker.state() == BreakerState::Closed {
            succeed(&breaker);
            fail(&breaker, 1);
        }
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn few_calls_say_nothing_about_the_rate() {
    let (breaker, _) = breaker(&BreakerConfig {
        consecutive_failures: 1_000_000,
        failure_rate: Some(0.0),
        failure_rate_min_calls: 10,
        ..quick()
    });
    fail(&breaker, 9);
    assert_eq!(breaker.state(), BreakerState::Closed);
    fail(&breaker, 1);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn what_has_left_the_window_is_forgotten() {
    let config = BreakerConfig {
        failure_rate: Some(0.5),
        failure_rate_window_s: 10,
        failure_rate_min_calls: 1,
        ..BreakerConfig::default()
    };
    let mut policy = FailureRate::new(&config, OpenTimes::new(&config));
    for _ in 0..100 {
        policy.record_success();
    }
    assert!(policy.mark_dead_on_failure().is_none());
    // Moving the start back is moving the clock on.
    policy.since -= Duration::from_millis(9_500);
    assert!(policy.mark_dead_on_failure().is_none());
    policy.since -= Duration::from_millis(1_000);
    assert!(policy.mark_dead_on_failure().is_some());
    policy.since -= Duration::from_secs(3_600);
    policy.slot();
    assert_eq!(policy.slots, [(0, 0); SLOTS]);
}

#[test]
fn the_time_it_stays_open_doubles_up_to_a_bound() {
    let config = BreakerConfig {
        open_min_ms: 100,
        open_max_ms: 1_000,
        ..BreakerConfig::default()
    };
    let waits: Vec<_> = OpenTimes::new(&config).take(8).collect();
    for (wait, bound) in waits
        .iter()
        .zip([100, 200, 400, 800, 1_000, 1_000, 1_000, 1_000])
    {
        let bound = Duration::from_millis(bound);
        assert!(
            *wait >= bound / 2 && *wait <= bound,
            "{wait:?} under {bound:?}"
        );
    }
}

#[test]
fn odd_settings_do_not_panic() {
    for rate in [f64::NAN, -1.0, 7.0] {
        let config = BreakerConfig {
            consecutive_failures: 0,
            failure_rate: Some(rate),
            failure_rate_window_s: 0,
            failure_rate_min_calls: 0,
            open_min_ms: 0,
            open_max_ms: 0,
        };
        let breaker = Breaker::new("store", &config, Arc::new(Recorder::default()));
        let (failed, late) = (breaker.try_acquire(), breaker.try_acquire());
        failed.unwrap().failure();
        late.unwrap().success();
    }
}
