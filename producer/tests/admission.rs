//! Who is let in while the service runs: allowances that are told and changed, addresses behind proxies, and load that
//! is shed when the log is slow.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Answer, Producer, broker, config, message};
use serde_json::{Value, json};
use streamgauge_producer::{Config, TokenConfig};
use streamgauge_proto::v1::producer_control_client::ProducerControlClient;
use streamgauge_proto::v1::submission_client::SubmissionClient;
use streamgauge_proto::v1::{
    GetRateLimitsRequest, GetSamplingRequest, Rate, RateLimits, SetRateLimitsRequest,
    SetSamplingRequest, SubmitBatchRequest,
};
use streamgauge_settings::Secret;
use tempfile::TempDir;
use tonic::{Code, Request};

const EVENT: &str = r#"{"user_id":"u","event_type":"x"}"#;
const LIMITS: &str = "/v1/admin/rate-limits";
const TRACING: &str = "/v1/admin/tracing";

fn events(count: usize) -> String {
    format!("[{}]", vec![EVENT; count].join(","))
}

/// Waits longer than the other tests do, for a machine on which much else runs.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

async fn put(producer: &Producer, token: Option<&str>, body: Value) -> Answer {
    put_at(producer, LIMITS, token, body).await
}

async fn put_at(producer: &Producer, path: &str, token: Option<&str>, body: Value) -> Answer {
    let request = producer.client.put(producer.url(path)).json(&body);
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.unwrap(),
    }
}

fn named(token: &str, name: &str) -> TokenConfig {
    TokenConfig {
        token: Secret::from(token),
        name: name.to_owned(),
        ..TokenConfig::default()
    }
}

fn with_credentials(config: &mut Config) {
    config.auth.tokens = vec![named("t-web", "web"), named("t-batch", "batch")];
}

