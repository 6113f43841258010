//! One partition: the batches, the ends of the source, the dead letters and the store, held against each other.

use streamgauge_chain::{Ledger, Outcomes};
use streamgauge_proto::v1::PartitionLedger;

use crate::{Break, Fold, Terms, What};

/// Everything known of one partition.
#[derive(Clone, Debug)]
pub struct PartitionFacts {
    /// Its number.
    pub partition: i32,
    /// First source offset that the log still holds.
    pub source_low: i64,
    /// One past the last source offset.
    pub source_high: i64,
    /// What the batches say.
    pub fold: Fold,
    /// Distinct source offsets below the head that lie in the dead-letter topic; `None` when that
    /// topic no longer holds all of them, or holds too many to count.
    pub dead_letters: Option<u64>,
    /// What the store says.
    pub store: Option<PartitionLedger>,
}

impl PartitionFacts {
    /// Source offsets that no valid batch covers yet.
    pub fn in_flight(&self) -> i64 {
        (self.source_high - self.fold.ledger.head()).max(0)
    }

    /// Source offsets that retention removed and that no batch counts as missing yet.
    pub fn about_to_be_missing(&self) -> i64 {
        (self.source_low - self.fold.ledger.head()).max(0)
    }

    /// Source offsets that the batches cover and the store has not applied.
    pub fn not_applied(&self) -> Option<i64> {
        self.store
            .as_ref()
            .map(|store| (self.fold.ledger.head() - store.head).max(0))
    }

    /// The terms of its equation.
    pub fn terms(&self) -> Terms {
        let ledger = &self.fold.ledger;
        let offsets = self.source_high.max(ledger.head()) - ledger.base();
        Terms::new(offsets, &ledger.outcomes(), self.in_flight())
    }

    /// Everything that does not add up.
    pub fn breaks(&self) -> Vec<Break> {
        let ledger = &self.fold.ledger;
        let found = |by, since, what| Break::at(self.partition, by, since, what);
        let mut breaks = Vec::new();
        if ledger.imbalance() != 0 {
            breaks.push(found(ledger.imbalance(), ledger.base(), What::Imbalance));
        }
        if ledger.head() > self.source_high {
            let by = ledger.head() - self.source_high;
            breaks.push(found(by, self.source_high, What::BeyondSource));
        }
        let gone = self.batches_gone();
        breaks.extend(gone.clone());
        if let Some((since, by)) = self.fold.notes.contents() {
            breaks.push(found(by, since, What::BatchContents));
        }
        let expected = ledger.outcomes().late + ledger.outcomes().dead_lettered;
        if let Some(lack) = self
            .dead_letters
            .and_then(|found| expected.checked_sub(found))
            && lack > 0
        {
            breaks.push(found(lack as i64, ledger.base(), What::DeadLetters));
        }
        let store = self
            .store
            .as_ref()
            .and_then(|store| self.store_break(store, gone.is_some()));
        breaks.extend(store);
        breaks
    }

    /// A batch that lies within the source and beyond the head: what leads up to it is gone. One beyond the source as
    /// well was made up, and counts for nobody.
    fn batches_gone(&self) -> Option<Break> {
        let (stray, head) = (self.fold.notes.strays().waiting()?, self.fold.ledger.head());
        let is_within = head < stray.from && stray.from <= self.source_high;
        is_within.then(|| Break::at(self.partition, stray.from - head, head, What::BatchesGone))
    }

