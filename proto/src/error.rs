//! Error codes and their one mapping to HTTP and gRPC.
//!
//! A code is stable and machine-readable; the sentence beside it is for people and may change.

use std::{fmt, time::Duration};

use serde::Serialize;

macro_rules! codes {
    ($( $(#[$doc:meta])* $variant:ident = $text:literal, $http:literal, $grpc:ident, $retry:literal; )*) => {
        /// Why a request or an event was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $( $(#[$doc])* $variant, )* }

        impl ErrorCode {
            /// Every code, in order of definition.
            pub const ALL: &'static [ErrorCode] = &[ $( ErrorCode::$variant, )* ];

            /// The stable text of the code, in `snake_case`.
            pub const fn as_str(self) -> &'static str {
                match self { $( ErrorCode::$variant => $text, )* }
            }

            /// The HTTP status of a request that is refused with this code.
            pub const fn http_status(self) -> u16 {
                match self { $( ErrorCode::$variant => $http, )* }
            }

            /// The gRPC status of a request that is refused with this code.
            pub const fn grpc_code(self) -> tonic::Code {
                match self { $( ErrorCode::$variant => tonic::Code::$grpc, )* }
            }

            /// Whether the same request may succeed later, unchanged.
            pub const fn is_retryable(self) -> bool {
                match self { $( ErrorCode::$variant => $retry, )* }
            }
        }
    };
}

codes! {
    /// The request has no body, or the body holds no event.
    EmptyBody = "empty_body", 400, InvalidArgument, false;
    /// The body is not what its content type says.
    MalformedBody = "malformed_body", 400, InvalidArgument, false;
    /// A field has the wrong JSON or protobuf type.
    WrongType = "wrong_type", 400, InvalidArgument, false;
    /// A required field is absent or empty.
    MissingField = "missing_field", 400, InvalidArgument, false;
    /// A field is longer than its limit.
    FieldTooLong = "field_too_long", 400, InvalidArgument, false;
    /// An id that stands for "nothing", such as `null` or `undefined`.
    PlaceholderId = "placeholder_id", 400, InvalidArgument, false;
    /// A field's value cannot be read or is out of its range.
    InvalidValue = "invalid_value", 400, InvalidArgument, false;
    /// A timestamp that cannot be read.
    InvalidTimestamp = "invalid_timestamp", 400, InvalidArgument, false;
    /// A timestamp further ahead of the server's clock than is allowed.
    TimestampInFuture = "timestamp_in_future", 400, InvalidArgument, false;
    /// Nested deeper than is allowed.
    TooDeep = "too_deep", 400, InvalidArgument, false;
    /// One event is larger than is allowed.
    EventTooLarge = "event_too_large", 413, InvalidArgument, false;
    /// More events in one request than are allowed.
    TooManyEvents = "too_many_events", 413, InvalidArgument, false;
    /// A request, or what it decompresses to, is larger than is allowed.
    BodyTooLarge = "body_too_large", 413, ResourceExhausted, false;
    /// The content type cannot be read.
    UnsupportedMediaType = "unsupported_media_type", 415, InvalidArgument, false;
    /// The content encoding cannot be read.
    UnsupportedEncoding = "unsupported_encoding", 415, InvalidArgument, false;
    /// No credential, or one that is not known.
    Unauthenticated = "unauthenticated", 401, Unauthenticated, false;
    /// The credential does not allow this.
    PermissionDenied = "permission_denied", 403, PermissionDenied, false;
    /// No such route, series or record.
    NotFound = "not_found", 404, NotFound, false;
    /// The route exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405, Unimplemented, false;
    /// Another call of the kind that goes one at a time is under way.
    Busy = "busy", 409, Aborted, false;
    /// The body did not arrive in time.
    BodyTimeout = "body_timeout", 408, DeadlineExceeded, true;
    /// The client's token bucket is empty.
    RateLimited = "rate_limited", 429, ResourceExhausted, true;
    /// More work than the service takes on at once.
    Overloaded = "overloaded", 503, Unavailable, true;
    /// The log cannot be written now.
    LogUnavailable = "log_unavailable", 503, Unavailable, true;
    /// The store cannot be read or written now.
    StoreUnavailable = "store_unavailable", 503, Unavailable, true;
    /// Alertmanager cannot be asked now.
    AlertsUnavailable = "alerts_unavailable", 503, Unavailable, true;
    /// The service is starting or stopping.
    NotReady = "not_ready", 503, Unavailable, true;
    /// The deadline passed before the outcome was known.
    DeadlineExceeded = "deadline_exceeded", 503, DeadlineExceeded, true;
    /// A defect of the service; the log has the cause.
    Internal = "internal", 500, Internal, false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A refusal as the public reads it. What the log reads stays in the service's own error type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The stable code.
    pub code: ErrorCode,
    /// A sentence that says what to do.
    pub message: String,
    /// The field or setting at fault, when there is one.
    pub field: Option<String>,
    /// When to try again; set for every retryable code.
    pub retry_after: Option<Duration>,
    /// The id under which the request's one event was tried. It may have been taken after all, so that a retry must
    /// carry this id to be recognised.
    pub event_id: Option<Box<str>>,
    /// The trace that shows what happened, where one is recorded.
    pub trace_id: Option<Box<str>>,
}

impl Problem {
    /// A problem with this code and sentence. Retryable codes ask for a retry after one second
    /// until [`Problem::retry_after`] says otherwise.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retry_after = code.is_retryable().then_some(Duration::from_secs(1));
        Self {
            code,
            message: message.into(),
            field: None,
            retry_after,
            event_id: None,
            trace_id: None,
        }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says under which id the event is to be sent again.
    #[must_use]
    pub fn event_id(mut self, event_id: impl Into<Box<str>>) -> Self {
        self.event_id = Some(event_id.into());
        self
    }

    /// Names the trace that shows what happened.
    #[must_use]
    pub fn trace_id(mut self, trace_id: impl Into<Box<str>>) -> Self {
        self.trace_id = Some(trace_id.into());
        self
    }

    /// The value of the `Retry-After` header: whole seconds, rounded up, at least 1.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after
            .map(|after| (after.as_secs_f64().ceil() as u64).max(1))
    }

    /// The JSON body of an HTTP refusal: `{"error":{"code":…,"message":…,"field":…,"retry_after_ms":…,
    /// "event_id":…,"trace_id":…}}`.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            code: ErrorCode,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_ms: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            event_id: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            trace_id: Option<&'a str>,
        }
        let body = Body {
            error: Inner {
                code: self.code,
                message: &self.message,
                field: self.field.as_deref(),
                retry_after_ms: self.retry_after.map(|after| after.as_millis() as u64),
                event_id: self.event_id.as_deref(),
                trace_id: self.trace_id.as_deref(),
            },
        };
        serde_json::to_string(&body).unwrap_or_else(|_| String::from("{\"error\":{}}"))
    }
}

