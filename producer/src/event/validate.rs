//! The rules that every event must keep, whichever way it came in.
//!
//! Old events pass: what is late is the consumer's decision. An event with the same id as another passes too: the
//! consumer dedupes, in the order of the log.

use std::borrow::Cow;

use streamgauge_proto::ErrorCode;

use super::{Draft, EventLimits, Moment, Rejection, Shape, timestamp};

pub const EVENT_ID_BYTES_MAX: usize = 128;
pub const USER_ID_BYTES_MAX: usize = 200;
pub const EVENT_TYPE_BYTES_MAX: usize = 100;
pub const PAGE_URL_BYTES_MAX: usize = 2048;
pub const SESSION_ID_BYTES_MAX: usize = 200;

/// What a client writes when it had no id to write. As a user it would be one huge user, as an event id it would make
/// all events duplicates of the first.
const PLACEHOLDERS: [&str; 6] = ["null", "undefined", "none", "nil", "nan", "[object object]"];

/// The rules, as of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    pub limits: &'a EventLimits,
    pub shape: Shape,
    pub now_us: i64,
}

/// An event that keeps the rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid<'a> {
    pub(super) event_id: Option<Cow<'a, str>>,
    pub(super) user_id: Cow<'a, str>,
    pub(super) event_type: Cow<'a, str>,
    pub(super) occurred_at_us: i64,
    pub(super) page_url: Cow<'a, str>,
    pub(super) session_id: Cow<'a, str>,
    pub(super) value: Option<f64>,
    pub(super) properties: &'a str,
}

impl Valid<'_> {
    pub fn event_type(&self) -> &str {
        &self.event_type
    }
}

/// Checks a draft against the rules; the first rule broken is the one named.
pub fn validate<'a>(draft: Draft<'a>, rules: &Rules<'_>) -> Result<Valid<'a>, Rejection> {
    match check(&draft, rules) {
        Ok(occurred_at_us) => Ok(Valid {
            event_id: draft.event_id.filter(|id| !id.is_empty()),
            user_id: draft.user_id.unwrap_or_default(),
            event_type: draft.event_type.unwrap_or_default(),
            occurred_at_us,
            page_url: draft.page_url.unwrap_or_default(),
            session_id: draft.session_id.unwrap_or_default(),
            value: draft.value,
            properties: draft.properties.unwrap_or_default(),
        }),
        Err(rejection) => Err(rejection.of(draft.event_id)),
    }
}

/// Checks every field and returns the event time.
fn check(draft: &Draft<'_>, rules: &Rules<'_>) -> Result<i64, Rejection> {
    let Shape {
        event_type,
        properties,
    } = rules.shape;
    required("user_id", draft.user_id.as_deref(), USER_ID_BYTES_MAX)?;
    required(
        event_type,
        draft.event_type.as_deref(),
        EVENT_TYPE_BYTES_MAX,
    )?;
    if let Some(user_id) = draft.user_id.as_deref() {
        not_a_placeholder("user_id", user_id)?;
    }
    if let Some(event_id) = draft.event_id.as_deref().filter(|id| !id.is_empty()) {
        text("event_id", event_id, EVENT_ID_BYTES_MAX)?;
        not_blank("event_id", event_id)?;
        not_a_placeholder("event_id", event_id)?;
    }
    text(
        "page_url",
        draft.page_url.as_deref().unwrap_or_default(),
        PAGE_URL_BYTES_MAX,
    )?;
    text(
        "session_id",
        draft.session_id.as_deref().unwrap_or_default(),
        SESSION_ID_BYTES_MAX,
    )?;
    if draft.value.is_some_and(|value| !value.is_finite()) {
        return Err(Rejection::new(
            ErrorCode::InvalidValue,
            "value",
            "value must be a finite number",
        ));
    }
    within(
        properties,
        draft.properties.unwrap_or_default(),
        rules.limits.properties_bytes_max,
    )?;
    occurred_at(&draft.occurred_at, rules)
}

fn required(field: &'static str, value: Option<&str>, bytes_max: usize) -> Result<(), Rejection> {
    let value = value.unwrap_or_default();
    if value.is_empty() {
        return Err(Rejection::new(
            ErrorCode::MissingField,
            field,
            format!("{field} is required"),
        ));
    }
    text(field, value, bytes_max)?;
    not_blank(field, value)
}

fn not_blank(field: &'static str, value: &str) -> Result<(), Rejection> {
    // Most values begin with something visible, and need no second look.
    if value.starts_with(char::is_whitespace) && value.trim().is_empty() {
        return Err(Rejection::new(
            ErrorCode::MissingField,
            field,
            format!("{field} is blank"),
        ));
    }
    Ok(())
}

