//! Finding the head again, and what is done when the logs do not hold what they should.

use super::*;

/// The metadata of the commit that was asked for last.
fn commit(bench: &mut Bench) -> Option<(i64, String)> {
    bench.find(|effect| match effect {
        Effect::Commit { offset, metadata } => Some((*offset, metadata.clone())),
        _ => None,
    })
}

fn asked(bench: &mut Bench) -> Ticket {
    let ticket = bench.find(|effect| match effect {
        Effect::AskChain { ticket } => Some(*ticket),
        _ => None,
    });
    ticket.expect("it asks for the ends of the chain")
}

fn is_reused(taken: &Taken) -> bool {
    matches!(taken, Taken::DeadLetter(reject) if reject.reason == Reason::ReusedOffset)
}

#[test]
fn a_head_below_the_log_is_a_hole() {
    let chain = chain_of(2);
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    bench.recover(&chain, Some(7), (7, 9));
    assert_eq!(
        bench.problem(),
        Some(Problem::SourceTruncated { from: 2, to: 7 })
    );
    let batch = decoded(&bench.written().expect("full").1);
    assert_eq!(
        (batch.from, batch.to, batch.outcomes.expect("there").missing),
        (2, 7, 5)
    );
    assert_eq!(bench.take(7, &event("x", NOW_MS)), Taken::Done);
    assert_eq!(bench.partition.progress().position, 8);
}

#[test]
fn a_truncated_chain_is_taken_up_where_it_goes_on() {
    let chain = chain_of(6);
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    let ticket = bench.find(|effect| match effect {
        Effect::AskChain { ticket } => Some(*ticket),
        _ => None,
    });
    bench.tell(Input::ChainBounds {
        ticket: ticket.expect("asks"),
        low: 3,
        high: 6,
    });
    let truncated = Problem::ChainTruncated {
        wanted: 0,
        low: 3,
        high: 6,
    };
    assert_eq!(bench.problem(), Some(truncated));
    bench.read_chain(&chain);
    assert_eq!(bench.partition.progress().head, 6);
}

#[test]
fn what_is_no_batch_counts_for_nobody() {
    let mut chain = chain_of(2);
    chain.insert(1, bytes::Bytes::from_static(b"nonsense"));
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    bench.recover(&chain, None, (0, 2));
    assert!(matches!(
        bench.problem(),
        Some(Problem::NotABatch { offset: 1, .. })
    ));
    let progress = bench.partition.progress();
    assert_eq!((progress.head, progress.delta_position), (2, 3));
}

#[test]
fn a_checkpoint_spares_reading_the_chain() {
    let chain = chain_of(4);
    let mut first = Bench::running();
    first.take(0, &event("0", NOW_MS));
    first.pass(50);
    let (ticket, _) = first.written().expect("due");
    first.now_ms += 1_000;
    first.tell(Input::BatchDelivered { ticket, offset: 0 });
    let (offset, metadata) = first
        .find(|effect| match effect {
            Effect::Commit {
                offset: 1,
                metadata,
            } => Some((1, metadata.clone())),
            _ => None,
        })
        .expect("committed");
    let mut second = Bench::new();
    second.tell(Input::Committed(Some((offset, &metadata))));
    let ticket = second.find(|effect| match effect {
        Effect::AskChain { ticket } => Some(*ticket),
        _ => None,
    });
    second.tell(Input::ChainBounds {
        ticket: ticket.expect("asks"),
        low: 0,
        high: 4,
    });
    assert!(matches!(
        second.effects[0],
        Effect::ReadChain { from: 1, to: 4, .. }
    ));
    second.read_chain(&chain);
    assert_eq!(second.partition.progress().head, 4);
}

