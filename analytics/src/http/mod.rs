//! The HTTP door: parameters in, JSON out. Each route reads its parameters into the message that gRPC takes, asks the
//! same service, and writes the answer's fields under their names, times as RFC 3339.

mod json;
mod params;
mod routes;

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{MethodRouter, get},
};
use futures::StreamExt;
use serde::Serialize;
use streamgauge_lifecycle::{Encoder, Health, matched_path, ops_router};
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_telemetry::{
    Metrics, TraceContext, context::TRACEPARENT, http_metrics::HttpMetrics,
};
use tokio_stream::wrappers::ReceiverStream;

use self::params::Params;
pub use self::routes::{OPS, Question, ROUTES, Route};
use crate::{
    app::Shared,
    error::{invalid, late},
    service::Service,
};

/// The document that describes the routes.
pub const OPENAPI: &str = include_str!("../../openapi.yaml");

/// The router of the service; `/metrics` where it is `exposed` here.
pub fn router(
    shared: Shared,
    health: Health,
    metrics: &Metrics,
    exposed: Option<Encoder>,
) -> Router {
    const CODES: [u16; 4] = [200, 400, 404, 503];
    let expected: Vec<(&'static str, &'static str, &[u16])> = ROUTES
        .iter()
        .map(|route| ("GET", route.path, &CODES[..]))
        .chain(OPS.iter().map(|path| ("GET", *path, &CODES[..1])))
        .collect();
    let layer = HttpMetrics::register(metrics, &expected).layer(matched_path);
    let questions = ROUTES.iter().fold(Router::new(), |router, route| {
        router.route(route.path, handler(route.question))
    });
    questions
        .with_state(shared)
        .merge(ops_router(health, exposed))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .route_layer(layer)
}

fn handler(question: Question) -> MethodRouter<Shared> {
    match question {
        Question::Series => get(series),
        Question::Names => get(names),
        Question::Top => get(top),
        Question::DistinctUsers => get(distinct_users),
        Question::UserActivity => get(user_activity),
        Question::Ledger => get(ledger),
        Question::Alerts => get(alerts),
        Question::Live => get(live),
        Question::UserEvents => get(user_events),
        Question::OpenApi => get(openapi),
    }
}

async fn series(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    respond(
        &shared,
        "GET /v1/series",
        &uri,
        &headers,
        |service, params| async move {
            let request = params::series(params)?;
            Ok(json::Series::from(service.series(request).await?))
        },
    )
    .await
}

async fn names(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    respond(
        &shared,
        "GET /v1/series/names",
        &uri,
        &headers,
        |service, params| async move {
            params.finish()?;
            Ok(json::Names::from(service.list_series()?))
        },
    )
    .await
}

async fn top(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    respond(
        &shared,
        "GET /v1/top",
        &uri,
        &headers,
        |service, params| async move {
            let request = params::top(params)?;
            Ok(json::Top::from(service.top(request).await?))
        },
    )
    .await
}

async fn distinct_users(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    respond(
        &shared,
        "GET /v1/distinct-users",
        &uri,
        &headers,
        |service, params| async move {
            let request = params::distinct_users(params)?;
            Ok(json::DistinctUsers::from(
                service.distinct_users(request).await?,
            ))
        },
    )
    .await
}

async fn user_activity(
    State(shared): State<Shared>,
    user_id: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let name = "GET /v1/users/{user_id}/activity";
    respond(
        &shared,
        name,
        &uri,
        &headers,
        |service, params| async move {
            let Path(user_id) = user_id.map_err(|error| {
                invalid("user_id", format!("the user_id cannot be read: {error}"))
            })?;
            let request = params::user_activity(params, user_id)?;
            Ok(json::UserActivity::from(
                service.user_activity(request).await?,
            ))
        },
    )
    .await
}

