//! Failures on purpose, for tests that hold the broker in the same process.
//! Nothing here happens unless a test asks for it, and no protocol message can.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// Switches that make the broker misbehave, repeatably.
#[derive(Debug)]
pub struct Faults {
    acknowledgements_to_drop: AtomicU64,
    acknowledgements_dropped: AtomicU64,
    append_delay_us: AtomicU64,
    refuse_appends: AtomicBool,
    refuse_members: AtomicBool,
    cuts: watch::Sender<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            acknowledgements_to_drop: AtomicU64::new(0),
            acknowledgements_dropped: AtomicU64::new(0),
            append_delay_us: AtomicU64::new(0),
            refuse_appends: AtomicBool::new(false),
            refuse_members: AtomicBool::new(false),
            cuts: watch::channel(0).0,
        }
    }
}

impl Faults {
    /// The next `count` produce requests are stored, but their connections are
    /// closed instead of answered.
    pub fn drop_acknowledgements(&self, count: u64) {
        self.acknowledgements_to_drop.store(count, Ordering::SeqCst);
    }

    /// How many acknowledgements have been dropped so far.
    pub fn acknowledgements_dropped(&self) -> u64 {
        self.acknowledgements_dropped.load(Ordering::SeqCst)
    }

    /// Closes every open connection. New ones are accepted.
    pub fn cut_connections(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Makes each produce request wait before it is stored, as a slow disk would.
    pub fn delay_appends(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.append_delay_us.store(micros, Ordering::SeqCst);
    }

    /// Answers produce requests with a storage error, storing nothing, as a
    /// full disk would.
    pub fn refuse_appends(&self, refuse: bool) {
        self.refuse_appends.store(refuse, Ordering::SeqCst);
    }

    /// Lets nobody join a group and knows no member, while all else goes on, as
    /// a coordinator that is out of order would.
    pub fn refuse_members(&self, refuse: bool) {
        self.refuse_members.store(refuse, Ordering::SeqCst);
    }

    pub(crate) fn append_delay(&self) -> Option<Duration> {
        match self.append_delay_us.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    pub(crate) fn refuses_appends(&self) -> bool {
        self.refuse_appends.load(Ordering::Relaxed)
    }

    pub(crate) fn refuses_members(&self) -> bool {
        self.refuse_members.load(Ordering::Relaxed)
    }

    pub(crate) fn takes_acknowledgement(&self) -> bool {
        let taken = self.acknowledgements_to_drop.fetch_update(
            Ordering::SeqCst,
            Ordering::SeqCst,
            |left| left.checked_sub(1),
        );
        if taken.is_ok() {
            self.acknowledgements_dropped.fetch_add(1, Ordering::SeqCst);
        }
        taken.is_ok()
    }

    pub(crate) fn watch_cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }
}
