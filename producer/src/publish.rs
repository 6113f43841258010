//! Writes the events of a request to the log and says what became of each.
//!
//! An event is acknowledged when Kafka says so, or when it is synced into the spool, and never otherwise. What failed in
//! a way that may pass is tried again with the same payload, and so the same event id, until the request's deadline;
//! whoever reads the log dedupes.
//!
//! With a spool, what failed because Kafka is away goes there at once, whether it is certain that it was not written or
//! not: the client would send it again in either case. A full queue is not such a failure: Kafka is there, and taking
//! more than it can keep up with only moves the queue to the disk.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use streamgauge_kafka::{PublishError, Publisher, Pushed, Record, Span};
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_resilience::{Backoff, BackoffConfig, Breaker, Permit};
use streamgauge_spool::Account;
use streamgauge_telemetry::context::TRACEPARENT;
use tokio::time::Instant;
use uuid::Uuid;

use crate::admission::Refused;
use crate::event::Batch;
use crate::event::encode::Entry;
use crate::metrics::{FailReason, ProducerMetrics};
use crate::spool::{DrainSink, SpooledEvent, Spooling};

/// The most events of one request that carry its trace: enough to follow, few enough to stay cheap.
pub const TRACED_EVENTS_MAX: usize = 16;

/// What a valid event met instead of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The log will never take it.
    Rejected(ErrorCode),
    /// It may be taken later.
    Retry(FailReason),
}

/// A valid event that the log did not acknowledge, by its place in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unacknowledged {
    pub index: usize,
    pub fate: Fate,
}

/// Which events of a batch to write, and what goes with them.
#[derive(Clone, Copy, Debug)]
pub struct Writing<'a> {
    pub batch: &'a Batch,
    /// Places in the batch, ascending, all of them ready.
    pub places: &'a [usize],
    /// The `traceparent` of the first few records.
    pub traceparent: Option<&'a str>,
}

/// Records that were not acknowledged, by their place among those written; ascending.
pub type Failures = Vec<(usize, PublishError)>;

/// Where records go. Kafka in earnest; tests have their own.
pub trait Sink: Send + Sync + 'static {
    /// Queues the records now; the future completes once the outcome of each is known.
    fn write(&self, writing: Writing<'_>) -> Pin<Box<dyn Future<Output = Failures> + Send>>;

    /// What the log has acknowledged since the start, by partition; nothing where nobody keeps count.
    fn acknowledged(&self) -> BTreeMap<i32, Span> {
        BTreeMap::new()
    }
}

/// A topic of Kafka.
pub struct KafkaSink {
    publisher: Publisher,
    topic: String,
}

impl KafkaSink {
    pub fn new(publisher: Publisher, topic: String) -> Self {
        Self { publisher, topic }
    }
}

impl Sink for KafkaSink {
    fn write(&self, writing: Writing<'_>) -> Pin<Box<dyn Future<Output = Failures> + Send>> {
        let mut records = self.publisher.batch();
        let traced = writing
            .traceparent
            .map(|header| [(TRACEPARENT, header.as_bytes())]);
        let held_back = queue_in_order(writing.places, |nth, place| {
            let Some(Entry::Ready(encoded)) = writing.batch.entries().get(place) else {
                return Pushed::Refused;
            };
            let headers = traced.as_ref().filter(|_| nth < TRACED_EVENTS_MAX);
            records.push(Record {
                topic: &self.topic,
                partition: None,
                key: Some(writing.batch.key(encoded)),
                payload: Some(writing.batch.payload(encoded)),
                timestamp_ms: Some(writing.batch.received_at_us() / 1_000),
                headers: headers.map_or(&[], |headers| headers.as_slice()),
            })
        });
        Box::pin(outcome(records, held_back))
    }

    fn acknowledged(&self) -> BTreeMap<i32, Span> {
        self.publisher.acknowledged(&self.topic)
    }
}

