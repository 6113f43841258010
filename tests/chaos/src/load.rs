//! The load: clients that submit over HTTP, each event with its user's next sequence number, and retry with the same
//! ids until every event is acknowledged.
//!
//! Each connection has users of its own and waits for its answer before it submits again, so that a user's events are
//! submitted in order. It keeps a pace and does not catch up on what an outage cost: the lag that is left when a fault
//! has healed is then the system's and not the load's.

use std::{
    collections::HashMap,
    fmt::Write as _,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use tokio::{runtime::Handle, task::JoinSet, time::Instant};

use crate::{
    failure::Failure,
    log_check::{EventKey, event_id},
    oracle::{Cell, PAGES, TYPES, Tally, user_id},
};

/// Pause after an answer that says nothing about when to come back.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause that a client lets itself be told.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Server errors that are remembered with their moment.
const ERRORS_KEPT_MAX: usize = 100_000;

/// What a load is.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Its name, unique in its system.
    pub run: String,
    /// The producer's base URL.
    pub url: String,
    /// Its users.
    pub users: u32,
    /// Requests under way at once.
    pub connections: u32,
    /// Events in a request.
    pub batch: u32,
    /// Events per second, all connections together; 0 for as many as are answered.
    pub rate: u32,
    /// Whether who is refused keeps the pace all the same, whatever it is told to wait: an open loop, as long as there
    /// are connections that wait for nothing. Once the load is to end, it does as it is told.
    pub open: bool,
    /// It ends after so many events at the earliest.
    pub events_min: u64,
    /// How long a client waits for an answer before it submits again.
    pub timeout: Duration,
    /// How long a request is tried before the run has failed.
    pub patience: Duration,
    /// Whether connections are used again.
    pub keep_alive: bool,
    /// Addresses that the connections come from, in turn; empty for the machine's choice.
    pub sources: Vec<IpAddr>,
    /// How far the clients' clocks are off, in turn, in seconds; empty for events without a time of their own.
    pub clocks_off_s: Vec<i64>,
    /// Seed of users, pages and types.
    pub seed: u64,
}

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests that were sent before the load was to end.
    pub offered: u64,
    /// Requests that were answered with 429 or 503.
    pub refused: u64,
    /// Refusals that did not say when to come back.
    pub refused_without_retry_after: u64,
    /// Requests without an answer: cut off or timed out.
    pub unanswered: u64,
    /// Events whose verdict was to try again.
    pub retried_events: u64,
    /// Answers with 5xx, and when they came.
    pub server_errors: Vec<(Instant, u16)>,
    /// Time to the answer of each acknowledged request, in microseconds.
    pub latencies_us: Vec<u32>,
    /// Time to the answer of each refused one, in microseconds.
    pub refusals_us: Vec<u32>,
}

impl Seen {
    fn merge(&mut self, other: Self) {
        self.offered += other.offered;
        self.refused += other.refused;
        self.refused_without_retry_after += other.refused_without_retry_after;
        self.unanswered += other.unanswered;
        self.retried_events += other.retried_events;
        let room = ERRORS_KEPT_MAX.saturating_sub(self.server_errors.len());
        self.server_errors
            .extend(other.server_errors.into_iter().take(room));
        self.latencies_us.extend(other.latencies_us);
        self.refusals_us.extend(other.refusals_us);
    }

    /// A percentile of the time to an acknowledgement, in milliseconds; 0 without any.
    pub fn latency_ms(&self, percent: usize) -> f64 {
        percentile_ms(&self.latencies_us, percent)
    }

    /// A percentile of the time to a refusal, in milliseconds; 0 without any.
    pub fn refusal_ms(&self, percent: usize) -> f64 {
        percentile_ms(&self.refusals_us, percent)
    }
}

fn percentile_ms(times_us: &[u32], percent: usize) -> f64 {
    let mut sorted = times_us.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).map_or(0.0, |us| f64::from(*us) / 1000.0)
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct Harvest {
    /// What was acknowledged.
    pub tally: Tally,
    /// What the clients saw.
    pub seen: Seen,
    /// How long it took until all was acknowledged, in seconds.
    pub seconds: f64,
    /// How long it took until it was to end, in seconds.
    pub offering_seconds: f64,
}

impl Harvest {
    /// Requests that were sent each second until the load was to end.
    pub fn offered_per_second(&self) -> f64 {
        self.seen.offered as f64 / self.offering_seconds
    }
}

/// A load that is under way.
pub struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<Result<(Tally, Seen), Failure>>,
    begun: Instant,
    run: String,
}

struct Shared {
    claimed: AtomicU64,
    acknowledged: AtomicU64,
    over: AtomicBool,
    /// Moments of acknowledgements lie here for faults that wait for one.
    last_acknowledged: Mutex<Option<Instant>>,
}

impl Load {
    /// Starts the load's clients.
    pub fn start(config: &LoadConfig) -> Result<Self, Failure> {
        Self::start_on(&Handle::current(), config)
    }

