//! What a replayed record says about its past, in the headers that it carries on the source topic.
//!
//! Whoever may write to the source topic may write such headers. So they are only ever told on, as where a dead letter
//! was refused *first*; the identity of a dead letter, by which it is counted, audited and marked, always comes from
//! where its record lies. The producer passes no header of a client on.

use streamgauge_kafka::Headers;

use crate::core::reject::Reason;

/// Always the first header of a replayed record; its value is the version of what follows.
pub const REPLAY: &str = "sg-replay";
/// Where the record was refused first: the source topic.
pub const FIRST_TOPIC: &str = "sg-first-topic";
/// Where the record was refused first.
pub const FIRST_PARTITION: &str = "sg-first-partition";
/// Where the record was refused first.
pub const FIRST_OFFSET: &str = "sg-first-offset";
/// Why it was refused first.
pub const FIRST_REASON: &str = "sg-first-reason";
/// When it was refused first, in microseconds since the Unix epoch.
pub const FIRST_TIME: &str = "sg-first-time";
/// How often it was replayed, this replay included.
pub const REPLAYS: &str = "sg-replays";

const VERSION: &str = "1";

/// Kafka's longest name of a topic, in bytes.
const TOPIC_BYTES_MAX: usize = 249;

/// Where a record was refused first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct First {
    /// The source topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Why.
    pub reason: Reason,
    /// When, in microseconds since the Unix epoch.
    pub time_us: i64,
}

/// A record's past as its headers tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Where it was refused first.
    pub first: First,
    /// How often it was replayed.
    pub replays: u32,
}

impl First {
    /// As headers.
    pub fn headers(&self) -> [(&'static str, String); 5] {
        [
            (FIRST_TOPIC, self.topic.clone()),
            (FIRST_PARTITION, self.partition.to_string()),
            (FIRST_OFFSET, self.offset.to_string()),
            (FIRST_REASON, self.reason.as_str().to_owned()),
            (FIRST_TIME, self.time_us.to_string()),
        ]
    }

    /// Reads what [`First::headers`] wrote; `None` unless all of it is there and can be true.
    pub fn read<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let topic = text(FIRST_TOPIC)?;
        let partition = text(FIRST_PARTITION)?.parse().ok()?;
        let offset = text(FIRST_OFFSET)?.parse().ok()?;
        let sane = (1..=TOPIC_BYTES_MAX).contains(&topic.len()) && partition >= 0 && offset >= 0;
        sane.then_some(Self {
            topic: topic.to_owned(),
            partition,
            offset,
            reason: Reason::parse(text(FIRST_REASON)?)?,
            time_us: text(FIRST_TIME)?.parse().ok()?,
        })
    }
}

impl Replay {
    /// How many headers it takes.
    pub const HEADERS: usize = 7;

    /// As headers, to stand before those of the record.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let first = self.first.headers();
        std::iter::once((REPLAY, String::from(VERSION)))
            .chain(first)
            .chain([(REPLAYS, self.replays.to_string())])
            .collect()
    }

    /// Reads what [`Replay::headers`] wrote at the head of a record's headers. Anything else is no replay, and its
    /// headers are the record's own.
    pub fn read(headers: Headers<'_>) -> Option<Self> {
        let names = [
            REPLAY,
            FIRST_TOPIC,
            FIRST_PARTITION,
            FIRST_OFFSET,
            FIRST_REASON,
            FIRST_TIME,
            REPLAYS,
        ];
        let found: Vec<_> = headers.take(Self::HEADERS).collect();
        if !found.iter().map(|(name, _)| *name).eq(names) {
            return None;
        }
        let text = |name: &str| {
            let (_, value) = found.iter().find(|(found, _)| *found == name)?;
            std::str::from_utf8((*value)?).ok()
        };
        if text(REPLAY)? != VERSION {
            return None;
        }
        Some(Self {
            first: First::read(text)?,
            replays: text(REPLAYS)?.parse().ok().filter(|count| *count > 0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use streamgauge_kafka::ChunkBuilder;

    use super::*;

    fn read(headers: &[(String, String)]) -> Option<Replay> {
        let mut builder = ChunkBuilder::new(0);
        let headers = headers
            .iter()
            .map(|(name, value)| (&**name, Some(value.as_bytes())));
        builder.push(0, 0, None, None, headers);
        Replay::read(builder.take().unwrap().get(0).unwrap().headers)
    }

    fn replay() -> Replay {
        let first = First {
            topic: String::from("events"),
            partition: 3,
            offset: 7,
            reason: Reason::WrongKey,
            time_us: 5,
        };
        Replay { first, replays: 2 }
    }

    fn owned(replay: &Replay) -> Vec<(String, String)> {
        let headers = replay.headers().into_iter();
        headers
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut headers = owned(&replay());
        assert_eq!(headers.len(), Replay::HEADERS);
        headers.push((String::from("own"), String::from("kept")));
        assert_eq!(read(&headers), Some(replay()));
    }

    #[test]
    fn a_past_that_cannot_be_is_none() {
        for (place, value) in [
            (0, "2"),
            (1, ""),
            (2, "-1"),
            (3, "x"),
            (4, "no such reason"),
            (5, ""),
            (6, "0"),
            (6, "99999999999"),
        ] {
            let mut headers = owned(&replay());
            headers[place].1 = value.to_owned();
            assert_eq!(read(&headers), None, "{place} {value}");
        }
        let mut behind = vec![(String::from("own"), String::new())];
        behind.extend(owned(&replay()));
        assert_eq!(read(&behind), None, "a client's header comes first");
    }

    proptest! {
        #[test]
        fn foreign_headers_never_panic(
            values in prop::collection::vec("\\PC{0,8}", Replay::HEADERS), at in 0usize..Replay::HEADERS, take in 0usize..=Replay::HEADERS
        ) {
            let mut headers = owned(&replay());
            headers[at].1 = values[at].clone();
            headers.truncate(take);
            if let Some(read) = read(&headers) {
                prop_assert_eq!(owned(&read).len(), headers.len());
                prop_assert!(read.replays > 0);
            }
        }
    }
}
