//! Following `metrics-data`: one task that owns the fold, and the loop in which everything happens to it.
//!
//! Records come from one bounded mailbox. While the store cannot be written the loop holds, the mailbox fills, and
//! reading pauses; nothing is dropped. What the store has accepted is published; nothing else ever is.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use streamgauge_kafka::{Follower, LogReader, Polled as FromLog};
use streamgauge_lifecycle::{Condition, SharedClock, Shutdown};
use streamgauge_resilience::retry;
use streamgauge_telemetry::{Span, Tracer};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    apply::{self, Applied, ApplyError, Polled, Prepared},
    checkpoint::{self, Checkpointed},
    config::Config,
    error::Error,
    ledger,
    live::Live,
    load,
    metrics::AnalyticsMetrics,
    service::SharedView,
    source::SourceEnds,
    store::{Store, StoreError},
    trace,
    view::{ChainRow, Fold},
};

/// How often the view settles blocks and lets old seconds go.
const TICK: Duration = Duration::from_secs(1);
/// Least time between two looks at why a position is outside of the log.
const RANGE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// What the task is made of.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub view: SharedView,
    pub live: Live,
    pub metrics: AnalyticsMetrics,
    pub tracer: Tracer,
    pub clock: SharedClock,
    pub config: Arc<Config>,
    pub reader: LogReader,
    pub ends: watch::Receiver<SourceEnds>,
    pub store_up: Condition,
    pub log_up: Condition,
    /// Whether the store was read, so that queries have answers.
    pub view_up: Condition,
    pub shutdown: Shutdown,
    /// `sqlite` or `postgresql`, for spans.
    pub db_system: &'static str,
    pub partitions: i32,
}

/// Why a session ended.
enum Ended {
    Shutdown,
    /// Memory has to be built anew from the store.
    Reload,
}

/// Follows until the shutdown.
///
/// # Errors
/// When Kafka refuses a setting.
pub async fn run(parts: Parts) -> Result<(), Error> {
    while let Some(fold) = load_patiently(&parts).await {
        let session = Session::start(&parts, fold)?;
        match session.run().await {
            Ended::Shutdown => break,
            Ended::Reload => tracing::warn!("memory is built anew from the store"),
        }
    }
    Ok(())
}

/// Loads, however long it takes; `None` at shutdown.
async fn load_patiently(parts: &Parts) -> Option<Fold> {
    loop {
        let now_s = parts.clock.now_us().div_euclid(1_000_000);
        let loading = load::load(&parts.store, &parts.config, now_s);
        tokio::select! {
            loaded = loading => match loaded {
                Ok(fold) => {
                    parts.store_up.up();
                    return Some(fold);
                }
                Err(error) => parts.store_failed(&error),
            },
            () = parts.shutdown.triggered() => return None,
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(parts.config.store.write.max_ms)) => {}
            () = parts.shutdown.triggered() => return None,
        }
    }
}

impl Parts {
    fn store_failed(&self, error: &StoreError) {
        tracing::error!(%error, "the store cannot be used; what is read waits");
        self.metrics.core.error("apply", "store");
        self.store_up.down(error.to_string());
    }
}

/// From one load to the next.
struct Session<'a> {
    parts: &'a Parts,
    fold: Fold,
    follower: Follower,
    mailbox: mpsc::Receiver<(i32, FromLog)>,
    /// Partitions whose follower has reached the end of `metrics-data`.
    at_end: BTreeSet<i32>,
    /// Partitions that hold nothing more to wait for.
    idle: BTreeSet<i32>,
    /// When each partition was last moved, by the monotonic clock.
    moved_at: BTreeMap<i32, Duration>,
    ends: watch::Receiver<SourceEnds>,
    checkpoint: Option<(Instant, JoinHandle<Checkpointed>)>,
    range_checked: Option<Instant>,
}

impl<'a> Session<'a> {
    fn start(parts: &'a Parts, fold: Fold) -> Result<Self, Error> {
        let starts: Vec<(i32, i64)> = (0..parts.partitions)
            .map(|partition| (partition, fold.row(partition).delta_position))
            .collect();
        let (sender, mailbox) = mpsc::channel(parts.config.apply.mailbox_chunks_max.max(1));
        let (kafka, fetch) = (&parts.config.kafka, &parts.config.fetch);
        let follower = Follower::spawn(
            kafka,
            fetch,
            &parts.config.topics.metrics,
            &starts,
            &sender,
            None,
        )?;
        let session = Self {
            parts,
            fold,
            follower,
            mailbox,
            at_end: BTreeSet::new(),
            idle: BTreeSet::new(),
            moved_at: BTreeMap::new(),
            ends: parts.ends.clone(),
            checkpoint: None,
            range_checked: None,
        };
        session.publish();
        parts.view_up.up();
        Ok(session)
    }