    /// Starts them on these threads.
    pub fn start_on(threads: &Handle, config: &LoadConfig) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            claimed: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            over: AtomicBool::new(false),
            last_acknowledged: Mutex::default(),
        });
        let mut workers = JoinSet::new();
        for number in 0..config.connections {
            let worker = Worker::new(number, config.clone(), Arc::clone(&shared))?;
            workers.spawn_on(worker.run(), threads);
        }
        Ok(Self {
            shared,
            workers,
            begun: Instant::now(),
            run: config.run.clone(),
        })
    }

    /// Events acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// When an event was acknowledged last.
    pub fn last_acknowledged(&self) -> Option<Instant> {
        *self
            .shared
            .last_acknowledged
            .lock()
            .expect("no holder panics")
    }

    /// Lets the load end once it has its least number of events, and waits for that.
    pub async fn finish(mut self) -> Result<Harvest, Failure> {
        self.shared.over.store(true, Ordering::Relaxed);
        let mut harvest = Harvest {
            offering_seconds: self.begun.elapsed().as_secs_f64(),
            ..Harvest::default()
        };
        harvest.tally.run.clone_from(&self.run);
        let mut first_failure = None;
        while let Some(ended) = self.workers.join_next().await {
            match ended {
                Ok(Ok((tally, seen))) => {
                    harvest.tally.merge(tally);
                    harvest.seen.merge(seen);
                }
                Ok(Err(failure)) => {
                    first_failure.get_or_insert(failure);
                }
                Err(error) => {
                    first_failure.get_or_insert(Failure::Unmet(format!("a client ended: {error}")));
                }
            }
        }
        harvest.seconds = self.begun.elapsed().as_secs_f64();
        first_failure.map_or(Ok(harvest), Err)
    }
}

/// An event on its way.
struct Pending {
    key: EventKey,
    cell: Cell,
    body: String,
}

#[derive(Deserialize)]
struct Answer {
    verdicts: Vec<Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    status: String,
    code: Option<String>,
}

/// How one attempt at a request ended.
enum Attempt {
    /// Verdicts came; these events are left.
    Judged(Vec<Pending>),
    /// None came; after the pause all are sent again.
    Again(Vec<Pending>, Duration),
}

/// When the next request is due.
struct Pace {
    pause: Duration,
    due: Instant,
}

impl Pace {
    /// Of the worker of this number; none for one that goes as fast as it is answered.
    fn new(number: u32, config: &LoadConfig) -> Option<Self> {
        let batches = f64::from(config.rate) / f64::from(config.batch);
        let connections = f64::from(config.connections);
        let pause = (config.rate > 0).then(|| Duration::from_secs_f64(connections / batches))?;
        let due = Instant::now() + pause.mul_f64(f64::from(number) / connections);
        Some(Self { pause, due })
    }

    async fn wait(&mut self) {
        tokio::time::sleep_until(self.due).await;
        self.due = (self.due + self.pause).max(Instant::now());
    }
}

struct Worker {
    number: u32,
    pace: Option<Pace>,
    config: LoadConfig,
    shared: Arc<Shared>,
    client: reqwest::Client,
    url: String,
    random: StdRng,
    next: HashMap<u32, u32>,
    tally: Tally,
    seen: Seen,
}

impl Worker {
    fn new(number: u32, config: LoadConfig, shared: Arc<Shared>) -> Result<Self, Failure> {
        let mut client = reqwest::Client::builder().timeout(config.timeout);
        if !config.keep_alive {
            client = client.pool_max_idle_per_host(0);
        }
        if !config.sources.is_empty() {
            let source = config.sources[number as usize % config.sources.len()];
            client = client.local_address(source);
        }
        let client = client.build().map_err(Failure::http("an HTTP client"))?;
        Ok(Self {
            pace: Pace::new(number, &config),
            number,
            url: format!("{}/v1/events", config.url),
            random: StdRng::seed_from_u64(config.seed ^ (u64::from(number) << 32)),
            config,
            shared,
            client,
            next: HashMap::new(),
            tally: Tally::default(),
            seen: Seen::default(),
        })
    }

    async fn run(mut self) -> Result<(Tally, Seen), Failure> {
        loop {
            let enough = self.shared.claimed.load(Ordering::Relaxed) >= self.config.events_min;
            if enough && self.is_over() {
                return Ok((self.tally, self.seen));
            }
            if let Some(pace) = &mut self.pace {
                pace.wait().await;
            }
            let size = u64::from(self.config.batch);
            self.shared.claimed.fetch_add(size, Ordering::Relaxed);
            let batch = (0..size).map(|_| self.event()).collect();
            self.submit(batch).await?;
        }
    }

    fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    /// Waits as it was told to, or until the next request is due.
    async fn come_back(&mut self, told: Duration) {
        let is_open = self.config.open && !self.is_over();
        match &mut self.pace {
            Some(pace) if is_open => pace.wait().await,
            _ => tokio::time::sleep(told).await,
        }
    }

