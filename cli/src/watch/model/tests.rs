//! What the model makes of what was answered.

use std::time::Duration;

use super::{
    examples::{CANARY, NOW_US, analytics, asked, busy, ledger, trouble, visit, with},
    *,
};
use crate::{
    health::{ConditionReport, ServiceReport},
    watch::{
        ANALYTICS, CONSUMER, PRODUCER,
        visits::{Service, Visit},
    },
};

fn model(visits: &Visits) -> Model {
    Model::of(visits, NOW_US)
}

fn told(model: &Model) -> Vec<&str> {
    model.findings.iter().map(|one| one.text.as_str()).collect()
}

#[test]
fn before_the_first_answer_nothing_is_claimed() {
    let model = model(&asked());
    assert_eq!(model.verdict, Verdict::Asking);
    assert!(model.flow.iter().all(|row| row.total.is_none()));
    assert_eq!((model.lag.records, model.canary.clone()), (None, None));
    assert_eq!(model.ledger.balanced(), None);
    assert_eq!(told(&model), [""; 0]);
}

#[test]
fn rates_are_between_two_scrapes_and_totals_since_the_start() {
    let model = model(&busy());
    let flow: Vec<_> = model
        .flow
        .iter()
        .map(|row| (row.name, row.per_second, row.total))
        .collect();
    assert_eq!(
        flow,
        [
            ("received", Some(500.0), Some(3000.0)),
            ("accepted", Some(495.0), Some(2990.0)),
            ("rejected", Some(5.0), Some(10.0)),
            ("failed", Some(0.0), Some(0.0)),
            ("processed", Some(482.0), Some(2964.0)),
            ("applied", Some(480.0), Some(2960.0)),
        ]
    );
    assert_eq!((model.verdict, told(&model)), (Verdict::Healthy, vec![]));
    assert_eq!(model.services[0].up_seconds, Some(3723.0));
    assert!((model.services[0].cpus.expect("known") - 0.15).abs() < 1e-9);
}

#[test]
fn latency_is_of_what_came_in_between() {
    let model = model(&busy());
    let end_to_end = model.latency[0].now.expect("events passed");
    assert_eq!(end_to_end.count, 960.0);
    assert!(end_to_end.p50.seconds <= 0.05, "{end_to_end:?}");
    let all = model.latency[0].since_start.expect("events passed");
    assert!(all.p50.seconds > 0.05, "{all:?}");
    let request = model.latency[1].now.expect("requests passed");
    assert_eq!(request.count, 20.0);
    assert!((request.p50.seconds - 0.0175).abs() < 1e-9, "{request:?}");
    let process = &model.latency[3];
    assert_eq!((process.name, process.now), ("process", None));
    assert!(process.since_start.is_some());
}

#[test]
fn partitions_join_lag_and_ledger() {
    let model = model(&busy());
    let row = &model.partitions[2];
    assert_eq!((row.partition, row.lag_records), (2, Some(26.0)));
    assert_eq!(
        (row.lag_seconds, row.counted_per_second),
        (Some(0.052), Some(120.0))
    );
    assert_eq!(row.ledger.map(|row| row.counted), Some(740));
    assert_eq!(
        (model.lag.records, model.lag.seconds),
        (Some(26.0), Some(0.052))
    );
    assert_eq!(model.lag.growth_per_second, Some(13.0));
}

#[test]
fn without_the_consumer_analytics_tells_the_lag() {
    let model = model(&trouble());
    assert_eq!(model.services[1].state, State::Away);
    assert_eq!(model.flow[4].total, None, "no figure is kept from before");
    assert_eq!((model.lag.records, model.lag.seconds), (Some(0.0), None));
    assert_eq!(model.partitions.len(), 4);
}

#[test]
fn what_is_wrong_is_told_worst_first() {
    let model = model(&trouble());
    assert_eq!(model.verdict, Verdict::Broken);
    assert_eq!(
        told(&model),
        [
            "consumer does not answer at 127.0.0.1:8082: Connection refused",
            "the ledger does not balance: partition 2 differs by 7 events since offset 511",
            "breaker publish of producer is OPEN",
            "the canary loses events by http",
            "alert ConsumerStopped: Events wait, and nothing was counted for ten minutes",
            "1,500 events wait in the producer's spool, the oldest for 1m 15s",
            "the producer sheds 500 a second",
            "alert PartitionSkew: One partition is far behind the others",
        ]
    );
}

