//! Retries with exponential backoff and full jitter. Every loop is bounded by a number of attempts, by a deadline, or
//! by both, and no wait ever reaches past the deadline: a caller that has given up must not be kept waiting.

use std::future::Future;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often and how slowly to try again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackoffConfig {
    /// The upper bound of the first wait.
    pub initial_ms: u64,
    /// The upper bound of every wait.
    pub max_ms: u64,
    /// How much the upper bound grows from one wait to the next.
    pub multiplier: f64,
    /// The number of attempts in all, the first one included; 0 leaves it to the deadline.
    pub attempts: u32,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        BackoffConfig {
            initial_ms: 50,
            max_ms: 5_000,
            multiplier: 2.0,
            attempts: 5,
        }
    }
}

/// The waits between attempts: each is drawn evenly from zero up to a bound that grows exponentially ("full jitter"),
/// so that clients that failed together do not return together.
#[derive(Debug)]
pub struct Backoff {
    bound_ms: f64,
    max_ms: f64,
    multiplier: f64,
    /// Waits that are left; none means no end.
    left: Option<u32>,
    rng: StdRng,
}

impl Backoff {
    /// The waits of `config`; equal seeds give equal waits.
    pub fn new(config: &BackoffConfig, seed: u64) -> Self {
        let max_ms = config.max_ms as f64;
        Backoff {
            bound_ms: (config.initial_ms as f64).min(max_ms),
            max_ms,
            multiplier: if config.multiplier.is_finite() {
                config.multiplier.max(1.0)
            } else {
                2.0
            },
            left: config.attempts.checked_sub(1),
            rng: StdRng::seed_from_u64(seed),
        }
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1)?;
        }
        let bound_us = (self.bound_ms * 1_000.0) as u64;
        self.bound_ms = (self.bound_ms * self.multiplier).min(self.max_ms);
        Some(Duration::from_micros(self.rng.random_range(0..=bound_us)))
    }
}

/// Timers round up to the next millisecond.
const TIMER_GRANULARITY: Duration = Duration::from_millis(1);

/// Runs `op` until it succeeds, fails in a way that a retry cannot mend, or the attempts or the time run out; the
/// last error is returned as it is. `op` is told which attempt it is, from 0, and may be an async closure. `on_retry`
/// sees the attempt that failed, its error and the wait before the next one.
pub async fn retry<T, E, F>(
    backoff: &BackoffConfig,
    deadline: Option<Instant>,
    is_retryable: impl Fn(&E) -> bool,
    mut on_retry: impl FnMut(u32, &E, Duration),
    // Not `AsyncFnMut`: with it the compiler cannot see that the future is `Send` once the closure borrows anything.
    mut op: impl FnMut(u32) -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waits = Backoff::new(backoff, rand::random());
    let mut attempt = 0;
    loop {
        let error = match op(attempt).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !is_retryable(&error) {
            return Err(error);
        }
        let Some(wait) = waits.next() else {
            return Err(error);
        };
        let awake = Instant::now() + wait + TIMER_GRANULARITY;
        if deadline.is_some_and(|deadline| awake > deadline) {
            return Err(error);
        }
        on_retry(attempt, &error, wait);
        tokio::time::sleep(wait).await;
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    #[derive(Debug, PartialEq)]
    enum Failure {
        Passing,
        Final,
    }

    fn config(attempts: u32) -> BackoffConfig {
        BackoffConfig {
            initial_ms: 10,
            max_ms: 80,
            multiplier: 2.0,
            attempts,
        }
    }

    proptest! {
        #[test]
        fn each_wait_stays_under_its_growing_bound(seed: u64, initial in 0u64..500, max in 0u64..2_000) {
            let config = BackoffConfig { initial_ms: initial, max_ms: max, multiplier: 2.0, attempts: 12 };
            let waits: Vec<_> = Backoff::new(&config, seed).collect();
            prop_assert_eq!(waits.len(), 11);
            for (n, wait) in waits.iter().enumerate() {
                let bound = initial.saturating_mul(1 << n).min(max);
                prop_assert!(*wait <= Duration::from_millis(bound), "wait {} was {:?}", n, wait);
            }
            let again: Vec<_> = Backoff::new(&config, seed).collect();
            prop_assert_eq!(waits, again);
        }
    }

    #[test]
    fn an_odd_multiplier_never_shrinks_or_overflows() {
        for multiplier in [f64::NAN, f64::INFINITY, -3.0, 0.0, 1e300] {
            let config = BackoffConfig {
                multiplier,
                ..config(50)
            };
            for wait in Backoff::new(&config, 7) {
                assert!(wait <= Duration::from_millis(80));
            }
        }
    }

    #[test]
    fn zero_attempts_means_no_end() {
        assert_eq!(Backoff::new(&config(0), 1).take(1_000).count(), 1_000);
        assert_eq!(Backoff::new(&config(1), 1).count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_tries_until_it_succeeds() {
        let mut seen = Vec::new();
        let result: Result<u32, Failure> = retry(
            &config(5),
            None,
            |_| true,
            |attempt, _, _| seen.push(attempt),
            async |attempt| {
                if attempt < 3 {
                    Err(Failure::Passing)
                } else {
                    Ok(attempt)
                }
            },
        )
        .await;
        assert_eq!(result, Ok(3));
        assert_eq!(seen, [0, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_stops_at_what_no_retry_mends() {
        let calls = Cell::new(0);
        let result: Result<(), Failure> = retry(
            &config(5),
            None,
            |error| *error == Failure::Passing,
            |_, _, _| {},
            async |_| {
                calls.set(calls.get() + 1);
                Err(Failure::Final)
            },
        )
        .await;
        assert_eq!((result, calls.get()), (Err(Failure::Final), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_stops_after_the_attempts() {
        let calls = Cell::new(0);
        let result: Result<(), Failure> = retry(
            &config(4),
            None,
            |_| true,
            |_, _, _| {},
            async |_| {
                calls.set(calls.get() + 1);
                Err(Failure::Passing)
            },
        )
        .await;
        assert_eq!((result, calls.get()), (Err(Failure::Passing), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_sleeps_past_the_deadline() {
        for _ in 0..200 {
            let deadline = Instant::now() + Duration::from_millis(100);
            let result: Result<(), Failure> = retry(
                &config(0),
                Some(deadline),
                |_| true,
                |_, _, _| {},
                async |_| Err(Failure::Passing),
            )
            .await;
            assert_eq!(result, Err(Failure::Passing));
            assert!(Instant::now() <= deadline);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_can_be_spawned_while_it_borrows() {
        let task = tokio::spawn(async {
            let target = String::from("store");
            retry(
                &BackoffConfig::default(),
                None,
                |_: &Failure| true,
                |_, _, _| {},
                async |attempt| {
                    tokio::task::yield_now().await;
                    if attempt == 0 {
                        Err(Failure::Passing)
                    } else {
                        Ok(target.len())
                    }
                },
            )
            .await
        });
        assert_eq!(task.await.unwrap(), Ok(5));
    }
}