impl DrainSink for KafkaSink {
    fn write(
        &self,
        records: &[(i64, SpooledEvent<'_>)],
    ) -> Pin<Box<dyn Future<Output = Failures> + Send>> {
        let mut batch = self.publisher.batch();
        let places: Vec<usize> = (0..records.len()).collect();
        let held_back = queue_in_order(&places, |_, place| {
            let (received_at_us, event) = &records[place];
            let traced = event
                .traceparent
                .map(|header| [(TRACEPARENT, header.as_bytes())]);
            batch.push(Record {
                topic: &self.topic,
                partition: None,
                key: Some(event.key),
                payload: Some(event.payload),
                timestamp_ms: Some(received_at_us / 1_000),
                headers: traced.as_ref().map_or(&[], |traced| traced.as_slice()),
            })
        });
        Box::pin(outcome(batch, held_back))
    }
}

/// How a batch ended of which the last records were not even queued.
async fn outcome(batch: streamgauge_kafka::Batch, held_back: Range<usize>) -> Failures {
    let mut failed = batch.finish().await.failed;
    failed.extend(held_back.map(|nth| (nth, PublishError::QueueFull)));
    failed
}

/// Queues records in their order until the queue is full, and returns which were held back. A slot may become free in
/// the meantime; were it used, a user's later event would come before the earlier one, which is written again later.
fn queue_in_order(places: &[usize], mut push: impl FnMut(usize, usize) -> Pushed) -> Range<usize> {
    let full = (0..places.len()).find(|&nth| push(nth, places[nth]) == Pushed::Full);
    // The one that met the full queue has been noted already.
    full.map_or(places.len(), |nth| nth + 1)..places.len()
}

/// Publishes with retries and a circuit breaker, and with a spool if there is one.
pub struct Publishing {
    sink: Box<dyn Sink>,
    spool: Option<Spooling>,
    /// What the log has acknowledged to the drain; known once there is one.
    drained: OnceLock<Spans>,
    breaker: Breaker,
    config: PublishingConfig,
    metrics: ProducerMetrics,
}

/// Tells what the log has acknowledged since the start, by partition.
pub type Spans = Box<dyn Fn() -> BTreeMap<i32, Span> + Send + Sync>;

/// The spool's side of the ledger.
#[derive(Clone, Debug, Default)]
pub struct SpoolLedger {
    pub account: Account,
    /// What the log has acknowledged to the drain; at least what the account says is drained.
    pub spans: BTreeMap<i32, Span>,
}

/// How long to try, and what to make of silence.
#[derive(Clone, Debug)]
pub struct PublishingConfig {
    pub retry: BackoffConfig,
    /// Silence for so long when a request's deadline comes is an outage rather than a client in a hurry.
    pub stall: Duration,
}

/// Where an attempt left the events that it was to write.
enum Attempt {
    Written(Failures),
    Deadline,
    /// The breaker did not let it through.
    Held(Duration),
}

/// A call that the breaker has let through. A probe that brings no evidence counts as failed, also when its client went
/// away: a log that may still be away must not be called healthy, nor hold up one client after the other. Without
/// evidence nothing else is said.
struct Call<'a>(Option<Permit<'a>>);

impl Call<'_> {
    fn report(mut self, healthy: Option<bool>) {
        let Some(healthy) = healthy else {
            return;
        };
        match self.0.take() {
            Some(permit) if healthy => permit.success(),
            Some(permit) => permit.failure(),
            None => {}
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take().filter(Permit::is_probe) {
            permit.failure();
        }
    }
}

impl Publishing {
    pub fn new(
        sink: Box<dyn Sink>,
        spool: Option<Spooling>,
        breaker: Breaker,
        config: PublishingConfig,
        metrics: ProducerMetrics,
    ) -> Self {
        Self {
            sink,
            spool,
            drained: OnceLock::new(),
            breaker,
            config,
            metrics,
        }
    }

    /// From now on it is known what the log acknowledges to the drain.
    pub fn watch_drain(&self, spans: Spans) {
        // There is one drain, and it is shown once.
        let _ = self.drained.set(spans);
    }

    /// What went by way of the spool; all zero without one.
    pub fn spooled(&self) -> SpoolLedger {
        // The account first: a record is acknowledged before it is called drained, so that later figures of the log are
        // never too small for it.
        let account = self.spool.as_ref().map(Spooling::account);
        SpoolLedger {
            account: account.unwrap_or_default(),
            spans: self.drained.get().map(|spans| spans()).unwrap_or_default(),
        }
    }

    /// What the log has acknowledged directly since the start, by partition.
    pub fn acknowledged(&self) -> BTreeMap<i32, Span> {
        self.sink.acknowledged()
    }