    fn store_break(&self, store: &PartitionLedger, gone: bool) -> Option<Break> {
        let found = |by, since, what| Some(Break::at(self.partition, by, since, what));
        let ledger = &self.fold.ledger;
        if store.imbalance != 0 {
            return found(store.imbalance, store.base, What::StoreImbalance);
        }
        if self.fold.truncated && store.head < ledger.base() {
            return found(ledger.base() - store.head, store.head, What::NotApplied);
        }
        let Some(then) = &self.fold.at_store_head else {
            // A log without its beginning says nothing of a store that is behind it. One that lacks a batch cannot be
            // followed to where the store is.
            let is_unknown =
                self.fold.store_unknown || (self.fold.truncated && store.head <= ledger.head());
            if is_unknown || (gone && store.head > ledger.head()) {
                return None;
            }
            let by = store.head - ledger.head();
            return found(by, ledger.head().min(store.head), What::StoreOffChain);
        };
        let by = self.difference(then, store);
        let since = then.base().max(store.base);
        if by == 0 {
            None
        } else {
            found(by, since, What::StoreDiffers)
        }
    }

    /// By how much the store and the batches that it applied differ. Where the beginning of the log is gone, or the
    /// store counted a hole in it as missing, the store must hold at least what the log still shows.
    fn difference(&self, then: &Ledger, store: &PartitionLedger) -> i64 {
        let (log, outcomes) = (then.outcomes(), store_outcomes(store));
        if then.base() == store.base && !self.fold.truncated {
            return largest_difference(&log, &outcomes);
        }
        if then.base() < store.base {
            return 0;
        }
        let pairs = log.terms().into_iter().zip(outcomes.terms());
        let lacks = pairs.map(|((_, log), (_, store))| log.saturating_sub(store) as i64);
        lacks.max().unwrap_or(0)
    }
}

/// The outcomes as the store has them.
pub const fn store_outcomes(store: &PartitionLedger) -> Outcomes {
    Outcomes {
        counted: store.counted,
        duplicate: store.duplicate,
        late: store.late,
        dead_lettered: store.dead_lettered,
        missing: store.missing,
        no_record: store.no_record,
    }
}

