//! A range of log time, and what the batches that cover it say. Pure.

use clap::Args;
use streamgauge_audit::{PartitionFacts, Terms};

use crate::{error::CliError, times};

/// Which time is audited.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which time")]
pub struct RangeArgs {
    /// From this log time on: a date, RFC 3339, now-1h, or seconds since 1970 [default: the beginning]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Before this log time [default: the end]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
}

/// A range of log time, in microseconds; open where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// From here on.
    pub from_us: Option<i64>,
    /// Before this.
    pub to_us: Option<i64>,
}

impl RangeArgs {
    /// The range in effect; `None` when everything is audited.
    ///
    /// # Errors
    /// When a time cannot be read, or the range is empty.
    pub fn resolve(&self, now_us: i64) -> Result<Option<TimeRange>, CliError> {
        let read = |text: &String| {
            times::instant(text, now_us).map_err(|error| CliError::usage(error.to_string()))
        };
        let from_us = self.from.as_ref().map(read).transpose()?;
        let to_us = self.to.as_ref().map(read).transpose()?;
        if let (Some(from), Some(to)) = (from_us, to_us)
            && from >= to
        {
            return Err(CliError::usage(format!(
                "the range is empty: from {} to {}",
                times::show(from),
                times::show(to)
            )));
        }
        let is_open = from_us.is_none() && to_us.is_none();
        Ok((!is_open).then_some(TimeRange { from_us, to_us }))
    }
}

impl TimeRange {
    /// The range for people.
    pub fn show(self) -> String {
        let show =
            |time: Option<i64>, open: &str| time.map_or_else(|| open.to_owned(), times::show);
        format!(
            "{} to {}",
            show(self.from_us, "the beginning"),
            show(self.to_us, "the end")
        )
    }
}

/// What a partition says of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RangeLine {
    /// The partition.
    pub partition: i32,
    /// The source offsets of that time.
    pub from: i64,
    /// See `from`.
    pub to: i64,
    /// The offsets of the whole batches that cover them, and of what is in flight.
    pub covered_from: i64,
    /// See `covered_from`.
    pub covered_to: i64,
    /// Their terms.
    #[serde(flatten)]
    pub terms: Terms,
    /// Batches that cover them.
    pub batches: u64,
}

impl RangeLine {
    /// What the facts of a partition say of the range that its fold was asked for; `None` when it was asked for none.
    pub fn of(facts: &PartitionFacts) -> Option<Self> {
        let covered = facts.fold.covered?;
        let ledger = &facts.fold.ledger;
        let (from, to) = covered.asked;
        // Of what lies before the books begin nothing is known.
        let covered_from = covered.range.0.max(ledger.base()).min(covered.range.1);
        let covered_to = covered.range.1;
        let in_flight = (to - ledger.head().max(covered_from)).max(0);
        let offsets = covered_to - covered_from;
        Some(Self {
            partition: facts.partition,
            from,
            to,
            covered_from,
            covered_to,
            terms: Terms::new(offsets, &covered.outcomes, in_flight),
            batches: covered.batches,
        })
    }

    /// Whether whole batches made the range wider.
    pub const fn is_wider(&self) -> bool {
        self.covered_from < self.from || self.to < self.covered_to
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use streamgauge_audit::Fold;
    use streamgauge_chain::Outcomes;
    use streamgauge_proto::v1::DeltaBatch;

    use super::*;

    const NOW: i64 = 1_431_820_800_000_000;

    fn resolve(from: Option<&str>, to: Option<&str>) -> Result<Option<TimeRange>, CliError> {
        let args = RangeArgs {
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        args.resolve(NOW)
    }

    #[test]
    fn ranges_are_read_as_queries_read_them() {
        assert_eq!(resolve(None, None).expect("none"), None);
        let hour = resolve(Some("now-1h"), None)
            .expect("a range")
            .expect("one");
        assert_eq!(hour.from_us, Some(NOW - 3_600_000_000));
        assert_eq!(hour.show(), "2015-05-16T23:00:00Z to the end");
        assert!(resolve(Some("now"), Some("now-1h")).is_err());
        assert!(resolve(Some("yesterday"), None).is_err());
    }

    fn batch(from: i64, to: i64) -> Vec<u8> {
        let outcomes = Outcomes {
            late: (to - from) as u64,
            ..Outcomes::default()
        };
        DeltaBatch {
            from,
            to,
            outcomes: Some(outcomes.into()),
            ..DeltaBatch::default()
        }
        .encode_to_vec()
    }

    fn line(chain: &[(i64, i64)], high: i64, asked: (i64, i64)) -> RangeLine {
        let mut fold = Fold::new(0, None).over(Some(asked));
        for (at, (from, to)) in (0..).zip(chain) {
            fold.record(at, Some(&batch(*from, *to)));
        }
        let facts = PartitionFacts {
            partition: 0,
            source_low: 0,
            source_high: high,
            fold,
            dead_letters: None,
            store: None,
        };
        RangeLine::of(&facts).expect("asked for")
    }

    #[test]
    fn an_edge_inside_a_batch_takes_the_whole_batch() {
        let found = line(&[(0, 10), (10, 20), (20, 30)], 35, (12, 33));
        assert_eq!((found.covered_from, found.covered_to), (10, 33));
        assert_eq!((found.terms.late, found.terms.in_flight), (20, 3));
        assert!(found.is_wider());
        assert!(!line(&[(0, 10), (10, 20)], 20, (10, 20)).is_wider());
    }

    proptest! {
        /// Whatever the range, its terms add up to the offsets that it covers.
        #[test]
        fn the_terms_of_a_range_add_up(lengths in prop::collection::vec(1i64..20, 0..30), flight in 0i64..30, from in 0i64..400, length in 0i64..400) {
            let mut at = 0;
            let chain: Vec<(i64, i64)> = lengths.iter().map(|length| { at += length; (at - length, at) }).collect();
            let high = at + flight;
            let from = from.min(high);
            let to = (from + length).min(high);
            let found = line(&chain, high, (from, to));
            let sum: u64 = found.terms.counts().into_iter().sum();
            prop_assert_eq!(sum as i64 + found.terms.in_flight, found.terms.offsets);
            prop_assert!(found.covered_from <= from && to <= found.covered_to);
        }
    }
}
