//! Token buckets, one per client, over a bounded number of clients. The limiter must hold against a caller who makes
//! up a new key for each request: once the bound is reached, keys it has not seen share one bucket, so memory stays
//! bounded and known clients keep their own allowance.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::{Clock, DefaultClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter as Governor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The allowance of each client, counted in events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitConfig {
    /// Events a client may send each second; 0 lifts the limit.
    pub per_second: u32,
    /// Events a client may send at once; 0 stands for the events of one second.
    pub burst: u32,
    /// Clients that are told apart; those beyond share one allowance.
    pub max_keys: usize,
    /// How often clients whose allowance is full again are forgotten.
    pub evict_interval_s: u64,
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        RateLimitConfig {
            per_second: 0,
            burst: 0,
            max_keys: 10_000,
            evict_interval_s: 60,
        }
    }
}

/// The client has used up its allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{}", if self.exceeds_burst {
    "the request holds more events than the allowance permits at once; split it"
} else {
    "the allowance is used up; retry later"
})]
pub struct Limited {
    /// When the same request would pass, if nothing else came in between.
    pub retry_after: Duration,
    /// The cost is above the burst: the request can never pass as it is, however long the client waits.
    pub exceeds_burst: bool,
}

/// The buckets, by key, and the one that all keys beyond the bound share.
struct Buckets<K: Hash + Eq> {
    by_key: DashMap<K, InMemoryState>,
    /// Kept beside the map, whose own count takes a lock on every shard.
    len: AtomicUsize,
    max: usize,
    shared: InMemoryState,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    /// Makes room for a key, unless the bound is reached.
    fn reserve(&self) -> bool {
        self.len
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |len| {
                (len < self.max).then_some(len + 1)
            })
            .is_ok()
    }

    /// What the bucket of a key holds: when it is full again. None for one that was never used.
    fn peek(&self, key: &K) -> Option<Nanos> {
        match self.by_key.get(key) {
            Some(bucket) => look(&bucket),
            None if self.len.load(Ordering::Relaxed) < self.max => None,
            None => look(&self.shared),
        }
    }
}

/// Reads a bucket by a replacement that it is made to refuse, which leaves it as it was.
fn look(bucket: &InMemoryState) -> Option<Nanos> {
    bucket
        .measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>)
        .err()
        .flatten()
}

/// Shared between the governor, which decides, and the limiter, which counts and evicts.
struct Store<K: Hash + Eq>(Arc<Buckets<K>>);

impl<K: Hash + Eq + Clone> StateStore for Store<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let buckets = &*self.0;
        if let Some(bucket) = buckets.by_key.get(key) {
            return bucket.measure_and_replace(&NotKeyed::NonKey, f);
        }
        if !buckets.reserve() {
            return buckets.shared.measure_and_replace(&NotKeyed::NonKey, f);
        }
        let bucket = match buckets.by_key.entry(key.clone()) {
            dashmap::Entry::Occupied(entry) => {
                // Another request of the same client came first, and its room is counted already.
                buckets.len.fetch_sub(1, Ordering::Relaxed);
                entry.into_ref()
            }
            dashmap::Entry::Vacant(entry) => entry.insert(InMemoryState::default()),
        };
        bucket.measure_and_replace(&NotKeyed::NonKey, f)
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Store<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut dropped = 0;
        self.0.by_key.retain(|_, bucket| {
            let idle = look(bucket).is_none_or(|at| at <= drop_below);
            dropped += usize::from(idle);
            !idle
        });
        self.0.len.fetch_sub(dropped, Ordering::Relaxed);
    }

    fn len(&self) -> usize {
        self.0.len.load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        self.0.len.load(Ordering::Relaxed) == 0
    }
}

