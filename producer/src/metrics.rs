//! Everything the producer counts.
//!
//! The producer's ledger is `events_received == events_accepted + events_rejected + events_failed`. All four move
//! together, when the fate of a request's events is known, and [`Receipt`] sees to it that every event read from a
//! request gets exactly one fate, even when its client goes away first.

use std::sync::Arc;

use streamgauge_kafka::{Stats, StatsSink};
use streamgauge_proto::ErrorCode;
use streamgauge_resilience::{BreakerObserver, BreakerState};
use streamgauge_telemetry::http_metrics::HttpMetrics;
use streamgauge_telemetry::metric::{
    Core, Counter, EncodeLabelSet, Family, FloatGauge, Gauge, LatencyHistogram, OTHER,
};
use streamgauge_telemetry::rpc::RpcMetrics;
use streamgauge_telemetry::{Metrics, TraceContext};

use crate::config::MetricsConfig;
use crate::event::Batch;
use crate::event::encode::Entry;
use crate::ledger::{Ended, Ledger};
use crate::publish::{Fate, Unacknowledged};

/// The breaker on publishing, by its name in metrics and logs.
pub const PUBLISH_BREAKER: &str = "publish";

const ACCEPTED: &str = "accepted";
const REJECTED: &str = "rejected";
const FAILED: &str = "failed";

const DECODE: &str = "decode";
const PUBLISH: &str = "publish";
const REQUEST: &str = "request";

/// The codes that a single event can be refused with.
const REJECTIONS: [ErrorCode; 10] = [
    ErrorCode::MalformedBody,
    ErrorCode::WrongType,
    ErrorCode::MissingField,
    ErrorCode::FieldTooLong,
    ErrorCode::PlaceholderId,
    ErrorCode::InvalidValue,
    ErrorCode::InvalidTimestamp,
    ErrorCode::TimestampInFuture,
    ErrorCode::TooDeep,
    ErrorCode::EventTooLarge,
];

/// Why a valid event was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailReason {
    /// The client's allowance was used up.
    RateLimited,
    /// Too many events were in flight.
    Overloaded,
    /// The circuit breaker was open.
    BreakerOpen,
    /// The local queue to Kafka was full until the deadline.
    QueueFull,
    /// Kafka did not acknowledge in time.
    TimedOut,
    /// Kafka was away.
    Unavailable,
    /// Kafka refused the record for a reason of its own.
    Refused,
    /// The request's deadline came first.
    Deadline,
    /// The client went away first.
    Abandoned,
    /// Kafka was away, and the spool full.
    SpoolFull,
    /// Kafka was away, and the spool could not be written.
    SpoolFailed,
}

