//! Records that are none, a greedy client, and a consumer that is held: dead letters, refusals, lag, and events that become
//! queryable too late.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use serde_json::json;
use streamgauge_kafka::{Publisher, PublisherConfig, Record};
use streamgauge_tests::system::System;

use crate::{
    bench::{Bench, Watch},
    failure::{Failure, Outcome},
    faults::{Found, clients::end, prove},
    inbox::Alert,
    load::{Load, Mix},
    report::AlertRow,
    story,
    traces::Traces,
};

/// Poisoned records; more than ten within an hour are told.
const POISON: usize = 30;
/// The client whose allowance is used up comes from here, so that nobody else is refused.
const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Longest wait for a figure to show in Prometheus.
const SHOWN: Duration = Duration::from_secs(60);

/// Runs the group.
pub async fn run() -> Outcome<Found> {
    let traces = Traces::start().await;
    let system = System::start(&[
        "producer.rate_limit.per_second=200",
        "producer.rate_limit.burst=200",
        &format!("each.telemetry.otlp_endpoint={}", traces.endpoint()),
        // What has waited is counted in few batches; the event that is followed came last.
        "analytics.apply.spans_max=128",
    ])
    .await;
    let bench = Bench::beside(system).await?;
    let (system, watch) = (&bench.system, bench.watch());
    let _usual = Load::start(system, "usual", Mix::USUAL)?;
    watch
        .prometheus
        .until("job:event_end_to_end_seconds:p99_5m", SHOWN)
        .await?;

    let greedy = Mix {
        duplicates: 2000,
        from: Some(GREEDY),
        ..Mix::default()
    };
    let (poisoned, garbled, limited, held) = futures::join!(
        prove(
            &watch,
            "records that are no events are written to the topic",
            [Alert::named("DeadLettersGrowing")],
            async || write(system, system.events_topic(), POISON).await,
            nothing,
        ),
        prove(
            &watch,
            "a record that is no batch is written to metrics-data",
            [Alert::named("DeltaBatchesUndecodable")],
            async || write(system, system.metrics_topic(), 1).await,
            nothing,
        ),
        prove(
            &watch,
            "a client sends ten times its allowance",
            [Alert::named("RateLimitingHeavy")],
            async || Load::start(system, "greedy", greedy),
            end,
        ),
        hold(system, &watch, &traces),
    );
    let (held, story) = held;
    Ok(Found {
        alerts: [poisoned, garbled, limited, held].concat(),
        steps: vec![("from the alert to the cause", story)],
    })
}

async fn hold(system: &System, watch: &Watch, traces: &Traces) -> (Vec<AlertRow>, Outcome) {
    let mut told = Err(Failure::Unmet(String::from("not looked at")));
    // What had waited is counted at last, and late by as much: the promise is broken when the consumer goes on.
    let mut rows = prove(
        watch,
        "the consumer is paused for 20 s and goes on",
        [Alert::with("FreshnessSLOBurn", &[("severity", "critical")])],
        async || {
            // What was poisoned must be read before, or it is told too late.
            watch
                .prometheus
                .until("sum(dlq_events_total) >= 30", SHOWN)
                .await?;
            watch
                .prometheus
                .until(
                    "sum(delta_batches_total{verdict=\"undecodable\"}) > 0",
                    SHOWN,
                )
                .await?;
            ask(system, "pause").await?;
            watch
                .prometheus
                .until("group_topic:kafka_consumer_lag_seconds:max > 20", SHOWN)
                .await?;
            ask(system, "resume").await
        },
        nothing,
    )
    .await;
    rows.extend(
        prove(
            watch,
            "the consumer is paused",
            [
                Alert::named("ConsumerStopped"),
                Alert::with("ConsumerFallingBehind", &[("severity", "warning")]),
            ],
            async || ask(system, "pause").await,
            async |()| {
                told = story::look(system, watch, traces).await;
                ask(system, "resume").await
            },
        )
        .await,
    );
    (rows, story::end(told, system, traces).await)
}

async fn nothing((): ()) -> Outcome<()> {
    Ok(())
}

/// Pauses or resumes all partitions of the consumer.
pub async fn ask(system: &System, what: &str) -> Outcome<()> {
    let request = reqwest::Client::new().post(format!("{}/v1/{what}", system.consumer()));
    let answer = request.json(&json!({})).send().await;
    let answer = answer.map_err(Failure::http(what))?;
    match answer.error_for_status() {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::http(what)(error)),
    }
}

async fn write(system: &System, topic: &str, count: usize) -> Outcome<()> {
    let refused =
        |error: &dyn std::fmt::Display| Failure::Unmet(format!("writing to {topic}: {error}"));
    let publisher = Publisher::new(&system.kafka(), &PublisherConfig::default(), None)
        .map_err(|error| refused(&error))?;
    for _ in 0..count {
        let record = Record {
            topic,
            partition: Some(0),
            key: Some(b"u"),
            payload: Some(b"\xff\xffthis is neither an event nor a batch"),
            timestamp_ms: None,
            headers: &[],
        };
        publisher
            .send(record)
            .await
            .map_err(|error| refused(&error))?;
    }
    Ok(())
}
