//! The log away, again and again, and the producer killed while it fills its spool and while it drains it: nobody's
//! events are refused for longer than a start takes, each is counted once, and every user's are in order.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message;
use serde_json::{Value, json};
use streamgauge_kafka::{FetchConfig, LogReader};
use streamgauge_proto::v1::Event;
use streamgauge_tests::{exposition, oracle::Expected, system::System};
use tokio::time::Instant;

const USERS: usize = 12;
const PARTITIONS: i32 = 4;
/// Events in one request, all of one user.
const BATCH: u64 = 5;
/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(90);

/// Sends events of one user, the next ones only once those before are accepted; returns how many were.
async fn send_in_order(url: String, user: usize, over: Arc<AtomicBool>) -> u64 {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(12))
        .build()
        .expect("a client without TLS can be built");
    let mut sent = 0;
    while !over.load(Ordering::SeqCst) {
        let batch: Vec<_> = (sent..sent + BATCH)
            .map(|number| event(user, number))
            .collect();
        let end = Instant::now() + PATIENCE;
        while !accepted(&client, &url, &batch).await {
            assert!(Instant::now() < end, "user {user} is not served");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        sent += BATCH;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    sent
}

async fn accepted(client: &reqwest::Client, url: &str, batch: &[Value]) -> bool {
    let Ok(answer) = client.post(url).json(batch).send().await else {
        return false;
    };
    let ok = answer.status() == 200;
    let body: Value = answer.json().await.unwrap_or_default();
    ok && body["accepted"] == BATCH
}

fn event(user: usize, number: u64) -> Value {
    json!({
        "event_id": format!("{user}-{number}"),
        "user_id": format!("u{user}"),
        "event_type": "click",
        "page_url": page(number),
    })
}

fn page(number: u64) -> String {
    format!("/page/{}", number % 7)
}

fn expected(sent: &[u64]) -> Expected {
    let mut expected = Expected::default();
    for (user, sent) in sent.iter().enumerate() {
        for number in 0..*sent {
            expected.events += 1;
            *expected.pages.entry(page(number)).or_default() += 1;
            let key = (format!("u{user}"), page(number));
            *expected.users.entry(key).or_default() += 1;
        }
    }
    expected
}

/// The value of one of the producer's series; none while it does not answer.
async fn metric(url: &str, series: &str) -> Option<f64> {
    let text = reqwest::get(format!("{url}/metrics"))
        .await
        .ok()?
        .text()
        .await
        .ok()?;
    exposition::sum(&text, series, "")
}

async fn until(what: &str, url: &str, series: &str, holds: impl Fn(f64) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = metric(url, series).await;
        if found.is_some_and(&holds) {
            return;
        }
        assert!(
            Instant::now() < end,
            "waited in vain: {what}; {series} is {found:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often each user's events are in the log, in the order in which they are there first.
async fn logged(system: &System) -> BTreeMap<String, Vec<u64>> {
    let reader = LogReader::new(&system.kafka(), &FetchConfig::default(), None).expect("a reader");
    let mut users = BTreeMap::<String, Vec<u64>>::new();
    for partition in 0..PARTITIONS {
        let topic = system.events_topic();
        let marks = reader
            .watermarks(topic, partition)
            .await
            .expect("the log answers");
        let mut next = BTreeMap::<String, u64>::new();
        let each = |chunk: &streamgauge_kafka::Chunk| {
            for record in chunk.iter() {
                let event = Event::decode(record.payload.unwrap_or_default()).expect("an event");
                let (_, number) = event.event_id.split_once('-').expect("ids have two parts");
                let number = number.parse().expect("a number");
                let highest = next.entry(event.user_id.clone()).or_default();
                // What was there before is a repetition, which dedupe sees to.
                if number >= *highest {
                    *highest = number + 1;
                    users.entry(event.user_id).or_default().push(number);
                }
            }
        };
        let read = reader.read_range(topic, partition, marks.low, marks.high, each);
        read.await.expect("the log can be read");
    }
    users
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_events_wait_on_the_disk_whatever_is_killed() {
    let mut system = System::start_apart(&[
        "producer.publisher.delivery_timeout_ms=1000",
        "producer.limits.stall_ms=1000",
        "producer.breaker.open_max_ms=1000",
    ])
    .await;
    let url = system.producer();
    let over = Arc::new(AtomicBool::new(false));
    let sending: Vec<_> = (0..USERS)
        .map(|user| {
            tokio::spawn(send_in_order(
                format!("{url}/v1/events"),
                user,
                over.clone(),
            ))
        })
        .collect();
    let records = "spool_records";
    until("events flow", &url, "events_accepted_total", |events| {
        events > 200.0
    })
    .await;
    for round in 0..3 {
        system.process("broker").kill();
        until("events wait", &url, records, |records| records > 200.0).await;
        let before = metric(&url, records).await.expect("it answers");
        system.process("producer").kill();
        system.process("producer").start_again();
        let more = |records: f64| records > before + 200.0;
        until(
            "more events wait after a start without a log",
            &url,
            records,
            more,
        )
        .await;
        system.process("broker").start_again();
        if round > 0 {
            // While it drains, or just after.
            until("it drains", &url, "spool_drained_total", |drained| {
                drained > 0.0
            })
            .await;
            system.process("producer").kill();
            system.process("producer").start_again();
        }
        until("the spool is empty", &url, records, |records| {
            records == 0.0
        })
        .await;
    }
    over.store(true, Ordering::SeqCst);
    let mut sent = Vec::new();
    for one in sending {
        sent.push(one.await.expect("every user is served"));
    }
    until("the last ones are drained", &url, records, |records| {
        records == 0.0
    })
    .await;
    let users = logged(&system).await;
    for (user, sent) in sent.iter().enumerate() {
        let in_order: Vec<u64> = (0..*sent).collect();
        assert_eq!(
            users.get(&format!("u{user}")),
            Some(&in_order),
            "user {user}"
        );
    }
    system.agrees_with(&expected(&sent)).await;
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
}
