//! What the gRPC door says and hears, apart from the calls themselves: verdicts and refusals as messages, deadlines, and
//! the statuses of messages that could not be read.

use std::time::Duration;

use streamgauge_proto::v1::{self, SubmitBatchResponse};
use streamgauge_proto::{ErrorCode, Problem};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::admission::Fields;
use crate::intake::{Outcome, Verdict};

/// Puts a message that could not be read down to the client, at the head of an answer.
pub fn unread_in_answer<B: Default>(response: http::Response<B>) -> http::Response<B> {
    let status = response.extensions().get::<Status>();
    match status.and_then(unread) {
        Some(problem) => Status::from(problem).into_http(),
        None => response,
    }
}

/// What a message that could not be read is over HTTP: one above the limit, which tonic calls "out of range", is too
/// large, and one that is broken, which tonic calls "internal", is malformed. (A defect of this service has details.)
pub fn unread(status: &Status) -> Option<Problem> {
    match status.code() {
        Code::OutOfRange => {
            let message = format!("{} (grpc.message_bytes_max)", status.message());
            Some(Problem::new(ErrorCode::BodyTooLarge, message))
        }
        Code::Internal if status.details().is_empty() => {
            let message = format!("the message cannot be read: {}", status.message());
            Some(Problem::new(ErrorCode::MalformedBody, message))
        }
        _ => None,
    }
}

/// The part of the caller's `grpc-timeout` that leaves time to answer, if that is the shorter one.
pub fn timeout(metadata: &MetadataMap, max: Duration) -> Duration {
    let header = metadata
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok());
    header
        .and_then(parse_timeout)
        .map_or(max, |timeout| max.min(timeout.mul_f64(0.9)))
}

/// `1S`, `500m`, `20u`: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

pub fn batch_response(outcome: &Outcome) -> SubmitBatchResponse {
    let counts = outcome.counts();
    SubmitBatchResponse {
        verdicts: outcome.verdicts().map(verdict).collect(),
        accepted: counts.accepted as u32,
        rejected: counts.rejected as u32,
        retry: counts.retry as u32,
    }
}

pub fn verdict(verdict: Verdict<'_>) -> v1::Verdict {
    match verdict {
        Verdict::Accepted { event_id } => v1::Verdict {
            status: v1::VerdictStatus::Accepted.into(),
            event_id: event_id.to_owned(),
            ..v1::Verdict::default()
        },
        Verdict::Rejected {
            event_id,
            code,
            field,
            message,
        } => v1::Verdict {
            status: v1::VerdictStatus::Rejected.into(),
            event_id: event_id.unwrap_or_default().to_owned(),
            code: code.as_str().to_owned(),
            field: field.unwrap_or_default().to_owned(),
            message: message.to_owned(),
        },
        Verdict::Retry { event_id, reason } => v1::Verdict {
            status: v1::VerdictStatus::Retry.into(),
            event_id: event_id.to_owned(),
            code: reason.code().as_str().to_owned(),
            message: reason.message().to_owned(),
            ..v1::Verdict::default()
        },
    }
}

pub fn refusal(problem: Problem) -> v1::Refusal {
    v1::Refusal {
        code: problem.code.as_str().to_owned(),
        retry_after_ms: problem
            .retry_after
            .map_or(0, |after| after.as_millis().max(1) as u64),
        message: problem.message,
    }
}

/// A refusal as a status, with what is left of the caller's allowances.
pub fn refusal_with(problem: Problem, fields: Option<Fields>) -> Status {
    let mut status = Status::from(problem);
    tell_allowances(status.metadata_mut(), fields);
    status
}

/// The same fields that HTTP answers have.
pub fn tell_allowances(metadata: &mut MetadataMap, fields: Option<Fields>) {
    let Some(fields) = fields else { return };
    for (name, value) in [
        (Fields::POLICY, fields.policy),
        (Fields::LIMIT, fields.limit),
    ] {
        if let Ok(value) = value.parse() {
            metadata.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1s", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn a_refusal_on_a_stream_says_when_to_come_back() {
        let problem = Problem::new(ErrorCode::RateLimited, "slow down")
            .retry_after(Duration::from_millis(250));
        assert_eq!(refusal(problem).retry_after_ms, 250);
        assert_eq!(
            refusal(Problem::new(ErrorCode::EmptyBody, "nothing")).retry_after_ms,
            0
        );
    }
}
