//! The shell around one partition's state machine: an actor with its own state and a bounded mailbox.
//!
//! It hands in what it reads and carries out what it is told; every decision is the core's. Requests to Kafka that
//! fail are asked again, with growing waits, until they succeed or the partition goes away.

mod effects;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use streamgauge_kafka::{Chunk, GroupReader, LogReader, Polled, Publisher};
use streamgauge_lifecycle::{SharedClock, Shutdown};
use streamgauge_resilience::BackoffConfig;
use streamgauge_telemetry::Span;
use tokio::sync::mpsc;

use crate::{
    config::Config,
    core::partition::{Effect, Input, Partition, Settings, SourceRecord, StateName, Taken, Ticket},
    dead_letter::{DeadLetter, Origin},
    metrics::{ConsumerMetrics, POLL, PROCESS, RECOVER},
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
    Delivered {
        ticket: Ticket,
        offset: i64,
    },
    Failed {
        ticket: Ticket,
    },
    DeadLetters {
        incarnation: u64,
        count: u64,
        bytes: usize,
    },
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
            Answer::DeadLetters {
                incarnation,
                count,
                bytes,
            } => self.handle(Input::DeadLettersAcknowledged {
                incarnation,
                count,
                bytes,
            }),
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
        let (mut letters, mut letters_bytes) = (Vec::new(), 0);
        let mut sampled = None;
        while let Some(record) = current.chunk.get(current.next) {
            let span = self.span_of(&record);
            let context = span.as_ref().and_then(Span::context);
            let source = SourceRecord {
                offset: record.offset,
                timestamp_ms: record.timestamp_ms,
                key: record.key,
                payload: record.payload,
                headers_bytes: DeadLetter::headers_bytes(record.headers),
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
                    letters_bytes += source.letter_bytes();
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
        self.send_dead_letters(letters, letters_bytes);
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
