//! Membership: an owner for each partition that is ours, and none for any that is not.

use std::{collections::HashMap, sync::Arc, time::Duration};

use streamgauge_kafka::Membership;
use streamgauge_lifecycle::{Condition, Shutdown};
use streamgauge_telemetry::Tracer;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::Instant,
};

use crate::{
    core::partition::Settings,
    error::Error,
    owner::{Owner, Shared},
    status::Board,
    trace::Spans,
};

/// Wait before an owner that ended by itself is started again: a defect must not become a busy loop.
const RESTART_AFTER: Duration = Duration::from_secs(1);

struct Handle {
    task: AbortHandle,
    revoked: Shutdown,
}

/// The owners of this instance.
pub struct Group {
    shared: Arc<Shared>,
    settings: Settings,
    tracer: Tracer,
    board: Board,
    joined: Condition,
    owners: HashMap<i32, Handle>,
    tasks: JoinSet<()>,
    /// Counts owners, for their names.
    epoch: u64,
    instance: String,
}

impl Group {
    /// A member that owns nothing yet.
    pub fn new(
        shared: Arc<Shared>,
        settings: Settings,
        tracer: Tracer,
        board: Board,
        joined: Condition,
        instance: String,
    ) -> Self {
        Self {
            shared,
            settings,
            tracer,
            board,
            joined,
            owners: HashMap::new(),
            tasks: JoinSet::new(),
            epoch: 0,
            instance,
        }
    }

    /// Follows the group until the shutdown, then stops the owners.
    ///
    /// # Errors
    /// When the group's client has ended by itself: then nobody would be told of anything any more.
    pub async fn run(
        mut self,
        mut changes: mpsc::Receiver<Membership>,
        shutdown: Shutdown,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let failed = loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => self.follow(change).await,
                    None => break true,
                },
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended),
                () = shared.group.ended() => break true,
                () = shutdown.triggered() => break false,
            }
        };
        let all: Vec<_> = self.owners.keys().copied().collect();
        self.stop(&all).await;
        // Whoever was ended must be gone before the group is left: it holds the group's client.
        self.tasks.shutdown().await;
        if failed {
            return Err(Error::PollEnded);
        }
        Ok(())
    }

    async fn follow(&mut self, change: Membership) {
        match change {
            Membership::Assigned(partitions) => {
                tracing::info!(?partitions, "assigned");
                partitions
                    .iter()
                    .for_each(|partition| self.start(*partition, Duration::ZERO));
                self.joined.up();
            }
            Membership::Revoked(partitions) => {
                tracing::info!(?partitions, "revoked");
                self.stop(&partitions).await;
                self.shared.group.acknowledge_revoked();
            }
            Membership::Lost(partitions) => {
                tracing::warn!(?partitions, "lost");
                self.joined
                    .down("the membership was lost; joining the group again");
                self.release(&partitions);
            }
        }
        self.shared.metrics.rebalanced(self.owners.len());
    }

    fn start(&mut self, partition: i32, delay: Duration) {
        self.epoch += 1;
        let writer = format!("{}/{}", self.instance, self.epoch);
        let settings = Settings {
            writer,
            ..self.settings.clone()
        };
        let (topics, group) = (&self.shared.config.topics, &self.shared.config.group.group);
        let spans = Spans::new(
            self.tracer.clone(),
            &topics.events,
            &topics.metrics,
            group,
            partition,
        );
        let revoked = Shutdown::new();
        let view = self.board.add(partition);
        let owner = Owner::new(
            Arc::clone(&self.shared),
            partition,
            settings,
            spans,
            view,
            revoked.clone(),
        );
        let task = self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            owner.run().await;
        });
        self.owners.insert(partition, Handle { task, revoked });
    }

    /// Lets owners confirm what is in flight, within the bound, and ends those that do not get it done: what they
    /// wrote is void or valid by the rule, and whoever comes next finds out.
    async fn stop(&mut self, partitions: &[i32]) {
        let end = Instant::now() + Duration::from_millis(self.shared.config.owner.revoke_ms_max);
        for handle in partitions
            .iter()
            .filter_map(|partition| self.owners.get(partition))
        {
            handle.revoked.trigger();
        }
        while partitions
            .iter()
            .any(|partition| self.owners.contains_key(partition))
        {
            match tokio::time::timeout_at(end, self.tasks.join_next_with_id()).await {
                Ok(Some(ended)) => self.ended(ended),
                Ok(None) => break,
                Err(_) => {
                    tracing::warn!(?partitions, "owners did not stop in time and are ended");
                    break;
                }
            }
        }
        self.release(partitions);
    }

    /// The partitions are another's: their owners end, and they leave the client, the board and the metrics.
    fn release(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(handle) = self.owners.remove(partition) {
                handle.task.abort();
            }
            self.shared.group.stop(*partition);
            self.board.remove(*partition);
            let (topics, group) = (&self.shared.config.topics, &self.shared.config.group.group);
            self.shared
                .metrics
                .drop_partition(group, &topics.events, *partition);
        }
    }

    /// An owner has ended. Unless it was told to, that is a defect; another one takes its place.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let owner = self
            .owners
            .iter()
            .find(|(_, handle)| handle.task.id() == id);
        let Some((partition, told)) =
            owner.map(|(partition, handle)| (*partition, handle.revoked.is_triggered()))
        else {
            return;
        };
        self.owners.remove(&partition);
        if !told {
            let error = ended.err().map(|error| error.to_string());
            tracing::error!(
                partition,
                error,
                "an owner ended by itself and is started again"
            );
            self.shared.metrics.core().error("owner", "panicked");
            self.start(partition, RESTART_AFTER);
        }
    }
}
