use streamgauge_lifecycle::ManualClock;

use super::*;
use crate::config::{Limits, MetricsConfig, TokenConfig};

fn admission(per_second: u32, in_flight_max: usize) -> (Arc<Admission>, Metrics) {
    let (admission, metrics, _) = admission_at(per_second, in_flight_max);
    (admission, metrics)
}

fn admission_at(
    per_second: u32,
    in_flight_max: usize,
) -> (Arc<Admission>, Metrics, Arc<ManualClock>) {
    let registry = Metrics::new("producer");
    let mut config = Config {
        limits: Limits {
            in_flight_events_max: in_flight_max,
            in_flight_bytes_max: 1_000,
            ..Limits::default()
        },
        ..Config::default()
    };
    config.rate_limit.per_second = per_second;
    config.auth.tokens = vec![TokenConfig::default(); 2];
    let metrics = ProducerMetrics::register(&registry, &MetricsConfig::default());
    let clock = Arc::new(ManualClock::new(0));
    let admission = Admission::new(&config, clock.clone(), &registry, metrics);
    (Arc::new(admission), registry, clock)
}

fn client(credential: usize) -> Client {
    Client {
        tenant: "".into(),
        credential: Some(credential),
        canary: false,
        address: None,
    }
}

#[test]
fn bytes_are_held_as_they_come_and_given_back() {
    let (admission, metrics) = admission(0, 10);
    let overloaded = |problem: Problem| {
        assert!(problem.retry_after.is_some());
        problem.code == ErrorCode::Overloaded
    };
    assert!(overloaded(admission.room(1_001).err().unwrap()));
    let first = admission.room(1_000).unwrap();
    let second = admission.room(1_000).unwrap();
    first.grow(600).unwrap();
    assert!(overloaded(second.grow(401).unwrap_err()));
    drop(second);
    first.grow(400).unwrap();
    assert!(overloaded(admission.room(0).err().unwrap()), "full is full");
    let part = first.split(400);
    assert_eq!((first.held(), part.held()), (600, 400));
    drop(part);
    admission.room(0).unwrap().grow(400).unwrap();
    drop(first);
    admission.room(1_000).unwrap().grow(1_000).unwrap();
    assert!(
        metrics
            .encode()
            .contains("rate_limited_total{scope=\"in_flight_bytes\"} 3\n")
    );
}

#[test]
fn who_has_used_its_allowance_up_is_told_before_it_is_read() {
    let (admission, _) = admission(10, 1000);
    let key = client(0);
    assert!(admission.may_read(&key).is_ok());
    drop(admission.admit(&key, 10, 0).unwrap());
    let problem = admission.may_read(&key).unwrap_err();
    assert_eq!(problem.code, ErrorCode::RateLimited);
    assert!(problem.retry_after.unwrap() <= Duration::from_millis(100));
    assert!(admission.may_read(&client(1)).is_ok());
}

#[test]
fn it_is_closed_until_the_log_is_there() {
    let (admission, _) = admission(0, 10);
    let problem = admission.is_open().unwrap_err();
    assert_eq!(problem.code, ErrorCode::NotReady);
    assert!(problem.retry_after.is_some());
    admission.open();
    assert!(admission.is_open().is_ok());
}

#[test]
fn room_is_bounded_and_given_back() {
    let (admission, metrics) = admission(0, 10);
    let key = client(0);
    let first = admission.admit(&key, 6, 0).unwrap();
    let refused = admission.admit(&key, 5, 0).err().unwrap();
    assert_eq!(
        (refused.problem.code, refused.reason),
        (ErrorCode::Overloaded, FailReason::Overloaded)
    );
    assert!(refused.problem.retry_after.is_some());
    let second = admission.admit(&key, 4, 0).unwrap();
    assert!(metrics.encode().contains("\nevents_in_flight 10\n"));
    drop((first, second));
    assert!(admission.admit(&key, 10, 0).is_ok());
    assert!(metrics.encode().contains("\nevents_in_flight 0\n"));
    assert!(
        metrics
            .encode()
            .contains("rate_limited_total{scope=\"in_flight\"} 1\n")
    );
    assert!(
        metrics
            .encode()
            .contains("admission_rejected_total{reason=\"in_flight_events\"} 1\n")
    );
}

#[test]
fn an_allowance_belongs_to_one_client() {
    let (admission, metrics) = admission(10, 1000);
    let (a, b) = (client(0), client(1));
    assert!(admission.admit(&a, 10, 0).is_ok());
    let refused = admission.admit(&a, 5, 0).err().unwrap();
    assert_eq!(refused.problem.code, ErrorCode::RateLimited);
    assert!(refused.problem.retry_after.unwrap() <= Duration::from_millis(500));
    assert!(admission.admit(&b, 10, 0).is_ok());
    let never = admission.admit(&b, 11, 0).err().unwrap();
    assert_eq!(
        never.problem.code,
        ErrorCode::TooManyEvents,
        "waiting would not help"
    );
    assert!(
        metrics
            .encode()
            .contains("rate_limiter_keys{scope=\"credential\"} 2\n")
    );
}

#[test]
fn what_is_shed_costs_no_allowance() {
    let (admission, _) = admission(10, 5);
    let a = client(0);
    for _ in 0..20 {
        let refused = admission.admit(&a, 6, 0).err().unwrap();
        assert_eq!(refused.reason, FailReason::Overloaded);
    }
    let fields = admission.fields(&a, None).unwrap();
    assert_eq!(fields.limit, "\"credential\";r=10;t=0");
}

#[test]
fn only_what_tells_about_room_is_reported() {
    let (admission, metrics, clock) = admission_at(0, 100_000);
    let retry = |reason| Unacknowledged {
        index: 0,
        fate: Fate::Retry(reason),
    };
    let limit = || metrics.encode().contains("\nadmission_limit 16384\n");
    let ended = |reasons: &[FailReason]| {
        let places: Vec<_> = (0..11)
            .map(|_| admission.admit(&client(0), 1_000, 0).unwrap())
            .collect();
        let unacknowledged = Ok(reasons.iter().copied().map(retry).collect());
        clock.advance(Duration::from_millis(110));
        places
            .iter()
            .for_each(|place| place.report(&unacknowledged));
    };
    ended(&[FailReason::Unavailable]);
    ended(&[FailReason::Deadline]);
    assert!(limit());
    ended(&[FailReason::Deadline, FailReason::TimedOut]);
    assert!(!limit());
}

#[tokio::test(start_paused = true)]
async fn refusals_are_kept_waiting_for_a_moment_and_not_too_many_of_them() {
    let (admission, _) = admission(0, 10);
    let delay = Duration::from_millis(Config::default().admission.refusal_delay_ms);
    let began = tokio::time::Instant::now();
    admission.keep_waiting().await;
    assert_eq!(began.elapsed(), delay);

    let most = Config::default().admission.refusals_delayed_max;
    let places = admission.refusals_delayed.try_acquire_many(most as u32);
    let began = tokio::time::Instant::now();
    admission.keep_waiting().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    drop(places);
}
