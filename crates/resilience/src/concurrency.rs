//! An adaptive limit on the work that is in flight at once, found from how long work takes. It keeps no clock and
//! admits nobody: it is fed what was measured and says what the limit is, so that the same measurements always give the
//! same limits.
//!
//! The idea is that of TCP Vegas (Brakmo and Peterson, 1995) and of Gradient2 in Netflix's concurrency-limits (Apache
//! 2.0): while a service has room, work takes as long as it takes alone; once it is full, more work in flight only
//! waits longer. So the limit follows the gradient, the latency that is accepted over the latency that is measured: it
//! shrinks in proportion while the gradient is below one, and grows by a fixed share otherwise. As there, a limit that
//! is not made use of is left alone: one of which less than half is in flight.
//!
//! Four things are other than in Gradient2. A limit that refused somebody of late is lowered however little is in flight:
//! clients that were told to come back later leave gaps, in which the limit would stay where it is too high. It is not
//! raised there, since the gaps say nothing of a service in use.
//! The baseline only rises on work that met a nearly idle service (no more than the least limit beside it, and nobody
//! refused of late), so that an overload is not learned as normal; where the least limit itself refuses, nothing more
//! can be shed, and the baseline follows slowly. Work of different sizes has baselines of its own, so that a change from single
//! events to large batches is no overload. And work that began before the last change, and so tells of an earlier limit,
//! never raises the limit, and lowers it no further than to what gets done in the accepted time (Little's law): a queue
//! that is draining already does not cut the limit again and again, and yet one that takes seconds to drain does not put
//! off the first cuts for as long.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Sizes of work that are told apart, each eight times the one before.
const SIZES: usize = 6;

/// The smallest gradient: the limit at most halves at a time, so that an outlier does little.
const GRADIENT_MIN: f64 = 0.5;

/// A gradient from here to one is within what chance does to a window, and leaves the limit as it is.
const GRADIENT_STILL: f64 = 0.95;

/// By how much the limit shrinks when work was lost, whatever the latency; as in Netflix's `AIMDLimit`.
const LOSS_GRADIENT: f64 = 0.9;

/// By how much the limit grows at a time.
const GROWTH: f64 = 1.1;

/// How much of what was measured on a nearly idle service goes into a baseline. The same both ways: were it more on the
/// way down, a baseline would follow the quickest of varying latencies, and what is usual would count as slow.
const BASELINE_QUIET: f64 = 0.1;

/// The same on the way up while others are refused and the limit is the least one.
const BASELINE_LEAST: f64 = 0.005;

/// Below which share of its baseline a busy service must be for the baseline to be wrong, and how much of that goes in.
const BASELINE_WRONG: f64 = 0.75;
const BASELINE_BUSY: f64 = 0.3;

/// The settings of the limit. A unit is what the caller takes for one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConcurrencyConfig {
    /// The least limit, in units: so much may always be in flight.
    pub units_min: u32,
    /// The greatest limit, in units, which holds until latency rises.
    pub units_max: u32,
    /// A latency that is accepted in any case, in milliseconds.
    pub latency_floor_ms: u64,
    /// The latency that is accepted, as a multiple of that of a nearly idle service.
    pub latency_tolerance: f64,
    /// How long is measured before the limit changes, in milliseconds.
    pub window_ms: u64,
    /// How many measurements a change takes.
    pub window_samples_min: u32,
}

impl Default for ConcurrencyConfig {
    fn default() -> Self {
        Self {
            units_min: 250,
            units_max: 16_384,
            latency_floor_ms: 6,
            latency_tolerance: 1.5,
            window_ms: 100,
            window_samples_min: 10,
        }
    }
}

