//! Reading as a member of a group: who owns which partition, and a position that is committed.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self as std_mpsc, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError as Native, KafkaResult},
    types::RDKafkaRespErr,
};
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{Receiver, Sender, channel},
        watch,
    },
};

use crate::{
    GroupConfig, KafkaConfig, KafkaError, Polled, StatsSink, context,
    mailbox::{Command, Commands, Mailbox},
    patience::ask,
    poller::{Poller, Resting, commit, one},
    stats::Stats,
};

/// Changes of membership that may wait to be taken; the poll thread waits beyond.
const MEMBERSHIP_QUEUE: usize = 64;

/// A change of what this member owns.
#[derive(Debug)]
pub enum Membership {
    /// These partitions are ours; each waits, unread, until [`GroupReader::start`]. None, where there are more members
    /// than partitions or none has moved.
    Assigned(Vec<i32>),
    /// These partitions go to another member. The rebalance waits, within its bound, for
    /// [`GroupReader::acknowledge_revoked`].
    Revoked(Vec<i32>),
    /// These partitions are already another member's: nothing may be committed for them.
    Lost(Vec<i32>),
}

/// A member of a consumer group.
pub struct GroupReader {
    consumer: Arc<BaseConsumer<GroupContext>>,
    commands: std_mpsc::Sender<Command>,
    closing: Arc<AtomicBool>,
    /// None once it is closed.
    thread: Option<JoinHandle<()>>,
    ended: Ended,
    topic: String,
    request_timeout: Duration,
}

/// The callbacks of a member; they run on the poll thread.
struct GroupContext {
    topic: String,
    stats: Option<StatsSink>,
    membership: Sender<Membership>,
    commands: Arc<Commands>,
    revoke_timeout: Duration,
    closing: Arc<AtomicBool>,
}

impl GroupReader {
    /// Joins the group in the background; a broker that is away is no error here.
    ///
    /// # Errors
    /// When librdkafka refuses a setting.
    pub fn spawn(
        kafka: &KafkaConfig,
        config: &GroupConfig,
        topic: &str,
        stats: Option<StatsSink>,
    ) -> Result<(Self, Receiver<Membership>), KafkaError> {
        let mut client = kafka.client(stats.as_ref())?;
        config.apply(&mut client);
        let client = kafka.finish(client)?;
        let (membership, changes) = channel(MEMBERSHIP_QUEUE);
        let (sender, receiver) = std_mpsc::channel();
        let commands = Arc::new(Commands::new(receiver));
        let closing = Arc::new(AtomicBool::new(false));
        let context = GroupContext {
            topic: topic.to_owned(),
            stats,
            membership,
            commands: commands.clone(),
            revoke_timeout: Duration::from_millis(config.revoke_timeout_ms),
            closing: closing.clone(),
        };
        let consumer = Arc::new(BaseConsumer::from_config_and_context(&client, context)?);
        consumer.subscribe(&[topic])?;
        let poller = Poller {
            consumer: consumer.clone(),
            topic: topic.to_owned(),
            config: config.fetch.clone(),
            commands,
            runtime: Handle::current(),
            slots: Vec::new(),
            fallen: BTreeSet::new(),
            resting: Resting::default(),
        };
        let (thread, ended) = spawn_poller(poller)?;
        let reader = Self {
            consumer,
            commands: sender,
            closing,
            thread: Some(thread),
            ended,
            topic: topic.to_owned(),
            request_timeout: kafka.request_timeout(),
        };
        Ok((reader, changes))
    }

    /// Delivers a partition's records from `offset` on into `mailbox`; also used to move to
    /// another position. A partition that is not ours delivers nothing.
    pub fn start(&self, partition: i32, offset: i64, mailbox: Sender<Polled>) {
        self.tell(Command::Start {
            partition,
            offset,
            mailbox: Mailbox::Own(mailbox),
        });
    }

    /// Ends the delivery of a partition's records.
    pub fn stop(&self, partition: i32) {
        self.tell(Command::Stop(partition));
    }

    /// Stops fetching a partition until [`GroupReader::resume`].
    pub fn pause(&self, partition: i32) {
        self.tell(Command::Hold(partition));
    }

    /// Fetches a paused partition again.
    pub fn resume(&self, partition: i32) {
        self.tell(Command::Release(partition));
    }

    /// Commits a position with metadata, without waiting. A lost commit costs re-reading only.
    pub fn commit(&self, partition: i32, offset: i64, metadata: String) {
        self.tell(Command::Commit {
            partition,
            offset,
            metadata,
        });
    }

    /// The committed position of a partition and its metadata; `None` when there is none.
    ///
    /// # Errors
    /// When the coordinator does not answer in time.
    pub async fn committed(&self, partition: i32) -> Result<Option<(i64, String)>, KafkaError> {
        let (consumer, topic) = (self.consumer.clone(), self.topic.clone());
        let timeout = self.request_timeout;
        let question = move |wait| consumer.committed_offsets(one(&topic, partition), wait);
        // The coordinator answers, not the partition's leader.
        let list = ask(timeout, question, |_| ()).await??;
        let found = list.find_partition(&self.topic, partition);
        Ok(found.and_then(|found| match found.offset() {
            Offset::Offset(offset) => Some((offset, found.metadata().to_owned())),
            _ => None,
        }))
    }

