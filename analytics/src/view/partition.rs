//! The fold of one partition's batches, as the store keeps it, and the rule that moves it.
//!
//! Pure. Two instances that read the same log from the same row reach the same row, record by record; that is what
//! lets the store accept either's write and refuse the other's.

use streamgauge_chain::{Chain, Ledger, Outcomes, Range, Step};

/// A partition's chain as the store keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainRow {
    /// The partition.
    pub partition: i32,
    /// Where the chain is and what it counted.
    pub ledger: Ledger,
    /// Next offset of `metrics-data` to read.
    pub delta_position: i64,
    /// Event-time watermark that the latest valid batch carried, microseconds; 0 when unknown.
    pub watermark_us: i64,
    /// The clock when the latest valid batch was applied, microseconds.
    pub as_of_us: i64,
    /// Whether records that were due are gone, and the end of the log was not reached since.
    pub gap: bool,
    /// Source offsets whose batches retention removed unread; part of what the ledger says is missing.
    pub holes: u64,
    /// Where in `metrics-data` the latest batch was counted of which a gap before it was open; 0 when there was none. What
    /// retention took may have left a hole, or the first of two records of the same batch, as writers that follow each
    /// other leave them: then the second counts. Retention does not take from two readers alike, so this and `holes` tell
    /// whether they have counted the same records.
    pub hole_at: i64,
}

/// What is to be done with a record of `metrics-data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It counts.
    Valid {
        /// Source offsets whose batches retention removed before they were read; counted as missing.
        hole: u64,
    },
    /// It counts for nobody.
    Void,
    /// It counts for nobody, and does not tell where the chain goes on behind the gap.
    Held,
}

/// A record's content, as far as the chain looks at it; `None` when it is not a batch.
pub type Offered = Option<(Range, Outcomes)>;

impl ChainRow {
    /// The row of a partition of which nothing was read.
    pub fn new(partition: i32) -> Self {
        Self {
            partition,
            ledger: Ledger::starting_at(0),
            delta_position: 0,
            watermark_us: 0,
            as_of_us: 0,
            gap: false,
            holes: 0,
            hole_at: 0,
        }
    }

    /// Takes the record at `offset` in: judges it by the chain's rule and moves the row accordingly. A gap is kept with the
    /// row, so that it makes no difference where a reader starts.
    pub fn take(&mut self, offset: i64, offered: Offered) -> Judged {
        let gap = self.gap || offset > self.delta_position;
        let range = offered.map(|(range, _)| range);
        let judged = match Chain::at(self.ledger.head()).step(range, gap) {
            Step::Valid { hole } => Judged::Valid { hole },
            Step::Void => Judged::Void,
            Step::Held => Judged::Held,
        };
        match (judged, offered) {
            (Judged::Valid { hole }, Some((range, outcomes))) => {
                if hole > 0 {
                    self.skip(range.from(), hole);
                }
                if gap {
                    self.hole_at = offset;
                }
                self.ledger.offer(range, outcomes);
            }
            _ => self.count_void(),
        }
        (self.gap, self.delta_position) = (gap, offset + 1);
        judged
    }

    /// Moves the head over a hole and counts it as missing.
    fn skip(&mut self, to: i64, hole: u64) {
        let ledger = self.ledger;
        let mut outcomes = ledger.outcomes();
        outcomes.missing = outcomes.missing.saturating_add(hole);
        let (valid, void) = (ledger.valid_batches(), ledger.void_batches());
        self.ledger = Ledger::restored(ledger.base(), to, outcomes, valid, void);
        self.holes = self.holes.saturating_add(hole);
    }

    /// Whether this row, at or beyond `other`, has counted what led to `other`. Retention may have outrun one of the two
    /// readers: it has a hole that the other has not, has counted another record of the same batch, or is still in a gap
    /// and stands at an earlier head.
    pub fn includes(&self, other: &Self) -> bool {
        let same_holes = (self.holes, self.hole_at) == (other.holes, other.hole_at);
        if self.delta_position == other.delta_position {
            return same_holes && self.ledger.head() == other.ledger.head();
        }
        same_holes && self.ledger.head() >= other.ledger.head() && !other.gap
    }