type Keyed<K, C> = Governor<K, Store<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// A limit, with the clock that it reads.
struct Limit<K: Hash + Eq + Clone, C: Clock> {
    governor: Keyed<K, C>,
    buckets: Arc<Buckets<K>>,
    clock: C,
    start: C::Instant,
    burst: NonZeroU32,
    /// The time in which an empty bucket fills up.
    refill: Duration,
    /// The same without its first event.
    refill_but_one: Duration,
    evict_interval: Duration,
    /// Milliseconds since the start at which keys were last evicted.
    evicted_ms: AtomicU64,
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Limit<K, C> {
    fn new(config: &RateLimitConfig, per_second: NonZeroU32, clock: C) -> Self {
        let burst = NonZeroU32::new(config.burst).unwrap_or(per_second);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let buckets = Arc::new(Buckets {
            by_key: DashMap::new(),
            len: AtomicUsize::new(0),
            max: config.max_keys,
            shared: InMemoryState::default(),
        });
        Limit {
            governor: Governor::new(quota, Store(Arc::clone(&buckets)), clock.clone()),
            buckets,
            start: clock.now(),
            clock,
            burst,
            refill: Duration::from_secs_f64(f64::from(burst.get()) / f64::from(per_second.get())),
            refill_but_one: quota.replenish_interval() * (burst.get() - 1),
            evict_interval: Duration::from_secs(config.evict_interval_s.max(1)),
            evicted_ms: AtomicU64::new(0),
        }
    }

    fn check(&self, key: &K, cost: NonZeroU32) -> Result<(), Limited> {
        self.evict_when_due();
        match self.governor.check_key_n(key, cost) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(Limited {
                retry_after: not_until.wait_time_from(self.clock.now()),
                exceeds_burst: false,
            }),
            Err(_) => Err(Limited {
                retry_after: self.refill,
                exceeds_burst: true,
            }),
        }
    }

    /// How long the allowance of `key` stays empty; nothing is taken and no client is remembered for it.
    fn exhausted(&self, key: &K) -> Option<Duration> {
        let full_at = Duration::from(self.buckets.peek(key)?);
        // One event passes from the moment on at which the bucket is all but one event from full.
        let one_at = full_at.checked_sub(self.refill_but_one)?;
        let now: Duration = self.clock.now().duration_since(self.start).into();
        one_at.checked_sub(now).filter(|wait| !wait.is_zero())
    }

    /// One caller in each interval does the clearing out, in passing.
    fn evict_when_due(&self) {
        let elapsed: Duration = self.clock.now().duration_since(self.start).into();
        let now_ms = elapsed.as_millis() as u64;
        let last_ms = self.evicted_ms.load(Ordering::Relaxed);
        if Duration::from_millis(now_ms.saturating_sub(last_ms)) < self.evict_interval {
            return;
        }
        let won = self
            .evicted_ms
            .compare_exchange(last_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        if won {
            self.governor.retain_recent();
        }
    }
}

/// A rate limit per key. Checks never wait and never block on each other for longer than a map lookup.
pub struct RateLimiter<K: Hash + Eq + Clone> {
    /// None lets everything pass.
    limit: Option<Limit<K, DefaultClock>>,
}

impl<K: Hash + Eq + Clone> RateLimiter<K> {
    pub fn new(config: &RateLimitConfig) -> Self {
        RateLimiter {
            limit: NonZeroU32::new(config.per_second)
                .map(|per_second| Limit::new(config, per_second, DefaultClock::default())),
        }
    }

    /// Takes `cost` from the allowance of `key`, all or nothing. A cost of zero always passes.
    pub fn check(&self, key: &K, cost: u32) -> Result<(), Limited> {
        match (&self.limit, NonZeroU32::new(cost)) {
            (Some(limit), Some(cost)) => limit.check(key, cost),
            _ => Ok(()),
        }
    }

    /// How long the allowance of `key` stays empty, so that nothing whatever would pass; none when something might.
    pub fn exhausted(&self, key: &K) -> Option<Duration> {
        self.limit.as_ref()?.exhausted(key)
    }

    /// The most that one check can ever be granted; none when there is no limit.
    pub fn burst(&self) -> Option<u32> {
        self.limit.as_ref().map(|limit| limit.burst.get())
    }

