//! The state machine step by step: the cases that the simulation reaches by chance, written down.

use prost::Message;
use streamgauge_chain::delta;
use streamgauge_proto::v1;

use super::*;
use crate::core::{reject::Reason, series::SeriesConfig};

mod letters;
mod recovery;
mod refusals;

const DAY_MS: i64 = 86_400_000;
const NOW_MS: i64 = 1_700_000_000_000;

fn settings() -> Settings {
    Settings {
        plan: Arc::new(Plan::compile(&SeriesConfig::defaults(), true).expect("defaults")),
        writer: String::from("test/1"),
        batch_wait_ms: 50,
        batch_records_max: 3,
        batch_bytes_max: 1 << 20,
        dead_letters_bytes_max: 1 << 20,
        commit_interval_ms: 1_000,
        retry_ms: (10, 40),
        log_time_ahead_us_max: 3_600_000_000,
        accepted_age_us: 7 * DAY_MS * 1000,
        allowed_lateness_us: 1_000_000,
        limits: Limits {
            event_bytes_max: 10_000,
            future_us_max: 60_000_000,
        },
        dedupe_horizon_us: 600_000_000,
        dedupe_ids_max: 1_000,
        keys_max: 100,
        key_bytes_max: 100,
    }
}

fn event(id: &str, occurred_ms: i64) -> Vec<u8> {
    let event = v1::Event {
        event_id: id.to_owned(),
        user_id: String::from("u"),
        event_type: String::from("click"),
        occurred_at_us: occurred_ms * 1000,
        received_at_us: occurred_ms * 1000,
        page_url: String::from("/"),
        ..v1::Event::default()
    };
    event.encode_to_vec()
}

/// An owner under test, and what it asked for.
struct Bench {
    partition: Partition,
    effects: Vec<Effect>,
    now_ms: u64,
    source: Ticket,
}

impl Bench {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        Self {
            partition: Partition::new(Arc::new(settings)),
            effects: Vec::new(),
            now_ms: 1_000,
            source: Ticket::default(),
        }
    }

    /// An owner that reads on at the head of an empty chain.
    fn running() -> Self {
        Self::running_with(settings())
    }

    fn running_with(settings: Settings) -> Self {
        let mut bench = Self::with(settings);
        bench.tell(Input::Committed(None));
        bench.recover(&[], None, (0, 100));
        bench
    }

    fn tell(&mut self, input: Input<'_>) {
        self.partition.handle(input, self.now_ms, &mut self.effects);
    }

    /// Answers the questions of a recovery: what lies on the chain, and the ends of the source.
    fn recover(&mut self, chain: &[bytes::Bytes], horizon: Option<i64>, (low, high): (i64, i64)) {
        let end = chain.len() as i64;
        if let Some(ticket) = self.find(|effect| match effect {
            Effect::AskChain { ticket } => Some(*ticket),
            _ => None,
        }) {
            self.tell(Input::ChainBounds {
                ticket,
                low: 0,
                high: end,
            });
        }
        self.read_chain(chain);
        let ticket = self
            .find(|effect| match effect {
                Effect::FindHorizon { ticket, .. } => Some(*ticket),
                _ => None,
            })
            .expect("it asks for the horizon");
        self.tell(Input::HorizonStart {
            ticket,
            offset: horizon,
            low,
            high,
        });
        self.follow_seek();
    }

    fn read_chain(&mut self, chain: &[bytes::Bytes]) {
        let asked = self.find(|effect| match effect {
            Effect::ReadChain { ticket, from, to } => Some((*ticket, *from, *to)),
            _ => None,
        });
        if let Some((ticket, from, to)) = asked {
            for offset in from..to {
                let payload = Some(chain[offset as usize].as_ref());
                self.tell(Input::ChainRecord {
                    ticket,
                    offset,
                    payload,
                });
            }
            self.tell(Input::ChainEnd { ticket, next: to });
        }
    }

    fn follow_seek(&mut self) -> Option<i64> {
        let seek = self.find(|effect| match effect {
            Effect::SeekSource { ticket, offset } => Some((*ticket, *offset)),
            _ => None,
        });
        seek.map(|(ticket, offset)| {
            self.source = ticket;
            offset
        })
    }

    /// Takes the first matching effect out of what was asked for.
    fn find<T>(&mut self, pick: impl Fn(&Effect) -> Option<T>) -> Option<T> {
        let at = self
            .effects
            .iter()
            .position(|effect| pick(effect).is_some())?;
        pick(&self.effects.remove(at))
    }

    fn written(&mut self) -> Option<(Ticket, bytes::Bytes)> {
        self.find(|effect| match effect {
            Effect::WriteBatch { ticket, batch, .. } => Some((*ticket, batch.clone())),
            _ => None,
        })
    }

    fn confirmed(&mut self) -> Option<Box<Report>> {
        self.find(|effect| match effect {
            Effect::Confirmed(report) => Some(report.clone()),
            _ => None,
        })
    }

    fn problem(&mut self) -> Option<Problem> {
        self.find(|effect| match effect {
            Effect::Problem(problem) => Some(problem.clone()),
            _ => None,
        })
    }

    fn take(&mut self, offset: i64, payload: &[u8]) -> Taken {
        self.take_at(offset, payload, NOW_MS + offset)
    }

    fn take_at(&mut self, offset: i64, payload: &[u8], timestamp_ms: i64) -> Taken {
        let (key, payload, trace) = (Some(&b"u"[..]), Some(payload), None);
        let record = SourceRecord {
            offset,
            timestamp_ms,
            key,
            payload,
            headers_bytes: 0,
            trace,
        };
        self.partition
            .take(self.source, &record, self.now_ms, &mut self.effects)
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.tell(Input::Tick);
    }
}