    /// The next event of one of this worker's users.
    fn event(&mut self) -> Pending {
        let own = (self.config.users / self.config.connections).max(1);
        let user = self.number * own + self.random.random_range(0..own);
        let sequence = self.next.entry(user).or_default();
        let key = (user, *sequence);
        *sequence += 1;
        let cell = Cell {
            page: self.random.random_range(0..PAGES),
            kind: self.random.random_range(0..TYPES.len() as u8),
        };
        let mut body = format!(
            r#"{{"event_id":"{}","user_id":"{}","event_type":"{}","page_url":"{}","value":1.5"#,
            event_id(&self.config.run, key),
            user_id(&self.config.run, user),
            cell.event_type(),
            cell.page_url(),
        );
        let clocks = &self.config.clocks_off_s;
        if !clocks.is_empty() {
            let off = clocks[user as usize % clocks.len()];
            let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(off);
            let _ = write!(body, r#","occurred_at":"{time}""#);
        }
        body.push('}');
        Pending { key, cell, body }
    }

    /// Submits a request again and again until each of its events is acknowledged.
    async fn submit(&mut self, mut batch: Vec<Pending>) -> Result<(), Failure> {
        let (begun, mut attempts) = (Instant::now(), 0u16);
        while !batch.is_empty() {
            if begun.elapsed() > self.config.patience {
                return Err(Failure::Unmet(format!(
                    "{} events of {} were not acknowledged in {:?}",
                    batch.len(),
                    self.config.run,
                    self.config.patience
                )));
            }
            attempts += 1;
            if attempts > 1 {
                for event in &batch {
                    self.tally.attempts.insert(event.key, attempts);
                }
            }
            batch = match self.attempt(batch).await? {
                Attempt::Judged(left) if left.is_empty() => break,
                Attempt::Judged(left) => {
                    self.seen.retried_events += left.len() as u64;
                    self.come_back(RETRY_PAUSE).await;
                    left
                }
                Attempt::Again(all, pause) => {
                    self.come_back(pause.min(RETRY_PAUSE_MAX)).await;
                    all
                }
            };
        }
        Ok(())
    }

    async fn attempt(&mut self, batch: Vec<Pending>) -> Result<Attempt, Failure> {
        let bodies: Vec<&str> = batch.iter().map(|event| event.body.as_str()).collect();
        let body = format!("[{}]", bodies.join(","));
        let begun = Instant::now();
        self.seen.offered += u64::from(!self.is_over());
        let sent = self.client.post(&self.url).body(body);
        let sent = sent.header("content-type", "application/json").send().await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(_) => {
                // What became of it is not known, so that the same ids are sent again.
                self.seen.unanswered += 1;
                return Ok(Attempt::Again(batch, RETRY_PAUSE));
            }
        };
        let status = answer.status().as_u16();
        let wait = answer.headers().get("retry-after");
        let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
        if status >= 500 && self.seen.server_errors.len() < ERRORS_KEPT_MAX {
            self.seen.server_errors.push((Instant::now(), status));
        }
        if status == 429 || status == 503 {
            self.seen.refused += 1;
            self.seen.refusals_us.push(micros(begun));
            self.seen.refused_without_retry_after += u64::from(wait.is_none());
        } else if status != 200 && status < 500 {
            let text = answer.text().await.unwrap_or_default();
            return Err(Failure::Unmet(format!(
                "an honest request was answered {status}: {text}"
            )));
        }
        let pause = wait.map_or(RETRY_PAUSE, Duration::from_secs);
        let Ok(text) = answer.bytes().await else {
            self.seen.unanswered += 1;
            return Ok(Attempt::Again(batch, RETRY_PAUSE));
        };
        match serde_json::from_slice::<Answer>(&text) {
            Ok(answer) => {
                let took = micros(begun);
                self.judge(batch, &answer, took)
            }
            Err(_) => Ok(Attempt::Again(batch, pause)),
        }
    }

    fn judge(
        &mut self,
        batch: Vec<Pending>,
        answer: &Answer,
        took_us: u32,
    ) -> Result<Attempt, Failure> {
        if answer.verdicts.len() != batch.len() {
            return Err(Failure::Unmet(format!(
                "{} verdicts for {} events",
                answer.verdicts.len(),
                batch.len()
            )));
        }
        let mut left = Vec::new();
        let mut accepted = 0;
        for (event, verdict) in batch.into_iter().zip(&answer.verdicts) {
            match verdict.status.as_str() {
                "accepted" => {
                    self.tally.add(event.key, event.cell);
                    accepted += 1;
                }
                "retry" => left.push(event),
                _ => {
                    return Err(Failure::Unmet(format!(
                        "an honest event was refused: {:?}",
                        verdict.code
                    )));
                }
            }
        }
        if accepted > 0 {
            self.seen.latencies_us.push(took_us);
            self.shared
                .acknowledged
                .fetch_add(accepted, Ordering::Relaxed);
            let mut last = self.shared.last_acknowledged.lock();
            if let Ok(last) = &mut last {
                **last = Some(Instant::now());
            }
        }
        Ok(Attempt::Judged(left))
    }
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}
