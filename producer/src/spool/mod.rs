//! Where events go while Kafka is away: onto this machine's disk, and to Kafka in their order once it is back.
//!
//! The rule that keeps the order: as long as anything is in the spool, or on its way there, everything new goes behind
//! it. So whoever was told `accepted` for one event and then sends the next finds it in the log behind the first. The
//! way back needs no switch: the spool is idle once Kafka has acknowledged all that was in it.

mod config;
mod drain;
mod metrics;
#[cfg(test)]
mod publish_tests;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use streamgauge_spool::{Account, AppendError, Deps, Disk, Drainer, Records, Spool, SpoolError};
use tokio::time::Instant;
use uuid::Uuid;

pub use self::config::SpoolConfig;
pub use self::drain::{Drain, DrainSink};
pub use self::metrics::SpoolMetrics;
pub use self::record::SpooledEvent;
use crate::event::encode::Entry;
use crate::metrics::FailReason;
use crate::publish::{TRACED_EVENTS_MAX, Writing};

/// The longest that a look at the disk is waited for.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(3);

/// The spool as the publishing side sees it. Clones share it.
#[derive(Clone)]
pub struct Spooling {
    spool: Spool,
    metrics: SpoolMetrics,
    /// Kafka has not been found yet, so that nothing goes there directly.
    diverted: Arc<AtomicBool>,
}

/// Opens the spool of these settings.
pub async fn open(
    config: &SpoolConfig,
    metrics: SpoolMetrics,
) -> Result<(Spooling, Drainer), SpoolError> {
    let deps = Deps {
        files: Arc::new(Disk),
        observer: Arc::new(metrics.clone()),
        salts: Box::new(|| Uuid::new_v4().as_u64_pair().1),
    };
    let (dir, limits) = (config.dir.clone(), config.limits());
    let interval = config.position_interval();
    let opening = move || streamgauge_spool::open(&dir, limits, interval, deps);
    let (spool, drainer) = tokio::task::spawn_blocking(opening)
        .await
        .unwrap_or(Err(SpoolError::Cut))?;
    metrics.show(&spool);
    let records = spool.depth().records;
    if records > 0 {
        tracing::info!(records, dir = %config.dir.display(), "the spool holds events of an earlier run");
    }
    let spooling = Spooling {
        spool,
        metrics,
        diverted: Arc::new(AtomicBool::new(true)),
    };
    Ok((spooling, drainer))
}

impl Spooling {
    /// Whether new events must go to the spool, since they would overtake what is in it, or Kafka is not known.
    pub fn comes_first(&self) -> bool {
        self.diverted.load(Ordering::Acquire) || !self.spool.is_idle()
    }

    /// Takes the events, all or none. They are on the disk when it returns without a reason against it; `uncertain` of
    /// them may be in Kafka already.
    pub async fn take(
        &self,
        writing: Writing<'_>,
        uncertain: usize,
        deadline: Instant,
    ) -> Result<(), FailReason> {
        let records = records(writing);
        let events = records.len();
        match tokio::time::timeout_at(deadline, self.spool.append(records)).await {
            Ok(Ok(())) => {
                self.metrics.written(events, uncertain);
                Ok(())
            }
            Ok(Err(AppendError::Full { .. })) => Err(FailReason::SpoolFull),
            Ok(Err(AppendError::TooLong { .. } | AppendError::Disk(_) | AppendError::Closed)) => {
                Err(FailReason::SpoolFailed)
            }
            // Perhaps it is on the disk after all: uncertain, as everywhere, and named by its id.
            Err(_) => Err(FailReason::Deadline),
        }
    }

    /// Whether it would take an event now, as far as is known.
    pub fn has_room(&self) -> bool {
        let depth = self.spool.depth();
        depth.failing.is_none() && depth.bytes < self.spool.bytes_max()
    }

    /// While the disk refuses events: finds out whether it takes them again. Events would as well, but nobody sends any
    /// to a service that is not ready.
    pub async fn probe(&self) {
        if self.spool.depth().failing.is_none() {
            return;
        }
        let spool = self.spool.clone();
        let probing = tokio::task::spawn_blocking(move || spool.probe());
        match tokio::time::timeout(PROBE_WAIT_MAX, probing).await {
            Ok(Ok(Ok(()))) => tracing::info!("the spool can be written again"),
            Ok(Ok(Err(error))) => tracing::debug!(%error, "the spool still cannot be written"),
            // The disk hangs: no more is known of it than before.
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// What it took since the start, and what became of it.
    pub fn account(&self) -> Account {
        self.spool.account()
    }

    /// Its state in a sentence, for `/health`.
    pub fn describe(&self, now_us: i64) -> String {
        let depth = self.spool.depth();
        let mut text = match (depth.records, depth.oldest_us) {
            (0, _) => String::from("empty"),
            (records, oldest_us) => {
                let age_s =
                    oldest_us.map_or(0, |oldest_us| (now_us - oldest_us).max(0) / 1_000_000);
                let (bytes, bytes_max) = (depth.bytes, self.spool.bytes_max());
                format!(
                    "{records} events wait, {bytes} of {bytes_max} bytes, the oldest is {age_s} s old"
                )
            }
        };
        if let Some(failing) = depth.failing {
            text.push_str("; it cannot be written: ");
            text.push_str(&failing);
        }
        text
    }

    /// Whether an earlier run has found this log: only then may events wait for it unseen.
    pub fn knows(&self, log: &str) -> bool {
        self.spool.noted() == Some(log.as_bytes())
    }

    /// The log was found: what comes may go there directly once the spool is empty.
    pub async fn log_found(&self, log: String) {
        self.diverted.store(false, Ordering::Release);
        if self.knows(&log) {
            return;
        }
        let spool = self.spool.clone();
        let noting = tokio::task::spawn_blocking(move || spool.note(log.as_bytes()));
        if let Ok(Err(error)) = noting.await {
            tracing::warn!(%error, "the next start will wait for Kafka before it takes events");
        }
    }
}

/// The events as they lie in the spool, in their order.
fn records(writing: Writing<'_>) -> Records {
    let batch = writing.batch;
    let mut records = Records::default();
    for (nth, place) in writing.places.iter().enumerate() {
        let Some(Entry::Ready(encoded)) = batch.entries().get(*place) else {
            continue;
        };
        let event = SpooledEvent {
            key: batch.key(encoded),
            payload: batch.payload(encoded),
            traceparent: writing.traceparent.filter(|_| nth < TRACED_EVENTS_MAX),
        };
        records.push(batch.received_at_us(), |out| event.write(out));
    }
    records
}
