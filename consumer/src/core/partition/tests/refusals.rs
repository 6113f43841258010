//! Records that were refused because their time ran ahead: whoever rebuilds the set takes them for what they were.

use proptest::prelude::*;
use streamgauge_chain::Outcomes;

use super::*;

const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;

/// A record of the source, and what the owner's clock said when it was judged.
#[derive(Clone, Debug)]
struct Entry {
    time_ms: i64,
    clock_ms: i64,
    payload: Vec<u8>,
}

/// Small enough that a few records are a horizon, and large enough that a record waits for its own time.
fn short() -> Settings {
    Settings {
        batch_records_max: 20,
        log_time_ahead_us_max: 20_000_000,
        dedupe_horizon_us: 8_000_000,
        ..settings()
    }
}

/// An owner, the chain that it writes to, and its last commit.
struct Live {
    bench: Bench,
    chain: Vec<bytes::Bytes>,
    committed: Option<(i64, String)>,
    total: Outcomes,
}

impl Live {
    /// An owner that starts where another has committed, and has read what it must.
    fn start(
        settings: Settings,
        committed: Option<(i64, String)>,
        chain: &[bytes::Bytes],
        source: &[Entry],
    ) -> Self {
        let mut bench = Bench::with(settings);
        let known = committed.as_ref().map(|(head, text)| (*head, &**text));
        bench.tell(Input::Committed(known));
        let asked = bench.find(|effect| match effect {
            Effect::AskChain { ticket } => Some(*ticket),
            _ => None,
        });
        bench.tell(Input::ChainBounds {
            ticket: asked.expect("it asks for the chain"),
            low: 0,
            high: chain.len() as i64,
        });
        bench.read_chain(chain);
        let (ticket, from_ms) = bench
            .find(|effect| match effect {
                Effect::FindHorizon {
                    ticket,
                    log_time_ms,
                } => Some((*ticket, *log_time_ms)),
                _ => None,
            })
            .expect("it asks for the horizon");
        // As a log answers: the first record that has the time, whatever became of it.
        let from_ms = from_ms.unwrap_or(0);
        let found = source.iter().position(|entry| entry.time_ms >= from_ms);
        bench.tell(Input::HorizonStart {
            ticket,
            offset: found.map(|place| place as i64),
            low: 0,
            high: source.len() as i64,
        });
        let from = bench.follow_seek().expect("it reads");
        let mut live = Self {
            bench,
            chain: chain.to_vec(),
            committed,
            total: Outcomes::default(),
        };
        let head = live.bench.partition.progress().head;
        for offset in from..head {
            live.take(offset, &source[offset as usize]);
        }
        live
    }

    fn take(&mut self, offset: i64, entry: &Entry) -> Taken {
        self.bench.partition.see_clock(entry.clock_ms * 1000);
        for _ in 0..3 {
            let taken = self.bench.take_at(offset, &entry.payload, entry.time_ms);
            if let Taken::DeadLetter(_) = taken {
                let incarnation = self.bench.partition.incarnation();
                self.bench.acknowledge(incarnation, entry.payload.len());
            }
            self.deliver();
            if taken != Taken::Full {
                return taken;
            }
            self.bench.pass(0);
            self.deliver();
        }
        panic!("the record at {offset} is not taken");
    }

    /// Every batch lands at once.
    fn deliver(&mut self) {
        while let Some((ticket, bytes)) = self.bench.written() {
            let offset = self.chain.len() as i64;
            self.total += delta::outcomes(&decoded(&bytes));
            self.chain.push(bytes);
            self.bench.tell(Input::BatchDelivered { ticket, offset });
        }
        let commit = self.bench.find(|effect| match effect {
            Effect::Commit { offset, metadata } => Some((*offset, metadata.clone())),
            _ => None,
        });
        self.committed = commit.or(self.committed.take());
        self.bench.effects.clear();
    }

    fn close(&mut self, ms: u64) {
        self.bench.pass(ms);
        self.deliver();
    }

    /// How every record so far ended.
    fn outcomes(&self) -> Outcomes {
        let mut total = self.total;
        total += self.bench.partition.open.outcomes;
        total
    }
}

fn is_ahead(taken: &Taken) -> bool {
    matches!(taken, Taken::DeadLetter(reject) if reject.reason == Reason::RecordTimeAhead)
}

#[test]
fn a_refused_record_can_be_replayed_after_a_restart_beyond_its_time() {
    let base_ms = NOW_MS;
    let entry = |at_ms: i64, time_ms: i64, id: &str| Entry {
        time_ms: base_ms + time_ms,
        clock_ms: base_ms + at_ms,
        payload: event(id, base_ms),
    };
    let mut source = vec![
        entry(0, 0, "first"),
        entry(SECOND_MS, 90 * MINUTE_MS, "refused"),
    ];
    for minute in 1..=95 {
        let at_ms = minute * MINUTE_MS;
        source.push(entry(at_ms, at_ms, &format!("minute {minute}")));
    }
    let settings = Settings {
        batch_records_max: 100,
        ..settings()
    };
    let mut first = Live::start(settings.clone(), None, &[], &source);
    for (entry, offset) in source.iter().zip(0..) {
        assert_eq!(
            is_ahead(&first.take(offset, entry)),
            offset == 1,
            "{offset}"
        );
        first.close(50);
    }
    first.close(2_000);
    // Whether the successor finds a commit, or reads the whole chain.
    for committed in [first.committed.clone(), None] {
        let mut next = Live::start(settings.clone(), committed, &first.chain, &source);
        let head = next.bench.partition.progress().head;
        assert_eq!(head, source.len() as i64);
        assert!(next.bench.partition.progress().dedupe_ids < 15);
        for (id, at) in [("refused", 0), ("minute 80", 1), ("minute 94", 2)] {
            next.take(head + at, &entry(95 * MINUTE_MS, 95 * MINUTE_MS, id));
        }
        let outcomes = next.outcomes();
        assert_eq!((outcomes.counted, outcomes.duplicate), (2, 1));
    }
}

