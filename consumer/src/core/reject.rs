//! Why a record is not counted: the closed set of reasons that metrics, headers and tools share.

use std::borrow::Cow;

/// Why a record goes to the dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No value, or one of zero bytes; a tombstone is one of these.
    Empty,
    /// The value is larger than an event may be.
    Oversized,
    /// The value is not an encoded event.
    Undecodable,
    /// A required field is absent or empty.
    MissingField,
    /// A field is longer than its limit.
    FieldTooLong,
    /// The key is not the user id, so that the event lies in the wrong partition.
    WrongKey,
    /// The event time is before 1970, or further ahead of log time than is allowed.
    ImplausibleTime,
    /// The measure is not a finite number.
    InvalidValue,
    /// The event is older than the accepted age and not marked `historical`.
    Late,
    /// The record's own time is too far ahead of the clock to be taken for log time.
    RecordTimeAhead,
    /// The record was written to an offset that had its outcome, after the source lost its end.
    ReusedOffset,
}

impl Reason {
    /// Every reason, in order of definition.
    pub const ALL: [Reason; 11] = [
        Reason::Empty,
        Reason::Oversized,
        Reason::Undecodable,
        Reason::MissingField,
        Reason::FieldTooLong,
        Reason::WrongKey,
        Reason::ImplausibleTime,
        Reason::InvalidValue,
        Reason::Late,
        Reason::RecordTimeAhead,
        Reason::ReusedOffset,
    ];

    /// The stable text, in `snake_case`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::Oversized => "oversized",
            Reason::Undecodable => "undecodable",
            Reason::MissingField => "missing_field",
            Reason::FieldTooLong => "field_too_long",
            Reason::WrongKey => "wrong_key",
            Reason::ImplausibleTime => "implausible_time",
            Reason::InvalidValue => "invalid_value",
            Reason::Late => "late",
            Reason::RecordTimeAhead => "record_time_ahead",
            Reason::ReusedOffset => "reused_offset",
        }
    }

    /// The reason of a stable text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// Which step refused the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Reading the bytes.
    Decode,
    /// Judging what was read.
    Validate,
}

impl Step {
    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Step::Decode => "decode",
            Step::Validate => "validate",
        }
    }
}

/// A record refused: it ends in the dead-letter topic and the partition goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct Reject {
    /// The reason, for machines.
    pub reason: Reason,
    /// The step that refused it.
    pub step: Step,
    /// A sentence for people. It names fields and sizes, never the record's content.
    pub detail: Cow<'static, str>,
}

impl Reject {
    /// A refusal while reading the bytes.
    pub fn decode(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            step: Step::Decode,
            detail: detail.into(),
        }
    }

    /// A refusal of what was read.
    pub fn validate(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            step: Step::Validate,
            detail: detail.into(),
        }
    }
}
