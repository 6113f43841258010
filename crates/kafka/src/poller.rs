//! The poll loop that group members and followers share: one thread, bounded mailboxes.
//!
//! Records are copied into chunks and handed to the mailbox of their partition. A full mailbox is
//! waited for a moment; then its partition is paused until there is room, so that one slow owner
//! neither stops the others nor grows memory. Nothing is ever dropped for lack of room.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, mpsc::TryRecvError},
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError as Native, KafkaResult},
    message::BorrowedMessage,
    types::RDKafkaErrorCode,
};
use tokio::runtime::Handle;

use crate::{
    ChunkBuilder, FetchConfig, Polled,
    mailbox::{Command, Commands, Mailbox, Refused},
};

/// Time for librdkafka to carry out a seek; it is asked again after that.
const SEEK_TIMEOUT: Duration = Duration::from_secs(2);
/// Records after which the clock is looked at, so that a steady stream does not delay a quiet partition.
const CLOCK_EVERY: u32 = 128;
/// Longest time that a record lies in an unfinished chunk while others stream.
const CHUNK_AGE_MAX: Duration = Duration::from_millis(5);
/// Least time between two warnings about an unreachable broker.
const WARN_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Poller<C: ConsumerContext + 'static> {
    pub(crate) consumer: Arc<BaseConsumer<C>>,
    pub(crate) topic: String,
    pub(crate) config: FetchConfig,
    pub(crate) commands: Arc<Commands>,
    pub(crate) runtime: Handle,
    pub(crate) slots: Vec<Option<Slot>>,
    /// Partitions of which one or another has left its log; librdkafka does not say which. One that
    /// has takes no seek any more and must be assigned anew.
    pub(crate) fallen: BTreeSet<i32>,
    /// Partitions without an owner yet that were left out when all were assigned anew.
    pub(crate) resting: Resting,
}

/// Partitions that the group has given to this client and that the client does not fetch: at which
/// offset they begin is their owners' to say, and any other may be one that retention has taken.
#[derive(Default)]
pub(crate) struct Resting {
    partitions: BTreeSet<i32>,
    /// The rebalance after which they were set aside; another one makes them void.
    rebalance: u64,
}

/// What the loop knows of a partition.
pub(crate) struct Slot {
    mailbox: Mailbox,
    builder: ChunkBuilder,
    /// What the mailbox had no room for: at most one chunk and one mark.
    waiting: VecDeque<Polled>,
    /// The next offset to hand over.
    next: i64,
    /// The position that librdkafka did not take yet.
    seeking: Option<i64>,
    /// Held by a person.
    held: bool,
    /// Paused because the mailbox is full.
    stalled: bool,
}

impl Slot {
    pub(crate) fn new(partition: i32, offset: i64, mailbox: Mailbox) -> Self {
        Self {
            mailbox,
            builder: ChunkBuilder::new(partition),
            waiting: VecDeque::new(),
            next: offset,
            seeking: None,
            held: false,
            stalled: false,
        }
    }
}

