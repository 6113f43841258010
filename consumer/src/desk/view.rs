//! Dead letters as people and machines read them. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use prost::Message;
use serde_json::{Map, Value, json, value::RawValue};
use streamgauge_proto::v1;

use super::{
    filter::event_type,
    index::Selected,
    letter::{Letter, LetterId, Stored},
    mark::State,
};
use crate::core::reject::Reason;

/// Headers that are shown.
const HEADERS_MAX: usize = 64;
/// Longest header that is shown, name or value, in bytes.
const HEADER_BYTES_MAX: usize = 512;
/// Longest sentence of a record that is shown, in bytes.
const DETAIL_BYTES_MAX: usize = 1_024;

/// What is shown of a dead letter; `body_bytes_max` asks for all of it.
pub fn letter(
    selected: &Selected,
    stored: &Stored,
    body_bytes_max: Option<usize>,
) -> v1::DeadLetter {
    let found = &stored.letter;
    let state = selected.standing.state;
    let mut shown = v1::DeadLetter {
        id: Some(id(&found.id)),
        state: state.as_str().to_owned(),
        marked_us: if state == State::Open {
            0
        } else {
            selected.standing.time_us
        },
        reason: found.reason.as_str().to_owned(),
        explanation: explanation(found.reason).to_owned(),
        detail: clip(&found.detail, DETAIL_BYTES_MAX).to_owned(),
        step: clip(&found.step, HEADER_BYTES_MAX).to_owned(),
        group: clip(&found.group, HEADER_BYTES_MAX).to_owned(),
        refused_us: found.time_us,
        source_us: found.source_ms.unwrap_or_default().saturating_mul(1_000),
        attempts: found.attempts,
        first: found.first.as_ref().map(|first| v1::DeadLetterOrigin {
            id: Some(v1::DeadLetterId {
                topic: first.topic.clone(),
                partition: first.partition,
                offset: first.offset,
            }),
            reason: first.reason.as_str().to_owned(),
            refused_us: first.time_us,
        }),
        event_type: clip(
            event_type(found, stored.value.as_deref()).unwrap_or_default(),
            HEADER_BYTES_MAX,
        )
        .to_owned(),
        whole: found.is_whole(),
        notes: notes(found),
        copies: selected.copies,
        dlq_partition: selected.place.partition,
        dlq_offset: selected.place.offset,
        ..v1::DeadLetter::default()
    };
    if let Some(bytes_max) = body_bytes_max {
        let headers = stored.headers.iter().take(HEADERS_MAX);
        shown.key = Some(text(stored.key.as_deref(), HEADER_BYTES_MAX));
        shown.headers = headers
            .map(|(name, value)| v1::DeadLetterHeader {
                name: clip(name, HEADER_BYTES_MAX).to_owned(),
                value: Some(text(Some(value), HEADER_BYTES_MAX)),
            })
            .collect();
        if let more @ 1.. = stored.headers.len().saturating_sub(HEADERS_MAX) {
            shown
                .notes
                .push(format!("{more} more headers are not shown"));
        }
        shown.body = Some(body(stored, bytes_max));
    }
    shown
}

/// An identity as it is told.
pub fn id(id: &LetterId) -> v1::DeadLetterId {
    v1::DeadLetterId {
        topic: id.topic.to_string(),
        partition: id.partition,
        offset: id.offset,
    }
}

/// JSON with the fields of the protobuf form; the body of an event that is shown whole is an object as well.
pub fn json(letter: &v1::DeadLetter) -> Value {
    let mut shown = json!(letter);
    if let Some(body) = &letter.body
        && body.kind == "event"
        && let Some(content) = &body.content
        && let Ok(event) = serde_json::from_str::<Value>(&content.text)
    {
        shown["body"]["event"] = event;
    }
    shown
}