/// A piece of work that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was done, on a clock that never goes back.
    pub now: Duration,
    /// How long it took.
    pub latency: Duration,
    /// What it weighed.
    pub units: u32,
    /// What was in flight beside it when it began.
    pub beside_units: u32,
    /// What is in flight beside it now that it is done.
    pub left_units: u32,
    /// It was lost for want of room, such as by a time-out.
    pub lost: bool,
    /// Work was refused of late for the limit's sake: whoever was refused comes back, so that latency lowers the limit even
    /// where little is in flight just now.
    pub pressed: bool,
}

/// What was measured of the work of one size.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// Seconds that such work takes on a nearly idle service, once known.
    baseline: Option<f64>,
    all: Latencies,
    quiet: Latencies,
    shortest: f64,
}

/// Latencies of some work.
#[derive(Clone, Copy, Debug, Default)]
struct Latencies {
    samples: u32,
    seconds: f64,
    seconds_squared: f64,
}

impl Latencies {
    fn add(&mut self, seconds: f64) {
        self.samples += 1;
        self.seconds += seconds;
        self.seconds_squared += seconds * seconds;
    }

    /// Their average weighted by themselves: in a burst those who wait long count for more than those who came first, whom
    /// a plain average would let hide them.
    fn average(&self) -> f64 {
        if self.seconds > 0.0 {
            self.seconds_squared / self.seconds
        } else {
            0.0
        }
    }
}

impl Size {
    fn add(&mut self, seconds: f64, quiet: bool) {
        self.shortest = if self.all.samples == 0 {
            seconds
        } else {
            self.shortest.min(seconds)
        };
        self.all.add(seconds);
        if quiet {
            self.quiet.add(seconds);
        }
    }

    /// Forgets what was measured, but not the baseline.
    fn clear(&mut self) {
        *self = Self {
            baseline: self.baseline,
            ..Self::default()
        };
    }

    /// The baseline learns from what was measured.
    fn learn(&mut self, may_guess: bool, quiet_share: f64) {
        if self.all.samples == 0 {
            return;
        }
        let average = self.all.average();
        let quiet = (self.quiet.samples > 0).then(|| self.quiet.average());
        self.baseline = match (self.baseline, quiet) {
            (None, Some(quiet)) => Some(quiet),
            (None, None) => may_guess.then_some(self.shortest),
            (Some(baseline), Some(quiet)) => {
                let share = if quiet > baseline {
                    quiet_share
                } else {
                    BASELINE_QUIET
                };
                Some(baseline + share * (quiet - baseline))
            }
            (Some(baseline), None) if average < baseline * BASELINE_WRONG => {
                Some(baseline + BASELINE_BUSY * (average - baseline))
            }
            (known, None) => known,
        };
    }
}

/// What is measured between two changes, beside the latencies.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    begun: Option<Duration>,
    samples: u32,
    lost: u32,
    done_units: u64,
    busiest_units: u32,
    pressed: bool,
    /// All of it began before the last change.
    stale: bool,
}

/// What a window says.
struct Reading {
    /// The accepted latency over the measured one; one at most.
    gradient: f64,
    /// Seconds.
    accepted: f64,
}

/// The limit and all that it is found from.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit {
    config: ConcurrencyConfig,
    limit: f64,
    sizes: [Size; SIZES],
    window: Window,
    changed_at: Duration,
}

impl ConcurrencyLimit {
    pub fn new(config: &ConcurrencyConfig) -> Self {
        Self {
            limit: f64::from(config.units_max),
            config: config.clone(),
            sizes: [Size::default(); SIZES],
            window: Window::default(),
            changed_at: Duration::ZERO,
        }
    }

    /// How many units may be in flight.
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Takes a measurement and says what the limit is now.
    pub fn observe(&mut self, sample: Sample) -> u32 {
        let begun = sample.now.saturating_sub(sample.latency);
        let stale = begun < self.changed_at;
        if self.window.samples > 0 && self.window.stale != stale {
            if stale {
                return self.limit();
            }
            // What began under the limit that holds tells more.
            self.open(sample.now);
        }
        let window_begun = *self.window.begun.get_or_insert(begun);
        self.add(sample, stale);
        let elapsed = sample.now.saturating_sub(window_begun);
        let due = Duration::from_millis(self.config.window_ms);
        if elapsed >= due && self.window.samples >= self.config.window_samples_min {
            self.close(sample.now, elapsed);
        }
        self.limit()
    }

