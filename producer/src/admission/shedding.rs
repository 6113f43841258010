//! Sheds load before queues, memory or latency go: as much is taken on as the adaptive limit allows, which is found from
//! how long Kafka takes to acknowledge what is in flight, and nothing while the local queue to Kafka is nearly full.
//!
//! A request is let in while what is in flight is below the limit, however large it is itself: so a large batch is never
//! shut out for good, and the limit is overshot by one request at most. Large requests leave the last part of the
//! limit to small ones, and both leave the very last to canaries.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use streamgauge_lifecycle::SharedClock;
use streamgauge_resilience::{ConcurrencyLimit, Sample};

use super::counts::{AdmissionCounts, Shed};
use super::settings::AdmissionConfig;

/// Whoever was refused was told to come back within this time: until then the limit is pressed, however little is in flight.
const PRESSED_FOR: Duration = Duration::from_secs(2);

/// Tells how many records are in the local queue to Kafka.
pub type QueueDepth = Box<dyn Fn() -> usize + Send + Sync>;

/// What a request is, for its place before the reserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    Large,
    Small,
    Canary,
}

/// How the work on a request ended, as far as it tells about room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Kafka took it, in its own time.
    Acknowledged,
    /// It waited in vain: a queue was full, or time ran out.
    Lost,
}

/// Shared by reference.
pub struct Shedding {
    config: AdmissionConfig,
    /// How long records wait for companions by intention, which tells nothing about room.
    linger: Duration,
    queue_records_max: usize,
    core: Mutex<ConcurrencyLimit>,
    /// What the core said last.
    limit: AtomicU32,
    in_flight: AtomicUsize,
    queue: OnceLock<QueueDepth>,
    queue_depth: AtomicUsize,
    queue_looked_ms: AtomicU64,
    /// When the limit refused somebody last, milliseconds of the clock; 0 for never.
    refused_ms: AtomicU64,
    clock: SharedClock,
    counts: AdmissionCounts,
}

impl Shedding {
    pub fn new(
        config: &AdmissionConfig,
        linger: Duration,
        queue_messages_max: u32,
        clock: SharedClock,
        counts: AdmissionCounts,
    ) -> Self {
        let core = ConcurrencyLimit::new(&config.limit);
        let limit = core.limit();
        counts.limit(limit);
        Self {
            linger,
            queue_records_max: (f64::from(queue_messages_max) * config.queue_share_max) as usize,
            config: config.clone(),
            core: Mutex::new(core),
            limit: AtomicU32::new(limit),
            in_flight: AtomicUsize::new(0),
            queue: OnceLock::new(),
            queue_depth: AtomicUsize::new(0),
            queue_looked_ms: AtomicU64::new(0),
            refused_ms: AtomicU64::new(0),
            clock,
            counts,
        }
    }

    /// From now on this queue is looked at.
    pub fn watch_queue(&self, depth: QueueDepth) {
        // The first one stays: there is one queue.
        let _ = self.queue.set(depth);
    }

    /// What a request weighs.
    pub fn units(&self, events: usize, bytes: usize) -> u32 {
        let content = events.max(bytes / self.config.unit_bytes.max(1) as usize);
        u32::try_from(content)
            .unwrap_or(u32::MAX)
            .saturating_add(self.config.request_units)
    }

    fn rank(&self, units: u32, canary: bool) -> Rank {
        match units {
            _ if canary => Rank::Canary,
            units if units <= self.config.small_units_max => Rank::Small,
            _ => Rank::Large,
        }
    }

    /// How much may be in flight before a request of this rank.
    fn ceiling(&self, rank: Rank) -> usize {
        let kept = match rank {
            Rank::Canary => 0.0,
            Rank::Small => self.config.canary_reserve_share,
            Rank::Large => self.config.canary_reserve_share + self.config.small_reserve_share,
        };
        let limit = f64::from(self.limit.load(Ordering::Relaxed));
        (limit * (1.0 - kept)).ceil() as usize
    }

    /// Whether there is room for anything of this client, before its request is read.
    pub fn may_enter(&self, canary: bool) -> Result<(), Shed> {
        let rank = if canary { Rank::Canary } else { Rank::Small };
        if self.config.enabled && self.in_flight.load(Ordering::Relaxed) >= self.ceiling(rank) {
            return Err(self.refuse(self.clock.monotonic()));
        }
        Ok(())
    }

