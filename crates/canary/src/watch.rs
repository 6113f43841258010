//! Sends events at an even pace, each looked for by a task of its own, and counts how they end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use streamgauge_lifecycle::{SharedClock, Shutdown};
use streamgauge_telemetry::{TraceContext, Tracer};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use crate::{
    CanaryConfig, CanaryError, CanaryMetrics, Door,
    doors::{NotYet, Visitor},
    probe::Probe,
};

/// Between two questions about an event; it doubles up to the longest.
const PAUSE_LEAST: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_millis(500);

/// Where queries are answered, `host:port`.
#[derive(Clone, Debug)]
pub struct Query {
    /// HTTP.
    pub http: String,
    /// gRPC.
    pub grpc: String,
}

/// Probes both doors.
pub struct Canary {
    config: CanaryConfig,
    name: String,
    visitors: [(Door, Visitor); 2],
    metrics: CanaryMetrics,
    tracer: Tracer,
    clock: SharedClock,
}

/// One door and how far it is.
struct Round {
    door: Door,
    visitor: Visitor,
    metrics: CanaryMetrics,
    tracer: Tracer,
    clock: SharedClock,
    timeout: Duration,
    /// Nothing is counted before this moment unless an event has come back.
    counts_from: Instant,
    has_returned: AtomicBool,
}

impl Canary {
    /// A canary that has sent nothing yet.
    ///
    /// # Errors
    /// When a setting cannot be used.
    pub fn new(
        config: CanaryConfig,
        query: &Query,
        metrics: CanaryMetrics,
        tracer: Tracer,
        clock: SharedClock,
    ) -> Result<Self, CanaryError> {
        config.check().map_err(CanaryError::Setting)?;
        let visitor = |door| Visitor::new(door, &config, query).map(|visitor| (door, visitor));
        Ok(Self {
            visitors: [visitor(Door::Http)?, visitor(Door::Grpc)?],
            // A second canary, or this one after a restart, must not find the events of another.
            name: format!("canary-{:08x}", rand::random::<u32>()),
            config,
            metrics,
            tracer,
            clock,
        })
    }

    /// Probes until the shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut doors = JoinSet::new();
        for (door, visitor) in self.visitors {
            let round = Arc::new(Round {
                door,
                visitor,
                metrics: self.metrics.clone(),
                tracer: self.tracer.clone(),
                clock: self.clock.clone(),
                timeout: self.config.timeout(),
                counts_from: Instant::now() + self.config.start_grace(),
                has_returned: AtomicBool::new(false),
            });
            doors.spawn(pace(round, self.config.clone(), self.name.clone()));
        }
        shutdown.triggered().await;
        // What is under way is nobody's loss.
        doors.shutdown().await;
    }
}

/// Starts an event per interval; at most as many are under way as can be waited for.
async fn pace(round: Arc<Round>, config: CanaryConfig, name: String) {
    let mut ticks = interval(config.interval());
    // After a stall two events of one user could fall into one second.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = JoinSet::new();
    for number in 0u64.. {
        ticks.tick().await;
        while under_way.try_join_next().is_some() {}
        if under_way.len() >= config.pending_max() {
            continue;
        }
        let id = uuid::Uuid::now_v7().to_string();
        let now_us = round.clock.now_us();
        let probe = Probe::new(&name, round.door, number, config.users, id, now_us);
        let round = Arc::clone(&round);
        under_way.spawn(async move { round.probe(&probe).await });
    }
}

impl Round {
    async fn probe(&self, probe: &Probe) {
        let began = Instant::now();
        let counts = self.has_returned.load(Ordering::Relaxed) || began >= self.counts_from;
        if counts {
            self.metrics.sent(self.door);
        }
        let mut span = self.tracer.start_client("canary", None);
        let trace = span.context();
        let mut last = None;
        let through = timeout_at(began + self.timeout, self.go(probe, trace, &mut last)).await;
        match through {
            Ok(()) => {
                if !counts {
                    self.metrics.sent(self.door);
                }
                let seconds = began.elapsed().as_secs_f64();
                self.metrics.received(self.door, seconds, trace);
                self.has_returned.store(true, Ordering::Relaxed);
            }
            Err(_) if counts => {
                self.metrics.lost(self.door);
                span.error("lost");
                let why = last.as_ref().map(|error| error as &dyn std::error::Error);
                tracing::warn!(
                    door = self.door.as_str(),
                    user_id = probe.user_id,
                    event_id = probe.event_id,
                    waited_ms = self.timeout.as_millis() as u64,
                    why,
                    "an event of the canary did not come back"
                );
            }
            Err(_) => tracing::debug!(
                door = self.door.as_str(),
                "the canary waits for a first event"
            ),
        }
        span.end();
    }

    /// Submits the event until it is accepted, and asks for it until it is shown.
    async fn go(&self, probe: &Probe, trace: Option<TraceContext>, last: &mut Option<NotYet>) {
        let mut pause = PAUSE_LEAST;
        let mut is_accepted = false;
        loop {
            let step = match is_accepted {
                false => self.visitor.submit(probe, trace).await,
                true => self.visitor.look_for(probe).await,
            };
            match step {
                Ok(()) if is_accepted => return,
                // Asked for at once: a fast system has it by then.
                Ok(()) => (is_accepted, pause) = (true, PAUSE_LEAST),
                Err(error) => {
                    *last = Some(error);
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MOST);
                }
            }
        }
    }
}
