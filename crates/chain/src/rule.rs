//! The rule itself: one comparison, on which exactly-once rests.

use std::fmt;

/// A half-open range `[from, to)` of source offsets; never empty and never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    from: i64,
    to: i64,
}

impl Range {
    /// The range, or `None` unless `0 <= from < to`.
    pub const fn new(from: i64, to: i64) -> Option<Self> {
        if 0 <= from && from < to {
            Some(Self { from, to })
        } else {
            None
        }
    }

    /// The first offset of the range.
    pub const fn from(self) -> i64 {
        self.from
    }

    /// One past the last offset of the range.
    pub const fn to(self) -> i64 {
        self.to
    }

    /// How many offsets the range holds; at least 1.
    pub const fn offsets(self) -> u64 {
        (self.to - self.from) as u64
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.from, self.to)
    }
}

/// What the chain says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The batch continues the chain; the head has moved to its end.
    Valid,
    /// The batch does not start at the head; it counts for nobody.
    Void,
}

/// The chain of one partition: the source offset up to which every event has its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    head: i64,
}

impl Chain {
    /// A chain that has reached `head`; a new partition starts at 0.
    pub const fn at(head: i64) -> Self {
        Self { head }
    }

    /// The end of the last valid batch.
    pub const fn head(self) -> i64 {
        self.head
    }

    /// What the rule says of a batch that covers `range`, without moving.
    pub const fn judge(self, range: Range) -> Verdict {
        if range.from == self.head {
            Verdict::Valid
        } else {
            Verdict::Void
        }
    }

    /// Applies the rule: moves the head when the batch is valid.
    pub const fn offer(&mut self, range: Range) -> Verdict {
        let verdict = self.judge(range);
        if matches!(verdict, Verdict::Valid) {
            self.head = range.to;
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_never_empty_or_negative() {
        for (from, to, ok) in [(0, 1, true), (0, 0, false), (5, 4, false), (-1, 3, false)] {
            assert_eq!(Range::new(from, to).is_some(), ok, "[{from}, {to})");
        }
        assert_eq!(Range::new(3, 10).map(Range::offsets), Some(7));
    }

    proptest! {
        /// Whatever is written in whatever order, the valid batches tile the source without gap
        /// or overlap, and two readers who start together agree.
        #[test]
        fn valid_batches_tile_the_source(writes in prop::collection::vec((0i64..40, 1i64..6), 0..200)) {
            let (mut one, mut other) = (Chain::at(0), Chain::at(0));
            let mut covered = 0;
            for (from, length) in writes {
                let range = Range::new(from, from + length).expect("length is positive");
                let verdict = one.offer(range);
                prop_assert_eq!(verdict, other.offer(range));
                if verdict == Verdict::Valid {
                    prop_assert_eq!(range.from(), covered);
                    covered = range.to();
                }
            }
            prop_assert_eq!(one.head(), covered);
        }

        /// A batch that is written twice counts once.
        #[test]
        fn a_repeated_batch_is_void(from in 0i64..1000, length in 1i64..1000) {
            let range = Range::new(from, from + length).expect("length is positive");
            let mut chain = Chain::at(from);
            prop_assert_eq!(chain.offer(range), Verdict::Valid);
            prop_assert_eq!(chain.offer(range), Verdict::Void);
        }
    }
}