/// The value of a parameter of the item that a field has for a scope.
fn parameter(answer: &Answer, field: &str, scope: &str, parameter: &str) -> u64 {
    let value = answer.header(field).unwrap();
    let mut items = value.split(", ");
    let item = items.find(|item| item.starts_with(&format!("\"{scope}\";")));
    let parameters = item.unwrap_or_else(|| panic!("{value}")).split(';');
    let prefix = format!("{parameter}=");
    let value = parameters
        .filter_map(|part| part.strip_prefix(&prefix))
        .next();
    value.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn allowances_are_told_and_what_is_told_holds() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    with_credentials(&mut config);
    (config.rate_limit.per_second, config.rate_limit.burst) = (2, 10);
    (
        config.rate_limit.address.per_second,
        config.rate_limit.address.burst,
    ) = (1, 100);
    let producer = Producer::start(config).await;
    let auth = [("authorization", "Bearer t-web")];
    let post = async |count| producer.post_with("/v1/events", &auth, events(count)).await;

    let answer = post(4).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        answer.header("ratelimit-policy"),
        Some(
            "\"credential\";q=10;w=5;qu=\"events\";streamgauge-burst=10, \
             \"address\";q=100;w=100;qu=\"events\";streamgauge-burst=100"
        )
    );
    assert!((6..=10).contains(&parameter(&answer, "ratelimit", "credential", "r")));
    assert!((96..=100).contains(&parameter(&answer, "ratelimit", "address", "r")));
    assert!(parameter(&answer, "ratelimit", "credential", "t") <= 2);

    // Emptied, it is told when the same passes, and then it does.
    let mut refused = post(10).await;
    while refused.status == 200 {
        refused = post(10).await;
    }
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "rate_limited")
    );
    let told = Instant::now();
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    assert_eq!(parameter(&refused, "ratelimit", "credential", "t"), wait);
    let left = parameter(&refused, "ratelimit", "credential", "r");
    assert!(left < 10);
    let precise = refused.json()["error"]["retry_after_ms"].as_u64().unwrap();
    assert!(
        (wait - 1) * 1_000 <= precise && precise <= wait * 1_000,
        "{precise}"
    );
    tokio::time::sleep_until((told + Duration::from_secs(wait)).into()).await;
    assert_eq!(post(10).await.status, 200);

    // Another credential has its own, and both share what their address has.
    let other = [("authorization", "Bearer t-batch")];
    let answer = producer.post_with("/v1/events", &other, events(11)).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "too_many_events")
    );
    assert_eq!(answer.header("retry-after"), None, "it can never pass");
    let answer = producer.post_with("/v1/events", &other, events(10)).await;
    assert_eq!(answer.status, 200);
    assert!(parameter(&answer, "ratelimit", "address", "r") < 100);
    assert_eq!(
        producer.metric("rate_limiter_keys{scope=\"credential\"}"),
        2.0
    );
    assert_eq!(producer.metric("rate_limiter_keys{scope=\"address\"}"), 1.0);
    assert!(producer.metric("rate_limited_total{scope=\"credential\"}") >= 2.0);
    producer.ledger();
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_finds_an_empty_allowance_is_told_when_one_event_passes_and_then_when_all_do()
{
    const UNREAD: &str = "was not read";
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    (config.rate_limit.per_second, config.rate_limit.burst) = (1, 60);
    let producer = Producer::start(config).await;
    let post = async |count| producer.post("/v1/events", events(count)).await;
    assert_eq!(post(60).await.status, 200);

    // A second may pass at any point, and a little comes in with it.
    let refused = async || loop {
        while post(1).await.status == 200 {}
        let answer = post(60).await;
        if answer.text.contains(UNREAD) {
            return answer;
        }
    };
    let unread = refused().await;
    assert_eq!(
        (unread.status, unread.header("retry-after")),
        (429, Some("1"))
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let read = post(60).await;
    assert_eq!(read.status, 429, "{}", read.text);
    assert!(!read.text.contains(UNREAD), "{}", read.text);
    let wait_ms = read.json()["error"]["retry_after_ms"].as_u64().unwrap();
    assert!((40_000..=59_000).contains(&wait_ms), "{wait_ms}");

    let mut calls = SubmissionClient::new(producer.channel().await);
    let batch = || SubmitBatchRequest {
        events: (0..60).map(|_| message("u")).collect(),
        ..SubmitBatchRequest::default()
    };
    let mut call = async || calls.submit_batch(batch()).await.unwrap_err();
    let unread = loop {
        while post(1).await.status == 200 {}
        let status = call().await;
        if status.message().contains(UNREAD) {
            break status;
        }
    };
    assert_eq!(unread.code(), Code::ResourceExhausted);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let read = call().await;
    assert_eq!(read.code(), Code::ResourceExhausted);
    assert!(!read.message().contains(UNREAD), "{read:?}");
    producer.ledger();
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_while_the_service_runs() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    with_credentials(&mut config);
    let producer = Producer::start(config).await;
    let send = async |token: &str, count| {
        let auth = [("authorization", token)];
        producer.post_with("/v1/events", &auth, events(count)).await
    };
    let answer = send("Bearer t-web", 100).await;
    assert_eq!((answer.status, answer.header("ratelimit")), (200, None));

    let unlimited = json!({"per_second": 0, "burst": 0});
    let shown = producer.get(LIMITS).await;
    assert_eq!(shown.status, 200, "{}", shown.text);
    let rate_limits = json!({"default": unlimited, "address": unlimited, "overrides": {}});
    assert_eq!(
        shown.json(),
        json!({
            "rate_limits": rate_limits, "revision": 0, "keys": {"credential": 0, "address": 0},
        })
    );

    let limits = json!({
        "default": {"per_second": 1, "burst": 50},
        "address": {"per_second": 0},
        "overrides": {"batch": {"per_second": 100}},
    });
    let changed = put(&producer, None, limits.clone()).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_eq!(changed.json()["revision"], 1);
    assert!(changed.json()["changed_at_us"].as_i64().unwrap() > 0);
    let shown = producer.get(LIMITS).await.json();
    assert_eq!(shown["rate_limits"], changed.json()["rate_limits"]);
    assert_eq!(send("Bearer t-web", 51).await.status, 413);
    assert_eq!(send("Bearer t-web", 50).await.status, 200);
    assert_eq!(send("Bearer t-web", 50).await.status, 429);
    assert_eq!(send("Bearer t-batch", 100).await.status, 200);

    for (change, says) in [
        (json!({"default": {"per_second": 1}}), "address"),
        (json!([]), "rate limits"),
        (
            json!({"default": {"per_second": -1}, "address": unlimited, "overrides": {}}),
            "-1",
        ),
        (
            json!({"default": {"per_second": 1, "bursts": 2}, "address": unlimited, "overrides": {}}),
            "bursts",
        ),
        (
            json!({"default": {"per_second": 0, "burst": 2}, "address": unlimited, "overrides": {}}),
            "burst",
        ),
        (
            json!({
                "default": unlimited, "address": unlimited,
                "overrides": {"nobody": {"per_second": 1}},
            }),
            "nobody",
        ),
    ] {
        let answer = put(&producer, None, change).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid_value")
        );
        assert!(answer.text.contains(says), "{}", answer.text);
    }
    assert_eq!(
        producer.get(LIMITS).await.json()["revision"],
        1,
        "nothing of it holds"
    );
    assert_eq!(
        producer.metric("rate_limit_changes_total{outcome=\"applied\"}"),
        1.0
    );
    assert_eq!(
        producer.metric("rate_limit_changes_total{outcome=\"refused\"}"),
        6.0
    );

    // What is shown can be sent back, and lifting a limit helps at once.
    let mut lifted = shown["rate_limits"].clone();
    lifted["default"] = unlimited;
    assert_eq!(put(&producer, None, lifted).await.json()["revision"], 2);
    assert_eq!(send("Bearer t-web", 100).await.status, 200);
    let answer = producer
        .client
        .get(producer.url(LIMITS))
        .header("x-forwarded-for", "127.0.0.1");
    assert_eq!(
        answer.send().await.unwrap().status(),
        403,
        "by way of a proxy"
    );
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_share_of_traces_is_changed_while_it_runs() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let traced = async || {
        let answer = producer.post("/v1/events", EVENT).await;
        answer.header("x-trace-id").is_some()
    };
    for (ratio, expected) in [(0.0, false), (1.0, true), (0.0, false)] {
        let answer = put_at(&producer, TRACING, None, json!({"sample_ratio": ratio})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let held = json!({"sample_ratio": ratio, "exporting": true});
        assert_eq!(answer.json(), held);
        assert_eq!(producer.get(TRACING).await.json(), held);
        assert_eq!(traced().await, expected, "{ratio}");
    }
    for wrong in [json!({"ratio": 1}), json!({"sample_ratio": 2}), json!([])] {
        let answer = put_at(&producer, TRACING, None, wrong).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid_value")
        );
    }
    let mut control = ProducerControlClient::new(producer.channel().await);
    let status = control.set_sampling(SetSamplingRequest::default()).await;
    assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    let sample_ratio = Some(1.0);
    let changed = control.set_sampling(SetSamplingRequest { sample_ratio });
    assert_eq!(changed.await.unwrap().into_inner().sample_ratio, 1.0);
    assert!(traced().await);
    let shown = control.get_sampling(GetSamplingRequest {}).await;
    assert!(shown.unwrap().into_inner().exporting);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_token_is_asked_for_over_both_doors() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.admin.token = Secret::from("t-admin");
    config.admin.body_bytes_max = 1_000;
    let producer = Producer::start(config).await;
    let limits = json!({
        "default": {"per_second": 1, "burst": 5},
        "address": {"per_second": 0},
        "overrides": {},
    });
    let answer = producer.get(LIMITS).await;
    assert_eq!(
        (answer.status, answer.header("www-authenticate")),
        (401, Some("Bearer"))
    );
    assert_eq!(
        put(&producer, Some("wrong"), limits.clone()).await.status,
        401
    );
    assert_eq!(
        put(&producer, Some("t-admin"), json!("x".repeat(1_000)))
            .await
            .status,
        413
    );
    let answer = put(&producer, Some("t-admin"), limits).await;
    assert_eq!(answer.status, 200, "{}", answer.text);

    let mut control = ProducerControlClient::new(producer.channel().await);
    let status = control.get_rate_limits(GetRateLimitsRequest {}).await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
    fn signed<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        let token = "Bearer t-admin".parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        request
    }
    let shown = control
        .get_rate_limits(signed(GetRateLimitsRequest {}))
        .await;
    let shown = shown.unwrap().into_inner();
    let mut limits = shown.rate_limits.unwrap();
    assert_eq!((shown.revision, limits.default.unwrap().burst), (1, 5));
    let status = control
        .set_rate_limits(signed(SetRateLimitsRequest {
            rate_limits: Some(RateLimits::default()),
        }))
        .await;
    assert_eq!(
        status.unwrap_err().code(),
        Code::InvalidArgument,
        "nothing is lifted by leaving it out"
    );
    limits.default = Some(Rate {
        per_second: 1,
        burst: 70,
    });
    let changed = control
        .set_rate_limits(signed(SetRateLimitsRequest {
            rate_limits: Some(limits),
        }))
        .await;
    assert_eq!(changed.unwrap().into_inner().revision, 2);

    let mut client = SubmissionClient::new(producer.channel().await);
    let batch = SubmitBatchRequest {
        events: vec![message("u"); 70],
        ..SubmitBatchRequest::default()
    };
    let answer = client.submit_batch(batch.clone()).await.unwrap();
    let policy = answer.metadata().get("ratelimit-policy").unwrap();
    assert!(
        policy
            .to_str()
            .unwrap()
            .starts_with("\"address\";q=70;w=70;")
    );
    let status = client.submit_batch(batch).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let told = status.metadata().get("ratelimit").unwrap();
    assert!(
        told.to_str().unwrap().starts_with("\"address\";r="),
        "{told:?}"
    );
    drop((client, control));
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_trusted_proxy_are_told_apart_and_forgotten_on_schedule() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    for trusted in [true, false] {
        let mut config = config(&broker.bootstrap());
        (config.rate_limit.per_second, config.rate_limit.burst) = (2, 20);
        config.rate_limit.evict_interval_s = 1;
        if trusted {
            config.proxies.trusted = vec!["127.0.0.0/8".to_owned()];
        }
        let producer = Producer::start(config).await;
        let send = async |client: &str| {
            let chain = [("x-forwarded-for", client)];
            producer
                .post_with("/v1/events", &chain, events(20))
                .await
                .status
        };
        assert_eq!(send("198.51.100.1").await, 200);
        assert_eq!(
            send("9.9.9.9, 198.51.100.2").await,
            if trusted { 200 } else { 429 }
        );
        let keys = || producer.metric("rate_limiter_keys{scope=\"address\"}");
        assert!(keys() >= 1.0);
        eventually("they are forgotten", async || keys() == 0.0).await;
        producer.stop().await.unwrap();
    }
}

