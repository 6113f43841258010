//! What goes to the spool and what does not, and how the drain treats what it meets.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use streamgauge_kafka::PublishError;
use streamgauge_lifecycle::{Shutdown, SystemClock};
use streamgauge_proto::ErrorCode;
use streamgauge_resilience::{BackoffConfig, Breaker, BreakerConfig, BreakerState};
use streamgauge_spool::{Drainer, Stretch};
use streamgauge_telemetry::Metrics;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::config::MetricsConfig;
use crate::event::Batch;
use crate::metrics::{PUBLISH_BREAKER, ProducerMetrics};
use crate::publish::tests::{Script, batch};
use crate::publish::{Failures, Fate, Publishing, PublishingConfig, Unacknowledged};

const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    dir: TempDir,
    registry: Metrics,
    metrics: SpoolMetrics,
    breaker: Breaker,
    spooling: Spooling,
    script: Script,
    publishing: Publishing,
}

async fn bench(outcomes: Vec<Failures>) -> (Bench, Drainer) {
    let dir = TempDir::new().unwrap();
    let registry = Metrics::new("producer");
    let metrics = SpoolMetrics::register(&registry, SystemClock::shared());
    let config = SpoolConfig {
        dir: dir.path().to_owned(),
        drain_position_interval_ms: 0,
        drain_attempts_max: 2,
        ..SpoolConfig::default()
    };
    let (spooling, drainer) = open(&config, metrics.clone()).await.unwrap();
    spooling.log_found(String::from("topic 3")).await;
    let script = Script::with(outcomes.into_iter().map(Some));
    let producer = ProducerMetrics::register(&registry, &MetricsConfig::default());
    let breaker_config = BreakerConfig {
        consecutive_failures: 1,
        open_min_ms: 3_600_000,
        open_max_ms: 3_600_000,
        ..BreakerConfig::default()
    };
    let breaker = Breaker::new(PUBLISH_BREAKER, &breaker_config, Arc::new(producer.clone()));
    let publishing = Publishing::new(
        Box::new(script.clone()),
        Some(spooling.clone()),
        breaker.clone(),
        PublishingConfig {
            retry: BackoffConfig {
                initial_ms: 1,
                attempts: 3,
                ..BackoffConfig::default()
            },
            stall: PATIENCE,
        },
        producer,
    );
    let bench = Bench {
        dir,
        registry,
        metrics,
        breaker,
        spooling,
        script,
        publishing,
    };
    (bench, drainer)
}

impl Bench {
    async fn publish(&self, batch: &Batch) -> Vec<Unacknowledged> {
        let deadline = Instant::now() + PATIENCE;
        let published = self.publishing.publish(batch, Some("00-trace"), deadline);
        published.await.unwrap()
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.registry.encode();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap().parse().unwrap()
    }

    fn drain(&self, drainer: Drainer, sink: &Sink, stop: &Shutdown) -> Drain {
        Drain {
            drainer,
            sink: Box::new(sink.clone()),
            breaker: self.breaker.clone(),
            config: SpoolConfig {
                drain_attempts_max: 2,
                ..SpoolConfig::default()
            },
            retry: BackoffConfig {
                initial_ms: 1,
                max_ms: 1,
                ..BackoffConfig::default()
            },
            stall: Duration::from_millis(20),
            grace: Duration::from_millis(20),
            metrics: self.metrics.clone(),
            stop: stop.clone(),
        }
    }
}

fn users(stretch: &Stretch) -> Vec<String> {
    let user = |record| {
        let event = SpooledEvent::read(stretch.body(record)).unwrap();
        assert_eq!(event.traceparent, Some("00-trace"));
        String::from_utf8(event.key.to_vec()).unwrap()
    };
    stretch.records().iter().map(user).collect()
}

async fn stored(drainer: &mut Drainer) -> Vec<String> {
    users(&drainer.next(100, 1 << 20).await.unwrap())
}

#[tokio::test]
async fn an_outage_goes_to_the_spool_with_all_that_may_be_tried_again() {
    let failures = vec![
        (0, PublishError::QueueFull),
        (1, PublishError::TooLarge),
        (2, PublishError::TimedOut),
    ];
    let (bench, mut drainer) = bench(vec![failures]).await;
    let lost = bench.publish(&batch()).await;
    let too_large = Unacknowledged {
        index: 2,
        fate: Fate::Rejected(ErrorCode::EventTooLarge),
    };
    assert_eq!(lost, [too_large], "that one must never go there");
    assert_eq!(stored(&mut drainer).await, ["a", "c"]);
    assert_eq!(bench.metric("spool_written_total"), 2.0);
    assert_eq!(bench.metric("spool_uncertain_total"), 1.0);
    assert!(bench.spooling.comes_first());
    assert_eq!(bench.publish(&batch()).await, [], "behind it");
    assert_eq!(
        bench.script.written().len(),
        1,
        "nothing went past the spool"
    );
}

