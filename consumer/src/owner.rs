//! The shell around one partition's state machine: an actor with its own state and a bounded mailbox.
//!
//! It hands in what it reads and carries out what it is told; every decision is the core's. Requests to Kafka that
//! fail are asked again, with growing waits, until they succeed or the partition goes away.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use streamgauge_kafka::{Chunk, GroupReader, KafkaError, LogReader, Polled, Publisher, Record};
use streamgauge_lifecycle::{SharedClock, Shutdown};
use streamgauge_resilience::{Backoff, BackoffConfig};
use streamgauge_telemetry::{Span, context::TRACEPARENT};
use tokio::sync::mpsc;

use crate::{
    config::Config,
    core::partition::{
        Effect, Input, Partition, Problem, Settings, SourceRecord, StateName, Taken, Ticket,
    },
    dead_letter::{self, DeadLetter, Origin},
    metrics::{CONFIRM, ConsumerMetrics, EMIT, POLL, PROCESS, RECOVER},
    status::OwnerView,
    trace::Spans,
};

/// What all owners of an instance share.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// The group's client.
    pub group: Arc<GroupReader>,
    /// Reads `metrics-data` back, and asks for offsets.
    pub reader: LogReader,
    /// Writes batches.
    pub deltas: Publisher,
    /// Writes dead letters.
    pub dead_letters: Publisher,
    /// What is counted.
    pub metrics: ConsumerMetrics,
    /// Time.
    pub clock: SharedClock,
}

impl Shared {
    fn backoff(&self) -> BackoffConfig {
        BackoffConfig {
            initial_ms: self.config.owner.retry_ms_min,
            max_ms: self.config.owner.retry_ms_max,
            multiplier: 2.0,
            attempts: 0,
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock.monotonic().as_millis() as u64
    }
}

/// The end of something that ran beside the owner.
enum Answer {
    Delivered { ticket: Ticket, offset: i64 },
    Failed { ticket: Ticket },
    DeadLetters { incarnation: u64, count: u64 },
}

type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The chunk that is being taken, and how far it was.
struct Current {
    ticket: Ticket,
    chunk: Chunk,
    next: usize,
}

/// The mailbox of the current position; records of earlier positions went with theirs.
struct Mailbox {
    ticket: Ticket,
    receiver: mpsc::Receiver<Polled>,
}

/// One owner.
pub struct Owner {
    shared: Arc<Shared>,
    partition_id: i32,
    partition: Partition,
    effects: Vec<Effect>,
    running: FuturesUnordered<Running>,
    mailbox: Option<Mailbox>,
    current: Option<Current>,
    spans: Arc<Spans>,
    view: OwnerView,
    /// Raised when the partition goes to another owner.
    revoked: Shutdown,
    /// The core was told of that.
    told: bool,
    recovering_since: Option<Duration>,
    was_paused: bool,
    stopped: bool,
}

impl Owner {
    /// An owner that has done nothing yet.
    pub fn new(
        shared: Arc<Shared>,
        partition: i32,
        settings: Settings,
        spans: Spans,
        view: OwnerView,
        revoked: Shutdown,
    ) -> Self {
        Self {
            partition_id: partition,
            partition: Partition::new(Arc::new(settings)),
            effects: Vec::new(),
            running: FuturesUnordered::new(),
            mailbox: None,
            current: None,
            spans: Arc::new(spans),
            view,
            revoked,
            told: false,
            recovering_since: Some(shared.clock.monotonic()),
            was_paused: false,
            stopped: false,
            shared,
        }
    }

    /// Owns the partition until it is revoked and everything in flight is confirmed.
    pub async fn run(mut self) {
        let committed = self.ask("committed", |owner| {
            let (group, partition) = (Arc::clone(&owner.shared.group), owner.partition_id);
            async move { group.committed(partition).await }
        });
        let Some(committed) = committed.await else {
            return;
        };
        let committed = committed
            .as_ref()
            .map(|(offset, text)| (*offset, text.as_str()));
        self.handle(Input::Committed(committed));
        self.turn().await;
        while !self.stopped {
            self.wait().await;
            self.turn().await;
        }
        tracing::debug!(partition = self.partition_id, "owner stopped");
    }

