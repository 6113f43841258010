//! Requests answered over HTTP: how many, how they ended, how long they took. Routes are labelled by their pattern,
//! never by the path that was asked for.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{Extensions, Method, Request, Response};
use pin_project_lite::pin_project;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tower::{Layer, Service};

use crate::context::TraceContext;
use crate::metric::LatencyHistogram;
use crate::metrics::Metrics;

/// The code of a request whose client went away before the answer.
pub const CLIENT_GONE: u16 = 499;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    route: Cow<'static, str>,
    code: u16,
}

/// `http_server_requests_total` and `http_server_request_duration_seconds`; clones share them.
#[derive(Clone, Debug, Default)]
pub struct HttpMetrics {
    requests: Family<Labels, Counter>,
    duration: Family<Labels, LatencyHistogram>,
}

impl HttpMetrics {
    /// Registers both. `expected` names each route with its method and the codes it answers with, the usual one first:
    /// these begin at zero, and the usual one has a histogram from the start.
    pub fn register(metrics: &Metrics, expected: &[(&'static str, &'static str, &[u16])]) -> Self {
        let http = HttpMetrics::default();
        for (method, route, codes) in expected {
            for (index, code) in codes.iter().enumerate() {
                let labels = Labels {
                    method,
                    route: Cow::Borrowed(route),
                    code: *code,
                };
                let _ = http.requests.get_or_create_owned(&labels);
                if index == 0 {
                    let _ = http.duration.get_or_create_owned(&labels);
                }
            }
        }
        metrics.with(|registry| {
            registry.register(
                "http_server_requests",
                "HTTP requests answered",
                http.requests.clone(),
            );
            registry.register(
                "http_server_request_duration_seconds",
                "Time from the head of an HTTP request to the head of its answer",
                http.duration.clone(),
            );
        });
        http
    }

    /// A layer that measures. `route` finds the pattern that a request matched among its extensions, which is the
    /// router's business; put the layer where the router has matched already.
    pub fn layer(&self, route: fn(&Extensions) -> Option<&str>) -> HttpMetricsLayer {
        HttpMetricsLayer {
            metrics: self.clone(),
            route,
        }
    }

    fn record(&self, labels: Labels, seconds: f64, trace: Option<TraceContext>) {
        self.requests.get_or_create(&labels).inc();
        self.duration.get_or_create(&labels).observe(seconds, trace);
    }
}

/// Measures requests. A handler that puts the [`TraceContext`] of its span into the extensions of its answer gives the
/// histogram an exemplar.
#[derive(Clone, Debug)]
pub struct HttpMetricsLayer {
    metrics: HttpMetrics,
    route: fn(&Extensions) -> Option<&str>,
}

impl<S> Layer<S> for HttpMetricsLayer {
    type Service = HttpMetricsService<S>;

    fn layer(&self, inner: S) -> HttpMetricsService<S> {
        HttpMetricsService {
            inner,
            layer: self.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct HttpMetricsService<S> {
    inner: S,
    layer: HttpMetricsLayer,
}

impl<S, B, R> Service<Request<B>> for HttpMetricsService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = HttpMetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let route = match (self.layer.route)(request.extensions()) {
            Some(route) => Cow::Owned(route.to_owned()),
            None => Cow::Borrowed("unmatched"),
        };
        let pending = Pending {
            metrics: self.layer.metrics.clone(),
            method: method(request.method()),
            route,
            since: Instant::now(),
            recorded: false,
        };
        HttpMetricsFuture {
            inner: self.inner.call(request),
            pending,
        }
    }
}

/// A closed set: a client may send any word as a method.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// A request under way; one that is dropped was given up by its client.
#[derive(Debug)]
struct Pending {
    metrics: HttpMetrics,
    method: &'static str,
    route: Cow<'static, str>,
    since: Instant,
    recorded: bool,
}

impl Pending {
    fn record(&mut self, code: u16, trace: Option<TraceContext>) {
        self.recorded = true;
        let labels = Labels {
            method: self.method,
            route: std::mem::take(&mut self.route),
            code,
        };
        self.metrics
            .record(labels, self.since.elapsed().as_secs_f64(), trace);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.recorded {
            self.record(CLIENT_GONE, None);
        }
    }
}

pin_project! {
    #[derive(Debug)]
    pub struct HttpMetricsFuture<F> {
        #[pin]
        inner: F,
        pending: Pending,
    }
}

impl<F, R, E> Future for HttpMetricsFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        match &result {
            Ok(response) => {
                let trace = response.extensions().get::<TraceContext>().copied();
                this.pending.record(response.status().as_u16(), trace);
            }
            Err(_) => this.pending.record(500, None),
        }
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::{ServiceExt, service_fn};

    #[derive(Clone)]
    struct Route(&'static str);

    fn route(extensions: &Extensions) -> Option<&str> {
        extensions.get::<Route>().map(|route| route.0)
    }

    fn request(method: &str, route: Option<&'static str>) -> Request<()> {
        let mut request = Request::builder()
            .method(method)
            .uri("/v1/users/42")
            .body(())
            .unwrap();
        if let Some(route) = route {
            request.extensions_mut().insert(Route(route));
        }
        request
    }

    async fn answer(_: Request<()>) -> Result<Response<()>, Infallible> {
        let mut response = Response::builder().status(429).body(()).unwrap();
        response.extensions_mut().insert(TraceContext {
            trace_id: [7; 16],
            span_id: [1; 8],
            sampled: true,
        });
        Ok(response)
    }

    #[tokio::test]
    async fn requests_are_counted_by_pattern() {
        let metrics = Metrics::new("test");
        let http = HttpMetrics::register(&metrics, &[("POST", "/v1/events", &[200, 503])]);
        let service = http.layer(route).layer(service_fn(answer));
        for (method, route) in [
            ("GET", Some("/v1/users/{id}")),
            ("BREW", None),
            ("BREW", None),
        ] {
            service
                .clone()
                .oneshot(request(method, route))
                .await
                .unwrap();
        }
        let text = metrics.encode();
        for line in [
            "http_server_requests_total{method=\"POST\",route=\"/v1/events\",code=\"200\"} 0",
            "http_server_requests_total{method=\"POST\",route=\"/v1/events\",code=\"503\"} 0",
            "http_server_requests_total{method=\"GET\",route=\"/v1/users/{id}\",code=\"429\"} 1",
            "http_server_requests_total{method=\"OTHER\",route=\"unmatched\",code=\"429\"} 2",
            "http_server_request_duration_seconds_count{method=\"POST\",route=\"/v1/events\",code=\"200\"} 0",
            "http_server_request_duration_seconds_count{method=\"OTHER\",route=\"unmatched\",code=\"429\"} 2",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} not in\n{text}"
            );
        }
        assert!(
            text.contains(&format!("# {{trace_id=\"{}\"}}", "07".repeat(16))),
            "{text}"
        );
        assert!(!text.contains("users/42"));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_counts() {
        let metrics = Metrics::new("test");
        let http = HttpMetrics::register(&metrics, &[]);
        let never =
            service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, Infallible>>());
        let service = http.layer(route).layer(never);
        drop(service.oneshot(request("GET", Some("/slow"))));
        assert!(!metrics.encode().contains("499"), "it was never called");
        let mut service = http.layer(route).layer(never);
        drop(service.call(request("GET", Some("/slow"))));
        let line = "http_server_requests_total{method=\"GET\",route=\"/slow\",code=\"499\"} 1";
        assert!(metrics.encode().contains(line), "{}", metrics.encode());
    }
}
