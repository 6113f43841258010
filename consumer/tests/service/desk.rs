//! Dead letters over both doors of the desk.

use prost::Message;
use serde_json::{Value, json};
use streamgauge_consumer::{dead_letter as headers, provenance::Replay};
use streamgauge_kafka::Record;
use streamgauge_lifecycle::{Clock, SystemClock};
use streamgauge_proto::v1::{
    DeadLetterFilter, DeadLetterId, DeadLetterProgress, DeadLetterSelection,
    DropDeadLettersRequest, Event, ListDeadLettersRequest, ReplayDeadLettersRequest,
    ShowDeadLetterRequest, dead_letters_client::DeadLettersClient,
};
use tonic::{Code, Streaming, transport::Channel};

use crate::common::{Consumer, DEAD, EVENTS, Log, event, record};

/// An event that lacks its type, which one of its properties has.
fn typeless(number: u64) -> Event {
    Event {
        event_type: String::new(),
        properties: br#"{"kind":"view"}"#.to_vec().into(),
        ..event(number)
    }
}

async fn poison(log: &Log, event: &Event) -> (i32, i64) {
    let payload = event.encode_to_vec();
    let headers: &[(&str, &[u8])] = &[("original", b"kept")];
    log.produce_raw(record(event.user_id.as_bytes(), Some(&payload), headers))
        .await
}

async fn get(consumer: &Consumer, path: &str) -> Value {
    let (status, text) = consumer.get(path).await;
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Posts and waits for the last line.
async fn run(consumer: &Consumer, what: &str, body: Value) -> Value {
    let (status, text) = send(consumer, what, body).await;
    assert_eq!(status, 200, "{text}");
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["finished"], &last["stopped"]),
        (&json!(true), &json!("")),
        "{text}"
    );
    last
}

