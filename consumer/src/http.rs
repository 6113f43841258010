//! Health, metrics, a look at the owners, and the desk, over HTTP. Nothing about events is decided here.

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;
use streamgauge_lifecycle::{Encoder, Health, SharedClock, matched_path, ops_router};
use streamgauge_proto::{ErrorCode, Problem, v1};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    desk::{self, Desk},
    metrics::ConsumerMetrics,
    status::Board,
};

/// What handlers share.
#[derive(Clone)]
pub struct Shared {
    /// The owners.
    pub board: Board,
    /// Time.
    pub clock: SharedClock,
}

/// Which partitions a request is about; all when none is named.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Partitions {
    partitions: Vec<i32>,
}

/// All routes; `/metrics` where it is not served elsewhere.
pub fn router(
    shared: Shared,
    desk: Desk,
    metrics: &ConsumerMetrics,
    health: Health,
    exposed: Option<Encoder>,
) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route(
            "/v1/pause",
            post(async |state, body| set_paused(state, body, true)),
        )
        .route(
            "/v1/resume",
            post(async |state, body| set_paused(state, body, false)),
        )
        .with_state(shared)
        .merge(desk::http::router(desk))
        .merge(ops_router(health, exposed))
        .fallback(async || refuse(&Problem::new(ErrorCode::NotFound, "there is no such route")))
        .method_not_allowed_fallback(async || {
            refuse(&Problem::new(
                ErrorCode::MethodNotAllowed,
                "this route does not take that method",
            ))
        })
        .layer(CatchPanicLayer::new())
        .layer(metrics.http().layer(matched_path))
}

async fn status(State(shared): State<Shared>) -> Response {
    answer(&shared)
}

fn set_paused(State(shared): State<Shared>, body: Bytes, paused: bool) -> Response {
    let wanted = if body.trim_ascii().is_empty() {
        Ok(Partitions::default())
    } else {
        // Through a map: a struct by itself would be read from an array too, and `[]` pause everything.
        serde_json::from_slice(&body)
            .and_then(|map| Partitions::deserialize(serde_json::Value::Object(map)))
    };
    let wanted: Partitions = match wanted {
        Ok(wanted) => wanted,
        Err(error) => {
            let message = format!("send nothing or {{\"partitions\":[0,1]}}: {error}");
            return refuse(&Problem::new(ErrorCode::MalformedBody, message));
        }
    };
    match shared.board.set_paused(&wanted.partitions, paused) {
        Ok(()) => answer(&shared),
        Err(problem) => refuse(&problem),
    }
}

fn answer(shared: &Shared) -> Response {
    let status = shared.board.status(shared.clock.now_us());
    Json(json!({
        "instance": status.instance,
        "group": status.group,
        "partitions": status.partitions.iter().map(partition).collect::<Vec<_>>(),
    }))
    .into_response()
}

/// The fields of the gRPC answer, by the same names.
fn partition(status: &v1::PartitionStatus) -> serde_json::Value {
    json!({
        "partition": status.partition,
        "state": status.state,
        "head": status.head,
        "position": status.position,
        "end": status.end,
        "lag_records": status.lag_records,
        "lag_seconds": status.lag_seconds,
        "watermark_us": status.watermark_us,
        "committed": status.committed,
        "delta_position": status.delta_position,
        "dedupe_ids": status.dedupe_ids,
        "void_batches": status.void_batches,
        "last_error": status.last_error,
    })
}

/// A refusal as a response.
pub fn refuse(problem: &Problem) -> Response {
    let status = axum::http::StatusCode::from_u16(problem.code.http_status())
        .unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    let mut response = (status, json, problem.to_json()).into_response();
    if let Some(seconds) = problem.retry_after_seconds() {
        let headers = response.headers_mut();
        headers.insert(axum::http::header::RETRY_AFTER, seconds.into());
    }
    response
}