fn decoded(bytes: &bytes::Bytes) -> v1::DeltaBatch {
    delta::decode(bytes).expect("an honest batch")
}

#[test]
fn a_batch_closes_on_time_and_is_confirmed_by_its_place() {
    let mut bench = Bench::running();
    assert_eq!(bench.take(0, &event("a", NOW_MS)), Taken::Done);
    bench.pass(49);
    assert_eq!(bench.written(), None);
    assert_eq!(bench.partition.next_tick_ms(), Some(1_050));
    bench.pass(1);
    let (ticket, bytes) = bench.written().expect("due");
    let batch = decoded(&bytes);
    assert_eq!(
        (batch.from, batch.to, batch.writer.as_str()),
        (0, 1, "test/1")
    );
    assert_eq!(batch.log_time_us, NOW_MS * 1000);
    assert_eq!(batch.watermark_us, NOW_MS * 1000 - 1_000_000);
    bench.tell(Input::BatchDelivered { ticket, offset: 0 });
    assert_eq!(bench.confirmed().expect("counts").range.to(), 1);
    let progress = bench.partition.progress();
    assert_eq!(
        (progress.head, progress.delta_position, progress.position),
        (1, 1, 1)
    );
}

#[test]
fn a_full_batch_waits_for_the_one_in_flight() {
    let mut bench = Bench::running();
    for offset in 0..6 {
        assert_eq!(
            bench.take(offset, &event(&offset.to_string(), NOW_MS)),
            Taken::Done
        );
    }
    let (ticket, _) = bench.written().expect("full after three");
    assert_eq!(bench.take(6, &event("6", NOW_MS)), Taken::Full);
    assert_eq!(bench.partition.progress().state, StateName::Backpressure);
    assert_eq!(bench.written(), None);
    bench.tell(Input::BatchDelivered { ticket, offset: 0 });
    assert_eq!(decoded(&bench.written().expect("the next").1).from, 3);
    assert_eq!(bench.take(6, &event("6", NOW_MS)), Taken::Done);
}

#[test]
fn dead_letters_are_safe_before_the_batch_that_counts_them() {
    let mut bench = Bench::running();
    let taken = bench.take(0, b"garbage");
    assert!(matches!(taken, Taken::DeadLetter(reject) if reject.reason == Reason::Undecodable));
    let late = bench.take(1, &event("old", NOW_MS - 8 * DAY_MS));
    assert!(matches!(late, Taken::DeadLetter(reject) if reject.reason == Reason::Late));
    bench.pass(100);
    assert_eq!(bench.written(), None);
    let incarnation = bench.partition.incarnation();
    bench.tell(Input::DeadLettersAcknowledged {
        incarnation: incarnation - 1,
        count: 2,
        bytes: 0,
    });
    assert_eq!(
        bench.written(),
        None,
        "an acknowledgement from before says nothing"
    );
    bench.tell(Input::DeadLettersAcknowledged {
        incarnation,
        count: 2,
        bytes: 0,
    });
    let outcomes = decoded(&bench.written().expect("safe").1)
        .outcomes
        .expect("there");
    assert_eq!((outcomes.dead_lettered, outcomes.late), (1, 1));
}

