//! Whether a request is taken on: is the service ready, has the client allowance left, is there room.
//!
//! Nothing waits here for room. What cannot be taken on is refused, with a time to come back, so that overload costs
//! little and queues stay bounded. What can be known by the head of a request is decided before its body is read, and
//! such a refusal is given after a moment: a client that comes back at once is slowed down by it, and holds nothing.

mod counts;
mod fields;
pub mod rates;
mod room;
pub mod settings;
mod shedding;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use streamgauge_lifecycle::{SharedClock, Shutdown};
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_telemetry::Metrics;
use tokio::sync::Semaphore;

use self::counts::{AdmissionCounts, Change, LimitScope, Shed};
pub use self::fields::Fields;
use self::rates::{ClientRates, InForce, RateLimits, Scope};
pub use self::room::Room;
use self::settings::credential_names;
pub use self::shedding::QueueDepth;
use self::shedding::{Ending, Shedding, Ticket};
use crate::auth::Client;
use crate::config::Config;
use crate::metrics::{FailReason, ProducerMetrics};
use crate::publish::{Fate, Unacknowledged};

/// What a refused client is told to wait when nothing better is known.
const COME_BACK: Duration = Duration::from_secs(1);

/// Why a request was not taken on, for the client and for the ledger.
#[derive(Debug)]
pub struct Refused {
    pub problem: Problem,
    pub reason: FailReason,
}

impl Refused {
    fn overloaded(message: impl Into<String>) -> Self {
        Self {
            problem: Problem::new(ErrorCode::Overloaded, message).retry_after(COME_BACK),
            reason: FailReason::Overloaded,
        }
    }
}

/// The doorkeeper of all submissions; shared by reference.
pub struct Admission {
    log_ready: AtomicBool,
    rates: ClientRates,
    evict_interval: Duration,
    refusal_delay: Duration,
    refusals_delayed: Semaphore,
    shedding: Arc<Shedding>,
    in_flight: AtomicUsize,
    in_flight_max: usize,
    in_flight_bytes: AtomicUsize,
    in_flight_bytes_max: usize,
    clock: SharedClock,
    counts: AdmissionCounts,
    metrics: ProducerMetrics,
}

impl Admission {
    pub fn new(
        config: &Config,
        clock: SharedClock,
        registry: &Metrics,
        metrics: ProducerMetrics,
    ) -> Self {
        let counts = AdmissionCounts::register(registry);
        let shedding = Shedding::new(
            &config.admission,
            Duration::from_secs_f64(config.publisher.linger_ms.max(0.0) / 1_000.0),
            config.publisher.queue_messages_max,
            clock.clone(),
            counts.clone(),
        );
        Self {
            log_ready: AtomicBool::new(false),
            rates: ClientRates::new(&config.rate_limit, credential_names(&config.auth)),
            evict_interval: Duration::from_secs(config.rate_limit.evict_interval_s.max(1)),
            refusal_delay: Duration::from_millis(config.admission.refusal_delay_ms),
            refusals_delayed: Semaphore::new(
                config
                    .admission
                    .refusals_delayed_max
                    .min(Semaphore::MAX_PERMITS),
            ),
            shedding: Arc::new(shedding),
            in_flight: AtomicUsize::new(0),
            in_flight_max: config.limits.in_flight_events_max,
            in_flight_bytes: AtomicUsize::new(0),
            in_flight_bytes_max: config.limits.in_flight_bytes_max,
            clock,
            counts,
            metrics,
        }
    }

    /// The topics are there: submissions are welcome from now on.
    pub fn open(&self) {
        self.log_ready.store(true, Ordering::Release);
    }

    /// From now on load is shed by the depth of this queue as well.
    pub fn watch_queue(&self, depth: QueueDepth) {
        self.shedding.watch_queue(depth);
    }

    /// Forgets clients whose allowance is full again, every now and then, until the shutdown.
    pub async fn evict_regularly(&self, stop: Shutdown) {
        loop {
            tokio::select! {
                () = stop.triggered() => return,
                () = tokio::time::sleep(self.evict_interval) => {}
            }
            let evicted = self.rates.evict();
            self.count_keys();
            tracing::debug!(evicted, "forgot clients with full allowances");
        }
    }

    /// Refuses what comes before the log was found, without reading it.
    pub fn is_open(&self) -> Result<(), Problem> {
        if self.log_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = "the service is starting and has not reached its log yet";
        Err(Problem::new(ErrorCode::NotReady, message).retry_after(COME_BACK))
    }

    /// Refuses a client whose allowance is used up, and anybody while there is no room, before the request is read.
    /// Nothing is taken for it. How many events it holds is not known then: the client is told when one would pass, and
    /// when all do once it comes back and is read.
    pub fn may_read(&self, client: &Client) -> Result<(), Problem> {
        if let Some((scope, wait)) = self.rates.exhausted(client) {
            self.counts.limited(LimitScope::Client(scope));
            let message = "the allowance is used up, and the request was not read; one event passes at the time that is told, a batch may be asked to wait again";
            return Err(Problem::new(ErrorCode::RateLimited, message).retry_after(wait));
        }
        self.shedding
            .may_enter(client.canary)
            .map_err(|shed| self.shed(shed).problem)
    }

    /// Waits for the moment that a refusal of [`Admission::may_read`] is kept back.
    pub async fn keep_waiting(&self) {
        if self.refusal_delay.is_zero() {
            return;
        }
        if let Ok(_one) = self.refusals_delayed.try_acquire() {
            tokio::time::sleep(self.refusal_delay).await;
        }
    }

