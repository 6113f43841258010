//! Whether a request is taken on: is the service ready, has the client allowance left, is there room.
//!
//! Nothing waits here. What cannot be taken on is refused at once, with a time to come back, so that overload costs
//! little and queues stay bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_resilience::{RateLimitConfig, RateLimiter};

use crate::auth::ClientKey;
use crate::config::Limits;
use crate::metrics::{FailReason, LimitScope, ProducerMetrics};

/// What a refused client is told to wait when nothing better is known.
const COME_BACK: Duration = Duration::from_secs(1);

/// Why a request was not taken on, for the client and for the ledger.
#[derive(Debug)]
pub struct Refused {
    pub problem: Problem,
    pub reason: FailReason,
}

/// The doorkeeper of all submissions; shared by reference.
pub struct Admission {
    log_ready: AtomicBool,
    limiter: RateLimiter<ClientKey>,
    in_flight: AtomicUsize,
    in_flight_max: usize,
    in_flight_bytes: AtomicUsize,
    in_flight_bytes_max: usize,
    metrics: ProducerMetrics,
}

impl Admission {
    pub fn new(rate_limit: &RateLimitConfig, limits: &Limits, metrics: ProducerMetrics) -> Self {
        Self {
            log_ready: AtomicBool::new(false),
            limiter: RateLimiter::new(rate_limit),
            in_flight: AtomicUsize::new(0),
            in_flight_max: limits.in_flight_events_max,
            in_flight_bytes: AtomicUsize::new(0),
            in_flight_bytes_max: limits.in_flight_bytes_max,
            metrics,
        }
    }

    /// The topics are there: submissions are welcome from now on.
    pub fn open(&self) {
        self.log_ready.store(true, Ordering::Release);
    }

    /// Refuses what comes before the log was found, without reading it.
    pub fn is_open(&self) -> Result<(), Problem> {
        if self.log_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = "the service is starting and has not reached its log yet";
        Err(Problem::new(ErrorCode::NotReady, message).retry_after(COME_BACK))
    }

    /// Refuses a client whose allowance is used up, before its request is read. Nothing is taken from it.
    pub fn has_allowance(&self, key: &ClientKey) -> Result<(), Problem> {
        let Some(wait) = self.limiter.exhausted(key) else {
            return Ok(());
        };
        self.metrics.limited(LimitScope::Client);
        let message = "the allowance is used up; retry later";
        Err(Problem::new(ErrorCode::RateLimited, message).retry_after(wait))
    }

    /// Room for a request of so many bytes, as far as is known. They are held as they arrive, not as they are
    /// announced: a client that announces much and sends little must not keep others out.
    pub fn room(self: &Arc<Self>, expected: usize) -> Result<Room, Problem> {
        let before = self.in_flight_bytes.load(Ordering::Relaxed);
        // Full is full for a request of unknown size, too.
        if before.saturating_add(expected.max(1)) > self.in_flight_bytes_max {
            return Err(self.no_room());
        }
        Ok(Room {
            admission: self.clone(),
            held: AtomicUsize::new(0),
        })
    }

    fn no_room(&self) -> Problem {
        self.metrics.limited(LimitScope::InFlightBytes);
        let message = "too many bytes are on their way already; retry later";
        Problem::new(ErrorCode::Overloaded, message).retry_after(COME_BACK)
    }

    /// Takes on so many events of a client, until the place is dropped.
    pub fn admit(self: &Arc<Self>, key: &ClientKey, events: usize) -> Result<Place, Refused> {
        self.allow(key, events)?;
        self.reserve(events)
    }

    fn allow(&self, key: &ClientKey, events: usize) -> Result<(), Refused> {
        let Some(burst) = self.limiter.burst() else {
            return Ok(());
        };
        let result = self
            .limiter
            .check(key, u32::try_from(events).unwrap_or(u32::MAX));
        self.metrics.limiter_keys(self.limiter.keys());
        let Err(limited) = result else {
            return Ok(());
        };
        self.metrics.limited(LimitScope::Client);
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

    fn reserve(self: &Arc<Self>, events: usize) -> Result<Place, Refused> {
        let before = self.in_flight.fetch_add(events, Ordering::Relaxed);
        let place = Place {
            admission: self.clone(),
            events,
        };
        self.metrics.in_flight().inc_by(events as i64);
        if before + events <= self.in_flight_max {
            return Ok(place);
        }
        self.metrics.limited(LimitScope::InFlight);
        let message = format!("{before} events are on their way already; retry later");
        let problem = Problem::new(ErrorCode::Overloaded, message).retry_after(COME_BACK);
        Err(Refused {
            problem,
            reason: FailReason::Overloaded,
        })
    }
}

/// The memory of one request, from its first byte until its verdicts are written.
#[must_use]
pub struct Room {
    admission: Arc<Admission>,
    held: AtomicUsize,
}

impl Room {
    /// Holds so many bytes more.
    pub fn grow(&self, bytes: usize) -> Result<(), Problem> {
        let admission = &self.admission;
        let before = admission
            .in_flight_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        // Noted in any case, for the drop to give back.
        self.held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > admission.in_flight_bytes_max {
            return Err(admission.no_room());
        }
        Ok(())
    }