async fn send(consumer: &Consumer, what: &str, body: Value) -> (u16, String) {
    let url = format!("http://{}/v1/dead-letters/{what}", consumer.http);
    let request = reqwest::Client::new().post(url).body(body.to_string());
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

fn counts(progress: &Value) -> [u64; 4] {
    ["done", "refused", "failed", "skipped"].map(|name| progress[name].as_u64().unwrap())
}

async fn grpc(consumer: &Consumer) -> DeadLettersClient<Channel> {
    let url = format!("http://{}", consumer.grpc);
    let channel = Channel::from_shared(url).unwrap();
    DeadLettersClient::new(channel.connect().await.unwrap())
}

async fn last(mut told: Streaming<DeadLetterProgress>) -> DeadLetterProgress {
    let mut last = DeadLetterProgress::default();
    while let Some(progress) = told.message().await.unwrap() {
        last = progress;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mended_event_counts_once_and_its_past_is_told() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    let (partition, offset) = poison(&log, &typeless(1)).await;
    log.covered(1).await;
    let found = get(&consumer, "/v1/dead-letters").await;
    assert_eq!(found["letters"][0]["state"], "open", "{found}");
    let shown = get(&consumer, &format!("/v1/dead-letters/{partition}/{offset}")).await;
    let id = json!({ "topic": EVENTS, "partition": partition, "offset": offset });
    assert_eq!(
        (&shown["id"], &shown["attempts"]),
        (&id, &json!(1)),
        "{shown}"
    );
    assert_eq!(
        shown["body"]["event"]["properties"]["kind"], "view",
        "{shown}"
    );
    assert_eq!(shown["headers"][0]["value"]["text"], "kept", "{shown}");
    assert_eq!(shown["key"]["text"], "user-1", "{shown}");

    let by_reason = json!({ "selection": { "filter": { "reasons": ["missing_field"] } } });
    let ended = run(&consumer, "replay", by_reason.clone()).await;
    assert_eq!(counts(&ended), [1, 0, 0, 0], "{ended}");
    let totals = log.covered(2).await;
    assert_eq!((totals.dead_lettered, totals.counted), (2, 0));
    let found = get(&consumer, "/v1/dead-letters?state=open&full=true").await;
    let again = &found["letters"][0];
    assert_eq!(
        (&again["attempts"], &again["first"]["id"]),
        (&json!(2), &id),
        "{again}"
    );
    assert_eq!(
        again["headers"].as_array().unwrap().len(),
        1,
        "the past is no header of the record's own: {again}"
    );
    assert_eq!(
        (&found["states"]["open"], &found["states"]["replayed"]),
        (&json!(1), &json!(1))
    );

    let mut mend = by_reason;
    mend["rename"] = json!(["properties.kind=event_type"]);
    let ended = run(&consumer, "replay", mend.clone()).await;
    assert_eq!(counts(&ended), [1, 0, 0, 1], "{ended}");
    let totals = log.covered(3).await;
    assert_eq!((totals.dead_lettered, totals.counted), (2, 1));
    assert_eq!(
        counts(&run(&consumer, "replay", mend.clone()).await),
        [0, 0, 0, 2]
    );
    mend["again"] = json!(true);
    assert_eq!(counts(&run(&consumer, "replay", mend).await), [2, 0, 0, 0]);
    let totals = log.covered(5).await;
    assert_eq!((totals.counted, totals.duplicate), (1, 2));
    assert!(consumer.metric("dlq_replayed_total{reason=\"missing_field\"} 4"));
    assert!(consumer.metric("dlq_replayed_total{reason=\"late\"} 0"));
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_event_counts_when_it_is_replayed_as_historical() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    let mut late = event(1);
    late.occurred_at_us -= 8 * 86_400_000_000;
    poison(&log, &late).await;
    log.covered(1).await;
    let request = ReplayDeadLettersRequest {
        selection: Some(DeadLetterSelection {
            filter: Some(DeadLetterFilter {
                reasons: vec![String::from("late")],
                ..DeadLetterFilter::default()
            }),
            ..DeadLetterSelection::default()
        }),
        set: vec![String::from("historical=true")],
        dry_run: true,
        ..ReplayDeadLettersRequest::default()
    };
    let mut desk = grpc(&consumer).await;
    let planned = last(desk.replay(request.clone()).await.unwrap().into_inner()).await;
    assert_eq!(
        (planned.done, planned.dry_run, planned.finished),
        (1, true, true)
    );
    let ended = desk.replay(ReplayDeadLettersRequest {
        dry_run: false,
        ..request
    });
    assert_eq!(last(ended.await.unwrap().into_inner()).await.done, 1);
    let totals = log.covered(2).await;
    assert_eq!((totals.late, totals.counted, totals.duplicate), (1, 1, 0));
    consumer.stop().await;
}

/// What a crash between the first mark and the last leaves behind, whether or not the record was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_replay_is_passed_over_and_counts_once_when_insisted_on() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    let (partition, offset) = poison(&log, &typeless(1)).await;
    log.covered(1).await;
    let letter = get(&consumer, "/v1/dead-letters").await["letters"][0].clone();
    let (source_partition, source_offset) = (partition.to_string(), offset.to_string());
    let mark: &[(&str, &[u8])] = &[
        (headers::MARK, b"unfinished"),
        (headers::SOURCE_TOPIC, EVENTS.as_bytes()),
        (headers::SOURCE_PARTITION, source_partition.as_bytes()),
        (headers::SOURCE_OFFSET, source_offset.as_bytes()),
        (headers::TIME, b"5"),
    ];
    let mark = Record {
        topic: DEAD,
        partition: Some(letter["dlq_partition"].as_i64().unwrap() as i32),
        ..record(b"any", Some(b""), mark)
    };
    log.produce_raw(mark).await;
    // The record had reached the source before the crash.
    log.produce(&[Event {
        event_type: String::from("view"),
        ..typeless(1)
    }])
    .await;
    let body = json!({ "selection": { "all": true }, "set": ["event_type=view"] });
    assert_eq!(
        counts(&run(&consumer, "replay", body.clone()).await),
        [0, 0, 0, 1]
    );
    let found = get(&consumer, "/v1/dead-letters?state=unfinished").await;
    assert_eq!(
        (&found["matched"], &found["foreign"]),
        (&json!(1), &json!(0)),
        "{found}"
    );
    let mut again = body;
    again["again"] = json!(true);
    // That replay began long ago: dedupe might not know its record any more.
    let (status, text) = send(&consumer, "replay", again.clone()).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("it would count a second time"), "{text}");
    let refused: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(counts(&refused), [0, 1, 0, 0], "{text}");
    again["count_twice"] = json!(true);
    // Acknowledgements that are lost on the way do not make two of one.
    log.broker().faults().drop_acknowledgements(3);
    assert_eq!(counts(&run(&consumer, "replay", again).await), [1, 0, 0, 0]);
    let totals = log.covered(3).await;
    assert_eq!(
        (totals.counted, totals.duplicate, totals.dead_lettered),
        (1, 1, 1)
    );
    let found = get(&consumer, "/v1/dead-letters").await;
    assert_eq!(found["letters"][0]["state"], "replayed", "{found}");
    consumer.stop().await;
}

