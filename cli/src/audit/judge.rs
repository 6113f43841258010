//! Whether the books balance: the log, the dead letters and the store, held against each other.
//! Pure.

use std::fmt;

use streamgauge_chain::Outcomes;
use streamgauge_proto::v1::PartitionLedger;

use super::fold::Fold;

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

/// What does not add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// Where.
    pub partition: i32,
    /// By how many events.
    pub by: i64,
    /// From which source offset on.
    pub since: i64,
    /// What disagrees with what.
    pub what: What,
}

/// What disagrees with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The terms of the batches do not add up to their ranges.
    Imbalance,
    /// Batches count offsets that the source does not have.
    BeyondSource,
    /// Fewer dead letters than the batches count.
    DeadLetters,
    /// The store is at an offset that the chain never was at.
    StoreOffChain,
    /// The store counts otherwise than the batches that it applied.
    StoreDiffers,
    /// The store's own terms do not add up.
    StoreImbalance,
}

impl What {
    /// A sentence.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Imbalance => "the terms of the batches do not add up to the offsets they cover",
            Self::BeyondSource => "the batches count offsets that the source does not have",
            Self::DeadLetters => "dead letters that the batches count are not in their topic",
            Self::StoreOffChain => "the store stands at an offset that the chain never stood at",
            Self::StoreDiffers => "the store counts otherwise than the batches that it applied",
            Self::StoreImbalance => "the store's own terms do not add up",
        }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            partition,
            by,
            since,
            what,
        } = self;
        write!(
            f,
            "BROKEN at partition {partition} by {by} since offset {since}: {}",
            what.sentence()
        )
    }
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

    /// Everything that does not add up.
    pub fn breaks(&self) -> Vec<Break> {
        let ledger = &self.fold.ledger;
        let found = |by: i64, since: i64, what| Break {
            partition: self.partition,
            by,
            since,
            what,
        };
        let mut breaks = Vec::new();
        if ledger.imbalance() != 0 {
            breaks.push(found(ledger.imbalance(), ledger.base(), What::Imbalance));
        }
        if ledger.head() > self.source_high {
            let by = ledger.head() - self.source_high;
            breaks.push(found(by, self.source_high, What::BeyondSource));
        }
        let expected = ledger.outcomes().late + ledger.outcomes().dead_lettered;
        if let Some(lack) = self
            .dead_letters
            .and_then(|found| expected.checked_sub(found))
            && lack > 0
        {
            breaks.push(found(lack as i64, ledger.base(), What::DeadLetters));
        }
        breaks.extend(
            self.store
                .as_ref()
                .and_then(|store| self.store_break(store)),
        );
        breaks
    }

    fn store_break(&self, store: &PartitionLedger) -> Option<Break> {
        let found = |by, since, what| Break {
            partition: self.partition,
            by,
            since,
            what,
        };
        if store.imbalance != 0 {
            return Some(found(store.imbalance, store.base, What::StoreImbalance));
        }
        let Some(then) = self.fold.at_store_head else {
            // A log without its beginning says nothing of a store that is behind it.
            if self.fold.truncated && store.head <= self.fold.ledger.head() {
                return None;
            }
            let by = store.head - self.fold.ledger.head();
            return Some(found(
                by,
                self.fold.ledger.head().min(store.head),
                What::StoreOffChain,
            ));
        };
        // The beginning is gone: heads agree, sums cannot be compared. The same holds where the
        // store itself counted a hole in `metrics-data` as missing.
        if self.fold.truncated || then.base() != store.base {
            return None;
        }
        let by = largest_difference(&then.outcomes(), &store_outcomes(store));
        (by != 0).then(|| found(by, store.base, What::StoreDiffers))
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
    use streamgauge_proto::v1::DeltaBatch;

    use super::*;

    /// Offsets 0..10 counted, 10..14 late, source up to 20.
    fn facts() -> PartitionFacts {
        let mut fold = Fold::new(0, Some(10));
        let terms = [
            (
                0,
                10,
                Outcomes {
                    counted: 10,
                    ..Outcomes::default()
                },
            ),
            (
                10,
                14,
                Outcomes {
                    late: 4,
                    ..Outcomes::default()
                },
            ),
        ];
        for (from, to, outcomes) in terms {
            let batch = DeltaBatch {
                from,
                to,
                outcomes: Some(outcomes.into()),
                ..DeltaBatch::default()
            };
            fold.record(Some(&batch.encode_to_vec()));
        }
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
    }

    #[test]
    fn books_that_do_not() {
        type Spoil = fn(&mut PartitionFacts);
        let cases: [(What, i64, i64, Spoil); 5] = [
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
        ];
        for (what, by, since, spoil) in cases {
            let mut facts = facts();
            spoil(&mut facts);
            let breaks = facts.breaks();
            assert_eq!(breaks.len(), 1, "{breaks:?}");
            let found = &breaks[0];
            assert_eq!(
                (found.what, found.by.abs(), found.since),
                (what, by, since),
                "{found}"
            );
        }
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
}
