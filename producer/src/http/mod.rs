//! The HTTP door: routes, refusals, and what every answer carries.
//!
//! Handlers read a request, hand it to [`crate::intake`] and write the verdicts; no rule about events is known here.

mod admin;
mod body;
mod ledger;
mod simple;
mod submit;
mod verdicts;

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant as Stopwatch};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use streamgauge_lifecycle::{Encoder, Health, matched_path, ops_router};
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_telemetry::TraceContext;
use streamgauge_telemetry::context::TRACEPARENT;
use tower_http::catch_panic::CatchPanicLayer;

use crate::admission::Fields;
use crate::auth::Client;
use crate::config::Limits;
use crate::event::decode::Format;
use crate::intake::{Intake, Submission, idempotency_key};

/// Codings of bodies that are understood.
const ENCODINGS: HeaderValue = HeaderValue::from_static("gzip, deflate, br, zstd, identity");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
const HISTORICAL: HeaderName = HeaderName::from_static("x-historical");
const TIMEOUT: HeaderName = HeaderName::from_static("x-timeout-ms");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What handlers share.
#[derive(Clone)]
pub struct Shared {
    pub intake: Arc<Intake>,
    pub limits: Arc<Limits>,
    pub admin_body_bytes_max: usize,
}

/// All routes; `/metrics` where it is not served elsewhere.
pub fn router(shared: Shared, health: Health, metrics: Option<Encoder>) -> Router {
    let layer = shared.intake.metrics.http().layer(matched_path);
    Router::new()
        .route("/v1/events", post(submit::events))
        .route("/ingest", post(simple::ingest))
        .route("/activity", post(simple::activity))
        .route("/v1/ledger", get(ledger::read))
        .route("/v1/admin/rate-limits", get(admin::show).put(admin::change))
        .route(
            "/v1/admin/tracing",
            get(admin::show_sampling).put(admin::change_sampling),
        )
        .merge(ops_router(health, metrics))
        .fallback(async || {
            refuse(
                Problem::new(ErrorCode::NotFound, "there is no such route"),
                None,
            )
        })
        .method_not_allowed_fallback(async || {
            refuse(
                Problem::new(
                    ErrorCode::MethodNotAllowed,
                    "this route does not take that method",
                ),
                None,
            )
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(layer)
        .with_state(shared)
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a handler panicked");
    refuse(
        Problem::new(
            ErrorCode::Internal,
            "a defect of the service; its log says more",
        ),
        None,
    )
}

/// What the head of a request says, before the body is read.
struct Head {
    submission: Submission,
    format: MediaType,
    encoding: body::Encoding,
    timeout: Duration,
    query: Query,
}

/// The options that stand in the query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Query {
    historical: bool,
    /// `verdicts=failed`: leave out what was accepted.
    failed_only: bool,
}

/// How a body says it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MediaType {
    Json,
    Lines,
    /// What `curl -d` calls everything; JSON if it looks like it.
    Form,
}

impl MediaType {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Ok(Self::Json);
        };
        let essence = value
            .as_bytes()
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii();
        let is = |name: &str| essence.eq_ignore_ascii_case(name.as_bytes());
        if is("application/json") || is("text/plain") || is("text/json") || is("") {
            Ok(Self::Json)
        } else if is("application/x-ndjson") || is("application/ndjson") || is("application/jsonl")
        {
            Ok(Self::Lines)
        } else if is("application/x-www-form-urlencoded") {
            Ok(Self::Form)
        } else {
            Err(unsupported_media_type())
        }
    }

    fn format(self, body: &[u8]) -> Result<Format, Problem> {
        match self {
            Self::Json => Ok(Format::Json),
            Self::Lines => Ok(Format::Lines),
            Self::Form => match body.trim_ascii_start().first() {
                None | Some(b'{' | b'[') => Ok(Format::Json),
                Some(_) => Err(unsupported_media_type()),
            },
        }
    }
}

