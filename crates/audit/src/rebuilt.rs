//! What a rebuild changed: its rows hold the events as they were judged again, while the chains go on telling how they
//! ended the first time.

use std::{collections::BTreeMap, fmt, ops::AddAssign};

use serde::Serialize;
use streamgauge_chain::Outcomes;

use crate::whole;

/// By how much events ended otherwise when they were judged again; below zero, fewer ended so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shift {
    /// See [`Outcomes`].
    pub counted: i64,
    /// See [`Outcomes`].
    pub duplicate: i64,
    /// See [`Outcomes`].
    pub late: i64,
    /// See [`Outcomes`].
    pub dead_lettered: i64,
    /// See [`Outcomes`].
    pub missing: i64,
    /// See [`Outcomes`].
    pub no_record: i64,
}

impl Shift {
    /// From how events ended then to how they ended again.
    pub fn between(then: &Outcomes, again: &Outcomes) -> Self {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let by = |of: fn(&Outcomes) -> u64| signed(of(again)) - signed(of(then));
        Self {
            counted: by(|outcomes| outcomes.counted),
            duplicate: by(|outcomes| outcomes.duplicate),
            late: by(|outcomes| outcomes.late),
            dead_lettered: by(|outcomes| outcomes.dead_lettered),
            missing: by(|outcomes| outcomes.missing),
            no_record: by(|outcomes| outcomes.no_record),
        }
    }

    /// The terms as they are called, in the order in which the equation is printed.
    pub const fn terms(&self) -> [(&'static str, i64); 6] {
        [
            ("counted", self.counted),
            ("duplicate", self.duplicate),
            ("late", self.late),
            ("dead-lettered", self.dead_lettered),
            ("missing", self.missing),
            ("no record", self.no_record),
        ]
    }
}

impl AddAssign for Shift {
    fn add_assign(&mut self, other: Self) {
        self.counted = self.counted.saturating_add(other.counted);
        self.duplicate = self.duplicate.saturating_add(other.duplicate);
        self.late = self.late.saturating_add(other.late);
        self.dead_lettered = self.dead_lettered.saturating_add(other.dead_lettered);
        self.missing = self.missing.saturating_add(other.missing);
        self.no_record = self.no_record.saturating_add(other.no_record);
    }
}

/// The rebuild that made a set of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Which of those that were swapped in, from 1 on.
    pub generation: u64,
    /// Per partition, what it judged otherwise than the chain says.
    pub partitions: BTreeMap<i32, Shift>,
}

impl Rebuilt {
    /// Over all partitions.
    pub fn total(&self) -> Shift {
        let mut total = Shift::default();
        self.partitions.values().for_each(|shift| total += *shift);
        total
    }

    /// Whether it judged anything otherwise.
    pub fn is_different(&self) -> bool {
        let none = Shift::default();
        self.partitions.values().any(|shift| *shift != none)
    }
}

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rebuilt: ")?;
        let mut nothing = true;
        for (name, by) in self.total().terms() {
            if by != 0 {
                let direction = if by > 0 { "more" } else { "less" };
                write!(f, "{} {name} {direction}, ", whole(by.unsigned_abs()))?;
                nothing = false;
            }
        }
        if nothing {
            // Also when the partitions make up for each other.
            f.write_str("as many of each in all, ")?;
        }
        write!(f, "since generation {}", self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_judged_otherwise_is_told_in_one_line() {
        let then = Outcomes {
            counted: 4_000,
            late: 2_500,
            ..Outcomes::default()
        };
        let again = Outcomes {
            counted: 6_498,
            duplicate: 2,
            ..Outcomes::default()
        };
        let partitions = BTreeMap::from([
            (0, Shift::between(&then, &again)),
            (1, Shift::between(&then, &then)),
        ]);
        let rebuilt = Rebuilt {
            generation: 2,
            partitions,
        };
        assert!(rebuilt.is_different());
        assert_eq!(
            rebuilt.to_string(),
            "rebuilt: 2,498 counted more, 2 duplicate more, 2,500 late less, since generation 2"
        );
    }

    #[test]
    fn partitions_that_make_up_for_each_other_are_not_equal() {
        let shift = |counted| Shift {
            counted,
            ..Shift::default()
        };
        let rebuilt = Rebuilt {
            generation: 1,
            partitions: BTreeMap::from([(0, shift(3)), (1, shift(-3))]),
        };
        assert!(rebuilt.is_different());
        assert_eq!(
            rebuilt.to_string(),
            "rebuilt: as many of each in all, since generation 1"
        );
        assert!(!Rebuilt::default().is_different());
    }
}
