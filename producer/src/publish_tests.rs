use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use streamgauge_resilience::{BreakerConfig, BreakerState};
use streamgauge_telemetry::Metrics;

use super::*;
use crate::config::MetricsConfig;
use crate::event::decode::{Format, decode};
use crate::event::encode::RandomIds;
use crate::event::validate::{Rules, validate};
use crate::event::{EventLimits, Ids, Shape, Stamp};
use crate::metrics::PUBLISH_BREAKER;

/// How late a busy machine may notice.
const SLACK: Duration = Duration::from_millis(400);

/// A log that does as it was told, once for each write, and then takes everything.
#[derive(Clone, Default)]
pub(crate) struct Script {
    outcomes: Arc<Mutex<VecDeque<Option<Failures>>>>,
    written: Arc<Mutex<Vec<Vec<usize>>>>,
}

impl Script {
    pub(crate) fn with(outcomes: impl IntoIterator<Item = Option<Failures>>) -> Self {
        let script = Self::default();
        script.outcomes.lock().extend(outcomes);
        script
    }

    /// The places of each write.
    pub(crate) fn written(&self) -> Vec<Vec<usize>> {
        self.written.lock().clone()
    }
}

impl Sink for Script {
    fn write(&self, writing: Writing<'_>) -> Pin<Box<dyn Future<Output = Failures> + Send>> {
        self.written.lock().push(writing.places.to_vec());
        match self.outcomes.lock().pop_front() {
            Some(None) => Box::pin(std::future::pending()),
            Some(Some(failures)) => Box::pin(std::future::ready(failures)),
            None => Box::pin(std::future::ready(Vec::new())),
        }
    }
}

struct Bench {
    script: Script,
    breaker: Breaker,
    publishing: Publishing,
}

fn bench(outcomes: impl IntoIterator<Item = Option<Failures>>, attempts: u32) -> Bench {
    bench_with(outcomes, attempts, Duration::from_millis(400))
}

fn bench_with(
    outcomes: impl IntoIterator<Item = Option<Failures>>,
    attempts: u32,
    stall: Duration,
) -> Bench {
    let script = Script::with(outcomes);
    let metrics = ProducerMetrics::register(&Metrics::new("producer"), &MetricsConfig::default());
    let config = BreakerConfig {
        consecutive_failures: 3,
        open_min_ms: 100,
        ..BreakerConfig::default()
    };
    let breaker = Breaker::new(PUBLISH_BREAKER, &config, Arc::new(metrics.clone()));
    let retry = BackoffConfig {
        attempts,
        initial_ms: 10,
        ..BackoffConfig::default()
    };
    let publishing = Publishing::new(
        Box::new(script.clone()),
        None,
        breaker.clone(),
        PublishingConfig { retry, stall },
        metrics,
    );
    Bench {
        script,
        breaker,
        publishing,
    }
}

/// Three events fit to be published, with one that is not in their midst.
pub(crate) fn batch() -> Batch {
    let body =
        br#"[{"user_id":"a","event_type":"x"},{"event_type":"x"},{"user_id":"b","event_type":"x"},
        {"user_id":"c","event_type":"y"}]"#;
    let limits = EventLimits::default();
    let rules = Rules {
        limits: &limits,
        shape: Shape::EVENT,
        now_us: 1 << 50,
    };
    let ids = Ids::Random(RandomIds::new(1));
    let stamp = Stamp {
        tenant: "",
        historical: false,
        ids,
    };
    let mut batch = Batch::new(1 << 50, body.len());
    decode(body, Format::Json, Shape::EVENT, &limits, |draft| {
        batch.push(draft.and_then(|draft| validate(draft, &rules)), &stamp);
    })
    .unwrap();
    batch
}

impl Bench {
    async fn publish(&self) -> Result<Vec<Unacknowledged>, Refused> {
        let deadline = Instant::now() + Duration::from_millis(500);
        let lost = self.publishing.publish(&batch(), None, deadline).await;
        assert!(
            Instant::now() <= deadline + SLACK,
            "it must not outstay the deadline"
        );
        lost
    }