    /// Carries out what the core asked for, takes what was read, and reports.
    async fn turn(&mut self) {
        self.carry_out().await;
        self.take_current();
        self.handle(Input::Tick);
        self.carry_out().await;
        self.report();
    }

    /// Waits for whatever comes first.
    async fn wait(&mut self) {
        let paused = self.view.is_paused();
        self.follow_pause(paused);
        let reading = !paused && !self.told && self.current.is_none();
        let tick = self
            .partition
            .next_tick_ms()
            .map(|at_ms| Duration::from_millis(at_ms.saturating_sub(self.shared.now_ms()).max(1)));
        let idle_since = self.shared.clock.monotonic();
        tokio::select! {
            biased;
            () = self.revoked.triggered(), if !self.told => self.hear_revoke(),
            Some(answer) = self.running.next(), if !self.running.is_empty() => self.hear(answer),
            polled = receive(&mut self.mailbox), if reading && self.mailbox.is_some() => {
                let waited = self.shared.clock.monotonic().saturating_sub(idle_since);
                self.shared.metrics.stage(POLL).observe(waited.as_secs_f64(), None);
                match polled {
                    Some((ticket, polled)) => self.receive(ticket, polled).await,
                    // The group's client has let go of the partition; membership will say so.
                    None => self.mailbox = None,
                }
            }
            () = sleep(tick), if tick.is_some() => {}
            () = self.view.changed() => {}
        }
    }

    /// The partition goes to another owner. What is in flight is confirmed first.
    fn hear_revoke(&mut self) {
        self.told = true;
        self.handle(Input::Revoke);
    }

    fn has_stopped(&self) -> bool {
        self.partition.progress().state == StateName::Stopped
    }

    /// Waits; a revoke that comes meanwhile is heard at once. `false` when the core has stopped.
    async fn pause_for(&mut self, wait: Duration) -> bool {
        let revoked = self.revoked.clone();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = revoked.triggered(), if !self.told => self.hear_revoke(),
        }
        !self.has_stopped()
    }

    fn follow_pause(&mut self, paused: bool) {
        if paused != self.was_paused {
            self.was_paused = paused;
            tracing::info!(partition = self.partition_id, paused, "pause");
            if paused {
                self.shared.group.pause(self.partition_id);
            } else {
                self.shared.group.resume(self.partition_id);
            }
        }
    }

    fn handle(&mut self, input: Input<'_>) {
        self.partition
            .handle(input, self.shared.now_ms(), &mut self.effects);
    }

    fn hear(&mut self, answer: Answer) {
        match answer {
            Answer::Delivered { ticket, offset } => {
                self.handle(Input::BatchDelivered { ticket, offset })
            }
            Answer::Failed { ticket } => self.handle(Input::BatchFailed { ticket }),
            Answer::DeadLetters { incarnation, count } => {
                self.handle(Input::DeadLettersAcknowledged { incarnation, count });
            }
        }
    }

    async fn receive(&mut self, ticket: Ticket, polled: Polled) {
        match polled {
            Polled::Records(chunk) => {
                self.current = Some(Current {
                    ticket,
                    chunk,
                    next: 0,
                })
            }
            Polled::End { offset } => self.handle(Input::EndOfPartition { ticket, offset }),
            Polled::OutOfRange => self.check_range(ticket).await,
        }
    }

    /// Some partition of the client is outside of its log: is it this one? If not it is read on
    /// from where it stands, for it may have been this one a moment ago, and then nothing more comes.
    async fn check_range(&mut self, ticket: Ticket) {
        let Some(ends) = self.ask("horizon", Self::source_ends).await else {
            return;
        };
        let position = self.partition.progress().position;
        if position < ends.low || position > ends.high {
            self.handle(Input::OutOfRange {
                ticket,
                low: ends.low,
            });
        } else {
            self.seek(ticket, position);
        }
    }

