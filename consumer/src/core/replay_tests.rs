//! Whatever live owners made of a source, in batches of any size and over any number of restarts, a replay makes of it
//! too.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message;
use streamgauge_chain::{Outcomes, delta, sketch::Users};
use streamgauge_proto::v1;

use super::*;
use crate::core::{
    series::{Plan, SeriesConfig},
    validate::Limits,
};

const START_MS: i64 = 1_700_000_000_000;

fn settings(batch_records_max: u64) -> Arc<Settings> {
    Arc::new(Settings {
        plan: Arc::new(Plan::compile(&SeriesConfig::defaults(), true).expect("defaults")),
        writer: String::from("test"),
        batch_wait_ms: 50,
        batch_records_max,
        batch_bytes_max: 1 << 20,
        dead_letters_bytes_max: 1 << 20,
        commit_interval_ms: 1_000,
        retry_ms: (10, 40),
        log_time_ahead_us_max: 3_600_000_000,
        accepted_age_us: 60_000_000,
        allowed_lateness_us: 1_000_000,
        limits: Limits {
            event_bytes_max: 10_000,
            future_us_max: 60_000_000,
        },
        dedupe_horizon_us: 8_000_000,
        dedupe_ids_max: 100_000,
        keys_max: 1_000,
        key_bytes_max: 100,
    })
}

/// A record of the source as a test keeps it; `None` for an offset without one.
type Entry = Option<(i64, Option<Vec<u8>>)>;

fn event(id: u8, at_ms: i64, page: u8, value: Option<f64>) -> Vec<u8> {
    v1::Event {
        event_id: format!("id-{id}"),
        user_id: String::from("u"),
        event_type: String::from(if page.is_multiple_of(2) {
            "view"
        } else {
            "click"
        }),
        occurred_at_us: at_ms * 1000,
        received_at_us: at_ms * 1000,
        page_url: format!("/{page}"),
        value,
        ..v1::Event::default()
    }
    .encode_to_vec()
}

fn source() -> impl Strategy<Value = Vec<Entry>> {
    let step = prop_oneof![9 => 0i64..800, 1 => 0i64..20_000];
    let record = (step, 0u8..20, 0u8..30, prop::option::of(0u8..50));
    prop::collection::vec(record, 1..120).prop_map(|records| {
        let mut now_ms = START_MS;
        let entry = |(step, kind, id, value): (i64, u8, u8, Option<u8>)| {
            now_ms += step;
            match kind {
                0 => None,
                1 => Some((now_ms, Some(b"garbage".to_vec()))),
                2 => Some((now_ms, None)),
                // Late: older than is accepted.
                3 => Some((now_ms, Some(event(id, now_ms - 70_000, id % 5, None)))),
                // Record times may run backwards; log time does not.
                4 => Some((now_ms - 3, Some(event(id, now_ms, id % 5, None)))),
                _ => {
                    let value = value.map(f64::from);
                    let at_ms = now_ms - i64::from(id) * 100;
                    Some((now_ms, Some(event(id, at_ms, id % 5, value))))
                }
            }
        };
        records.into_iter().map(entry).collect()
    })
}

fn hand_in(replay: &mut Replay, source: &[Entry], range: std::ops::Range<i64>) {
    for offset in range.clone() {
        if let Some((timestamp_ms, payload)) = &source[offset as usize] {
            replay
                .take(&SourceRecord {
                    offset,
                    timestamp_ms: *timestamp_ms,
                    key: Some(b"u"),
                    payload: payload.as_deref(),
                    headers_bytes: 0,
                    trace: None,
                })
                .expect("taken");
        }
    }
    replay.reach(range.end).expect("reached");
}

/// A series, the start of a bucket, a key.
type At = (String, i64, Vec<String>);