/// No longer than its limit, and free of control characters, which neither logs nor databases carry well.
fn text(field: &'static str, value: &str, bytes_max: usize) -> Result<(), Rejection> {
    within(field, value, bytes_max)?;
    if value.bytes().any(|byte| byte.is_ascii_control()) {
        let message = format!("{field} must not hold control characters");
        return Err(Rejection::new(ErrorCode::InvalidValue, field, message));
    }
    Ok(())
}

fn within(field: &'static str, value: &str, bytes_max: usize) -> Result<(), Rejection> {
    if value.len() <= bytes_max {
        return Ok(());
    }
    let message = format!(
        "{field} is {} bytes long; at most {bytes_max} are allowed",
        value.len()
    );
    Err(Rejection::new(ErrorCode::FieldTooLong, field, message))
}

fn not_a_placeholder(field: &'static str, value: &str) -> Result<(), Rejection> {
    let value = value.trim();
    // The longest placeholder has 15 bytes; most ids are told by their length.
    if value.len() > 15
        || !PLACEHOLDERS
            .iter()
            .any(|placeholder| value.eq_ignore_ascii_case(placeholder))
    {
        return Ok(());
    }
    let message = format!(
        "{field} is {value:?}, which stands for no id; send the real one or leave the event out"
    );
    Err(Rejection::new(ErrorCode::PlaceholderId, field, message))
}