    /// How many clients hold a bucket of their own now.
    pub fn keys(&self) -> usize {
        self.limit
            .as_ref()
            .map_or(0, |limit| limit.buckets.len.load(Ordering::Relaxed))
    }
}

impl<K: Hash + Eq + Clone> std::fmt::Debug for RateLimiter<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter")
            .field("keys", &self.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    fn limit(
        per_second: u32,
        burst: u32,
        max_keys: usize,
    ) -> (Limit<String, FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let config = RateLimitConfig {
            per_second,
            burst,
            max_keys,
            evict_interval_s: 10,
        };
        let limit = Limit::new(&config, NonZeroU32::new(per_second).unwrap(), clock.clone());
        (limit, clock)
    }

    fn take(limit: &Limit<String, FakeRelativeClock>, key: &str, cost: u32) -> Result<(), Limited> {
        limit.check(&key.to_owned(), NonZeroU32::new(cost).unwrap())
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
        assert_eq!(limit.buckets.len.load(Ordering::Relaxed), 0, "still");
        assert_eq!(take(&limit, "a", 19), Ok(()));
        assert_eq!(exhausted("a"), None, "one is left");
        assert_eq!(take(&limit, "a", 1), Ok(()));
        assert_eq!(exhausted("a"), Some(Duration::from_millis(100)));
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
    fn keys_beyond_the_bound_share_one_bucket() {
        let (limit, _) = limit(10, 10, 2);
        assert_eq!(take(&limit, "a", 1), Ok(()));
        assert_eq!(take(&limit, "b", 1), Ok(()));
        assert_eq!(take(&limit, "c", 6), Ok(()));
        assert!(take(&limit, "d", 6).is_err(), "c and d share");
        assert_eq!(take(&limit, "a", 9), Ok(()), "known keys keep their own");
        assert_eq!(limit.buckets.len.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn idle_keys_make_room() {
        let (limit, clock) = limit(10, 10, 2);
        assert_eq!(take(&limit, "a", 10), Ok(()));
        assert_eq!(take(&limit, "b", 10), Ok(()));
        clock.advance(Duration::from_secs(11));
        assert_eq!(take(&limit, "c", 10), Ok(()));
        assert_eq!(limit.buckets.len.load(Ordering::Relaxed), 1);
        assert_eq!(take(&limit, "d", 10), Ok(()));
        assert_eq!(
            take(&limit, "a", 10),
            Ok(()),
            "the shared bucket was never used"
        );
        assert!(take(&limit, "b", 10).is_err());
    }

    #[test]
    fn a_busy_key_is_not_evicted() {
        let (limit, clock) = limit(1, 100, 10);
        assert_eq!(take(&limit, "a", 100), Ok(()));
        clock.advance(Duration::from_secs(15));
        limit.governor.retain_recent();
        assert_eq!(limit.buckets.len.load(Ordering::Relaxed), 1);
        assert!(take(&limit, "a", 16).is_err());
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let limiter: RateLimiter<u8> = RateLimiter::new(&RateLimitConfig::default());
        assert_eq!(limiter.check(&1, u32::MAX), Ok(()));
        assert_eq!((limiter.keys(), limiter.burst()), (0, None));
    }

    #[test]
    fn ten_thousand_made_up_keys_stay_within_the_bound() {
        let limiter = RateLimiter::new(&RateLimitConfig {
            per_second: 1,
            burst: 1,
            max_keys: 100,
            ..RateLimitConfig::default()
        });
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let limiter = &limiter;
                scope.spawn(move || {
                    for n in 0..10_000 {
                        let _ = limiter.check(&format!("{thread}-{n}"), 1);
                    }
                });
            }
        });
        assert!(limiter.keys() <= 100);
        let limit = limiter.limit.as_ref().unwrap();
        assert_eq!(limit.buckets.by_key.len(), limiter.keys());
    }

    proptest! {
        #[test]
        fn no_more_passes_than_burst_plus_refill(
            steps in prop::collection::vec((1u32..20, 0u64..300), 1..100)
        ) {
            let (limit, clock) = limit(50, 30, 4);
            let (mut granted, mut elapsed_ms) = (0u64, 0u64);
            for (cost, pause_ms) in steps {
                clock.advance(Duration::from_millis(pause_ms));
                elapsed_ms += pause_ms;
                if take(&limit, "a", cost).is_ok() {
                    granted += u64::from(cost);
                }
                prop_assert!(granted <= 30 + elapsed_ms * 50 / 1_000 + 1);
            }
        }
    }
}
