//! Bounds how many distinct keys a series may have per hour of event time.
//!
//! Beyond the bound, new keys fold into `(other)`: sums stay right and memory stays bounded. The
//! bound holds per partition and per owner; after a hand-over an hour may gain keys once more,
//! which costs memory but never correctness.

use std::collections::VecDeque;

use hashbrown::{HashMap, HashTable};

/// The key that takes what is beyond the bound.
pub const OTHER: &str = "(other)";

/// Hours of event time, over all series, whose keys are remembered; the longest known goes first.
const HOURS_MAX: usize = 256;

/// The keys known per series and hour.
#[derive(Debug)]
pub struct KeyBudget {
    keys_max: usize,
    hours: HashMap<(u16, i64), HashTable<u64>>,
    order: VecDeque<(u16, i64)>,
}

impl KeyBudget {
    /// Allows `keys_max` keys per series and hour.
    pub fn new(keys_max: usize) -> Self {
        Self {
            keys_max,
            hours: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Whether a key, known by its hash, may have a cell of its own in this hour.
    pub fn admit(&mut self, series: u16, hour: i64, key_hash: u64) -> bool {
        let place = (series, hour);
        if !self.hours.contains_key(&place) {
            if self.order.len() >= HOURS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.hours.remove(&oldest);
            }
            self.order.push_back(place);
        }
        let keys = self.hours.entry(place).or_default();
        if keys.find(key_hash, |known| *known == key_hash).is_some() {
            return true;
        }
        if keys.len() >= self.keys_max {
            return false;
        }
        keys.insert_unique(key_hash, key_hash, |known| *known);
        true
    }

    /// The memory that the known keys take.
    pub fn memory_bytes(&self) -> usize {
        self.hours.values().map(HashTable::allocation_size).sum()
    }

    /// How many series and hours are remembered.
    pub fn hours(&self) -> usize {
        self.hours.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spreads small numbers as a hash would.
    fn hash(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn known_keys_stay_and_new_ones_fold() {
        let mut budget = KeyBudget::new(3);
        assert!((0..3).all(|n| budget.admit(0, 7, hash(n))));
        assert!(!budget.admit(0, 7, hash(3)));
        assert!(budget.admit(0, 7, hash(1)), "a known key keeps its cell");
        assert!(
            budget.admit(0, 8, hash(3)),
            "another hour has its own budget"
        );
        assert!(
            budget.admit(1, 7, hash(3)),
            "another series has its own budget"
        );
    }

    #[test]
    fn hours_are_bounded() {
        let mut budget = KeyBudget::new(10);
        for hour in 0..10 * HOURS_MAX as i64 {
            assert!(budget.admit(0, hour, hash(1)));
        }
        assert_eq!(budget.hours(), HOURS_MAX);
    }
}
