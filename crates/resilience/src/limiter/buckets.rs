//! The state of token buckets by key: for each the moment at which it is full again, and nothing else. What rate
//! fills a bucket is not known here.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};

/// The buckets, by key, and the one that all keys beyond the bound share.
pub struct Buckets<K: Hash + Eq> {
    by_key: DashMap<K, InMemoryState>,
    /// Kept beside the map, whose own count takes a lock on every shard.
    len: AtomicUsize,
    max: usize,
    shared: InMemoryState,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    pub fn new(max: usize) -> Self {
        Self {
            by_key: DashMap::new(),
            len: AtomicUsize::new(0),
            max,
            shared: InMemoryState::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Makes room for a key, unless the bound is reached.
    fn reserve(&self) -> bool {
        self.len
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |len| {
                (len < self.max).then_some(len + 1)
            })
            .is_ok()
    }

    /// Runs `f` on the bucket of a key, which is made if there is room for it; else on the shared one.
    fn with<T>(&self, key: &K, f: impl FnOnce(&InMemoryState) -> T) -> T {
        if let Some(bucket) = self.by_key.get(key) {
            return f(&bucket);
        }
        if !self.reserve() {
            return f(&self.shared);
        }
        let bucket = match self.by_key.entry(key.clone()) {
            dashmap::Entry::Occupied(entry) => {
                // Another request of the same client came first, and its room is counted already.
                self.len.fetch_sub(1, Ordering::Relaxed);
                entry.into_ref()
            }
            dashmap::Entry::Vacant(entry) => entry.insert(InMemoryState::default()),
        };
        f(&bucket)
    }

    /// When the bucket of a key is full again. None for one that was never used.
    pub fn peek(&self, key: &K) -> Option<Duration> {
        match self.by_key.get(key) {
            Some(bucket) => look(&bucket),
            None if self.len() < self.max => None,
            None => look(&self.shared),
        }
        .map(Duration::from)
    }

    /// Says of a bucket when it is full again.
    pub fn put(&self, key: &K, full_at: Nanos) {
        self.with(key, |bucket| replace(bucket, |_| full_at));
    }

    /// Fills a bucket by so much time; one that is not known is full already.
    pub fn lower(&self, key: &K, by: Nanos) {
        let lower = |bucket: &InMemoryState| {
            replace(bucket, |at| at.unwrap_or_default().saturating_sub(by));
        };
        match self.by_key.get(key) {
            Some(bucket) => lower(&bucket),
            None if self.len() < self.max => {}
            None => lower(&self.shared),
        }
    }

    /// Every bucket that was used.
    pub fn each(&self, mut f: impl FnMut(&K, Duration)) {
        for entry in &self.by_key {
            if let Some(at) = look(entry.value()) {
                f(entry.key(), at.into());
            }
        }
    }

    /// Forgets the buckets that are full at this time, and says how many they were.
    pub fn forget_full(&self, now: Duration) -> usize {
        let (now, mut forgotten) = (Nanos::from(now), 0);
        self.by_key.retain(|_, bucket| {
            let full = look(bucket).is_none_or(|at| at <= now);
            forgotten += usize::from(full);
            !full
        });
        self.len.fetch_sub(forgotten, Ordering::Relaxed);
        // A table that was grown by a flood gives its memory back once the flood is gone.
        if forgotten > self.len() {
            self.by_key.shrink_to_fit();
        }
        forgotten
    }
}

/// Reads a bucket by a replacement that it is made to refuse, which leaves it as it was.
fn look(bucket: &InMemoryState) -> Option<Nanos> {
    bucket
        .measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>)
        .err()
        .flatten()
}

fn replace(bucket: &InMemoryState, with: impl Fn(Option<Nanos>) -> Nanos) {
    // The replacement is never refused.
    let _ = bucket.measure_and_replace(&NotKeyed::NonKey, |at| Ok::<_, ()>(((), with(at))));
}

/// Shared between the governors, which decide, and the limiter, which counts and forgets.
pub struct Store<K: Hash + Eq>(pub Arc<Buckets<K>>);

impl<K: Hash + Eq + Clone> StateStore for Store<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.with(key, |bucket| {
            bucket.measure_and_replace(&NotKeyed::NonKey, f)
        })
    }
}