#[test]
fn a_successor_finds_the_head_and_rebuilds_the_dedupe_set() {
    let chain = chain_of(4);
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    bench.recover(&chain, Some(2), (0, 6));
    assert_eq!(bench.partition.progress().state, StateName::Rebuilding);
    // What lies below the horizon is forgotten, what lies above is known, and counted once.
    for offset in 2..4 {
        bench.take(offset, &event(&offset.to_string(), NOW_MS));
    }
    bench.take(4, &event("3", NOW_MS));
    bench.take(5, &event("0", NOW_MS));
    bench.pass(50);
    let batch = decoded(&bench.written().expect("due").1);
    let outcomes = batch.outcomes.expect("there");
    assert_eq!(
        (batch.from, outcomes.counted, outcomes.duplicate),
        (4, 1, 1)
    );
}

#[test]
fn what_is_written_over_a_lost_end_is_kept_and_not_counted() {
    let chain = chain_of(4);
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    bench.recover(&chain, None, (0, 3));
    assert_eq!(
        bench.problem(),
        Some(Problem::SourceTooShort { head: 4, high: 3 })
    );
    assert_eq!(bench.partition.progress().state, StateName::Stalled);
    let committed = commit(&mut bench).expect("a successor must know");
    bench.pass(10);
    bench.recover(&chain, None, (0, 5));
    let lost = Problem::OffsetsReused { from: 3, to: 4 };
    assert_eq!(bench.problem(), Some(lost.clone()));
    assert!(is_reused(&bench.take(3, &event("new", NOW_MS))));
    assert_eq!(bench.take(4, &event("new", NOW_MS)), Taken::Done);
    bench.pass(50);
    assert_eq!(bench.written(), None, "the dead letter is not safe yet");
    let incarnation = bench.partition.incarnation();
    bench.tell(Input::DeadLettersAcknowledged {
        incarnation,
        count: 1,
        bytes: 0,
    });
    let batch = decoded(&bench.written().expect("safe").1);
    let outcomes = batch.outcomes.expect("there");
    assert_eq!((batch.from, batch.to, outcomes.counted), (4, 5, 1));

    // An owner that finds the source long enough again knows it from the commit.
    let mut next = Bench::new();
    next.tell(Input::Committed(Some((committed.0, &committed.1))));
    next.recover(&chain, None, (0, 9));
    assert_eq!(next.problem(), Some(lost));
    assert!(is_reused(&next.take(3, &event("new", NOW_MS))));
}

#[test]
fn lost_letters_wait_for_room() {
    let chain = chain_of(6);
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    bench.recover(&chain, None, (0, 1));
    bench.pass(10);
    bench.recover(&chain, None, (0, 9));
    for offset in 1..4 {
        assert!(is_reused(&bench.take(offset, &event("x", NOW_MS))));
    }
    assert_eq!(bench.take(4, &event("x", NOW_MS)), Taken::Full);
    let incarnation = bench.partition.incarnation();
    bench.tell(Input::DeadLettersAcknowledged {
        incarnation,
        count: 3,
        bytes: 0,
    });
    assert!(is_reused(&bench.take(4, &event("x", NOW_MS))));
}

#[test]
fn an_emptied_chain_tells_no_head() {
    let chain = chain_of(2);
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    for _ in 0..2 {
        let ticket = asked(&mut bench);
        bench.tell(Input::ChainBounds {
            ticket,
            low: 7,
            high: 7,
        });
        bench
            .effects
            .retain(|effect| !matches!(effect, Effect::Problem(Problem::ChainTruncated { .. })));
        assert_eq!(bench.problem(), Some(Problem::HeadUnknown { high: 7 }));
        assert_eq!(bench.partition.progress().state, StateName::Stalled);
        bench.pass(40);
    }
    // What a zombie still writes tells where the chain was.
    let ticket = asked(&mut bench);
    bench.tell(Input::ChainBounds {
        ticket,
        low: 7,
        high: 8,
    });
    let ticket = bench
        .find(|effect| match effect {
            Effect::ReadChain { ticket, .. } => Some(*ticket),
            _ => None,
        })
        .expect("it reads");
    bench.tell(Input::ChainRecord {
        ticket,
        offset: 7,
        payload: Some(&chain[1]),
    });
    bench.tell(Input::ChainEnd { ticket, next: 8 });
    assert_eq!(bench.partition.progress().head, 2);
}