    /// Completes when the poll thread has ended, which it does by itself only for a defect: then
    /// nothing is read any more, and nobody is told of a rebalance.
    pub async fn ended(&self) {
        self.ended.wait().await;
    }

    /// Lets a rebalance go on: the owners of the revoked partitions have stopped.
    pub fn acknowledge_revoked(&self) {
        self.tell(Command::Acknowledge);
    }

    /// Leaves the group, so that others take over at once; `false` when the deadline came first.
    pub async fn close(mut self, deadline: Duration) -> bool {
        self.end();
        let leave = tokio::task::spawn_blocking(move || {
            let joined = self
                .thread
                .take()
                .is_some_and(|thread| thread.join().is_ok());
            // The last handle: dropping it leaves the group.
            drop(self);
            joined
        });
        matches!(tokio::time::timeout(deadline, leave).await, Ok(Ok(true)))
    }

    fn end(&self) {
        self.closing.store(true, Ordering::Release);
        self.tell(Command::Close);
    }

    fn tell(&self, command: Command) {
        // The thread ends only when it is told to, or with the last sender.
        let _ = self.commands.send(command);
    }
}

/// A reader that nobody holds any more must not stay a member.
impl Drop for GroupReader {
    fn drop(&mut self) {
        self.end();
    }
}

/// Tells when a thread has ended, however it did.
pub(crate) struct Ended(watch::Receiver<()>);

impl Ended {
    pub(crate) async fn wait(&self) {
        // Nothing is ever sent: the thread holds the other end, and drops it.
        while self.0.clone().changed().await.is_ok() {}
    }
}

pub(crate) fn spawn_poller<C: ConsumerContext + 'static>(
    poller: Poller<C>,
) -> Result<(JoinHandle<()>, Ended), KafkaError> {
    let (running, ended) = watch::channel(());
    let run = move || {
        let _running = running;
        poller.run();
    };
    let thread = std::thread::Builder::new()
        .name(String::from("kafka-poll"))
        .spawn(run)
        .map_err(|error| KafkaError::Config {
            setting: String::from("thread"),
            cause: error.to_string(),
        })?;
    Ok((thread, Ended(ended)))
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(sink) = &self.stats {
            sink(&Stats::from(&statistics));
        }
    }

    fn error(&self, error: Native, reason: &str) {
        context::report(&error, reason);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions: Vec<i32> = list
            .elements_for_topic(&self.topic)
            .iter()
            .map(|element| element.partition())
            .collect();
        let cooperative = matches!(
            consumer.rebalance_protocol(),
            RebalanceProtocol::Cooperative
        );
        self.commands.note_rebalance();
        let result = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, list, partitions, cooperative)
        } else {
            self.revoke(consumer, list, partitions, cooperative)
        };
        if let Err(error) = result {
            tracing::error!(target: "kafka", %error, "rebalance not carried out");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(target: "kafka", %error, "offsets not committed; the chain has them");
        }
    }
}

impl GroupContext {
    /// Takes partitions over without reading: where to start is the owner's to find out. They are
    /// assigned at a plain number, because the answer to a logical offset, which librdkafka asks
    /// the broker for, may come after the owner's seek and undo it.
    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &mut TopicPartitionList,
        partitions: Vec<i32>,
        cooperative: bool,
    ) -> KafkaResult<()> {
        list.set_all_offsets(Offset::Offset(0))?;
        if cooperative {
            consumer.incremental_assign(list)?;
        } else {
            consumer.assign(list)?;
        }
        if !partitions.is_empty() {
            consumer.pause(list)?;
        }
        self.announce(Membership::Assigned(partitions));
        Ok(())
    }

    fn revoke(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
        partitions: Vec<i32>,
        cooperative: bool,
    ) -> KafkaResult<()> {
        if !partitions.is_empty() && !self.closing.load(Ordering::Acquire) {
            if consumer.assignment_lost() {
                self.announce(Membership::Lost(partitions));
            } else {
                self.announce(Membership::Revoked(partitions));
                self.wait_for_owners(consumer);
            }
        }
        if cooperative {
            consumer.incremental_unassign(list)
        } else {
            consumer.unassign()
        }
    }

    fn announce(&self, change: Membership) {
        // Nobody listens any more only while closing.
        let _ = self.membership.blocking_send(change);
    }

    /// Waits for the owners to stop, and commits what they confirm meanwhile.
    fn wait_for_owners(&self, consumer: &BaseConsumer<Self>) {
        let end = Instant::now() + self.revoke_timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.commands.wait(left) {
                Ok(Command::Acknowledge) => break,
                Ok(Command::Commit {
                    partition,
                    offset,
                    metadata,
                }) => {
                    commit(
                        consumer,
                        &self.topic,
                        partition,
                        offset,
                        &metadata,
                        CommitMode::Sync,
                    );
                }
                Ok(close @ Command::Close) => {
                    self.commands.set_aside(close);
                    break;
                }
                Ok(other) => self.commands.set_aside(other),
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("owners did not stop in time; their late batches will be void");
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }
}
