//! Writing: idempotent, `acks=all`, with one completion for a whole batch.
//!
//! A future per record costs more than the record. Here a batch counts its outstanding
//! acknowledgements in one atomic, remembers only failures, and wakes its caller once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use rdkafka::{
    ClientConfig, ClientContext, Message, Statistics,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::KafkaError as Native,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    KafkaConfig, KafkaError, PublishError, PublisherConfig, Span, StatsSink,
    acknowledged::Acknowledged, context, stats::Stats,
};

/// How often [`Publisher::drain`] looks at the queue. librdkafka's own `flush` may oversleep.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// A record to write.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition; chosen by the key's murmur2 when `None`.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` writes a tombstone.
    pub payload: Option<&'a [u8]>,
    /// The record's time, milliseconds since the Unix epoch; the client's clock when `None`.
    pub timestamp_ms: Option<i64>,
    /// Headers, in order.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// Where an acknowledged record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// How a batch ended.
#[derive(Debug, Default)]
pub struct BatchOutcome {
    /// Records that were not acknowledged, by the order in which they were pushed; sorted.
    pub failed: Vec<(usize, PublishError)>,
    /// Where the last acknowledged record lies.
    pub last: Option<Delivery>,
}

/// A writing client; clones share it.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    stats: Option<StatsSink>,
    acknowledged: Arc<Acknowledged>,
    current: RwLock<Arc<Client>>,
}

type Threaded = ThreadedProducer<DeliveryContext>;

struct Client {
    producer: Threaded,
    fatal: Arc<AtomicBool>,
}

/// Receives delivery reports on the client's poll thread.
struct DeliveryContext {
    stats: Option<StatsSink>,
    acknowledged: Arc<Acknowledged>,
    fatal: Arc<AtomicBool>,
}

/// What a record carries through librdkafka: its batch and its place in it.
struct Ticket {
    batch: Arc<Pending>,
    index: usize,
}

/// The outstanding acknowledgements of a batch.
struct Pending {
    /// Records without an outcome, plus one while the batch is still being pushed.
    outstanding: AtomicUsize,
    state: Mutex<PendingState>,
}

struct PendingState {
    outcome: BatchOutcome,
    done: Option<oneshot::Sender<BatchOutcome>>,
}

impl Pending {
    fn fail(&self, index: usize, error: PublishError) {
        self.state.lock().outcome.failed.push((index, error));
    }

    /// Marks one outcome known and, after the last, wakes the caller.
    fn settle(&self) {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let mut state = self.state.lock();
        let mut outcome = std::mem::take(&mut state.outcome);
        outcome.failed.sort_unstable_by_key(|(index, _)| *index);
        if let Some(done) = state.done.take() {
            // The caller may have gone; the records are written all the same.
            let _ = done.send(outcome);
        }
    }
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(sink) = &self.stats {
            sink(&Stats::from(&statistics));
        }
    }

    fn error(&self, error: Native, reason: &str) {
        if matches!(PublishError::from(error.clone()), PublishError::Fatal(_)) {
            self.fatal.store(true, Ordering::Release);
        }
        tracing::warn!(target: "kafka", %error, reason, "kafka producer error");
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Self::DeliveryOpaque) {
        match result {
            Ok(message) => {
                let (partition, offset) = (message.partition(), message.offset());
                self.acknowledged.add(message.topic(), partition, offset);
                // Only single records are told where they lie; a batch shares no lock for success.
                if ticket.index == 0 {
                    let delivery = Delivery { partition, offset };
                    ticket.batch.state.lock().outcome.last = Some(delivery);
                }
            }
            Err((error, _)) => {
                let error = PublishError::from(error.clone());
                if matches!(error, PublishError::Fatal(_)) {
                    self.fatal.store(true, Ordering::Release);
                }
                ticket.batch.fail(ticket.index, error);
            }
        }
        ticket.batch.settle();
    }
}