/// Whoever may write to the topics may write any header; it must not move the books or another topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_headers_change_nothing_but_what_is_told() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    let forged = Replay {
        first: streamgauge_consumer::provenance::First {
            topic: String::from("elsewhere"),
            partition: 0,
            offset: 9_000,
            reason: streamgauge_consumer::core::reject::Reason::Late,
            time_us: 1,
        },
        replays: 40,
    };
    let forged = forged.headers();
    let mut lies: Vec<(&str, &[u8])> = forged
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect();
    lies.push((headers::MARK, b"replayed"));
    lies.push((headers::SOURCE_OFFSET, b"123456"));
    let (partition, offset) = log.produce_raw(record(b"k", Some(b"\xff"), &lies)).await;
    log.covered(1).await;
    let shown = get(&consumer, &format!("/v1/dead-letters/{partition}/{offset}")).await;
    assert_eq!(
        (&shown["state"], &shown["attempts"]),
        (&json!("open"), &json!(41)),
        "{shown}"
    );
    assert_eq!(shown["first"]["id"]["topic"], "elsewhere", "{shown}");

    // A dead letter that claims to come from another topic is never written there.
    let own: &[(&str, &[u8])] = &[
        (headers::REASON, b"late"),
        (headers::SOURCE_TOPIC, b"metrics-data"),
        (headers::SOURCE_PARTITION, b"0"),
        (headers::SOURCE_OFFSET, b"0"),
        (headers::TIME, b"1"),
        (headers::ATTEMPTS, b"1"),
    ];
    let letter = Record {
        topic: DEAD,
        ..record(b"k", Some(b"not a batch"), own)
    };
    log.produce_raw(letter).await;
    let body = json!({ "selection": { "filter": { "topic": "metrics-data" } } });
    let ended = run(&consumer, "replay", body).await;
    assert_eq!(counts(&ended), [0, 1, 0, 0], "{ended}");
    assert_eq!(log.totals().await.void, 0);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replay_goes_on_at_a_time_and_ends_with_its_caller() {
    let log = Log::with_topics().await;
    let consumer = Consumer::start(log.config()).await;
    for number in 0..5 {
        poison(&log, &typeless(number)).await;
    }
    log.covered(5).await;
    let all = Some(DeadLetterSelection {
        all: true,
        ..DeadLetterSelection::default()
    });
    let slow = ReplayDeadLettersRequest {
        selection: all.clone(),
        set: vec![String::from("event_type=view")],
        per_second: 1,
        ..ReplayDeadLettersRequest::default()
    };
    let mut desk = grpc(&consumer).await;
    let mut told = desk.replay(slow).await.unwrap().into_inner();
    let mut done = 0;
    while done == 0 {
        done = told.message().await.unwrap().expect("it goes on").done;
    }
    let busy = desk
        .drop(DropDeadLettersRequest {
            selection: all,
            ..DropDeadLettersRequest::default()
        })
        .await;
    assert_eq!(busy.err().map(|status| status.code()), Some(Code::Aborted));
    let body = json!({ "selection": { "all": true } });
    let (status, text) = send(&consumer, "replay", body.clone()).await;
    assert_eq!(status, 409, "{text}");
    assert!(text.contains("\"code\":\"busy\""), "{text}");
    drop(told);
    // The next one may go on once the first has noticed, and finds what that left.
    let free = async |it: &Consumer| send(it, "drop", body.clone()).await.0 == 200;
    consumer.until(free, "free again").await;
    let found = get(&consumer, "/v1/dead-letters").await;
    let states = &found["states"];
    let (replayed, dropped) = (
        states["replayed"].as_u64().unwrap(),
        states["dropped"].as_u64().unwrap(),
    );
    assert!(replayed >= 1 && replayed + dropped == 5, "{states}");
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_bounded_and_say_what_is_wrong() {
    let log = Log::with_topics().await;
    let mut config = log.config();
    config.desk.scan_records_max = 4;
    config.desk.page_letters_max = 2;
    let consumer = Consumer::start(config).await;
    for number in 0..4 {
        poison(&log, &typeless(number)).await;
    }
    log.covered(4).await;
    // Pages of two, each dead letter on one of them.
    let mut desk = grpc(&consumer).await;
    let mut request = ListDeadLettersRequest {
        limit: 50,
        ..ListDeadLettersRequest::default()
    };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let page = desk.list(request.clone()).await.unwrap().into_inner();
        assert_eq!((page.letters.len(), page.matched), (2, 4));
        seen.extend(page.letters.iter().map(|letter| {
            let id = letter.id.as_ref().unwrap();
            (id.partition, id.offset)
        }));
        request.page = page.next_page;
    }
    assert_eq!((seen.len(), request.page.as_str()), (4, ""));

    for (path, status, part) in [
        ("?reasons=late", 400, "no parameter"),
        ("?reason=lateness", 400, "lateness"),
        ("?page=x", 400, "next_page"),
        ("/0/900", 404, "no dead letter of analytics-events/0/900"),
        ("/0/x", 400, "both numbers"),
    ] {
        let (found, text) = consumer.get(&format!("/v1/dead-letters{path}")).await;
        assert_eq!(found, status, "{path}: {text}");
        assert!(text.contains(part), "{path}: {text}");
    }
    for (body, part) in [
        (json!({}), "say which dead letters"),
        (
            json!({ "selection": { "filter": {} } }),
            "say which dead letters",
        ),
        (
            json!({ "selection": { "all": true }, "set": ["tenant=x"] }),
            "cannot be edited",
        ),
        (json!([]), "JSON object"),
    ] {
        let (status, text) = send(&consumer, "replay", body).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(part), "{text}");
    }
    let from_us = SystemClock.now_us();
    let (partition, offset) = poison(&log, &typeless(9)).await;
    log.covered(5).await;
    let one = format!("/v1/dead-letters/{partition}/{offset}");
    for path in ["/v1/dead-letters", &one] {
        let (status, text) = consumer.get(path).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains("desk.scan_records_max"), "{text}");
    }
    // One that is named is found with a time from which on it was refused, at both doors.
    let shown = get(&consumer, &format!("{one}?from={from_us}")).await;
    assert_eq!(shown["id"]["offset"], offset, "{shown}");
    let id = DeadLetterId {
        partition,
        offset,
        ..DeadLetterId::default()
    };
    let since = |from_us| ShowDeadLetterRequest {
        id: Some(id.clone()),
        filter: Some(DeadLetterFilter {
            from_us: Some(from_us),
            ..DeadLetterFilter::default()
        }),
    };
    let shown = desk.show(since(from_us)).await.unwrap().into_inner();
    assert_eq!(shown.id.map(|id| id.offset), Some(offset));
    let later = desk.show(since(from_us + 3_600_000_000)).await;
    assert_eq!(
        later.err().map(|status| status.code()),
        Some(Code::NotFound)
    );
    let named = json!({ "ids": [{ "partition": partition, "offset": offset }], "filter": { "from_us": from_us } });
    let planned = json!({ "selection": named, "dry_run": true });
    assert_eq!(
        counts(&run(&consumer, "replay", planned).await),
        [1, 0, 0, 0]
    );
    // From a later time on there is little to read.
    assert_eq!(
        get(&consumer, "/v1/dead-letters?from=2999-01-01T00:00:00Z").await["matched"],
        0
    );
    consumer.stop().await;
}
