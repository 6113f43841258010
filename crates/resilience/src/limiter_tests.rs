use governor::clock::FakeRelativeClock;
use proptest::prelude::*;

use super::*;

type Limit = RateLimiter<String, FakeRelativeClock>;

fn rate(per_second: u32, burst: u32) -> Rate {
    Rate { per_second, burst }
}

fn limit(per_second: u32, burst: u32, keys_max: usize) -> (Limit, FakeRelativeClock) {
    let clock = FakeRelativeClock::default();
    let rates = Rates::from(rate(per_second, burst));
    let limit = RateLimiter::with_clock(&rates, keys_max, clock.clone());
    (limit, clock)
}

fn take(limit: &Limit, key: &str, cost: u32) -> Result<(), Limited> {
    limit.take(&key.to_owned(), cost)
}

fn left(limit: &Limit, key: &str) -> (u32, Duration) {
    let allowance = limit.allowance(&key.to_owned()).unwrap();
    (allowance.available, allowance.full_in)
}

#[test]
fn a_client_waits_as_long_as_it_is_told_and_no_longer() {
    let (limit, clock) = limit(10, 20, 100);
    assert_eq!(take(&limit, "a", 20), Ok(()));
    let limited = take(&limit, "a", 5).unwrap_err();
    assert!(!limited.exceeds_burst);
    assert_eq!(limited.retry_after, Duration::from_millis(500));
    assert_eq!(
        take(&limit, "b", 20),
        Ok(()),
        "another client is not touched"
    );
    clock.advance(limited.retry_after - Duration::from_millis(1));
    assert!(take(&limit, "a", 5).is_err());
    clock.advance(Duration::from_millis(1));
    assert_eq!(take(&limit, "a", 5), Ok(()));
}

#[test]
fn an_empty_bucket_is_told_without_touching_it() {
    let (limit, clock) = limit(10, 20, 1);
    let exhausted = |key: &str| limit.exhausted(&key.to_owned());
    assert_eq!(exhausted("a"), None, "nobody knows it");
    assert_eq!(left(&limit, "a"), (20, Duration::ZERO));
    assert_eq!(limit.keys(), 0, "still");
    assert_eq!(take(&limit, "a", 19), Ok(()));
    assert_eq!(exhausted("a"), None, "one is left");
    assert_eq!(left(&limit, "a"), (1, Duration::from_millis(1_900)));
    assert_eq!(take(&limit, "a", 1), Ok(()));
    assert_eq!(exhausted("a"), Some(Duration::from_millis(100)));
    assert_eq!(left(&limit, "a"), (0, Duration::from_secs(2)));
    assert_eq!(exhausted("b"), None, "another client is not touched");
    assert_eq!(take(&limit, "b", 20), Ok(()));
    assert!(exhausted("c").is_some(), "b and c share");
    clock.advance(Duration::from_millis(99));
    assert!(exhausted("a").is_some() && take(&limit, "a", 1).is_err());
    clock.advance(Duration::from_millis(1));
    assert_eq!(exhausted("a"), None);
    assert_eq!(take(&limit, "a", 1), Ok(()));
}

#[test]
fn a_cost_above_the_burst_is_told_apart() {
    let (limit, _) = limit(10, 20, 100);
    let limited = take(&limit, "a", 21).unwrap_err();
    assert!(limited.exceeds_burst);
    assert_eq!(take(&limit, "a", 20), Ok(()), "it took nothing");
}

#[test]
fn what_is_given_back_may_be_taken_again() {
    let (limit, _) = limit(10, 20, 100);
    assert_eq!(take(&limit, "a", 20), Ok(()));
    limit.give_back(&"a".to_owned(), 15);
    assert_eq!(left(&limit, "a").0, 15);
    assert!(take(&limit, "a", 16).is_err());
    assert_eq!(take(&limit, "a", 15), Ok(()));
    limit.give_back(&"b".to_owned(), 5);
    assert_eq!(left(&limit, "b").0, 20, "never more than the burst");
    assert_eq!(limit.keys(), 1);
}

#[test]
fn keys_beyond_the_bound_share_one_bucket() {
    let (limit, _) = limit(10, 10, 2);
    assert_eq!(take(&limit, "a", 1), Ok(()));
    assert_eq!(take(&limit, "b", 1), Ok(()));
    assert_eq!(take(&limit, "c", 6), Ok(()));
    assert!(take(&limit, "d", 6).is_err(), "c and d share");
    assert_eq!(take(&limit, "a", 9), Ok(()), "known keys keep their own");
    assert_eq!(limit.keys(), 2);
}

#[test]
fn idle_keys_make_room_and_busy_ones_stay() {
    let (limit, clock) = limit(10, 200, 2);
    assert_eq!(take(&limit, "idle", 10), Ok(()));
    assert_eq!(take(&limit, "busy", 200), Ok(()));
    clock.advance(Duration::from_millis(1_500));
    assert_eq!((limit.evict(), limit.keys()), (1, 1));
    assert!(take(&limit, "busy", 16).is_err());
    assert_eq!(take(&limit, "new", 200), Ok(()));
    assert!(take(&limit, "new", 1).is_err(), "it has its own bucket");
    assert_eq!(
        take(&limit, "newer", 200),
        Ok(()),
        "the shared bucket was never used"
    );
}

