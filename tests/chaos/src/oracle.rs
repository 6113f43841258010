//! The oracle: what the store must say, computed from nothing but what was acknowledged.

use std::collections::{BTreeMap, HashMap};

use crate::log_check::EventKey;

/// Event types of the load.
pub const TYPES: [&str; 4] = ["page_view", "click", "scroll", "purchase"];
/// Pages of the load.
pub const PAGES: u16 = 20;

/// Where an event is counted: its page and its type, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// The page.
    pub page: u16,
    /// The type.
    pub kind: u8,
}

impl Cell {
    /// The page's URL.
    pub fn page_url(self) -> String {
        format!("/page/{}", self.page)
    }

    /// The type's name.
    pub fn event_type(self) -> &'static str {
        TYPES[usize::from(self.kind) % TYPES.len()]
    }
}

/// What was acknowledged of one load.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// The load's name, with which its ids and users begin.
    pub run: String,
    /// Acknowledged events.
    pub events: u64,
    /// Of each user, how many sequence numbers from 0 on are acknowledged.
    pub sequences: Vec<u32>,
    /// Events per user and cell.
    pub cells: HashMap<(u32, Cell), u64>,
    /// How often an event was submitted, where it was more than once.
    pub attempts: HashMap<EventKey, u16>,
}

impl Tally {
    /// An acknowledged event.
    pub fn add(&mut self, (user, sequence): EventKey, cell: Cell) {
        let place = user as usize;
        if self.sequences.len() <= place {
            self.sequences.resize(place + 1, 0);
        }
        self.sequences[place] = self.sequences[place].max(sequence + 1);
        self.events += 1;
        *self.cells.entry((user, cell)).or_default() += 1;
    }

    /// Adds what another worker's users did.
    pub fn merge(&mut self, other: Self) {
        self.events += other.events;
        if self.sequences.len() < other.sequences.len() {
            self.sequences.resize(other.sequences.len(), 0);
        }
        for (place, count) in other.sequences.into_iter().enumerate() {
            self.sequences[place] = self.sequences[place].max(count);
        }
        for (key, count) in other.cells {
            *self.cells.entry(key).or_default() += count;
        }
        self.attempts.extend(other.attempts);
    }

    /// The user's id.
    pub fn user_id(&self, user: u32) -> String {
        user_id(&self.run, user)
    }

    /// Events per page and type of each user.
    pub fn by_user(&self) -> BTreeMap<u32, BTreeMap<Cell, u64>> {
        let mut users: BTreeMap<u32, BTreeMap<Cell, u64>> = BTreeMap::new();
        for ((user, cell), count) in &self.cells {
            users.entry(*user).or_default().insert(*cell, *count);
        }
        users
    }

    /// Events per key, whatever the key is.
    pub fn by<K: Ord>(&self, key: impl Fn(Cell) -> K) -> BTreeMap<K, u64> {
        let mut sums = BTreeMap::new();
        for ((_, cell), count) in &self.cells {
            *sums.entry(key(*cell)).or_default() += count;
        }
        sums
    }
}

/// A user's id in a run.
pub fn user_id(run: &str, user: u32) -> String {
    format!("{run}-u{user}")
}

/// Sums how much is missing and how much is too much, key by key.
pub fn differences<K: Ord>(expected: &BTreeMap<K, u64>, found: &BTreeMap<K, u64>) -> (u64, u64) {
    let (mut lost, mut double) = (0, 0);
    for (key, count) in expected {
        let found = found.get(key).copied().unwrap_or(0);
        lost += count.saturating_sub(found);
        double += found.saturating_sub(*count);
    }
    let foreign = found.iter().filter(|(key, _)| !expected.contains_key(key));
    double += foreign.map(|(_, count)| count).sum::<u64>();
    (lost, double)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deficit_does_not_hide_a_surplus() {
        let expected = BTreeMap::from([("a", 5), ("b", 5)]);
        let found = BTreeMap::from([("a", 4), ("b", 6), ("c", 2)]);
        assert_eq!(differences(&expected, &found), (1, 3));
        assert_eq!(differences(&expected, &expected), (0, 0));
    }

    #[test]
    fn workers_with_users_of_their_own_merge() {
        let cell = Cell { page: 1, kind: 0 };
        let mut one = Tally::default();
        one.add((0, 0), cell);
        one.add((0, 1), cell);
        let mut other = Tally::default();
        other.add((1, 0), cell);
        one.merge(other);
        assert_eq!((one.events, one.sequences.clone()), (3, vec![2, 1]));
        assert_eq!(one.by(Cell::event_type), BTreeMap::from([("page_view", 3)]));
        assert_eq!(one.by_user()[&0], BTreeMap::from([(cell, 2)]));
    }
}
