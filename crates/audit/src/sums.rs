//! The store as a whole: what its rows add up to, against what its chains counted, and against each other.

use crate::{Break, Rebuilt, What};

/// What the rows of series `all` add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreSums {
    /// Events that the chains counted.
    pub counted: u64,
    /// The rebuild that made the rows, if one did.
    pub rebuilt: Option<Rebuilt>,
    /// All rows of one length, with what waits for a checkpoint.
    pub whole: Option<Whole>,
    /// Rows of two lengths over the same time.
    pub pairs: Vec<Pair>,
}

/// All rows of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Length of the buckets, in seconds.
    pub tier_s: i64,
    /// Events in them.
    pub events: u64,
    /// Whether rows of this length are kept for ever; else retention may have taken some.
    pub is_complete: bool,
}

/// Rows of two lengths over the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Length of the shorter buckets, in seconds.
    pub finer_s: i64,
    /// Length of the longer buckets, in seconds.
    pub coarser_s: i64,
    /// Since which second they are compared.
    pub since_s: i64,
    /// Events in the shorter ones.
    pub finer: u64,
    /// Events in the longer ones.
    pub coarser: u64,
}

impl StoreSums {
    /// Events that the rows must hold: a rebuild puts other rows in place, and leaves the chains as they are.
    fn expected(&self) -> i64 {
        let shift = self.rebuilt.as_ref().map(Rebuilt::total);
        let shift = shift.map_or(0, |shift| shift.counted);
        (self.counted as i64).saturating_add(shift)
    }

    /// Everything that does not add up.
    pub fn breaks(&self) -> Vec<Break> {
        let whole = self.whole.iter().filter_map(|whole| {
            let by = (whole.events as i64).saturating_sub(self.expected());
            // What retention took is lacking by right.
            let is_wrong = if whole.is_complete { by != 0 } else { by > 0 };
            let place = format!("the store's buckets of {} s", whole.tier_s);
            is_wrong.then(|| Break::of(place, by, What::Aggregates))
        });
        let pairs = self.pairs.iter().filter_map(|pair| {
            let by = pair.finer as i64 - pair.coarser as i64;
            let place = format!(
                "the store's buckets of {} s against those of {} s since second {}",
                pair.finer_s, pair.coarser_s, pair.since_s
            );
            (by != 0).then(|| Break::of(place, by, What::Tiers))
        });
        whole.chain(pairs).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Shift;

    fn sums(events: u64, is_complete: bool) -> StoreSums {
        StoreSums {
            counted: 100,
            rebuilt: None,
            whole: Some(Whole {
                tier_s: 86_400,
                events,
                is_complete,
            }),
            pairs: vec![Pair {
                finer_s: 60,
                coarser_s: 3_600,
                since_s: 7_200,
                finer: 40,
                coarser: 40,
            }],
        }
    }

    #[test]
    fn rows_are_the_events_that_were_counted() {
        assert_eq!(sums(100, true).breaks(), []);
        let found = sums(97, true).breaks();
        assert_eq!(
            (found[0].by, found[0].what, found[0].partition),
            (-3, What::Aggregates, None)
        );
        assert_eq!(sums(97, false).breaks(), [], "retention took three");
        assert_eq!(sums(101, false).breaks().len(), 1);
    }

    #[test]
    fn what_a_rebuild_counted_otherwise_is_expected_of_the_rows_and_no_more() {
        let shifted = |events, by| {
            let mut sums = sums(events, true);
            let shift = Shift {
                counted: by,
                late: -by,
                ..Shift::default()
            };
            sums.rebuilt = Some(Rebuilt {
                generation: 1,
                partitions: BTreeMap::from([(0, shift), (3, shift)]),
            });
            sums
        };
        assert_eq!(shifted(106, 3).breaks(), []);
        assert_eq!(shifted(94, -3).breaks(), []);
        assert_eq!(shifted(105, 3).breaks()[0].by, -1);
        assert_eq!(shifted(100, 3).breaks()[0].by, -6);
    }

    #[test]
    fn a_row_of_one_length_that_differs_is_named() {
        let mut sums = sums(100, true);
        sums.pairs[0].finer = 45;
        let found = sums.breaks();
        assert_eq!((found[0].by, found[0].what), (5, What::Tiers));
        assert!(
            found[0]
                .to_string()
                .contains("buckets of 60 s against those of 3600 s"),
            "{}",
            found[0]
        );
    }
}
