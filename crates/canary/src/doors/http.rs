//! The HTTP door.

use jiff::Timestamp;
use reqwest::{Client, StatusCode};
use serde::{Deserialize, Serialize};
use streamgauge_chain::canary::SERIES;
use streamgauge_settings::Secret;
use streamgauge_telemetry::TraceContext;

use super::NotYet;
use crate::{
    CanaryConfig, CanaryError,
    probe::{Probe, Shown},
};

/// Idle connections that are kept to each service.
const IDLE_MAX: usize = 1;

#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    client: Client,
    submit: String,
    query: String,
    token: Secret,
}

#[derive(Serialize)]
struct Submission<'a> {
    events: [Event<'a>; 1],
}

#[derive(Serialize)]
struct Event<'a> {
    event_id: &'a str,
    user_id: &'a str,
    event_type: &'a str,
    occurred_at: String,
}

#[derive(Deserialize)]
struct Verdicts {
    verdicts: Vec<Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    status: String,
}

#[derive(Deserialize)]
struct Series {
    series: Vec<KeySeries>,
}

#[derive(Deserialize)]
struct KeySeries {
    key: Vec<String>,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    start: String,
    value: Value,
}

#[derive(Deserialize)]
struct Value {
    count: u64,
}

impl Visitor {
    pub(super) fn new(config: &CanaryConfig, query: &str) -> Result<Self, CanaryError> {
        let client = Client::builder()
            .timeout(config.request_timeout())
            .pool_max_idle_per_host(IDLE_MAX)
            .no_proxy()
            .build()
            .map_err(CanaryError::Client)?;
        Ok(Self {
            client,
            submit: format!("http://{}/v1/events", config.producer_http),
            query: format!("http://{query}/v1/series"),
            token: config.token.clone(),
        })
    }

    pub(super) async fn submit(
        &self,
        probe: &Probe,
        trace: Option<TraceContext>,
    ) -> Result<(), NotYet> {
        let event = probe.event();
        let body = Submission {
            events: [Event {
                event_id: &event.event_id,
                user_id: &event.user_id,
                event_type: &event.event_type,
                occurred_at: time(probe.occurred_at_us),
            }],
        };
        let mut request = self.client.post(&self.submit).json(&body);
        if !self.token.is_empty() {
            request = request.bearer_auth(self.token.expose());
        }
        if let Some(trace) = trace {
            request = request.header("traceparent", trace.header());
        }
        let answer = request.send().await?;
        if answer.status() != StatusCode::OK {
            return Err(NotYet::Status(answer.status()));
        }
        let answer: Verdicts = answer.json().await?;
        match answer.verdicts.as_slice() {
            [verdict] if verdict.status == "accepted" => Ok(()),
            _ => Err(NotYet::NotAccepted),
        }
    }

    pub(super) async fn query(&self, probe: &Probe) -> Result<Vec<Shown>, NotYet> {
        let (from_us, to_us) = probe.second_us();
        let (from, to) = (time(from_us), time(to_us));
        let user = format!("filter.{SERIES}");
        let parameters = [
            ("by", SERIES),
            ("from", &from),
            ("to", &to),
            ("step", "1s"),
            (&user, &probe.user_id),
        ];
        let answer = self
            .client
            .get(&self.query)
            .query(&parameters)
            .send()
            .await?;
        match answer.status() {
            StatusCode::OK => {}
            // No event of the series was counted so far.
            StatusCode::NOT_FOUND => return Err(NotYet::NotShown),
            status => return Err(NotYet::Status(status)),
        }
        let answer: Series = answer.json().await?;
        let shown = answer.series.into_iter().flat_map(|series| {
            let key = series.key;
            series.points.into_iter().filter_map(move |point| {
                let start: Timestamp = point.start.parse().ok()?;
                Some(Shown {
                    key: key.clone(),
                    start_us: start.as_microsecond(),
                    count: point.value.count,
                })
            })
        });
        Ok(shown.collect())
    }
}

/// As RFC 3339; out of its range, as the number that it is.
fn time(us: i64) -> String {
    Timestamp::from_microsecond(us).map_or_else(|_| us.to_string(), |time| time.to_string())
}