fn largest_difference(log: &Outcomes, store: &Outcomes) -> i64 {
    let pairs = log.terms().into_iter().zip(store.terms());
    let differences = pairs.map(|((_, log), (_, store))| log as i64 - store as i64);
    differences
        .max_by_key(|difference| difference.abs())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use streamgauge_proto::v1::{DeltaBatch, TypeCount};

    use super::*;

    fn batch(from: i64, to: i64, outcomes: Outcomes) -> Vec<u8> {
        DeltaBatch {
            from,
            to,
            outcomes: Some(outcomes.into()),
            strings: vec![String::from("click")],
            types: vec![TypeCount {
                event_type: 0,
                count: outcomes.counted,
            }],
            ..DeltaBatch::default()
        }
        .encode_to_vec()
    }

    fn counted(from: i64, to: i64) -> Vec<u8> {
        let outcomes = Outcomes {
            counted: (to - from) as u64,
            ..Outcomes::default()
        };
        batch(from, to, outcomes)
    }

    fn late(from: i64, to: i64) -> Vec<u8> {
        let outcomes = Outcomes {
            late: (to - from) as u64,
            ..Outcomes::default()
        };
        batch(from, to, outcomes)
    }

    /// Offsets 0..10 counted, 10..14 late, source up to 20.
    fn facts() -> PartitionFacts {
        let mut fold = Fold::new(0, Some(10));
        fold.record(0, Some(&counted(0, 10)));
        fold.record(1, Some(&late(10, 14)));
        let store = PartitionLedger {
            head: 10,
            counted: 10,
            ..PartitionLedger::default()
        };
        PartitionFacts {
            partition: 3,
            source_low: 0,
            source_high: 20,
            fold,
            dead_letters: Some(4),
            store: Some(store),
        }
    }

    #[test]
    fn books_that_balance() {
        let facts = facts();
        assert_eq!(facts.breaks(), []);
        assert_eq!((facts.in_flight(), facts.not_applied()), (6, Some(4)));
        assert_eq!(facts.terms().offsets, 20);
    }

    #[test]
    fn books_that_do_not() {
        type Spoil = fn(&mut PartitionFacts);
        let cases: [(What, i64, i64, Spoil); 7] = [
            (What::BeyondSource, 2, 12, |facts| facts.source_high = 12),
            (What::DeadLetters, 1, 0, |facts| {
                facts.dead_letters = Some(3)
            }),
            (What::StoreDiffers, 1, 0, |facts| {
                facts.store = Some(PartitionLedger {
                    head: 10,
                    counted: 9,
                    duplicate: 1,
                    ..PartitionLedger::default()
                });
            }),
            (What::StoreOffChain, 6, 14, |facts| {
                facts.fold.at_store_head = None;
                facts.store = Some(PartitionLedger {
                    head: 20,
                    ..PartitionLedger::default()
                });
            }),
            (What::StoreImbalance, 5, 0, |facts| {
                facts.store = Some(PartitionLedger {
                    imbalance: 5,
                    ..PartitionLedger::default()
                });
            }),
            (What::BatchesGone, 2, 14, |facts| {
                facts.fold.record(2, Some(&counted(16, 18)));
            }),
            (What::BatchContents, 4, 14, |facts| {
                let forged = DeltaBatch {
                    types: Vec::new(),
                    ..DeltaBatch::decode(&counted(14, 18)[..]).expect("a batch")
                };
                facts.fold.record(2, Some(&forged.encode_to_vec()));
            }),
        ];
        for (what, by, since, spoil) in cases {
            let mut facts = facts();
            spoil(&mut facts);
            let breaks = facts.breaks();
            assert_eq!(breaks.len(), 1, "{breaks:?}");
            let found = &breaks[0];
            assert_eq!(
                (found.what, found.by.abs(), found.since),
                (what, by, Some(since)),
                "{found}"
            );
        }
    }

    #[test]
    fn a_store_ahead_of_a_log_that_lacks_a_batch_is_one_break_not_two() {
        let mut facts = facts();
        facts.fold = Fold::new(0, Some(20));
        facts.fold.record(0, Some(&counted(0, 10)));
        facts.fold.record(1, Some(&counted(14, 20)));
        facts.store = Some(PartitionLedger {
            head: 20,
            counted: 16,
            late: 4,
            ..PartitionLedger::default()
        });
        let breaks = facts.breaks();
        assert_eq!(breaks, [Break::at(3, 4, 10, What::BatchesGone)]);
    }

    #[test]
    fn a_batch_made_up_beyond_the_source_counts_for_nobody() {
        let mut facts = facts();
        facts.fold.record(2, Some(&counted(1_000, 1_010)));
        assert_eq!(facts.breaks(), []);
        assert_eq!(facts.fold.notes.strays().count(), 1);
    }

    #[test]
    fn what_cannot_be_compared_is_not_called_broken() {
        let mut facts = facts();
        facts.dead_letters = None;
        facts.fold.truncated = true;
        facts.fold.at_store_head = None;
        assert_eq!(facts.breaks(), []);
        facts.source_low = 16;
        assert_eq!(facts.about_to_be_missing(), 2);
    }

    #[test]
    fn a_log_without_its_beginning_still_tells_what_the_store_must_hold() {
        let mut facts = facts();
        facts.fold = Fold::new(5, Some(40));
        for (at, (from, to)) in (5..).zip([(20, 30), (30, 40)]) {
            facts.fold.record(at, Some(&counted(from, to)));
        }
        (facts.source_high, facts.dead_letters) = (40, None);
        let store = |counted, missing, head| PartitionLedger {
            head,
            counted,
            missing,
            ..PartitionLedger::default()
        };
        facts.store = Some(store(25, 15, 40));
        assert_eq!(facts.breaks(), []);
        facts.store = Some(store(15, 25, 40));
        assert_eq!(facts.breaks(), [Break::at(3, 5, 20, What::StoreDiffers)]);
        facts.store = Some(store(12, 0, 12));
        assert_eq!(facts.breaks(), [Break::at(3, 8, 12, What::NotApplied)]);
    }
}
