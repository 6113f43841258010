//! Puts the consumer together, serves, and drains.
//!
//! The doors open at once, so that probes are answered from the start. Kafka need not be there: the service waits for
//! it, says so, and is not ready until it has joined its group. On a shutdown the owners confirm what is in flight
//! and commit, then the member leaves its group, so that others take over at once.

use std::{sync::Arc, time::Duration};

use streamgauge_kafka::{
    GroupReader, KafkaError, LogReader, Membership, Publisher, StatsSink,
    admin::{self, TopicSpec},
};
use streamgauge_lifecycle::{
    BoxError, Condition, Deadline, Health, HttpDoor, Outcome, Shutdown, Stage, Tasks, Unfinished,
};
use streamgauge_resilience::Backoff;
use streamgauge_service::{Deps, Listeners};
use streamgauge_telemetry::TelemetryConfig;
use tokio::sync::mpsc;

use crate::{
    config::{Config, ENV_PREFIX, TopicsConfig},
    desk::Desk,
    error::Error,
    group::Group,
    grpc, http,
    metrics::ConsumerMetrics,
    monitor,
    owner::Shared,
    status::Board,
};

/// The service's name in logs, traces and metrics.
pub const SERVICE: &str = "consumer";

/// The longest that one look for Kafka takes; a shutdown waits for it.
const LOOK_MS_MAX: u64 = 3_000;

/// Listens where the settings say.
///
/// # Errors
/// When an address is not free.
pub async fn bind(config: &Config) -> Result<Listeners, Error> {
    let (http, grpc) = (config.http.listen, config.grpc.listen);
    Listeners::bind(http, grpc, &config.http.metrics).await
}

/// Serves until the shutdown and drains.
///
/// # Errors
/// A setting, an address, topics whose partitions do not agree, or a part that failed; never that Kafka is away.
pub async fn run(config: Config, listeners: Listeners, deps: Deps) -> Result<(), Error> {
    config.check()?;
    deps.tracer.register(&deps.metrics);
    let metrics = ConsumerMetrics::register(&deps.metrics, &config.metrics);
    let health = Health::new(SERVICE);
    deps.metrics
        .with(|registry| registry.register_collector(Box::new(health.clone())));
    let instance = match config.instance.as_str() {
        "" => listeners
            .http
            .local_addr()
            .map_or_else(|_| String::from("consumer"), |at| at.to_string()),
        name => name.to_owned(),
    };
    let board = Board::new(instance.clone(), config.group.group.clone());
    let stop = deps.shutdown.child();
    let deadline = config.deadline(&stop);
    let desk = Desk::new(
        &config,
        instance.clone(),
        metrics.clone(),
        Arc::clone(&deps.clock),
        stop.clone(),
    );

    let mut tasks = Tasks::new(stop.clone());
    let door = HttpDoor {
        listener: listeners.http,
        metrics: listeners.metrics,
        config: config.http.server.clone(),
        deadline: deadline.clone(),
    };
    let shared = http::Shared {
        board: board.clone(),
        clock: Arc::clone(&deps.clock),
    };
    door.open(&mut tasks, deps.metrics.encoder(), |exposed| {
        http::router(shared, desk.clone(), &metrics, health.clone(), exposed)
    });
    let open_desk = desk.clone();
    tasks.spawn("desk", async move {
        open_desk.closed().await;
        Ok(())
    });
    let services = grpc::Services {
        control: grpc::Control {
            board: board.clone(),
            clock: Arc::clone(&deps.clock),
        },
        desk,
    };
    let (grpc_config, grpc_metrics) = (config.grpc.clone(), metrics.clone());
    let (grpc_health, closing) = (health.clone(), deadline.clone());
    tasks.spawn("grpc", async move {
        grpc::serve(
            listeners.grpc,
            services,
            &grpc_config,
            &grpc_metrics,
            grpc_health,
            closing,
        )
        .await
        .map_err(BoxError::from)
    });
    let ready_until = (health.clone(), stop.clone());
    tasks.spawn("readiness", async move {
        ready_until.1.triggered().await;
        ready_until.0.shutting_down();
        Ok(())
    });
    let stream = Stream {
        config,
        deps,
        metrics,
        health,
        board,
        instance,
        deadline: deadline.clone(),
        stop,
    };
    tasks.spawn("stream", async move {
        stream.run().await.map_err(BoxError::from)
    });
    match tasks.wait(&deadline).await {
        Outcome::Clean => Ok(()),
        Outcome::Failed { task, error } => Err(Error::Task {
            task,
            source: error,
        }),
        Outcome::Unfinished(unfinished) => Err(unfinished.into()),
    }
}

/// Everything between the source and `metrics-data`.
struct Stream {
    config: Config,
    deps: Deps,
    metrics: ConsumerMetrics,
    health: Health,
    board: Board,
    instance: String,
    deadline: Deadline,
    stop: Shutdown,
}

impl Stream {
    async fn run(self) -> Result<(), Error> {
        let (log, joined) = (self.health.condition("log"), self.health.condition("group"));
        if !self.find_topics(&log).await? {
            return Ok(());
        }
        while self.take_part(&log, &joined).await? == monitor::Ended::Absent {}
        Ok(())
    }

