//! Streams of changes. The writer tells which seconds changed; each stream collects them and, at its own pace, sends the
//! buckets as they are then. A slow client misses changes and is told how many; it never slows the writer down.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use streamgauge_chain::sketch::USERS_ERROR;
use streamgauge_lifecycle::Shutdown;
use streamgauge_proto::{ErrorCode, Problem, v1};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    broadcast::{self, error::RecvError},
    mpsc,
};

use crate::{
    config::LiveConfig,
    error::invalid,
    metrics::AnalyticsMetrics,
    query::{self, Filter, SeriesQuery},
    service::Service,
    view::View,
};

/// Messages that wait for a client to take them.
const MESSAGES_AHEAD: usize = 2;
/// Most seconds in one message, the latest ones; a client that is so far behind should query.
const SECONDS_MAX: usize = 3_600;

/// Seconds that changed at once.
pub type Change = Arc<Vec<i64>>;

/// Where the writer tells what changed, and streams begin.
#[derive(Clone, Debug)]
pub struct Live {
    changes: broadcast::Sender<Change>,
    places: Arc<Semaphore>,
    metrics: AnalyticsMetrics,
    shutdown: Shutdown,
}

impl Live {
    /// No streams yet.
    pub fn new(config: &LiveConfig, metrics: AnalyticsMetrics, shutdown: Shutdown) -> Self {
        let changes = broadcast::Sender::new(config.queue_changes_max.max(1));
        let places = Arc::new(Semaphore::new(
            config.clients_max.min(Semaphore::MAX_PERMITS),
        ));
        Self {
            changes,
            places,
            metrics,
            shutdown,
        }
    }

    /// Tells the streams what changed; costs nothing when there are none.
    pub fn tell(&self, seconds: Vec<i64>) {
        if self.changes.receiver_count() > 0 {
            let _ = self.changes.send(Arc::new(seconds));
        }
    }

    /// Begins a stream.
    ///
    /// # Errors
    /// A parameter that cannot be used, or too many streams.
    pub fn watch(
        &self,
        service: &Arc<Service>,
        request: &v1::WatchRequest,
    ) -> Result<mpsc::Receiver<v1::WatchResponse>, Problem> {
        let config = &service.config().live;
        let (series, dimensions) = service.known_series(&request.by)?;
        let interval_ms = match request.interval_ms {
            0 => config.interval_ms_default,
            asked if asked < config.interval_ms_min => {
                let message = format!("the interval is at least {} ms", config.interval_ms_min);
                return Err(invalid("interval_ms", message));
            }
            asked => asked,
        };
        let filter = Filter::read(&dimensions, &request.filter)?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let message = format!("there are {} streams already", config.clients_max);
            Problem::new(ErrorCode::Overloaded, message).retry_after(Duration::from_secs(5))
        })?;
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
        let stream = Stream {
            service: Arc::clone(service),
            series: series.to_owned(),
            dimensions: dimensions.len(),
            filter,
            changes: self.changes.subscribe(),
            sender,
            metrics: self.metrics.clone(),
            changed: BTreeSet::new(),
            skipped: 0,
            _place: place,
        };
        let interval = Duration::from_millis(u64::from(interval_ms));
        tokio::spawn(stream.run(interval, self.shutdown.clone()));
        Ok(receiver)
    }
}

struct Stream {
    service: Arc<Service>,
    series: String,
    dimensions: usize,
    filter: Filter,
    changes: broadcast::Receiver<Change>,
    sender: mpsc::Sender<v1::WatchResponse>,
    metrics: AnalyticsMetrics,
    changed: BTreeSet<i64>,
    skipped: u64,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    async fn run(mut self, interval: Duration, shutdown: Shutdown) {
        self.metrics.live_streams.inc();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.triggered() => break,
                () = self.sender.closed() => break,
                change = self.changes.recv() => match change {
                    Ok(seconds) => self.note(&seconds),
                    Err(RecvError::Lagged(missed)) => {
                        self.skipped += missed;
                        self.metrics.live_skipped.inc_by(missed);
                    }
                    Err(RecvError::Closed) => break,
                },
                _ = ticks.tick() => self.send(),
            }
        }
        self.metrics.live_streams.dec();
    }

    fn note(&mut self, seconds: &[i64]) {
        self.changed.extend(seconds);
        while self.changed.len() > SECONDS_MAX {
            self.changed.pop_first();
        }
    }

    /// Sends what changed, unless the client has not taken the last messages: then it waits, and collects.
    fn send(&mut self) {
        if self.changed.is_empty() && self.skipped == 0 {
            return;
        }
        let (Ok(place), Ok(view)) = (self.sender.try_reserve(), self.service.view()) else {
            return;
        };
        let changed = std::mem::take(&mut self.changed);
        let message = v1::WatchResponse {
            info: Some(info(&view)),
            changed: buckets(&view, self, &changed),
            skipped: std::mem::take(&mut self.skipped),
        };
        place.send(message);
    }
}

fn info(view: &View) -> v1::AnswerInfo {
    v1::AnswerInfo {
        as_of_us: view.as_of_us,
        watermark_us: view.watermark_us,
        r#final: false,
        unit: String::from("events"),
        distinct_error: USERS_ERROR,
        quantile_error: 0.0,
        resolution_s: 1,
    }
}

/// The buckets of these seconds, whole, as far as memory holds them.
fn buckets(view: &View, stream: &Stream, changed: &BTreeSet<i64>) -> Vec<v1::KeySeries> {
    let Some(id) = view.names.id(&stream.series) else {
        return Vec::new();
    };
    let recent: Vec<i64> = changed
        .iter()
        .copied()
        .filter(|second| *second >= view.recent_from_s)
        .collect();
    let (Some(first), Some(last)) = (recent.first(), recent.last()) else {
        return Vec::new();
    };
    let query = SeriesQuery {
        range: *first..*last + 1,
        step_s: 1,
        window_s: 1,
        filter: stream.filter.clone(),
        quantiles: Vec::new(),
        limit: stream.service.config().live.keys_max as usize,
        dimensions: stream.dimensions,
        watermark_us: view.watermark_us,
        merges_max: usize::MAX,
    };
    let cells = recent
        .iter()
        .flat_map(|second| view.recent.cells(id, *second..*second + 1, Some(1)));
    query::series(&query, cells).unwrap_or_default()
}
