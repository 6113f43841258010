//! From the start to the log: connects to the store, reads it, finds the topics, and follows them.
//!
//! The order is that of need. What the store holds is answered before anything is asked of Kafka, so that a restart
//! while the log is away costs no answers.

use std::{sync::Arc, time::Duration};

use streamgauge_kafka::{KafkaConfig, KafkaError, admin};
use streamgauge_lifecycle::Condition;
use streamgauge_resilience::retry;
use tokio::sync::watch;

use crate::{
    config::Config,
    error::Error,
    follow::{self, Found},
    ledger::Checker,
    load, retention,
    source::{SourceEnds, Watcher},
    store::StoreError,
    view::Fold,
};

/// How often memory is tidied while the log is waited for.
const TICK: Duration = Duration::from_secs(1);

/// From the log to the view.
pub struct Pipeline {
    /// What following is made of.
    pub parts: follow::Parts,
    /// Whether the store was read, so that queries have answers.
    pub view_up: Condition,
    /// Who reads the store back.
    pub checker: Arc<Checker>,
}

impl Pipeline {
    /// Runs until the shutdown.
    ///
    /// # Errors
    /// When a setting cannot be used, the store never can be, or the topics do not fit each other.
    pub async fn run(self) -> Result<(), Error> {
        let shutdown = self.parts.shutdown.clone();
        tokio::select! {
            connected = self.connect() => connected?,
            () = shutdown.triggered() => return Ok(()),
        }
        let Some(mut fold) = follow::load_patiently(&self.parts).await? else {
            return Ok(());
        };
        self.parts.publish(&fold);
        self.view_up.up();
        let Some(partitions) = self.wait_for_topics(&mut fold).await? else {
            return Ok(());
        };
        let (sender, ends) = watch::channel(SourceEnds::default());
        let parts = &self.parts;
        let watcher = Watcher {
            reader: parts.reader.clone(),
            topics: parts.config.topics.clone(),
            partitions,
            view: Arc::clone(&parts.view),
            metrics: parts.metrics.clone(),
            clock: parts.clock.clone(),
            ends: sender,
        };
        let expiring = retention::run(
            Arc::clone(&parts.store),
            parts.config.retention.clone(),
            parts.clock.clone(),
            parts.metrics.clone(),
            shutdown.clone(),
        );
        let following = async {
            let followed = follow::run(parts, fold, Found { partitions, ends }).await;
            if followed.is_err() {
                // Without it the others would go on, and nobody would hear of the error.
                shutdown.trigger();
            }
            followed
        };
        let swaps = parts.watch_swaps();
        let checking = self.checker.run(shutdown.clone());
        let watching = watcher.run(shutdown.clone());
        let ((), (), (), (), followed) =
            tokio::join!(watching, expiring, checking, swaps, following);
        followed
    }

    /// Connects to the store, however long it takes.
    async fn connect(&self) -> Result<(), Error> {
        let (parts, backoff) = (&self.parts, &self.parts.config.store.connect);
        let waiting = |error: &StoreError, wait: Duration| {
            tracing::warn!(%error, retry_in_ms = wait.as_millis() as u64, "waiting for the store");
            parts.store_up.down(error.to_string());
        };
        loop {
            let attempts = retry(
                backoff,
                None,
                StoreError::is_retryable,
                |_, error, wait| waiting(error, wait),
                |_| parts.store.migrate(),
            );
            match attempts.await {
                Ok(()) => break,
                Err(error) if error.is_retryable() => {
                    let pause = Duration::from_millis(backoff.max_ms);
                    waiting(&error, pause);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        parts.store_up.up();
        Ok(())
    }

    /// Finds the topics, however long it takes, while queries are answered from what was read; `None` at shutdown.
    async fn wait_for_topics(&self, fold: &mut Fold) -> Result<Option<i32>, Error> {
        let parts = &self.parts;
        let mut finding = std::pin::pin!(self.find_topics());
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                found = &mut finding => return found.map(Some),
                () = parts.shutdown.triggered() => return Ok(None),
                () = parts.overtaken.notified() => match load::catch_up(&parts.store, fold).await {
                    Ok(true) => parts.publish(fold),
                    Ok(false) => {}
                    Err(error) => {
                        parts.store_failed(&error);
                        let Some(loaded) = follow::load_patiently(parts).await? else {
                            return Ok(None);
                        };
                        *fold = loaded;
                        parts.publish(fold);
                    }
                },
                _ = ticks.tick() => {
                    fold.tick(parts.clock.now_us().div_euclid(1_000_000));
                    parts.publish(fold);
                }
            }
        }
    }

    /// Finds the topics, however long it takes, and how many partitions they have.
    async fn find_topics(&self) -> Result<i32, Error> {
        let (config, log_up) = (&self.parts.config, &self.parts.log_up);
        let waiting = Duration::from_millis(config.topics.wait_ms.max(10));
        loop {
            match partitions(config).await {
                Ok(Some(partitions)) => {
                    self.parts.metrics.log_reachable(true);
                    log_up.up();
                    return Ok(partitions);
                }
                Ok(None) => {
                    let topics = &config.topics;
                    let missing = format!(
                        "topics {} and {} are not both there yet",
                        topics.events, topics.metrics
                    );
                    tracing::warn!(retry_in_ms = waiting.as_millis() as u64, "{missing}");
                    log_up.down(missing);
                }
                Err(error @ KafkaError::PartitionMismatch { .. }) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, retry_in_ms = waiting.as_millis() as u64, "waiting for the log");
                    self.parts.metrics.log_reachable(false);
                    log_up.down(error.to_string());
                }
            }
            tokio::time::sleep(waiting).await;
        }
    }
}

/// The settings of Kafka for requests that a shutdown may have to wait for: none takes longer than it has time.
pub fn for_requests(config: &Config) -> KafkaConfig {
    let timeout = config
        .kafka
        .request_timeout_ms
        .min(config.shutdown_deadline_ms / 2);
    KafkaConfig {
        request_timeout_ms: timeout,
        ..config.kafka.clone()
    }
}

/// The partitions of both topics, once both are there.
async fn partitions(config: &Config) -> Result<Option<i32>, KafkaError> {
    let kafka = for_requests(config);
    let metrics = admin::partition_count(&kafka, &config.topics.metrics).await?;
    let events = admin::partition_count(&kafka, &config.topics.events).await?;
    match (events, metrics) {
        (Some(expected), Some(found)) if found != expected => Err(KafkaError::PartitionMismatch {
            topic: config.topics.metrics.clone(),
            found,
            expected,
        }),
        (Some(_), Some(partitions)) => Ok(Some(partitions)),
        _ => Ok(None),
    }
}
