//! `POST /ingest` and `POST /activity`, for clients that know those shapes and no verdicts.
//!
//! A single object is answered as a whole: 200 with its id, or a refusal, which names the id to retry with where the
//! event may have been written nevertheless. An array is answered with verdicts, as
//! `/v1/events` does.

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use streamgauge_proto::Problem;

use super::submit::Submitted;
use super::{Shared, json, submit, traced, verdicts};
use crate::event::Shape;

/// A click: `event_id`, `user_id`, `event_type`, `page_url`, `timestamp`.
pub async fn ingest(State(shared): State<Shared>, request: Request) -> Response {
    simple(&shared, request, "POST /ingest", Shape::EVENT).await
}

/// An activity: `user_id`, `activity_type`, `timestamp`, `metadata`.
pub async fn activity(State(shared): State<Shared>, request: Request) -> Response {
    simple(&shared, request, "POST /activity", Shape::ACTIVITY).await
}

async fn simple(shared: &Shared, request: Request, name: &'static str, shape: Shape) -> Response {
    traced(
        shared,
        request,
        name,
        async |shared: &Shared, request, trace| {
            submit::answered(shared, request, shape, trace, answer).await
        },
    )
    .await
}

fn answer(submitted: Submitted) -> Result<Response, Problem> {
    let first = submitted.outcome.verdicts().next();
    let Some(verdict) = first.filter(|_| submitted.single) else {
        return Ok(submitted.answer());
    };
    match verdict.problem() {
        Some(problem) => Err(problem),
        None => {
            let mut body = String::new();
            verdicts::write_verdict(&mut body, &verdict, None);
            Ok(json(StatusCode::OK, body))
        }
    }
}