impl<C: ConsumerContext + 'static> Poller<C> {
    /// Polls until told to close or until the last handle is gone.
    pub(crate) fn run(mut self) {
        let (mut records, mut flushed, mut warned) = (0u32, Instant::now(), None);
        while self.obey() {
            self.retry_seeks();
            self.retry_stalled();
            let pending = self
                .slots
                .iter()
                .flatten()
                .any(|slot| !slot.builder.is_empty());
            let wait_ms = if pending {
                0
            } else {
                u64::from(self.config.wait_ms)
            };
            let consumer = self.consumer.clone();
            match consumer.poll(Duration::from_millis(wait_ms)) {
                None => self.flush_all(),
                Some(Ok(message)) => {
                    self.route(&message);
                    records = records.wrapping_add(1);
                    if records.is_multiple_of(CLOCK_EVERY) && flushed.elapsed() > CHUNK_AGE_MAX {
                        self.flush_all();
                        flushed = Instant::now();
                    }
                }
                Some(Err(Native::PartitionEOF(partition))) => self.reached_end(partition),
                Some(Err(error)) => self.note(&error, &mut warned),
            }
        }
    }

    /// Carries out what was asked; `false` when it is time to end.
    fn obey(&mut self) -> bool {
        loop {
            let command = self.commands.next();
            match command {
                Ok(Command::Start {
                    partition,
                    offset,
                    mailbox,
                }) => {
                    self.put(partition, Some(Slot::new(partition, offset, mailbox)));
                    self.seek(partition, offset);
                }
                Ok(Command::Seek { partition, offset }) => self.seek(partition, offset),
                Ok(Command::Stop(partition)) => self.put(partition, None),
                Ok(Command::Hold(partition)) => self.hold(partition, true),
                Ok(Command::Release(partition)) => self.hold(partition, false),
                Ok(Command::Commit {
                    partition,
                    offset,
                    metadata,
                }) => commit(
                    &self.consumer,
                    &self.topic,
                    partition,
                    offset,
                    &metadata,
                    CommitMode::Async,
                ),
                Ok(Command::Acknowledge) => {}
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn put(&mut self, partition: i32, slot: Option<Slot>) {
        let Ok(at) = usize::try_from(partition) else {
            return;
        };
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = slot;
    }

    fn slot(&mut self, partition: i32) -> Option<&mut Slot> {
        usize::try_from(partition)
            .ok()
            .and_then(|at| self.slots.get_mut(at)?.as_mut())
    }

    /// Positions a partition. Resuming comes first: a seek moves the barrier that discards what
    /// was fetched before, so that nothing stale is handed over.
    fn seek(&mut self, partition: i32, offset: i64) {
        let (topic, consumer) = (self.topic.clone(), self.consumer.clone());
        let Some(slot) = self.slot(partition) else {
            return;
        };
        slot.builder.clear();
        slot.waiting.clear();
        slot.next = offset;
        slot.stalled = false;
        slot.seeking = Some(offset);
        let moved = if self.fallen.contains(&partition) || self.resting().contains(&partition) {
            self.assign_anew(partition, offset)
        } else {
            consumer.resume(&one(&topic, partition)).and_then(|()| {
                consumer.seek(&topic, partition, Offset::Offset(offset), SEEK_TIMEOUT)
            })
        };
        let Some(slot) = self.slot(partition) else {
            return;
        };
        match moved {
            Ok(()) => {
                slot.seeking = None;
                if slot.held {
                    self.set_paused(partition, true);
                }
            }
            Err(error) => {
                tracing::debug!(partition, offset, %error, "seek has to be asked again");
                // One that has left its log refuses every seek. Usually an error told that it has,
                // but what was told before a pause or another seek is thrown away by librdkafka.
                if self.assigned().is_ok_and(|all| all.contains(&partition)) {
                    self.fallen.insert(partition);
                }
            }
        }
    }

    /// Takes a partition out of the assignment and in again, at this position. Where assignments
    /// are whole, all are assigned anew where they stand.
    fn assign_anew(&mut self, partition: i32, offset: i64) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        if matches!(
            self.consumer.rebalance_protocol(),
            RebalanceProtocol::Cooperative
        ) {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
            self.consumer
                .incremental_unassign(&one(&self.topic, partition))?;
            self.consumer.incremental_assign(&list)?;
            self.set_paused(partition, false);
            self.fallen.remove(&partition);
            return Ok(());
        }
        let assigned = self.assigned()?;
        let mut resting = BTreeSet::new();
        for at in &assigned {
            let next = self.slot(*at).map(|slot| slot.seeking.unwrap_or(slot.next));
            match next {
                Some(next) => {
                    list.add_partition_offset(&self.topic, *at, Offset::Offset(next))?;
                }
                None => {
                    resting.insert(*at);
                }
            }
        }
        self.consumer.assign(&list)?;
        self.resting = Resting {
            partitions: resting,
            rebalance: self.commands.rebalances(),
        };
        self.fallen.clear();
        for at in assigned {
            let Some(slot) = self.slot(at) else {
                continue;
            };
            slot.seeking = None;
            let paused = slot.held || slot.stalled;
            // A pause outlives an assignment, the one from before the owner came as well.
            self.set_paused(at, paused);
        }
        Ok(())
    }

    /// What the group has given to this client, those at rest included.
    fn assigned(&mut self) -> KafkaResult<BTreeSet<i32>> {
        let list = self.consumer.assignment()?;
        let elements = list.elements_for_topic(&self.topic);
        let fetched = elements.iter().map(|element| element.partition());
        let mut all = self.resting().clone();
        all.extend(fetched);
        Ok(all)
    }

    fn resting(&mut self) -> &BTreeSet<i32> {
        let rebalance = self.commands.rebalances();
        if self.resting.rebalance != rebalance {
            self.resting = Resting {
                partitions: BTreeSet::new(),
                rebalance,
            };
        }
        &self.resting.partitions
    }

    fn retry_seeks(&mut self) {
        for at in 0..self.slots.len() {
            if let Some(offset) = self.slots[at].as_ref().and_then(|slot| slot.seeking) {
                self.seek(at as i32, offset);
            }
        }
    }

    fn hold(&mut self, partition: i32, held: bool) {
        let Some(slot) = self.slot(partition) else {
            return;
        };
        slot.held = held;
        let paused = held || slot.stalled;
        self.set_paused(partition, paused);
    }

    fn set_paused(&self, partition: i32, paused: bool) {
        let list = one(&self.topic, partition);
        let result = if paused {
            self.consumer.pause(&list)
        } else {
            self.consumer.resume(&list)
        };
        if let Err(error) = result {
            tracing::debug!(partition, paused, %error, "partition is not ours to pause");
        }
    }

    fn route(&mut self, message: &BorrowedMessage<'_>) {
        let partition = message.partition();
        let (records_max, bytes_max) = (
            self.config.chunk_records_max.max(1),
            self.config.chunk_kib_max.max(1) * 1024,
        );
        let Some(slot) = self.slot(partition) else {
            return;
        };
        // Before a seek took hold, or left over from an earlier position: not asked for.
        if slot.seeking.is_some() || message.offset() < slot.next {
            return;
        }
        slot.next = message.offset() + 1;
        slot.builder.push_message(message);
        if slot.builder.len() >= records_max || slot.builder.size_bytes() >= bytes_max {
            self.flush(partition);
        }
    }

    fn flush_all(&mut self) {
        for at in 0..self.slots.len() {
            self.flush(at as i32);
        }
    }

    fn flush(&mut self, partition: i32) {
        if let Some(chunk) = self.slot(partition).and_then(|slot| slot.builder.take()) {
            self.offer(partition, Polled::Records(chunk));
        }
    }

    fn reached_end(&mut self, partition: i32) {
        self.flush(partition);
        let Some(slot) = self.slot(partition) else {
            return;
        };
        if slot.seeking.is_none() {
            let offset = slot.next;
            self.offer(partition, Polled::End { offset });
        }
    }

    fn note(&mut self, error: &Native, warned: &mut Option<Instant>) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) {
            self.flush_all();
            let assigned = self.assigned().unwrap_or_default();
            self.fallen.extend(assigned);
            for at in 0..self.slots.len() {
                if self.slots[at]
                    .as_ref()
                    .is_some_and(|slot| slot.seeking.is_none())
                {
                    self.offer(at as i32, Polled::OutOfRange);
                }
            }
        } else if warned.is_none_or(|last| last.elapsed() > WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(target: "kafka", topic = self.topic, %error, "reading is held up");
        }
    }

    /// Hands an item over, waits a moment for room, or sets it aside and pauses the partition.
    fn offer(&mut self, partition: i32, item: Polled) {
        let stall = Duration::from_millis(self.config.stall_before_pause_ms);
        let runtime = self.runtime.clone();
        let Some(slot) = self.slot(partition) else {
            return;
        };
        if !slot.waiting.is_empty() {
            slot.waiting.push_back(item);
            return;
        }
        match slot.mailbox.try_send(partition, item) {
            Ok(()) => {}
            Err(Refused::Closed) => self.put(partition, None),
            Err(Refused::Full(item)) => {
                match runtime.block_on(slot.mailbox.send_within(partition, item, stall)) {
                    Ok(()) => {}
                    Err(Refused::Closed) => self.put(partition, None),
                    Err(Refused::Full(item)) => {
                        slot.waiting.push_back(item);
                        slot.stalled = true;
                        self.set_paused(partition, true);
                    }
                }
            }
        }
    }

    fn retry_stalled(&mut self) {
        for at in 0..self.slots.len() {
            let partition = at as i32;
            let Some(slot) = self.slot(partition) else {
                continue;
            };
            if slot.waiting.is_empty() {
                continue;
            }
            while let Some(item) = slot.waiting.pop_front() {
                match slot.mailbox.try_send(partition, item) {
                    Ok(()) => {}
                    Err(Refused::Full(item)) => {
                        slot.waiting.push_front(item);
                        break;
                    }
                    Err(Refused::Closed) => {
                        slot.waiting.clear();
                        break;
                    }
                }
            }
            if slot.waiting.is_empty() && slot.stalled {
                slot.stalled = false;
                let held = slot.held;
                self.set_paused(partition, held);
            }
        }
    }
}

pub(crate) fn one(topic: &str, partition: i32) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(1);
    list.add_partition(topic, partition);
    list
}

pub(crate) fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    offset: i64,
    metadata: &str,
    mode: CommitMode,
) {
    let mut list = TopicPartitionList::with_capacity(1);
    let mut element = list.add_partition(topic, partition);
    element.set_metadata(metadata);
    let result = element
        .set_offset(Offset::Offset(offset))
        .and_then(|()| consumer.commit(&list, mode));
    if let Err(error) = result {
        tracing::warn!(partition, offset, %error, "offset not committed; the chain has it");
    }
}