impl From<Problem> for tonic::Status {
    fn from(problem: Problem) -> Self {
        let details = rich::details(&problem);
        tonic::Status::with_details(problem.code.grpc_code(), problem.message, details)
    }
}

/// `google.rpc.Status` details, hand-declared: three messages do not justify a crate.
mod rich {
    use std::collections::BTreeMap;

    use prost::Message;

    use super::Problem;

    #[derive(Clone, PartialEq, Message)]
    struct Any {
        #[prost(string, tag = "1")]
        type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(int32, tag = "1")]
        code: i32,
        #[prost(string, tag = "2")]
        message: String,
        #[prost(message, repeated, tag = "3")]
        details: Vec<Any>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct ErrorInfo {
        #[prost(string, tag = "1")]
        reason: String,
        #[prost(string, tag = "2")]
        domain: String,
        #[prost(btree_map = "string, string", tag = "3")]
        metadata: BTreeMap<String, String>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Delay {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        retry_delay: Option<Delay>,
    }

    fn any(name: &str, message: &impl Message) -> Any {
        Any {
            type_url: format!("type.googleapis.com/google.rpc.{name}"),
            value: message.encode_to_vec(),
        }
    }

    /// The encoded `google.rpc.Status` with an `ErrorInfo`, and a `RetryInfo` where a retry helps.
    pub(super) fn details(problem: &Problem) -> bytes::Bytes {
        let info = ErrorInfo {
            reason: problem.code.as_str().to_owned(),
            domain: String::from("streamgauge"),
            metadata: [
                ("event_id", &problem.event_id),
                ("trace_id", &problem.trace_id),
            ]
            .into_iter()
            .filter_map(|(name, id)| Some((name.to_owned(), id.as_deref()?.to_owned())))
            .collect(),
        };
        let mut details = vec![any("ErrorInfo", &info)];
        if let Some(after) = problem.retry_after {
            let delay = Delay {
                seconds: after.as_secs() as i64,
                nanos: after.subsec_nanos() as i32,
            };
            details.push(any(
                "RetryInfo",
                &RetryInfo {
                    retry_delay: Some(delay),
                },
            ));
        }
        let status = Status {
            code: problem.code.grpc_code() as i32,
            message: problem.message.clone(),
            details,
        };
        status.encode_to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_snake_case() {
        let texts: HashSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        for text in texts {
            assert!(
                text.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{text}"
            );
        }
    }

    #[test]
    fn retryable_codes_map_to_statuses_that_clients_retry() {
        for code in ErrorCode::ALL {
            let retried = matches!(code.http_status(), 408 | 429 | 503);
            assert_eq!(code.is_retryable(), retried, "{code}");
            assert_eq!(
                Problem::new(*code, "x").retry_after.is_some(),
                retried,
                "{code}"
            );
        }
    }

    #[test]
    fn retry_after_rounds_up_to_whole_seconds() {
        let problem = Problem::new(ErrorCode::RateLimited, "slow down");
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_500, 60)] {
            let after = problem.clone().retry_after(Duration::from_millis(millis));
            assert_eq!(after.retry_after_seconds(), Some(seconds), "{millis} ms");
        }
    }

    #[test]
    fn a_status_carries_its_reason_and_delay() {
        let status: tonic::Status = Problem::new(ErrorCode::RateLimited, "slow down")
            .retry_after(Duration::from_millis(1500))
            .into();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        let details = status.details();
        let has = |needle: &[u8]| details.windows(needle.len()).any(|part| part == needle);
        assert!(has(b"rate_limited") && has(b"google.rpc.RetryInfo"));
        assert!(!has(b"event_id"));
    }

    #[test]
    fn the_id_to_retry_with_and_the_trace_are_told_in_both_forms() {
        let problem = Problem::new(ErrorCode::LogUnavailable, "no answer");
        let problem = problem.event_id("e-1").trace_id("abab");
        let json: serde_json::Value = serde_json::from_str(&problem.to_json()).unwrap();
        assert_eq!(json["error"]["event_id"], "e-1");
        assert_eq!(json["error"]["trace_id"], "abab");
        let status: tonic::Status = problem.into();
        let has = |needle: &[u8]| {
            status
                .details()
                .windows(needle.len())
                .any(|part| part == needle)
        };
        assert!(has(b"event_id") && has(b"e-1"));
        assert!(has(b"trace_id") && has(b"abab"));
    }
}