/// What batches add up to.
#[derive(Debug, Default, PartialEq)]
struct Sum {
    outcomes: Vec<(&'static str, u64)>,
    cells: BTreeMap<At, (u64, u64, f64, f64)>,
    pages: BTreeMap<(String, String), (u64, i64)>,
    users: BTreeMap<At, String>,
}

fn sum(batches: &[Bytes]) -> Sum {
    let mut sum = Sum::default();
    let mut total = Outcomes::default();
    let mut users: BTreeMap<_, Vec<Users>> = BTreeMap::new();
    for bytes in batches {
        let batch = delta::decode(bytes).expect("a batch");
        total += delta::outcomes(&batch);
        let text = |index: &u32| batch.strings[*index as usize].clone();
        for series in &batch.series {
            for cell in &series.cells {
                let key: Vec<String> = cell.key.iter().map(text).collect();
                let at = (series.series.clone(), cell.bucket_s, key);
                let known = sum
                    .cells
                    .entry(at.clone())
                    .or_insert((0, 0, 0.0, f64::NEG_INFINITY));
                known.0 += cell.count;
                known.1 += cell.value_count;
                known.2 += cell.sum;
                if cell.value_count > 0 {
                    known.3 = known.3.max(cell.max);
                }
                let sketch = Users::from_bytes(&cell.users).expect("a sketch");
                users.entry(at).or_default().push(sketch);
            }
        }
        for page in &batch.user_pages {
            let at = (text(&page.page_url), text(&page.event_type));
            let known = sum.pages.entry(at).or_default();
            *known = (known.0 + page.count, known.1.max(page.last_us));
        }
    }
    sum.outcomes = total.terms().to_vec();
    let estimate = |sketches: Vec<Users>| format!("{:.6}", Users::union(&sketches).estimate());
    sum.users = users
        .into_iter()
        .map(|(at, sketches)| (at, estimate(sketches)))
        .collect();
    sum
}

/// Owners one after the other, each from the head that the one before has reached.
fn live(source: &[Entry], cuts: &[usize], batch_records_max: u64) -> Vec<Bytes> {
    let mut batches = Vec::new();
    let mut known: Option<Checkpoint> = None;
    let end = source.len() as i64;
    let mut ends: Vec<i64> = cuts.iter().map(|cut| (*cut as i64).min(end)).collect();
    ends.push(end);
    ends.sort_unstable();
    ends.dedup();
    for to in ends {
        if to == 0 {
            continue;
        }
        let mut owner = Replay::new(settings(batch_records_max), known);
        let first = owner.horizon_ms().and_then(|from_ms| {
            let at = |entry: &Entry| entry.as_ref().is_some_and(|(time, _)| *time >= from_ms);
            source.iter().position(at).map(|place| place as i64)
        });
        owner.start(first, 0, end).expect("started");
        let from = owner.position();
        hand_in(&mut owner, source, from..to);
        let written = owner.batches();
        for bytes in &written {
            let batch = delta::decode(bytes).expect("a batch");
            known = Some(Checkpoint {
                head: batch.to,
                delta_position: 0,
                log_time_us: batch.log_time_us,
                watermark_us: batch.watermark_us,
                reused_from: None,
                base: None,
            });
        }
        batches.extend(written);
    }
    batches
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_replay_adds_up_to_what_owners_made_of_it(
        source in source(),
        cuts in prop::collection::vec(1usize..120, 0..4),
        batch_records_max in 1u64..20,
    ) {
        let live = live(&source, &cuts, batch_records_max);
        let mut replay = Replay::new(settings(20_000), None);
        replay.start(None, 0, source.len() as i64).expect("started");
        hand_in(&mut replay, &source, 0..source.len() as i64);
        let rebuilt = replay.batches();
        prop_assert!(rebuilt.len() <= live.len());
        prop_assert_eq!(sum(&rebuilt), sum(&live));
    }
}

#[test]
fn what_the_source_has_lost_is_counted_as_missing() {
    let mut replay = Replay::new(settings(100), None);
    replay.start(None, 7, 8).expect("started");
    let payload = event(1, START_MS, 1, None);
    let record = SourceRecord {
        offset: 7,
        timestamp_ms: START_MS,
        key: Some(b"u"),
        payload: Some(&payload),
        headers_bytes: 0,
        trace: None,
    };
    replay.take(&record).expect("taken");
    replay.reach(8).expect("reached");
    let terms = sum(&replay.batches()).outcomes;
    assert!(
        terms.contains(&("missing", 7)) && terms.contains(&("counted", 1)),
        "{terms:?}"
    );
}

#[test]
fn a_record_that_was_refused_for_its_time_is_refused_again() {
    let (payload, later) = (event(1, START_MS, 1, None), START_MS + 86_400_000 * 30);
    let run = |log_time_us: Option<i64>| {
        let mut replay = Replay::new(settings(100), None);
        replay.start(None, 0, 2).expect("started");
        for (offset, timestamp_ms) in [(0, later), (1, START_MS)] {
            replay.log_time_was(log_time_us);
            let record = SourceRecord {
                offset,
                timestamp_ms,
                key: Some(b"u"),
                payload: Some(&payload),
                headers_bytes: 0,
                trace: None,
            };
            replay.take(&record).expect("taken");
        }
        replay.reach(2).expect("reached");
        sum(&replay.batches()).outcomes
    };
    let judged = run(Some(START_MS * 1000));
    assert!(
        judged.contains(&("dead_lettered", 1)) && judged.contains(&("counted", 1)),
        "{judged:?}"
    );
    // Without the chain's word the time is believed, and what comes after it is late or a duplicate.
    assert!(run(None).contains(&("dead_lettered", 0)));
}

#[test]
fn a_source_that_ends_before_the_head_is_told() {
    let known = Checkpoint {
        head: 10,
        log_time_us: START_MS * 1000,
        ..Checkpoint::default()
    };
    let mut replay = Replay::new(settings(100), Some(known));
    assert!(replay.horizon_ms().is_some());
    let error = replay.start(Some(0), 0, 5).expect_err("too short");
    assert!(matches!(
        error,
        ReplayError::Stalled(Problem::SourceTooShort { head: 10, high: 5 })
    ));
}