/// Hands over a read of the chain that leaves out some offsets.
fn read_but(bench: &mut Bench, chain: &[bytes::Bytes], left_out: &[i64]) -> Ticket {
    let (ticket, from, to) = bench
        .find(|effect| match effect {
            Effect::ReadChain { ticket, from, to } => Some((*ticket, *from, *to)),
            _ => None,
        })
        .expect("it reads");
    for offset in (from..to).filter(|offset| !left_out.contains(offset)) {
        bench.tell(Input::ChainRecord {
            ticket,
            offset,
            payload: Some(&chain[offset as usize]),
        });
    }
    bench.tell(Input::ChainEnd { ticket, next: to });
    ticket
}

#[test]
fn an_incomplete_read_is_done_again() {
    let chain = chain_of(5);
    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    // Once in the middle, once at the end, then whole; a gap that stays is taken for what it is.
    let ends = |bench: &mut Bench| {
        let ticket = asked(bench);
        bench.tell(Input::ChainBounds {
            ticket,
            low: 0,
            high: 5,
        });
    };
    for (left_out, expected) in [(&[2][..], 2), (&[4][..], 4)] {
        ends(&mut bench);
        read_but(&mut bench, &chain, left_out);
        assert_eq!(bench.problem(), Some(Problem::ChainIncomplete { expected }));
        assert_eq!(bench.partition.progress().delta_position, expected);
    }
    ends(&mut bench);
    read_but(&mut bench, &chain, &[]);
    assert_eq!(bench.problem(), None);
    let progress = bench.partition.progress();
    assert_eq!((progress.head, progress.delta_position), (5, 5));

    let mut bench = Bench::new();
    bench.tell(Input::Committed(None));
    for _ in 0..2 {
        ends(&mut bench);
        read_but(&mut bench, &chain, &[4]);
    }
    let progress = bench.partition.progress();
    assert_eq!((progress.head, progress.delta_position), (4, 5));
}

#[test]
fn a_record_time_ahead_of_the_clock_moves_no_log_time() {
    let mut bench = Bench::running();
    bench.partition.see_clock(NOW_MS * 1000);
    let far_ms = NOW_MS + 365 * DAY_MS;
    let ahead = bench.take_at(0, &event("far", NOW_MS), far_ms);
    assert!(matches!(ahead, Taken::DeadLetter(reject) if reject.reason == Reason::RecordTimeAhead));
    let slightly_ms = NOW_MS + 3_600_000;
    assert_eq!(
        bench.take_at(1, &event("a", NOW_MS), slightly_ms),
        Taken::Done
    );
    let incarnation = bench.partition.incarnation();
    bench.tell(Input::DeadLettersAcknowledged {
        incarnation,
        count: 1,
        bytes: 0,
    });
    bench.pass(50);
    let (_, bytes) = bench.written().expect("due");
    let batch = decoded(&bytes);
    let outcomes = batch.outcomes.expect("there");
    assert_eq!((outcomes.counted, outcomes.dead_lettered), (1, 1));
    assert_eq!(batch.log_time_us, slightly_ms * 1000);

    // A successor, whose clock may say anything, takes the record for what it was.
    let mut next = Bench::new();
    next.partition.see_clock(i64::MAX);
    next.tell(Input::Committed(None));
    next.recover(&[bytes], Some(0), (0, 9));
    assert_eq!(next.take_at(0, &event("far", NOW_MS), far_ms), Taken::Done);
    assert_eq!(
        next.take_at(1, &event("a", NOW_MS), slightly_ms),
        Taken::Done
    );
    assert_eq!(next.partition.progress().dedupe_ids, 1);
    assert_eq!(next.take(2, &event("far", NOW_MS)), Taken::Done);
    assert_eq!(next.partition.progress().log_time_us, slightly_ms * 1000);
    next.pass(50);
    let outcomes = decoded(&next.written().expect("due").1).outcomes;
    assert_eq!(outcomes.expect("there").counted, 1);
}