/// One thing that is wrong with the producer's or another's metrics, and what is said of it.
#[test]
fn each_trouble_is_found_by_itself() {
    use Weight::{Broken, Look};
    let cases: [(Service, &str, f64, Weight, &str); 8] = [
        (
            Service::Consumer,
            "ledger_imbalance",
            -3.0,
            Broken,
            "consumer finds a difference of -3 events (stage consumer)",
        ),
        (
            Service::Producer,
            "events_accepted_total",
            1990.0,
            Broken,
            "the producer's sums differ by 10 events",
        ),
        (
            Service::Producer,
            "spool_lost_total",
            4.0,
            Broken,
            "the spool lost 4 events",
        ),
        (
            Service::Analytics,
            "kafka_reachable",
            0.0,
            Broken,
            "analytics cannot reach the log",
        ),
        (
            Service::Analytics,
            "circuit_breaker_state",
            1.0,
            Look,
            "breaker store of analytics is half-open",
        ),
        (
            Service::Producer,
            "rate_limited_total{scope=\"address\"}",
            20.0,
            Look,
            "clients are limited 10 times a second",
        ),
        (
            Service::Consumer,
            "kafka_consumer_lag_seconds",
            31.0,
            Look,
            "the oldest unprocessed event is 31 s old",
        ),
        (
            Service::Consumer,
            "kafka_consumer_lag_seconds",
            300.0,
            Broken,
            "the oldest unprocessed event is 5m 0s old",
        ),
    ];
    for (service, series, value, weight, text) in cases {
        let mut visits = asked();
        for at_s in [1, 3] {
            visits.take(Service::Producer, visit(at_s, PRODUCER));
            visits.take(Service::Consumer, visit(at_s, CONSUMER));
            visits.take(Service::Analytics, analytics(at_s, ANALYTICS, ledger(2000)));
        }
        let metrics = match service {
            Service::Producer => PRODUCER,
            Service::Consumer => CONSUMER,
            Service::Analytics => ANALYTICS,
        };
        let last = visits.of(service).last.clone().expect("asked");
        let changed = Visit {
            at: Duration::from_secs(5),
            scrape: visit(5, &with(metrics, &[(series, value)])).scrape,
            ..last
        };
        visits.take(service, changed);
        let model = model(&visits);
        assert_eq!(told(&model), [text], "{series}");
        assert_eq!(model.findings[0].weight, weight, "{series}");
    }
}

#[test]
fn a_service_that_waits_says_for_what() {
    let mut visits = busy();
    let condition = |name: &str, ready| ConditionReport {
        name: name.to_owned(),
        ready,
        detail: String::from("no broker answers"),
    };
    let mut waiting = visit(4, PRODUCER);
    waiting.health = Ok(ServiceReport {
        conditions: vec![condition("kafka", false), condition("spool", true)],
        ..ServiceReport::default()
    });
    visits.take(Service::Producer, waiting.clone());
    let found = model(&visits);
    assert_eq!(found.services[0].state, State::NotReady);
    assert_eq!(
        told(&found),
        ["producer is not ready: kafka: no broker answers"]
    );
    waiting.health = Ok(ServiceReport {
        shutting_down: true,
        ..ServiceReport::default()
    });
    visits.take(Service::Producer, waiting);
    assert_eq!(model(&visits).verdict, Verdict::Look);
}

#[test]
fn a_service_whose_metrics_cannot_be_read_is_broken() {
    let mut visits = busy();
    visits.take(Service::Producer, visit(4, "<html>"));
    let mut page = visit(4, ANALYTICS);
    page.ledger = Some(Err(String::from("HTTP 500")));
    visits.take(Service::Analytics, page);
    let model = model(&visits);
    let told = told(&model);
    assert!(
        told[0].starts_with("producer cannot be read: /metrics: no metrics"),
        "{told:?}"
    );
    assert_eq!(told[1], "the ledger cannot be read: HTTP 500");
    assert_eq!(
        model.ledger.balanced(),
        Some(true),
        "as far as the stages tell"
    );
}

#[test]
fn a_canary_that_lost_before_is_worth_a_look_only() {
    let mut visits = busy();
    let lost = with(CANARY, &[("canary_events_lost_total", 2.0)]);
    let metrics = ANALYTICS.replace("# EOF\n", &lost);
    for at_s in [4, 5] {
        visits.take(Service::Analytics, analytics(at_s, &metrics, ledger(2960)));
    }
    let model = model(&visits);
    assert_eq!(
        told(&model),
        ["the canary lost 2 events by http since analytics started"]
    );
    let doors = model.canary.expect("known");
    assert_eq!((doors[0].sent, doors[0].received), (120.0, 118.0));
    assert_eq!(doors[0].roundtrip, None, "nothing came back in between");
    let roundtrip = doors[0].roundtrip_since_start.expect("some");
    assert!(roundtrip.p99.seconds < 0.25, "{roundtrip:?}");
}

#[test]
fn a_canary_that_has_sent_nothing_is_off() {
    let mut visits = busy();
    let silent = with(CANARY, &[("canary_events_sent_total", 0.0)]);
    let metrics = ANALYTICS.replace("# EOF\n", &silent);
    visits.take(Service::Analytics, analytics(4, &metrics, ledger(2960)));
    assert_eq!(model(&visits).canary, Some(Vec::new()));
}

#[test]
fn as_json_what_is_not_known_is_null() {
    let json = serde_json::to_value(model(&trouble())).expect("JSON");
    assert_eq!(json["verdict"], "broken");
    assert_eq!(json["services"][1]["state"], "away");
    assert!(json["flow"][4]["total"].is_null());
    assert_eq!(json["alerts"]["firing"][0]["name"], "ConsumerStopped");
    assert_eq!(json["canary"][0]["door"], "http");
}
