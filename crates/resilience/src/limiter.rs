//! Token buckets, one per client, over a bounded number of clients, with rates that can be changed while they are in
//! use. The limiter must hold against a caller who makes up a new key for each request: once the bound is reached,
//! keys it has not seen share one bucket. So memory stays bounded, and a client that is known keeps its own allowance,
//! whoever else comes: only a bucket that is full again is ever forgotten.

mod buckets;

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock, DefaultClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{Quota, RateLimiter as Governor};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::buckets::{Buckets, Store};

/// An allowance: so much each second, and so much at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// What comes in each second; 0 lifts the limit.
    pub per_second: u32,
    /// What may be taken at once; 0 stands for that of one second.
    #[serde(default)]
    pub burst: u32,
}

impl Rate {
    /// No limit at all.
    pub const UNLIMITED: Self = Self {
        per_second: 0,
        burst: 0,
    };

    /// Beyond this a unit takes less than the nanosecond that time is counted in.
    pub const PER_SECOND_MAX: u32 = 1_000_000_000;

    pub const fn is_limited(self) -> bool {
        self.per_second > 0
    }

    /// What may be taken at once.
    pub const fn capacity(self) -> u32 {
        if self.burst == 0 {
            self.per_second
        } else {
            self.burst
        }
    }
}

/// The rate of every client, and of those that have another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates<K: Hash + Eq> {
    pub default: Rate,
    pub overrides: HashMap<K, Rate>,
}

