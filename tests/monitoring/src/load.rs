//! A bounded load over HTTP and gRPC that has some of everything: good events, rejected, late and duplicate ones, and
//! queries over both. It goes on until it is dropped, whatever the system answers.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use streamgauge_proto::v1::{
    SeriesRequest, SubmitBatchRequest, SubmittedEvent, TimeRange, TopRequest,
    analytics_client::AnalyticsClient, submission_client::SubmissionClient,
};
use streamgauge_tests::system::System;
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tonic::transport::{Channel, Endpoint};

use crate::failure::{Failure, Outcome};

/// Requests a second over each door. Everything of a second is spread over them.
const TICKS: u32 = 10;
/// Requests under way at once; what would be more is left out, so that a system that hangs is not buried.
const UNDER_WAY_MAX: usize = 64;
/// Time for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How old a late event is; events are accepted for 168 hours.
const LATE: Duration = Duration::from_secs(200 * 3600);
/// Users and pages that events are spread over.
const USERS: u64 = 200;
const PAGES: u64 = 20;
/// Ids that duplicates take turns with.
const DUPLICATE_IDS: u64 = 40;

/// How many of what a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mix {
    /// Events that are counted, half of them over each door.
    pub good: u32,
    /// Events without a type, which no retry helps.
    pub rejected: u32,
    /// Events whose ids were counted before.
    pub duplicates: u32,
    /// Events that are too old.
    pub late: u32,
    /// Events whose page nobody has seen before.
    pub new_pages: u32,
    /// Queries over HTTP, and as many over gRPC.
    pub queries: u32,
    /// Bytes of properties in each good event over HTTP.
    pub padding: usize,
    /// Whether the requests over HTTP ask to be traced, whatever the service's own ratio is.
    pub sampled: bool,
    /// The address that it comes from; 127.0.0.1 when there is none.
    pub from: Option<IpAddr>,
}

impl Mix {
    /// What every bench runs with: enough for every rule to have values.
    pub const USUAL: Self = Self {
        good: 100,
        rejected: 0,
        duplicates: 0,
        late: 0,
        new_pages: 0,
        queries: 5,
        padding: 0,
        sampled: false,
        from: None,
    };
}