#[test]
fn a_historical_event_is_never_late() {
    let mut bench = Bench::running();
    let mut old = v1::Event::decode(&*event("old", NOW_MS - 800 * DAY_MS)).expect("own bytes");
    old.historical = true;
    assert_eq!(bench.take(0, &old.encode_to_vec()), Taken::Done);
}

#[test]
fn a_late_event_can_be_replayed_as_a_historical_one() {
    let mut bench = Bench::running();
    let late = event("old", NOW_MS - 8 * DAY_MS);
    assert!(matches!(bench.take(0, &late), Taken::DeadLetter(_)));
    let mut mended = v1::Event::decode(&*late).expect("own bytes");
    mended.historical = true;
    let mended = mended.encode_to_vec();
    assert_eq!(bench.take(1, &mended), Taken::Done);
    assert_eq!(
        bench.take(2, &late),
        Taken::Done,
        "what was counted is a duplicate"
    );
    let incarnation = bench.partition.incarnation();
    bench.tell(Input::DeadLettersAcknowledged {
        incarnation,
        count: 1,
        bytes: 0,
    });
    bench.pass(100);
    let outcomes = decoded(&bench.written().expect("due").1)
        .outcomes
        .expect("there");
    assert_eq!(
        (outcomes.counted, outcomes.duplicate, outcomes.late),
        (1, 1, 1)
    );
}

#[test]
fn a_duplicate_that_is_late_too_is_a_duplicate() {
    let mut bench = Bench::running();
    assert_eq!(bench.take(0, &event("a", NOW_MS - 6 * DAY_MS)), Taken::Done);
    assert_eq!(
        bench.take_at(1, &event("a", NOW_MS - 8 * DAY_MS), NOW_MS),
        Taken::Done
    );
    bench.pass(50);
    let outcomes = decoded(&bench.written().expect("due").1)
        .outcomes
        .expect("there");
    assert_eq!(
        (outcomes.counted, outcomes.duplicate, outcomes.late),
        (1, 1, 0)
    );
}

#[test]
fn gaps_hold_no_record_and_holes_are_missing() {
    let mut bench = Bench::running();
    bench.take(2, &event("a", NOW_MS));
    let ticket = bench.source;
    bench.tell(Input::OutOfRange { ticket, low: 10 });
    assert_eq!(bench.follow_seek(), Some(10));
    assert_eq!(
        bench.problem(),
        Some(Problem::SourceTruncated { from: 3, to: 10 })
    );
    // Ten offsets fill the batch.
    let (ticket, bytes) = bench.written().expect("full");
    let batch = decoded(&bytes);
    let outcomes = batch.outcomes.expect("there");
    assert_eq!((batch.from, batch.to), (0, 10));
    assert_eq!(
        (outcomes.counted, outcomes.missing, outcomes.no_record),
        (1, 7, 2)
    );
    bench.tell(Input::BatchDelivered { ticket, offset: 0 });
    let ticket = bench.source;
    bench.tell(Input::EndOfPartition { ticket, offset: 12 });
    bench.pass(50);
    let batch = decoded(&bench.written().expect("due").1);
    let outcomes = batch.outcomes.expect("there");
    assert_eq!((batch.from, batch.to, outcomes.no_record), (10, 12, 2));
}

#[test]
fn records_from_before_a_seek_are_passed_over() {
    let mut bench = Bench::running();
    let before = bench.source;
    let ticket = bench.source;
    bench.tell(Input::OutOfRange { ticket, low: 5 });
    bench.follow_seek();
    let after = std::mem::replace(&mut bench.source, before);
    assert_eq!(bench.take(50, &event("stale", NOW_MS)), Taken::Done);
    assert_eq!(bench.partition.progress().position, 5);
    bench.source = after;
    bench.take(5, &event("a", NOW_MS));
    assert_eq!(bench.partition.progress().position, 6);
}