#[test]
fn some_clients_have_rates_of_their_own() {
    let (limit, clock) = limit(10, 10, 100);
    let overrides = HashMap::from([
        ("slow".to_owned(), rate(1, 2)),
        ("free".to_owned(), Rate::UNLIMITED),
    ]);
    limit.set(&Rates {
        default: rate(10, 10),
        overrides,
    });
    assert_eq!(take(&limit, "slow", 2), Ok(()));
    assert_eq!(
        take(&limit, "slow", 1).unwrap_err().retry_after,
        Duration::from_secs(1)
    );
    assert_eq!(take(&limit, "free", u32::MAX), Ok(()));
    assert_eq!(limit.allowance(&"free".to_owned()), None);
    assert_eq!(limit.burst(&"free".to_owned()), None);
    assert_eq!(take(&limit, "other", 10), Ok(()));
    clock.advance(Duration::from_secs(1));
    assert_eq!(
        (left(&limit, "slow").0, left(&limit, "other").0),
        (1, 10),
        "each fills at its own rate"
    );
}

#[test]
fn a_change_keeps_what_was_taken_and_fills_it_at_the_new_rate() {
    let (limit, clock) = limit(1, 60, 100);
    assert_eq!(take(&limit, "empty", 60), Ok(()));
    assert_eq!(take(&limit, "half", 30), Ok(()));
    limit.set(&rate(100, 200).into());
    assert_eq!(left(&limit, "empty"), (140, Duration::from_millis(600)));
    assert_eq!(left(&limit, "half"), (170, Duration::from_millis(300)));
    assert_eq!(left(&limit, "new"), (200, Duration::ZERO));
    limit.set(&rate(2, 10).into());
    assert_eq!(left(&limit, "empty"), (0, Duration::from_secs(5)));
    clock.advance(Duration::from_millis(500));
    assert_eq!(take(&limit, "empty", 1), Ok(()));
    limit.set(&Rate::UNLIMITED.into());
    assert_eq!(take(&limit, "empty", u32::MAX), Ok(()));
    assert_eq!(limit.keys(), 0, "nobody is remembered for nothing");
}

#[test]
fn without_a_limit_everything_passes() {
    let limiter: RateLimiter<u8> = RateLimiter::new(&Rate::UNLIMITED.into(), 10);
    assert_eq!(limiter.take(&1, u32::MAX), Ok(()));
    assert_eq!((limiter.keys(), limiter.burst(&1)), (0, None));
}

#[test]
fn made_up_keys_stay_within_the_bound_while_known_ones_are_served() {
    let limiter = RateLimiter::new(&rate(1, 1_000).into(), 100);
    assert_eq!(limiter.take(&"honest".to_owned(), 900), Ok(()));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let limiter = &limiter;
            scope.spawn(move || {
                for n in 0..10_000 {
                    let _ = limiter.take(&format!("{thread}-{n}"), 1);
                    if n % 1_000 == 0 {
                        limiter.evict();
                    }
                }
            });
        }
    });
    assert!(limiter.keys() <= 100);
    let left = limiter.allowance(&"honest".to_owned()).unwrap();
    assert!(
        (100..200).contains(&left.available),
        "its own allowance, not the shared one"
    );
    assert_eq!(limiter.take(&"honest".to_owned(), 100), Ok(()));
}

proptest! {
    /// Changes to the same rate and back give nothing away either.
    #[test]
    fn no_more_passes_than_burst_plus_refill(
        steps in prop::collection::vec((1u32..20, 0u64..300, any::<bool>()), 1..100)
    ) {
        let (limit, clock) = limit(50, 30, 4);
        let (mut granted, mut elapsed_ms) = (0u64, 0u64);
        for (cost, pause_ms, change) in steps {
            if change {
                limit.set(&rate(40, 30).into());
                limit.set(&rate(50, 30).into());
            }
            clock.advance(Duration::from_millis(pause_ms));
            elapsed_ms += pause_ms;
            if take(&limit, "a", cost).is_ok() {
                granted += u64::from(cost);
            }
            prop_assert!(granted <= 30 + elapsed_ms * 50 / 1_000 + 1);
        }
    }

    /// What is said to be left is just what passes, and what is refused passes when it is said to.
    #[test]
    fn what_is_told_is_what_happens(
        per_second in 1u32..2_000,
        burst in 1u32..500,
        steps in prop::collection::vec((1u32..300, 0u64..400), 1..60),
    ) {
        let (limit, clock) = limit(per_second, burst, 4);
        for (cost, pause_ms) in steps {
            clock.advance(Duration::from_millis(pause_ms));
            let (available, _) = left(&limit, "a");
            prop_assert_eq!(limit.exhausted(&"a".to_owned()).is_some(), available == 0);
            match take(&limit, "a", cost) {
                Ok(()) => {
                    prop_assert!(cost <= available);
                    prop_assert_eq!(left(&limit, "a").0, available - cost);
                }
                Err(limited) if limited.exceeds_burst => prop_assert!(cost > burst),
                Err(limited) => {
                    prop_assert!(cost > available);
                    clock.advance(limited.retry_after);
                    prop_assert_eq!(take(&limit, "a", cost), Ok(()));
                }
            }
        }
    }
}
