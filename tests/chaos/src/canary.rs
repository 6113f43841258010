//! The product's own canary, once a fault has healed: what it sends by either door must come back.

use std::time::Duration;

use streamgauge_canary::{Canary, CanaryConfig, CanaryError, CanaryMetrics, Query};
use streamgauge_lifecycle::{Shutdown, SystemClock};
use streamgauge_telemetry::{Metrics, Tracer};
use streamgauge_tests::exposition;
use tokio::time::Instant;

use crate::{failure::Failure, system::System};

/// Events that must come back by each door.
const EVENTS: f64 = 20.0;
/// Between two events of a door.
const INTERVAL: Duration = Duration::from_millis(100);
/// One that has not come back so long after it was sent is lost.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for all of them.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// What became of the canary's events.
#[derive(Clone, Copy, Debug)]
pub struct Returned {
    /// The fewest that came back by a door.
    pub least: f64,
    /// Those that did not come back in time, by both doors.
    pub lost: f64,
}

impl Returned {
    /// Whether enough came back and none was lost.
    pub fn all(self) -> bool {
        self.least >= EVENTS && self.lost == 0.0
    }
}

/// Lets a canary probe a system until enough of its events have come back by each door, or one has not. On a machine that
/// is slower by a factor they get so much more time.
pub async fn probe(system: &System, slack: u32) -> Result<Returned, Failure> {
    let registry = Metrics::new("streamgauge-chaos");
    let metrics = CanaryMetrics::register(&registry);
    let address = |service| (system.http_address(service), system.grpc_address(service));
    let (producer_http, producer_grpc) = address("producer");
    let (http, grpc) = address("analytics");
    let config = CanaryConfig {
        enabled: true,
        producer_http,
        producer_grpc,
        interval_ms: INTERVAL.as_millis() as u64,
        timeout_ms: (TIMEOUT * slack).as_millis() as u64,
        // Everything is ready and recovered: it counts from its first event.
        start_grace_ms: 0,
        ..CanaryConfig::default()
    };
    let query = Query { http, grpc };
    let clock = SystemClock::shared();
    let canary = Canary::new(config, &query, metrics, Tracer::disabled(), clock);
    let canary = canary.map_err(unmet)?;
    let shutdown = Shutdown::new();
    let running = tokio::spawn(canary.run(shutdown.clone()));
    let end = Instant::now() + PATIENCE * slack;
    let returned = loop {
        let returned = look(&registry)?;
        if returned.least >= EVENTS || returned.lost > 0.0 || Instant::now() > end {
            break returned;
        }
        tokio::time::sleep(POLL).await;
    };
    shutdown.trigger();
    running
        .await
        .map_err(|error| Failure::Unmet(format!("the canary ended: {error}")))?;
    Ok(returned)
}

fn look(registry: &Metrics) -> Result<Returned, Failure> {
    let text = registry.encode();
    let sum = |name: &str, door: &str| {
        let labels = if door.is_empty() {
            String::new()
        } else {
            format!(r#"door="{door}""#)
        };
        let unknown = || Failure::Unmet(format!("the canary does not tell {name}"));
        exposition::sum(&text, name, &labels).ok_or_else(unknown)
    };
    let received = "canary_events_received_total";
    Ok(Returned {
        least: sum(received, "http")?.min(sum(received, "grpc")?),
        lost: sum("canary_events_lost_total", "")?,
    })
}

fn unmet(error: CanaryError) -> Failure {
    Failure::Unmet(error.to_string())
}
