//! The routes and their query parameters, as the OpenAPI document must have them.

/// What a route asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the OpenAPI document says what each is")]
pub enum Question {
    Series,
    Names,
    Top,
    DistinctUsers,
    UserActivity,
    Ledger,
    Alerts,
    Live,
    UserEvents,
    OpenApi,
}

/// A route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// What it asks.
    pub question: Question,
    /// Its pattern.
    pub path: &'static str,
    /// Its query parameters; `filter` stands for `filter.DIMENSION`.
    pub query: &'static [&'static str],
}

/// What is asked for data.
pub const ROUTES: [Route; 10] = [
    Route {
        question: Question::Series,
        path: "/v1/series",
        query: &[
            "by", "from", "to", "last", "step", "window", "q", "limit", "filter",
        ],
    },
    Route {
        question: Question::Names,
        path: "/v1/series/names",
        query: &[],
    },
    Route {
        question: Question::Top,
        path: "/v1/top",
        query: &[
            "by", "from", "to", "last", "measure", "limit", "q", "filter",
        ],
    },
    Route {
        question: Question::DistinctUsers,
        path: "/v1/distinct-users",
        query: &["by", "from", "to", "last", "filter"],
    },
    Route {
        question: Question::UserActivity,
        path: "/v1/users/{user_id}/activity",
        query: &["page_url", "event_type", "limit"],
    },
    Route {
        question: Question::Ledger,
        path: "/v1/ledger",
        query: &["check_store"],
    },
    Route {
        question: Question::Alerts,
        path: "/v1/alerts",
        query: &["all"],
    },
    Route {
        question: Question::Live,
        path: "/v1/live",
        query: &["by", "interval_ms", "filter"],
    },
    Route {
        question: Question::UserEvents,
        path: "/analytics/events",
        query: &["user_id", "page_url"],
    },
    Route {
        question: Question::OpenApi,
        path: "/v1/openapi.yaml",
        query: &[],
    },
];

/// What probes and Prometheus ask for.
pub const OPS: [&str; 4] = ["/health", "/livez", "/readyz", "/metrics"];
