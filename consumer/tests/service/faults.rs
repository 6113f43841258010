//! What the consumer makes of a broker that restarts, of a source that shrinks, of records that no client would write,
//! and of being stopped in the middle of its work.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use streamgauge_broker::{Broker, BrokerConfig};
use streamgauge_consumer::dead_letter as headers;
use streamgauge_kafka::{GroupConfig, GroupReader};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::common::{Consumer, DEAD, EVENTS, Log, PARTITIONS, events, record};

/// What the group has committed, over all partitions.
async fn committed(log: &Log) -> i64 {
    let config = GroupConfig::default();
    let (reader, _changes) = GroupReader::spawn(&log.kafka, &config, EVENTS, None).unwrap();
    let mut sum = 0;
    for partition in 0..PARTITIONS {
        sum += reader
            .committed(partition)
            .await
            .unwrap()
            .map_or(0, |(offset, _)| offset);
    }
    reader.close(Duration::from_secs(10)).await;
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_is_quick_and_leaves_nothing_open() {
    let log = Arc::new(Log::with_topics().await);
    let mut config = log.config();
    config.batch.records_max = 50;
    let consumer = Consumer::start(config).await;
    let loading = Arc::new(AtomicBool::new(true));
    let load = tokio::spawn({
        let (log, loading) = (Arc::clone(&log), Arc::clone(&loading));
        async move {
            let mut number = 0;
            while loading.load(Ordering::Acquire) {
                log.produce(&events(number..number + 200)).await;
                number += 200;
            }
        }
    });
    log.covered(2_000).await;
    let started = Instant::now();
    consumer.stop().await;
    let spent = started.elapsed();
    loading.store(false, Ordering::Release);
    load.await.unwrap();
    // Well before the deadline, which would leave the rest to the next owner.
    assert!(spent < Duration::from_secs(10), "{spent:?}");
    let totals = log.totals().await;
    assert_eq!(committed(&log).await, totals.covered);
    assert_eq!(totals.void, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_health_watch_does_not_hold_up_the_shutdown() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    let endpoint = Channel::from_shared(format!("http://{}", consumer.grpc)).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let started = Instant::now();
    consumer.stop().await;
    assert!(started.elapsed() < Duration::from_secs(10));
    // The last word is that it serves no more; then the watch ends.
    while let Ok(Some(_)) = watch.message().await {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_no_dead_letter_can_hold_does_not_stop_its_partition() {
    let log = Log::with_topics().await;
    let mut config = log.config();
    config.dead_letters.message_bytes_max = 6_000;
    let consumer = Consumer::start(config).await;
    let (long, garbage) = (vec![b'x'; 7_000], vec![0xff; 9_000]);
    // SAFETY: librdkafka takes bytes, and the name goes nowhere else.
    #[allow(unsafe_code, invalid_from_utf8_unchecked)]
    let name = unsafe { std::str::from_utf8_unchecked(&[b'n', 0xff]) };
    type Case<'a> = (&'a [u8], &'a [u8], (&'a str, &'a [u8]));
    let cases: [Case<'_>; 4] = [
        (b"value", &garbage, ("a", b"kept")),
        (b"headers", b"bad", ("a", &long)),
        (&long, b"bad", ("a", b"short")),
        (b"names", b"bad", (name, b"1")),
    ];
    for (key, value, header) in cases {
        log.produce_raw(record(key, Some(value), &[header])).await;
    }
    log.produce(&events(0..20)).await;
    let totals = log.covered(24).await;
    assert_eq!((totals.counted, totals.dead_lettered), (20, 4));
    let mut letters = Vec::new();
    for partition in 0..PARTITIONS {
        letters.extend(log.read(DEAD, partition).await);
    }
    let letter = |key: &[u8]| {
        let found = letters
            .iter()
            .find(|letter| letter.key.as_deref() == Some(key));
        found.expect("it is kept")
    };
    let value = letter(b"value");
    assert_eq!(value.header(headers::TRUNCATED), Some("9000"));
    assert_eq!(value.header("a"), Some("kept"));
    assert!(value.header(headers::SOURCE_TIME).is_some());
    let dropped = letter(b"headers");
    assert_eq!(dropped.header(headers::ORIGINAL_HEADERS), Some("dropped"));
    assert_eq!(dropped.payload.as_deref(), Some(&b"bad"[..]));
    let cut = letter(&long[..256]);
    assert_eq!(cut.header(headers::KEY_TRUNCATED), Some("7000"));
    let names = letter(b"names");
    assert_eq!(names.header(headers::ORIGINAL_HEADERS), Some("unreadable"));
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_under_the_consumer_costs_nothing() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut settings = BrokerConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        data_dir: dir.path().to_owned(),
        group_session_timeout_ms_min: 500,
        group_initial_rebalance_delay_ms: 0,
        ..BrokerConfig::default()
    };
    let broker = Broker::start(settings.clone()).await.unwrap();
    settings.listen = broker.local_addr();
    let mut log = Log::on(broker, dir).await;
    let consumer = Consumer::start(log.config()).await;
    log.produce(&events(0..300)).await;
    log.covered(300).await;
    log.restart(settings).await;
    log.produce(&events(200..900)).await;
    let totals = log.covered(1_000).await;
    assert_eq!(
        (totals.counted, totals.duplicate, totals.missing),
        (900, 100, 0)
    );
    consumer
        .until(async |it| it.get("/readyz").await.0 == 200, "ready")
        .await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_find_back_to_its_group_is_given_up_for_a_new_one() {
    let log = Log::with_topics().await;
    let mut config = log.config();
    config.group.session_timeout_ms = 500;
    config.group.poll_interval_ms_max = 500;
    config.owner.absence_ms_max = 1_000;
    let consumer = Consumer::start(config).await;
    log.produce(&events(0..300)).await;
    log.covered(300).await;
    // There from the start, so that the first time shows as an increase.
    assert!(consumer.metric(r#"errors_total{component="group",kind="absent"} 0"#));
    let faults = log.broker().faults();
    faults.refuse_members(true);
    let given_up = |it: &Consumer| {
        it.metrics.encode().lines().any(|line| {
            line.starts_with("errors_total") && line.contains("absent") && !line.ends_with(" 0")
        })
    };
    consumer.until(async |it| given_up(it), "given up").await;
    let (status, _) = consumer.get("/readyz").await;
    assert_eq!(status, 503);
    faults.refuse_members(false);
    log.produce(&events(200..900)).await;
    let totals = log.covered(1_000).await;
    assert_eq!(
        (totals.counted, totals.duplicate, totals.missing),
        (900, 100, 0)
    );
    consumer
        .until(async |it| it.get("/readyz").await.0 == 200, "ready")
        .await;
    consumer.stop().await;
}
