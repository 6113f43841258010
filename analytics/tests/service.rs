//! The whole service on the embedded broker: batches written straight to `metrics-data`, questions over HTTP and gRPC.

mod common;

use common::{NOW_S, batch, running::*};
use prost::Message;
use serde_json::{Value, json};
use streamgauge_proto::v1;
use streamgauge_telemetry::TraceContext;

#[tokio::test(flavor = "multi_thread")]
async fn batches_become_answers_exactly_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let brokers = broker.bootstrap();
    let mut writer = Writer::new(&brokers);
    let analytics = Analytics::start(config(folder.path(), &brokers)).await;
    until(|| async { analytics.get("/readyz").await.0 == 200 }).await;
    for round in 0..10i64 {
        for partition in 0..PARTITIONS {
            let payload = writer
                .valid(partition, some_events(NOW_S - 600 + round * 30, 40), vec![])
                .await;
            match round % 3 {
                0 => writer.raw(partition, &payload).await,
                1 => writer.raw(partition, b"\xffnot a batch").await,
                _ => {
                    writer
                        .raw(
                            partition,
                            &batch(1_000_000, &some_events(NOW_S, 3)).encode_to_vec(),
                        )
                        .await
                }
            }
        }
    }
    analytics.until_head(writer.total()).await;
    let top = analytics
        .answer("/v1/top?by=page_url&last=15m&limit=3")
        .await;
    assert_eq!(top["total"]["count"], 1_200);
    assert_eq!(top["keys"], 7);
    let largest = writer.oracle.count(|event| event.page == "/page/0");
    assert_eq!(
        top["entries"][0],
        json!({"key": ["/page/0"], "value": top["entries"][0]["value"]})
    );
    assert_eq!(top["entries"][0]["value"]["count"], largest);
    assert_eq!(top["info"]["unit"], "events");
    let users = writer.oracle.users(|_| true) as f64;
    let found = analytics.answer("/v1/distinct-users?last=15m").await["users"]
        .as_f64()
        .expect("a number");
    assert!((found - users).abs() < 0.1, "{found} of {users}");
    let wanted = writer
        .oracle
        .count(|event| event.user == "user-3" && event.page == "/page/3");
    let events = analytics
        .answer("/analytics/events?user_id=user-3&page_url=/page/3")
        .await;
    assert_eq!(
        (&events["count"], &events["unit"]),
        (&json!(wanted), &json!("events"))
    );
    assert_eq!(events["by_event_type"], json!({"click": wanted}));
    let ledger = analytics.answer("/v1/ledger").await;
    assert_eq!(
        (
            &ledger["total"]["imbalance"],
            &ledger["total"]["void_batches"]
        ),
        (&json!(0), &json!(30))
    );
    assert_eq!(
        analytics
            .metric("ledger_imbalance{stage=\"analytics\"}")
            .await,
        Some(0.0)
    );
    assert_eq!(
        analytics
            .metric("delta_batches_total{verdict=\"undecodable\"}")
            .await,
        Some(9.0)
    );
    let applied = "events_processed_total{event_type=\"click\",outcome=\"applied\"}";
    let clicks = writer.oracle.count(|event| event.kind == "click") as f64;
    assert_eq!(analytics.metric(applied).await, Some(clicks));

    // Started again, everything is still there, and goes on.
    let names = analytics.answer("/v1/series/names").await;
    analytics.stop().await;
    let again = Analytics::start(config(folder.path(), &brokers)).await;
    until(|| async { again.get("/readyz").await.0 == 200 }).await;
    assert_eq!(again.answer("/v1/ledger").await["total"]["counted"], 1_200);
    assert_eq!(again.answer("/v1/series/names").await, names);
    let restarted = again.answer("/v1/top?by=page_url&last=15m&limit=3").await;
    assert_eq!(restarted["entries"], top["entries"]);
    writer.valid(0, some_events(NOW_S - 60, 10), vec![]).await;
    again.until_head(writer.total()).await;
    assert_eq!(
        again.answer("/v1/top?last=2h").await["total"]["count"],
        1_210
    );
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_and_grpc_give_one_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    for partition in 0..PARTITIONS {
        writer
            .valid(partition, some_events(NOW_S - 500, 200), vec![])
            .await;
    }
    writer.source().await;
    analytics.until_head(writer.total()).await;
    // Idle, so that nothing changes between two questions; then the watermark is the latest of all.
    until(|| async {
        analytics.answer("/v1/top?last=1h").await["info"]["watermark"] != Value::Null
    })
    .await;
    let mut calls = analytics.calls().await;
    let range = common::range(NOW_S - 600, NOW_S - 300);
    let query = format!("from={}&to={}", NOW_S - 600, NOW_S - 300);

    let request = v1::SeriesRequest {
        by: String::from("event_type,page_url"),
        range,
        step_s: 30,
        window_s: 60,
        filter: [(String::from("event_type"), String::from("click"))].into(),
        quantiles: vec![0.5, 0.9],
        limit: 2,
    };
    let grpc = calls.series(request).await.expect("an answer").into_inner();
    let path = format!(
        "/v1/series?by=event_type,page_url&{query}&step=30s&window=1m&q=0.5,0.9&limit=2&filter.event_type=click"
    );
    let rest = analytics.answer(&path).await;
    assert_eq!(grpc.series.len(), 3, "two keys and the others");
    for (one, other) in grpc
        .series
        .iter()
        .zip(rest["series"].as_array().expect("series"))
    {
        assert_eq!(json!(one.key), other["key"]);
        assert_eq!(
            one.points.len(),
            other["points"].as_array().expect("points").len()
        );
        for (one, other) in one
            .points
            .iter()
            .zip(other["points"].as_array().expect("points"))
        {
            same_aggregate(one.value.as_ref(), &other["value"]);
            assert_eq!(time_us(&other["start"]), one.start_us);
            assert_eq!(other["final"], one.r#final);
        }
    }
    same_info(grpc.info.as_ref(), &rest["info"]);

    for (measure, name) in [
        (v1::Measure::Count, "count"),
        (v1::Measure::Sum, "sum"),
        (v1::Measure::Users, "users"),
    ] {
        let request = v1::TopRequest {
            by: String::from("page_url"),
            range,
            measure: measure.into(),
            limit: 3,
            ..v1::TopRequest::default()
        };
        let grpc = calls.top(request).await.expect("an answer").into_inner();
        let rest = analytics
            .answer(&format!(
                "/v1/top?by=page_url&{query}&measure={name}&limit=3"
            ))
            .await;
        assert_eq!(rest["keys"], grpc.keys);
        same_aggregate(grpc.total.as_ref(), &rest["total"]);
        for (one, other) in grpc
            .entries
            .iter()
            .zip(rest["entries"].as_array().expect("entries"))
        {
            assert_eq!(json!(one.key), other["key"]);
            same_aggregate(one.value.as_ref(), &other["value"]);
        }
        same_info(grpc.info.as_ref(), &rest["info"]);
    }

    let request = v1::DistinctUsersRequest {
        range,
        ..v1::DistinctUsersRequest::default()
    };
    let grpc = calls
        .distinct_users(request)
        .await
        .expect("an answer")
        .into_inner();
    let rest = analytics
        .answer(&format!("/v1/distinct-users?{query}"))
        .await;
    assert_eq!(
        (json!(grpc.users), json!(grpc.lower), json!(grpc.upper)),
        (
            rest["users"].clone(),
            rest["lower"].clone(),
            rest["upper"].clone()
        )
    );

    let request = v1::UserActivityRequest {
        user_id: String::from("user-5"),
        ..Default::default()
    };
    let grpc = calls
        .user_activity(request)
        .await
        .expect("an answer")
        .into_inner();
    let rest = analytics.answer("/v1/users/user-5/activity").await;
    assert_eq!(
        (&rest["count"], rest["pages"].as_array().map(Vec::len)),
        (&json!(grpc.count), Some(grpc.pages.len()))
    );
    let grpc = calls
        .ledger(v1::LedgerRequest::default())
        .await
        .expect("an answer")
        .into_inner();
    let rest = analytics.answer("/v1/ledger").await;
    assert_eq!(
        (&rest["total"]["head"], &rest["balanced"]),
        (
            &json!(grpc.total.expect("a total").head),
            &json!(grpc.balanced)
        )
    );
    assert_eq!(
        rest["partitions"].as_array().map(Vec::len),
        Some(grpc.partitions.len())
    );

    // The same refusals too.
    for (path, field) in [
        ("/v1/series?last=15m", "step"),
        ("/v1/top?by=nonsense&last=15m", "by"),
        ("/v1/top?last=15m&limit=5000", "limit"),
    ] {
        let (status, body) = analytics.get(path).await;
        assert!(status == 400 || status == 404, "{path}: {status}");
        assert_eq!(body["error"]["field"], field, "{path}: {body}");
    }
    let request = v1::SeriesRequest {
        range,
        ..v1::SeriesRequest::default()
    };
    assert_eq!(
        calls.series(request).await.expect_err("no step").code(),
        tonic::Code::InvalidArgument
    );
    assert_eq!(analytics.get("/v1/nothing").await.0, 404);
    analytics.stop().await;
}

