//! Brings what is in the spool to Kafka, in order, one batch at a time.
//!
//! The client that it writes with never gives a record up by itself: were a record to time out while its successor is
//! acknowledged, a user's events would change places. So a batch waits for as long as Kafka is away, and it is the batch
//! that finds out when Kafka is back; the circuit breaker is told of both.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use streamgauge_kafka::PublishError;
use streamgauge_lifecycle::Shutdown;
use streamgauge_resilience::{Backoff, BackoffConfig, Breaker};
use streamgauge_spool::{Drainer, Stored, Stretch};
use tokio::time::{Instant, sleep, sleep_until};

use super::{SpoolConfig, SpoolMetrics, SpooledEvent};
use crate::publish::Failures;

/// Where drained records go.
pub trait DrainSink: Send + Sync + 'static {
    /// Queues the records in their order, each with its time in microseconds; the future completes once the outcome of
    /// each is known, however long that takes.
    fn write(
        &self,
        records: &[(i64, SpooledEvent<'_>)],
    ) -> Pin<Box<dyn Future<Output = Failures> + Send>>;
}

/// The one who drains.
pub struct Drain {
    pub drainer: Drainer,
    pub sink: Box<dyn DrainSink>,
    pub breaker: Breaker,
    pub config: SpoolConfig,
    /// Waits between attempts; its `attempts` does not apply.
    pub retry: BackoffConfig,
    /// Silence for so long is an outage.
    pub stall: Duration,
    /// How long, once it is to stop, a batch that is under way is waited for: one that is not would come again.
    pub grace: Duration,
    pub metrics: SpoolMetrics,
    pub stop: Shutdown,
}

/// A record of a stretch, and what it holds.
type Entry<'a> = (&'a Stored, SpooledEvent<'a>);

/// The service is going down.
struct Stopped;

impl Drain {
    /// Drains until it is told to stop. What is left stays for the next start.
    pub async fn run(mut self) {
        while let Ok(stretch) = self.next().await {
            let Ok(delivered) = self.deliver(&stretch).await else {
                break;
            };
            if let Err(error) = self.drainer.acknowledge(&stretch, delivered).await {
                tracing::error!(%error, "how far the spool is drained is not written down; records may be published again");
            }
        }
        if let Err(error) = self.drainer.persist().await {
            tracing::error!(%error, "how far the spool is drained is not written down; records will be published again");
        }
    }

    async fn next(&mut self) -> Result<Stretch, Stopped> {
        let config = &self.config;
        loop {
            let next = self
                .drainer
                .next(config.drain_batch_events_max, config.drain_batch_bytes_max);
            let error = tokio::select! {
                () = self.stop.triggered() => return Err(Stopped),
                next = next => match next {
                    Ok(stretch) => return Ok(stretch),
                    Err(error) => error,
                },
            };
            tracing::error!(%error, "the spool cannot be read; it is tried again");
            self.pause(Duration::from_millis(self.retry.max_ms)).await?;
        }
    }

    /// Publishes the stretch until every record of it is acknowledged or put aside; returns how many were acknowledged.
    async fn deliver(&mut self, stretch: &Stretch) -> Result<u64, Stopped> {
        let mut left = self.read(stretch);
        let (mut attempts, mut delivered) = (0, 0);
        let retry = BackoffConfig {
            attempts: 0,
            ..self.retry.clone()
        };
        let mut waits = Backoff::new(&retry, uuid::Uuid::new_v4().as_u64_pair().0);
        while !left.is_empty() {
            attempts += 1;
            let records: Vec<_> = left
                .iter()
                .map(|(stored, event)| (stored.at_us, *event))
                .collect();
            let writing = self.sink.write(&records);
            let failures = self.outcome(writing).await?;
            self.report(records.len() > failures.len(), &failures);
            let acknowledged = records.len() - failures.len();
            self.metrics.drained(acknowledged);
            delivered += acknowledged as u64;
            left = self.again(&left, failures, attempts);
            if !left.is_empty() {
                let wait = waits.next().unwrap_or_default();
                self.pause(wait).await?;
            }
        }
        Ok(delivered)
    }

    fn read<'a>(&self, stretch: &'a Stretch) -> Vec<Entry<'a>> {
        let mut entries = Vec::with_capacity(stretch.records().len());
        for stored in stretch.records() {
            match SpooledEvent::read(stretch.body(stored)) {
                Some(event) => entries.push((stored, event)),
                None => self.put_aside(stored, "another version has written it"),
            }
        }
        entries
    }

    /// What is to be tried again, in order.
    fn again<'a>(&self, tried: &[Entry<'a>], failures: Failures, attempts: u32) -> Vec<Entry<'a>> {
        let mut again = Vec::with_capacity(failures.len());
        for (nth, error) in failures {
            let Some(entry) = tried.get(nth) else {
                continue;
            };
            if error.is_retryable() || attempts < self.config.drain_attempts_max {
                again.push(*entry);
            } else {
                self.put_aside(entry.0, &error.to_string());
            }
        }
        again
    }

    /// An accepted record that Kafka does not take must neither be thrown away nor stand in the way of all others.
    fn put_aside(&self, stored: &Stored, reason: &str) {
        self.drainer.keep(stored);
        self.metrics.refused();
        let number = stored.seq;
        tracing::error!(
            number,
            reason,
            "an accepted event of the spool cannot be published; the file that holds it will be kept beside the spool"
        );
    }

    /// Waits for a batch, and meanwhile tells the breaker that Kafka is silent.
    async fn outcome(
        &mut self,
        mut writing: Pin<Box<dyn Future<Output = Failures> + Send>>,
    ) -> Result<Failures, Stopped> {
        let stop = self.stop.clone();
        let mut give_up: Option<Instant> = None;
        loop {
            tokio::select! {
                failures = &mut writing => return Ok(failures),
                () = sleep(self.stall) => {
                    self.tell_breaker(false);
                    // An outage may be long: what was acknowledged before it must not come again after a crash.
                    if let Err(error) = self.drainer.persist().await {
                        tracing::warn!(%error, "how far the spool is drained is not written down");
                    }
                }
                () = stop.triggered(), if give_up.is_none() => give_up = Some(Instant::now() + self.grace),
                () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => return Err(Stopped),
            }
        }
    }

    fn report(&self, acknowledged: bool, failures: &Failures) {
        let outage = failures.iter().any(|(_, error)| error.is_outage());
        if acknowledged || outage {
            self.tell_breaker(!outage);
        }
        for (_, error) in failures.iter().take(1) {
            match error {
                PublishError::QueueFull => {}
                error => tracing::warn!(%error, "a batch of the spool was not acknowledged"),
            }
        }
    }

    /// What the drain sees counts as a probe, when the breaker allows one.
    fn tell_breaker(&self, healthy: bool) {
        match (self.breaker.try_acquire(), healthy) {
            (Ok(permit), true) => permit.success(),
            (Ok(permit), false) => permit.failure(),
            (Err(_), _) => {}
        }
    }

    async fn pause(&self, wait: Duration) -> Result<(), Stopped> {
        tokio::select! {
            () = self.stop.triggered() => Err(Stopped),
            () = sleep(wait) => Ok(()),
        }
    }
}
