//! Streams of changes: slow clients are told what they missed, and there are only so many streams.

mod common;

use std::sync::Arc;

use common::*;
use streamgauge_analytics::{Config, live::Live};
use streamgauge_lifecycle::Shutdown;
use streamgauge_proto::{ErrorCode, v1};

async fn instance(config: Config) -> Instance {
    let stores = Stores::new();
    let open = &stores.each().await[0];
    let mut instance = Instance::start(open(), config).await;
    let mut log = Log::default();
    log.push(&[event(NOW_S - 10, 1, 1, None), event(NOW_S - 5, 2, 2, None)]);
    instance.follow(0, &log, 10).await;
    instance
}

fn request() -> v1::WatchRequest {
    v1::WatchRequest {
        interval_ms: 50,
        ..v1::WatchRequest::default()
    }
}

#[tokio::test]
async fn a_slow_stream_is_told_how_much_it_missed() {
    let mut config = Config::default();
    config.live.queue_changes_max = 2;
    let instance = instance(config.clone()).await;
    let service = Arc::new(instance.service());
    let shutdown = Shutdown::new();
    let live = Live::new(&config.live, instance.metrics.clone(), shutdown.clone());
    let mut stream = live.watch(&service, &request()).expect("a stream");
    // The stream has not run yet, so that all but the last two pass by.
    for _ in 0..7 {
        live.tell(vec![NOW_S - 10, NOW_S - 5]);
    }
    let (mut skipped, mut counted) = (0, 0);
    while counted == 0 {
        let message = stream.recv().await.expect("a message");
        skipped += message.skipped;
        counted = message
            .changed
            .iter()
            .flat_map(|series| &series.points)
            .filter_map(|point| point.value.as_ref())
            .map(|value| value.count)
            .sum();
    }
    assert_eq!((skipped, counted), (5, 2));
    assert_eq!(instance.metrics.live_skipped.get(), 5);
    shutdown.trigger();
    while stream.recv().await.is_some() {}
}

#[tokio::test]
async fn there_are_only_so_many_streams() {
    let mut config = Config::default();
    config.live.clients_max = 1;
    let instance = instance(config.clone()).await;
    let service = Arc::new(instance.service());
    let live = Live::new(&config.live, instance.metrics.clone(), Shutdown::new());
    let stream = live.watch(&service, &request()).expect("a stream");
    let refused = live.watch(&service, &request()).expect_err("no place");
    assert_eq!(refused.code, ErrorCode::Overloaded);
    assert!(refused.retry_after_seconds().is_some());
    drop(stream);
    // The place comes free once the stream has noticed.
    while live.watch(&service, &request()).is_err() {
        tokio::task::yield_now().await;
    }
}