fn notes(letter: &Letter) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(bytes) = letter.value_cut_from {
        notes.push(format!(
            "of the value's {bytes} bytes only the first were kept; it cannot be replayed"
        ));
    }
    if let Some(bytes) = letter.key_cut_from {
        notes.push(format!(
            "of the key's {bytes} bytes only the first were kept; it cannot be replayed"
        ));
    }
    if let Some(lost) = &letter.headers_lost {
        let why = match lost.as_str() {
            "unreadable" => "they could not be read",
            _ => "there was no room for them",
        };
        notes.push(format!("the record's own headers were not kept: {why}"));
    }
    notes
}

/// What a reason means, and what to do.
pub const fn explanation(reason: Reason) -> &'static str {
    match reason {
        Reason::Empty => "The record has no value, so that there is no event in it: drop it.",
        Reason::Oversized => {
            "The event is larger than events.bytes_max of the consumer: raise that and replay it, or drop it."
        }
        Reason::Undecodable => {
            "The value is not an encoded event; somebody else than the producer wrote it: mend the writer and drop it."
        }
        Reason::MissingField => {
            "A field that every event needs is absent or empty: replay it with that field set or renamed."
        }
        Reason::FieldTooLong => "A field is longer than its limit: replay it with that field set.",
        Reason::WrongKey => {
            "The record's key is not the user_id, so that it lay in the wrong partition: replay it with its user_id for \
             the key (rekey)."
        }
        Reason::ImplausibleTime => {
            "The event says that it occurred before 1970 or too far in the future: replay it with occurred_at set."
        }
        Reason::InvalidValue => {
            "The event's value is not a finite number: replay it with value set."
        }
        Reason::Late => {
            "The event is older than events.accepted_age_hours allows: replay it with historical=true, or drop it."
        }
        Reason::RecordTimeAhead => {
            "The record's own time was far ahead of the consumer's clock: see to the clocks, then replay it; it gets a \
             new time."
        }
        Reason::ReusedOffset => {
            "The source lost its end and was written again from an offset that was accounted for already: replay it."
        }
    }
}

/// The value for people: an event's fields as JSON, else the bytes.
fn body(stored: &Stored, bytes_max: usize) -> v1::DeadLetterBody {
    let event = stored
        .value
        .as_deref()
        .filter(|value| stored.letter.is_whole() && !value.is_empty())
        .and_then(|value| v1::Event::decode(value).ok());
    match event {
        Some(event) => v1::DeadLetterBody {
            kind: String::from("event"),
            content: Some(text(Some(event_json(&event).as_bytes()), bytes_max)),
        },
        None => v1::DeadLetterBody {
            kind: String::from("bytes"),
            content: Some(text(stored.value.as_deref(), bytes_max)),
        },
    }
}

/// An event's fields as JSON. Times are RFC 3339; properties that are no JSON are text.
pub fn event_json(event: &v1::Event) -> String {
    let mut fields = Map::new();
    let texts = [
        ("event_id", &event.event_id),
        ("tenant", &event.tenant),
        ("user_id", &event.user_id),
        ("event_type", &event.event_type),
        ("page_url", &event.page_url),
        ("session_id", &event.session_id),
    ];
    for (name, text) in texts {
        fields.insert(name.to_owned(), json!(text));
    }
    fields.insert(String::from("occurred_at"), time(event.occurred_at_us));
    fields.insert(String::from("received_at"), time(event.received_at_us));
    fields.insert(String::from("historical"), json!(event.historical));
    if let Some(value) = event.value {
        // JSON has no word for what is not finite.
        let value = if value.is_finite() {
            json!(value)
        } else {
            json!(value.to_string())
        };
        fields.insert(String::from("value"), value);
    }
    let properties = std::str::from_utf8(&event.properties).unwrap_or_default();
    let raw = RawValue::from_string(properties.to_owned());
    let properties = match raw {
        Ok(raw) => raw.get().to_owned(),
        Err(_) if event.properties.is_empty() => String::from("null"),
        Err(_) => json!(String::from_utf8_lossy(&event.properties)).to_string(),
    };
    let mut json = Value::Object(fields).to_string();
    json.pop();
    // Writing to a String cannot fail.
    let _ = write!(json, ",\"properties\":{properties}}}");
    json
}