impl<K: Hash + Eq> From<Rate> for Rates<K> {
    fn from(default: Rate) -> Self {
        Self {
            default,
            overrides: HashMap::new(),
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

/// What is left of an allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub rate: Rate,
    /// What may be taken now.
    pub available: u32,
    /// When all of it may be taken again, if nothing is taken in between.
    pub full_in: Duration,
}

type Keyed<K, C> = Governor<K, Store<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// One rate, over the buckets that all rates share.
struct Tier<K: Hash + Eq + Clone, C: Clock> {
    governor: Keyed<K, C>,
    rate: Rate,
    burst: NonZeroU32,
    /// The time in which one unit comes in, as the governor rounds it.
    unit: Nanos,
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Tier<K, C> {
    /// None where nothing is limited.
    fn new(rate: Rate, buckets: &Arc<Buckets<K>>, clock: &C) -> Option<Self> {
        let per_second = NonZeroU32::new(rate.per_second)?;
        let burst = NonZeroU32::new(rate.capacity())?;
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let unit = quota.replenish_interval().max(Duration::from_nanos(1));
        Some(Self {
            governor: Governor::new(quota, Store(buckets.clone()), clock.clone()),
            rate,
            burst,
            unit: unit.into(),
        })
    }

    /// What was taken from a bucket and has not come in again.
    fn missing(&self, full_in: Duration) -> u32 {
        let missing = Nanos::from(full_in)
            .as_u64()
            .div_ceil(self.unit.as_u64().max(1));
        u32::try_from(missing)
            .unwrap_or(u32::MAX)
            .min(self.burst.get())
    }

    fn check(&self, key: &K, cost: NonZeroU32, clock: &C) -> Result<(), Limited> {
        match self.governor.check_key_n(key, cost) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(Limited {
                retry_after: not_until.wait_time_from(clock.now()),
                exceeds_burst: false,
            }),
            Err(_) => Err(Limited {
                retry_after: Duration::from(self.unit) * self.burst.get(),
                exceeds_burst: true,
            }),
        }
    }
}

/// The rates that are in force, and the buckets that they fill.
struct Table<K: Hash + Eq + Clone, C: Clock> {
    buckets: Arc<Buckets<K>>,
    start: C::Instant,
    default: Option<Tier<K, C>>,
    overrides: HashMap<K, Option<Tier<K, C>>>,
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Table<K, C> {
    fn new(rates: &Rates<K>, keys_max: usize, clock: &C) -> Self {
        let buckets = Arc::new(Buckets::new(keys_max));
        // Every governor takes its own reading of the clock for its beginning, a moment after this one.
        let start = clock.now();
        let tier = |rate| Tier::new(rate, &buckets, clock);
        Self {
            default: tier(rates.default),
            overrides: rates
                .overrides
                .iter()
                .map(|(key, rate)| (key.clone(), tier(*rate)))
                .collect(),
            start,
            buckets,
        }
    }

    fn tier(&self, key: &K) -> Option<&Tier<K, C>> {
        match self.overrides.get(key) {
            Some(tier) => tier.as_ref(),
            None => self.default.as_ref(),
        }
    }

    fn now(&self, clock: &C) -> Duration {
        clock.now().duration_since(self.start).into()
    }

    /// Fills the buckets as far as they were filled in a table with other rates: what a client has taken stays taken,
    /// and comes in again at its new rate.
    fn carry_over(&self, old: &Self, clock: &C) {
        let (then, now) = (old.now(clock), self.now(clock));
        old.buckets.each(|key, full_at| {
            let Some(full_in) = full_at.checked_sub(then) else {
                return;
            };
            if let (Some(before), Some(after)) = (old.tier(key), self.tier(key)) {
                let missing = before.missing(full_in).min(after.burst.get());
                if missing == 0 {
                    return;
                }
                let full_at = Nanos::from(now) + after.unit * u64::from(missing);
                self.buckets.put(key, full_at);
            }
        });
    }
}

/// A rate limit per key. Checks never wait and never block on each other for longer than a map lookup.
pub struct RateLimiter<K: Hash + Eq + Clone, C: Clock = DefaultClock> {
    table: ArcSwap<Table<K, C>>,
    clock: C,
    keys_max: usize,
    changing: Mutex<()>,
}

impl<K: Hash + Eq + Clone> RateLimiter<K> {
    /// A limiter that tells at most `keys_max` keys apart.
    pub fn new(rates: &Rates<K>, keys_max: usize) -> Self {
        Self::with_clock(rates, keys_max, DefaultClock::default())
    }
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> RateLimiter<K, C> {
    fn with_clock(rates: &Rates<K>, keys_max: usize, clock: C) -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::new(rates, keys_max, &clock)),
            clock,
            keys_max,
            changing: Mutex::new(()),
        }
    }

    /// Puts other rates in force. It goes over all buckets, and what is taken from them in the meantime may be
    /// forgotten; checks go on.
    pub fn set(&self, rates: &Rates<K>) {
        let _one_at_a_time = self.changing.lock();
        let old = self.table.load_full();
        let new = Table::new(rates, self.keys_max, &self.clock);
        new.carry_over(&old, &self.clock);
        self.table.store(Arc::new(new));
    }

    /// Takes `cost` from the allowance of `key`, all or nothing. A cost of zero always passes.
    pub fn take(&self, key: &K, cost: u32) -> Result<(), Limited> {
        let table = self.table.load();
        match (table.tier(key), NonZeroU32::new(cost)) {
            (Some(tier), Some(cost)) => tier.check(key, cost, &self.clock),
            _ => Ok(()),
        }
    }

    /// Gives back what was taken for something that did not happen after all.
    pub fn give_back(&self, key: &K, cost: u32) {
        let table = self.table.load();
        if let Some(tier) = table.tier(key) {
            table
                .buckets
                .lower(key, tier.unit * u64::from(cost.min(tier.burst.get())));
        }
    }

    /// How long the allowance of `key` stays empty, so that nothing whatever would pass; none when something might.
    /// Nothing is taken and no client is remembered for it.
    pub fn exhausted(&self, key: &K) -> Option<Duration> {
        let table = self.table.load();
        let tier = table.tier(key)?;
        let full_in = table
            .buckets
            .peek(key)?
            .checked_sub(table.now(&self.clock))?;
        // One passes from the moment on at which the bucket is all but one from full.
        let but_one = Duration::from(tier.unit * u64::from(tier.burst.get() - 1));
        full_in.checked_sub(but_one).filter(|wait| !wait.is_zero())
    }

    /// What is left for `key`; none when it is not limited. Nothing is taken and no client is remembered for it.
    pub fn allowance(&self, key: &K) -> Option<Allowance> {
        let table = self.table.load();
        let tier = table.tier(key)?;
        let full_at = table.buckets.peek(key).unwrap_or_default();
        let full_in = full_at.saturating_sub(table.now(&self.clock));
        Some(Allowance {
            rate: tier.rate,
            available: tier.burst.get() - tier.missing(full_in),
            full_in,
        })
    }

    /// The most that one request of `key` can ever be granted; none when it is not limited.
    pub fn burst(&self, key: &K) -> Option<u32> {
        self.table.load().tier(key).map(|tier| tier.burst.get())
    }

    /// Forgets the clients whose allowance is full again, which changes nothing for them. Says how many it forgot.
    pub fn evict(&self) -> usize {
        let table = self.table.load();
        table.buckets.forget_full(table.now(&self.clock))
    }

    /// How many clients hold a bucket of their own now.
    pub fn keys(&self) -> usize {
        self.table.load().buckets.len()
    }
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> std::fmt::Debug for RateLimiter<K, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter")
            .field("keys", &self.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
