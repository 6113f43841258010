//! Circuit breakers: after enough failures calls to a dependency are refused at once for a while, then a single probe
//! finds out whether it has recovered. A breaker must never stay half-open: a probe that is dropped or forgotten gives
//! its place back. Nor must it listen to calls of another time: what was let in before it opened, or as a probe that has
//! been given up since, says nothing about how the dependency is now.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use failsafe::{FailurePolicy, Instrument, StateMachine, failure_policy};
use parking_lot::Mutex;
use rand::Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// When a breaker opens, and for how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Failures in a row that open it.
    pub consecutive_failures: u32,
    /// The share of failed calls over the window (0 to 1) that opens it as well; none looks at failures in a row only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<f64>,
    /// The window of the failure rate.
    pub failure_rate_window_s: u64,
    /// Calls in the window below which the failure rate says nothing.
    pub failure_rate_min_calls: u32,
    /// How long it stays open the first time; twice as long after each failed probe.
    pub open_min_ms: u64,
    /// The longest it stays open.
    pub open_max_ms: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig {
            consecutive_failures: 5,
            failure_rate: None,
            failure_rate_window_s: 30,
            failure_rate_min_calls: 20,
            open_min_ms: 500,
            open_max_ms: 30_000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

impl BreakerState {
    pub const ALL: [BreakerState; 3] = [
        BreakerState::Closed,
        BreakerState::HalfOpen,
        BreakerState::Open,
    ];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Open => "open",
        }
    }

    /// The value of the `circuit_breaker_state` gauge: 0 closed, 1 half-open, 2 open.
    pub fn gauge(self) -> i64 {
        match self {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        }
    }
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Is told of each change of state, in order. It must not call the breaker.
pub trait BreakerObserver: Send + Sync + 'static {
    fn transition(&self, name: &'static str, to: BreakerState);
}

/// The breaker refuses calls for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the circuit breaker is open; retry in {} ms", retry_after.as_millis())]
pub struct Open {
    pub retry_after: Duration,
}

/// What became of a call through a breaker.
#[derive(Debug, Error)]
pub enum BreakerError<E> {
    #[error(transparent)]
    Open(Open),
    /// The call was made and failed.
    #[error(transparent)]
    Inner(E),
}

/// A breaker's share of the failures' bookkeeping: the policies of failsafe, and the last delay they chose, which
/// failsafe itself does not tell.
struct Policy {
    policy: Box<dyn FailurePolicy + Send>,
    delay: Arc<Mutex<Duration>>,
}

impl Policy {
    fn new(config: &BreakerConfig, delay: Arc<Mutex<Duration>>) -> Self {
        let waits = OpenTimes::new(config);
        let in_a_row =
            failure_policy::consecutive_failures(config.consecutive_failures.max(1), waits.clone());
        let policy: Box<dyn FailurePolicy + Send> = match config.failure_rate {
            None => Box::new(in_a_row),
            Some(_) => Box::new(in_a_row.or_else(FailureRate::new(config, waits))),
        };
        Policy { policy, delay }
    }
}

impl FailurePolicy for Policy {
    fn record_success(&mut self) {
        self.policy.record_success();
    }

    fn mark_dead_on_failure(&mut self) -> Option<Duration> {
        let delay = self.policy.mark_dead_on_failure()?;
        *self.delay.lock() = delay;
        Some(delay)
    }

    fn revived(&mut self) {
        self.policy.revived();
    }
}

/// The slots that the window of a failure rate is made of; it moves by one at a time.
const SLOTS: usize = 10;

/// Opens the breaker when too large a share of the calls in a sliding window failed. (The policy of failsafe for this
/// is a moving average that takes no notice of a call in the same millisecond as the one before.)
struct FailureRate {
    rate: f64,
    min_calls: u64,
    slot: Duration,
    since: Instant,
    /// The number of the newest slot, counted from the start.
    newest: u64,
    /// Successes and failures.
    slots: [(u64, u64); SLOTS],
    waits: OpenTimes,
    fresh_waits: OpenTimes,
}

impl FailureRate {
    fn new(config: &BreakerConfig, waits: OpenTimes) -> Self {
        let rate = config.failure_rate.filter(|rate| !rate.is_nan());
        FailureRate {
            rate: rate.unwrap_or(1.0).clamp(0.0, 1.0),
            min_calls: u64::from(config.failure_rate_min_calls.max(1)),
            slot: Duration::from_secs(config.failure_rate_window_s.max(1)) / SLOTS as u32,
            since: Instant::now(),
            newest: 0,
            slots: [(0, 0); SLOTS],
            fresh_waits: waits.clone(),
            waits,
        }
    }