fn time(micros: i64) -> Value {
    match Timestamp::from_microsecond(micros) {
        Ok(time) if micros != 0 => json!(time.to_string()),
        _ => json!(micros),
    }
}

/// Bytes for people, bounded: text where they are text, else hexadecimal.
pub fn text(bytes: Option<&[u8]>, bytes_max: usize) -> v1::DeadLetterText {
    let Some(bytes) = bytes else {
        return v1::DeadLetterText {
            encoding: String::from("none"),
            ..v1::DeadLetterText::default()
        };
    };
    let (text, encoding, cut) = match std::str::from_utf8(bytes) {
        Ok(all) => {
            let text = clip(all, bytes_max);
            (text.to_owned(), "utf8", text.len() < all.len())
        }
        Err(_) => {
            let kept = &bytes[..bytes.len().min(bytes_max / 2)];
            (hex(kept), "hex", kept.len() < bytes.len())
        }
    };
    v1::DeadLetterText {
        text,
        encoding: encoding.to_owned(),
        bytes: bytes.len() as u64,
        cut,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The start of a text, no longer than this.
pub fn clip(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_reason_is_explained_in_a_sentence() {
        for reason in Reason::ALL {
            let sentence = explanation(reason);
            assert!(sentence.ends_with('.') && sentence.len() > 40, "{sentence}");
        }
    }

    #[test]
    fn bytes_are_shown_as_what_they_are() {
        let shown = |bytes: Option<&[u8]>, max| {
            let shown = text(bytes, max);
            (shown.text, shown.encoding, shown.bytes, shown.cut)
        };
        let of = |text: &str, encoding: &str, bytes, cut| {
            (text.to_owned(), encoding.to_owned(), bytes, cut)
        };
        assert_eq!(shown(None, 9), of("", "none", 0, false));
        assert_eq!(shown(Some(b""), 9), of("", "utf8", 0, false));
        assert_eq!(shown(Some("aé".as_bytes()), 2), of("a", "utf8", 3, true));
        assert_eq!(shown(Some(b"\xff\x01\x02"), 4), of("ff01", "hex", 3, true));
    }

    #[test]
    fn an_event_is_shown_with_its_properties_as_they_were_written() {
        let event = v1::Event {
            event_id: String::from("e"),
            occurred_at_us: 1_714_521_600_000_000,
            value: Some(f64::NAN),
            properties: bytes::Bytes::from_static(b"{\"n\":123456789012345678901234567890}"),
            ..v1::Event::default()
        };
        let json = event_json(&event);
        assert!(
            json.contains("\"properties\":{\"n\":123456789012345678901234567890}"),
            "{json}"
        );
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["occurred_at"], "2024-05-01T00:00:00Z");
        assert_eq!(json["value"], "NaN");
    }

    proptest! {
        #[test]
        fn any_event_is_shown_as_json(
            texts in prop::array::uniform3("\\PC{0,10}"), times in any::<(i64, i64)>(),
            value in any::<Option<f64>>(), properties in prop::collection::vec(any::<u8>(), 0..30)
        ) {
            let [event_id, user_id, page_url] = texts;
            let event = v1::Event {
                event_id, user_id, page_url, value,
                occurred_at_us: times.0, received_at_us: times.1,
                properties: properties.into(),
                ..v1::Event::default()
            };
            let json: Value = serde_json::from_str(&event_json(&event)).unwrap();
            prop_assert_eq!(&json["event_id"], &json!(event.event_id));
        }

        #[test]
        fn what_is_shown_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..200), max in 0usize..100) {
            prop_assert!(text(Some(&bytes), max).text.len() <= max);
        }
    }
}