/// A running load; dropping it ends it.
pub struct Load {
    task: JoinHandle<()>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Doors {
    producer: String,
    analytics: String,
    http: reqwest::Client,
    submission: SubmissionClient<Channel>,
    queries: AnalyticsClient<Channel>,
    name: String,
    mix: Mix,
    number: Arc<AtomicU64>,
}

impl Load {
    /// Starts a load against a system. Its name tells its ids from those of others.
    pub fn start(system: &System, name: &str, mix: Mix) -> Outcome<Self> {
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .local_address(mix.from)
            .build();
        let channel = |url: String| {
            let endpoint =
                Endpoint::from_shared(url).map(|one| one.timeout(REQUEST_TIMEOUT).connect_lazy());
            endpoint.map_err(|error| Failure::Unmet(format!("a gRPC endpoint: {error}")))
        };
        let doors = Doors {
            producer: system.producer(),
            analytics: system.analytics(),
            http: http.map_err(Failure::http("a client"))?,
            submission: SubmissionClient::new(channel(system.producer_grpc())?),
            queries: AnalyticsClient::new(channel(system.analytics_grpc())?),
            name: name.to_owned(),
            mix,
            number: Arc::default(),
        };
        Ok(Self {
            task: tokio::spawn(doors.run()),
        })
    }
}

/// Of `per_second`, what falls to this tick when they are spread evenly.
fn share(per_second: u32, tick: u64) -> u64 {
    let (all, ticks) = (u64::from(per_second), u64::from(TICKS));
    (tick + 1) * all / ticks - tick * all / ticks
}

impl Doors {
    async fn run(self) {
        let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let mut ticks = interval(Duration::from_secs(1) / TICKS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for tick in 0.. {
            ticks.tick().await;
            let doors = self.clone();
            self.spawn(&room, async move { doors.submit_http(tick).await });
            let doors = self.clone();
            self.spawn(&room, async move { doors.submit_grpc(tick).await });
            for _ in 0..share(self.mix.queries, tick) {
                let doors = self.clone();
                self.spawn(&room, async move { doors.query_http(tick).await });
                let doors = self.clone();
                self.spawn(&room, async move { doors.query_grpc(tick).await });
            }
        }
    }

    fn spawn(&self, room: &Arc<Semaphore>, request: impl Future<Output = ()> + Send + 'static) {
        if let Ok(place) = room.clone().try_acquire_owned() {
            tokio::spawn(async move {
                request.await;
                drop(place);
            });
        }
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// Good events, bad ones, duplicates and events of new pages.
    async fn submit_http(&self, tick: u64) {
        let mut events: Vec<Value> = Vec::new();
        let good = self.mix.good / 2;
        for _ in 0..share(good, tick) {
            let mut event = self.event(self.next());
            if self.mix.padding > 0 {
                event["properties"] = json!({ "padding": "x".repeat(self.mix.padding) });
            }
            events.push(event);
        }
        for _ in 0..share(self.mix.new_pages, tick) {
            let number = self.next();
            let mut event = self.event(number);
            event["page_url"] = json!(format!("/new/{}/{number}", self.name));
            events.push(event);
        }
        events.extend((0..share(self.mix.rejected, tick)).map(|_| json!({ "user_id": "nobody" })));
        for _ in 0..share(self.mix.duplicates, tick) {
            let number = self.next() % DUPLICATE_IDS;
            let mut event = self.event(number);
            event["event_id"] = json!(format!("{}-again-{number}", self.name));
            events.push(event);
        }
        if !events.is_empty() {
            let url = format!("{}/v1/events", self.producer);
            let mut request = self.http.post(url).json(&events);
            if self.mix.sampled {
                let (trace, span) = (now_us(), self.next() + 1);
                request = request.header("traceparent", format!("00-{trace:032x}-{span:016x}-01"));
            }
            let _ = request.send().await;
        }
    }

    fn event(&self, number: u64) -> Value {
        json!({
            "event_id": format!("{}-{number}", self.name),
            "user_id": format!("user-{}", number % USERS),
            "event_type": if number.is_multiple_of(3) { "click" } else { "page_view" },
            "page_url": format!("/page/{}", number % PAGES),
            "value": 1.5,
        })
    }

    /// Good events and late ones.
    async fn submit_grpc(&self, tick: u64) {
        let late_us = now_us() - i64::try_from(LATE.as_micros()).unwrap_or(0);
        let good = self.mix.good - self.mix.good / 2;
        let times = (0..share(good, tick)).map(|_| None);
        let times = times.chain((0..share(self.mix.late, tick)).map(|_| Some(late_us)));
        let events: Vec<_> = times
            .map(|occurred_at_us| {
                let number = self.next();
                SubmittedEvent {
                    event_id: format!("{}-{number}", self.name),
                    user_id: format!("user-{}", number % USERS),
                    event_type: String::from("purchase"),
                    occurred_at_us,
                    page_url: format!("/page/{}", number % PAGES),
                    ..SubmittedEvent::default()
                }
            })
            .collect();
        if !events.is_empty() && self.mix.from.is_none() {
            let request = SubmitBatchRequest {
                events,
                ..SubmitBatchRequest::default()
            };
            let _ = self.submission.clone().submit_batch(request).await;
        }
    }

    async fn query_http(&self, tick: u64) {
        let paths = [
            "/v1/series?by=event_type&last=5m&step=10s",
            "/v1/top?by=page_url&last=1h&limit=5",
            "/v1/distinct-users?last=1h",
            "/analytics/events?user_id=user-1&page_url=/page/1",
        ];
        let path = paths[usize::try_from(tick).unwrap_or(0) % paths.len()];
        let answer = self
            .http
            .get(format!("{}{path}", self.analytics))
            .send()
            .await;
        if let Ok(answer) = answer {
            // Read to its end, as a client would.
            let _ = answer.bytes().await;
        }
    }

    async fn query_grpc(&self, tick: u64) {
        let now = now_us();
        let range = Some(TimeRange {
            from_us: now - 300_000_000,
            to_us: now,
        });
        let mut client = self.queries.clone();
        if tick.is_multiple_of(2) {
            let request = SeriesRequest {
                range,
                step_s: 10,
                ..SeriesRequest::default()
            };
            let _ = client.series(request).await;
        } else {
            let request = TopRequest {
                by: String::from("page_url"),
                range,
                ..TopRequest::default()
            };
            let _ = client.top(request).await;
        }
    }
}

/// Microseconds since the Unix epoch.
pub fn now_us() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_holds_what_was_asked_for() {
        for wanted in [0, 1, 7, 10, 33, 200] {
            let ticks = u64::from(TICKS);
            let second = (ticks..2 * ticks)
                .map(|tick| share(wanted, tick))
                .sum::<u64>();
            assert_eq!(second, u64::from(wanted));
        }
    }
}