    /// What a client is told of its allowances, in an answer that asks it to come back after so many seconds or not.
    pub fn fields(&self, client: &Client, retry_after_s: Option<u64>) -> Option<Fields> {
        Fields::new(self.rates.allowances(client), retry_after_s)
    }

    /// The allowances that hold now.
    pub fn rate_limits(&self) -> InForce {
        self.rates.in_force()
    }

    /// How many clients are remembered for their allowances.
    pub fn remembered(&self, scope: Scope) -> usize {
        self.rates.keys(scope)
    }

    /// Puts other allowances in force, on behalf of somebody.
    pub fn change_rate_limits(&self, limits: RateLimits, by: &str) -> Result<InForce, Problem> {
        let before = self.rates.in_force().rate_limits;
        let changed = self.rates.change(limits, self.clock.now_us());
        self.count_keys();
        match changed {
            Ok(in_force) => {
                self.counts.changed(Change::Applied);
                let (revision, after) = (in_force.revision, &in_force.rate_limits);
                tracing::info!(by, revision, ?before, ?after, "rate limits changed");
                Ok(in_force)
            }
            Err(message) => {
                Err(self.change_refused(Problem::new(ErrorCode::InvalidValue, message)))
            }
        }
    }

    /// Counts a change that was refused.
    pub fn change_refused(&self, problem: Problem) -> Problem {
        self.counts.changed(Change::Refused);
        tracing::warn!(
            reason = problem.message,
            "a change of rate limits was refused"
        );
        problem
    }

    fn count_keys(&self) {
        for scope in Scope::ALL {
            self.counts.keys(scope, self.rates.keys(scope));
        }
    }

    /// Takes on so many events of a client, which weigh so many bytes, until the place is dropped.
    pub fn admit(
        self: &Arc<Self>,
        client: &Client,
        events: usize,
        bytes: usize,
    ) -> Result<Place, Refused> {
        let cost = u32::try_from(events).unwrap_or(u32::MAX);
        self.allow(client, cost)?;
        self.reserve(client, events, bytes)
            .inspect_err(|_| self.rates.give_back(client, cost))
    }

    fn allow(&self, client: &Client, events: u32) -> Result<(), Refused> {
        let Some(burst) = self.rates.burst(client) else {
            return Ok(());
        };
        let result = self.rates.take(client, events);
        self.count_keys();
        let Err((scope, limited)) = result else {
            return Ok(());
        };
        self.counts.limited(LimitScope::Client(scope));
        let problem = if limited.exceeds_burst {
            let message = format!(
                "the request holds {events} events; the allowance permits {burst} at once; split it"
            );
            Problem::new(ErrorCode::TooManyEvents, message)
        } else {
            Problem::new(ErrorCode::RateLimited, limited.to_string())
                .retry_after(limited.retry_after)
        };
        Err(Refused {
            problem,
            reason: FailReason::RateLimited,
        })
    }

    fn reserve(
        self: &Arc<Self>,
        client: &Client,
        events: usize,
        bytes: usize,
    ) -> Result<Place, Refused> {
        let ticket = self
            .shedding
            .enter(events, bytes, client.canary)
            .map_err(|shed| self.shed(shed))?;
        let before = self.in_flight.fetch_add(events, Ordering::Relaxed);
        let place = Place {
            admission: self.clone(),
            ticket,
            events,
        };
        self.metrics.in_flight().inc_by(events as i64);
        if before + events <= self.in_flight_max {
            return Ok(place);
        }
        self.counts.limited(LimitScope::InFlight);
        self.counts.shed(Shed::InFlightEvents);
        let message = format!("{before} events are on their way already; retry later");
        Err(Refused::overloaded(message))
    }

    /// Counts what is shed, and says so to the client.
    fn shed(&self, shed: Shed) -> Refused {
        self.counts.shed(shed);
        let message = match shed {
            Shed::Queue => "the queue to the log is nearly full; retry later",
            Shed::Limit | Shed::InFlightEvents | Shed::InFlightBytes => {
                "the service has as much to do as it can do in time; retry later"
            }
        };
        Refused::overloaded(message)
    }
}

/// Room for the events of one request.
#[must_use]
pub struct Place {
    admission: Arc<Admission>,
    ticket: Ticket,
    events: usize,
}

impl Place {
    /// Load is shed by how requests end: this one has ended so. What says nothing about room is passed over: a log that
    /// is away, a client in a hurry.
    pub fn report(&self, published: &Result<Vec<Unacknowledged>, Refused>) {
        let Ok(unacknowledged) = published else {
            return;
        };
        let mut reasons = unacknowledged.iter().filter_map(|event| match event.fate {
            Fate::Retry(reason) => Some(reason),
            Fate::Rejected(_) => None,
        });
        let (mut lost, mut untold) = (false, false);
        for reason in &mut reasons {
            match reason {
                FailReason::QueueFull | FailReason::TimedOut => lost = true,
                _ => untold = true,
            }
        }
        match (lost, untold) {
            (true, _) => self.ticket.report(Ending::Lost),
            (false, false) => self.ticket.report(Ending::Acknowledged),
            (false, true) => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission
            .in_flight
            .fetch_sub(self.events, Ordering::Relaxed);
        self.admission
            .metrics
            .in_flight()
            .dec_by(self.events as i64);
    }
}

#[cfg(test)]
mod tests;