    /// The slot of this moment; those that have left the window are cleared on the way.
    fn slot(&mut self) -> &mut (u64, u64) {
        let now = (self.since.elapsed().as_nanos() / self.slot.as_nanos()) as u64;
        let steps = now.saturating_sub(self.newest).min(SLOTS as u64);
        self.newest = self.newest.max(now);
        for step in 0..steps {
            self.slots[((self.newest - step) % SLOTS as u64) as usize] = (0, 0);
        }
        &mut self.slots[(self.newest % SLOTS as u64) as usize]
    }
}

impl FailurePolicy for FailureRate {
    fn record_success(&mut self) {
        self.slot().0 += 1;
    }

    fn mark_dead_on_failure(&mut self) -> Option<Duration> {
        self.slot().1 += 1;
        let failed: u64 = self.slots.iter().map(|(_, failed)| failed).sum();
        let calls: u64 = self.slots.iter().map(|(ok, failed)| ok + failed).sum();
        let too_many = calls >= self.min_calls && failed as f64 >= self.rate * calls as f64;
        too_many.then(|| self.waits.next()).flatten()
    }

    fn revived(&mut self) {
        self.slots = [(0, 0); SLOTS];
        self.waits = self.fresh_waits.clone();
    }
}

/// How long to stay open: doubling, with the upper half drawn at random so that instances do not probe in step.
#[derive(Clone, Debug)]
struct OpenTimes {
    next_ms: u64,
    max_ms: u64,
}

impl OpenTimes {
    fn new(config: &BreakerConfig) -> Self {
        let max_ms = config.open_max_ms.max(config.open_min_ms).max(1);
        OpenTimes {
            next_ms: config.open_min_ms.clamp(1, max_ms),
            max_ms,
        }
    }
}

impl Iterator for OpenTimes {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let bound = self.next_ms;
        self.next_ms = bound.saturating_mul(2).min(self.max_ms);
        let ms = rand::rng().random_range(bound - bound / 2..=bound);
        Some(Duration::from_millis(ms))
    }
}

/// Receives the transitions of failsafe's state machine. They happen under the breaker's lock only.
struct Relay {
    name: &'static str,
    state: Arc<Mutex<BreakerState>>,
    observer: Arc<dyn BreakerObserver>,
}

impl Relay {
    fn to(&self, state: BreakerState) {
        // A new breaker is told to be closed, which it is.
        if std::mem::replace(&mut *self.state.lock(), state) != state {
            self.observer.transition(self.name, state);
        }
    }
}

impl Instrument for Relay {
    fn on_call_rejected(&self) {}

    fn on_open(&self) {
        self.to(BreakerState::Open);
    }

    fn on_half_open(&self) {
        self.to(BreakerState::HalfOpen);
    }

    fn on_closed(&self) {
        self.to(BreakerState::Closed);
    }
}

struct Gate {
    machine: StateMachine<Policy, Relay>,
    /// Counts changes of state and probes. A report counts only in the era in which its call was let in.
    era: u64,
    /// When an open breaker lets a probe through.
    open_until: Instant,
    /// Since when a probe is under way, while half-open.
    probing_since: Option<Instant>,
}

struct Inner {
    gate: Mutex<Gate>,
    state: Arc<Mutex<BreakerState>>,
    delay: Arc<Mutex<Duration>>,
    /// After this long a probe that was never reported counts as lost, and another may go.
    probe_lease: Duration,
}

/// A circuit breaker; clones share its state.
///
/// What `try_acquire` has let through is reported by its permit; `call` does so by itself.
#[derive(Clone)]
pub struct Breaker {
    name: &'static str,
    inner: Arc<Inner>,
}

