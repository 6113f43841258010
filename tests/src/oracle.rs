//! The oracle: what the answers must be, computed only from what was acknowledged.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Most time that one batch takes to be acknowledged, outages included.
const BATCH_DEADLINE: Duration = Duration::from_secs(90);
/// Pause before a refused or unanswered batch is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Time for one answer; shorter than an outage, so that clients do what clients do.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);

/// A load of events whose ids are unique to it.
#[derive(Clone, Debug)]
pub struct Load {
    /// Names this load; ids and users derive from it.
    pub name: String,
    /// Events in all.
    pub events: usize,
    /// Users, chosen at random for each event.
    pub users: usize,
    /// Pages, chosen with a skew.
    pub pages: usize,
    /// Events in one request.
    pub batch: usize,
    /// Requests on their way at once.
    pub connections: usize,
    /// One event in so many is sent a second time with the same id; 0 for none.
    pub duplicate_every: usize,
}

/// What must be found once everything is acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Distinct events.
    pub events: u64,
    /// Records beyond the first per id that were sent on purpose.
    pub duplicates: u64,
    /// Events per page.
    pub pages: BTreeMap<String, u64>,
    /// Events per user and page.
    pub users: BTreeMap<(String, String), u64>,
}

impl Expected {
    /// Adds what another load leads to.
    pub fn add(&mut self, other: Self) {
        self.events += other.events;
        self.duplicates += other.duplicates;
        for (page, count) in other.pages {
            *self.pages.entry(page).or_default() += count;
        }
        for (key, count) in other.users {
            *self.users.entry(key).or_default() += count;
        }
    }
}

/// What a load's clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Requests that were refused, broken off or not answered, and sent again.
    pub retried_requests: u64,
    /// Events that got a `retry` verdict and were sent again.
    pub retried_events: u64,
}

impl Load {
    /// The load's requests, the same for the same load.
    pub fn requests(&self) -> (Vec<Vec<Value>>, Expected) {
        let mut random = StdRng::seed_from_u64(self.events as u64);
        let mut expected = Expected::default();
        let mut events = Vec::with_capacity(self.events);
        for number in 0..self.events {
            let user = format!("{}-u{}", self.name, random.random_range(0..self.users));
            let skewed = random.random_range(0..self.pages) * random.random_range(1..=4) / 4;
            let page = format!("/page/{skewed}");
            let event = json!({
                "event_id": format!("{}-{number}", self.name),
                "user_id": user,
                "event_type": if number % 3 == 0 { "click" } else { "page_view" },
                "page_url": page,
                "value": 1.5,
            });
            expected.events += 1;
            *expected.pages.entry(page.clone()).or_default() += 1;
            *expected.users.entry((user, page)).or_default() += 1;
            if self.duplicate_every > 0 && number % self.duplicate_every == 0 {
                expected.duplicates += 1;
                events.push(event.clone());
            }
            events.push(event);
        }
        let requests = events.chunks(self.batch).map(<[Value]>::to_vec).collect();
        (requests, expected)
    }

    /// Submits everything to `POST URL/v1/events`, again and again until acknowledged.
    pub async fn submit(&self, url: &str) -> (Expected, Seen) {
        let (requests, expected) = self.requests();
        let client = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .build()
            .expect("a client without TLS can be built");
        let mut waiting = requests.into_iter();
        let mut under_way = FuturesUnordered::new();
        let mut seen = Seen::default();
        loop {
            while under_way.len() < self.connections
                && let Some(batch) = waiting.next()
            {
                under_way.push(until_acknowledged(
                    client.clone(),
                    format!("{url}/v1/events"),
                    batch,
                ));
            }
            let Some(one) = under_way.next().await else {
                break;
            };
            seen.retried_requests += one.retried_requests;
            seen.retried_events += one.retried_events;
        }
        (expected, seen)
    }
}

async fn until_acknowledged(client: reqwest::Client, url: String, mut batch: Vec<Value>) -> Seen {
    let end = Instant::now() + BATCH_DEADLINE;
    let mut seen = Seen::default();
    loop {
        assert!(
            Instant::now() < end,
            "a batch was not acknowledged in {BATCH_DEADLINE:?}"
        );
        match client.post(&url).json(&batch).send().await {
            Ok(response) if response.status() == 200 || response.status() == 503 => {
                let answer: Value = response.json().await.unwrap_or_default();
                let left = refused(&batch, &answer);
                if left.is_empty() {
                    return seen;
                }
                seen.retried_events += left.len() as u64;
                batch = left;
            }
            Ok(response) => {
                let status = response.status();
                let body = response.text().await.unwrap_or_default();
                assert!(
                    status == 429 || status.is_server_error(),
                    "{status}: {body}"
                );
            }
            // Cut off: the outcome is not known, so the same ids are sent again.
            Err(_) => {}
        }
        seen.retried_requests += 1;
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// The events that are not acknowledged; all of them when there are no verdicts.
fn refused(batch: &[Value], answer: &Value) -> Vec<Value> {
    let Some(verdicts) = answer["verdicts"].as_array() else {
        return batch.to_vec();
    };
    assert_eq!(
        verdicts.len(),
        batch.len(),
        "one verdict per event: {answer}"
    );
    let mut left = Vec::new();
    for (event, verdict) in batch.iter().zip(verdicts) {
        match verdict["status"].as_str() {
            Some("accepted") => {}
            Some("retry") => left.push(event.clone()),
            _ => panic!("an honest event was refused: {verdict}"),
        }
    }
    left
}
