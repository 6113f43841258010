//! The aggregator and its encoding, held against a plain model.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;
use streamgauge_chain::{Outcomes, Range, delta};
use streamgauge_proto::v1::{self, DeltaBatch};

use super::*;
use crate::core::{
    encode::{self, Summary},
    series::SeriesConfig,
    validate::{self, Limits},
};

const LIMITS: Limits = Limits {
    event_bytes_max: 1 << 20,
    future_us_max: i64::MAX,
};

fn config(name: &str, dimensions: &[&str], quantiles: bool) -> SeriesConfig {
    SeriesConfig {
        name: String::from(name),
        dimensions: dimensions.iter().copied().map(String::from).collect(),
        distinct_users: true,
        quantiles,
    }
}

fn plan() -> Arc<Plan> {
    let configs = [
        config("all", &[], true),
        config("event_type,page_url", &["event_type", "page_url"], true),
        config("plan", &["properties.plan"], false),
    ];
    Arc::new(Plan::compile(&configs, true).expect("valid"))
}

fn aggregate(events: &[v1::Event], keys_max: usize) -> (DeltaBatch, Aggregator) {
    let mut aggregator = Aggregator::new(plan(), keys_max, 64);
    for sent in events {
        let payload = sent.encode_to_vec();
        let key = sent.user_id.as_bytes();
        let event = validate::event(Some(key), Some(&payload), 0, &LIMITS).expect("valid");
        aggregator.add(&event, UserHash::of(event.user_id.as_bytes()));
    }
    let counted = events.len() as u64;
    let summary = Summary {
        range: Range::new(5, 5 + events.len() as i64).expect("not empty"),
        outcomes: Outcomes {
            counted,
            ..Outcomes::default()
        },
        log_time_us: 77,
        watermark_us: 76,
        traces: &[[7; 25], [8; 25]],
        writer: "test/1",
    };
    let bytes = encode::batch(&summary, &aggregator);
    assert!(
        bytes.len() <= aggregator.encoded_bytes_max(),
        "the size is bounded from above"
    );
    let batch = delta::decode(&bytes).expect("an honest batch");
    assert_eq!(
        batch.encode_to_vec(),
        bytes,
        "encoded as the generated code does"
    );
    (batch, aggregator)
}

#[test]
fn events_of_the_canary_add_to_its_own_series_alone() {
    let event = |user: &str, event_type: &str| v1::Event {
        event_id: String::from("e"),
        user_id: String::from(user),
        event_type: String::from(event_type),
        occurred_at_us: 1_700_000_000 * MICROS,
        received_at_us: 1_700_000_000 * MICROS,
        page_url: String::from("/"),
        value: Some(1.0),
        ..v1::Event::default()
    };
    let events = [
        event("canary-1", canary::EVENT_TYPE),
        event("user-1", "click"),
        event("canary-2", canary::EVENT_TYPE),
        event("canary-1", canary::EVENT_TYPE),
    ];
    let (batch, aggregator) = aggregate(&events, 100);
    let counts: Vec<_> = found(&batch)
        .into_iter()
        .map(|((series, _, key), (count, values, _))| (series, key.join(","), count, values))
        .collect();
    let expected = [
        ("all", "", 1, 1),
        ("canary", "canary-1", 2, 0),
        ("canary", "canary-2", 1, 0),
        ("event_type,page_url", "click,/", 1, 1),
        ("plan", "", 1, 1),
    ];
    let expected = expected
        .map(|(series, key, count, values)| (series.to_owned(), key.to_owned(), count, values));
    assert_eq!(counts, expected);
    assert_eq!(batch.user_pages.len(), 1);
    let types: Vec<_> = aggregator.type_counts().collect();
    assert_eq!(types, [(canary::EVENT_TYPE, 3), ("click", 1)]);
}

/// Count, count of values and sum per (series, bucket, key).
type Model = BTreeMap<(String, i64, Vec<String>), (u64, u64, f64)>;

fn found(batch: &DeltaBatch) -> Model {
    let mut model = Model::new();
    for series in &batch.series {
        for cell in &series.cells {
            let key = cell
                .key
                .iter()
                .map(|id| batch.strings[*id as usize].clone())
                .collect();
            let place = (series.series.clone(), cell.bucket_s, key);
            let clash = model.insert(place, (cell.count, cell.value_count, cell.sum));
            assert_eq!(clash, None, "one cell per key");
        }
    }
    model
}

fn expected(events: &[v1::Event]) -> Model {
    let mut model = Model::new();
    for event in events {
        let keys = [
            ("all", vec![]),
            (
                "event_type,page_url",
                vec![event.event_type.clone(), event.page_url.clone()],
            ),
            (
                "plan",
                vec![
                    String::from_utf8_lossy(&event.properties)
                        .replace(|c: char| !c.is_ascii_digit(), ""),
                ],
            ),
        ];
        for (series, key) in keys {
            let bucket = event.occurred_at_us.div_euclid(MICROS);
            let cell = model
                .entry((String::from(series), bucket, key))
                .or_default();
            cell.0 += 1;
            cell.1 += u64::from(event.value.is_some());
            cell.2 += event.value.unwrap_or_default();
        }
    }
    model
}

