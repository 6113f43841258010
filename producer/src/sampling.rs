//! The share of events that are traced, and its change while the service runs; over HTTP and gRPC alike. An event's trace
//! begins here, unless its client began it, so that what is decided here holds for the whole way.

use serde::{Deserialize, Serialize};
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_telemetry::Tracer;

/// What is wanted.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// The share of traces that begin here and are recorded, 0 to 1.
    pub sample_ratio: f64,
}

/// What holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SamplingInForce {
    /// The share of traces that begin here and are recorded, 0 to 1.
    pub sample_ratio: f64,
    /// Whether they are sent anywhere.
    pub exporting: bool,
}

/// What holds now.
pub fn show(tracer: &Tracer) -> SamplingInForce {
    SamplingInForce {
        sample_ratio: tracer.sample_ratio(),
        exporting: tracer.is_exporting(),
    }
}

/// Changes what holds until the producer ends or it is changed again; says what holds then.
pub fn change(tracer: &Tracer, wanted: Sampling, by: &str) -> Result<SamplingInForce, Problem> {
    let refuse =
        |message: &str| Problem::new(ErrorCode::InvalidValue, message).field("sample_ratio");
    if !tracer.is_exporting() {
        return Err(refuse(
            "spans are sent nowhere: set telemetry.otlp_endpoint and start again",
        ));
    }
    let before = tracer.sample_ratio();
    if !tracer.set_sample_ratio(wanted.sample_ratio) {
        return Err(refuse("it is a share, from 0 to 1"));
    }
    tracing::info!(
        by,
        before,
        after = wanted.sample_ratio,
        "the share of traces was changed"
    );
    Ok(show(tracer))
}

#[cfg(test)]
mod tests {
    use streamgauge_telemetry::Telemetry;

    use super::*;

    fn wanted(sample_ratio: f64) -> Sampling {
        Sampling { sample_ratio }
    }

    #[test]
    fn a_share_is_changed_at_once() {
        let (telemetry, _spans) = Telemetry::in_memory();
        let tracer = telemetry.tracer("producer");
        let held = change(&tracer, wanted(0.0), "me").unwrap();
        assert_eq!((held.sample_ratio, held.exporting), (0.0, true));
        assert!((0..100).all(|_| !tracer.should_sample(None)));
        change(&tracer, wanted(1.0), "me").unwrap();
        assert!((0..100).all(|_| tracer.should_sample(None)));
        // A clone is the same tracer.
        assert_eq!(show(&tracer.clone()).sample_ratio, 1.0);
    }

    #[test]
    fn what_is_no_share_is_refused_and_changes_nothing() {
        let (telemetry, _spans) = Telemetry::in_memory();
        let tracer = telemetry.tracer("producer");
        let before = show(&tracer);
        for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let problem = change(&tracer, wanted(ratio), "me").unwrap_err();
            assert_eq!(problem.code, ErrorCode::InvalidValue);
        }
        assert_eq!(show(&tracer), before);
    }

    #[test]
    fn without_a_collector_there_is_nothing_to_change() {
        let problem = change(&Tracer::disabled(), wanted(0.5), "me").unwrap_err();
        assert!(problem.message.contains("otlp_endpoint"), "{problem}");
    }
}