    /// Takes a request on, until its ticket is dropped.
    pub fn enter(
        self: &Arc<Self>,
        events: usize,
        bytes: usize,
        canary: bool,
    ) -> Result<Ticket, Shed> {
        let units = self.units(events, bytes);
        let rank = self.rank(units, canary);
        let now = self.clock.monotonic();
        let beside = self.in_flight.fetch_add(units as usize, Ordering::Relaxed);
        self.counts.in_flight().inc_by(units.into());
        let ticket = Ticket {
            shedding: self.clone(),
            units,
            beside_units: u32::try_from(beside).unwrap_or(u32::MAX),
            begun: now,
        };
        if self.config.enabled {
            if beside >= self.ceiling(rank) {
                return Err(self.refuse(now));
            }
            if self.queue_is_full(events, now) {
                return Err(Shed::Queue);
            }
        }
        Ok(ticket)
    }

    fn refuse(&self, now: Duration) -> Shed {
        self.refused_ms
            .store((now.as_millis() as u64).max(1), Ordering::Relaxed);
        Shed::Limit
    }

    fn is_pressed(&self, now: Duration) -> bool {
        let refused_ms = self.refused_ms.load(Ordering::Relaxed);
        refused_ms > 0 && now < Duration::from_millis(refused_ms) + PRESSED_FOR
    }

    /// What is in flight apart from so many units of it.
    fn in_flight_beside(&self, units: u32) -> u32 {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        u32::try_from(in_flight.saturating_sub(units as usize)).unwrap_or(u32::MAX)
    }

    /// An empty queue takes anything: the bound must not shut out what is larger than itself.
    fn queue_is_full(&self, events: usize, now: Duration) -> bool {
        let depth = self.queue_depth(now);
        depth > 0 && depth.saturating_add(events) > self.queue_records_max
    }