    fn written(&self) -> Vec<Vec<usize>> {
        self.script.written()
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_not_mentioned() {
    let bench = bench([], 5);
    assert_eq!(bench.publish().await.unwrap(), []);
    assert_eq!(
        bench.written(),
        [[0, 2, 3]],
        "only what is valid is written"
    );
}

#[tokio::test]
async fn only_what_failed_is_written_again() {
    let failures = vec![(0, PublishError::QueueFull), (2, PublishError::TimedOut)];
    let bench = bench(
        [Some(failures), Some(vec![(1, PublishError::QueueFull)])],
        5,
    );
    assert_eq!(bench.publish().await.unwrap(), []);
    assert_eq!(bench.written(), [vec![0, 2, 3], vec![0, 3], vec![3]]);
}

#[test]
fn nothing_overtakes_what_met_a_full_queue() {
    let mut offered = Vec::new();
    let held_back = queue_in_order(&[0, 2, 3, 5, 6], |nth, place| {
        offered.push((nth, place));
        // A slot is free again right after the queue was full.
        [
            Pushed::Queued,
            Pushed::Refused,
            Pushed::Full,
            Pushed::Queued,
        ][nth.min(3)]
    });
    assert_eq!(offered, [(0, 0), (1, 2), (2, 3)]);
    assert_eq!(held_back, 3..5);
    assert!(queue_in_order(&[1, 4], |_, _| Pushed::Queued).is_empty());
}

#[tokio::test]
async fn what_the_log_will_never_take_is_rejected_at_once() {
    let failures = vec![
        (1, PublishError::TooLarge),
        (2, PublishError::Refused(String::from("policy"))),
    ];
    let bench = bench([Some(failures)], 5);
    let lost = bench.publish().await.unwrap();
    let expected = [
        Unacknowledged {
            index: 2,
            fate: Fate::Rejected(ErrorCode::EventTooLarge),
        },
        Unacknowledged {
            index: 3,
            fate: Fate::Retry(FailReason::Refused),
        },
    ];
    assert_eq!(lost, expected);
    assert_eq!(bench.written().len(), 1);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let full = || Some(vec![(0, PublishError::QueueFull)]);
    let bench = bench([full(), full(), full(), full()], 3);
    let lost = bench.publish().await.unwrap();
    assert_eq!(
        lost,
        [Unacknowledged {
            index: 0,
            fate: Fate::Retry(FailReason::QueueFull)
        }]
    );
    assert_eq!(bench.written().len(), 3);
    assert_eq!(
        bench.breaker.state(),
        BreakerState::Closed,
        "a full queue is no outage"
    );
}

#[tokio::test]
async fn a_log_that_never_answers_ends_at_the_deadline() {
    let bench = bench([None], 5);
    let lost = bench.publish().await.unwrap();
    let fates: Vec<_> = lost.iter().map(|lost| (lost.index, lost.fate)).collect();
    let retry = Fate::Retry(FailReason::Deadline);
    assert_eq!(
        fates,
        [(0, retry), (2, retry), (3, retry)],
        "what is not known is not accepted"
    );
}

#[tokio::test]
async fn outages_open_the_breaker_which_then_refuses_unseen() {
    let away = || Some(vec![(0, PublishError::TimedOut)]);
    let bench = bench([away(), away(), away()], 1);
    for _ in 0..3 {
        let lost = bench.publish().await.unwrap();
        assert_eq!(
            lost,
            [Unacknowledged {
                index: 0,
                fate: Fate::Retry(FailReason::TimedOut)
            }]
        );
    }
    assert_eq!(bench.breaker.state(), BreakerState::Open);
    let refused = bench.publish().await.unwrap_err();
    assert_eq!(
        (refused.problem.code, refused.reason),
        (ErrorCode::LogUnavailable, FailReason::BreakerOpen)
    );
    assert!(refused.problem.retry_after.is_some());
    assert_eq!(bench.written().len(), 3, "nothing was tried");
}

#[tokio::test]
async fn a_breaker_that_opens_between_attempts_leaves_a_verdict() {
    let away = || Some(vec![(0, PublishError::TimedOut)]);
    let bench = bench([away(), away(), away()], 10);
    let lost = bench.publish().await.unwrap();
    assert_eq!(
        lost,
        [Unacknowledged {
            index: 0,
            fate: Fate::Retry(FailReason::BreakerOpen)
        }]
    );
}

#[tokio::test]
async fn silence_is_an_outage_only_if_it_lasted() {
    for (stall_ms, state) in [(400, BreakerState::Open), (5_000, BreakerState::Closed)] {
        let silent = bench_with([None, None, None], 1, Duration::from_millis(stall_ms));
        for _ in 0..3 {
            silent.publish().await.unwrap();
        }
        assert_eq!(silent.breaker.state(), state, "{stall_ms} ms");
    }
}

#[tokio::test]
async fn a_probe_without_evidence_does_not_close_the_breaker() {
    let away = || Some(vec![(0, PublishError::TimedOut)]);
    let full = || Some((0..3).map(|nth| (nth, PublishError::QueueFull)).collect());
    let bench = bench([away(), away(), away(), full()], 1);
    for _ in 0..3 {
        bench.publish().await.unwrap();
    }
    let refused = bench.publish().await.unwrap_err();
    tokio::time::sleep(refused.problem.retry_after.unwrap()).await;
    let lost = bench.publish().await.unwrap();
    assert_eq!(lost.len(), 3, "the probe was made and met a full queue");
    assert_eq!(bench.breaker.state(), BreakerState::Open);
    let wait = bench
        .publish()
        .await
        .unwrap_err()
        .problem
        .retry_after
        .unwrap();
    tokio::time::sleep(wait).await;
    assert_eq!(bench.publish().await.unwrap(), []);
    assert_eq!(bench.breaker.state(), BreakerState::Closed);
}