#[tokio::test]
async fn a_full_queue_is_no_outage() {
    let full = || vec![(1, PublishError::QueueFull)];
    let (bench, _drainer) = bench(vec![full()]).await;
    assert_eq!(bench.publish(&batch()).await, []);
    assert_eq!(bench.script.written().len(), 2, "it was tried again");
    assert!(!bench.spooling.comes_first());
}

#[tokio::test]
async fn behind_an_open_breaker_everything_is_spooled() {
    let (bench, mut drainer) = bench(vec![]).await;
    bench.breaker.try_acquire().unwrap().failure();
    assert_eq!(bench.breaker.state(), BreakerState::Open);
    assert_eq!(bench.publish(&batch()).await, []);
    assert_eq!(stored(&mut drainer).await, ["a", "b", "c"]);
    assert_eq!(bench.metric("spool_uncertain_total"), 0.0, "never tried");
}

#[tokio::test]
async fn a_spool_that_cannot_be_written_refuses_in_time() {
    let (bench, _drainer) = bench(vec![vec![(0, PublishError::TimedOut)]]).await;
    std::fs::remove_dir_all(bench.dir.path()).unwrap();
    let lost = bench.publish(&batch()).await;
    let expected = Unacknowledged {
        index: 0,
        fate: Fate::Retry(FailReason::SpoolFailed),
    };
    assert_eq!(lost, [expected], "its id is told, for it may be in the log");
    let deadline = Instant::now() + PATIENCE;
    let refused = bench.publishing.publish(&batch(), None, deadline).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, FailReason::SpoolFailed);
    assert!(refused.problem.retry_after.is_some());
    assert_eq!(bench.metric("spool_written_total"), 0.0);
}

/// A log that does as it was told, once for each write, and then takes everything.
#[derive(Clone, Default)]
struct Sink {
    outcomes: Arc<Mutex<VecDeque<Option<Failures>>>>,
    written: Arc<Mutex<Vec<Vec<String>>>>,
}

impl DrainSink for Sink {
    fn write(
        &self,
        records: &[(i64, SpooledEvent<'_>)],
    ) -> Pin<Box<dyn Future<Output = Failures> + Send>> {
        let user =
            |(_, event): &(i64, SpooledEvent<'_>)| String::from_utf8(event.key.to_vec()).unwrap();
        self.written.lock().push(records.iter().map(user).collect());
        match self.outcomes.lock().pop_front() {
            Some(None) => Box::pin(std::future::pending()),
            Some(Some(failures)) => Box::pin(std::future::ready(failures)),
            None => Box::pin(std::future::ready(Vec::new())),
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

#[tokio::test]
async fn the_drain_tries_again_in_order_and_puts_aside_what_is_never_taken() {
    let (bench, drainer) = bench(vec![]).await;
    bench.breaker.try_acquire().unwrap().failure();
    assert_eq!(bench.publish(&batch()).await, []);
    let refused = || (1, PublishError::Refused(String::from("policy")));
    let sink = Sink::default();
    sink.outcomes.lock().extend([
        Some(vec![
            (0, PublishError::Fatal(String::from("fenced"))),
            refused(),
        ]),
        Some(vec![refused()]),
    ]);
    let stop = Shutdown::new();
    let drain = tokio::spawn(bench.drain(drainer, &sink, &stop).run());
    until("it is drained", || !bench.spooling.comes_first()).await;
    let written = sink.written.lock().clone();
    assert_eq!(written, [vec!["a", "b", "c"], vec!["a", "b"]]);
    assert_eq!(bench.metric("spool_drained_total"), 2.0);
    assert_eq!(bench.metric("spool_errors_total{kind=\"refused\"}"), 1.0);
    let account = Account {
        spooled: 3,
        drained: 2,
        put_aside: 1,
        ..Account::default()
    };
    assert_eq!(bench.spooling.account(), account);
    stop.trigger();
    drain.await.unwrap();
    let mut names = std::fs::read_dir(bench.dir.path()).unwrap();
    let kept = names.any(|file| {
        file.unwrap()
            .path()
            .extension()
            .is_some_and(|ext| ext == "kept")
    });
    assert!(kept, "the event that was accepted is still there");
}

#[tokio::test]
async fn a_drain_that_is_stopped_leaves_what_is_not_acknowledged() {
    let (bench, drainer) = bench(vec![]).await;
    bench.breaker.try_acquire().unwrap().failure();
    assert_eq!(bench.publish(&batch()).await, []);
    let sink = Sink::default();
    sink.outcomes.lock().push_back(None);
    let stop = Shutdown::new();
    let drain = tokio::spawn(bench.drain(drainer, &sink, &stop).run());
    until("a batch is under way", || !sink.written.lock().is_empty()).await;
    stop.trigger();
    tokio::time::timeout(PATIENCE, drain)
        .await
        .unwrap()
        .unwrap();
    assert!(bench.spooling.comes_first());
    assert_eq!(bench.metric("spool_records"), 3.0);
}
