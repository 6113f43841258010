//! Finds the log at the start and watches over it afterwards: what readiness says about it, and when events may come in.
//!
//! With a spool the service can do its work while the log is away. It is then ready, says so in `/health`, and starts
//! that way too, if an earlier run has found a log that suits the settings.

use std::pin::pin;
use std::time::Duration;

use streamgauge_kafka::admin::{self, TopicSpec};
use streamgauge_kafka::{KafkaConfig, KafkaError};
use streamgauge_lifecycle::{Condition, SharedClock};
use streamgauge_resilience::{Backoff, BreakerState};

use crate::app::Parts;
use crate::config::TopicsConfig;
use crate::spool::{Drain, Spooling};

/// The longest that one look for Kafka takes; a shutdown waits for it.
const LOOK_MS_MAX: u64 = 3_000;
/// A log that is there is found sooner; clients are not kept out for longer where there is a spool for it.
const UNSEEN_AFTER: Duration = Duration::from_millis(500);

impl Parts {
    /// A spool that cannot be written makes the service unready while the log is away, so that no event comes to try
    /// it with.
    async fn probe_spool(&self) {
        if let Some(spool) = &self.spool {
            spool.spooling.probe().await;
        }
    }

    /// The topics are there.
    async fn open(&self, topics: &TopicsConfig) {
        if let Some(spool) = &self.spool {
            spool.spooling.log_found(fingerprint(topics)).await;
        }
        self.intake.admission.open();
        self.log.up();
    }

    /// The log was not found at the start.
    fn wait_for_log(&self, error: &KafkaError, topics: &TopicsConfig) {
        let away = matches!(error, KafkaError::Unreachable { .. });
        if !away || !self.begin_unseen(topics, &error.to_string()) {
            self.log.down(error.to_string());
        }
    }

    /// What comes may wait in the spool for a log that was not seen yet, if an earlier run has found one that suits these
    /// settings; else nobody knows whether it ever will.
    fn begin_unseen(&self, topics: &TopicsConfig, reason: &str) -> bool {
        let known = |spool: &SpoolHealth| spool.spooling.knows(&fingerprint(topics));
        let known = self.spool.as_ref().is_some_and(known);
        if known {
            self.intake.admission.open();
            self.away(reason.to_owned());
        }
        known
    }

    /// The log is away. With room in the spool that is no reason to send clients elsewhere.
    fn away(&self, reason: String) {
        match &self.spool {
            Some(spool) if spool.spooling.has_room() => {
                let note = format!("{reason}; events go to the spool");
                self.log.up_with(note);
            }
            _ => self.log.down(reason),
        }
    }
}

/// What `/health` says about the spool. It is never what makes the service unready: the log's condition is, when the
/// spool cannot stand in for it.
#[derive(Clone)]
pub(crate) struct SpoolHealth {
    spooling: Spooling,
    condition: Condition,
    clock: SharedClock,
}

impl SpoolHealth {
    pub(crate) fn new(spooling: Spooling, condition: Condition, clock: SharedClock) -> Self {
        Self {
            spooling,
            condition,
            clock,
        }
    }

    fn update(&self) {
        let text = self.spooling.describe(self.clock.now_us());
        self.condition.up_with(text);
    }
}

/// What the spool's events were accepted for.
fn fingerprint(topics: &TopicsConfig) -> String {
    format!("{} {}", topics.events, topics.partitions)
}

/// Looks for the log until it is there, then watches over it.
pub(crate) async fn find_log(
    topics: TopicsConfig,
    kafka: KafkaConfig,
    parts: Parts,
    drain: Option<Drain>,
) {
    let kafka = KafkaConfig {
        request_timeout_ms: kafka.request_timeout_ms.min(LOOK_MS_MAX),
        ..kafka
    };
    tokio::select! {
        () = parts.stop.triggered() => return,
        () = ensure_topic(&topics, &kafka, &parts) => {}
    }
    let watching = async {
        tokio::select! {
            () = parts.stop.triggered() => {}
            () = watch_log(&topics, &kafka, &parts) => {}
        }
    };
    match drain {
        // It watches for the shutdown by itself, since it has to finish what is under way.
        Some(drain) => drop(tokio::join!(watching, drain.run())),
        None => watching.await,
    }
}

/// Creates the topic if need be, however long Kafka is away.
async fn ensure_topic(topics: &TopicsConfig, kafka: &KafkaConfig, parts: &Parts) {
    let spec = TopicSpec {
        name: topics.events.clone(),
        partitions: topics.partitions,
        replication: topics.replication,
        config: Vec::new(),
    };
    let mut connect = topics.connect.clone();
    connect.attempts = 0;
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    for wait in Backoff::new(&connect, seed) {
        let mut looking = pin!(look(kafka, &spec));
        let soon = tokio::time::timeout(UNSEEN_AFTER, &mut looking).await;
        let found = match soon {
            Ok(found) => found,
            Err(_) => {
                parts.begin_unseen(topics, "Kafka has not answered yet");
                looking.await
            }
        };
        match found {
            Ok(()) => {
                tracing::info!(
                    topic = topics.events,
                    partitions = topics.partitions,
                    "the log is there"
                );
                parts.open(topics).await;
                return;
            }
            Err(error) => {
                // The longest wait bounds how often this is said; half of it at least keeps an eager draw in check.
                let wait = wait.max(Duration::from_millis(connect.initial_ms / 2));
                tracing::warn!(%error, retry_in_ms = wait.as_millis() as u64, "waiting for the log");
                parts.probe_spool().await;
                parts.wait_for_log(&error, topics);
                parts.spool.iter().for_each(SpoolHealth::update);
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// While the breaker is not closed: says in readiness whether Kafka answers. A spool whose disk has failed is looked at
/// in any case.
///
/// Answering is all that readiness asks of it. A Kafka that answers and yet takes no record, its disk full, say, leaves
/// the producer ready with its breaker open: it refuses submissions with 503 and a time to come back, alerts tell by the
/// breaker's metrics, and the submissions that go on arriving are what finds out that Kafka takes records again. Were
/// readiness to go down, no traffic would come, and the breaker would never close.
async fn watch_log(topics: &TopicsConfig, kafka: &KafkaConfig, parts: &Parts) {
    let interval = Duration::from_millis(topics.check_interval_ms.max(100));
    loop {
        parts.spool.iter().for_each(SpoolHealth::update);
        tokio::time::sleep(interval).await;
        parts.probe_spool().await;
        if parts.breaker.state() == BreakerState::Closed {
            parts.log.up();
            continue;
        }
        match admin::partition_count(kafka, &topics.events).await {
            // Up, although the breaker may still be open: only traffic can close it.
            Ok(Some(_)) => parts.log.up(),
            Ok(None) => parts.away(format!("topic {} does not exist", topics.events)),
            Err(error) => parts.away(error.to_string()),
        }
    }
}

/// One look, on a thread that may block: the client waits for metadata without yielding.
async fn look(kafka: &KafkaConfig, spec: &TopicSpec) -> Result<(), KafkaError> {
    let (kafka, spec) = (kafka.clone(), spec.clone());
    let runtime = tokio::runtime::Handle::current();
    let look = move || runtime.block_on(admin::ensure_topics(&kafka, std::slice::from_ref(&spec)));
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or(Err(KafkaError::Closed))
}
