//! Calls answered over gRPC: how many, how they ended, how long they took. The verdict on a call stands in its head if
//! it failed at once, else in the trailers behind its last message, so a call is measured to the end of its body.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tower::{Layer, Service};

use crate::context::TraceContext;
use crate::metric::{LatencyHistogram, OTHER};
use crate::metrics::Metrics;

/// The names of the codes, by number.
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// The codes that begin at zero for each method: success, and those that alerts look at.
const EXPECTED: [&str; 6] = [
    "ok",
    "invalid_argument",
    "deadline_exceeded",
    "resource_exhausted",
    "internal",
    "unavailable",
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    code: &'static str,
}

/// `rpc_server_requests_total` and `rpc_server_call_duration_seconds`; clones share them.
#[derive(Clone, Debug)]
pub struct RpcMetrics {
    requests: Family<Labels, Counter>,
    duration: Family<Labels, LatencyHistogram>,
    methods: Arc<HashSet<&'static str>>,
    under_way: Arc<AtomicUsize>,
}

impl RpcMetrics {
    /// Registers both, for methods named as in `package.Service/Method`; calls of others count as `other`.
    pub fn register(metrics: &Metrics, methods: &[&'static str]) -> Self {
        let rpc = RpcMetrics {
            requests: Family::default(),
            duration: Family::default(),
            methods: Arc::new(methods.iter().copied().collect()),
            under_way: Arc::default(),
        };
        for method in methods {
            for code in EXPECTED {
                let _ = rpc.requests.get_or_create_owned(&Labels { method, code });
            }
            let usual = Labels { method, code: "ok" };
            let _ = rpc.duration.get_or_create_owned(&usual);
        }
        metrics.with(|registry| {
            registry.register(
                "rpc_server_requests",
                "gRPC calls answered",
                rpc.requests.clone(),
            );
            registry.register(
                "rpc_server_call_duration_seconds",
                "Time from the start of a gRPC call to the end of its answer",
                rpc.duration.clone(),
            );
        });
        rpc
    }

    /// A layer that measures.
    pub fn layer(&self) -> RpcMetricsLayer {
        RpcMetricsLayer {
            metrics: self.clone(),
        }
    }

    /// Calls that have begun and whose answer has not ended.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    fn method(&self, path: &str) -> &'static str {
        let name = path.strip_prefix('/').unwrap_or(path);
        self.methods.get(name).copied().unwrap_or(OTHER)
    }
}

/// Measures calls. A handler that puts the [`TraceContext`] of its span into the extensions of its answer gives the
/// histogram an exemplar.
#[derive(Clone, Debug)]
pub struct RpcMetricsLayer {
    metrics: RpcMetrics,
}

impl<S> Layer<S> for RpcMetricsLayer {
    type Service = RpcMetricsService<S>;

    fn layer(&self, inner: S) -> RpcMetricsService<S> {
        RpcMetricsService {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct RpcMetricsService<S> {
    inner: S,
    metrics: RpcMetrics,
}

impl<S, B, R> Service<Request<B>> for RpcMetricsService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<MeasuredBody<R>>;
    type Error = S::Error;
    type Future = RpcMetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.metrics.under_way.fetch_add(1, Ordering::Relaxed);
        let call = Call {
            method: self.metrics.method(request.uri().path()),
            metrics: self.metrics.clone(),
            since: Instant::now(),
            trace: None,
            recorded: false,
        };
        RpcMetricsFuture {
            inner: self.inner.call(request),
            call: Some(call),
        }
    }
}

/// A call under way; one that is dropped before its verdict was cancelled.
#[derive(Debug)]
struct Call {
    metrics: RpcMetrics,
    method: &'static str,
    since: Instant,
    trace: Option<TraceContext>,
    recorded: bool,
}

impl Call {
    fn record(&mut self, code: &'static str) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let labels = Labels {
            method: self.method,
            code,
        };
        self.metrics.requests.get_or_create(&labels).inc();
        self.metrics
            .duration
            .get_or_create(&labels)
            .observe(self.since.elapsed().as_secs_f64(), self.trace);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.record("cancelled");
        self.metrics.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The verdict, if these headers or trailers hold it.
fn code(headers: &HeaderMap) -> Option<&'static str> {
    let status = headers.get("grpc-status")?.to_str().ok()?;
    let number: usize = status.parse().ok()?;
    Some(CODES.get(number).copied().unwrap_or("unknown"))
}

pin_project! {
    #[derive(Debug)]
    pub struct RpcMetricsFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F, R, E> Future for RpcMetricsFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<MeasuredBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let mut call = this.call.take();
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                if let Some(call) = &mut call {
                    call.record("internal");
                }
                return Poll::Ready(Err(error));
            }
        };
        if let Some(call) = &mut call {
            call.trace = response.extensions().get::<TraceContext>().copied();
            if let Some(code) = code(response.headers()) {
                call.record(code);
            }
        }
        Poll::Ready(Ok(response.map(|inner| MeasuredBody { inner, call })))
    }
}

