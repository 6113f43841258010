//! The consumer over its public surface: what goes in as events comes out as batches that count, exactly once,
//! whatever happens to its instances, its broker and its acknowledgements.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod desk;
mod faults;

use std::net::SocketAddr;

use common::{Consumer, DEAD, DELTAS, EVENTS, Log, PARTITIONS, config, event, events, record};
use prost::Message;
use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_consumer::dead_letter as headers;
use streamgauge_proto::v1::{
    PauseRequest, ResumeRequest, StatusRequest, consumer_control_client::ConsumerControlClient,
};
use streamgauge_telemetry::TraceContext;
use tonic::transport::Channel;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_out_as_batches_that_add_up() {
    let log = Log::start().await;
    let consumer = Consumer::start(log.config()).await;
    log.produce(&events(0..2_000)).await;
    // A client that tries again sends the same ids.
    log.produce(&events(0..100)).await;
    let totals = log.covered(2_100).await;
    assert_eq!(
        (totals.counted, totals.duplicate, totals.void),
        (2_000, 100, 0)
    );
    assert_eq!(totals.all, (2_000, 2_000.0));
    assert_eq!(totals.pages.len(), 7);
    assert_eq!(totals.pages.values().sum::<u64>(), 2_000);
    assert_eq!(totals.user_pages.values().sum::<u64>(), 2_000);
    consumer
        .until(
            async |it| it.metric("ledger_events_total{outcome=\"counted\"} 2000"),
            "counted",
        )
        .await;
    for line in [
        "ledger_events_total{outcome=\"duplicate\"} 100",
        "ledger_imbalance{stage=\"consumer\"} 0",
        "events_processed_total{event_type=\"view\",outcome=\"counted\"} 2000",
    ] {
        assert!(consumer.metric(line), "{line}");
    }
    let none = "kafka_consumer_lag{group=\"streamgauge-consumer\",topic=\"analytics-events\",partition=\"0\"} 0";
    consumer
        .until(async |it| it.metric(none), "caught up")
        .await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_counted_is_kept_with_its_provenance() {
    let log = Log::with_topics().await;
    let mut config = log.config();
    config.events.bytes_max = 2_000;
    let consumer = Consumer::start(config).await;
    let mut old = event(1);
    old.occurred_at_us -= 8 * 86_400_000_000;
    let (old, good) = (old.encode_to_vec(), event(2).encode_to_vec());
    let mut large = event(3);
    large.page_url = "x".repeat(3_000);
    let large = large.encode_to_vec();
    type Case<'a> = (&'a str, &'a [u8], Option<&'a [u8]>);
    let cases: [Case<'_>; 6] = [
        ("undecodable", b"k", Some(b"{\"user_id\":\"json\"}")),
        ("empty", b"k", Some(b"")),
        ("empty", b"tombstone", None),
        ("wrong_key", b"another", Some(&good)),
        ("oversized", b"user-3", Some(&large)),
        ("late", b"user-1", Some(&old)),
    ];
    let mut places = Vec::new();
    for (_, key, value) in cases {
        places.push(
            log.produce_raw(record(key, value, &[("original", b"kept")]))
                .await,
        );
    }
    log.produce(&events(10..20)).await;
    let totals = log.covered(16).await;
    assert_eq!(
        (totals.counted, totals.dead_lettered, totals.late),
        (10, 5, 1)
    );

    let mut letters = Vec::new();
    for partition in 0..PARTITIONS {
        letters.extend(log.read(DEAD, partition).await);
    }
    assert_eq!(letters.len(), cases.len());
    for ((reason, key, value), (partition, offset)) in cases.into_iter().zip(places) {
        let (partition, offset) = (partition.to_string(), offset.to_string());
        let letter = letters
            .iter()
            .find(|letter| {
                letter.header(headers::SOURCE_PARTITION) == Some(partition.as_str())
                    && letter.header(headers::SOURCE_OFFSET) == Some(offset.as_str())
            })
            .expect(reason);
        assert_eq!(letter.header(headers::REASON), Some(reason));
        assert_eq!(letter.header(headers::SOURCE_TOPIC), Some(EVENTS));
        assert_eq!(letter.header(headers::GROUP), Some("streamgauge-consumer"));
        assert_eq!(letter.header(headers::ATTEMPTS), Some("1"));
        assert!(
            letter
                .header(headers::DETAIL)
                .is_some_and(|detail| !detail.is_empty())
        );
        assert!(["decode", "validate"].contains(&letter.header(headers::STEP).unwrap()));
        assert!(
            letter
                .header(headers::TIME)
                .unwrap()
                .parse::<i64>()
                .unwrap()
                > 0
        );
        assert_eq!(letter.header("original"), Some("kept"));
        assert_eq!(letter.key.as_deref(), Some(key));
        assert_eq!(letter.payload.as_deref(), value);
    }
    assert!(consumer.metric("dlq_events_total{reason=\"empty\"} 2"));
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_where_it_was() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    log.produce(&events(0..500)).await;
    log.covered(500).await;
    consumer.stop().await;
    // While it is away, new events come, and some of the old ones again.
    log.produce(&events(400..900)).await;
    let consumer = Consumer::start(log.config()).await;
    let totals = log.covered(1_000).await;
    assert_eq!((totals.counted, totals.duplicate), (900, 100));
    assert_eq!(totals.pages.values().sum::<u64>(), 900);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_share_and_one_takes_over_when_the_other_dies() {
    let log = Log::with_topics().await;
    let named = |name: &str| {
        let mut config = log.config();
        config.instance = name.to_owned();
        config
    };
    let first = Consumer::start(named("first")).await;
    first
        .until(async |it| it.partitions().await.len() == 3, "owner of all")
        .await;
    log.produce(&events(0..300)).await;
    log.covered(300).await;
    let second = Consumer::start(named("second")).await;
    let shared = async |it: &Consumer| (1..=2).contains(&it.partitions().await.len());
    first.until(shared, "sharing").await;
    second.until(shared, "sharing").await;
    log.produce(&events(300..900)).await;
    let totals = log.covered(900).await;
    assert!(
        totals
            .writers
            .iter()
            .any(|writer| writer.starts_with("second/")),
        "{:?}",
        totals.writers
    );

    // The first dies in the middle of its work; the second takes over and owns all.
    first.task.abort();
    log.produce(&events(800..1_500)).await;
    second
        .until(async |it| it.partitions().await.len() == 3, "owner of all")
        .await;
    let totals = log.covered(1_600).await;
    assert_eq!(
        (totals.counted, totals.duplicate, totals.missing),
        (1_500, 100, 0)
    );
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_acknowledgements_and_cut_connections_count_nothing_twice() {
    let log = Log::with_topics().await;
    let mut config = log.config();
    config.deltas.delivery_timeout_ms = 2_000;
    let consumer = Consumer::start(config).await;
    for round in 0..5 {
        log.produce(&events(round * 100..round * 100 + 100)).await;
        log.broker().faults().drop_acknowledgements(2);
        log.broker().faults().cut_connections();
    }
    log.broker().faults().drop_acknowledgements(0);
    let totals = log.covered(500).await;
    assert_eq!(
        (totals.counted + totals.duplicate, totals.missing),
        (500, 0)
    );
    assert_eq!(totals.pages.values().sum::<u64>(), totals.counted);
    assert_eq!(totals.duplicate, 0);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_partition_count_is_an_error_that_names_both() {
    let log = Log::start().await;
    log.broker().create_topic(EVENTS, PARTITIONS).await.unwrap();
    log.broker().create_topic(DELTAS, 5).await.unwrap();
    let consumer = Consumer::launch(log.config()).await;
    let error = consumer
        .task
        .await
        .unwrap()
        .expect_err("they do not agree")
        .to_string();
    for part in [DELTAS, "5", "3"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_kafka_it_waits_and_says_so() {
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let mut settings = config(&address.to_string());
    settings.kafka.request_timeout_ms = 500;
    drop(listener);
    let consumer = Consumer::launch(settings).await;
    let waiting = async |it: &Consumer| {
        it.get("/health")
            .await
            .1
            .contains("no Kafka broker answered")
    };
    consumer.until(waiting, "waiting").await;
    assert_eq!(consumer.get("/readyz").await.0, 503);
    assert_eq!(consumer.get("/livez").await.0, 200);
    let dir = tempfile::TempDir::new().unwrap();
    let settings = BrokerConfig {
        listen: address,
        data_dir: dir.path().to_owned(),
        ..BrokerConfig::default()
    };
    let _broker = Broker::start(settings).await.unwrap();
    consumer
        .until(async |it| it.get("/readyz").await.0 == 200, "ready")
        .await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_can_look_and_hold() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    consumer
        .until(async |it| it.partitions().await.len() == 3, "owner of all")
        .await;
    let (code, problem) = consumer.post("/v1/pause", "{\"partitions\":[7]}").await;
    assert_eq!(code, 404);
    assert!(problem.contains("partition 7"), "{problem}");
    assert_eq!(consumer.post("/v1/pause", "[]").await.0, 400);
    assert_eq!(consumer.post("/v1/pause", "").await.0, 200);
    assert!(
        consumer
            .partitions()
            .await
            .iter()
            .all(|partition| partition["state"] == "paused")
    );
    log.produce(&events(0..50)).await;
    let behind = async |it: &Consumer| {
        let lags = it
            .partitions()
            .await
            .into_iter()
            .map(|partition| partition["lag_records"].as_i64());
        lags.flatten().sum::<i64>() == 50
    };
    consumer.until(behind, "behind").await;
    assert_eq!(log.totals().await.covered, 0);

    let endpoint = Channel::from_shared(format!("http://{}", consumer.grpc)).unwrap();
    let mut control = ConsumerControlClient::new(endpoint.connect().await.unwrap());
    let missing = control
        .pause(PauseRequest {
            partitions: vec![9],
        })
        .await
        .unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
    control.resume(ResumeRequest::default()).await.unwrap();
    let totals = log.covered(50).await;
    assert_eq!(totals.counted, 50);
    consumer
        .until(
            async |it| {
                it.partitions()
                    .await
                    .iter()
                    .all(|p| p["committed"] == p["head"])
            },
            "committed",
        )
        .await;
    let status = control.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.group, "streamgauge-consumer");
    assert_eq!(status.partitions.len(), 3);
    assert_eq!(
        status
            .partitions
            .iter()
            .map(|partition| partition.head)
            .sum::<i64>(),
        50
    );
    assert!(
        status
            .partitions
            .iter()
            .any(|partition| partition.watermark_us > 0)
    );
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampled_event_keeps_its_trace() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    let parent = TraceContext {
        trace_id: [7; 16],
        span_id: [9; 8],
        sampled: true,
    };
    let (sent, header) = (event(1), parent.header());
    let payload = sent.encode_to_vec();
    let headers = [("traceparent", header.as_bytes())];
    log.produce_raw(record(sent.user_id.as_bytes(), Some(&payload), &headers))
        .await;
    let totals = log.covered(1).await;
    consumer
        .until(
            async |it| !it.spans.named("send metrics-data").is_empty(),
            "traced",
        )
        .await;
    let process = consumer.spans.named("process analytics-events").remove(0);
    assert_eq!(process.context.trace_id, parent.trace_id);
    assert_eq!(process.parent_span_id, Some(parent.span_id));
    assert_eq!(
        process.attribute("messaging.destination.name"),
        Some(EVENTS)
    );
    assert_eq!(process.attribute("messaging.kafka.offset"), Some("0"));
    let batch = consumer.spans.named("send metrics-data").remove(0);
    assert_eq!(batch.links, [process.context]);
    assert_eq!(totals.traces, [process.context.to_bytes().to_vec()]);
    consumer.stop().await;
}
