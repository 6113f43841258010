//! `/v1/admin/rate-limits` and `/v1/admin/tracing`: what allowances hold, which share of events is traced, and the change
//! of both while the service runs.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use streamgauge_proto::{ErrorCode, Problem};

use super::{Shared, json, peer, refuse};
use crate::admin::{self, RateLimitsAnswer};
use crate::sampling;

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
    let limits = read(shared, request, "a set of rate limits")
        .await
        .map_err(|problem| admission.change_refused(problem))?;
    admin::change(admission, limits, &by)
}

/// Which share of events is traced.
pub async fn show_sampling(State(shared): State<Shared>, request: Request) -> Response {
    let intake = &shared.intake;
    match intake.admin.admit(peer(&request), request.headers()) {
        Ok(_) => answer(&sampling::show(&intake.tracer)),
        Err(problem) => refuse(problem, None),
    }
}

/// Changes that share.
pub async fn change_sampling(State(shared): State<Shared>, request: Request) -> Response {
    let changed = async {
        let intake = &shared.intake;
        let by = intake.admin.admit(peer(&request), request.headers())?;
        let wanted = read(&shared, request, "a sample_ratio").await?;
        sampling::change(&intake.tracer, wanted, &by)
    };
    match changed.await {
        Ok(changed) => answer(&changed),
        Err(problem) => refuse(problem, None),
    }
}

async fn read<T: DeserializeOwned>(
    shared: &Shared,
    request: Request,
    what: &str,
) -> Result<T, Problem> {
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
        let message = format!("the body is not {what}: {error}");
        Problem::new(ErrorCode::InvalidValue, message)
    })
}

fn answer(answer: &impl Serialize) -> Response {
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