    fn count_void(&mut self) {
        let ledger = self.ledger;
        let (valid, void) = (ledger.valid_batches(), ledger.void_batches() + 1);
        self.ledger =
            Ledger::restored(ledger.base(), ledger.head(), ledger.outcomes(), valid, void);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(from: i64, to: i64) -> Offered {
        let range = Range::new(from, to).expect("not empty");
        Some((
            range,
            Outcomes {
                counted: range.offsets(),
                ..Outcomes::default()
            },
        ))
    }

    #[test]
    fn the_rule_by_example() {
        let mut row = ChainRow::new(0);
        assert_eq!(row.take(0, batch(0, 10)), Judged::Valid { hole: 0 });
        assert_eq!(row.take(1, batch(0, 10)), Judged::Void);
        assert_eq!(row.take(2, None), Judged::Void);
        assert_eq!(
            row.take(3, batch(12, 13)),
            Judged::Void,
            "no gap in the log, no hole"
        );
        assert_eq!(row.take(4, batch(10, 12)), Judged::Valid { hole: 0 });
        assert_eq!((row.ledger.head(), row.delta_position), (12, 5));
        assert_eq!(
            (row.ledger.valid_batches(), row.ledger.void_batches()),
            (2, 3)
        );
    }

    #[test]
    fn a_hole_is_counted_as_missing() {
        let mut row = ChainRow::new(0);
        row.take(0, batch(0, 10));
        assert_eq!(row.take(50, None), Judged::Held);
        assert_eq!(row.take(51, batch(3, 7)), Judged::Held);
        assert_eq!(row.ledger.head(), 10);
        // Void in truth, as the next one tells: the gap is open until the log was read to its end.
        assert_eq!(row.take(52, batch(30, 40)), Judged::Valid { hole: 20 });
        assert_eq!(row.take(53, batch(100, 110)), Judged::Valid { hole: 60 });
        assert_eq!(row.ledger.outcomes().missing, 80);
        assert_eq!((row.ledger.head(), row.delta_position), (110, 54));
        row.gap = false;
        assert_eq!(row.take(54, batch(200, 210)), Judged::Void);
        assert_eq!(row.ledger.imbalance(), 0);
    }

    #[test]
    fn who_counted_another_record_of_the_same_batch_is_not_included() {
        let mut whole = ChainRow::new(0);
        whole.take(0, batch(0, 6));
        let mut outrun = whole;
        // Two writers left the batch twice; retention took the first of them from one reader.
        assert_eq!(whole.take(1, batch(6, 12)), Judged::Valid { hole: 0 });
        assert_eq!(outrun.take(2, batch(6, 12)), Judged::Valid { hole: 0 });
        assert_eq!(whole.ledger.head(), outrun.ledger.head());
        assert!(!outrun.includes(&whole));
        whole.take(2, batch(6, 12));
        assert_eq!(whole.delta_position, outrun.delta_position);
        assert!(!outrun.includes(&whole) && !whole.includes(&outrun));
        // Nor later, when nothing of that is left but what they remember of it.
        outrun.gap = false;
        for row in [&mut whole, &mut outrun] {
            row.take(3, batch(12, 20));
        }
        assert!(!outrun.includes(&whole) && !whole.includes(&outrun));
        assert!(whole.includes(&whole) && outrun.includes(&outrun));
    }

    proptest! {
        /// Reading on from any row that was kept gives the row that reading through gives.
        #[test]
        fn a_restart_changes_nothing(
            records in prop::collection::vec((prop::option::weighted(0.9, (0i64..30, 1i64..5)), 0i64..2), 0..80),
            cut in 0usize..80,
        ) {
            let mut offset = -1;
            let log: Vec<(i64, Offered)> = records.into_iter().map(|(range, gap)| {
                offset += 1 + gap * 3;
                (offset, range.and_then(|(from, length)| batch(from, from + length)))
            }).collect();
            let fold = |row: &mut ChainRow, log: &[(i64, Offered)]| {
                log.iter().for_each(|(offset, offered)| { row.take(*offset, *offered); });
            };
            let mut through = ChainRow::new(0);
            fold(&mut through, &log);
            let mut restarted = ChainRow::new(0);
            fold(&mut restarted, &log[..cut.min(log.len())]);
            let rest: Vec<_> = log.iter().filter(|(offset, _)| *offset >= restarted.delta_position).copied().collect();
            fold(&mut restarted, &rest);
            prop_assert_eq!(through, restarted);
            prop_assert_eq!(through.ledger.imbalance(), 0);
        }
    }
}
