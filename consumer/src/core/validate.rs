//! Judges a record: the only way to an [`Event`] that may be counted.
//!
//! The producer has validated already; this holds for what was written straight to the topic, so
//! the limits are no tighter than the producer's. Log time stands in for a clock: the same record
//! gets the same verdict today, after a restart and in a replay.

use super::{
    decode::{DecodeError, RawEvent, decode},
    reject::{Reason, Reject},
};

/// Longest `event_id`, in bytes.
pub const EVENT_ID_BYTES_MAX: usize = 128;
/// Longest `user_id`, in bytes.
pub const USER_ID_BYTES_MAX: usize = 200;
/// Longest `event_type`, in bytes.
pub const EVENT_TYPE_BYTES_MAX: usize = 100;

/// The limits that are settings.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest encoded event.
    pub event_bytes_max: usize,
    /// How far ahead of log time an event may claim to be.
    pub future_us_max: i64,
}

/// An event that may be counted: it was read whole and each field is within its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event<'a>(RawEvent<'a>);

impl<'a> std::ops::Deref for Event<'a> {
    type Target = RawEvent<'a>;

    fn deref(&self) -> &RawEvent<'a> {
        &self.0
    }
}

/// Reads and judges a record.
///
/// # Errors
/// A [`Reject`] that says why the record ends in the dead-letter topic.
pub fn event<'a>(
    key: Option<&[u8]>,
    payload: Option<&'a [u8]>,
    log_time_us: i64,
    limits: &Limits,
) -> Result<Event<'a>, Reject> {
    let payload = match payload {
        None => {
            return Err(Reject::decode(
                Reason::Empty,
                "the record has no value (a tombstone)",
            ));
        }
        Some([]) => return Err(Reject::decode(Reason::Empty, "the value has zero bytes")),
        Some(payload) => payload,
    };
    if payload.len() > limits.event_bytes_max {
        return Err(oversized(payload.len(), limits.event_bytes_max));
    }
    let raw = decode(payload).map_err(undecodable)?;
    check_text("event_id", raw.event_id, EVENT_ID_BYTES_MAX)?;
    check_text("user_id", raw.user_id, USER_ID_BYTES_MAX)?;
    check_text("event_type", raw.event_type, EVENT_TYPE_BYTES_MAX)?;
    if key != Some(raw.user_id.as_bytes()) {
        return Err(wrong_key(key));
    }
    let latest = log_time_us.saturating_add(limits.future_us_max);
    if raw.occurred_at_us <= 0 || (log_time_us > 0 && raw.occurred_at_us > latest) {
        return Err(implausible(raw.occurred_at_us, log_time_us));
    }
    if raw.value.is_some_and(|value| !value.is_finite()) {
        return Err(Reject::validate(
            Reason::InvalidValue,
            "value is not a finite number",
        ));
    }
    Ok(Event(raw))
}

#[cold]
fn undecodable(error: DecodeError) -> Reject {
    Reject::decode(Reason::Undecodable, error.to_string())
}

#[cold]
fn oversized(bytes: usize, max: usize) -> Reject {
    let detail = format!("the value has {bytes} bytes; event_bytes_max is {max}");
    Reject::decode(Reason::Oversized, detail)
}

#[cold]
fn wrong_key(key: Option<&[u8]>) -> Reject {
    let detail = match key {
        None => "the record has no key; it must be the user_id",
        Some(_) => "the key is not the user_id",
    };
    Reject::validate(Reason::WrongKey, detail)
}

#[cold]
fn implausible(occurred_at_us: i64, log_time_us: i64) -> Reject {
    let detail = format!("occurred_at is {occurred_at_us} us, log time {log_time_us} us");
    Reject::validate(Reason::ImplausibleTime, detail)
}

#[inline]
fn check_text(field: &'static str, text: &str, bytes_max: usize) -> Result<(), Reject> {
    if (1..=bytes_max).contains(&text.len()) {
        Ok(())
    } else {
        Err(bad_text(field, text, bytes_max))
    }
}

#[cold]
fn bad_text(field: &'static str, text: &str, bytes_max: usize) -> Reject {
    if text.is_empty() {
        return Reject::validate(Reason::MissingField, format!("{field} is absent or empty"));
    }
    let detail = format!(
        "{field} has {} bytes; at most {bytes_max} are allowed",
        text.len()
    );
    Reject::validate(Reason::FieldTooLong, detail)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use streamgauge_proto::v1;

    use super::*;

    const LIMITS: Limits = Limits {
        event_bytes_max: 1000,
        future_us_max: 60_000_000,
    };
    const LOG_TIME_US: i64 = 1_700_000_000_000_000;

    fn honest() -> v1::Event {
        v1::Event {
            event_id: "e".repeat(EVENT_ID_BYTES_MAX),
            user_id: "u".repeat(USER_ID_BYTES_MAX),
            event_type: "t".repeat(EVENT_TYPE_BYTES_MAX),
            occurred_at_us: LOG_TIME_US + LIMITS.future_us_max,
            value: Some(1.5),
            ..v1::Event::default()
        }
    }

    fn judge(sent: &v1::Event) -> Result<(), Reject> {
        let payload = sent.encode_to_vec();
        let key = Some(sent.user_id.as_bytes());
        event(key, Some(&payload), LOG_TIME_US, &LIMITS).map(drop)
    }

    #[test]
    fn an_event_at_every_limit_is_accepted() {
        assert_eq!(judge(&honest()), Ok(()));
    }

    #[test]
    fn each_defect_has_its_reason() {
        type Spoil = fn(&mut v1::Event);
        let cases: [(Reason, Spoil); 10] = [
            (Reason::MissingField, |event| event.event_id.clear()),
            (Reason::MissingField, |event| event.user_id.clear()),
            (Reason::MissingField, |event| event.event_type.clear()),
            (Reason::FieldTooLong, |event| event.event_id.push('x')),
            (Reason::FieldTooLong, |event| event.user_id.push('x')),
            (Reason::FieldTooLong, |event| event.event_type.push('x')),
            (Reason::ImplausibleTime, |event| event.occurred_at_us = 0),
            (Reason::ImplausibleTime, |event| event.occurred_at_us += 1),
            (Reason::InvalidValue, |event| event.value = Some(f64::NAN)),
            (Reason::Oversized, |event| event.page_url = "p".repeat(1000)),
        ];
        for (expected, spoil) in cases {
            let mut spoiled = honest();
            spoil(&mut spoiled);
            assert_eq!(
                judge(&spoiled).expect_err(expected.as_str()).reason,
                expected
            );
        }
    }

    #[test]
    fn key_and_value_must_be_there_and_fit_each_other() {
        let payload = honest().encode_to_vec();
        let key = honest().user_id.into_bytes();
        type Bytes<'a> = Option<&'a [u8]>;
        let cases: [(Bytes<'_>, Bytes<'_>, Reason); 5] = [
            (Some(&key), None, Reason::Empty),
            (Some(&key), Some(&[]), Reason::Empty),
            (None, Some(&payload), Reason::WrongKey),
            (Some(b"another"), Some(&payload), Reason::WrongKey),
            (Some(&key), Some(b"{\"user_id\":1}"), Reason::Undecodable),
        ];
        for (key, payload, expected) in cases {
            let reject = event(key, payload, LOG_TIME_US, &LIMITS).expect_err(expected.as_str());
            assert_eq!(reject.reason, expected);
        }
    }
}
