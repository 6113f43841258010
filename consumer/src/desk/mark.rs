//! What became of a dead letter, written beside it: marks, and how they add up to a state. Pure.
//!
//! The dead-letter topic is never rewritten. A mark is one more record in the partition where the dead letter lies,
//! about the identity of that dead letter. A mark lives longer than what it is about, for it was written later, and
//! retention takes both by their age. The latest mark holds.

use streamgauge_kafka::Headers;

use super::letter::{LetterId, source};
use crate::dead_letter::{BY, EDIT, MARK, SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC, TIME};

/// Longest text of an edit that is kept in a mark, in bytes.
const EDIT_BYTES_MAX: usize = 1_024;

/// The state of a dead letter. The order decides between marks of the same microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Nothing became of it yet.
    #[default]
    Open,
    /// A replay began and did not say how it ended: the record may or may not lie in the source again.
    Unfinished,
    /// Its record was written to the source again.
    Replayed,
    /// Somebody laid it aside.
    Dropped,
}

impl State {
    /// All of them.
    pub const ALL: [State; 4] = [
        State::Open,
        State::Unfinished,
        State::Replayed,
        State::Dropped,
    ];

    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Unfinished => "unfinished",
            State::Replayed => "replayed",
            State::Dropped => "dropped",
        }
    }

    /// The state of a stable text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The dead letter that it is about.
    pub id: LetterId,
    /// What became of it.
    pub state: State,
    /// When, microseconds since the Unix epoch.
    pub time_us: i64,
}

impl Mark {
    /// Whether a record of the dead-letter topic is a mark and no dead letter.
    pub fn is_mark(mut headers: Headers<'_>) -> bool {
        headers.next().is_some_and(|(name, _)| name == MARK)
    }

    /// As headers; `by` is the instance that writes it.
    pub fn headers(&self, by: &str, edit: &str) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (MARK, self.state.as_str().to_owned()),
            (SOURCE_TOPIC, self.id.topic.to_string()),
            (SOURCE_PARTITION, self.id.partition.to_string()),
            (SOURCE_OFFSET, self.id.offset.to_string()),
            (TIME, self.time_us.to_string()),
            (BY, by.to_owned()),
        ];
        if !edit.is_empty() {
            let end = edit.floor_char_boundary(EDIT_BYTES_MAX);
            headers.push((EDIT, edit[..end].to_owned()));
        }
        headers
    }

    /// Reads what [`Mark::headers`] wrote.
    pub fn read(headers: Headers<'_>) -> Option<Self> {
        let text = |name: &str| {
            let mut headers = headers;
            let (_, value) = headers.find(|(found, _)| *found == name)?;
            std::str::from_utf8(value?).ok()
        };
        Some(Self {
            id: source(text)?,
            state: State::parse(text(MARK)?)?,
            time_us: text(TIME)?.parse().ok()?,
        })
    }
}

/// The state that marks add up to, whatever the order in which they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// When the mark that holds was written; 0 without one.
    pub time_us: i64,
    /// What it says.
    pub state: State,
    /// When a replay first began, and when one first was at its end.
    first_unfinished_us: i64,
    first_replayed_us: i64,
}

/// The time of a mark that is not there.
const NEVER: i64 = i64::MAX;

impl Default for Standing {
    fn default() -> Self {
        Self {
            time_us: 0,
            state: State::Open,
            first_unfinished_us: NEVER,
            first_replayed_us: NEVER,
        }
    }
}

impl Standing {
    /// Takes a mark in.
    pub fn take(&mut self, mark: &Mark) {
        (self.time_us, self.state) = (self.time_us, self.state).max((mark.time_us, mark.state));
        let first = match mark.state {
            State::Unfinished => &mut self.first_unfinished_us,
            State::Replayed => &mut self.first_replayed_us,
            State::Open | State::Dropped => return,
        };
        *first = mark.time_us.min(*first);
    }

    /// Since when its record may lie in the source again: that of the first replay, for a later one ends as a duplicate
    /// of it, or counts by itself. An open one was surely not written by the replay that it was left open by.
    pub fn begun_us(&self) -> Option<i64> {
        let first = match self.state {
            State::Open => self.first_replayed_us,
            _ => self.first_replayed_us.min(self.first_unfinished_us),
        };
        (first != NEVER).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desk::test_records::chunk;

    fn mark(state: State, time_us: i64) -> Mark {
        let id = LetterId {
            topic: "events".into(),
            partition: 2,
            offset: 9,
        };
        Mark { id, state, time_us }
    }

    fn owned(headers: &[(&str, String)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
        headers.iter().map(owned).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        for state in State::ALL {
            let mark = mark(state, 5);
            let headers = owned(&mark.headers("here", &"é".repeat(EDIT_BYTES_MAX)));
            let chunk = chunk(0, None, Some(b""), &headers);
            let headers = chunk.get(0).unwrap().headers;
            assert!(Mark::is_mark(headers));
            assert_eq!(Mark::read(headers), Some(mark));
        }
    }

    #[test]
    fn the_latest_mark_holds() {
        let mut standing = Standing::default();
        assert_eq!(standing.state, State::Open);
        for (state, time_us, expected) in [
            (State::Unfinished, 10, State::Unfinished),
            (State::Replayed, 11, State::Replayed),
            (State::Unfinished, 10, State::Replayed),
            (State::Open, 12, State::Open),
        ] {
            standing.take(&mark(state, time_us));
            assert_eq!(standing.state, expected);
        }
    }

    #[test]
    fn what_may_lie_in_the_source_is_known_from_its_first_replay_on() {
        let begun = |marks: &[(State, i64)]| {
            let mut standing = Standing::default();
            for (state, time_us) in marks {
                standing.take(&mark(*state, *time_us));
            }
            standing.begun_us()
        };
        let (open, unfinished) = (State::Open, State::Unfinished);
        let (replayed, dropped) = (State::Replayed, State::Dropped);
        assert_eq!(begun(&[]), None);
        assert_eq!(begun(&[(dropped, 5)]), None);
        assert_eq!(begun(&[(unfinished, 5)]), Some(5));
        assert_eq!(begun(&[(unfinished, 5), (open, 6)]), None, "not written");
        let twice = [(unfinished, 5), (replayed, 6), (unfinished, 90)];
        assert_eq!(begun(&twice), Some(5));
        let laid_aside = [(unfinished, 5), (replayed, 6), (dropped, 9)];
        assert_eq!(begun(&laid_aside), Some(5), "it was written before");
        let open_again = [(unfinished, 5), (replayed, 6), (unfinished, 9), (open, 10)];
        assert_eq!(begun(&open_again), Some(6));
    }

    proptest! {
        #[test]
        fn the_order_of_reading_does_not_matter(
            marks in prop::collection::vec((0usize..4, 1i64..6), 0..8).prop_shuffle(), turn in 0usize..8
        ) {
            let fold = |marks: &[(usize, i64)]| {
                let mut standing = Standing::default();
                for (state, time_us) in marks {
                    standing.take(&mark(State::ALL[*state], *time_us));
                }
                standing
            };
            let mut turned = marks.clone();
            let turn = turn % turned.len().max(1);
            turned.rotate_left(turn);
            prop_assert_eq!(fold(&marks), fold(&turned));
        }
    }
}