fn unsupported_media_type() -> Problem {
    let message = "send application/json, application/x-ndjson or text/plain";
    Problem::new(ErrorCode::UnsupportedMediaType, message).field("Content-Type")
}

impl Query {
    fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let mut parsed = Self::default();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            match pair {
                "historical=true" | "historical=1" | "historical" => parsed.historical = true,
                "verdicts=failed" => parsed.failed_only = true,
                "historical=false" | "historical=0" | "verdicts=all" => {}
                other => {
                    let name = other.split('=').next().unwrap_or_default();
                    let message = "the query takes historical=true|false and verdicts=all|failed";
                    return Err(Problem::new(ErrorCode::InvalidValue, message).field(name));
                }
            }
        }
        Ok(parsed)
    }
}

fn read_head(
    shared: &Shared,
    request: &Request,
    trace: Option<TraceContext>,
) -> Result<Head, Problem> {
    let intake = &shared.intake;
    let headers = request.headers();
    intake.admission.is_open()?;
    let authorization = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let address = intake.client_address.of(peer(request), headers);
    let client = intake.auth.client(authorization, address)?;
    let query = Query::parse(request.uri().query())?;
    let historical = query.historical || flag(headers, &HISTORICAL)?;
    let key = headers
        .get(IDEMPOTENCY_KEY)
        .map_or(Ok(None), |key| idempotency_key(key.as_bytes()))?;
    Ok(Head {
        submission: Submission {
            client,
            historical,
            idempotency_key: key,
            trace,
        },
        format: MediaType::of(headers)?,
        encoding: body::Encoding::of(headers)?,
        timeout: timeout(headers, shared.limits.request_timeout())?,
        query,
    })
}

fn peer(request: &Request) -> Option<IpAddr> {
    request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .map(|peer| peer.0.ip())
}

fn flag(headers: &HeaderMap, name: &HeaderName) -> Result<bool, Problem> {
    match headers.get(name).map(HeaderValue::as_bytes) {
        None | Some(b"false" | b"0") => Ok(false),
        Some(b"true" | b"1") => Ok(true),
        Some(_) => Err(
            Problem::new(ErrorCode::InvalidValue, "it is either true or false")
                .field(name.as_str()),
        ),
    }
}

/// The client's own time-out, if that is the shorter one.
fn timeout(headers: &HeaderMap, max: Duration) -> Result<Duration, Problem> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(max);
    };
    match value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
    {
        Some(millis @ 1..) => Ok(max.min(Duration::from_millis(millis))),
        _ => {
            let message = "it is a number of milliseconds, at least 1";
            Err(Problem::new(ErrorCode::InvalidValue, message).field(TIMEOUT.as_str()))
        }
    }
}