/// Sends single events on so many connections at once until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    shed: Arc<AtomicUsize>,
    senders: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(producer: &Producer, senders: usize) -> Self {
        let (stop, accepted, shed) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
        );
        let url = producer.url("/v1/events");
        let sender = |_| {
            let (client, url) = (producer.client.clone(), url.clone());
            let (stop, accepted, shed) = (stop.clone(), accepted.clone(), shed.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.post(&url).body(EVENT).send().await.unwrap();
                    match answer.status().as_u16() {
                        200 => accepted.fetch_add(1, Ordering::Relaxed),
                        503 => {
                            assert_eq!(answer.headers()["retry-after"], "1");
                            let text = answer.text().await.unwrap();
                            assert!(text.contains("\"overloaded\""), "{text}");
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            shed.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{other}"),
                    };
                }
            })
        };
        let senders = (0..senders).map(sender).collect();
        Self {
            stop,
            accepted,
            shed,
            senders,
        }
    }

    async fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.await.unwrap();
        }
        (
            self.accepted.load(Ordering::Relaxed),
            self.shed.load(Ordering::Relaxed),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_log_sheds_load_and_a_healed_one_takes_it_again() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.admission.request_units = 0;
    let limit = &mut config.admission.limit;
    (limit.units_min, limit.units_max) = (8, 64);
    (limit.latency_floor_ms, limit.window_ms) = (400, 50);
    let producer = Producer::start(config).await;
    let limit = || producer.metric("admission_limit");
    assert_eq!(limit(), 64.0);

    // A nearly idle log is got to know.
    for _ in 0..30 {
        assert_eq!(producer.post("/v1/events", EVENT).await.status, 200);
    }
    broker.faults().delay_appends(Duration::from_millis(1_500));
    let load = Load::start(&producer, 60);
    eventually("the limit comes down", async || limit() < 32.0).await;
    eventually("load is shed", async || {
        producer.metric("admission_rejected_total{reason=\"limit\"}") > 20.0
    })
    .await;
    broker.faults().delay_appends(Duration::ZERO);
    eventually("the limit goes up again", async || limit() >= 60.0).await;
    let (accepted, shed) = load.stop().await;
    assert!(accepted > 0 && shed > 0, "{accepted}, {shed}");
    assert_eq!(producer.post("/v1/events", EVENT).await.status, 200);
    assert_eq!(producer.metric("admission_in_flight"), 0.0);
    let [_, counted, _, _] = producer.ledger();
    assert_eq!(counted, (accepted + 31) as f64);
    assert_eq!(producer.written().await.len(), accepted + 31);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_healthy_clients_are_never_shed() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let load = Load::start(&producer, 256);
    let accepted = load.accepted.clone();
    eventually("they have sent enough", async || {
        accepted.load(Ordering::Relaxed) > 5_000
    })
    .await;
    let (_, shed) = load.stop().await;
    assert_eq!(shed, 0);
    assert_eq!(producer.metric("admission_limit"), 16_384.0);
    producer.stop().await.unwrap();
}