impl Breaker {
    pub fn new(
        name: &'static str,
        config: &BreakerConfig,
        observer: Arc<dyn BreakerObserver>,
    ) -> Self {
        let state = Arc::new(Mutex::new(BreakerState::Closed));
        let delay = Arc::new(Mutex::new(Duration::ZERO));
        let machine = StateMachine::new(
            Policy::new(config, Arc::clone(&delay)),
            Relay {
                name,
                state: Arc::clone(&state),
                observer,
            },
        );
        Breaker {
            name,
            inner: Arc::new(Inner {
                gate: Mutex::new(Gate {
                    machine,
                    era: 0,
                    open_until: Instant::now(),
                    probing_since: None,
                }),
                state,
                delay,
                probe_lease: Duration::from_millis(config.open_max_ms.max(config.open_min_ms)),
            }),
        }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn state(&self) -> BreakerState {
        *self.inner.state.lock()
    }

    /// Asks for leave to call. An open breaker refuses until its time is over; a half-open one lets one probe through
    /// at a time.
    pub fn try_acquire(&self) -> Result<Permit<'_>, Open> {
        let mut gate = self.inner.gate.lock();
        let now = Instant::now();
        if self.state() == BreakerState::Closed {
            return Ok(self.permit(&gate, false));
        }
        if let Some(since) = gate.probing_since {
            let lease_left = self.inner.probe_lease.saturating_sub(now - since);
            if !lease_left.is_zero() {
                return Err(Open {
                    retry_after: lease_left.min(PROBE_RETRY),
                });
            }
        }
        if !gate.machine.is_call_permitted() {
            let left = gate.open_until.saturating_duration_since(now);
            return Err(Open {
                retry_after: left.max(Duration::from_millis(1)),
            });
        }
        gate.probing_since = Some(now);
        // From now on a probe before this one, whose lease is over, is not listened to.
        gate.era += 1;
        Ok(self.permit(&gate, true))
    }

    fn permit(&self, gate: &Gate, probe: bool) -> Permit<'_> {
        Permit {
            breaker: self,
            era: gate.era,
            probe,
            reported: false,
        }
    }

    fn report(&self, era: u64, outcome: Outcome) {
        let mut gate = self.inner.gate.lock();
        if gate.era != era {
            return;
        }
        let before = self.state();
        match outcome {
            Outcome::Success => gate.machine.on_success(),
            Outcome::Failure => gate.machine.on_error(),
            Outcome::Neutral if before == BreakerState::HalfOpen => gate.machine.on_success(),
            Outcome::Neutral | Outcome::Abandoned => {}
        }
        // Of this era there is no other probe than the one that reports.
        gate.probing_since = None;
        let after = self.state();
        if after != before {
            gate.era += 1;
        }
        if after == BreakerState::Open {
            gate.open_until = Instant::now() + *self.inner.delay.lock();
        }
    }

    /// Makes the call if the breaker allows it, and reports how it went. Errors that `is_failure` denies (say, the
    /// caller's own mistakes) are neutral. A call that is dropped before its end is abandoned.
    pub async fn call<F, T, E>(
        &self,
        is_failure: impl Fn(&E) -> bool,
        fut: F,
    ) -> Result<T, BreakerError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let permit = self.try_acquire().map_err(BreakerError::Open)?;
        let result = fut.await;
        match &result {
            Ok(_) => permit.success(),
            Err(error) if is_failure(error) => permit.failure(),
            Err(_) => permit.neutral(),
        }
        result.map_err(BreakerError::Inner)
    }
}

/// What a caller is told to wait while another's probe is under way.
const PROBE_RETRY: Duration = Duration::from_millis(100);

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure,
    Neutral,
    Abandoned,
}

/// A call that the breaker has let through, to be reported by one of its methods. Dropped, the call is abandoned: that
/// counts for nothing, and a probe's place is free again. What is reported after the breaker has changed its state, or
/// after a probe's place was given to another, changes nothing.
#[must_use = "a call that is not reported counts as abandoned"]
#[derive(Debug)]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    era: u64,
    probe: bool,
    reported: bool,
}

impl Permit<'_> {
    /// Whether the call is to find out how the dependency is.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The call went well.
    pub fn success(self) {
        self.report(Outcome::Success);
    }

    /// The call failed in a way that says something about the dependency's health.
    pub fn failure(self) {
        self.report(Outcome::Failure);
    }

    /// The dependency answered, with an error that is about what was asked of it. Among other calls that counts for
    /// nothing: failures before and after it are in a row, and it has no part in the rate. A probe asks only whether
    /// there is an answer, so that it closes the breaker: were it to try again, one bad request that comes back and
    /// back would hold everybody else up before a dependency that is well.
    pub fn neutral(self) {
        self.report(Outcome::Neutral);
    }

    fn report(mut self, outcome: Outcome) {
        self.reported = true;
        self.breaker.report(self.era, outcome);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.breaker.report(self.era, Outcome::Abandoned);
        }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("name", &self.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
