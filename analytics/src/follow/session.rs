//! One session: from a load to the next. The loop, and what it does with records.

use std::time::{Duration, Instant};

use streamgauge_kafka::{Follower, Polled as FromLog};
use streamgauge_resilience::retry;
use streamgauge_telemetry::Span;
use tokio::{
    sync::{mpsc, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    Ended, Found, Parts,
    checkpoints::{Running, finished},
    idle::Idle,
    range::RangeLook,
};
use crate::{
    apply::{self, Applied, ApplyError, Polled, Prepared},
    error::Error,
    source::SourceEnds,
    trace,
    view::{ChainRow, Fold},
};

/// How often the view settles blocks and lets old seconds go, and what failed is looked at again.
const TICK: Duration = Duration::from_secs(1);

/// From one load to the next.
pub struct Session<'a> {
    pub(super) parts: &'a Parts,
    pub(super) partitions: i32,
    pub(super) fold: Fold,
    pub(super) follower: Follower,
    pub(super) checkpoint: Running,
    pub(super) range: RangeLook,
    mailbox: mpsc::Receiver<(i32, FromLog)>,
    idle: Idle,
    ends: watch::Receiver<SourceEnds>,
}

impl<'a> Session<'a> {
    /// Reads on from where a fold stands.
    ///
    /// # Errors
    /// When Kafka refuses a setting.
    pub fn start(parts: &'a Parts, fold: Fold, found: &Found) -> Result<Self, Error> {
        let starts: Vec<(i32, i64)> = (0..found.partitions)
            .map(|partition| (partition, fold.row(partition).delta_position))
            .collect();
        let (sender, mailbox) = mpsc::channel(parts.config.apply.mailbox_chunks_max.max(1));
        let (kafka, fetch) = (&parts.config.kafka, &parts.config.fetch);
        let topic = &parts.config.topics.metrics;
        let follower = Follower::spawn(kafka, fetch, topic, &starts, &sender, None)?;
        Ok(Self {
            parts,
            partitions: found.partitions,
            fold,
            follower,
            checkpoint: None,
            range: RangeLook::default(),
            mailbox,
            idle: Idle::default(),
            ends: found.ends.clone(),
        })
    }

    /// Follows until something ends it.
    pub async fn run(mut self) -> Ended {
        let shutdown = self.parts.shutdown.clone();
        let mut ticks = every(TICK);
        let mut checkpoints = every(Duration::from_millis(
            self.parts.config.checkpoint.interval_ms,
        ));
        let ended = loop {
            // While a checkpoint lags behind nothing is taken: the mailbox fills, and reading pauses.
            let has_room = !self.is_full();
            let step = tokio::select! {
                () = shutdown.triggered() => break Ended::Shutdown,
                received = self.mailbox.recv(), if has_room => match received {
                    Some(first) => self.receive(first).await,
                    // The poll thread has ended, which it does only when it is told to.
                    None => Err(Ended::Reload),
                },
                Ok(()) = self.ends.changed() => {
                    self.take_ends();
                    Ok(())
                }
                done = finished(&mut self.checkpoint) => self.finish_checkpoint(done).await,
                () = self.parts.overtaken.notified() => self.follow_checkpoint().await,
                answers = self.range.looked() => self.take_range(&answers).await,
                () = self.parts.swapped.notified() => self.follow_swap().await,
                _ = checkpoints.tick() => {
                    self.begin_checkpoint();
                    Ok(())
                }
                _ = ticks.tick() => {
                    self.tick();
                    Ok(())
                }
            };
            if let Err(ended) = step {
                break ended;
            }
        };
        self.close().await;
        ended
    }

    async fn close(self) {
        let limit = self.parts.config.shutdown_deadline() / 2;
        drop(self.mailbox);
        self.range.abort();
        let following = async {
            if !self.follower.close(limit).await {
                tracing::warn!("the reader of metrics-data did not stop in time");
            }
        };
        let checkpoint = async {
            let Some((_, mut task)) = self.checkpoint else {
                return;
            };
            if tokio::time::timeout(limit, &mut task).await.is_err() {
                // It is one transaction: cut off, it is as if it had not begun.
                task.abort();
            }
        };
        tokio::join!(following, checkpoint);
    }

    /// Takes in what waits, up to the bounds of one transaction, and applies it.
    async fn receive(&mut self, first: (i32, FromLog)) -> Result<(), Ended> {
        let bounds = &self.parts.config.apply;
        let mut polled = Polled::default();
        let mut at_end = Vec::new();
        let mut next = Some(first);
        while let Some((partition, item)) = next {
            match item {
                FromLog::Records(chunk) => {
                    self.idle.read(partition);
                    polled.push(&chunk);
                }
                FromLog::End { .. } => {
                    self.idle.reached_end(partition);
                    at_end.push(partition);
                }
                FromLog::OutOfRange => self.range.needed(),
            }
            let is_full = polled.records() >= bounds.batches_max
                || polled.size_bytes() >= bounds.kib_max.saturating_mul(1024);
            next = if is_full {
                None
            } else {
                self.mailbox.try_recv().ok()
            };
        }
        if polled.records() > 0 {
            self.apply(polled).await?;
        }
        // Only now: what was read before the end belongs to the gap.
        at_end
            .into_iter()
            .for_each(|partition| self.fold.close_gap(partition));
        Ok(())
    }