    /// Publishes every ready event of the batch before the deadline. What is returned was not acknowledged; refused as
    /// a whole is a batch of which nothing was even tried.
    pub async fn publish(
        &self,
        batch: &Batch,
        traceparent: Option<&str>,
        deadline: Instant,
    ) -> Result<Vec<Unacknowledged>, Refused> {
        let mut places = ready_places(batch);
        if let Some(spool) = self.spool.as_ref().filter(|spool| spool.comes_first()) {
            let writing = Writing {
                batch,
                places: &places,
                traceparent,
            };
            return match spool.take(writing, 0, deadline).await {
                Ok(()) => Ok(Vec::new()),
                Err(FailReason::Deadline) => Ok(retry_all(&places, FailReason::Deadline)),
                Err(reason) => Err(not_spooled(reason)),
            };
        }
        let mut lost = Vec::new();
        let mut waits = None;
        let mut first = true;
        loop {
            let writing = Writing {
                batch,
                places: &places,
                traceparent,
            };
            let failures = match self.attempt(writing, deadline).await {
                Attempt::Written(failures) => failures,
                Attempt::Deadline => {
                    lost.extend(retry_all(&places, FailReason::Deadline));
                    break;
                }
                Attempt::Held(after) => match (&self.spool, first) {
                    (None, true) => return Err(held(after)),
                    (None, false) => {
                        lost.extend(retry_all(&places, FailReason::BreakerOpen));
                        break;
                    }
                    (Some(spool), _) => {
                        let Err(reason) = spool.take(writing, 0, deadline).await else {
                            break;
                        };
                        if first && reason != FailReason::Deadline {
                            return Err(not_spooled(reason));
                        }
                        lost.extend(retry_all(&places, reason));
                        break;
                    }
                },
            };
            if failures.is_empty() {
                break;
            }
            first = false;
            if let Some(spool) = self
                .spool
                .as_ref()
                .filter(|spool| diverts(spool, &failures))
            {
                let uncertain = failures.iter().filter(|(_, error)| error.is_uncertain());
                let uncertain = uncertain.count();
                let again = sort_out(&places, failures, true, &mut lost);
                let writing = Writing {
                    places: &again,
                    ..writing
                };
                if let Err(reason) = spool.take(writing, uncertain, deadline).await {
                    lost.extend(retry_all(&again, reason));
                }
                break;
            }
            let waits = waits.get_or_insert_with(|| {
                Backoff::new(&self.config.retry, Uuid::new_v4().as_u64_pair().0)
            });
            let wait = waits
                .next()
                .filter(|wait| Instant::now() + *wait < deadline);
            let again = sort_out(&places, failures, wait.is_some(), &mut lost);
            let (Some(wait), false) = (wait, again.is_empty()) else {
                break;
            };
            self.metrics.publish_retry();
            tokio::time::sleep(wait).await;
            places = again;
        }
        lost.sort_unstable_by_key(|unacknowledged| unacknowledged.index);
        Ok(lost)
    }

    async fn attempt(&self, writing: Writing<'_>, deadline: Instant) -> Attempt {
        let call = match self.breaker.try_acquire() {
            Ok(permit) => Call(Some(permit)),
            Err(open) => return Attempt::Held(open.retry_after),
        };
        let (begun, records) = (Instant::now(), writing.places.len());
        let Ok(failures) = tokio::time::timeout_at(deadline, self.sink.write(writing)).await else {
            call.report((begun.elapsed() >= self.config.stall).then_some(false));
            return Attempt::Deadline;
        };
        let outage = failures.iter().any(|(_, error)| error.is_outage());
        let acknowledged = failures.len() < records;
        // A full local queue, say, tells nothing about the log.
        call.report((outage || acknowledged).then_some(!outage));
        Attempt::Written(failures)
    }
}

/// Whether what failed goes to the spool: Kafka is away, or has been, and these must not overtake what waits for it.
/// All that may be tried again goes, so that the events of one user stay in their order.
fn diverts(spool: &Spooling, failures: &Failures) -> bool {
    failures.iter().any(|(_, error)| error.is_outage()) || spool.comes_first()
}

fn ready_places(batch: &Batch) -> Vec<usize> {
    let entries = batch.entries().iter().enumerate();
    entries
        .filter(|(_, entry)| matches!(entry, Entry::Ready(_)))
        .map(|(place, _)| place)
        .collect()
}

/// Moves what is lost for good to `lost` and returns the places to try again, if that is an option.
fn sort_out(
    places: &[usize],
    failures: Failures,
    may_retry: bool,
    lost: &mut Vec<Unacknowledged>,
) -> Vec<usize> {
    let mut again = Vec::new();
    for (nth, error) in failures {
        let Some(&index) = places.get(nth) else {
            continue;
        };
        if may_retry && error.is_retryable() {
            again.push(index);
        } else {
            lost.push(Unacknowledged {
                index,
                fate: fate(index, &error),
            });
        }
    }
    again
}

fn fate(index: usize, error: &PublishError) -> Fate {
    match error {
        PublishError::TooLarge => Fate::Rejected(ErrorCode::EventTooLarge),
        PublishError::QueueFull => Fate::Retry(FailReason::QueueFull),
        PublishError::TimedOut => Fate::Retry(FailReason::TimedOut),
        PublishError::Unavailable(_) | PublishError::Fatal(_) => {
            Fate::Retry(FailReason::Unavailable)
        }
        // Not the client's fault, so that it must not throw the event away; the operator has to look.
        PublishError::Refused(cause) => {
            tracing::error!(place = index, cause, "the log refused an event");
            Fate::Retry(FailReason::Refused)
        }
    }
}

fn retry(index: usize, reason: FailReason) -> Unacknowledged {
    Unacknowledged {
        index,
        fate: Fate::Retry(reason),
    }
}

fn retry_all(places: &[usize], reason: FailReason) -> Vec<Unacknowledged> {
    places.iter().map(|&index| retry(index, reason)).collect()
}

/// Nothing of the batch was tried, and the spool did not take it.
fn not_spooled(reason: FailReason) -> Refused {
    Refused {
        problem: Problem::new(reason.code(), reason.message()),
        reason,
    }
}

fn held(after: Duration) -> Refused {
    let message =
        "the log could not be written just now and is given a rest; retry with the same event ids";
    Refused {
        problem: Problem::new(ErrorCode::LogUnavailable, message).retry_after(after),
        reason: FailReason::BreakerOpen,
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
pub(crate) mod tests;