pin_project! {
    /// The body of an answer, watched for its trailers.
    #[derive(Debug)]
    pub struct MeasuredBody<B> {
        #[pin]
        inner: B,
        call: Option<Call>,
    }
}

impl<B: Body> Body for MeasuredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let Some(call) = this.call {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.record(code(trailers).unwrap_or("ok"));
                    }
                }
                Some(Err(_)) => call.record("internal"),
                None => call.record("ok"),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Default> Default for MeasuredBody<B> {
    fn default() -> Self {
        MeasuredBody {
            inner: B::default(),
            call: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use std::convert::Infallible;
    use tower::{ServiceExt, service_fn};

    const METHOD: &str = "streamgauge.v1.Ingest/Submit";

    async fn answer(
        request: Request<&'static str>,
    ) -> Result<Response<impl Body<Data = Bytes, Error: std::fmt::Debug>>, Infallible> {
        let mut trailers = HeaderMap::new();
        let mut response = Response::builder();
        match *request.body() {
            "at once" => response = response.header("grpc-status", "16"),
            verdict => {
                trailers.insert("grpc-status", verdict.parse().unwrap());
            }
        }
        let body = Full::new(Bytes::from_static(b"message"));
        let body = body.with_trailers(async move { Some(Ok(trailers)) });
        Ok(response.body(body).unwrap())
    }

    fn request(path: &str, verdict: &'static str) -> Request<&'static str> {
        Request::builder().uri(path).body(verdict).unwrap()
    }

    #[tokio::test]
    async fn the_verdict_is_found_where_it_stands() {
        let metrics = Metrics::new("test");
        let rpc = RpcMetrics::register(&metrics, &[METHOD]);
        let service = rpc.layer().layer(service_fn(answer));
        let path = format!("/{METHOD}");
        for verdict in ["0", "8", "at once", "99"] {
            let response = service
                .clone()
                .oneshot(request(&path, verdict))
                .await
                .unwrap();
            response.into_body().collect().await.unwrap();
        }
        assert_eq!(rpc.under_way(), 0);
        let unread = service.clone().oneshot(request(&path, "0")).await.unwrap();
        assert_eq!(rpc.under_way(), 1);
        drop(unread);
        assert_eq!(rpc.under_way(), 0);
        let response = service
            .oneshot(request("/made.Up/Name", "0"))
            .await
            .unwrap();
        response.into_body().collect().await.unwrap();
        let text = metrics.encode();
        for (method, code, count) in [
            (METHOD, "ok", 1),
            (METHOD, "resource_exhausted", 1),
            (METHOD, "unauthenticated", 1),
            (METHOD, "unknown", 1),
            (METHOD, "cancelled", 1),
            (METHOD, "unavailable", 0),
            ("other", "ok", 1),
        ] {
            let line =
                format!("rpc_server_requests_total{{method=\"{method}\",code=\"{code}\"}} {count}");
            assert!(
                text.lines().any(|found| found == line),
                "{line} not in\n{text}"
            );
        }
        let line =
            format!("rpc_server_call_duration_seconds_count{{method=\"{METHOD}\",code=\"ok\"}} 1");
        assert!(
            text.lines().any(|found| found == line),
            "{line} not in\n{text}"
        );
    }
}
