//! Small edits by which a refused event is mended before it is replayed. Pure.
//!
//! Renames move a value from one field to another, sets write one; renames go first. What an edit does not name stays
//! as it was, to the byte: properties are taken apart only as far as their names.

use std::collections::BTreeMap;

use jiff::Timestamp;
use prost::Message;
use serde_json::{Value, value::RawValue};
use streamgauge_proto::v1::{self, Event};

use super::letter::Stored;

/// A field that may be edited. The tenant comes from a credential, and `received_at` from the producer: neither may.
const FIELDS: &str = "event_id, user_id, event_type, occurred_at, page_url, session_id, value, \
                      historical, properties and properties.NAME";

/// Why an edit cannot be read or does not fit an event.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// No `=` in it.
    #[error("`{0}` is no edit: write FIELD=VALUE to set and OLD=NEW to rename")]
    Shape(String),
    /// Not a field of an event.
    #[error("`{0}` cannot be edited: the fields are {FIELDS}")]
    Field(String),
    /// `properties` as a whole has no place to go to.
    #[error("properties cannot be renamed as a whole: name one, as in properties.NAME")]
    WholeProperties,
    /// The value is not an event.
    #[error("the value cannot be read as an event, so that there is nothing to edit: {0}")]
    NotAnEvent(#[from] prost::DecodeError),
    /// The field to be renamed is not there.
    #[error("the event has no {0} to rename")]
    Absent(Field),
    /// The value does not fit the field.
    #[error("{field} takes {expected}")]
    Type {
        /// The field.
        field: Field,
        /// What it takes.
        expected: &'static str,
    },
    /// The properties are not a JSON object.
    #[error("the properties are not a JSON object")]
    Properties(#[from] serde_json::Error),
}

/// A field of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `event_id`.
    EventId,
    /// `user_id`.
    UserId,
    /// `event_type`.
    EventType,
    /// `occurred_at`.
    OccurredAt,
    /// `page_url`.
    PageUrl,
    /// `session_id`.
    SessionId,
    /// `value`.
    Value,
    /// `historical`.
    Historical,
    /// All properties.
    Properties,
    /// One of them.
    Property(String),
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Field::EventId => "event_id",
            Field::UserId => "user_id",
            Field::EventType => "event_type",
            Field::OccurredAt => "occurred_at",
            Field::PageUrl => "page_url",
            Field::SessionId => "session_id",
            Field::Value => "value",
            Field::Historical => "historical",
            Field::Properties => "properties",
            Field::Property(name) => return write!(f, "properties.{name}"),
        })
    }
}

impl Field {
    fn parse(name: &str) -> Result<Self, EditError> {
        Ok(match name {
            "event_id" => Field::EventId,
            "user_id" => Field::UserId,
            "event_type" => Field::EventType,
            "occurred_at" => Field::OccurredAt,
            "page_url" => Field::PageUrl,
            "session_id" => Field::SessionId,
            "value" => Field::Value,
            "historical" => Field::Historical,
            "properties" => Field::Properties,
            other => match other.strip_prefix("properties.") {
                Some(name) if !name.is_empty() => Field::Property(name.to_owned()),
                _ => return Err(EditError::Field(other.to_owned())),
            },
        })
    }