    /// Takes as much of the current chunk as the core does.
    fn take_current(&mut self) {
        let Some(mut current) = self.current.take() else {
            return;
        };
        let started = self.shared.clock.monotonic();
        let (now_ms, now_us) = (self.shared.now_ms(), self.shared.clock.now_us());
        self.partition.see_clock(now_us);
        let mut letters = Vec::new();
        let mut sampled = None;
        while let Some(record) = current.chunk.get(current.next) {
            let span = self.span_of(&record);
            let context = span.as_ref().and_then(Span::context);
            let source = SourceRecord {
                offset: record.offset,
                timestamp_ms: record.timestamp_ms,
                key: record.key,
                payload: record.payload,
                trace: context.map(|context| context.to_bytes()),
            };
            match self
                .partition
                .take(current.ticket, &source, now_ms, &mut self.effects)
            {
                Taken::Done => {}
                Taken::Full => break,
                Taken::DeadLetter(reject) => {
                    if let Some(mut span) = span {
                        span.error(reject.reason.as_str());
                    }
                    letters.push(DeadLetter::new(self.origin(), &record, &reject, now_us));
                }
            }
            sampled = context.or(sampled);
            current.next += 1;
        }
        let spent = self.shared.clock.monotonic().saturating_sub(started);
        self.shared
            .metrics
            .stage(PROCESS)
            .observe(spent.as_secs_f64(), sampled);
        self.send_dead_letters(letters);
        if current.next < current.chunk.len() {
            self.current = Some(current);
        }
    }

    fn span_of(&self, record: &streamgauge_kafka::RecordRef<'_>) -> Option<Span> {
        if record.headers.is_empty() || !self.partition.wants_trace(record.offset) {
            return None;
        }
        self.spans.process(record)
    }