impl FailReason {
    pub const ALL: [Self; 11] = [
        Self::RateLimited,
        Self::Overloaded,
        Self::BreakerOpen,
        Self::QueueFull,
        Self::TimedOut,
        Self::Unavailable,
        Self::Refused,
        Self::Deadline,
        Self::Abandoned,
        Self::SpoolFull,
        Self::SpoolFailed,
    ];

    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::BreakerOpen => "breaker_open",
            Self::QueueFull => "queue_full",
            Self::TimedOut => "timed_out",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Deadline => "deadline",
            Self::Abandoned => "abandoned",
            Self::SpoolFull => "spool_full",
            Self::SpoolFailed => "spool_failed",
        }
    }

    /// The code that the client is told.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::RateLimited => ErrorCode::RateLimited,
            Self::Overloaded | Self::QueueFull => ErrorCode::Overloaded,
            Self::Deadline => ErrorCode::DeadlineExceeded,
            Self::BreakerOpen
            | Self::TimedOut
            | Self::Unavailable
            | Self::Refused
            | Self::Abandoned
            | Self::SpoolFull
            | Self::SpoolFailed => ErrorCode::LogUnavailable,
        }
    }

    /// The sentence that the client is told.
    pub const fn message(self) -> &'static str {
        match self {
            Self::RateLimited => "the allowance is used up; retry later with the same event id",
            Self::Overloaded | Self::QueueFull => {
                "too many events are on their way; retry with the same event id"
            }
            Self::Deadline => {
                "the deadline came before the acknowledgement; retry with the same event id"
            }
            Self::BreakerOpen
            | Self::TimedOut
            | Self::Unavailable
            | Self::Refused
            | Self::Abandoned => {
                "the log did not acknowledge the event; retry with the same event id"
            }
            Self::SpoolFull => {
                "the log is away and the spool is full; retry with the same event id"
            }
            Self::SpoolFailed => {
                "the log is away and the spool cannot be written; retry with the same event id"
            }
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BreakerLabels {
    breaker: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TransitionLabels {
    breaker: &'static str,
    to: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BrokerLabels {
    broker: String,
}

/// Clones share the metrics.
#[derive(Clone, Debug)]
pub struct ProducerMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    core: Core,
    http: HttpMetrics,
    rpc: RpcMetrics,
    ledger: Ledger,
    received: Counter,
    accepted: Counter,
    rejected: Family<ReasonLabels, Counter>,
    failed: Family<ReasonLabels, Counter>,
    unknown_fields: Counter,
    publish_retries: Counter,
    in_flight: Gauge,
    breaker_state: Family<BreakerLabels, Gauge>,
    breaker_transitions: Family<TransitionLabels, Counter>,
    queue_messages: Gauge,
    queue_limit: Gauge,
    broker_rtt: Family<BrokerLabels, FloatGauge>,
}

const SUBMIT_CODES: [u16; 12] = [200, 400, 401, 403, 405, 408, 413, 415, 429, 499, 500, 503];
const ADMIN_CODES: [u16; 9] = [200, 400, 401, 403, 405, 408, 413, 499, 500];
const METHODS: [&str; 8] = [
    "streamgauge.v1.ProducerControl/GetRateLimits",
    "streamgauge.v1.ProducerControl/SetRateLimits",
    "streamgauge.v1.ProducerControl/GetSampling",
    "streamgauge.v1.ProducerControl/SetSampling",
    "streamgauge.v1.Submission/Submit",
    "streamgauge.v1.Submission/SubmitBatch",
    "streamgauge.v1.Submission/SubmitStream",
    "streamgauge.v1.ProducerLedger/Read",
];

impl ProducerMetrics {
    /// Registers everything, with every label set that is known beforehand at zero.
    pub fn register(metrics: &Metrics, config: &MetricsConfig) -> Self {
        let errors = FailReason::ALL.map(|reason| ("publish", reason.as_str()));
        let core = Core::register(
            metrics,
            &[DECODE, PUBLISH, REQUEST],
            &[ACCEPTED, REJECTED, FAILED],
            &errors,
        );
        core.event_types(&config.event_types, config.event_types_max);
        let routes = [
            ("POST", "/v1/events", &SUBMIT_CODES[..]),
            ("POST", "/ingest", &SUBMIT_CODES[..]),
            ("POST", "/activity", &SUBMIT_CODES[..]),
            ("GET", "/v1/ledger", &SUBMIT_CODES[..1]),
            ("GET", "/v1/admin/rate-limits", &ADMIN_CODES[..]),
            ("PUT", "/v1/admin/rate-limits", &ADMIN_CODES[..]),
            ("GET", "/v1/admin/tracing", &ADMIN_CODES[..]),
            ("PUT", "/v1/admin/tracing", &ADMIN_CODES[..]),
        ];
        let inner = Inner {
            core,
            http: HttpMetrics::register(metrics, &routes),
            rpc: RpcMetrics::register(metrics, &METHODS),
            ledger: Ledger::default(),
            received: Counter::default(),
            accepted: Counter::default(),
            rejected: Family::default(),
            failed: Family::default(),
            unknown_fields: Counter::default(),
            publish_retries: Counter::default(),
            in_flight: Gauge::default(),
            breaker_state: Family::default(),
            breaker_transitions: Family::default(),
            queue_messages: Gauge::default(),
            queue_limit: Gauge::default(),
            broker_rtt: Family::default(),
        };
        inner.begin_at_zero();
        inner.register_events(metrics);
        inner.register_publishing(metrics);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What became of every event.
    pub fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    pub fn http(&self) -> &HttpMetrics {
        &self.inner.http
    }

    pub fn rpc(&self) -> &RpcMetrics {
        &self.inner.rpc
    }

    pub fn decoded(&self, seconds: f64, trace: Option<TraceContext>, unknown_fields: u64) {
        self.inner.core.stage(DECODE).observe(seconds, trace);
        if unknown_fields > 0 {
            self.inner.unknown_fields.inc_by(unknown_fields);
        }
    }

    pub fn published(&self, seconds: f64, trace: Option<TraceContext>) {
        self.inner.core.stage(PUBLISH).observe(seconds, trace);
    }

    pub fn request(&self) -> &LatencyHistogram {
        self.inner.core.stage(REQUEST)
    }

    pub fn publish_retry(&self) {
        self.inner.publish_retries.inc();
    }

    pub fn in_flight(&self) -> &Gauge {
        &self.inner.in_flight
    }

    /// What librdkafka's statistics are shown by.
    pub fn stats_sink(&self, queue_messages_max: u32) -> StatsSink {
        self.inner.queue_limit.set(i64::from(queue_messages_max));
        let metrics = self.clone();
        Arc::new(move |stats: &Stats| {
            metrics
                .inner
                .queue_messages
                .set(stats.queue_messages as i64);
            for broker in &stats.brokers {
                let labels = BrokerLabels {
                    broker: broker.name.clone(),
                };
                metrics
                    .inner
                    .broker_rtt
                    .get_or_create(&labels)
                    .set(broker.rtt_seconds);
            }
        })
    }

    /// Opens the account of a request's events.
    pub fn receipt(&self, batch: &Batch) -> Receipt {
        let rejected: Vec<ErrorCode> = batch.rejections().map(|rejection| rejection.code).collect();
        let events = (batch.ready() + rejected.len()) as u64;
        self.inner.ledger.opened(events);
        Receipt {
            events,
            inner: self.inner.clone(),
            rejected,
            ready: batch.ready() as u64,
            settled: false,
        }
    }
}

impl BreakerObserver for ProducerMetrics {
    fn transition(&self, name: &'static str, to: BreakerState) {
        tracing::warn!(breaker = name, to = to.as_str(), "circuit breaker");
        self.inner
            .breaker_state
            .get_or_create(&BreakerLabels { breaker: name })
            .set(to.gauge());
        let labels = TransitionLabels {
            breaker: name,
            to: to.as_str(),
        };
        self.inner.breaker_transitions.get_or_create(&labels).inc();
    }
}

impl Inner {
    fn begin_at_zero(&self) {
        for code in REJECTIONS {
            let _ = self.rejected.get_or_create(&ReasonLabels {
                reason: code.as_str(),
            });
        }
        for reason in FailReason::ALL {
            let _ = self.failed.get_or_create(&ReasonLabels {
                reason: reason.as_str(),
            });
        }
        let _ = self.breaker_state.get_or_create(&BreakerLabels {
            breaker: PUBLISH_BREAKER,
        });
        for to in BreakerState::ALL {
            let labels = TransitionLabels {
                breaker: PUBLISH_BREAKER,
                to: to.as_str(),
            };
            let _ = self.breaker_transitions.get_or_create(&labels);
        }
    }

    fn register_events(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            registry.register(
                "events_received",
                "Events read from requests",
                self.received.clone(),
            );
            registry.register(
                "events_accepted",
                "Events that the log has acknowledged, or the spool has taken",
                self.accepted.clone(),
            );
            registry.register(
                "events_rejected",
                "Events that broke a rule, by the rule",
                self.rejected.clone(),
            );
            registry.register(
                "events_failed",
                "Valid events that were not acknowledged",
                self.failed.clone(),
            );
            registry.register(
                "events_unknown_fields",
                "Fields of events that are not part of the schema and were ignored",
                self.unknown_fields.clone(),
            );
            registry.register(
                "events_in_flight",
                "Events that are being published",
                self.in_flight.clone(),
            );
            registry.register(
                "publish_retries",
                "Times that a request's unacknowledged events were published again",
                self.publish_retries.clone(),
            );
        });
    }

    fn register_publishing(&self, metrics: &Metrics) {
        metrics.with(|registry| {
            registry.register(
                "circuit_breaker_state",
                "0 closed, 1 half-open, 2 open",
                self.breaker_state.clone(),
            );
            registry.register(
                "circuit_breaker_transitions",
                "Changes of a circuit breaker's state",
                self.breaker_transitions.clone(),
            );
            registry.register(
                "kafka_producer_queue_messages",
                "Records in the local queue to Kafka",
                self.queue_messages.clone(),
            );
            registry.register(
                "kafka_producer_queue_messages_limit",
                "Records that fit into the local queue to Kafka",
                self.queue_limit.clone(),
            );
            registry.register(
                "kafka_broker_rtt_seconds",
                "Median round trip to a broker over the last interval of statistics",
                self.broker_rtt.clone(),
            );
        });
    }

    fn reject(&self, event_type: &str, code: ErrorCode) {
        self.rejected
            .get_or_create(&ReasonLabels {
                reason: code.as_str(),
            })
            .inc();
        self.core.events(event_type, REJECTED, 1);
    }

    fn fail(&self, event_type: &str, reason: FailReason, events: u64) {
        if events > 0 {
            self.failed
                .get_or_create(&ReasonLabels {
                    reason: reason.as_str(),
                })
                .inc_by(events);
            self.core.events(event_type, FAILED, events);
        }
    }
}

/// The events of one request until their fate is known. When it is dropped before that, the client went away.
#[must_use]
#[derive(Debug)]
pub struct Receipt {
    inner: Arc<Inner>,
    /// All of them, those that were never valid too.
    events: u64,
    rejected: Vec<ErrorCode>,
    ready: u64,
    settled: bool,
}

impl Receipt {
    /// Every valid event was acknowledged, except these.
    pub fn settle(mut self, batch: &Batch, unacknowledged: &[Unacknowledged]) {
        self.open_account();
        self.close_account(unacknowledged);
        let inner = &*self.inner;
        inner
            .accepted
            .inc_by(self.ready - unacknowledged.len() as u64);
        if unacknowledged.is_empty() {
            for (kind, events) in batch.kinds() {
                inner.core.events(kind.unwrap_or(OTHER), ACCEPTED, events);
            }
            return;
        }
        let mut missing = unacknowledged.iter().peekable();
        for (index, entry) in batch.entries().iter().enumerate() {
            let Entry::Ready(encoded) = entry else {
                continue;
            };
            let kind = batch.kind(encoded).unwrap_or(OTHER);
            match missing.next_if(|missing| missing.index == index) {
                None => inner.core.events(kind, ACCEPTED, 1),
                Some(Unacknowledged {
                    fate: Fate::Rejected(code),
                    ..
                }) => inner.reject(kind, *code),
                Some(Unacknowledged {
                    fate: Fate::Retry(reason),
                    ..
                }) => inner.fail(kind, *reason, 1),
            }
        }
    }

    /// No valid event was published, all for the same reason.
    pub fn fail(mut self, batch: &Batch, reason: FailReason) {
        self.open_account();
        self.all_failed();
        for (kind, events) in batch.kinds() {
            self.inner.fail(kind.unwrap_or(OTHER), reason, events);
        }
    }

    /// Enters how the events ended in the ledger.
    fn close_account(&self, unacknowledged: &[Unacknowledged]) {
        let refused = |one: &&Unacknowledged| matches!(one.fate, Fate::Rejected(_));
        let refused = unacknowledged.iter().filter(refused).count() as u64;
        let unacknowledged = unacknowledged.len() as u64;
        let ended = Ended {
            accepted: self.ready - unacknowledged,
            rejected: self.events - self.ready + refused,
            failed: unacknowledged - refused,
        };
        self.inner.ledger.closed(self.events, ended);
    }

    /// Enters in the ledger that no valid event was published.
    fn all_failed(&self) {
        let ended = Ended {
            accepted: 0,
            rejected: self.events - self.ready,
            failed: self.ready,
        };
        self.inner.ledger.closed(self.events, ended);
    }

    /// Counts the events as received, and those that were never valid.
    fn open_account(&mut self) {
        self.settled = true;
        self.inner
            .received
            .inc_by(self.ready + self.rejected.len() as u64);
        for code in std::mem::take(&mut self.rejected) {
            self.inner.reject(OTHER, code);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.open_account();
            self.all_failed();
            self.inner.fail(OTHER, FailReason::Abandoned, self.ready);
        }
    }
}
