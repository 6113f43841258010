//! One reading of the dead-letter topic: what is there, and what became of it. Pure.
//!
//! It keeps a few words per dead letter that is asked for and per mark, and no record. A mark may come before the
//! copy of a dead letter that a crash wrote again, and in another partition, so that states are known only at the end.

use std::{collections::HashMap, sync::Arc};

use streamgauge_kafka::RecordRef;
use streamgauge_proto::v1;

use super::{
    filter::Filter,
    letter::{Kind, LetterId},
    mark::{Standing, State},
};
use crate::core::reject::Reason;

/// Source topics that are told apart; records of further ones are foreign.
const TOPICS_MAX: usize = 64;

/// Where a record lies in the dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    topic: u16,
    partition: i32,
    offset: i64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    place: Place,
    time_us: i64,
    reason: Reason,
    bytes: u32,
    copies: u32,
}

/// A dead letter that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Its identity.
    pub id: LetterId,
    /// Why it was refused.
    pub reason: Reason,
    /// Where its first copy lies.
    pub place: Place,
    /// When it was refused, microseconds since the Unix epoch.
    pub time_us: i64,
    /// Size of its key and value.
    pub bytes: usize,
    /// How often it is there.
    pub copies: u32,
    /// What became of it.
    pub standing: Standing,
}

impl Selected {
    /// Its place among all, in the order in which they were refused.
    pub fn order(&self) -> (i64, Place) {
        (self.time_us, self.place)
    }
}

/// What a reading has found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What was asked for, in the order in which it was refused.
    pub selected: Vec<Selected>,
    /// What the filter matches but for its states, by state.
    pub counts: v1::DeadLetterCounts,
    /// Records that were read.
    pub scanned: u64,
    /// Records that are neither dead letters nor marks.
    pub foreign: u64,
}

/// The reading.
#[derive(Debug)]
pub struct Index {
    filter: Filter,
    topics: Vec<Arc<str>>,
    entries: HashMap<Key, Entry>,
    standings: HashMap<Key, Standing>,
    scanned: u64,
    foreign: u64,
}

impl Index {
    /// Of nothing yet.
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            topics: Vec::new(),
            entries: HashMap::new(),
            standings: HashMap::new(),
            scanned: 0,
            foreign: 0,
        }
    }

    /// Takes a record of a partition of the dead-letter topic in.
    pub fn take(&mut self, partition: i32, record: &RecordRef<'_>) {
        self.scanned += 1;
        let kind = Kind::of(record);
        let id = match &kind {
            Kind::Letter(letter) => &letter.id,
            Kind::Mark(mark) => &mark.id,
            Kind::Foreign => {
                self.foreign += 1;
                return;
            }
        };
        let Some(key) = self.key(id) else {
            self.foreign += 1;
            return;
        };
        match kind {
            Kind::Mark(mark) => self.standings.entry(key).or_default().take(&mark),
            Kind::Letter(letter) if self.filter.matches(&letter, record.payload) => {
                let place = Place {
                    partition,
                    offset: record.offset,
                };
                let entry = self.entries.entry(key).or_insert(Entry {
                    place,
                    time_us: letter.time_us,
                    reason: letter.reason,
                    bytes: size(record),
                    copies: 0,
                });
                entry.copies += 1;
            }
            _ => {}
        }
    }

    fn key(&mut self, id: &LetterId) -> Option<Key> {
        let known = self.topics.iter().position(|topic| *topic == id.topic);
        let topic = match known {
            Some(topic) => topic,
            None if self.topics.len() < TOPICS_MAX => {
                self.topics.push(id.topic.clone());
                self.topics.len() - 1
            }
            None => return None,
        };
        Some(Key {
            topic: topic as u16,
            partition: id.partition,
            offset: id.offset,
        })
    }

    /// Everything was read.
    pub fn finish(self) -> Found {
        let mut found = Found {
            scanned: self.scanned,
            foreign: self.foreign,
            ..Found::default()
        };
        let states = &self.filter.states;
        if states.is_empty() {
            found.selected.reserve_exact(self.entries.len());
        }
        for (key, entry) in self.entries {
            let standing = self.standings.get(&key).copied().unwrap_or_default();
            *count(&mut found.counts, standing.state) += 1;
            if !states.is_empty() && !states.contains(&standing.state) {
                continue;
            }
            found.selected.push(Selected {
                id: LetterId {
                    topic: self.topics[usize::from(key.topic)].clone(),
                    partition: key.partition,
                    offset: key.offset,
                },
                reason: entry.reason,
                place: entry.place,
                time_us: entry.time_us,
                bytes: entry.bytes as usize,
                copies: entry.copies,
                standing,
            });
        }
        found.selected.sort_unstable_by_key(Selected::order);
        found
    }
}