async fn user_events(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    respond(
        &shared,
        "GET /analytics/events",
        &uri,
        &headers,
        |service, params| async move {
            let (user_id, page_url) = params::user_events(params)?;
            let events = service.user_events(&user_id, &page_url).await?;
            Ok(json::UserEvents::new(events, user_id, page_url))
        },
    )
    .await
}

async fn ledger(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    respond(
        &shared,
        "GET /v1/ledger",
        &uri,
        &headers,
        |service, params| async move {
            let request = params::ledger(params)?;
            Ok(json::Ledger::from(service.judged_ledger(request).await?))
        },
    )
    .await
}

async fn alerts(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    respond(
        &shared,
        "GET /v1/alerts",
        &uri,
        &headers,
        |service, params| async move {
            let request = params::alerts(params)?;
            Ok(json::Alerts::from(service.alerts(request).await?))
        },
    )
    .await
}

async fn live(State(shared): State<Shared>, uri: Uri) -> Response {
    let now_us = shared.clock.now_us();
    let request = Params::read(&uri, now_us).and_then(params::watch);
    match request.and_then(|request| shared.live.watch(&shared.service, &request)) {
        Ok(receiver) => {
            let events = ReceiverStream::new(receiver).map(|message| {
                let data = json::Watch::from(message);
                let event = Event::default().event("change").json_data(data);
                Ok::<_, Infallible>(event.unwrap_or_else(|_| Event::default().event("error")))
            });
            Sse::new(events)
                .keep_alive(KeepAlive::new())
                .into_response()
        }
        Err(problem) => refuse(&problem),
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/yaml")], OPENAPI).into_response()
}

async fn unknown_route(uri: Uri) -> Response {
    let message = format!(
        "there is no {}; /v1/openapi.yaml lists what there is",
        uri.path()
    );
    refuse(&Problem::new(ErrorCode::NotFound, message))
}

async fn unknown_method() -> Response {
    let message = "this route is only read: use GET";
    let mut response = refuse(&Problem::new(ErrorCode::MethodNotAllowed, message));
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// Answers within a span, measured, in time.
async fn respond<A, F>(
    shared: &Shared,
    name: &'static str,
    uri: &Uri,
    headers: &HeaderMap,
    work: impl FnOnce(Arc<Service>, Params) -> F,
) -> Response
where
    A: Serialize,
    F: Future<Output = Result<A, Problem>>,
{
    let start = std::time::Instant::now();
    let caller = headers
        .get(TRACEPARENT)
        .and_then(|text| TraceContext::parse(text.as_bytes()));
    let mut span = shared.tracer.start_server(name, caller);
    let trace = span.context().filter(|trace| trace.sampled);
    let limit = Duration::from_millis(shared.service.config().http.request_timeout_ms);
    let answer = async {
        let params = Params::read(uri, shared.clock.now_us())?;
        let answer = tokio::time::timeout(limit, work(Arc::clone(&shared.service), params)).await;
        answer.map_err(|_| late(limit))?
    };
    let mut response = match span.scope(answer).await {
        Ok(answer) => json_response(&answer),
        Err(mut problem) => {
            problem.trace_id = trace.map(|trace| trace.trace_id_hex().into());
            refuse(&problem)
        }
    };
    let code = response.status().as_u16();
    span.set("http.response.status_code", i64::from(code));
    if code >= 500 {
        span.error(code.to_string());
    }
    if let Some(trace) = trace {
        response.extensions_mut().insert(trace);
    }
    shared
        .metrics
        .core
        .stage("query")
        .observe(start.elapsed().as_secs_f64(), trace);
    response
}

fn json_response(answer: &impl Serialize) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written");
            refuse(&Problem::new(
                ErrorCode::Internal,
                "the answer cannot be written",
            ))
        }
    }
}

fn refuse(problem: &Problem) -> Response {
    let code = StatusCode::from_u16(problem.code.http_status());
    let mut response = Response::new(Body::from(problem.to_json()));
    *response.status_mut() = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if let Some(seconds) = problem.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
