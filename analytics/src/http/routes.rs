//! The routes and their query parameters, as the OpenAPI document must have them.

/// A route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Its pattern.
    pub path: &'static str,
    /// Its query parameters; `filter` stands for `filter.DIMENSION`.
    pub query: &'static [&'static str],
}

/// What is asked for data.
pub const ROUTES: [Route; 9] = [
    Route {
        path: "/v1/series",
        query: &[
            "by", "from", "to", "last", "step", "window", "q", "limit", "filter",
        ],
    },
    Route {
        path: "/v1/series/names",
        query: &[],
    },
    Route {
        path: "/v1/top",
        query: &[
            "by", "from", "to", "last", "measure", "limit", "q", "filter",
        ],
    },
    Route {
        path: "/v1/distinct-users",
        query: &["by", "from", "to", "last", "filter"],
    },
    Route {
        path: "/v1/users/{user_id}/activity",
        query: &["page_url", "event_type", "limit"],
    },
    Route {
        path: "/v1/ledger",
        query: &[],
    },
    Route {
        path: "/v1/live",
        query: &["by", "interval_ms", "filter"],
    },
    Route {
        path: "/analytics/events",
        query: &["user_id", "page_url"],
    },
    Route {
        path: "/v1/openapi.yaml",
        query: &[],
    },
];

/// What probes and Prometheus ask for.
pub const OPS: [&str; 4] = ["/health", "/livez", "/readyz", "/metrics"];