    fn origin(&self) -> Origin<'_> {
        Origin {
            topic: &self.shared.config.topics.events,
            partition: self.partition_id,
            group: &self.shared.config.group.group,
        }
    }

    fn send_dead_letters(&mut self, letters: Vec<DeadLetter>) {
        if letters.is_empty() {
            return;
        }
        let (shared, view) = (Arc::clone(&self.shared), self.view.clone());
        let (incarnation, partition) = (self.partition.incarnation(), self.partition_id);
        self.running.push(Box::pin(async move {
            let reasons: Vec<_> = letters.iter().map(|letter| letter.reason).collect();
            let target = dead_letter::Target {
                publisher: &shared.dead_letters,
                topic: &shared.config.topics.dead_letters,
                backoff: &shared.backoff(),
                refusals_max: shared.config.owner.dead_letter_refusals_max,
            };
            dead_letter::write(&target, letters, |error| {
                tracing::warn!(partition, %error, "dead letters are not written yet");
                shared.metrics.core().error("kafka", "dead_letter");
                view.error(format!("dead letters: {error}"));
            })
            .await;
            let count = reasons.len() as u64;
            reasons
                .into_iter()
                .for_each(|reason| shared.metrics.dead_letter(reason));
            Answer::DeadLetters { incarnation, count }
        }));
    }

    /// Carries out effects until there is none; some lead to others.
    async fn carry_out(&mut self) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out_one(effect).await;
            }
        }
    }

    async fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::AskChain { ticket } => self.ask_chain(ticket).await,
            Effect::ReadChain { ticket, from, to } => self.read_chain(ticket, from, to).await,
            Effect::FindHorizon {
                ticket,
                log_time_ms,
            } => self.find_horizon(ticket, log_time_ms).await,
            Effect::SeekSource { ticket, offset } => self.seek(ticket, offset),
            Effect::WriteBatch {
                ticket,
                batch,
                records,
                traces,
            } => {
                let span = self.spans.send(&traces, records);
                self.write_batch(ticket, batch, span);
            }
            Effect::Commit { offset, metadata } => {
                self.shared
                    .group
                    .commit(self.partition_id, offset, metadata);
            }
            Effect::Confirmed(report) => {
                let now_ms = self.shared.now_ms();
                let seconds =
                    |since_ms: u64, to_ms: u64| to_ms.saturating_sub(since_ms) as f64 / 1e3;
                let metrics = &self.shared.metrics;
                metrics
                    .stage(EMIT)
                    .observe(seconds(report.opened_at_ms, report.written_at_ms), None);
                metrics
                    .stage(CONFIRM)
                    .observe(seconds(report.written_at_ms, now_ms), None);
                metrics.confirmed(&report);
            }
            Effect::Problem(problem) => self.tell(&problem),
            Effect::Stopped => self.stopped = true,
        }
    }

    fn tell(&mut self, problem: &Problem) {
        let partition = self.partition_id;
        match problem {
            Problem::Overtaken { .. } => tracing::warn!(partition, "{problem}"),
            _ => tracing::error!(partition, "{problem}"),
        }
        if matches!(problem, Problem::Overtaken { .. }) {
            self.recovering_since = Some(self.shared.clock.monotonic());
        }
        self.shared.metrics.core().error("chain", problem.kind());
        self.view.error(problem.to_string());
    }

    async fn ask_chain(&mut self, ticket: Ticket) {
        let ends = self.ask("chain_bounds", |owner| {
            let (shared, partition) = (Arc::clone(&owner.shared), owner.partition_id);
            async move {
                shared
                    .reader
                    .watermarks(&shared.config.topics.metrics, partition)
                    .await
            }
        });
        if let Some(ends) = ends.await {
            self.handle(Input::ChainBounds {
                ticket,
                low: ends.low,
                high: ends.high,
            });
        }
    }

    /// Reads in place: until the log is read there is nothing else to do. What was handed over before a failure is
    /// not taken twice, and asking for the ends again finds out whether the log was cut meanwhile.
    async fn read_chain(&mut self, ticket: Ticket, from: i64, to: i64) {
        let (shared, revoked, told) = (Arc::clone(&self.shared), self.revoked.clone(), self.told);
        let topic = &shared.config.topics.metrics;
        let (partition, effects, now_ms) =
            (&mut self.partition, &mut self.effects, shared.now_ms());
        let read = shared
            .reader
            .read_range(topic, self.partition_id, from, to, |chunk| {
                for record in chunk.iter() {
                    let (offset, payload) = (record.offset, record.payload);
                    partition.handle(
                        Input::ChainRecord {
                            ticket,
                            offset,
                            payload,
                        },
                        now_ms,
                        effects,
                    );
                }
            });
        let result = tokio::select! {
            result = read => Some(result),
            () = revoked.triggered(), if !told => None,
        };
        let go_on = match result {
            Some(Ok(())) => return self.handle(Input::ChainEnd { ticket, next: to }),
            Some(Err(error)) => {
                self.failed("chain_read", &error);
                let wait = Duration::from_millis(shared.config.owner.retry_ms_max);
                self.pause_for(wait).await
            }
            // While a batch's outcome is open the reading goes on, up to the time for revoking.
            None => {
                self.hear_revoke();
                !self.has_stopped()
            }
        };
        if go_on {
            self.ask_chain(ticket).await;
        }
    }

    async fn find_horizon(&mut self, ticket: Ticket, log_time_ms: Option<i64>) {
        let found = self.ask("horizon", |owner| {
            let (shared, partition) = (Arc::clone(&owner.shared), owner.partition_id);
            async move {
                let topic = &shared.config.topics.events;
                let offset = match log_time_ms {
                    Some(time) => {
                        shared
                            .reader
                            .offset_for_time(topic, partition, time)
                            .await?
                    }
                    None => Some(0),
                };
                // Asked last, so that the offset is not beyond the end.
                Ok((offset, shared.reader.watermarks(topic, partition).await?))
            }
        });
        if let Some((offset, ends)) = found.await {
            let (low, high) = (ends.low, ends.high);
            self.view.set_end(high);
            self.handle(Input::HorizonStart {
                ticket,
                offset,
                low,
                high,
            });
        }
    }

    fn source_ends(
        owner: &Self,
    ) -> impl Future<Output = Result<streamgauge_kafka::Watermarks, KafkaError>> + Send + use<>
    {
        let (shared, partition) = (Arc::clone(&owner.shared), owner.partition_id);
        async move {
            shared
                .reader
                .watermarks(&shared.config.topics.events, partition)
                .await
        }
    }

    /// A new mailbox for a new position: what was read for an earlier one goes with its own.
    fn seek(&mut self, ticket: Ticket, offset: i64) {
        let (sender, receiver) = mpsc::channel(self.shared.config.owner.mailbox_chunks_max);
        self.current = None;
        self.mailbox = Some(Mailbox { ticket, receiver });
        self.shared.group.start(self.partition_id, offset, sender);
        if self.was_paused {
            self.shared.group.pause(self.partition_id);
        }
    }

    fn write_batch(&mut self, ticket: Ticket, batch: bytes::Bytes, mut span: Span) {
        let (shared, view) = (Arc::clone(&self.shared), self.view.clone());
        let partition = self.partition_id;
        self.running.push(Box::pin(async move {
            let header = span.context().map(|context| context.header());
            let headers: Vec<(&str, &[u8])> =
                header.iter().map(|header| (TRACEPARENT, header.as_bytes())).collect();
            let record = Record {
                topic: &shared.config.topics.metrics,
                partition: Some(partition),
                key: None,
                payload: Some(&batch),
                timestamp_ms: None,
                headers: &headers,
            };
            match shared.deltas.send(record).await {
                Ok(delivery) => Answer::Delivered { ticket, offset: delivery.offset },
                Err(error) => {
                    span.error("write");
                    tracing::warn!(partition, %error, "the outcome of a batch is read from the log");
                    shared.metrics.core().error("kafka", "write");
                    view.error(format!("writing a batch: {error}"));
                    Answer::Failed { ticket }
                }
            }
        }));
    }

    /// Asks Kafka until it answers; `None` when the core has stopped meanwhile. One that was revoked
    /// with a batch in flight has not, and still needs its answer.
    async fn ask<T, F>(&mut self, kind: &'static str, request: impl Fn(&Self) -> F) -> Option<T>
    where
        F: Future<Output = Result<T, KafkaError>>,
    {
        let revoked = self.revoked.clone();
        let waits = Backoff::new(
            &self.shared.backoff(),
            self.partition_id.unsigned_abs().into(),
        );
        for wait in waits {
            let answer = tokio::select! {
                answer = request(self) => Some(answer),
                () = revoked.triggered(), if !self.told => None,
            };
            let go_on = match answer {
                Some(Ok(answer)) => return Some(answer),
                Some(Err(error)) => {
                    self.failed(kind, &error);
                    self.pause_for(wait).await
                }
                None => {
                    self.hear_revoke();
                    !self.has_stopped()
                }
            };
            if !go_on {
                return None;
            }
        }
        None
    }

    fn failed(&self, kind: &'static str, error: &KafkaError) {
        tracing::warn!(partition = self.partition_id, kind, %error, "Kafka is asked again");
        self.shared.metrics.core().error("kafka", kind);
        self.view.error(format!("{kind}: {error}"));
    }

    fn report(&mut self) {
        let progress = self.partition.progress();
        if matches!(progress.state, StateName::Running | StateName::Backpressure)
            && let Some(since) = self.recovering_since.take()
        {
            let spent = self.shared.clock.monotonic().saturating_sub(since);
            self.shared
                .metrics
                .stage(RECOVER)
                .observe(spent.as_secs_f64(), None);
            let (partition, head) = (self.partition_id, progress.head);
            tracing::info!(
                partition,
                head,
                seconds = spent.as_secs_f64(),
                "reading on at the head"
            );
        }
        if let Some(before) = self.view.report(progress) {
            self.shared
                .metrics
                .progressed(self.partition_id, &before, &progress);
        }
    }
}

async fn receive(mailbox: &mut Option<Mailbox>) -> Option<(Ticket, Polled)> {
    let mailbox = mailbox.as_mut()?;
    mailbox
        .receiver
        .recv()
        .await
        .map(|polled| (mailbox.ticket, polled))
}

async fn sleep(duration: Option<Duration>) {
    tokio::time::sleep(duration.unwrap_or_default()).await;
}
