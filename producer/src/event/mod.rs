//! From the bytes of a request to records for the log: decode, validate, encode.
//!
//! All of it is pure: no clock is read, nothing is sent and nothing logged, so that tables and properties test it
//! whole. Each stage has its own type. A [`Draft`] is what a client wrote, borrowed from the body; a
//! [`validate::Valid`] keeps every rule of the schema; a [`Batch`] holds the encoded payloads and the refusals, in
//! the order of the request, and borrows nothing. A refused event never changes the fate of its neighbours.

pub mod decode;
pub mod encode;
pub mod json;
pub mod timestamp;
pub mod validate;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use streamgauge_proto::ErrorCode;

pub use encode::{Batch, Ids, Stamp};

/// What one request and one event may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventLimits {
    /// Most events in one request.
    pub batch_events_max: usize,
    /// Largest event, in bytes of its JSON or protobuf form.
    pub event_bytes_max: usize,
    /// Largest `properties` object, in bytes.
    pub properties_bytes_max: usize,
    /// Deepest nesting of `properties`; the object itself counts as one. At most 128.
    pub properties_depth_max: u32,
    /// How far ahead of the server's clock an event may be, in milliseconds.
    pub future_max_ms: u64,
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            batch_events_max: 10_000,
            event_bytes_max: 256 * 1024,
            properties_bytes_max: 64 * 1024,
            properties_depth_max: 32,
            future_max_ms: 300_000,
        }
    }
}

/// An event as the client wrote it, borrowed from the request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft<'a> {
    pub event_id: Option<Cow<'a, str>>,
    pub user_id: Option<Cow<'a, str>>,
    pub event_type: Option<Cow<'a, str>>,
    pub page_url: Option<Cow<'a, str>>,
    pub session_id: Option<Cow<'a, str>>,
    pub value: Option<f64>,
    /// The text of a JSON object whose syntax and depth have been checked.
    pub properties: Option<&'a str>,
    pub occurred_at: Moment<'a>,
}

/// When an event happened, as the client wrote it and under which name.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Moment<'a> {
    #[default]
    Absent,
    Text(&'static str, Cow<'a, str>),
    Number(&'static str, &'a str),
    Micros(i64),
}

/// The names of the fields that differ between the shapes that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub event_type: &'static str,
    pub properties: &'static str,
}

impl Shape {
    /// `/v1/events`, `/ingest` and gRPC.
    pub const EVENT: Self = Self {
        event_type: "event_type",
        properties: "properties",
    };
    /// `/activity`.
    pub const ACTIVITY: Self = Self {
        event_type: "activity_type",
        properties: "metadata",
    };
}

/// Why one event was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub code: ErrorCode,
    pub field: Option<&'static str>,
    pub message: String,
    /// The client's id, when it could be read.
    pub event_id: Option<String>,
}

impl Rejection {
    pub fn new(
        code: ErrorCode,
        field: impl Into<Option<&'static str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code,
            field: field.into(),
            message: message.into(),
            event_id: None,
        }
    }

    /// Says which event it was.
    #[must_use]
    pub fn of(mut self, event_id: Option<Cow<'_, str>>) -> Self {
        // What is echoed stays within what an id may be.
        self.event_id = event_id
            .filter(|id| !id.is_empty() && id.len() <= validate::EVENT_ID_BYTES_MAX)
            .map(Cow::into_owned);
        self
    }
}