#[test]
fn a_record_that_moves_no_log_time_needs_no_clock() {
    let mut bench = Bench::running();
    assert_eq!(bench.take_at(0, &event("a", NOW_MS), NOW_MS), Taken::Done);
    // The clock of the next owner lags by a day.
    bench.partition.see_clock((NOW_MS - DAY_MS) * 1000);
    assert_eq!(bench.take_at(1, &event("b", NOW_MS), NOW_MS), Taken::Done);
    assert!(is_ahead(&bench.take_at(2, &event("c", NOW_MS), NOW_MS + 1)));
}

#[test]
fn a_batch_ends_before_it_would_hide_what_it_refused() {
    let mut live = Live::start(short(), None, &[], &[]);
    let entry = |clock_ms: i64, time_ms: i64, id: &str| Entry {
        time_ms: NOW_MS + time_ms,
        clock_ms: NOW_MS + clock_ms,
        payload: event(id, NOW_MS),
    };
    live.take(0, &entry(0, 0, "a"));
    assert!(is_ahead(&live.take(1, &entry(0, 21_000, "b"))));
    live.take(2, &entry(1, 0, "c"));
    assert_eq!(live.chain.len(), 0);
    // The clock has gone on, and the time of the refused record is one that is taken.
    assert_eq!(live.take(3, &entry(5_000, 21_000, "d")), Taken::Done);
    assert_eq!(live.chain.len(), 1);
    let batch = decoded(&live.chain[0]);
    assert_eq!((batch.to, batch.log_time_us), (3, NOW_MS * 1000));
}

#[test]
fn a_base_that_retention_has_taken_is_done_without() {
    let mut bench = Bench::new();
    let text = "{\"v\":1,\"d\":3,\"t\":99,\"w\":0,\"b\":{\"h\":1,\"d\":1,\"t\":5,\"r\":true}}";
    bench.tell(Input::Committed(Some((3, text))));
    for (low, high, expected) in [(1, 4, Some((1, 4))), (2, 4, Some((3, 4))), (2, 3, None)] {
        let asked = bench.find(|effect| match effect {
            Effect::AskChain { ticket } => Some(*ticket),
            _ => None,
        });
        let ticket = asked.expect("it asks for the chain");
        bench.tell(Input::ChainBounds { ticket, low, high });
        let read = bench.find(|effect| match effect {
            Effect::ReadChain { from, to, .. } => Some((*from, *to)),
            _ => None,
        });
        assert_eq!(read, expected);
        assert_eq!(bench.problem(), None);
        // The read failed: the same question again.
        bench.effects.push(Effect::AskChain { ticket });
    }
    assert_eq!(bench.partition.progress().head, 3);
}

fn source() -> impl Strategy<Value = Vec<Entry>> {
    let step = prop_oneof![12 => 0i64..500, 2 => 0i64..3_000, 1 => 0i64..30_000];
    let record = (step, 0u8..20, 0u8..12, 0i64..40_000, -3_000i64..3_000);
    prop::collection::vec(record, 2..150).prop_map(|records| {
        let mut now_ms = NOW_MS;
        let entry = |(step, kind, id, ahead_ms, skew_ms): (i64, u8, u8, i64, i64)| {
            now_ms += step;
            let time_ms = match kind {
                // Around what is refused, and far beyond it.
                0..=2 => now_ms + 15_000 + ahead_ms / 4,
                3 => now_ms + 20_000 + ahead_ms,
                4 => now_ms - 2_000,
                _ => now_ms,
            };
            let payload = match kind {
                5 => b"garbage".to_vec(),
                _ => event(&format!("id-{id}"), NOW_MS),
            };
            Entry {
                time_ms,
                clock_ms: now_ms + skew_ms,
                payload,
            }
        };
        records.into_iter().map(entry).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// An owner that starts at any place, from any commit, judges what comes next as one that never stopped.
    #[test]
    fn an_owner_that_restarted_judges_alike(
        source in source(),
        cut in any::<prop::sample::Index>(),
        waits in prop::collection::vec(0u64..200, 150),
        commits in 1u64..4_000,
        is_committed in any::<bool>(),
    ) {
        let settings = Settings { commit_interval_ms: commits, ..short() };
        let cut = cut.index(source.len());
        let mut first = Live::start(settings.clone(), None, &[], &source);
        for (entry, offset) in source[..cut].iter().zip(0..) {
            first.take(offset, entry);
            first.close(waits[offset as usize]);
        }
        first.close(50);
        let committed = first.committed.clone().filter(|_| is_committed);
        let mut next = Live::start(settings, committed, &first.chain, &source);
        prop_assert_eq!(next.bench.partition.progress().head, cut as i64);
        let before = first.outcomes();
        for (entry, offset) in source[cut..].iter().zip(cut as i64..) {
            prop_assert_eq!(next.take(offset, entry), first.take(offset, entry), "{}", offset);
            let mut expected = next.outcomes();
            expected += before;
            prop_assert_eq!(expected, first.outcomes(), "{}", offset);
        }
    }
}
