//! The operational routes that every service has.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::MatchedPath;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{Extensions, StatusCode, header};

use crate::health::Health;

/// The content type of `/metrics`.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes all metrics down as OpenMetrics text.
pub type Encoder = Arc<dyn Fn() -> String + Send + Sync>;

/// `/health` reports all conditions, `/livez` and `/readyz` are for probes, `/metrics` answers with what the closure
/// gives; none where that has a listener of its own.
pub fn ops_router<S>(health: Health, metrics: Option<Encoder>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let ready = health.clone();
    let router = Router::new()
        .route("/health", get(async move || report(&health)))
        // Whoever answers is alive: nothing outside the process may have it restarted.
        .route("/livez", get(async || "live"))
        .route(
            "/readyz",
            get(async move || {
                let ready = ready.ready();
                (status(ready), if ready { "ready" } else { "not ready" })
            }),
        );
    match metrics {
        Some(metrics) => router.merge(metrics_router(metrics)),
        None => router,
    }
}

/// `/metrics` alone.
pub(crate) fn metrics_router<S>(metrics: Encoder) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let answer = get(async move || ([(header::CONTENT_TYPE, OPENMETRICS)], metrics()));
    Router::new().route("/metrics", answer)
}

fn report(health: &Health) -> Response {
    let report = health.report();
    (status(report.ready), Json(report)).into_response()
}

fn status(ok: bool) -> StatusCode {
    if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// The pattern of the route that a request matched, for the `route` label of its metrics.
pub fn matched_path(extensions: &Extensions) -> Option<&str> {
    extensions.get::<MatchedPath>().map(MatchedPath::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    async fn fetch(router: &Router, path: &str) -> (StatusCode, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let content_type = response.headers()[header::CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (
            status,
            content_type,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn the_routes_follow_the_health() {
        let health = Health::new("producer");
        let kafka = health.condition("kafka");
        let router: Router = ops_router(health.clone(), Some(Arc::new(|| "# EOF\n".to_owned())));

        kafka.down("no broker");
        let (status, _, body) = fetch(&router, "/health").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let report: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(report["service"], "producer");
        assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(report["ready"], false);
        assert_eq!(report["conditions"][0]["detail"], "no broker");
        assert_eq!(
            fetch(&router, "/readyz").await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(fetch(&router, "/livez").await.0, StatusCode::OK);

        kafka.up();
        assert_eq!(fetch(&router, "/health").await.0, StatusCode::OK);
        assert_eq!(fetch(&router, "/readyz").await.0, StatusCode::OK);

        let (status, content_type, body) = fetch(&router, "/metrics").await;
        assert_eq!(
            (status, content_type.as_str(), body.as_str()),
            (StatusCode::OK, OPENMETRICS, "# EOF\n")
        );
    }

    #[tokio::test]
    async fn metrics_that_are_served_apart_are_not_here() {
        let router: Router = ops_router(Health::new("producer"), None);
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
    }
}
