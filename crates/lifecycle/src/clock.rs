//! Time, handed in. Event time and wall time are unix microseconds; durations come from the monotonic reading, which
//! no correction of the wall clock moves.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync + 'static {
    /// The wall clock: microseconds since the unix epoch.
    fn now_us(&self) -> i64;

    /// Time since some fixed moment; it never goes back.
    fn monotonic(&self) -> Duration;
}

pub type SharedClock = Arc<dyn Clock>;

impl fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now_us())
    }
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    pub fn shared() -> SharedClock {
        Arc::new(SystemClock)
    }
}

impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => {
                i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |before| -before)
            }
        }
    }

    fn monotonic(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}

/// A clock that stands still until it is told otherwise.
#[derive(Debug)]
pub struct ManualClock {
    wall_us: AtomicI64,
    monotonic_ns: AtomicU64,
}

impl ManualClock {
    pub fn new(start_us: i64) -> Self {
        ManualClock {
            wall_us: AtomicI64::new(start_us),
            monotonic_ns: AtomicU64::new(0),
        }
    }

    /// Lets time pass, on both readings.
    pub fn advance(&self, by: Duration) {
        self.monotonic_ns
            .fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
        self.wall_us
            .fetch_add(by.as_micros() as i64, Ordering::SeqCst);
    }

    /// Corrects the wall clock, in either direction; no time passes.
    pub fn set(&self, now_us: i64) {
        self.wall_us.store(now_us, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_us(&self) -> i64 {
        self.wall_us.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_ns.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_clock_obeys() {
        let clock = ManualClock::new(1_000_000);
        clock.advance(Duration::from_millis(1_500));
        assert_eq!(
            (clock.now_us(), clock.monotonic()),
            (2_500_000, Duration::from_millis(1_500))
        );
        clock.set(-7);
        assert_eq!(
            (clock.now_us(), clock.monotonic()),
            (-7, Duration::from_millis(1_500))
        );
    }

    #[test]
    fn the_system_clock_goes_on() {
        let clock = SystemClock::shared();
        assert!(clock.now_us() > 1_600_000_000_000_000);
        let before = clock.monotonic();
        assert!(clock.monotonic() >= before);
    }
}
