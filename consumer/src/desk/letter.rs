//! What a record of the dead-letter topic is: a dead letter, a mark about one, or something foreign. Pure.
//!
//! Our own headers come first, and `sg-attempts` is the last of them; those of the refused record follow and may have
//! any name, ours included. A mark is told by its very first header, which a dead letter never begins with.

use std::{collections::HashMap, sync::Arc};

use streamgauge_kafka::{Headers, RecordRef};

use super::mark::Mark;
use crate::{
    core::reject::Reason,
    dead_letter::{
        ATTEMPTS, DETAIL, GROUP, KEY_TRUNCATED, ORIGINAL_HEADERS, REASON, SOURCE_OFFSET,
        SOURCE_PARTITION, SOURCE_TIME, SOURCE_TOPIC, STEP, TIME, TRUNCATED,
    },
    provenance::First,
};

/// Our own headers are far fewer; more than this are not ours.
const OWN_HEADERS_MAX: usize = 32;

/// The identity of a dead letter: where its record came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LetterId {
    /// The source topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl std::fmt::Display for LetterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// What a dead letter says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its identity.
    pub id: LetterId,
    /// Why it was refused.
    pub reason: Reason,
    /// What was found in the record.
    pub detail: String,
    /// The step that refused it.
    pub step: String,
    /// The group that refused it.
    pub group: String,
    /// When, microseconds since the Unix epoch.
    pub time_us: i64,
    /// The record's own time, milliseconds since the Unix epoch.
    pub source_ms: Option<i64>,
    /// How often the record was tried.
    pub attempts: u32,
    /// Where it was refused first, when it was replayed.
    pub first: Option<First>,
    /// The value's length, when only its start is here.
    pub value_cut_from: Option<u64>,
    /// The key's length, when only its start is here.
    pub key_cut_from: Option<u64>,
    /// What became of the record's headers, when they are not here.
    pub headers_lost: Option<String>,
    /// How many headers are ours; those of the record follow.
    pub own_headers: usize,
}

impl Letter {
    /// Whether the key and the value are here as they were.
    pub fn is_whole(&self) -> bool {
        self.value_cut_from.is_none() && self.key_cut_from.is_none()
    }

    /// Where the record was refused first.
    pub fn first(&self) -> First {
        self.first.clone().unwrap_or_else(|| First {
            topic: self.id.topic.to_string(),
            partition: self.id.partition,
            offset: self.id.offset,
            reason: self.reason,
            time_us: self.time_us,
        })
    }

    fn read(headers: Headers<'_>) -> Option<Self> {
        let mut own = HashMap::new();
        let mut own_headers = 0;
        let mut complete = false;
        for (name, value) in headers.take(OWN_HEADERS_MAX) {
            own_headers += 1;
            own.entry(name).or_insert(value.unwrap_or_default());
            if name == ATTEMPTS {
                complete = true;
                break;
            }
        }
        let text = |name: &str| std::str::from_utf8(own.get(name)?).ok();
        let owned = |name: &str| text(name).map(str::to_owned);
        if !complete {
            return None;
        }
        Some(Self {
            id: source(text)?,
            reason: Reason::parse(text(REASON)?)?,
            detail: owned(DETAIL).unwrap_or_default(),
            step: owned(STEP).unwrap_or_default(),
            group: owned(GROUP).unwrap_or_default(),
            time_us: text(TIME)?.parse().ok()?,
            source_ms: text(SOURCE_TIME).and_then(|text| text.parse().ok()),
            attempts: text(ATTEMPTS)?.parse().ok()?,
            first: First::read(text),
            value_cut_from: text(TRUNCATED).and_then(|text| text.parse().ok()),
            key_cut_from: text(KEY_TRUNCATED).and_then(|text| text.parse().ok()),
            headers_lost: owned(ORIGINAL_HEADERS),
            own_headers,
        })
    }
}

/// The identity in headers that are found by name.
pub fn source<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Option<LetterId> {
    Some(LetterId {
        topic: text(SOURCE_TOPIC)?.into(),
        partition: text(SOURCE_PARTITION)?.parse().ok()?,
        offset: text(SOURCE_OFFSET)?.parse().ok()?,
    })
}

/// A record of the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A dead letter.
    Letter(Box<Letter>),
    /// What became of one.
    Mark(Mark),
    /// Neither: somebody else wrote it.
    Foreign,
}

impl Kind {
    /// Tells what a record is.
    pub fn of(record: &RecordRef<'_>) -> Self {
        if Mark::is_mark(record.headers) {
            return Mark::read(record.headers).map_or(Self::Foreign, Self::Mark);
        }
        Letter::read(record.headers).map_or(Self::Foreign, |letter| Self::Letter(Box::new(letter)))
    }
}

/// A dead letter with its record.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What it says about itself.
    pub letter: Letter,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's value.
    pub value: Option<Vec<u8>>,
    /// The record's own headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Stored {
    /// Takes a dead letter out of its record; `None` when it is none.
    pub fn of(record: &RecordRef<'_>) -> Option<Self> {
        let Kind::Letter(letter) = Kind::of(record) else {
            return None;
        };
        let headers = record
            .headers
            .skip(letter.own_headers)
            .map(|(name, value)| (name.to_owned(), value.unwrap_or_default().to_vec()))
            .collect();
        Some(Self {
            letter: *letter,
            key: record.key.map(<[u8]>::to_vec),
            value: record.payload.map(<[u8]>::to_vec),
            headers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dead_letter::{MARK, WRITES},
        desk::test_records::{chunk, letter_headers},
    };

    #[test]
    fn the_records_own_headers_never_pass_for_ours() {
        let mut headers = letter_headers("events", 1, 5, Reason::WrongKey, 100);
        for (name, value) in [(MARK, "replayed"), (SOURCE_OFFSET, "77"), (ATTEMPTS, "9")] {
            headers.push((name.to_owned(), value.to_owned()));
        }
        let chunk = chunk(0, Some(b"k"), Some(b"v"), &headers);
        let stored = Stored::of(&chunk.get(0).unwrap()).unwrap();
        assert_eq!(stored.letter.id.to_string(), "events/1/5");
        assert_eq!(
            (stored.letter.attempts, stored.letter.reason),
            (1, Reason::WrongKey)
        );
        assert_eq!(stored.headers.len(), 3);
        assert_eq!(
            stored.headers[1],
            (SOURCE_OFFSET.to_owned(), b"77".to_vec())
        );
        assert!(stored.letter.is_whole());
    }

    #[test]
    fn what_lacks_a_part_is_foreign() {
        let whole = letter_headers("events", 1, 5, Reason::WrongKey, 100);
        for (place, (name, _)) in whole.iter().enumerate() {
            let mut headers = whole.clone();
            headers.remove(place);
            let chunk = chunk(0, None, None, &headers);
            let kind = Kind::of(&chunk.get(0).unwrap());
            let optional = [DETAIL, STEP, GROUP, SOURCE_TIME, WRITES].contains(&name.as_str());
            assert_eq!(kind != Kind::Foreign, optional, "without {name}");
        }
    }
}
