//! What the canary tells.

use streamgauge_telemetry::{
    Metrics, TraceContext,
    metric::{Counter, EncodeLabelSet, Family, LatencyHistogram},
};

use crate::Door;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorLabel {
    door: &'static str,
}

impl From<Door> for DoorLabel {
    fn from(door: Door) -> Self {
        Self {
            door: door.as_str(),
        }
    }
}

/// The canary's metrics; clones share them.
#[derive(Clone, Debug, Default)]
pub struct CanaryMetrics {
    sent: Family<DoorLabel, Counter>,
    received: Family<DoorLabel, Counter>,
    lost: Family<DoorLabel, Counter>,
    round_trip: Family<DoorLabel, LatencyHistogram>,
}

impl CanaryMetrics {
    /// Registers everything at zero, for both doors.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        for door in Door::ALL {
            for family in [&this.sent, &this.received, &this.lost] {
                let _ = family.get_or_create_owned(&door.into());
            }
            let _ = this.round_trip.get_or_create_owned(&door.into());
        }
        metrics.with(|registry| {
            registry.register(
                "canary_events_sent",
                "Events that the canary has sent, by the door they went in",
                this.sent.clone(),
            );
            registry.register(
                "canary_events_received",
                "Events of the canary that a query has shown in time",
                this.received.clone(),
            );
            registry.register(
                "canary_events_lost",
                "Events of the canary that were not accepted, or that no query has shown in time",
                this.lost.clone(),
            );
            registry.register(
                "canary_roundtrip_seconds",
                "From submission until a query has shown the event",
                this.round_trip.clone(),
            );
        });
        this
    }

    pub(crate) fn sent(&self, door: Door) {
        self.sent.get_or_create_owned(&door.into()).inc();
    }

    pub(crate) fn received(&self, door: Door, seconds: f64, trace: Option<TraceContext>) {
        self.received.get_or_create_owned(&door.into()).inc();
        self.round_trip
            .get_or_create_owned(&door.into())
            .observe(seconds, trace);
    }

    pub(crate) fn lost(&self, door: Door) {
        self.lost.get_or_create_owned(&door.into()).inc();
    }
}