    /// Is a member of the group until the shutdown, or until the member is to be given up for a new one: a client that
    /// does not find back to its group may have lost its way for good, and its partitions would wait for a person.
    async fn take_part(
        &self,
        log: &Condition,
        joined: &Condition,
    ) -> Result<monitor::Ended, Error> {
        joined.down("joining the group");
        let (shared, changes) = self.connect(joined)?;
        let settings = self.config.partition()?;
        let over = self.stop.child();
        let group = Group::new(
            Arc::clone(&shared),
            settings,
            self.deps.tracer.clone(),
            self.board.clone(),
            joined.clone(),
            self.instance.clone(),
        );
        let monitor = monitor::run(
            Arc::clone(&shared),
            self.board.clone(),
            log.clone(),
            joined.clone(),
            over.clone(),
        );
        let ((), ended) = tokio::try_join!(group.run(changes, over.clone()), async {
            let ended = monitor.await;
            over.trigger();
            Ok(ended)
        })?;
        let left = self.leave(shared).await;
        if ended == monitor::Ended::Shutdown && !left {
            return Err(Unfinished::new("leaving the group").into());
        }
        if ended == monitor::Ended::Absent {
            let absence_ms = self.config.owner.absence_ms_max;
            tracing::error!(
                absence_ms,
                left,
                "outside the group though Kafka answers; joining it as a new member"
            );
            self.metrics.core().error("group", "absent");
            // What does not end holds its thread and its connections; a new process is the only way to be rid of it.
            if !left {
                return Err(Error::Absent { absence_ms });
            }
        }
        Ok(ended)
    }

    /// The clients. They connect in the background.
    fn connect(
        &self,
        joined: &Condition,
    ) -> Result<(Arc<Shared>, mpsc::Receiver<Membership>), Error> {
        let config = &self.config;
        let stats = self.stats(joined.clone());
        let (group, changes) = GroupReader::spawn(
            &config.kafka,
            &config.group,
            &config.topics.events,
            Some(stats),
        )?;
        let shared = Shared {
            config: config.clone(),
            group: Arc::new(group),
            reader: LogReader::new(&config.kafka, &config.reader, None)?,
            deltas: Publisher::new(&config.kafka, &config.deltas, None)?,
            dead_letters: Publisher::new(&config.kafka, &config.dead_letters, None)?,
            metrics: self.metrics.clone(),
            clock: Arc::clone(&self.deps.clock),
        };
        Ok((Arc::new(shared), changes))
    }

    /// A member that gave its partitions back for a rebalance may never come to its end. Only the client's statistics
    /// tell of it.
    fn stats(&self, joined: Condition) -> StatsSink {
        let sink = self.metrics.stats_sink();
        Arc::new(move |stats| {
            sink(stats);
            if stats.is_member {
                joined.up();
            } else {
                joined.down("not a settled member of the group; joining it");
            }
        })
    }

    /// Leaves the group, so that others take over without waiting for the session to time out; `false` when that took
    /// too long.
    async fn leave(&self, shared: Arc<Shared>) -> bool {
        let bound = match self.stop.is_triggered() {
            // Not to its very end, so that this task can tell.
            true => self.deadline.left(Stage::Drain) * 9 / 10,
            false => Duration::from_millis(self.config.shutdown_deadline_ms) / 2,
        };
        let Some(shared) = Arc::into_inner(shared) else {
            tracing::warn!("an owner outlives its group; its session will time out");
            return false;
        };
        let left = match Arc::into_inner(shared.group) {
            Some(group) => group.close(bound).await,
            None => false,
        };
        if left {
            tracing::info!("left the group");
        } else {
            tracing::warn!("the group was not left in time; the session will time out");
        }
        left
    }

    /// Waits for Kafka and sees to the topics; `false` when the shutdown came first.
    async fn find_topics(&self, log: &Condition) -> Result<bool, Error> {
        let topics = &self.config.topics;
        let mut connect = topics.connect.clone();
        connect.attempts = 0;
        for wait in Backoff::new(&connect, std::process::id().into()) {
            let error = match self.look().await {
                Ok(()) => {
                    tracing::info!(partitions = topics.partitions, "the topics are there");
                    log.up();
                    return Ok(true);
                }
                Err(error @ (KafkaError::PartitionMismatch { .. } | KafkaError::Config { .. })) => {
                    return Err(error.into());
                }
                Err(error) => error,
            };
            // Half of the first wait at least keeps an eager draw in check.
            let wait = wait.max(Duration::from_millis(connect.initial_ms / 2));
            tracing::warn!(%error, retry_in_ms = wait.as_millis() as u64, "waiting for Kafka");
            self.metrics.core().error("kafka", "topics");
            log.down(error.to_string());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.triggered() => break,
            }
        }
        Ok(false)
    }

    /// One look, on a thread that may block: the client waits for metadata without yielding.
    async fn look(&self) -> Result<(), KafkaError> {
        let mut kafka = self.config.kafka.clone();
        kafka.request_timeout_ms = kafka.request_timeout_ms.min(LOOK_MS_MAX);
        let specs = specs(&self.config.topics);
        let runtime = tokio::runtime::Handle::current();
        let look = move || runtime.block_on(admin::ensure_topics(&kafka, &specs));
        tokio::task::spawn_blocking(look)
            .await
            .unwrap_or(Err(KafkaError::Closed))
    }
}

fn specs(topics: &TopicsConfig) -> Vec<TopicSpec> {
    [&topics.events, &topics.dead_letters, &topics.metrics]
        .map(|name| TopicSpec {
            name: name.clone(),
            partitions: topics.partitions,
            replication: topics.replication,
            config: Vec::new(),
        })
        .into()
}

impl streamgauge_service::Settings for Config {
    const SERVICE: &'static str = SERVICE;
    const ENV_PREFIX: &'static str = ENV_PREFIX;
    type Error = Error;

    fn check(&self) -> Result<(), BoxError> {
        Ok(Self::check(self)?)
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn brokers(&self) -> &str {
        &self.kafka.brokers
    }

    fn deadline(&self, shutdown: &Shutdown) -> Deadline {
        Self::deadline(self, shutdown)
    }

    async fn bind(&self) -> Result<Listeners, Error> {
        bind(self).await
    }
}