/// What an owner left behind: its batches, as they lie on the chain.
fn chain_of(count: i64) -> Vec<bytes::Bytes> {
    let mut bench = Bench::running();
    (0..count)
        .map(|offset| {
            bench.take(offset, &event(&offset.to_string(), NOW_MS));
            bench.pass(50);
            let (ticket, bytes) = bench.written().expect("due");
            bench.tell(Input::BatchDelivered { ticket, offset });
            bytes
        })
        .collect()
}

#[test]
fn an_uncertain_batch_that_landed_counts_without_being_written_again() {
    let mut bench = Bench::running();
    bench.take(0, &event("a", NOW_MS));
    bench.pass(50);
    let (ticket, bytes) = bench.written().expect("due");
    bench.tell(Input::BatchFailed { ticket });
    resolve(&mut bench, &[bytes]);
    assert!(bench.confirmed().is_some());
    assert_eq!(bench.partition.progress().head, 1);
    assert_eq!(bench.written(), None);
}

#[test]
fn an_uncertain_batch_that_did_not_land_is_written_again_as_it_was() {
    let mut bench = Bench::running();
    bench.take(0, &event("a", NOW_MS));
    bench.pass(50);
    let (ticket, bytes) = bench.written().expect("due");
    bench.tell(Input::BatchFailed { ticket });
    resolve(&mut bench, &[]);
    assert_eq!(bench.written(), None, "not at once");
    bench.pass(10);
    let (ticket, again) = bench.written().expect("after a wait");
    assert_eq!(again, bytes);
    // The first copy lands after all, before the second: either way it counts once.
    bench.tell(Input::BatchDelivered { ticket, offset: 1 });
    resolve(&mut bench, &[bytes, again]);
    assert!(bench.confirmed().is_some());
    let progress = bench.partition.progress();
    assert_eq!(
        (
            progress.head,
            progress.delta_position,
            progress.void_batches
        ),
        (1, 2, 1)
    );
}

#[test]
fn an_owner_that_was_overtaken_starts_again_at_the_true_head() {
    let others = chain_of(2);
    let mut bench = Bench::running();
    // Earlier than the others' first event, or the batches would be one and the same.
    bench.take(0, &event("a", NOW_MS - 5_000));
    bench.pass(50);
    let (ticket, bytes) = bench.written().expect("due");
    bench.tell(Input::BatchDelivered { ticket, offset: 2 });
    let chain = [others[0].clone(), others[1].clone(), bytes];
    resolve(&mut bench, &chain);
    assert_eq!(bench.confirmed(), None);
    assert_eq!(bench.problem(), Some(Problem::Overtaken { head: 2 }));
    bench.recover(&[], Some(2), (0, 9));
    let progress = bench.partition.progress();
    assert_eq!(
        (progress.head, progress.position, progress.void_batches),
        (2, 2, 1)
    );
    assert_eq!(progress.dedupe_ids, 0);
}

/// Answers an owner that asks what became of its batch.
fn resolve(bench: &mut Bench, chain: &[bytes::Bytes]) {
    let ticket = bench.find(|effect| match effect {
        Effect::AskChain { ticket } => Some(*ticket),
        _ => None,
    });
    let ticket = ticket.expect("it reads the log");
    bench.tell(Input::ChainBounds {
        ticket,
        low: 0,
        high: chain.len() as i64,
    });
    bench.read_chain(chain);
}

#[test]
fn a_revoked_owner_confirms_commits_and_stops() {
    let mut bench = Bench::running();
    bench.take(0, &event("a", NOW_MS));
    bench.effects.clear();
    bench.tell(Input::Revoke);
    assert_eq!(bench.take(1, &event("b", NOW_MS)), Taken::Full);
    let (ticket, _) = bench.written().expect("without waiting");
    assert!(!bench.effects.contains(&Effect::Stopped));
    bench.tell(Input::BatchDelivered { ticket, offset: 0 });
    assert!(
        bench
            .effects
            .iter()
            .any(|effect| matches!(effect, Effect::Commit { offset: 1, .. }))
    );
    assert_eq!(bench.effects.last(), Some(&Effect::Stopped));
    assert_eq!(bench.partition.progress().state, StateName::Stopped);
}
