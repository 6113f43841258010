//! What is counted of who is let in and who is not.

use streamgauge_telemetry::Metrics;
use streamgauge_telemetry::metric::{Counter, EncodeLabelSet, Family, Gauge};

use super::rates::Scope;

/// What was refused for want of an allowance: one client's, or everybody's.
#[derive(Clone, Copy, Debug)]
pub enum LimitScope {
    Client(Scope),
    InFlight,
    InFlightBytes,
}

impl LimitScope {
    const ALL: [Self; 4] = [
        Self::Client(Scope::Credential),
        Self::Client(Scope::Address),
        Self::InFlight,
        Self::InFlightBytes,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Client(scope) => scope.as_str(),
            Self::InFlight => "in_flight",
            Self::InFlightBytes => "in_flight_bytes",
        }
    }
}

/// Why a request was shed, whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// As much was in flight as the adaptive limit allows.
    Limit,
    /// The local queue to Kafka was too full.
    Queue,
    /// `limits.in_flight_events_max`.
    InFlightEvents,
    /// `limits.in_flight_bytes_max`.
    InFlightBytes,
}

impl Shed {
    const ALL: [Self; 4] = [
        Self::Limit,
        Self::Queue,
        Self::InFlightEvents,
        Self::InFlightBytes,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Queue => "queue",
            Self::InFlightEvents => "in_flight_events",
            Self::InFlightBytes => "in_flight_bytes",
        }
    }
}

/// How a change of allowances ended.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Applied,
    Refused,
}

impl Change {
    const ALL: [Self; 2] = [Self::Applied, Self::Refused];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ScopeLabels {
    scope: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Clones share the metrics.
#[derive(Clone, Debug, Default)]
pub struct AdmissionCounts {
    rate_limited: Family<ScopeLabels, Counter>,
    keys: Family<ScopeLabels, Gauge>,
    changes: Family<OutcomeLabels, Counter>,
    rejected: Family<ReasonLabels, Counter>,
    limit: Gauge,
    in_flight: Gauge,
}

impl AdmissionCounts {
    /// Registers everything, with every label set at zero.
    pub fn register(metrics: &Metrics) -> Self {
        let counts = Self::default();
        for scope in LimitScope::ALL {
            let scope = scope.as_str();
            let _ = counts.rate_limited.get_or_create(&ScopeLabels { scope });
        }
        for scope in Scope::ALL {
            counts.keys(scope, 0);
        }
        for reason in Shed::ALL {
            let reason = reason.as_str();
            let _ = counts.rejected.get_or_create(&ReasonLabels { reason });
        }
        for outcome in Change::ALL {
            let outcome = outcome.as_str();
            let _ = counts.changes.get_or_create(&OutcomeLabels { outcome });
        }
        metrics.with(|registry| {
            registry.register(
                "rate_limited",
                "Requests refused for want of an allowance, by whose",
                counts.rate_limited.clone(),
            );
            registry.register(
                "rate_limiter_keys",
                "Clients that hold an allowance of their own, by what they are told apart by",
                counts.keys.clone(),
            );
            registry.register(
                "rate_limit_changes",
                "Changes of allowances asked for over the admin API",
                counts.changes.clone(),
            );
            registry.register(
                "admission_rejected",
                "Requests shed because the service had enough to do, by what told so",
                counts.rejected.clone(),
            );
            registry.register(
                "admission_limit",
                "Units of work that may be in flight (a request and each of its events)",
                counts.limit.clone(),
            );
            registry.register(
                "admission_in_flight",
                "Units of work in flight",
                counts.in_flight.clone(),
            );
        });
        counts
    }

    pub fn limited(&self, scope: LimitScope) {
        let scope = scope.as_str();
        self.rate_limited
            .get_or_create(&ScopeLabels { scope })
            .inc();
    }

    pub fn keys(&self, scope: Scope, keys: usize) {
        let scope = scope.as_str();
        self.keys
            .get_or_create(&ScopeLabels { scope })
            .set(keys as i64);
    }

    pub fn changed(&self, change: Change) {
        let outcome = change.as_str();
        self.changes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    pub fn shed(&self, reason: Shed) {
        let reason = reason.as_str();
        self.rejected.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub fn limit(&self, units: u32) {
        self.limit.set(units.into());
    }

    pub fn in_flight(&self) -> &Gauge {
        &self.in_flight
    }
}