fn occurred_at(moment: &Moment<'_>, rules: &Rules<'_>) -> Result<i64, Rejection> {
    let (field, read) = match moment {
        Moment::Absent => return Ok(rules.now_us),
        Moment::Text(field, text) => (*field, timestamp::from_text(text)),
        Moment::Number(field, number) => (*field, timestamp::from_number(number)),
        Moment::Micros(us) => ("occurred_at_us", timestamp::in_range(*us)),
    };
    let us = read.map_err(|timestamp::Unreadable| {
        let message = format!(
            "{field} must be RFC 3339 or epoch seconds, milliseconds or microseconds, between 1990 and 9999"
        );
        Rejection::new(ErrorCode::InvalidTimestamp, field, message)
    })?;
    let future_max_us =
        i64::try_from(rules.limits.future_max_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
    if us > rules.now_us.saturating_add(future_max_us) {
        let ahead_ms = (us - rules.now_us) / 1_000;
        let message = format!(
            "{field} is {ahead_ms} ms ahead of the server's clock; at most {} are allowed",
            rules.limits.future_max_ms
        );
        return Err(Rejection::new(ErrorCode::TimestampInFuture, field, message));
    }
    Ok(us)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_US: i64 = 1_763_724_600_000_000;

    fn good() -> Draft<'static> {
        Draft {
            user_id: Some("u1".into()),
            event_type: Some("click".into()),
            ..Draft::default()
        }
    }

    fn run(draft: Draft<'_>) -> Result<Valid<'_>, Rejection> {
        let limits = EventLimits::default();
        validate(
            draft,
            &Rules {
                limits: &limits,
                shape: Shape::EVENT,
                now_us: NOW_US,
            },
        )
    }

    #[track_caller]
    fn refuses(change: impl FnOnce(&mut Draft<'static>), code: ErrorCode, field: &str) {
        let mut draft = good();
        change(&mut draft);
        let rejection = run(draft.clone()).expect_err(&format!("{draft:?} should be refused"));
        assert_eq!(
            (rejection.code, rejection.field),
            (code, Some(field)),
            "{draft:?}: {rejection:?}"
        );
        assert!(
            rejection.message.starts_with(field),
            "{}",
            rejection.message
        );
    }

    #[test]
    fn required_fields_are_required() {
        for blank in [None, Some(""), Some(" "), Some("\u{a0}\u{2003}")] {
            refuses(
                |draft| draft.user_id = blank.map(Into::into),
                ErrorCode::MissingField,
                "user_id",
            );
            refuses(
                |draft| draft.event_type = blank.map(Into::into),
                ErrorCode::MissingField,
                "event_type",
            );
        }
    }

    #[test]
    fn lengths_are_counted_in_bytes() {
        type Setter = fn(&mut Draft<'static>, String);
        let cases: [(&str, usize, Setter); 5] = [
            ("user_id", 200, |draft, text| {
                draft.user_id = Some(text.into())
            }),
            ("event_type", 100, |draft, text| {
                draft.event_type = Some(text.into())
            }),
            ("event_id", 128, |draft, text| {
                draft.event_id = Some(text.into())
            }),
            ("page_url", 2048, |draft, text| {
                draft.page_url = Some(text.into())
            }),
            ("session_id", 200, |draft, text| {
                draft.session_id = Some(text.into())
            }),
        ];
        for (field, max, set) in cases {
            for text in ["x".repeat(max), "é".repeat(max / 2)] {
                let mut draft = good();
                set(&mut draft, text);
                run(draft).unwrap_or_else(|rejection| panic!("{field}: {rejection:?}"));
            }
            for text in ["x".repeat(max + 1), "é".repeat(max / 2 + 1)] {
                refuses(|draft| set(draft, text), ErrorCode::FieldTooLong, field);
            }
            for control in ["a\0b", "a\nb", "a\u{7f}b"] {
                refuses(
                    |draft| set(draft, control.to_owned()),
                    ErrorCode::InvalidValue,
                    field,
                );
            }
        }
    }

    #[test]
    fn placeholders_are_no_ids() {
        for text in [
            "null",
            "NULL",
            " undefined ",
            "None",
            "nil",
            "NaN",
            "[object Object]",
        ] {
            refuses(
                |draft| draft.user_id = Some(text.into()),
                ErrorCode::PlaceholderId,
                "user_id",
            );
            refuses(
                |draft| draft.event_id = Some(text.into()),
                ErrorCode::PlaceholderId,
                "event_id",
            );
        }
        for text in ["0", "nullable", "undefined1", "user", "[object]"] {
            let draft = Draft {
                user_id: Some(text.into()),
                ..good()
            };
            assert_eq!(run(draft).unwrap().user_id, text);
        }
    }

    #[test]
    fn values_are_finite() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refuses(
                |draft| draft.value = Some(value),
                ErrorCode::InvalidValue,
                "value",
            );
        }
        for value in [0.0, -0.0, f64::MAX, f64::MIN_POSITIVE] {
            assert_eq!(
                run(Draft {
                    value: Some(value),
                    ..good()
                })
                .unwrap()
                .value,
                Some(value)
            );
        }
    }

    #[test]
    fn times_are_bounded_ahead_only() {
        let at = |us| Draft {
            occurred_at: Moment::Micros(us),
            ..good()
        };
        assert_eq!(run(good()).unwrap().occurred_at_us, NOW_US);
        for us in [timestamp::MIN_US, NOW_US, NOW_US + 300_000_000] {
            assert_eq!(run(at(us)).unwrap().occurred_at_us, us);
        }
        refuses(
            |draft| *draft = at(NOW_US + 300_000_001),
            ErrorCode::TimestampInFuture,
            "occurred_at_us",
        );
        refuses(
            |draft| *draft = at(timestamp::MIN_US - 1),
            ErrorCode::InvalidTimestamp,
            "occurred_at_us",
        );
        let text = Moment::Text("timestamp", "soon".into());
        refuses(
            |draft| draft.occurred_at = text,
            ErrorCode::InvalidTimestamp,
            "timestamp",
        );
        let number = Moment::Number("occurred_at", "17637246000");
        refuses(
            |draft| draft.occurred_at = number,
            ErrorCode::TimestampInFuture,
            "occurred_at",
        );
    }

    #[test]
    fn a_refusal_names_the_event_when_it_can() {
        let draft = Draft {
            event_id: Some("e1".into()),
            user_id: None,
            ..good()
        };
        assert_eq!(run(draft).unwrap_err().event_id.as_deref(), Some("e1"));
        let draft = Draft {
            event_id: Some("e".repeat(5000).into()),
            ..good()
        };
        assert_eq!(run(draft).unwrap_err().event_id, None, "too long to echo");
    }

    #[test]
    fn an_activity_is_refused_in_its_own_words() {
        let limits = EventLimits {
            properties_bytes_max: 2,
            ..EventLimits::default()
        };
        let rules = Rules {
            limits: &limits,
            shape: Shape::ACTIVITY,
            now_us: NOW_US,
        };
        let draft = Draft {
            event_type: None,
            ..good()
        };
        assert_eq!(
            validate(draft, &rules).unwrap_err().field,
            Some("activity_type")
        );
        let draft = Draft {
            properties: Some("{ }"),
            ..good()
        };
        assert_eq!(validate(draft, &rules).unwrap_err().field, Some("metadata"));
    }

    proptest! {
        #[test]
        fn what_passes_keeps_every_rule(
            user in "\\PC{0,220}", kind in "\\PC{0,110}", id in proptest::option::of("\\PC{0,140}"),
            value in any::<Option<f64>>(), us in any::<i64>(),
        ) {
            let draft = Draft {
                user_id: Some(user.as_str().into()),
                event_type: Some(kind.as_str().into()),
                event_id: id.as_deref().map(Into::into),
                value,
                occurred_at: Moment::Micros(us),
                ..Draft::default()
            };
            if let Ok(valid) = run(draft) {
                prop_assert!((1..=200).contains(&valid.user_id.len()));
                prop_assert!((1..=100).contains(&valid.event_type.len()));
                prop_assert!(valid.event_id.is_none_or(|id| (1..=128).contains(&id.len())));
                prop_assert!(valid.value.is_none_or(f64::is_finite));
                prop_assert!(valid.occurred_at_us <= NOW_US + 300_000_000);
            }
        }
    }
}
