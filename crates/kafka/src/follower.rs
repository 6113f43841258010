//! Following partitions without a group: every follower reads all that it names.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
};
use tokio::{runtime::Handle, sync::mpsc::Sender};

use crate::{
    FetchConfig, KafkaConfig, KafkaError, Polled, StatsSink,
    context::Context,
    group::{Ended, spawn_poller},
    mailbox::{Command, Commands, Mailbox},
    poller::{Poller, Resting, Slot},
};

impl rdkafka::consumer::ConsumerContext for Context {}

/// Follows partitions from given offsets until it is closed.
pub struct Follower {
    commands: std_mpsc::Sender<Command>,
    thread: JoinHandle<()>,
    ended: Ended,
}

impl Follower {
    /// Follows each `(partition, offset)` of `starts`; all records go into one mailbox.
    ///
    /// # Errors
    /// When librdkafka refuses a setting.
    pub fn spawn(
        kafka: &KafkaConfig,
        config: &FetchConfig,
        topic: &str,
        starts: &[(i32, i64)],
        mailbox: &Sender<(i32, Polled)>,
        stats: Option<StatsSink>,
    ) -> Result<Self, KafkaError> {
        let mut client = kafka.client(stats.as_ref())?;
        config.apply(&mut client);
        // librdkafka asks for a group even of a client that never joins one.
        client.set("group.id", format!("{}-follower", kafka.client_id));
        let client = kafka.finish(client)?;
        let consumer: BaseConsumer<Context> =
            BaseConsumer::from_config_and_context(&client, Context { stats })?;
        let mut list = TopicPartitionList::with_capacity(starts.len());
        let mut slots = Vec::new();
        for (partition, offset) in starts {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
            let at = usize::try_from(*partition).unwrap_or_default();
            if slots.len() <= at {
                slots.resize_with(at + 1, || None);
            }
            slots[at] = Some(Slot::new(
                *partition,
                *offset,
                Mailbox::Shared(mailbox.clone()),
            ));
        }
        consumer.assign(&list)?;
        let (commands, receiver) = std_mpsc::channel();
        let poller = Poller {
            consumer: Arc::new(consumer),
            topic: topic.to_owned(),
            config: config.clone(),
            commands: Arc::new(Commands::new(receiver)),
            runtime: Handle::current(),
            slots,
            fallen: BTreeSet::new(),
            resting: Resting::default(),
        };
        let (thread, ended) = spawn_poller(poller)?;
        Ok(Self {
            commands,
            thread,
            ended,
        })
    }

    /// Completes when the poll thread has ended, which it does by itself only for a defect.
    pub async fn ended(&self) {
        self.ended.wait().await;
    }

    /// Moves a partition to another position.
    pub fn seek(&self, partition: i32, offset: i64) {
        let _ = self.commands.send(Command::Seek { partition, offset });
    }

    /// Ends the following; `false` when the deadline came first.
    pub async fn close(self, deadline: Duration) -> bool {
        let _ = self.commands.send(Command::Close);
        let join = tokio::task::spawn_blocking(move || self.thread.join().is_ok());
        matches!(tokio::time::timeout(deadline, join).await, Ok(Ok(true)))
    }
}