/// Runs a handler within a span of its own, and puts the trace into its answer when it is recorded.
async fn traced<F>(shared: &Shared, request: Request, name: &'static str, handler: F) -> Response
where
    F: AsyncFnOnce(&Shared, Request, Option<TraceContext>) -> Result<Response, Problem>,
{
    let watch = Stopwatch::now();
    let caller = request
        .headers()
        .get(TRACEPARENT)
        .and_then(|header| TraceContext::parse(header.as_bytes()));
    let mut span = shared.intake.tracer.start_server(name, caller);
    let trace = span.context().filter(|trace| trace.sampled);
    let mut response = match trace {
        None => handler(shared, request, None).await,
        Some(_) => span.scope(handler(shared, request, trace)).await,
    }
    .unwrap_or_else(|problem| refuse(problem, trace));
    let code = response.status().as_u16();
    span.set("http.response.status_code", i64::from(code));
    if code >= 500 {
        span.error(code.to_string());
    }
    if let Some(trace) = trace {
        sign(&mut response, trace);
    }
    shared
        .intake
        .metrics
        .request()
        .observe(watch.elapsed().as_secs_f64(), trace);
    response
}

fn sign(response: &mut Response, trace: TraceContext) {
    if let Ok(value) = HeaderValue::from_str(&trace.header()) {
        response.headers_mut().insert(TRACEPARENT, value);
    }
    if let Ok(value) = HeaderValue::from_str(&trace.trace_id_hex()) {
        response.headers_mut().insert(TRACE_ID, value);
    }
    response.extensions_mut().insert(trace);
}

/// Tells a client what is left of its allowances.
fn tell_allowances(shared: &Shared, client: &Client, response: &mut Response) {
    let headers = response.headers_mut();
    let retry_after = headers.get(header::RETRY_AFTER);
    let retry_after_s = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(fields) = shared.intake.admission.fields(client, retry_after_s) else {
        return;
    };
    for (name, value) in [
        (Fields::POLICY, fields.policy),
        (Fields::LIMIT, fields.limit),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// A JSON answer.
fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// The answer to a request that is refused as a whole.
fn refuse(mut problem: Problem, trace: Option<TraceContext>) -> Response {
    let recorded = trace.filter(|trace| trace.sampled);
    problem.trace_id = recorded.map(|trace| trace.trace_id_hex().into());
    let status = StatusCode::from_u16(problem.code.http_status())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, problem.to_json());
    let headers = response.headers_mut();
    if let Some(seconds) = problem.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    match problem.code {
        ErrorCode::Unauthenticated => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        ErrorCode::UnsupportedEncoding => {
            headers.insert(header::ACCEPT_ENCODING, ENCODINGS);
        }
        _ => {}
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn content_types_are_told_by_their_essence() {
        for (value, expected) in [
            ("application/json", Some(MediaType::Json)),
            ("Application/JSON; charset=utf-8", Some(MediaType::Json)),
            ("text/plain;charset=UTF-8", Some(MediaType::Json)),
            ("application/x-ndjson", Some(MediaType::Lines)),
            ("application/x-www-form-urlencoded", Some(MediaType::Form)),
            ("application/xml", None),
            ("application/octet-stream", None),
            ("multipart/form-data; boundary=x", None),
        ] {
            assert_eq!(
                MediaType::of(&headers(header::CONTENT_TYPE, value)).ok(),
                expected,
                "{value}"
            );
        }
        assert_eq!(MediaType::of(&HeaderMap::new()).ok(), Some(MediaType::Json));
    }

    #[test]
    fn a_form_is_json_only_if_it_looks_like_it() {
        for body in [" {\"a\":1}", "[1]", ""] {
            assert_eq!(
                MediaType::Form.format(body.as_bytes()).ok(),
                Some(Format::Json)
            );
        }
        assert_eq!(
            MediaType::Form.format(b"user_id=u1").unwrap_err().code,
            ErrorCode::UnsupportedMediaType
        );
    }

    #[test]
    fn queries_are_read_or_refused() {
        let parse = |query| Query::parse(Some(query)).ok();
        assert_eq!(Query::parse(None).ok(), Some(Query::default()));
        assert_eq!(
            parse("historical=true&verdicts=failed"),
            Some(Query {
                historical: true,
                failed_only: true
            })
        );
        assert_eq!(
            parse("historical=false&verdicts=all&"),
            Some(Query::default())
        );
        assert_eq!(
            Query::parse(Some("histerical=true"))
                .unwrap_err()
                .field
                .as_deref(),
            Some("histerical")
        );
        assert_eq!(parse("verdicts=some"), None);
    }

    #[test]
    fn a_client_may_wait_less_but_not_longer() {
        let max = Duration::from_secs(10);
        for (value, expected) in [
            ("500", Some(500)),
            ("60000", Some(10_000)),
            ("0", None),
            ("soon", None),
        ] {
            let timeout = timeout(&headers(TIMEOUT, value), max).ok();
            assert_eq!(timeout, expected.map(Duration::from_millis), "{value}");
        }
    }
}