fn time_us(value: &Value) -> i64 {
    let text = value.as_str().expect("a time");
    text.parse::<jiff::Timestamp>()
        .expect("RFC 3339")
        .as_microsecond()
}

fn same_aggregate(one: Option<&v1::Aggregate>, other: &Value) {
    let one = one.expect("a value");
    assert_eq!(
        (json!(one.count), json!(one.value_count), json!(one.sum)),
        (
            other["count"].clone(),
            other["value_count"].clone(),
            other["sum"].clone()
        )
    );
    assert_eq!(
        (json!(one.min), json!(one.max)),
        (other["min"].clone(), other["max"].clone())
    );
    // Reading a number back from text may be off by the last bit.
    let users = other["users"].as_f64().expect("a number");
    assert!((one.users - users).abs() < 1e-9, "{} {users}", one.users);
    assert_eq!(json!(one.quantiles), other["quantiles"]);
}

fn same_info(one: Option<&v1::AnswerInfo>, other: &Value) {
    let one = one.expect("info");
    assert_eq!(
        (json!(one.unit), json!(one.r#final), json!(one.resolution_s)),
        (
            other["unit"].clone(),
            other["final"].clone(),
            other["resolution_s"].clone()
        )
    );
    assert_eq!(
        (json!(one.distinct_error), json!(one.quantile_error)),
        (
            other["distinct_error"].clone(),
            other["quantile_error"].clone()
        )
    );
    assert_eq!(time_us(&other["as_of"]), one.as_of_us);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_event_keeps_its_trace_and_changes_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    until(|| async { analytics.get("/readyz").await.0 == 200 }).await;
    let request = v1::WatchRequest {
        interval_ms: 50,
        ..v1::WatchRequest::default()
    };
    let mut changes = analytics
        .calls()
        .await
        .watch(request)
        .await
        .expect("a stream")
        .into_inner();
    let url = format!("http://{}/v1/live?by=all&interval_ms=50", analytics.http);
    let mut live = analytics.client.get(url).send().await.expect("a stream");

    let parent = TraceContext {
        trace_id: [7; 16],
        span_id: [8; 8],
        sampled: true,
    };
    let unsampled = TraceContext {
        trace_id: [9; 16],
        sampled: false,
        ..parent
    };
    writer
        .valid(1, some_events(NOW_S - 30, 25), vec![parent, unsampled])
        .await;
    analytics.until_head(25).await;
    until(|| async { !analytics.spans.named("apply metrics-data").is_empty() }).await;
    let spans = analytics.spans.named("apply metrics-data");
    assert_eq!(spans.len(), 1, "only what is sampled");
    assert_eq!(
        (spans[0].context.trace_id, spans[0].parent_span_id),
        ([7; 16], Some([8; 8]))
    );
    assert_eq!(
        spans[0].attribute("messaging.destination.partition.id"),
        Some("1")
    );
    assert_eq!(spans[0].attribute("db.system.name"), Some("sqlite"));

    let mut counted = 0;
    while counted < 25 {
        let message = changes.message().await.expect("alive").expect("a message");
        let points = message.changed.iter().flat_map(|series| &series.points);
        counted += points
            .filter_map(|point| point.value.as_ref())
            .map(|value| value.count)
            .sum::<u64>();
        assert_eq!(message.skipped, 0);
    }
    let mut text = String::new();
    while !text.contains("\"count\"") {
        let chunk = live.chunk().await.expect("alive").expect("more");
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains("event: change"), "{text}");
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_do_not_fit_are_an_error_with_both_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    broker
        .create_topic("analytics-events", 4)
        .await
        .expect("a topic");
    broker
        .create_topic("metrics-data", 3)
        .await
        .expect("a topic");
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    let error = analytics
        .task
        .await
        .expect("no panic")
        .expect_err("they do not fit")
        .to_string();
    assert!(
        error.contains("3 partitions") && error.contains('4'),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_of_the_consumer_is_told_from_outside_and_idle_partitions_do_not_hold_the_watermark()
 {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    writer.valid(0, some_events(NOW_S - 300, 40), vec![]).await;
    writer.source().await;
    // In flight: an event that no batch counts yet.
    writer.heads = [7, 0, 0];
    writer.source().await;
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    analytics.until_head(40).await;
    let lag = "kafka_consumer_lag{group=\"streamgauge-consumer\",topic=\"analytics-events\",partition=\"0\"}";
    until(|| async { analytics.metric(lag).await == Some(7.0) }).await;
    let ledger = analytics.answer("/v1/ledger").await;
    assert_eq!(
        (&ledger["total"]["source_end"], &ledger["total"]["head"]),
        (&json!(47), &json!(40))
    );
    // Partitions 1 and 2 are empty, and idle: the watermark is that of partition 0.
    let latest = writer
        .oracle
        .0
        .iter()
        .map(|event| event.second)
        .max()
        .expect("events");
    until(|| async {
        let watermark = analytics.answer("/v1/top?last=1h").await["info"]["watermark"].clone();
        watermark.is_string() && time_us(&watermark) == latest * 1_000_000
    })
    .await;
    let info = analytics
        .answer(&format!("/v1/top?from={}&to={}", NOW_S - 400, latest))
        .await["info"]
        .clone();
    assert_eq!(info["final"], true);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_the_source_alone_holds_the_watermark() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    writer.valid(0, some_events(NOW_S - 300, 10), vec![]).await;
    writer.source().await;
    analytics.until_head(10).await;
    let watermark =
        || async { analytics.answer("/v1/top?last=1h").await["info"]["watermark"].clone() };
    until(|| async { watermark().await.is_string() }).await;
    let before = watermark().await;
    // Partition 1 was idle until now; its consumer is behind.
    let heads = writer.heads;
    writer.heads = [0, 4, 0];
    writer.source().await;
    writer.heads = heads;
    until(|| async { analytics.answer("/v1/ledger").await["total"]["source_end"] == 14 }).await;
    writer.valid(0, some_events(NOW_S - 100, 10), vec![]).await;
    analytics.until_head(20).await;
    let path = format!("/v1/top?from={}&to={}", NOW_S - 150, NOW_S - 98);
    assert_eq!(analytics.answer(&path).await["info"]["final"], false);
    assert_eq!(watermark().await, before);
    // It has caught up: what partition 0 brought is final.
    writer.valid(1, some_events(NOW_S - 90, 4), vec![]).await;
    analytics.until_head(24).await;
    until(|| async { analytics.answer(&path).await["info"]["final"] == true }).await;
    analytics.stop().await;
}