fn size(record: &RecordRef<'_>) -> u32 {
    let bytes = record.key.map_or(0, <[u8]>::len) + record.payload.map_or(0, <[u8]>::len);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn count(counts: &mut v1::DeadLetterCounts, state: State) -> &mut u64 {
    match state {
        State::Open => &mut counts.open,
        State::Unfinished => &mut counts.unfinished,
        State::Replayed => &mut counts.replayed,
        State::Dropped => &mut counts.dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desk::{
        mark::Mark,
        test_records::{chunk, letter_headers},
    };

    struct Bench {
        index: Index,
        next: i64,
    }

    impl Bench {
        fn new(states: &[State]) -> Self {
            let states = states.iter().map(|state| state.as_str().to_owned());
            let filter = v1::DeadLetterFilter {
                states: states.collect(),
                ..v1::DeadLetterFilter::default()
            };
            let index = Index::new(Filter::read(&filter).unwrap());
            Self { index, next: 0 }
        }

        fn write(&mut self, partition: i32, headers: &[(String, String)]) {
            let chunk = chunk(self.next, Some(b"k"), Some(b"value"), headers);
            self.next += 1;
            self.index.take(partition, &chunk.get(0).unwrap());
        }

        fn letter(&mut self, partition: i32, offset: i64) {
            let headers = letter_headers("events", 0, offset, Reason::Empty, 100 - offset);
            self.write(partition, &headers);
        }

        fn mark(&mut self, offset: i64, state: State, time_us: i64) {
            let id = LetterId {
                topic: "events".into(),
                partition: 0,
                offset,
            };
            let headers = Mark { id, state, time_us }.headers("me", "");
            let headers = headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value));
            self.write(0, &headers.collect::<Vec<_>>());
        }
    }

    #[test]
    fn copies_are_one_letter_and_marks_are_none() {
        let mut bench = Bench::new(&[]);
        bench.letter(0, 5);
        bench.letter(1, 5);
        bench.letter(0, 6);
        bench.mark(5, State::Replayed, 200);
        bench.write(0, &[(String::from("any"), String::from("thing"))]);
        let found = bench.index.finish();
        assert_eq!((found.scanned, found.foreign), (5, 1));
        let seen: Vec<_> = found
            .selected
            .iter()
            .map(|one| (one.id.offset, one.copies, one.standing.state, one.bytes))
            .collect();
        // In the order of their times.
        assert_eq!(seen, [(6, 1, State::Open, 6), (5, 2, State::Replayed, 6)]);
        assert_eq!((found.counts.open, found.counts.replayed), (1, 1));
    }

    #[test]
    fn a_state_is_known_whatever_the_order_of_reading() {
        let mut bench = Bench::new(&[State::Open]);
        bench.mark(5, State::Dropped, 200);
        bench.letter(0, 5);
        bench.letter(0, 6);
        let found = bench.index.finish();
        assert_eq!(found.selected.len(), 1);
        assert_eq!(found.selected[0].id.offset, 6);
        assert_eq!((found.counts.open, found.counts.dropped), (1, 1));
    }

    #[test]
    fn no_more_topics_are_told_apart_than_the_bound() {
        let mut bench = Bench::new(&[]);
        for number in 0..TOPICS_MAX + 3 {
            let headers = letter_headers(&format!("t{number}"), 0, 1, Reason::Empty, 1);
            bench.write(0, &headers);
        }
        let found = bench.index.finish();
        assert_eq!((found.selected.len(), found.foreign), (TOPICS_MAX, 3));
    }
}
