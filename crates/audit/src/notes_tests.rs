use prost::Message;
use streamgauge_proto::v1::TypeCount;

use super::*;
use crate::Fold;

fn batch(from: i64, to: i64, duplicate: u64, writer: &str) -> Vec<u8> {
    let counted = (to - from) as u64 - duplicate;
    let outcomes = Outcomes {
        counted,
        duplicate,
        ..Outcomes::default()
    };
    DeltaBatch {
        from,
        to,
        outcomes: Some(outcomes.into()),
        strings: vec![String::from("click")],
        types: vec![TypeCount {
            event_type: 0,
            count: counted,
        }],
        writer: String::from(writer),
        ..DeltaBatch::default()
    }
    .encode_to_vec()
}

/// Three batches that count, at the offsets 0 to 2 of the log, and these behind them.
fn notes(batches_max: usize, added: &[Vec<u8>]) -> Notes {
    let mut fold = Fold::new(0, None).knowing(batches_max);
    let chain = [(0, 10), (10, 20), (20, 30)].map(|(from, to)| batch(from, to, 0, "a/1"));
    for (at, record) in (0..).zip(chain.iter().chain(added)) {
        fold.record(at, Some(record));
    }
    assert_eq!(fold.ledger.head(), 30, "what is added counts for nobody");
    fold.notes
}

fn found(notes: &Notes) -> Vec<(&'static str, i64, Option<i64>)> {
    let lines = notes.lines();
    let found = lines.iter();
    found
        .map(|line| (line.what, line.first_offset, line.against_offset))
        .collect()
}

#[test]
fn each_kind_of_record_that_is_added_by_hand_is_named_by_its_spot() {
    let void = ("void", 3, None);
    type Case = (Vec<u8>, Vec<(&'static str, i64, Option<i64>)>);
    let cases: [Case; 7] = [
        (batch(10, 20, 0, "a/1"), vec![void, ("copy", 3, Some(1))]),
        (
            batch(10, 20, 3, "a/1"),
            vec![void, ("contradiction", 3, Some(1))],
        ),
        (
            batch(12, 17, 0, "a/1"),
            vec![void, ("contradiction", 3, Some(1))],
        ),
        (
            batch(25, 60, 0, "a/1"),
            vec![void, ("contradiction", 3, Some(2))],
        ),
        (batch(90, 95, 0, "a/1"), vec![void, ("stray", 3, None)]),
        // A consumer that was replaced without knowing it has drawn the line elsewhere, or writes the same.
        (batch(10, 15, 0, "b/2"), vec![void]),
        (batch(10, 20, 0, "b/2"), vec![void]),
    ];
    for (record, expected) in cases {
        let notes = notes(8, &[record]);
        assert_eq!(found(&notes), expected, "{:?}", notes.sentences());
    }
    let garbage = notes(8, &[b"garbage".to_vec()]);
    assert_eq!(found(&garbage), [("undecodable", 3, None)]);
    assert_eq!(notes(8, &[]).sentences(), [""; 0]);
}

#[test]
fn the_first_and_the_last_are_named_and_no_more_is_kept() {
    let copy = batch(0, 10, 0, "a/1");
    let notes = notes(8, &[copy.clone(), batch(10, 20, 3, "x"), copy]);
    let lines = notes.lines();
    assert_eq!((lines[0].count, lines[0].last_offset), (3, Some(5)));
    assert_eq!(lines[0].covers, Some([0, 10]));
    assert_eq!(
        notes.sentences(),
        [
            "3 batches are void and count for nobody; the first lies at offset 3 of metrics-data and covers 0 to 10 of \
             the source; the last lies at 5",
            "2 of them are, byte for byte, batches that count; the first lies at offset 3 of metrics-data and covers 0 \
             to 10 of the source, like the one at 0; the last lies at 5",
            "1 of them contradict batches that count; the first lies at offset 4 of metrics-data and covers 10 to 20 of \
             the source, unlike the one at 1",
        ]
    );
}

#[test]
fn a_copy_of_what_is_forgotten_is_void_and_no_more() {
    let copy = batch(0, 10, 0, "a/1");
    for batches_max in [0, 2] {
        let notes = notes(batches_max, std::slice::from_ref(&copy));
        assert_eq!(found(&notes), [("void", 3, None)]);
    }
}