    fn text<'a>(&self, event: &'a mut Event) -> Option<&'a mut String> {
        Some(match self {
            Field::EventId => &mut event.event_id,
            Field::UserId => &mut event.user_id,
            Field::EventType => &mut event.event_type,
            Field::PageUrl => &mut event.page_url,
            Field::SessionId => &mut event.session_id,
            _ => return None,
        })
    }

    /// Takes the value out of the event.
    fn take(&self, event: &mut Event) -> Result<Value, EditError> {
        if let Some(text) = self.text(event) {
            let text = std::mem::take(text);
            return if text.is_empty() {
                Err(EditError::Absent(self.clone()))
            } else {
                Ok(Value::String(text))
            };
        }
        let found = match self {
            Field::OccurredAt => match std::mem::take(&mut event.occurred_at_us) {
                0 => None,
                micros => Some(Value::from(micros)),
            },
            Field::Value => event.value.take().map(Value::from),
            Field::Historical => Some(Value::Bool(std::mem::take(&mut event.historical))),
            Field::Property(name) => {
                let mut properties = Properties::of(event)?;
                let taken = properties.0.remove(name);
                properties.put(event)?;
                taken
                    .map(|raw| serde_json::from_str(raw.get()))
                    .transpose()?
            }
            _ => return Err(EditError::WholeProperties),
        };
        found.ok_or_else(|| EditError::Absent(self.clone()))
    }

    fn put(&self, event: &mut Event, value: Value) -> Result<(), EditError> {
        let wrong = |expected| EditError::Type {
            field: self.clone(),
            expected,
        };
        if let Some(text) = self.text(event) {
            *text = match value {
                Value::String(text) => text,
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                _ => return Err(wrong("text")),
            };
            return Ok(());
        }
        match self {
            Field::OccurredAt => {
                let time = "a time: RFC 3339, or a number of seconds, milliseconds or microseconds";
                event.occurred_at_us = instant(&value).ok_or_else(|| wrong(time))?;
            }
            Field::Value => {
                event.value = number(&value).map_err(|()| wrong("a finite number"))?;
            }
            Field::Historical => {
                event.historical = flag(&value).ok_or_else(|| wrong("true or false"))?;
            }
            Field::Property(name) => {
                let mut properties = Properties::of(event)?;
                let raw = serde_json::value::to_raw_value(&value)?;
                properties.0.insert(name.clone(), raw);
                properties.put(event)?;
            }
            _ => {
                let text = match value {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                event.properties = text.into_bytes().into();
                Properties::of(event)?;
            }
        }
        Ok(())
    }
}

/// The properties by name, each as it was written.
struct Properties(BTreeMap<String, Box<RawValue>>);

impl Properties {
    fn of(event: &Event) -> Result<Self, EditError> {
        if event.properties.is_empty() {
            return Ok(Self(BTreeMap::new()));
        }
        Ok(Self(serde_json::from_slice(&event.properties)?))
    }

    fn put(self, event: &mut Event) -> Result<(), EditError> {
        event.properties = if self.0.is_empty() {
            bytes::Bytes::new()
        } else {
            serde_json::to_vec(&self.0)?.into()
        };
        Ok(())
    }
}

/// Seconds up to the year 5138, milliseconds up to the same, microseconds beyond.
fn instant(value: &Value) -> Option<i64> {
    const SECONDS_BELOW: u64 = 100_000_000_000;
    const MILLIS_BELOW: u64 = SECONDS_BELOW * 1_000;
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let Some(number) = number else {
        let text = value.as_str()?.trim();
        return text
            .parse::<Timestamp>()
            .ok()
            .map(Timestamp::as_microsecond);
    };
    match number.unsigned_abs() {
        0..SECONDS_BELOW => number.checked_mul(1_000_000),
        SECONDS_BELOW..MILLIS_BELOW => number.checked_mul(1_000),
        _ => Some(number),
    }
}

fn number(value: &Value) -> Result<Option<f64>, ()> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_f64(),
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number
        .filter(|number| number.is_finite())
        .map(Some)
        .ok_or(())
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(Field, Value),
    Rename(Field, Field),
}

/// The edit of one replay.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    steps: Vec<Step>,
    rekey: bool,
    assign_ids: bool,
    /// As the user gave it.
    text: String,
}

/// A record as it goes to the source topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
}

