//! The handle on a running broker: starting it, what an embedding process may
//! ask of it, and stopping it. It owns the runtime everything else runs on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::faults::Faults;
use crate::node::{self, DataDirLock, Node};
use crate::server;
use crate::stats::BrokerStats;

/// A running broker. Dropping it stops it without a clean close, much as a
/// crash would; [`Broker::shutdown`] closes its logs first.
pub struct Broker {
    node: Arc<Node>,
    address: SocketAddr,
    tasks: TaskTracker,
    /// Taken when the broker stops; its threads are never waited for.
    runtime: Option<Runtime>,
}

impl Broker {
    /// Listens on `config.listen`, opens the data folder, and serves.
    pub async fn start(config: BrokerConfig) -> Result<Broker, BrokerError> {
        config.validate()?;
        // The folder first: a broker that is on its way out lets go of its
        // address before it lets go of its folder.
        let lock = DataDirLock::take(&config).await?;
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| BrokerError::Bind { address, source })?;
        Broker::serve(listener, lock, config).await
    }

    /// Serves a listener that is bound already; `config.listen` is ignored.
    pub async fn start_on(
        listener: TcpListener,
        config: BrokerConfig,
    ) -> Result<Broker, BrokerError> {
        config.validate()?;
        let lock = DataDirLock::take(&config).await?;
        Broker::serve(listener, lock, config).await
    }

    async fn serve(
        listener: TcpListener,
        lock: DataDirLock,
        config: BrokerConfig,
    ) -> Result<Broker, BrokerError> {
        let runtime = build_runtime(&config)?;
        let bind_error = |source| BrokerError::Bind {
            address: config.listen,
            source,
        };
        let address = listener.local_addr().map_err(bind_error)?;
        let listener = listener.into_std().map_err(bind_error)?;
        let opening = {
            let config = config.clone();
            runtime.spawn_blocking(move || Node::open(config, lock, address, Arc::default()))
        };
        let mut broker = Broker {
            node: Arc::new(opening.await.map_err(|_| BrokerError::Stopped)??),
            address,
            tasks: TaskTracker::new(),
            runtime: Some(runtime),
        };
        broker.spawn_all(listener).map_err(bind_error)?;
        info!(%address, data_dir = %config.data_dir.display(), "the embedded log is serving");
        Ok(broker)
    }

    fn spawn_all(&mut self, listener: std::net::TcpListener) -> std::io::Result<()> {
        let Some(runtime) = &self.runtime else {
            return Ok(());
        };
        let _entered = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        let tasks = &self.tasks;
        let node = || Arc::clone(&self.node);
        tasks.spawn(server::serve(node(), listener, tasks.clone()));
        tasks.spawn(node::sync_regularly(node()));
        tasks.spawn(node::retain_regularly(node()));
        tasks.spawn(node::expire_offsets_regularly(node()));
        tasks.spawn(node::tick_groups(node()));
        Ok(())
    }

    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What a client's `bootstrap.servers` should say.
    pub fn bootstrap(&self) -> String {
        format!("{}:{}", self.node.host, self.node.port)
    }

    /// Creates a topic, unless it exists with as many partitions.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<(), BrokerError> {
        self.create_topic_with(name, partitions, BTreeMap::new())
            .await
    }

    /// Creates a topic with settings of its own, named as Kafka names them.
    /// The settings of a topic that exists are left alone.
    pub async fn create_topic_with(
        &self,
        name: &str,
        partitions: i32,
        configs: BTreeMap<String, String>,
    ) -> Result<(), BrokerError> {
        let node = Arc::clone(&self.node);
        let name = name.to_owned();
        let created = self
            .on_disk(move || node.topics.create(&name, partitions, configs).map(|_| ()))
            .await?;
        match created {
            Err(BrokerError::TopicExists {
                existing,
                requested,
                ..
            }) if existing == requested => Ok(()),
            created => created,
        }
    }

    /// Applies the retention limits now instead of at the next interval.
    pub async fn enforce_retention(&self) -> Result<(), BrokerError> {
        let node = Arc::clone(&self.node);
        self.on_disk(move || node.enforce_retention()).await
    }

    async fn on_disk<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, BrokerError> {
        let runtime = self.runtime.as_ref().ok_or(BrokerError::Stopped)?;
        let working = runtime.spawn_blocking(work);
        working.await.map_err(|_| BrokerError::Stopped)
    }

    /// The switches that make it misbehave, for tests.
    pub fn faults(&self) -> Arc<Faults> {
        Arc::clone(&self.node.faults)
    }

    pub fn stats(&self) -> BrokerStats {
        self.node.stats()
    }

    /// Reads the same for as long as it is held.
    pub fn stats_reader(&self) -> impl Fn() -> BrokerStats + Send + Sync + 'static {
        let node = Arc::clone(&self.node);
        move || node.stats()
    }

    /// Stops accepting, lets requests finish for half of the time at most, and
    /// closes the logs so that the next start needs no scan. Beyond that it
    /// stops as a crash would, and says what was left.
    pub async fn shutdown(mut self, deadline: Duration) -> Left {
        let end = Instant::now() + deadline;
        self.node.stopping.cancel();
        self.tasks.close();
        let mut left = Left::default();
        if timeout(deadline / 2, self.tasks.wait()).await.is_err() {
            left.connections = self.node.counters.connections_open.load(Ordering::Relaxed);
            warn!(left.connections, "connections did not drain in time");
        }
        let node = Arc::clone(&self.node);
        let closed = self.on_disk(move || node.close());
        if timeout_at(end, closed).await.is_err() {
            left.logs_open = true;
            warn!("the logs did not close in time");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        left
    }
}

/// What a broker had to leave behind when its time to stop was over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Connections with a request under way, which were cut.
    pub connections: u64,
    /// The logs were not closed: the next start scans them.
    pub logs_open: bool,
}

impl Left {
    /// What is to be told, thing by thing; nothing when all was done.
    pub fn told(&self) -> Vec<String> {
        let connections = match self.connections {
            0 => None,
            1 => Some(String::from("1 connection to the log")),
            many => Some(format!("{many} connections to the log")),
        };
        let logs = self.logs_open.then(|| String::from("files of the log"));
        connections.into_iter().chain(logs).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.node.stopping.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn build_runtime(config: &BrokerConfig) -> Result<Runtime, BrokerError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.worker_threads)
        .thread_name("broker")
        .enable_all()
        .build()
        .map_err(|source| BrokerError::Runtime { source })
}
