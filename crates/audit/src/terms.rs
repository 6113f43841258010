//! The equation: how every source offset ended.

use std::{fmt, ops::AddAssign};

use serde::Serialize;
use streamgauge_chain::Outcomes;

/// The terms of the equation, of one partition or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Terms {
    /// End less start of the source.
    pub offsets: i64,
    /// See [`Outcomes`].
    pub counted: u64,
    /// See [`Outcomes`].
    pub duplicate: u64,
    /// See [`Outcomes`].
    pub late: u64,
    /// See [`Outcomes`].
    pub dead_lettered: u64,
    /// See [`Outcomes`].
    pub missing: u64,
    /// See [`Outcomes`].
    pub no_record: u64,
    /// Offsets that no valid batch covers yet.
    pub in_flight: i64,
}

impl Terms {
    /// The terms of a source of so many offsets.
    pub const fn new(offsets: i64, outcomes: &Outcomes, in_flight: i64) -> Self {
        Self {
            offsets,
            counted: outcomes.counted,
            duplicate: outcomes.duplicate,
            late: outcomes.late,
            dead_lettered: outcomes.dead_lettered,
            missing: outcomes.missing,
            no_record: outcomes.no_record,
            in_flight,
        }
    }

    /// The terms after the offsets, in the order in which they are printed.
    pub const fn counts(&self) -> [u64; 6] {
        [
            self.counted,
            self.duplicate,
            self.late,
            self.dead_lettered,
            self.missing,
            self.no_record,
        ]
    }
}

impl AddAssign for Terms {
    fn add_assign(&mut self, other: Self) {
        self.offsets = self.offsets.saturating_add(other.offsets);
        self.counted = self.counted.saturating_add(other.counted);
        self.duplicate = self.duplicate.saturating_add(other.duplicate);
        self.late = self.late.saturating_add(other.late);
        self.dead_lettered = self.dead_lettered.saturating_add(other.dead_lettered);
        self.missing = self.missing.saturating_add(other.missing);
        self.no_record = self.no_record.saturating_add(other.no_record);
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [counted, duplicate, late, dead, missing, no_record] = self.counts().map(whole);
        write!(
            f,
            "end - start = {} = {counted} counted + {duplicate} duplicate + {late} late + {dead} dead-lettered \
             + {missing} missing + {no_record} no record + {} in flight",
            whole(self.offsets),
            whole(self.in_flight),
        )
    }
}

/// A whole number with its thousands apart.
pub fn whole(number: impl fmt::Display) -> String {
    let text = number.to_string();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.as_str()),
    };
    let mut grouped = String::from(sign);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_equation_is_readable() {
        let outcomes = Outcomes {
            counted: 1_234_567,
            late: 2,
            ..Outcomes::default()
        };
        let mut sum = Terms::default();
        sum += Terms::new(1_234_570, &outcomes, 1);
        assert_eq!(
            sum.to_string(),
            "end - start = 1,234,570 = 1,234,567 counted + 0 duplicate + 2 late + 0 dead-lettered + 0 missing \
             + 0 no record + 1 in flight"
        );
        assert_eq!(
            [whole(-1_000), whole(999), whole(0)],
            ["-1,000", "999", "0"]
        );
    }
}