    async fn run(mut self) -> Ended {
        let shutdown = self.parts.shutdown.clone();
        let mut ticks = every(TICK);
        let mut checkpoints = every(Duration::from_millis(
            self.parts.config.checkpoint.interval_ms,
        ));
        let ended = loop {
            let step = tokio::select! {
                () = shutdown.triggered() => break Ended::Shutdown,
                received = self.mailbox.recv() => match received {
                    Some(first) => self.receive(first).await,
                    // The poll thread has ended, which it does only when it is told to.
                    None => Err(Ended::Reload),
                },
                Ok(()) = self.ends.changed() => {
                    self.take_ends();
                    Ok(())
                }
                done = finished(&mut self.checkpoint) => self.finish_checkpoint(done).await,
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
        let deadline = self.parts.config.shutdown_deadline() / 2;
        drop(self.mailbox);
        if !self.follower.close(deadline).await {
            tracing::warn!("the reader of metrics-data did not stop in time");
        }
        if let Some((_, checkpoint)) = self.checkpoint {
            // It is one transaction: cut off, it is as if it had not begun.
            let _ = tokio::time::timeout(deadline, checkpoint).await;
        }
    }

    /// Takes in what waits, up to the bounds of one transaction, and applies it.
    async fn receive(&mut self, first: (i32, FromLog)) -> Result<(), Ended> {
        let bounds = &self.parts.config.apply;
        let mut polled = Polled::default();
        let mut next = Some(first);
        while let Some((partition, item)) = next {
            match item {
                FromLog::Records(chunk) => {
                    self.at_end.remove(&partition);
                    polled.push(&chunk);
                }
                FromLog::End { .. } => {
                    self.at_end.insert(partition);
                }
                FromLog::OutOfRange => self.check_range().await,
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
            self.apply(polled).await
        } else {
            Ok(())
        }
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
            self.idle.remove(partition);
            self.moved_at.insert(*partition, now);
        }
        self.raise_watermark();
        self.publish();
        drop(spans);
        self.tell(applied, start);
        let bounds = &parts.config.checkpoint;
        let fresh = &self.fold.view().fresh;
        if fresh.cells >= bounds.cells_max || fresh.user_rows() >= bounds.user_rows_max {
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
                |error| matches!(error, ApplyError::Store(_)),
                |_, error, wait| tracing::warn!(%error, ?wait, "applying is tried again"),
                |_| async move { turn.lock().await.write(&parts.store).await },
            );
            let written = tokio::select! {
                written = attempt => written,
                () = parts.shutdown.triggered() => return Err(Ended::Shutdown),
            };
            match written {
                Ok(()) => break,
                Err(ApplyError::Store(error)) => parts.store_failed(&error),
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

    fn publish(&self) {
        let view = Arc::new(self.fold.view().clone());
        self.parts.view.store(Some(view));
        let metrics = &self.parts.metrics;
        metrics.ledger_imbalance(ledger::imbalance(self.fold.view()));
    }

    fn tick(&mut self) {
        let now_s = self.parts.clock.now_us().div_euclid(1_000_000);
        let settled = self.fold.tick(now_s);
        if settled.unreadable_sketches > 0 {
            self.parts.metrics.core.error("apply", "sketch");
        }
        self.parts.metrics.view(&self.fold);
        self.publish();
    }

    /// Takes the ends of the source partitions in, which say which partitions are idle.
    fn take_ends(&mut self) {
        let ends = self.ends.borrow_and_update().clone();
        for (partition, (end, asked_at)) in &ends.by_partition {
            let row = self.fold.row(*partition);
            let settled = self
                .moved_at
                .get(partition)
                .is_none_or(|moved| moved < asked_at);
            if self.at_end.contains(partition) && settled && row.ledger.head() >= *end {
                self.idle.insert(*partition);
            }
        }
        self.fold.set_source_ends(
            ends.by_partition
                .iter()
                .map(|(p, (end, _))| (*p, *end))
                .collect(),
        );
        self.raise_watermark();
        self.publish();
    }

    /// The least over partitions that are not idle; with all idle, the latest that any reached.
    fn raise_watermark(&mut self) {
        let rows: Vec<ChainRow> = (0..self.parts.partitions)
            .map(|partition| self.fold.row(partition))
            .collect();
        let busy = rows
            .iter()
            .filter(|row| !self.idle.contains(&row.partition));
        let least = busy.map(|row| row.watermark_us).min();
        let latest = rows.iter().map(|row| row.watermark_us).max();
        self.fold.raise_watermark(least.or(latest).unwrap_or(0));
    }

    fn begin_checkpoint(&mut self) {
        if self.checkpoint.is_some() {
            return;
        }
        let Some(frozen) = self.fold.freeze(random_name()) else {
            return;
        };
        // Readers must know the name before the store bears it.
        self.publish();
        let now_s = self.parts.clock.now_us().div_euclid(1_000_000);
        let floors = self.parts.config.retention.floors(now_s);
        let (names, store) = (
            Arc::clone(&self.fold.view().names),
            Arc::clone(&self.parts.store),
        );
        let task = tokio::spawn(async move {
            let rows =
                tokio::task::spawn_blocking(move || checkpoint::rows(&frozen, &names, &floors));
            match rows.await {
                Ok(rows) => checkpoint::write(store, rows).await,
                Err(error) => {
                    let source = sqlx::Error::Io(std::io::Error::other(error));
                    Checkpointed::Failed(StoreError::Database {
                        op: "sum up a checkpoint",
                        source,
                    })
                }
            }
        });
        self.checkpoint = Some((Instant::now(), task));
    }

    async fn finish_checkpoint(&mut self, done: Checkpointed) -> Result<(), Ended> {
        let Some((start, _)) = self.checkpoint.take() else {
            return Ok(());
        };
        let metrics = &self.parts.metrics;
        match done {
            Checkpointed::Done => {
                metrics
                    .core
                    .stage("checkpoint")
                    .observe(start.elapsed().as_secs_f64(), None);
                self.fold.thaw();
            }
            Checkpointed::Failed(error) => {
                tracing::warn!(%error, "the checkpoint is tried again at its next time");
                metrics.core.error("checkpoint", "store");
                return Ok(());
            }
            Checkpointed::Overtaken => {
                tracing::debug!("another instance wrote the checkpoint");
                if let Err(error) = load::overlay(&self.parts.store, &mut self.fold).await {
                    self.parts.store_failed(&error);
                    return Err(Ended::Reload);
                }
            }
        }
        self.publish();
        Ok(())
    }

    /// A position lies outside of the log: finds out which, and goes on where the log begins.
    async fn check_range(&mut self) {
        if self
            .range_checked
            .is_some_and(|at| at.elapsed() < RANGE_CHECK_EVERY)
        {
            return;
        }
        let topic = self.parts.config.topics.metrics.as_str();
        let mut beyond = None;
        for partition in 0..self.parts.partitions {
            let position = self.fold.row(partition).delta_position;
            match self.parts.reader.watermarks(topic, partition).await {
                Ok(found) if position < found.low => {
                    tracing::error!(
                        partition,
                        position,
                        low = found.low,
                        "retention removed delta batches before they were read; going on where the log begins"
                    );
                    self.follower.seek(partition, found.low);
                }
                Ok(found) if position > found.high => {
                    beyond = Some((partition, position, found.high))
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(partition, %error, "the ends of metrics-data are not known")
                }
            }
        }
        match beyond {
            Some((partition, position, end)) => self.parts.log_up.down(format!(
                "the store has read {topic}/{partition} up to {position}, but the log ends at {end}: it was replaced; \
                 restore the log, or start with an empty store"
            )),
            None => self.parts.log_up.up(),
        }
        self.range_checked = Some(Instant::now());
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn finished(checkpoint: &mut Option<(Instant, JoinHandle<Checkpointed>)>) -> Checkpointed {
    match checkpoint {
        Some((_, task)) => match task.await {
            Ok(done) => done,
            Err(error) => {
                let source = sqlx::Error::Io(std::io::Error::other(error));
                Checkpointed::Failed(StoreError::Database {
                    op: "write a checkpoint",
                    source,
                })
            }
        },
        None => pending().await,
    }
}

/// A name for a checkpoint that no other instance will draw.
fn random_name() -> i64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    (random >> 1) as i64 | 1
}
