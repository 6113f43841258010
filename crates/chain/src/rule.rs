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
    pub fn judge(self, range: Range) -> Verdict {
        #[cfg(feature = "mutations")]
        if crate::mutation::is_off() {
            return Verdict::Valid;
        }
        if range.from == self.head {
            Verdict::Valid
        } else {
            Verdict::Void
        }
    }

    /// Applies the rule: moves the head when the batch is valid.
    pub fn offer(&mut self, range: Range) -> Verdict {
        let verdict = self.judge(range);
        if matches!(verdict, Verdict::Valid) {
            self.head = range.to;
        }
        verdict
    }

    /// The rule for a reader of a log that retention may cut; moves the head when the batch is
    /// valid. `None` is a record that is not a batch.
    ///
    /// `gap` says that records are missing before this one. A gap opens where the log goes on
    /// beyond the record that is due, and stays open until the reader has read all that the log
    /// held when it was found, for the first batch behind it may be a void one that only seems to
    /// go on. Without a gap this is [`Chain::offer`].
    pub fn step(&mut self, range: Option<Range>, gap: bool) -> Step {
        #[cfg(feature = "mutations")]
        if let (true, Some(range)) = (crate::mutation::is_off(), range) {
            self.head = range.to;
            return Step::Valid { hole: 0 };
        }
        match range {
            Some(range) if range.from == self.head || (gap && range.from > self.head) => {
                let hole = (range.from - self.head) as u64;
                self.head = range.to;
                Step::Valid { hole }
            }
            _ if gap => Step::Held,
            _ => Step::Void,
        }
    }
}

/// What [`Chain::step`] makes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It counts, and the head is its end.
    Valid {
        /// Source offsets between the head and the batch. Writers never start beyond the head, so
        /// that these were counted by batches that are gone.
        hole: u64,
    },
    /// It counts for nobody.
    Void,
    /// It counts for nobody, and does not tell where the chain goes on behind the gap.
    Held,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(from: i64, to: i64) -> Option<Range> {
        Some(Range::new(from, to).expect("not empty"))
    }

    #[test]
    fn behind_a_gap_a_batch_beyond_the_head_goes_on() {
        let mut chain = Chain::at(10);
        for (range, gap, expected, head) in [
            (range(12, 13), false, Step::Void, 10),
            (None, false, Step::Void, 10),
            (None, true, Step::Held, 10),
            (range(3, 7), true, Step::Held, 10),
            (range(10, 12), false, Step::Valid { hole: 0 }, 12),
            // Void in truth, as the next one tells.
            (range(50, 60), true, Step::Valid { hole: 38 }, 60),
            (range(100, 110), true, Step::Valid { hole: 40 }, 110),
            (range(100, 110), true, Step::Held, 110),
            (range(110, 111), true, Step::Valid { hole: 0 }, 111),
        ] {
            assert_eq!(chain.step(range, gap), expected, "{range:?}");
            assert_eq!(chain.head(), head);
        }
    }

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

        /// Whoever starts behind a cut finds the head that a reader of everything has, once a
        /// valid batch lies behind the cut; until then it is never beyond.
        #[test]
        fn a_cut_chain_is_taken_up_at_its_head(
            writes in prop::collection::vec((0i64..40, 1i64..40, any::<bool>()), 1..60),
            known in 0usize..60,
            lost in 0usize..60,
        ) {
            let mut whole = Chain::at(0);
            let mut log = Vec::new();
            for (back, length, behind) in writes {
                let head = whole.head();
                // A zombie starts at an earlier head and covers what is covered already.
                let from = if behind { (head - back).max(0) } else { head };
                let to = if from < head { (from + length).min(head) } else { head + length };
                let range = Range::new(from, to).expect("not empty");
                let verdict = whole.offer(range);
                log.push((range, verdict, whole.head()));
            }
            let known = known.min(log.len());
            let cut = (known + lost).min(log.len());
            let mut chain = Chain::at(known.checked_sub(1).map_or(0, |last| log[last].2));
            let mut found = known == cut;
            for (range, verdict, head) in &log[cut..] {
                let step = chain.step(Some(*range), true);
                found |= *verdict == Verdict::Valid;
                prop_assert!(chain.head() <= *head);
                prop_assert!(!found || chain.head() == *head, "{:?}", step);
            }
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