impl Edit {
    /// Reads the edit of a request.
    ///
    /// # Errors
    /// Names what cannot be read.
    pub fn read(request: &v1::ReplayDeadLettersRequest) -> Result<Self, EditError> {
        let split = |text: &'_ str| {
            let (left, right) = text
                .split_once('=')
                .ok_or_else(|| EditError::Shape(text.to_owned()))?;
            Ok::<_, EditError>((left.trim().to_owned(), right.to_owned()))
        };
        let mut steps = Vec::new();
        for text in &request.rename {
            let (old, new) = split(text)?;
            let (old, new) = (Field::parse(&old)?, Field::parse(new.trim())?);
            if [&old, &new].contains(&&Field::Properties) {
                return Err(EditError::WholeProperties);
            }
            steps.push(Step::Rename(old, new));
        }
        for text in &request.set {
            let (field, value) = split(text)?;
            let field = Field::parse(&field)?;
            let value = match field {
                // A property may be of any type; what is no JSON is text.
                Field::Property(_) => serde_json::from_str(&value).unwrap_or(Value::String(value)),
                _ => Value::String(value),
            };
            // Tried on an empty event, so that a value that fits no event is refused before any is read.
            field.put(&mut Event::default(), value.clone())?;
            steps.push(Step::Set(field, value));
        }
        Ok(Self {
            steps,
            rekey: request.rekey,
            assign_ids: request.assign_ids,
            text: described(request),
        })
    }

    /// What the edit does, for the mark; empty when it does nothing.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn is_none(&self) -> bool {
        self.steps.is_empty() && !self.rekey && !self.assign_ids
    }

    /// The record as it goes to the source topic. Without an edit it is what it was; an edited event has its user_id
    /// for its key.
    ///
    /// # Errors
    /// When the edit does not fit the event.
    pub fn apply(&self, stored: &Stored) -> Result<Mended, EditError> {
        let (key, value) = (stored.key.clone(), stored.value.clone());
        if self.is_none() {
            return Ok(Mended { key, value });
        }
        let before = Event::decode(value.as_deref().unwrap_or_default())?;
        let mut event = before.clone();
        for step in &self.steps {
            match step {
                Step::Rename(old, new) => {
                    let value = old.take(&mut event)?;
                    new.put(&mut event, value)?;
                }
                Step::Set(field, value) => field.put(&mut event, value.clone())?,
            }
        }
        if self.assign_ids && event.event_id.is_empty() {
            // The same at every replay, so that the event counts once.
            let first = stored.letter.first();
            event.event_id = format!("dlq-{}-{}", first.partition, first.offset);
        }
        let changed = event.encode_to_vec() != before.encode_to_vec();
        Ok(Mended {
            key: if event.user_id.is_empty() {
                key
            } else {
                Some(event.user_id.clone().into_bytes())
            },
            value: if changed {
                Some(event.encode_to_vec())
            } else {
                value
            },
        })
    }
}