impl Publisher {
    /// A client that connects in the background; a broker that is away is no error here.
    ///
    /// # Errors
    /// When librdkafka refuses a setting.
    pub fn new(
        kafka: &KafkaConfig,
        config: &PublisherConfig,
        stats: Option<StatsSink>,
    ) -> Result<Self, KafkaError> {
        let mut client = kafka.client(stats.as_ref())?;
        config.apply(&mut client);
        let config = kafka.finish(client)?;
        let acknowledged = Arc::new(Acknowledged::default());
        let client = Client::start(&config, stats.clone(), acknowledged.clone())?;
        let current = RwLock::new(Arc::new(client));
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                stats,
                acknowledged,
                current,
            }),
        })
    }

    /// Starts a batch; it must be finished for its outcome to be known.
    pub fn batch(&self) -> Batch {
        let (done, outcome) = oneshot::channel();
        let state = PendingState {
            outcome: BatchOutcome::default(),
            done: Some(done),
        };
        let pending = Arc::new(Pending {
            outstanding: AtomicUsize::new(1),
            state: Mutex::new(state),
        });
        Batch {
            client: self.client(),
            pending,
            outcome,
            pushed: 0,
        }
    }

    /// Writes one record and waits for its acknowledgement.
    ///
    /// # Errors
    /// Why it was not acknowledged; see [`PublishError::is_uncertain`].
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery, PublishError> {
        let mut batch = self.batch();
        batch.push(record);
        let mut outcome = batch.finish().await;
        match (outcome.failed.pop(), outcome.last) {
            (None, Some(delivery)) => Ok(delivery),
            (Some((_, error)), _) => Err(error),
            (None, None) => Err(PublishError::Refused(String::from("no delivery report"))),
        }
    }

    /// What the log has acknowledged of a topic since this client began, by partition.
    pub fn acknowledged(&self, topic: &str) -> BTreeMap<i32, Span> {
        self.shared.acknowledged.of(topic)
    }

    /// Records in the local queue and on their way.
    pub fn queue_len(&self) -> usize {
        usize::try_from(self.shared.current.read().producer.in_flight_count()).unwrap_or(0)
    }

    /// Waits until everything is acknowledged or has failed; returns how many records are left
    /// at the deadline.
    pub async fn drain(&self, deadline: Duration) -> usize {
        let end = Instant::now() + deadline;
        loop {
            let left = self.queue_len();
            if left == 0 || Instant::now() >= end {
                return left;
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    /// The current client, or a new one when the current has met a fatal error.
    fn client(&self) -> Arc<Client> {
        let current = self.shared.current.read().clone();
        if !current.fatal.load(Ordering::Acquire) {
            return current;
        }
        let mut slot = self.shared.current.write();
        if slot.fatal.load(Ordering::Acquire) {
            let (config, stats) = (&self.shared.config, self.shared.stats.clone());
            match Client::start(config, stats, self.shared.acknowledged.clone()) {
                Ok(fresh) => {
                    tracing::warn!(target: "kafka", "kafka producer replaced after a fatal error");
                    let old = std::mem::replace(&mut *slot, Arc::new(fresh));
                    // Dropping the last handle joins its thread: not on the caller's.
                    std::thread::spawn(move || drop(old));
                }
                Err(error) => {
                    tracing::error!(target: "kafka", %error, "kafka producer cannot be replaced");
                }
            }
        }
        slot.clone()
    }
}

impl Client {
    fn start(
        config: &ClientConfig,
        stats: Option<StatsSink>,
        acknowledged: Arc<Acknowledged>,
    ) -> Result<Self, KafkaError> {
        let fatal = Arc::new(AtomicBool::new(false));
        let context = DeliveryContext {
            stats,
            acknowledged,
            fatal: fatal.clone(),
        };
        let producer = Threaded::from_config_and_context(config, context)?;
        Ok(Self { producer, fatal })
    }
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits to be sent.
    Queued,
    /// The queue is full; the next record may fit again.
    Full,
    /// The record itself cannot be sent.
    Refused,
}

/// A batch that is being pushed.
pub struct Batch {
    client: Arc<Client>,
    pending: Arc<Pending>,
    outcome: oneshot::Receiver<BatchOutcome>,
    pushed: usize,
}

impl Batch {
    /// Queues a record. A failure to queue is an outcome like any other, under its index; it is told at once as well,
    /// for callers that must not queue what comes after it.
    pub fn push(&mut self, record: Record<'_>) -> Pushed {
        let index = self.pushed;
        self.pushed += 1;
        self.pending.outstanding.fetch_add(1, Ordering::AcqRel);
        let ticket = Box::new(Ticket {
            batch: self.pending.clone(),
            index,
        });
        if let Err((error, record)) = self.client.producer.send(base_record(&record, ticket)) {
            let ticket = record.delivery_opaque;
            let error = PublishError::from(error);
            let full = error == PublishError::QueueFull;
            ticket.batch.fail(index, error);
            ticket.batch.settle();
            return if full { Pushed::Full } else { Pushed::Refused };
        }
        Pushed::Queued
    }

    /// How many records were pushed.
    pub fn len(&self) -> usize {
        self.pushed
    }

    /// Whether no record was pushed.
    pub fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// Waits until every record is acknowledged or has failed, which the delivery time-out bounds.
    pub async fn finish(self) -> BatchOutcome {
        self.pending.settle();
        // The sender lives in `pending`, which this future holds, until it has sent.
        self.outcome.await.unwrap_or_default()
    }
}

fn base_record<'a>(
    record: &Record<'a>,
    ticket: Box<Ticket>,
) -> BaseRecord<'a, [u8], [u8], Box<Ticket>> {
    let mut base = BaseRecord::with_opaque_to(record.topic, ticket);
    base.partition = record.partition;
    base.key = record.key;
    base.payload = record.payload;
    base.timestamp = record.timestamp_ms;
    if !record.headers.is_empty() {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers {
            headers = headers.insert(Header {
                key,
                value: Some(*value),
            });
        }
        base = base.headers(headers);
    }
    base
}
