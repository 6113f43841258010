//! What dead letters that are not acknowledged may take.

use super::*;

fn letter_bytes(length: usize) -> usize {
    let payload = vec![0; length];
    let record = SourceRecord {
        offset: 0,
        timestamp_ms: 0,
        key: Some(b"u"),
        payload: Some(&payload),
        headers_bytes: 0,
        trace: None,
    };
    record.letter_bytes()
}

impl Bench {
    /// Acknowledges a dead letter of `length` bytes and the key.
    pub(super) fn acknowledge(&mut self, incarnation: u64, length: usize) {
        self.tell(Input::DeadLettersAcknowledged {
            incarnation,
            count: 1,
            bytes: letter_bytes(length),
        });
    }
}

#[test]
fn dead_letters_that_wait_are_bounded_by_their_bytes() {
    let settings = Settings {
        batch_records_max: 1_000,
        dead_letters_bytes_max: 10_000,
        ..settings()
    };
    let mut bench = Bench::running_with(settings);
    let poison = vec![0xff; 4_000];
    for offset in 0..2 {
        assert!(matches!(bench.take(offset, &poison), Taken::DeadLetter(_)));
    }
    // Any record may become a dead letter, so that none is taken: not even one that would not.
    assert_eq!(bench.take(2, &event("a", NOW_MS)), Taken::Full);
    assert_eq!(bench.partition.progress().state, StateName::Backpressure);
    bench.pass(100);
    assert_eq!(bench.take(2, &event("a", NOW_MS)), Taken::Full);
    let incarnation = bench.partition.incarnation();
    bench.acknowledge(incarnation, 4_000);
    assert_eq!(bench.take(2, &event("a", NOW_MS)), Taken::Done);
    assert_eq!(bench.partition.progress().state, StateName::Running);
    // One that is larger than all the room goes as well, and then nothing until it is safe.
    let large = vec![0xff; 50_000];
    assert!(matches!(bench.take(3, &large), Taken::DeadLetter(_)));
    assert_eq!(bench.take(4, &large), Taken::Full);
    bench.acknowledge(incarnation, 4_000);
    assert_eq!(bench.take(4, &large), Taken::Full);
    bench.acknowledge(incarnation, 50_000);
    let outcomes = decoded(&bench.written().expect("safe").1).outcomes;
    let outcomes = outcomes.expect("there");
    assert_eq!((outcomes.counted, outcomes.dead_lettered), (1, 3));
}

#[test]
fn dead_letters_from_before_state_was_dropped_take_room_too() {
    let others = chain_of(2);
    let settings = Settings {
        dead_letters_bytes_max: 4_000,
        ..settings()
    };
    let mut bench = Bench::running_with(settings);
    bench.take(0, &event("a", NOW_MS - 5_000));
    bench.pass(50);
    let (ticket, bytes) = bench.written().expect("due");
    assert!(matches!(
        bench.take(1, &[0xff; 4_000]),
        Taken::DeadLetter(_)
    ));
    let before = bench.partition.incarnation();
    bench.tell(Input::BatchDelivered { ticket, offset: 2 });
    resolve(&mut bench, &[others[0].clone(), others[1].clone(), bytes]);
    bench.recover(&[], Some(2), (0, 9));
    assert_ne!(bench.partition.incarnation(), before);
    assert_eq!(bench.take(2, &event("b", NOW_MS)), Taken::Full);
    bench.acknowledge(before, 4_000);
    assert_eq!(bench.take(2, &event("b", NOW_MS)), Taken::Done);
    bench.pass(50);
    assert!(bench.written().is_some());
}