    /// The depth of the queue, looked at every now and then by whoever comes first.
    fn queue_depth(&self, now: Duration) -> usize {
        let Some(depth) = self.queue.get() else {
            return 0;
        };
        let now_ms = now.as_millis() as u64;
        let looked_ms = self.queue_looked_ms.load(Ordering::Relaxed);
        let is_due = now_ms.saturating_sub(looked_ms) >= self.config.queue_sample_ms;
        let won = is_due
            && self
                .queue_looked_ms
                .compare_exchange(looked_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if won {
            self.queue_depth.store(depth(), Ordering::Relaxed);
        }
        self.queue_depth.load(Ordering::Relaxed)
    }
}

/// The place of a request among what is in flight.
#[must_use]
pub struct Ticket {
    shedding: Arc<Shedding>,
    units: u32,
    beside_units: u32,
    begun: Duration,
}

impl Ticket {
    /// The limit learns from how the request ended.
    pub fn report(&self, ending: Ending) {
        let shedding = &self.shedding;
        let now = shedding.clock.monotonic();
        let latency = now.saturating_sub(self.begun);
        let sample = Sample {
            now,
            latency: latency.saturating_sub(shedding.linger),
            units: self.units,
            beside_units: self.beside_units,
            left_units: shedding.in_flight_beside(self.units),
            lost: ending == Ending::Lost,
            pressed: shedding.is_pressed(now),
        };
        let mut core = shedding.core.lock();
        let before = core.limit();
        let limit = core.observe(sample);
        // Under the lock, so that an older word never overwrites a newer one.
        shedding.limit.store(limit, Ordering::Relaxed);
        drop(core);
        if limit != before {
            shedding.counts.limit(limit);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let shedding = &self.shedding;
        let units = self.units as usize;
        shedding.in_flight.fetch_sub(units, Ordering::Relaxed);
        shedding.counts.in_flight().dec_by(self.units.into());
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_lifecycle::ManualClock;
    use streamgauge_resilience::ConcurrencyConfig;
    use streamgauge_telemetry::Metrics;

    use super::*;

    fn config(units: u32) -> AdmissionConfig {
        AdmissionConfig {
            request_units: 0,
            limit: ConcurrencyConfig {
                units_min: 10,
                units_max: units,
                latency_floor_ms: 20,
                ..ConcurrencyConfig::default()
            },
            ..AdmissionConfig::default()
        }
    }

    fn shedding(config: &AdmissionConfig) -> (Arc<Shedding>, Arc<ManualClock>, Metrics) {
        let (clock, metrics) = (Arc::new(ManualClock::new(0)), Metrics::new("producer"));
        let counts = AdmissionCounts::register(&metrics);
        let linger = Duration::from_millis(2);
        let shedding = Shedding::new(config, linger, 1_000, clock.clone(), counts);
        (Arc::new(shedding), clock, metrics)
    }

    #[test]
    fn a_request_weighs_its_events_or_their_bytes() {
        let (shedding, ..) = shedding(&AdmissionConfig::default());
        assert_eq!(shedding.units(1, 200), 13);
        assert_eq!(shedding.units(100, 20_000), 112);
        assert_eq!(shedding.units(1, 262_144), 268);
        assert_eq!(shedding.units(usize::MAX, 0), u32::MAX);
    }

    #[test]
    fn small_requests_and_canaries_keep_a_reserve() {
        let (shedding, ..) = shedding(&config(1_000));
        let large = shedding.enter(850, 0, false).unwrap();
        assert_eq!(shedding.enter(100, 0, false).err(), Some(Shed::Limit));
        let small: Vec<_> = (0..100)
            .map(|_| shedding.enter(1, 0, false).unwrap())
            .collect();
        assert_eq!(shedding.enter(1, 0, false).err(), Some(Shed::Limit));
        assert_eq!(shedding.may_enter(false), Err(Shed::Limit));
        assert_eq!(shedding.may_enter(true), Ok(()));
        let canary: Vec<_> = (0..50)
            .map(|_| shedding.enter(1, 0, true).unwrap())
            .collect();
        assert_eq!(shedding.enter(1, 0, true).err(), Some(Shed::Limit));
        drop((large, small, canary));
        assert!(shedding.enter(5_000, 0, false).is_ok(), "one overshoots");
        assert_eq!(shedding.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_queue_lets_nothing_in_until_it_is_looked_at_again() {
        let (shedding, clock, _) = shedding(&config(10_000));
        let depth = Arc::new(AtomicUsize::new(890));
        let seen = depth.clone();
        shedding.watch_queue(Box::new(move || seen.load(Ordering::Relaxed)));
        clock.advance(Duration::from_secs(1));
        assert_eq!(shedding.enter(11, 0, false).err(), Some(Shed::Queue));
        assert!(shedding.enter(10, 0, false).is_ok());
        depth.store(0, Ordering::Relaxed);
        assert_eq!(shedding.enter(11, 0, false).err(), Some(Shed::Queue));
        clock.advance(Duration::from_millis(10));
        assert!(shedding.enter(5_000, 0, false).is_ok());
    }

    #[test]
    fn the_limit_follows_what_is_reported_and_the_linger_is_not_held_against_it() {
        let (shedding, clock, metrics) = shedding(&config(100));
        let round = |latency_ms| {
            let tickets: Vec<_> = (0..95)
                .filter_map(|_| shedding.enter(1, 0, true).ok())
                .collect();
            clock.advance(Duration::from_millis(latency_ms));
            for ticket in tickets {
                ticket.report(Ending::Acknowledged);
            }
        };
        for _ in 0..50 {
            round(21);
        }
        assert_eq!(shedding.limit.load(Ordering::Relaxed), 100);
        for _ in 0..10 {
            round(200);
        }
        let limit = shedding.limit.load(Ordering::Relaxed);
        assert!(limit < 50, "{limit}");
        let text = metrics.encode();
        assert!(text.contains(&format!("\nadmission_limit {limit}\n")));
        assert!(text.contains("\nadmission_in_flight 0\n"));
        for _ in 0..1_000 {
            round(5);
        }
        assert!(shedding.limit.load(Ordering::Relaxed) >= 95);
    }

    #[test]
    fn switched_off_it_lets_everything_in() {
        let config = AdmissionConfig {
            enabled: false,
            ..config(10)
        };
        let (shedding, ..) = shedding(&config);
        let _tickets: Vec<_> = (0..100)
            .map(|_| shedding.enter(10, 0, false).unwrap())
            .collect();
        assert_eq!(shedding.may_enter(false), Ok(()));
    }
}
