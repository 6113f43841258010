//! The ledger: how every source offset ended, and whether the sum balances.

use std::ops::AddAssign;

use streamgauge_proto::v1;

use crate::{Chain, Range, Verdict};

/// How the offsets of a range ended. The terms add up to the length of the range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Events in the aggregates.
    pub counted: u64,
    /// Events whose id was seen within the dedupe horizon.
    pub duplicate: u64,
    /// Events older than the accepted age; they lie in the dead-letter topic.
    pub late: u64,
    /// Records that could not be read; they lie in the dead-letter topic.
    pub dead_lettered: u64,
    /// Offsets that retention removed before they were read.
    pub missing: u64,
    /// Offsets that hold no record, such as control records.
    pub no_record: u64,
}

impl Outcomes {
    /// The sum of all terms; `None` when it overflows, which no honest batch reaches.
    pub const fn total(&self) -> Option<u64> {
        let terms = [
            self.duplicate,
            self.late,
            self.dead_lettered,
            self.missing,
            self.no_record,
        ];
        let mut sum = self.counted;
        let mut index = 0;
        while index < terms.len() {
            match sum.checked_add(terms[index]) {
                Some(next) => sum = next,
                None => return None,
            }
            index += 1;
        }
        Some(sum)
    }

    /// Whether the terms account for each offset of the range once.
    pub fn balances(&self, range: Range) -> bool {
        self.total() == Some(range.offsets())
    }

    /// The terms by name, in the order in which the equation is printed.
    pub const fn terms(&self) -> [(&'static str, u64); 6] {
        [
            ("counted", self.counted),
            ("duplicate", self.duplicate),
            ("late", self.late),
            ("dead_lettered", self.dead_lettered),
            ("missing", self.missing),
            ("no_record", self.no_record),
        ]
    }
}

impl AddAssign for Outcomes {
    fn add_assign(&mut self, other: Self) {
        self.counted = self.counted.saturating_add(other.counted);
        self.duplicate = self.duplicate.saturating_add(other.duplicate);
        self.late = self.late.saturating_add(other.late);
        self.dead_lettered = self.dead_lettered.saturating_add(other.dead_lettered);
        self.missing = self.missing.saturating_add(other.missing);
        self.no_record = self.no_record.saturating_add(other.no_record);
    }
}

impl From<&v1::Outcomes> for Outcomes {
    fn from(wire: &v1::Outcomes) -> Self {
        Self {
            counted: wire.counted,
            duplicate: wire.duplicate,
            late: wire.late,
            dead_lettered: wire.dead_lettered,
            missing: wire.missing,
            no_record: wire.no_record,
        }
    }
}

impl From<Outcomes> for v1::Outcomes {
    fn from(outcomes: Outcomes) -> Self {
        Self {
            counted: outcomes.counted,
            duplicate: outcomes.duplicate,
            late: outcomes.late,
            dead_lettered: outcomes.dead_lettered,
            missing: outcomes.missing,
            no_record: outcomes.no_record,
        }
    }
}

/// The fold of a partition's batches: where the chain began, where it is, and what it counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    base: i64,
    chain: Chain,
    outcomes: Outcomes,
    valid_batches: u64,
    void_batches: u64,
}

impl Ledger {
    /// An empty ledger of a chain that starts at `base`.
    pub fn starting_at(base: i64) -> Self {
        Self {
            base,
            chain: Chain::at(base),
            outcomes: Outcomes::default(),
            valid_batches: 0,
            void_batches: 0,
        }
    }

    /// A ledger as a store kept it.
    pub fn restored(base: i64, head: i64, outcomes: Outcomes, valid: u64, void: u64) -> Self {
        Self {
            base,
            chain: Chain::at(head),
            outcomes,
            valid_batches: valid,
            void_batches: void,
        }
    }

    /// Offers a batch to the chain and, when it is valid, adds its outcomes.
    pub fn offer(&mut self, range: Range, outcomes: Outcomes) -> Verdict {
        let verdict = self.chain.offer(range);
        match verdict {
            Verdict::Valid => {
                self.outcomes += outcomes;
                self.valid_batches += 1;
            }
            Verdict::Void => self.void_batches += 1,
        }
        verdict
    }

    /// The first source offset that the chain covers.
    pub const fn base(&self) -> i64 {
        self.base
    }

    /// The end of the last valid batch.
    pub const fn head(&self) -> i64 {
        self.chain.head()
    }

    /// What the valid batches counted.
    pub const fn outcomes(&self) -> Outcomes {
        self.outcomes
    }

    /// Batches that continued the chain.
    pub const fn valid_batches(&self) -> u64 {
        self.valid_batches
    }

    /// Batches that counted for nobody.
    pub const fn void_batches(&self) -> u64 {
        self.void_batches
    }

    /// `head - base - sum of the outcomes`: 0, or the proof of a defect.
    pub fn imbalance(&self) -> i64 {
        let covered = i128::from(self.head()) - i128::from(self.base);
        let counted = self.outcomes.total().map_or(i128::MAX, i128::from);
        let difference = covered.saturating_sub(counted);
        difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcomes() -> impl Strategy<Value = Outcomes> {
        (0u64..50, 0u64..50, 0u64..5, 0u64..5, 0u64..5, 1u64..5).prop_map(
            |(counted, duplicate, late, dead_lettered, missing, no_record)| Outcomes {
                counted,
                duplicate,
                late,
                dead_lettered,
                missing,
                no_record,
            },
        )
    }

    proptest! {
        #[test]
        fn balanced_batches_keep_the_ledger_balanced(batches in prop::collection::vec((outcomes(), any::<bool>()), 0..50)) {
            let mut ledger = Ledger::starting_at(7);
            for (terms, in_order) in batches {
                let length = terms.total().expect("small") as i64;
                let from = if in_order { ledger.head() } else { ledger.head() + 1 };
                let range = Range::new(from, from + length).expect("at least one offset");
                prop_assert!(terms.balances(range));
                let verdict = ledger.offer(range, terms);
                prop_assert_eq!(verdict == Verdict::Valid, in_order);
                prop_assert_eq!(ledger.imbalance(), 0);
            }
        }
    }

    #[test]
    fn an_imbalance_is_told_with_its_size() {
        let mut ledger = Ledger::starting_at(0);
        let range = Range::new(0, 10).expect("not empty");
        ledger.offer(
            range,
            Outcomes {
                counted: 7,
                ..Outcomes::default()
            },
        );
        assert_eq!(ledger.imbalance(), 3);
    }

    #[test]
    fn a_sum_that_overflows_balances_nothing() {
        let terms = Outcomes {
            counted: u64::MAX,
            late: 1,
            ..Outcomes::default()
        };
        assert_eq!(terms.total(), None);
        assert!(!terms.balances(Range::new(0, 1).expect("not empty")));
    }
}
