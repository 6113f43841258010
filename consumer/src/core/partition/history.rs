//! What the chain says of log time within the dedupe horizon.
//!
//! A record whose own time ran ahead was refused by the clock of the owner that judged it, and no clock tells that
//! later. The chain does: such a record did not move log time, and no batch ends with a log time at or beyond that of a
//! record that it refused. So a record was refused if and only if it lies ahead of the log time with which the batch
//! that covers it ends. Log time at the head says less, for it may have reached the record's time since.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use streamgauge_chain::Range;

use crate::core::dedupe::Horizon;

/// Stretches that are told apart. There is one for each log time with which a batch with dead letters ends, some 13,000
/// in ten minutes at the worst; beyond the bound the oldest are told as one.
const STRETCHES_MAX: usize = 65_536;

/// A place on the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The head there.
    #[serde(rename = "h")]
    pub head: i64,
    /// The next offset of `metrics-data`.
    #[serde(rename = "d")]
    pub delta_position: i64,
    /// Log time there, microseconds: no record below the head has moved it beyond.
    #[serde(rename = "t")]
    pub log_time_us: i64,
}

/// Where an owner that starts later must begin to know what was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The latest place that is known to lie before the dedupe horizon.
    #[serde(flatten)]
    pub place: Place,
    /// Whether any batch since holds dead letters. Without, none of its records was refused, and there is nothing to
    /// learn from them.
    #[serde(rename = "r")]
    pub refusing: bool,
}

/// A run of offsets of which some may have been refused.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    from: i64,
    to: i64,
    log_time_us: i64,
}

/// The batches that count, as far back as the dedupe horizon reaches.
#[derive(Debug)]
pub(super) struct History {
    horizon: Horizon,
    /// Where each division of the horizon began, oldest first; never empty.
    places: VecDeque<Place>,
    stretches: VecDeque<Stretch>,
}

impl History {
    /// Nothing is known of what lies before this place but its log time.
    pub fn starting_at(horizon: Horizon, place: Place) -> Self {
        Self {
            horizon,
            places: VecDeque::from([place]),
            stretches: VecDeque::new(),
        }
    }

    /// Forgets all, as [`History::starting_at`].
    pub fn restart(&mut self, place: Place) {
        *self = Self::starting_at(self.horizon, place);
    }

    /// Takes in the next batch that counts: its range, its dead letters, and where the chain is behind it.
    pub fn add(&mut self, range: Range, dead_lettered: u64, behind: Place) {
        if dead_lettered > 0 {
            self.add_stretch(Stretch {
                from: range.from(),
                to: range.to(),
                log_time_us: behind.log_time_us,
            });
        }
        let slice = |place: &Place| self.horizon.slice(place.log_time_us);
        if self
            .places
            .back()
            .is_none_or(|last| slice(last) < slice(&behind))
        {
            self.places.push_back(behind);
        }
        self.forget(self.horizon.start_us(behind.log_time_us));
    }

    /// With the same log time at its end the next stretch goes on with the last one: nothing between them lies ahead of
    /// that either.
    fn add_stretch(&mut self, next: Stretch) {
        match self.stretches.back_mut() {
            Some(last) if last.log_time_us == next.log_time_us => last.to = next.to,
            _ => self.stretches.push_back(next),
        }
        if self.stretches.len() > STRETCHES_MAX
            && let Some(oldest) = self.stretches.pop_front()
            && let Some(second) = self.stretches.front_mut()
        {
            second.from = oldest.from;
        }
    }

    /// Keeps one place from before this log time, and what lies behind that place.
    fn forget(&mut self, start_us: i64) {
        while self
            .places
            .get(1)
            .is_some_and(|place| place.log_time_us < start_us)
        {
            self.places.pop_front();
        }
        let from = self.first().head;
        while self
            .stretches
            .front()
            .is_some_and(|stretch| stretch.to <= from)
        {
            self.stretches.pop_front();
        }
    }

    fn first(&self) -> Place {
        self.places.front().copied().unwrap_or_default()
    }

    /// Whether the record at `offset`, below the head, was refused because its time ran ahead.
    pub fn refused(&self, offset: i64, time_us: i64) -> bool {
        let first = self.first();
        if offset < first.head {
            return first.log_time_us > 0 && time_us > first.log_time_us;
        }
        let at = self
            .stretches
            .partition_point(|stretch| stretch.to <= offset);
        self.stretches
            .get(at)
            .is_some_and(|stretch| stretch.from <= offset && time_us > stretch.log_time_us)
    }

    /// The source offset below which nothing belongs to the horizon of `log_time_us`, as far as is known.
    pub fn horizon_offset(&self, log_time_us: i64) -> Option<i64> {
        let first = self.first();
        let is_before = first.log_time_us < self.horizon.start_us(log_time_us);
        is_before.then_some(first.head)
    }

    /// What goes with a committed offset.
    pub fn base(&self) -> Base {
        Base {
            place: self.first(),
            refusing: !self.stretches.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        History::starting_at(Horizon::new(800), Place::default())
    }

    fn add(history: &mut History, from: i64, to: i64, dead_lettered: u64, log_time_us: i64) {
        let behind = Place {
            head: to,
            delta_position: to,
            log_time_us,
        };
        history.add(
            Range::new(from, to).expect("not empty"),
            dead_lettered,
            behind,
        );
    }

    #[test]
    fn a_record_ahead_of_its_batch_was_refused_wherever_log_time_is_now() {
        let mut history = history();
        add(&mut history, 0, 10, 1, 1_000);
        add(&mut history, 10, 20, 0, 1_100);
        add(&mut history, 20, 30, 2, 1_200);
        for (offset, time_us, refused) in [
            (5, 1_000, false),
            (5, 1_001, true),
            (15, 1_150, false),
            (25, 1_200, false),
            (29, 1_250, true),
            (30, 9_999, false),
        ] {
            assert_eq!(
                history.refused(offset, time_us),
                refused,
                "{offset} {time_us}"
            );
        }
    }

    #[test]
    fn it_reaches_back_as_far_as_the_horizon_and_no_further() {
        let mut history = history();
        for number in 0..100 {
            add(&mut history, number * 10, number * 10 + 10, 1, number * 30);
            assert!(history.places.len() <= 11, "{:?}", history.places);
        }
        let start_us = Horizon::new(800).start_us(99 * 30);
        let base = history.base();
        assert!(base.refusing && base.place.log_time_us < start_us);
        assert!(base.place.log_time_us + 200 >= start_us, "{base:?}");
        assert_eq!(history.horizon_offset(99 * 30), Some(base.place.head));
        let oldest = history.stretches.front().expect("there");
        assert_eq!(oldest.from, base.place.head);
        // Before that only the log time is known.
        assert!(history.refused(0, base.place.log_time_us + 1));
        assert!(!history.refused(0, base.place.log_time_us));
    }

    #[test]
    fn where_log_time_stands_still_it_does_not_grow() {
        let mut history = history();
        for number in 0..1_000 {
            add(
                &mut history,
                number,
                number + 1,
                number.unsigned_abs() % 2,
                5_000,
            );
        }
        assert_eq!((history.places.len(), history.stretches.len()), (2, 1));
        assert!(history.refused(1, 5_001) && !history.refused(999, 5_000));
    }
}