fn described(request: &v1::ReplayDeadLettersRequest) -> String {
    let renames = request.rename.iter().map(|text| format!("rename {text}"));
    let sets = request.set.iter().map(|text| format!("set {text}"));
    let flags = [(request.rekey, "rekey"), (request.assign_ids, "assign ids")];
    let flags = flags
        .into_iter()
        .filter(|(given, _)| *given)
        .map(|(_, text)| text.to_owned());
    renames
        .chain(sets)
        .chain(flags)
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        core::reject::Reason,
        desk::test_records::{chunk, letter_headers},
    };

    fn event() -> Event {
        Event {
            event_id: String::from("e"),
            user_id: String::from("u"),
            event_type: String::from("click"),
            occurred_at_us: 1_700_000_000_000_000,
            properties: bytes::Bytes::from_static(
                b"{\"kind\":\"view\",\"big\":123456789012345678901234567890,\"n\":1.50}",
            ),
            ..Event::default()
        }
    }

    fn stored(value: &[u8]) -> Stored {
        let headers = letter_headers("events", 4, 9, Reason::Late, 1);
        let chunk = chunk(0, Some(b"key"), Some(value), &headers);
        Stored::of(&chunk.get(0).unwrap()).unwrap()
    }

    fn request(renames: &[&str], sets: &[&str]) -> v1::ReplayDeadLettersRequest {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        v1::ReplayDeadLettersRequest {
            rename: owned(renames),
            set: owned(sets),
            ..v1::ReplayDeadLettersRequest::default()
        }
    }

    fn mend(event: &Event, renames: &[&str], sets: &[&str]) -> Result<Event, EditError> {
        let edit = Edit::read(&request(renames, sets))?;
        let mended = edit.apply(&stored(&event.encode_to_vec()))?;
        let event = Event::decode(&*mended.value.unwrap()).unwrap();
        if !event.user_id.is_empty() {
            assert_eq!(mended.key.unwrap(), event.user_id.as_bytes());
        }
        Ok(event)
    }

    #[test]
    fn sets_write_every_field() {
        let sets = [
            "event_id=e2",
            "user_id=u2",
            "event_type=a=b",
            "occurred_at=2024-05-01T00:00:00Z",
            "page_url=/x",
            "session_id=s",
            "value=2.5",
            "historical=true",
            "properties.n={\"a\":1}",
            "properties.text=not json",
        ];
        let mended = mend(&event(), &[], &sets).unwrap();
        let expected = Event {
            event_id: String::from("e2"),
            user_id: String::from("u2"),
            event_type: String::from("a=b"),
            occurred_at_us: 1_714_521_600_000_000,
            page_url: String::from("/x"),
            session_id: String::from("s"),
            value: Some(2.5),
            historical: true,
            properties: mended.properties.clone(),
            ..event()
        };
        assert_eq!(mended, expected);
        // What was not named is as it was written: no number loses digits.
        assert_eq!(
            mended.properties,
            "{\"big\":123456789012345678901234567890,\"kind\":\"view\",\"n\":{\"a\":1},\"text\":\"not json\"}"
        );
    }

    #[test]
    fn renames_move_a_value() {
        let mended = mend(&event(), &["properties.kind=event_type"], &[]).unwrap();
        assert_eq!(mended.event_type, "view");
        assert!(!String::from_utf8_lossy(&mended.properties).contains("kind"));
        let mended = mend(&event(), &["event_type=properties.type"], &["event_type=x"]).unwrap();
        assert_eq!(mended.event_type, "x");
        assert!(String::from_utf8_lossy(&mended.properties).contains("\"type\":\"click\""));
        let mended = mend(&event(), &["properties.n=value"], &[]).unwrap();
        assert_eq!(mended.value, Some(1.5));
        let mended = mend(&event(), &[], &["occurred_at=1714521600"]).unwrap();
        assert_eq!(mended.occurred_at_us, 1_714_521_600_000_000);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let cases: [(&[&str], &[&str], &str); 9] = [
            (&[], &["user_id"], "FIELD=VALUE"),
            (&[], &["tenant=x"], "`tenant` cannot be edited"),
            (&[], &["received_at=1"], "cannot be edited"),
            (&[], &["properties.=1"], "cannot be edited"),
            (&[], &["value=NaN"], "value takes a finite number"),
            (&[], &["historical=maybe"], "true or false"),
            (&[], &["properties=[1]"], "not a JSON object"),
            (
                &["properties.none=user_id"],
                &[],
                "has no properties.none to rename",
            ),
            (&["properties=user_id"], &[], "cannot be renamed as a whole"),
        ];
        for (renames, sets, expected) in cases {
            let error = mend(&event(), renames, sets).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let edit = Edit::read(&request(&[], &["user_id=x"])).unwrap();
        let error = edit.apply(&stored(b"\xff\xff")).unwrap_err().to_string();
        assert!(error.contains("nothing to edit"), "{error}");
    }

    #[test]
    fn without_an_edit_nothing_changes_and_ids_come_from_the_first_place() {
        let raw = stored(b"\xff\xff");
        let same = Edit::default().apply(&raw).unwrap();
        assert_eq!((same.key, same.value), (raw.key, raw.value));
        let nameless = Event {
            event_id: String::new(),
            ..event()
        };
        let edit = Edit {
            assign_ids: true,
            ..Edit::default()
        };
        let mended = edit.apply(&stored(&nameless.encode_to_vec())).unwrap();
        let mended = Event::decode(&*mended.value.unwrap()).unwrap();
        assert_eq!(mended.event_id, "dlq-4-9");
        // A rekeyed event keeps its bytes.
        let edit = Edit {
            rekey: true,
            ..Edit::default()
        };
        let mut unknown = event().encode_to_vec();
        unknown.extend([0xf8, 0x01, 7]);
        let mended = edit.apply(&stored(&unknown)).unwrap();
        assert_eq!(
            (mended.key.unwrap(), mended.value.unwrap()),
            (b"u".to_vec(), unknown)
        );
    }

    proptest! {
        #[test]
        fn foreign_edits_never_panic(
            field in "(event_id|value|occurred_at|historical|properties|properties\\.[a-z]{0,3}|[a-z]{0,5})",
            value in "\\PC{0,12}", properties in prop::collection::vec(any::<u8>(), 0..20), rename in any::<bool>()
        ) {
            let event = Event { properties: properties.into(), ..event() };
            let text = format!("{field}={value}");
            let (renames, sets): (&[&str], &[&str]) = if rename { (&[&text], &[]) } else { (&[], &[&text]) };
            let _ = mend(&event, renames, sets);
        }

        #[test]
        fn a_set_text_is_there_and_nothing_else_changes(value in "\\PC{1,30}") {
            let mended = mend(&event(), &[], &[&format!("session_id={value}")]).unwrap();
            prop_assert_eq!(mended, Event { session_id: value, ..event() });
        }

        #[test]
        fn a_rename_there_and_back_changes_nothing(value in "\\PC{1,30}") {
            let before = Event { session_id: value, ..event() };
            let there = mend(&before, &["session_id=properties.s"], &[]).unwrap();
            let back = mend(&there, &["properties.s=session_id"], &[]).unwrap();
            prop_assert_eq!(back.session_id, before.session_id);
        }
    }
}