    async fn apply(&mut self, polled: Polled) -> Result<(), Ended> {
        let start = Instant::now();
        let parts = self.parts;
        let prepared = apply::prepare(&self.fold, polled, parts.clock.now_us(), &parts.metrics);
        if prepared.is_empty() {
            return Ok(());
        }
        let spans = self.spans(&prepared);
        let prepared = self.write(prepared).await?;
        let applied = prepared.apply(&mut self.fold, &parts.metrics);
        let now = parts.clock.monotonic();
        for partition in &applied.moved {
            self.idle.moved(*partition, now);
        }
        self.raise_watermark();
        parts.publish(&self.fold);
        drop(spans);
        self.tell(applied, start);
        if self.is_full() {
            self.begin_checkpoint();
        }
        Ok(())
    }

    /// Writes, however long it takes: until then nothing more is read.
    async fn write(&self, prepared: Prepared) -> Result<Prepared, Ended> {
        let parts = self.parts;
        let backoff = &parts.config.store.write;
        let start = Instant::now();
        // The attempts take turns, one after the other; each goes on from what the last one found out.
        let prepared = tokio::sync::Mutex::new(prepared);
        let turn = &prepared;
        loop {
            let attempt = retry(
                backoff,
                None,
                |error| matches!(error, ApplyError::Store(error) if error.is_retryable()),
                |_, error, wait| tracing::warn!(%error, ?wait, "applying is tried again"),
                |_| async move { turn.lock().await.write(&parts.store).await },
            );
            let written = tokio::select! {
                written = attempt => written,
                () = parts.shutdown.triggered() => return Err(Ended::Shutdown),
            };
            match written {
                Ok(()) => break,
                Err(ApplyError::Store(error)) if error.is_retryable() => parts.store_failed(&error),
                Err(ApplyError::Store(error)) => return Err(Ended::Failed(error.into())),
                Err(error @ ApplyError::Diverged { .. }) => {
                    tracing::error!(%error, "the store is not where memory left it");
                    parts.metrics.core.error("apply", "behind");
                    return Err(Ended::Reload);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(backoff.max_ms)) => {}
                () = parts.shutdown.triggered() => return Err(Ended::Shutdown),
            }
        }
        parts.store_up.up();
        parts
            .metrics
            .core
            .stage("store")
            .observe(start.elapsed().as_secs_f64(), None);
        Ok(prepared.into_inner())
    }

    fn spans(&self, prepared: &Prepared) -> Vec<Span> {
        let parts = self.parts;
        let mut spans = Vec::new();
        for (partition, offset, batch) in prepared.valid() {
            let topic = parts.config.topics.metrics.as_str();
            let place = trace::Place {
                topic,
                db_system: parts.db_system,
                partition,
                offset,
            };
            spans.extend(trace::start(
                &parts.tracer,
                batch,
                place,
                parts.config.apply.spans_max,
            ));
        }
        spans
    }

    fn tell(&self, applied: Applied, start: Instant) {
        let metrics = &self.parts.metrics;
        let now_us = self.parts.clock.now_us();
        let mut trace = None;
        for (_, _, batch) in applied.batches() {
            let exemplar = trace::exemplar(batch);
            trace = trace.or(exemplar);
            if batch.oldest_received_us > 0 {
                let seconds = (now_us - batch.oldest_received_us).max(0) as f64 / 1e6;
                let counted = batch
                    .outcomes
                    .as_ref()
                    .map_or(0, |outcomes| outcomes.counted);
                metrics.end_to_end.observe_many(seconds, counted, exemplar);
            }
        }
        if applied.changed.unreadable_sketches > 0 {
            let parts = applied.changed.unreadable_sketches;
            tracing::error!(
                parts,
                "sketches in delta batches cannot be read; distinct users come out low"
            );
            metrics.core.error("apply", "sketch");
        }
        self.parts.live.tell(applied.changed.seconds);
        metrics
            .core
            .stage("apply")
            .observe(start.elapsed().as_secs_f64(), trace);
    }

    fn tick(&mut self) {
        let parts = self.parts;
        let now_s = parts.clock.now_us().div_euclid(1_000_000);
        let settled = self.fold.tick(now_s);
        if settled.unreadable_sketches > 0 {
            parts.metrics.core.error("apply", "sketch");
        }
        parts.metrics.view(&self.fold);
        parts.publish(&self.fold);
        let topic = &parts.config.topics.metrics;
        self.range.begin(&parts.reader, topic, self.partitions);
        if self.is_full() {
            self.begin_checkpoint();
        }
    }

    /// Takes the ends of the source partitions in, which say which partitions are idle.
    fn take_ends(&mut self) {
        let ends = self.ends.borrow_and_update().clone();
        for (partition, (end, asked_at)) in &ends.by_partition {
            let head = self.fold.row(*partition).ledger.head();
            self.idle.source_end(*partition, head, end.high, *asked_at);
        }
        let known = ends.by_partition.iter();
        self.fold
            .set_source_ends(known.map(|(p, (end, _))| (*p, *end)).collect());
        self.raise_watermark();
        self.parts.publish(&self.fold);
    }

    fn raise_watermark(&mut self) {
        let rows: Vec<ChainRow> = (0..self.partitions)
            .map(|partition| self.fold.row(partition))
            .collect();
        self.fold.raise_watermark(self.idle.watermark_us(&rows));
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