    fn open(&mut self, now: Duration) {
        self.sizes.iter_mut().for_each(Size::clear);
        self.window = Window {
            begun: Some(now),
            ..Window::default()
        };
    }

    fn add(&mut self, sample: Sample, stale: bool) {
        let window = &mut self.window;
        window.stale = stale;
        window.samples += 1;
        window.pressed |= sample.pressed;
        window.busiest_units = window.busiest_units.max(
            sample
                .beside_units
                .max(sample.left_units)
                .saturating_add(sample.units),
        );
        if sample.lost {
            window.lost += 1;
            return;
        }
        window.done_units += u64::from(sample.units);
        let quiet = sample.beside_units <= self.config.units_min;
        self.sizes[size(sample.units)].add(sample.latency.as_secs_f64(), quiet);
    }

    /// Ends the window and sets the limit by it.
    fn close(&mut self, now: Duration, elapsed: Duration) {
        let window = self.window;
        let Reading { gradient, accepted } = self.reading();
        if !window.stale {
            let known = self.sizes.iter().any(|size| size.baseline.is_some());
            let quiet_share = self.quiet_share();
            for size in &mut self.sizes {
                size.learn(!known, quiet_share);
            }
        }
        let before = self.limit();
        // A limit that nobody comes near is not what latency depends on.
        let is_near = f64::from(window.busiest_units) >= self.limit / 2.0;
        if window.pressed || is_near {
            if gradient < GRADIENT_STILL {
                let done_in_time = window.done_units as f64 / elapsed.as_secs_f64() * accepted;
                let lower = (self.limit * gradient).max(done_in_time);
                self.limit = self.limit.min(lower);
            } else if gradient >= 1.0 && is_near && !window.stale {
                self.limit *= GROWTH;
            }
            self.limit = self
                .limit
                .min(f64::from(self.config.units_max))
                .max(f64::from(self.config.units_min));
        }
        if self.limit() != before {
            self.changed_at = now;
        }
        self.open(now);
    }

    /// How much of what a nearly idle service was measured to take raises a baseline.
    fn quiet_share(&self) -> f64 {
        match (self.window.pressed, self.limit() > self.config.units_min) {
            (false, _) => BASELINE_QUIET,
            (true, false) => BASELINE_LEAST,
            (true, true) => 0.0,
        }
    }

    /// Goes over all sizes of which a baseline is known, by how often they were seen.
    fn reading(&self) -> Reading {
        let floor = self.config.latency_floor_ms as f64 / 1_000.0;
        let (mut gradients, mut accepted, mut samples) = (0.0, 0.0, 0);
        for size in &self.sizes {
            let (Some(baseline), 1..) = (size.baseline, size.all.samples) else {
                continue;
            };
            let latency = (baseline * self.config.latency_tolerance).max(floor);
            let gradient =
                (latency / size.all.average().max(f64::EPSILON)).clamp(GRADIENT_MIN, 1.0);
            gradients += gradient * f64::from(size.all.samples);
            accepted += latency * f64::from(size.all.samples);
            samples += size.all.samples;
        }
        let share = |sum: f64, none: f64| match samples {
            0 => none,
            samples => sum / f64::from(samples),
        };
        let gradient = share(gradients, 1.0);
        Reading {
            gradient: if self.window.lost > 0 {
                gradient.min(LOSS_GRADIENT)
            } else {
                gradient
            },
            accepted: share(accepted, 0.0),
        }
    }
}

/// Which size work of so many units is.
fn size(units: u32) -> usize {
    (units.max(1).ilog2() as usize / 3).min(SIZES - 1)
}

#[cfg(test)]
#[path = "concurrency_tests.rs"]
mod tests;
