//! `/v1/admin/rate-limits`: what allowances hold, and their change while the service runs.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use streamgauge_proto::{ErrorCode, Problem};

use super::{Shared, json, peer, refuse};
use crate::admin::{self, RateLimitsAnswer};
use crate::admission::rates::RateLimits;

/// What holds now.
pub async fn show(State(shared): State<Shared>, request: Request) -> Response {
    let intake = &shared.intake;
    match intake.admin.admit(peer(&request), request.headers()) {
        Ok(_) => answer(&admin::show(&intake.admission)),
        Err(problem) => refuse(problem, None),
    }
}

/// Puts other allowances in the place of those that hold.
pub async fn change(State(shared): State<Shared>, request: Request) -> Response {
    match try_change(&shared, request).await {
        Ok(changed) => answer(&changed),
        Err(problem) => refuse(problem, None),
    }
}

async fn try_change(shared: &Shared, request: Request) -> Result<RateLimitsAnswer, Problem> {
    let intake = &shared.intake;
    let admission = &intake.admission;
    let by = intake.admin.admit(peer(&request), request.headers())?;
    let limits = read(shared, request)
        .await
        .map_err(|problem| admission.change_refused(problem))?;
    admin::change(admission, limits, &by)
}

async fn read(shared: &Shared, request: Request) -> Result<RateLimits, Problem> {
    let max = shared.admin_body_bytes_max;
    let timeout = Duration::from_millis(shared.limits.body_timeout_ms);
    let body = tokio::time::timeout(timeout, to_bytes(request.into_body(), max))
        .await
        .map_err(|_| Problem::new(ErrorCode::BodyTimeout, "the body did not arrive in time"))?
        .map_err(|_| {
            let message = format!(
                "the body ended early or is larger than {max} bytes (admin.body_bytes_max)"
            );
            Problem::new(ErrorCode::BodyTooLarge, message)
        })?;
    serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body is not a set of rate limits: {error}");
        Problem::new(ErrorCode::InvalidValue, message)
    })
}

fn answer(answer: &RateLimitsAnswer) -> Response {
    let Ok(body) = serde_json::to_vec(answer) else {
        let problem = Problem::new(ErrorCode::Internal, "the answer cannot be written");
        return refuse(problem, None);
    };
    let mut response = json(StatusCode::OK, body);
    // What holds now, not what held when somebody asked before.
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
