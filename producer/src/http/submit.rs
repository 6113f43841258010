//! `POST /v1/events`: events in any of the four forms, and a verdict for each.

use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use streamgauge_proto::Problem;
use streamgauge_telemetry::TraceContext;
use tokio::time::Instant;

use super::{Head, Shared, body, json, read_head, traced, verdicts};
use crate::event::Shape;
use crate::intake::Outcome;

pub async fn events(State(shared): State<Shared>, request: Request) -> Response {
    traced(
        &shared,
        request,
        "POST /v1/events",
        async |shared: &Shared, request, trace| {
            let (outcome, head, _) = submit(shared, request, Shape::EVENT, trace).await?;
            Ok(answer(&outcome, head.query.failed_only))
        },
    )
    .await
}

/// Reads a request and submits its events. Also says whether it was a single bare object.
pub(super) async fn submit(
    shared: &Shared,
    request: Request,
    shape: Shape,
    trace: Option<TraceContext>,
) -> Result<(Outcome, Head, bool), Problem> {
    let head = read_head(shared, &request, trace)?;
    let body = body::read(request.into_body(), head.encoding, &shared.limits).await?;
    let format = head.format.format(&body)?;
    let (batch, summary) = shared
        .intake
        .read_json(&body, format, shape, &head.submission)?;
    // The batch holds all that is needed of it.
    drop(body);
    let deadline = Instant::now() + head.timeout;
    let outcome = shared
        .intake
        .submit(batch, &head.submission, deadline)
        .await?;
    Ok((outcome, head, summary.single))
}

/// 200 with verdicts, or 503 with verdicts when every event is to be sent again.
pub(super) fn answer(outcome: &Outcome, failed_only: bool) -> Response {
    let body = verdicts::write_batch(outcome, outcome.counts(), failed_only);
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
