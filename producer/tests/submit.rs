//! Submission over HTTP, as clients see it, and what it leaves in the log.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;

use common::{Producer, broker, config};
use serde_json::{Value, json};
use streamgauge_proto::v1::Event;
use tempfile::TempDir;

async fn producer(dir: &TempDir) -> (streamgauge_broker::Broker, Producer) {
    let broker = broker(dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    (broker, producer)
}

fn statuses(answer: &Value) -> Vec<&str> {
    answer["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|verdict| verdict["status"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_and_coding_of_a_body_is_taken() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let one = r#"{"user_id":"u1","event_type":"click","page_url":"/"}"#;
    let forms = [
        ("application/json", one.to_owned(), 1),
        (
            "application/json; charset=utf-8",
            format!("[{one},{one}]"),
            2,
        ),
        ("application/json", format!("{{\"events\":[{one}]}}"), 1),
        ("application/x-ndjson", format!("{one}\n{one}\n"), 2),
        ("text/plain", one.to_owned(), 1),
        // What `curl -d` sends.
        ("application/x-www-form-urlencoded", one.to_owned(), 1),
    ];
    let mut sent = 0;
    for (content_type, body, events) in forms {
        let answer = producer
            .post_with(
                "/v1/events",
                &[("content-type", content_type)],
                body.clone(),
            )
            .await;
        assert_eq!(answer.status, 200, "{content_type} {body}: {}", answer.text);
        assert_eq!(answer.json()["accepted"], events);
        sent += events;
    }
    for (coding, body) in compressed(one.as_bytes()) {
        let answer = producer
            .post_with("/v1/events", &[("content-encoding", coding)], body)
            .await;
        assert_eq!(answer.status, 200, "{coding}: {}", answer.text);
        sent += 1;
    }
    let written = producer.written().await;
    assert_eq!(written.len(), sent);
    for record in written {
        assert_eq!(record.key, b"u1");
        assert_eq!(
            (
                record.event.event_type.as_str(),
                record.event.page_url.as_str()
            ),
            ("click", "/")
        );
        assert_eq!(record.timestamp_ms, record.event.received_at_us / 1_000);
    }
    let sent = sent as f64;
    assert_eq!(producer.ledger(), [sent, sent, 0.0, 0.0]);
    producer.stop().await.unwrap();
}

fn compressed(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(plain).unwrap();
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(plain).unwrap();
    vec![
        ("gzip", gzip.finish().unwrap()),
        ("deflate", zlib.finish().unwrap()),
        ("identity", plain.to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_as_it_was_sent() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let body = json!({
        "event_id": "e1", "user_id": "ünïcode", "event_type": "buy", "occurred_at": "2024-05-17T10:00:00.250+02:00",
        "page_url": "/cart", "session_id": "s1", "value": 9.5, "properties": {"a": [1, {"b": null}]}, "unknown": 1,
    });
    let answer = producer
        .post_with("/v1/events?historical=true", &[], body.to_string())
        .await;
    assert_eq!(
        answer.json()["verdicts"][0],
        json!({"status": "accepted", "event_id": "e1"})
    );
    let written = producer.written().await;
    let event = &written[0].event;
    let expected = Event {
        event_id: "e1".into(),
        tenant: "".into(),
        user_id: "ünïcode".into(),
        event_type: "buy".into(),
        occurred_at_us: 1_715_932_800_250_000,
        received_at_us: event.received_at_us,
        page_url: "/cart".into(),
        session_id: "s1".into(),
        value: Some(9.5),
        properties: body["properties"].to_string().into_bytes().into(),
        historical: true,
    };
    assert_eq!(*event, expected);
    assert_eq!(producer.metric("events_unknown_fields_total"), 1.0);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_assigned_or_derived_and_duplicates_are_left_to_the_consumer() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let body = r#"[{"user_id":"a","event_type":"x"},{"user_id":"a","event_type":"x"}]"#;
    let ids = async |headers: &[(&str, &str)]| {
        let answer = producer.post_with("/v1/events", headers, body).await.json();
        let id = |nth: usize| {
            answer["verdicts"][nth]["event_id"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        [id(0), id(1)]
    };
    let first = ids(&[]).await;
    assert_ne!(first[0], first[1]);
    assert_ne!(first, ids(&[]).await);
    let keyed = ids(&[("idempotency-key", "k1")]).await;
    assert_eq!(
        keyed,
        ids(&[("idempotency-key", "k1")]).await,
        "a retry is recognised"
    );
    assert_ne!(keyed, ids(&[("idempotency-key", "k2")]).await);

    let twice = r#"[{"event_id":"d","user_id":"a","event_type":"x"},{"event_id":"d","user_id":"a","event_type":"x"}]"#;
    let answer = producer.post("/v1/events", twice).await.json();
    assert_eq!(statuses(&answer), ["accepted", "accepted"]);
    assert_eq!(
        producer
            .written()
            .await
            .iter()
            .filter(|record| record.event.event_id == "d")
            .count(),
        2
    );
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_leaves_its_neighbours_alone() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let good = r#"{"event_id":"g","user_id":"u","event_type":"x"}"#;
    let long = "u".repeat(201);
    let large = format!(
        r#"{{"user_id":"u","event_type":"x","properties":{{"p":"{}"}}}}"#,
        "x".repeat(2 << 20)
    );
    let bulky = format!(
        r#"{{"user_id":"u","event_type":"x","properties":{{"p":"{}"}}}}"#,
        "x".repeat(65 << 10)
    );
    let deep = format!(
        r#"{{"user_id":"u","event_type":"x","properties":{{"p":{}{}}}}}"#,
        "[".repeat(1000),
        "]".repeat(1000)
    );
    let future = chrono_like(3600);
    let cases: Vec<(String, &str, Option<&str>)> = vec![
        (
            r#"{"event_type":"x"}"#.into(),
            "missing_field",
            Some("user_id"),
        ),
        (
            r#"{"user_id":"","event_type":"x"}"#.into(),
            "missing_field",
            Some("user_id"),
        ),
        (
            r#"{"user_id":"u"}"#.into(),
            "missing_field",
            Some("event_type"),
        ),
        (
            format!(r#"{{"user_id":"{long}","event_type":"x"}}"#),
            "field_too_long",
            Some("user_id"),
        ),
        (
            r#"{"user_id":"null","event_type":"x"}"#.into(),
            "placeholder_id",
            Some("user_id"),
        ),
        (
            r#"{"user_id":"Undefined","event_type":"x"}"#.into(),
            "placeholder_id",
            Some("user_id"),
        ),
        (
            r#"{"event_id":"null","user_id":"u","event_type":"x"}"#.into(),
            "placeholder_id",
            Some("event_id"),
        ),
        (
            r#"{"user_id":7,"event_type":"x"}"#.into(),
            "wrong_type",
            Some("user_id"),
        ),
        (
            r#"{"user_id":"u","event_type":"x","value":"1"}"#.into(),
            "wrong_type",
            Some("value"),
        ),
        (
            r#"{"user_id":"u","event_type":"x","value":1e999}"#.into(),
            "invalid_value",
            Some("value"),
        ),
        (
            r#"{"user_id":"u","event_type":"x","properties":[]}"#.into(),
            "wrong_type",
            Some("properties"),
        ),
        (
            r#"{"user_id":"u","event_type":"x","timestamp":"soon"}"#.into(),
            "invalid_timestamp",
            Some("timestamp"),
        ),
        (
            r#"{"user_id":"u","event_type":"x","occurred_at":-1}"#.into(),
            "invalid_timestamp",
            Some("occurred_at"),
        ),
        (
            format!(r#"{{"user_id":"u","event_type":"x","occurred_at":{future}}}"#),
            "timestamp_in_future",
            Some("occurred_at"),
        ),
        (large, "event_too_large", None),
        (bulky, "field_too_long", Some("properties")),
        (deep, "too_deep", Some("properties")),
        ("17".into(), "wrong_type", None),
        (
            r#"{"user_id":"u" "event_type":"x"}"#.into(),
            "malformed_body",
            None,
        ),
    ];
    let mut rejected = 0;
    for (bad, code, field) in &cases {
        let answer = producer
            .post("/v1/events", format!("[{good},{bad},{good}]"))
            .await;
        assert_eq!(answer.status, 200, "{code}: {}", answer.text);
        let answer = answer.json();
        assert_eq!(
            statuses(&answer),
            ["accepted", "rejected", "accepted"],
            "{code}"
        );
        let verdict = &answer["verdicts"][1];
        assert_eq!(verdict["code"], *code, "{verdict}");
        assert_eq!(verdict["field"].as_str(), *field, "{verdict}");
        rejected += 1;
        assert_eq!(
            producer.metric_sum("events_rejected_total"),
            f64::from(rejected)
        );
    }
    let body = [
        b"[".as_slice(),
        good.as_bytes(),
        b",{\"user_id\":\"\xff\"}]",
    ]
    .concat();
    assert_eq!(
        statuses(&producer.post("/v1/events", body).await.json()),
        ["accepted", "rejected"]
    );
    let [received, accepted, ..] = producer.ledger();
    assert_eq!(accepted, producer.written().await.len() as f64);
    assert_eq!(received, (cases.len() * 3 + 2) as f64);
    producer.stop().await.unwrap();
}

/// Epoch seconds, so far from now.
fn chrono_like(ahead_s: u64) -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + ahead_s
}

#[tokio::test(flavor = "multi_thread")]
async fn times_in_four_formats_are_one_moment() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let times = [
        "\"2024-05-17T08:00:00Z\"",
        "\"2024-05-17T08:00:00\"",
        "1715932800",
        "1715932800000",
        "\"1715932800000000\"",
    ];
    let events: Vec<_> = times
        .iter()
        .map(|time| format!(r#"{{"user_id":"u","event_type":"x","timestamp":{time}}}"#))
        .collect();
    let answer = producer
        .post("/v1/events", format!("[{}]", events.join(",")))
        .await
        .json();
    assert_eq!(answer["accepted"], times.len());
    for record in producer.written().await {
        assert_eq!(record.event.occurred_at_us, 1_715_932_800_000_000);
    }
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_can_be_limited_to_what_failed() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let good = r#"{"user_id":"u","event_type":"x"}"#;
    let answer = producer
        .post(
            "/v1/events?verdicts=failed",
            format!("[{good},{{}},{good},1]"),
        )
        .await
        .json();
    assert_eq!(
        (&answer["accepted"], &answer["rejected"], &answer["retry"]),
        (&json!(2), &json!(2), &json!(0))
    );
    let verdicts = answer["verdicts"].as_array().unwrap();
    assert_eq!(
        verdicts
            .iter()
            .map(|verdict| verdict["index"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [1, 3]
    );
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simple_shapes_are_answered_simply() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let click = r#"{"event_id":"c1","user_id":"u","event_type":"click","page_url":"/a","timestamp":1715932800000}"#;
    let answer = producer.post("/ingest", click).await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"status": "accepted", "event_id": "c1"}))
    );
    let activity = r#"{"user_id":"u","activity_type":"login","timestamp":"2024-05-17T08:00:00Z","metadata":{"ip":"::1"}}"#;
    assert_eq!(producer.post("/activity", activity).await.status, 200);
    let both = producer
        .post("/activity", format!("[{activity},{{\"user_id\":\"u\"}}]"))
        .await
        .json();
    assert_eq!(statuses(&both), ["accepted", "rejected"]);
    assert_eq!(both["verdicts"][1]["field"], "activity_type");

    for (path, body, code, field) in [
        (
            "/ingest",
            r#"{"user_id":"u"}"#,
            "missing_field",
            "event_type",
        ),
        (
            "/activity",
            r#"{"user_id":"u","activity_type":"x","metadata":1}"#,
            "wrong_type",
            "metadata",
        ),
        (
            "/activity",
            r#"{"user_id":"u","activity_type":"x","timestamp":"x"}"#,
            "invalid_timestamp",
            "timestamp",
        ),
    ] {
        let answer = producer.post(path, body).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, code),
            "{path} {body}"
        );
        assert_eq!(answer.json()["error"]["field"], field);
    }
    let written = producer.written().await;
    let login = written
        .iter()
        .find(|record| record.event.event_type == "login")
        .unwrap();
    assert_eq!(&login.event.properties[..], br#"{"ip":"::1"}"#);
    producer.ledger();
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_request_into_the_records() {
    let dir = TempDir::new().unwrap();
    let (_broker, producer) = producer(&dir).await;
    let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let event = r#"{"user_id":"u","event_type":"x"}"#;
    let body = format!("[{}]", [event; 20].join(","));
    let answer = producer
        .post_with("/v1/events", &[("traceparent", caller)], body)
        .await;
    assert_eq!(
        answer.header("x-trace-id"),
        Some("0af7651916cd43dd8448eb211c80319c")
    );
    let spans = producer.spans.all();
    let server = spans
        .iter()
        .find(|span| span.name == "POST /v1/events")
        .unwrap();
    assert_eq!(
        server.parent_span_id,
        Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31])
    );
    let send = spans
        .iter()
        .find(|span| span.name == "send analytics-events")
        .unwrap();
    assert_eq!(send.parent_span_id, Some(server.context.span_id));
    for (key, value) in [
        ("messaging.system", "kafka"),
        ("messaging.destination.name", "analytics-events"),
        ("messaging.batch.message_count", "20"),
    ] {
        assert_eq!(send.attribute(key), Some(value));
    }
    let traced: Vec<_> = producer
        .written()
        .await
        .into_iter()
        .filter_map(|record| record.traceparent)
        .collect();
    assert_eq!(
        traced,
        vec![send.context.header(); 16],
        "a few events carry it, however many there are"
    );

    let answer = producer
        .post_with("/v1/events", &[("traceparent", caller)], "")
        .await;
    assert_eq!(
        answer.json()["error"]["trace_id"],
        "0af7651916cd43dd8448eb211c80319c"
    );
    let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let answer = producer
        .post_with("/v1/events", &[("traceparent", unsampled)], event)
        .await;
    assert_eq!(
        (answer.header("x-trace-id"), answer.header("traceparent")),
        (None, None)
    );
    assert_eq!(
        producer
            .written()
            .await
            .iter()
            .filter(|record| record.traceparent.is_some())
            .count(),
        16
    );
    producer.stop().await.unwrap();
}
