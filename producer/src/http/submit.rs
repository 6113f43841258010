//! `POST /v1/events`: events in any of the four forms, and a verdict for each.

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use streamgauge_proto::Problem;
use streamgauge_telemetry::TraceContext;
use tokio::time::Instant;

use super::{Head, Shared, body, json, read_head, refuse, tell_allowances, traced, verdicts};
use crate::admission::Room;
use crate::event::Shape;
use crate::intake::Outcome;

pub async fn events(State(shared): State<Shared>, request: Request) -> Response {
    traced(
        &shared,
        request,
        "POST /v1/events",
        async |shared: &Shared, request, trace| {
            let answer = |submitted: Submitted| Ok(submitted.answer());
            answered(shared, request, Shape::EVENT, trace, answer).await
        },
    )
    .await
}

/// A request whose events have met their fate.
pub(super) struct Submitted {
    pub(super) outcome: Outcome,
    /// It was a single bare object.
    pub(super) single: bool,
    failed_only: bool,
    room: Room,
}

/// An answer that keeps its request's room until it has been sent, for a client that is slow to read it.
struct Held {
    text: String,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// Submits a request, writes its answer, and tells the client beside it what is left of its allowances.
pub(super) async fn answered(
    shared: &Shared,
    request: Request,
    shape: Shape,
    trace: Option<TraceContext>,
    write: impl FnOnce(Submitted) -> Result<Response, Problem>,
) -> Result<Response, Problem> {
    let head = read_head(shared, &request, trace)?;
    let client = head.submission.client.clone();
    let submitted = submit(shared, request, shape, head).await;
    let mut response = submitted
        .and_then(write)
        .unwrap_or_else(|problem| refuse(problem, trace));
    tell_allowances(shared, &client, &mut response);
    Ok(response)
}

/// Reads a request and submits its events.
async fn submit(
    shared: &Shared,
    request: Request,
    shape: Shape,
    head: Head,
) -> Result<Submitted, Problem> {
    let admission = &shared.intake.admission;
    if let Err(problem) = admission.may_read(&head.submission.client) {
        admission.keep_waiting().await;
        return Err(problem);
    }
    let body = request.into_body();
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let room = admission.room(expected.min(shared.limits.body_bytes_max))?;
    let body = body::read(body, head.encoding, &shared.limits, &room).await?;
    let format = head.format.format(&body)?;
    let (batch, summary) = shared
        .intake
        .read_json(&body, format, shape, &head.submission)?;
    room.grow(batch.memory())?;
    // The batch holds all that is needed of it.
    drop(body);
    let deadline = Instant::now() + head.timeout;
    let outcome = shared
        .intake
        .submit(batch, &head.submission, deadline)
        .await?;
    Ok(Submitted {
        outcome,
        single: summary.single,
        failed_only: head.query.failed_only,
        room,
    })
}

impl Submitted {
    /// 200 with verdicts, or 503 with verdicts when every event is to be sent again.
    pub(super) fn answer(self) -> Response {
        let outcome = self.outcome;
        let body = Bytes::from_owner(Held {
            text: verdicts::write_batch(&outcome, outcome.counts(), self.failed_only),
            _room: self.room,
        });
        match outcome.failed_whole() {
            None => json(StatusCode::OK, body),
            Some(reason) => {
                let mut response = json(StatusCode::SERVICE_UNAVAILABLE, body);
                let after = Problem::new(reason.code(), "")
                    .retry_after_seconds()
                    .unwrap_or(1);
                response
                    .headers_mut()
                    .insert(header::RETRY_AFTER, HeaderValue::from(after));
                response
            }
        }
    }
}
