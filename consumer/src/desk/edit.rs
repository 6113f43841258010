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
#[path = "edit_tests.rs"]
mod tests;