fn events() -> impl Strategy<Value = Vec<v1::Event>> {
    let event = (
        0u32..20,
        0u32..4,
        0u32..6,
        0i64..5,
        prop::option::of(-100i32..100),
        0u32..4,
    );
    prop::collection::vec(event, 1..200).prop_map(|events| {
        let event =
            |(user, kind, page, second, value, plan): (u32, u32, u32, i64, Option<i32>, u32)| {
                v1::Event {
                    event_id: String::from("e"),
                    user_id: format!("user-{user}"),
                    event_type: format!("type-{kind}"),
                    occurred_at_us: (1_700_000_000 + second) * MICROS + i64::from(user),
                    received_at_us: 1_700_000_000 * MICROS + i64::from(page),
                    page_url: format!("/{page}"),
                    value: value.map(f64::from),
                    properties: format!("{{\"plan\":\"{plan}\"}}").into(),
                    ..v1::Event::default()
                }
            };
        events.into_iter().map(event).collect()
    })
}

proptest! {
    #[test]
    fn cells_hold_what_a_plain_model_holds(events in events()) {
        let (batch, aggregator) = aggregate(&events, 10_000);
        prop_assert_eq!(found(&batch), expected(&events));
        let types: u64 = batch.types.iter().map(|entry| entry.count).sum();
        prop_assert_eq!(types, events.len() as u64);
        let pages: u64 = batch.user_pages.iter().map(|entry| entry.count).sum();
        prop_assert_eq!(pages, events.len() as u64);
        let oldest = events.iter().map(|event| event.received_at_us).min();
        prop_assert_eq!(Some(batch.oldest_received_us), oldest);
        prop_assert_eq!(aggregator.folded(), 0);
    }

    #[test]
    fn least_and_greatest_are_right(events in events()) {
        let (batch, _) = aggregate(&events, 10_000);
        for cell in batch.series[0].cells.iter().filter(|cell| cell.value_count > 0) {
            let values = events.iter().filter(|e| e.occurred_at_us.div_euclid(MICROS) == cell.bucket_s).filter_map(|e| e.value);
            let (min, max) = values.fold((f64::MAX, f64::MIN), |(min, max), v| (v.min(min), v.max(max)));
            prop_assert_eq!((cell.min, cell.max), (min, max));
            prop_assert!(!cell.quantiles.is_empty());
        }
    }

    /// Whatever is folded, the sums of a series stay those of its events.
    #[test]
    fn folding_keeps_the_sums(events in events(), keys_max in 1usize..6) {
        let (batch, aggregator) = aggregate(&events, keys_max);
        for series in &batch.series {
            let count: u64 = series.cells.iter().map(|cell| cell.count).sum();
            prop_assert_eq!(count, events.len() as u64);
            let keys: std::collections::HashSet<_> = series.cells.iter().map(|cell| &cell.key).collect();
            prop_assert!(keys.len() <= keys_max + 1);
        }
        let others = batch.strings.iter().any(|text| text == OTHER);
        prop_assert_eq!(others, aggregator.folded() > 0);
    }

    #[test]
    fn equal_input_gives_equal_batches_after_reuse(events in events()) {
        let (one, mut used) = aggregate(&events, 10_000);
        let (other, _) = aggregate(&events, 10_000);
        prop_assert_eq!(&one.strings, &other.strings);
        prop_assert_eq!(found(&one), found(&other));
        used.clear();
        prop_assert_eq!(used.type_counts().count(), 0);
        prop_assert_eq!(used.encoded_bytes_max(), size::BATCH);
    }
}

/// The bound on the encoded size holds for sketches of every fill.
#[test]
fn sketches_of_every_size_stay_within_the_bound() {
    for n in [
        1u32, 7, 8, 9, 23, 24, 25, 100, 383, 384, 385, 799, 800, 5_000,
    ] {
        let events: Vec<_> = (0..n)
            .map(|n| v1::Event {
                event_id: String::from("e"),
                user_id: format!("user-{n}"),
                event_type: String::from("t"),
                occurred_at_us: MICROS,
                value: Some(f64::from(n)),
                ..v1::Event::default()
            })
            .collect();
        aggregate(&events, 10);
    }
}

#[test]
fn long_keys_are_cut_at_a_character() {
    assert_eq!(cut("ab\u{e9}d", 3), "ab");
    assert_eq!(cut("ab\u{e9}d", 4), "ab\u{e9}");
    assert_eq!(cut("ab", 4), "ab");
}