    /// Takes a part of what is held out, to be given back on its own.
    pub fn split(&self, bytes: usize) -> Self {
        let taken = bytes.min(self.held());
        self.held.fetch_sub(taken, Ordering::Relaxed);
        Self {
            admission: self.admission.clone(),
            held: AtomicUsize::new(taken),
        }
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.admission
            .in_flight_bytes
            .fetch_sub(*self.held.get_mut(), Ordering::Relaxed);
    }
}

/// Room for the events of one request.
#[must_use]
pub struct Place {
    admission: Arc<Admission>,
    events: usize,
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
mod tests {
    use streamgauge_telemetry::Metrics;

    use super::*;
    use crate::config::MetricsConfig;

    fn admission(per_second: u32, in_flight_max: usize) -> (Arc<Admission>, Metrics) {
        let metrics = Metrics::new("producer");
        let rate_limit = RateLimitConfig {
            per_second,
            ..RateLimitConfig::default()
        };
        let producer = ProducerMetrics::register(&metrics, &MetricsConfig::default());
        let limits = Limits {
            in_flight_events_max: in_flight_max,
            in_flight_bytes_max: 1_000,
            ..Limits::default()
        };
        (
            Arc::new(Admission::new(&rate_limit, &limits, producer)),
            metrics,
        )
    }

    #[test]
    fn bytes_are_held_as_they_come_and_given_back() {
        let (admission, metrics) = admission(0, 10);
        let overloaded = |problem: Problem| {
            assert!(problem.retry_after.is_some());
            problem.code == ErrorCode::Overloaded
        };
        assert!(overloaded(admission.room(1_001).err().unwrap()));
        let first = admission.room(1_000).unwrap();
        let second = admission.room(1_000).unwrap();
        first.grow(600).unwrap();
        assert!(overloaded(second.grow(401).unwrap_err()));
        drop(second);
        first.grow(400).unwrap();
        assert!(overloaded(admission.room(0).err().unwrap()), "full is full");
        let part = first.split(400);
        assert_eq!((first.held(), part.held()), (600, 400));
        drop(part);
        admission.room(0).unwrap().grow(400).unwrap();
        drop(first);
        admission.room(1_000).unwrap().grow(1_000).unwrap();
        assert!(
            metrics
                .encode()
                .contains("rate_limited_total{scope=\"in_flight_bytes\"} 3\n")
        );
    }

    #[test]
    fn who_has_used_its_allowance_up_is_told_before_it_is_read() {
        let (admission, _) = admission(10, 1000);
        let key = ClientKey::Token(0);
        assert!(admission.has_allowance(&key).is_ok());
        drop(admission.admit(&key, 10).unwrap());
        let problem = admission.has_allowance(&key).unwrap_err();
        assert_eq!(problem.code, ErrorCode::RateLimited);
        assert!(problem.retry_after.unwrap() <= Duration::from_millis(100));
        assert!(admission.has_allowance(&ClientKey::Token(1)).is_ok());
    }

    #[test]
    fn it_is_closed_until_the_log_is_there() {
        let (admission, _) = admission(0, 10);
        let problem = admission.is_open().unwrap_err();
        assert_eq!(problem.code, ErrorCode::NotReady);
        assert!(problem.retry_after.is_some());
        admission.open();
        assert!(admission.is_open().is_ok());
    }

    #[test]
    fn room_is_bounded_and_given_back() {
        let (admission, metrics) = admission(0, 10);
        let key = ClientKey::Address(None);
        let first = admission.admit(&key, 6).unwrap();
        let refused = admission.admit(&key, 5).err().unwrap();
        assert_eq!(
            (refused.problem.code, refused.reason),
            (ErrorCode::Overloaded, FailReason::Overloaded)
        );
        assert!(refused.problem.retry_after.is_some());
        let second = admission.admit(&key, 4).unwrap();
        assert!(metrics.encode().contains("\nevents_in_flight 10\n"));
        drop((first, second));
        assert!(admission.admit(&key, 10).is_ok());
        assert!(metrics.encode().contains("\nevents_in_flight 0\n"));
        assert!(
            metrics
                .encode()
                .contains("rate_limited_total{scope=\"in_flight\"} 1\n")
        );
    }

    #[test]
    fn an_allowance_belongs_to_one_client() {
        let (admission, metrics) = admission(10, 1000);
        let (a, b) = (ClientKey::Token(0), ClientKey::Token(1));
        assert!(admission.admit(&a, 10).is_ok());
        let refused = admission.admit(&a, 5).err().unwrap();
        assert_eq!(refused.problem.code, ErrorCode::RateLimited);
        assert!(refused.problem.retry_after.unwrap() <= Duration::from_millis(500));
        assert!(admission.admit(&b, 10).is_ok());
        let never = admission.admit(&b, 11).err().unwrap();
        assert_eq!(
            never.problem.code,
            ErrorCode::TooManyEvents,
            "waiting would not help"
        );
        assert!(metrics.encode().contains("rate_limiter_keys 2\n"));
    }
}
