//! How far an import is, when batches are acknowledged out of order. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which records are settled: all below `done`, and some ranges beyond.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Every record below this ordinal is settled.
    pub done: u64,
    /// Settled ranges beyond, by start; they neither touch each other nor `done`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beyond: BTreeMap<u64, u64>,
    /// Records below this ordinal may have been submitted.
    pub reserved: u64,
    /// Events acknowledged, as far as is known.
    #[serde(default)]
    pub accepted: u64,
}

impl Progress {
    /// Settles the records `[from, to)`.
    pub fn settle(&mut self, from: u64, to: u64) {
        if from < to && to > self.done {
            let end = self.beyond.entry(from).or_insert(to);
            *end = (*end).max(to);
        }
        while let Some(entry) = self.beyond.first_entry() {
            if *entry.key() > self.done {
                break;
            }
            self.done = self.done.max(entry.remove());
        }
    }

    /// Whether a record is settled.
    pub fn is_settled(&self, ordinal: u64) -> bool {
        let within = |(_, to): (&u64, &u64)| ordinal < *to;
        ordinal < self.done
            || self
                .beyond
                .range(..=ordinal)
                .next_back()
                .is_some_and(within)
    }

    /// Records that may have been submitted and whose fate is not known.
    pub fn uncertain(&self) -> u64 {
        let settled: u64 = self.beyond.iter().map(|(from, to)| to - from).sum();
        self.reserved
            .saturating_sub(self.done)
            .saturating_sub(settled)
    }

    /// Nothing is under way: what is not settled was never submitted, except for what lies below
    /// `unsettled_to`, whose fate is not known.
    pub fn release(&mut self, unsettled_to: u64) {
        let last = self.beyond.last_key_value().map_or(0, |(_, to)| *to);
        self.reserved = self.done.max(last).max(unsettled_to);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gaps_close() {
        let mut progress = Progress {
            reserved: 50,
            ..Progress::default()
        };
        progress.settle(20, 30);
        progress.settle(30, 40);
        assert_eq!((progress.done, progress.uncertain()), (0, 30));
        assert!(progress.is_settled(25) && !progress.is_settled(19) && !progress.is_settled(40));
        progress.settle(0, 20);
        assert_eq!((progress.done, progress.uncertain()), (40, 10));
        assert!(progress.beyond.is_empty());
    }

    #[test]
    fn what_is_released_is_what_never_went_out() {
        let mut progress = Progress {
            reserved: 500,
            ..Progress::default()
        };
        progress.settle(0, 10);
        progress.settle(20, 30);
        let mut all_settled = progress.clone();
        all_settled.release(0);
        assert_eq!((all_settled.reserved, all_settled.uncertain()), (30, 10));
        progress.release(40);
        assert_eq!((progress.reserved, progress.uncertain()), (40, 20));
    }

    proptest! {
        #[test]
        fn any_order_settles_the_same(order in Just((0u64..20).collect::<Vec<_>>()).prop_shuffle(), left_out in 0usize..20) {
            let mut progress = Progress { reserved: 200, ..Progress::default() };
            for batch in &order[..left_out] {
                progress.settle(batch * 10, batch * 10 + 10);
            }
            let settled: Vec<u64> = (0..200).filter(|ordinal| progress.is_settled(*ordinal)).collect();
            let expected: Vec<u64> = (0..200).filter(|ordinal| order[..left_out].contains(&(ordinal / 10))).collect();
            prop_assert_eq!(&settled, &expected);
            prop_assert_eq!(progress.uncertain(), 200 - settled.len() as u64);
        }
    }
}
