//! Requests that are refused as a whole: the code, the field or setting named, the headers, and nothing written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::time::Duration;

use common::{Producer, broker, config, eventually};
use streamgauge_producer::TokenConfig;
use streamgauge_proto::v1::SubmitRequest;
use streamgauge_proto::v1::submission_client::SubmissionClient;
use streamgauge_settings::Secret;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EVENT: &str = r#"{"user_id":"u","event_type":"x"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_said() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.limits.body_bytes_max = 20_000;
    config.limits.decompressed_bytes_max = 50_000;
    config.limits.batch_events_max = 100;
    let producer = Producer::start(config).await;
    let many = format!("[{}]", [EVENT; 101].join(","));
    let large = format!("[{EVENT}{}]", " ".repeat(20_000));
    type Case<'a> = (
        &'a str,
        &'a [(&'a str, &'a str)],
        &'a str,
        u16,
        &'a str,
        &'a str,
    );
    let cases: &[Case<'_>] = &[
        ("/v1/events", &[], "", 400, "empty_body", "no event"),
        ("/v1/events", &[], "[]", 400, "empty_body", "no event"),
        (
            "/v1/events",
            &[],
            "{\"user_id\":",
            400,
            "malformed_body",
            "byte 11",
        ),
        (
            "/v1/events",
            &[],
            "[{\"user_id\":\"u\"",
            400,
            "malformed_body",
            "byte 15",
        ),
        ("/v1/events", &[], "hello", 400, "malformed_body", "byte 0"),
        ("/v1/events", &[], &many, 413, "too_many_events", "100"),
        (
            "/v1/events",
            &[],
            &large,
            413,
            "body_too_large",
            "limits.body_bytes_max",
        ),
        (
            "/v1/events",
            &[("content-type", "application/xml")],
            EVENT,
            415,
            "unsupported_media_type",
            "json",
        ),
        (
            "/v1/events",
            &[("content-type", "application/x-www-form-urlencoded")],
            "a=b",
            415,
            "unsupported_media_type",
            "json",
        ),
        (
            "/v1/events",
            &[("content-encoding", "lzma")],
            EVENT,
            415,
            "unsupported_encoding",
            "gzip",
        ),
        (
            "/v1/events",
            &[("content-encoding", "gzip")],
            EVENT,
            400,
            "malformed_body",
            "gzip",
        ),
        (
            "/v1/events",
            &[("idempotency-key", &"k".repeat(256))],
            EVENT,
            400,
            "invalid_value",
            "idempotency key",
        ),
        (
            "/v1/events",
            &[("x-timeout-ms", "soon")],
            EVENT,
            400,
            "invalid_value",
            "milliseconds",
        ),
        (
            "/v1/events",
            &[("x-historical", "maybe")],
            EVENT,
            400,
            "invalid_value",
            "true or false",
        ),
        (
            "/v1/events?verdict=failed",
            &[],
            EVENT,
            400,
            "invalid_value",
            "verdicts",
        ),
        ("/ingest", &[], "", 400, "empty_body", "no event"),
        ("/nowhere", &[], EVENT, 404, "not_found", "route"),
    ];
    for (path, headers, body, status, code, says) in cases {
        let answer = producer.post_with(path, headers, (*body).to_owned()).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (*status, *code),
            "{path} {headers:?}: {}",
            answer.text
        );
        assert!(answer.text.contains(says), "{}", answer.text);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("retry-after"), None, "a retry would not help");
    }
    let answer = producer.get("/v1/events").await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (405, "method_not_allowed")
    );
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = producer
        .post_with("/v1/events", &[("content-encoding", "lzma")], EVENT)
        .await;
    assert_eq!(
        answer.header("accept-encoding"),
        Some("gzip, deflate, br, zstd, identity")
    );

    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b' '; 10_000_000]).unwrap();
    let answer = producer
        .post_with(
            "/v1/events",
            &[("content-encoding", "gzip")],
            bomb.finish().unwrap(),
        )
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "body_too_large")
    );
    assert!(answer.text.contains("limits.decompressed_bytes_max"));

    assert!(producer.written().await.is_empty());
    assert_eq!(producer.ledger(), [0.0; 4]);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_body_times_out() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.limits.body_timeout_ms = 100;
    let producer = Producer::start(config).await;
    let mut connection = TcpStream::connect(producer.http).await.unwrap();
    connection
        .write_all(
            b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"user_id\"",
        )
        .await
        .unwrap();
    let mut answer = vec![0; 1024];
    let read = connection.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.to_lowercase().contains("retry-after: 1"),
        "{answer}"
    );
    drop(connection);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_and_give_the_tenant() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    let token = |token: &str, suspended| TokenConfig {
        token: Secret::from(token),
        tenant: "acme".into(),
        suspended,
        ..TokenConfig::default()
    };
    config.auth.tokens = vec![token("good", false), token("old", true)];
    let producer = Producer::start(config).await;
    let answer = producer.post("/v1/events", EVENT).await;
    assert_eq!(
        (answer.status, answer.header("www-authenticate")),
        (401, Some("Bearer"))
    );
    for (header, status) in [
        ("Bearer wrong", 401),
        ("Bearer old", 403),
        ("Bearer good", 200),
    ] {
        let answer = producer
            .post_with("/v1/events", &[("authorization", header)], EVENT)
            .await;
        assert_eq!(answer.status, status, "{header}: {}", answer.text);
    }
    assert_eq!(producer.written().await[0].event.tenant, "acme");
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_allowance_is_429_and_counted() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    (config.rate_limit.per_second, config.rate_limit.burst) = (1, 10);
    let producer = Producer::start(config).await;
    let eleven = format!("[{}]", [EVENT; 11].join(","));
    let answer = producer.post("/v1/events", eleven).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "too_many_events"),
        "waiting would not help"
    );
    let ten = format!("[{}]", [EVENT; 10].join(","));
    assert_eq!(producer.post("/v1/events", ten.clone()).await.status, 200);
    let answer = producer.post("/v1/events", ten).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, "rate_limited")
    );
    let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&after), "{after}");
    let [_, accepted, rejected, _] = producer.ledger();
    assert_eq!((accepted, rejected), (10.0, 0.0));
    assert_eq!(
        producer.metric("rate_limited_total{scope=\"address\"}"),
        2.0
    );
    assert_eq!(producer.metric("rate_limiter_keys{scope=\"address\"}"), 1.0);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_at_once_is_503_and_passes() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    (
        config.limits.in_flight_events_max,
        config.limits.batch_events_max,
    ) = (10, 10);
    let producer = Producer::start(config).await;
    broker.faults().delay_appends(Duration::from_millis(500));
    let ten = format!("[{}]", [EVENT; 10].join(","));
    let first = producer
        .client
        .post(producer.url("/v1/events"))
        .body(ten)
        .send();
    let first = tokio::spawn(first);
    eventually("ten events are in flight", async || {
        producer.metric("events_in_flight") == 10.0
    })
    .await;
    let answer = producer.post("/v1/events", EVENT).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(
        first.await.unwrap().unwrap().status(),
        200,
        "what was taken on is finished"
    );
    broker.faults().delay_appends(Duration::ZERO);
    assert_eq!(producer.post("/v1/events", EVENT).await.status, 200);
    assert_eq!(producer.ledger(), [12.0, 11.0, 0.0, 1.0]);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_memory_for_them_are_503_over_both_doors() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    let limits = &mut config.limits;
    (limits.body_bytes_max, limits.decompressed_bytes_max) = (20_000, 20_000);
    (limits.in_flight_bytes_max, limits.body_timeout_ms) = (120_000, 60_000);
    config.grpc.message_bytes_max = 20_000;
    let producer = Producer::start(config).await;
    // Six clients that keep all but the last byte of their bodies waiting.
    let mut slow = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(producer.http).await.unwrap();
        let head = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 20000\r\n\r\n";
        let request = format!("{head}{}", " ".repeat(19_999));
        stream.write_all(request.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    // Asked for by a request that sends nothing, for what it sent would be held and could turn one of the six away.
    let announced = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\n";
    eventually("there is no room", async || {
        let mut stream = TcpStream::connect(producer.http).await.unwrap();
        stream.write_all(announced.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let answered = stream.read_exact(&mut answer);
        let in_time = tokio::time::timeout(Duration::from_millis(500), answered).await;
        in_time.is_ok() && &answer == b"HTTP/1.1 503"
    })
    .await;
    let answer = producer.post("/v1/events", EVENT).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert!(producer.metric("rate_limited_total{scope=\"in_flight_bytes\"}") >= 1.0);
    let mut client = SubmissionClient::new(producer.channel().await);
    let mut submit = async || {
        let request = SubmitRequest {
            event: Some(common::message("u")),
            historical: false,
        };
        client.submit(request).await
    };
    let status = submit().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    assert!(status.message().contains("too many bytes"), "{status:?}");
    drop(slow);
    let room = async || producer.post("/v1/events", EVENT).await.status == 200;
    eventually("there is room again", room).await;
    submit().await.unwrap();
    producer.ledger();
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_allowance_is_refused_before_its_body_comes() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    (config.rate_limit.per_second, config.rate_limit.burst) = (1, 10);
    let producer = Producer::start(config).await;
    let head = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n";
    // A second later one event would be allowed again, and its body be waited for.
    let refused = async || {
        while producer.post("/v1/events", EVENT).await.status == 200 {}
        let mut stream = TcpStream::connect(producer.http).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let answered = stream.read_exact(&mut answer);
        let in_time = tokio::time::timeout(Duration::from_millis(500), answered).await;
        in_time.is_ok() && &answer == b"HTTP/1.1 429"
    };
    eventually("it is refused by its head alone", refused).await;
    let [received, accepted, ..] = producer.ledger();
    assert_eq!(received, accepted, "nothing else was read");
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_is_accounted_for() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    broker.faults().delay_appends(Duration::from_millis(700));
    let mut connection = TcpStream::connect(producer.http).await.unwrap();
    let request = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{EVENT}",
        EVENT.len()
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    eventually("the event is in flight", async || {
        producer.metric("events_in_flight") == 1.0
    })
    .await;
    drop(connection);
    eventually("it is given up", async || {
        producer.metric("events_in_flight") == 0.0
    })
    .await;
    assert_eq!(producer.ledger(), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(
        producer.metric("events_failed_total{reason=\"abandoned\"}"),
        1.0
    );
    producer.stop().await.unwrap();
}
