//! The queries, once for all protocols: reads requests, finds the cells, answers.
//!
//! gRPC and REST are thin adapters over this. A range that lies wholly in memory is answered from one view and touches
//! no lock; any other from the store's rows and the overlays that complete them, of one moment.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use streamgauge_chain::sketch::{QUANTILES_ERROR, USERS_ERROR};
use streamgauge_lifecycle::SharedClock;
use streamgauge_proto::{ErrorCode, Problem, v1};
use streamgauge_resilience::Breaker;

use crate::{
    config::Config,
    error::{invalid, store_problem, unavailable},
    metrics::{AnalyticsMetrics, Source},
    query::{self, Cover, Filter, SeriesQuery, TopQuery},
    store::{Scan, Scanned, Store, StoreError, UserFilter, UserPages},
    view::{CellRef, Key, View, dimensions_of},
};

/// The view that queries see, replaced as a whole by its one writer; none until the store was read.
pub type SharedView = Arc<ArcSwapOption<View>>;

/// The latest second that a range may reach: the year 9999.
const LATEST_S: i64 = 253_402_300_799;
/// Wait before rows and memory are read again, when a checkpoint came in between.
const AGAIN: Duration = Duration::from_millis(5);

/// The queries.
pub struct Service {
    view: SharedView,
    store: Arc<dyn Store>,
    breaker: Breaker,
    clock: SharedClock,
    metrics: AnalyticsMetrics,
    config: Arc<Config>,
}

/// Cells that answer a query, held for as long as it takes.
struct Cells {
    view: Arc<View>,
    /// What the store adds to memory; `None` when memory holds all.
    stored: Option<Stored>,
    range: Range<i64>,
    resolution_s: i64,
}

struct Stored {
    rows: Vec<(i64, Arc<Key>, crate::view::CellValue)>,
    generation: i64,
}

/// What cells a query needs.
struct Wanted<'a> {
    series: &'a str,
    range: Range<i64>,
    step_s: Option<i64>,
    quantiles: bool,
}

impl Cells {
    fn of<'a>(
        &'a self,
        series: &str,
        step_s: Option<i64>,
    ) -> impl Iterator<Item = CellRef<'a>> + Clone {
        let id = self.view.names.id(series).unwrap_or(usize::MAX);
        let memory = self.stored.is_none();
        let recent = memory.then(|| self.view.recent.cells(id, self.range.clone(), step_s));
        let rows = self
            .stored
            .iter()
            .flat_map(|stored| &stored.rows)
            .map(|(start, key, value)| CellRef {
                bucket_s: *start,
                key,
                value,
            });
        let generation = self.stored.as_ref().map(|stored| stored.generation);
        let overlays = generation
            .and_then(|at| self.view.overlays_at(at))
            .unwrap_or_default();
        let range = self.range.clone();
        let overlaid = overlays
            .into_iter()
            .flat_map(move |overlay| overlay.seconds.cells(id, range.clone(), Some(1)));
        recent.into_iter().flatten().chain(rows).chain(overlaid)
    }
}

impl Service {
    /// The queries over a view and a store.
    pub fn new(
        view: SharedView,
        store: Arc<dyn Store>,
        clock: SharedClock,
        metrics: AnalyticsMetrics,
        config: Arc<Config>,
    ) -> Self {
        let observer = crate::metrics::observer(&metrics);
        let breaker = Breaker::new(crate::metrics::BREAKER, &config.store.breaker, observer);
        Self {
            view,
            store,
            breaker,
            clock,
            metrics,
            config,
        }
    }

    /// The view as it is now.
    ///
    /// # Errors
    /// While the store is read at the start: nothing is known yet, and an empty answer would be a lie.
    pub fn view(&self) -> Result<Arc<View>, Problem> {
        self.view.load_full().ok_or_else(|| {
            let message = "the store is being read after a start; ask again shortly";
            Problem::new(ErrorCode::StoreUnavailable, message).retry_after(Duration::from_secs(1))
        })
    }

    /// Settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Aggregates per key and step.
    ///
    /// # Errors
    /// A parameter that cannot be used, or a store that cannot be read.
    pub async fn series(&self, request: v1::SeriesRequest) -> Result<v1::SeriesResponse, Problem> {
        let (series, dimensions) = self.known_series(&request.by)?;
        let step_s = i64::from(request.step_s);
        if step_s == 0 {
            return Err(invalid("step", "a step of at least 1 s is needed"));
        }
        let window_s = if request.window_s == 0 {
            step_s
        } else {
            i64::from(request.window_s)
        };
        if window_s % step_s != 0 {
            return Err(invalid(
                "window",
                "the window must be a multiple of the step",
            ));
        }
        let asked = seconds(request.range.as_ref())?;
        let range = asked.start.div_euclid(step_s) * step_s
            ..(asked.end + step_s - 1).div_euclid(step_s) * step_s;
        let steps_max = i64::from(self.config.query.steps_max);
        if (range.end - range.start) / step_s > steps_max || window_s / step_s > steps_max {
            let message =
                format!("more than {steps_max} steps; take a shorter range or a longer step");
            return Err(invalid("step", message));
        }
        let ranks = checked_ranks(request.quantiles)?;
        let query = SeriesQuery {
            range,
            step_s,
            window_s,
            filter: Filter::read(&dimensions, &request.filter)?,
            quantiles: ranks,
            limit: self.limit(request.limit, self.config.query.keys_default)?,
            dimensions: dimensions.len(),
            watermark_us: self.view()?.watermark_us,
            merges_max: self.config.query.merges_max,
        };
        let wanted = Wanted {
            series,
            range: query.needed(),
            step_s: Some(step_s),
            quantiles: !query.quantiles.is_empty(),
        };
        let cells = self.cells(wanted).await?;
        let query = SeriesQuery {
            watermark_us: cells.view.watermark_us,
            ..query
        };
        let info = info(
            &cells,
            query.range.end,
            "events",
            !query.quantiles.is_empty(),
        );
        let found = work_out(cells, series, move |cells, series| {
            query::series(&query, cells.of(series, Some(step_s)))
        });
        let Some(found) = found.await? else {
            return Err(invalid(
                "window",
                "the windows overlap too much; take a longer step",
            ));
        };
        Ok(v1::SeriesResponse {
            info: Some(info),
            series: found,
        })
    }

    /// The keys with the most of a measure.
    ///
    /// # Errors
    /// A parameter that cannot be used, or a store that cannot be read.
    pub async fn top(&self, request: v1::TopRequest) -> Result<v1::TopResponse, Problem> {
        let (series, dimensions) = self.known_series(&request.by)?;
        let measure = v1::Measure::try_from(request.measure)
            .map_err(|_| invalid("measure", "the measure is one of count, sum and users"))?;
        let query = TopQuery {
            measure,
            limit: self.limit(request.limit, 10)?,
            filter: Filter::read(&dimensions, &request.filter)?,
            quantiles: checked_ranks(request.quantiles)?,
        };
        let range = seconds(request.range.as_ref())?;
        let has_quantiles = !query.quantiles.is_empty();
        let wanted = |series| Wanted {
            series,
            range: range.clone(),
            step_s: None,
            quantiles: has_quantiles,
        };
        let cells = self.cells(wanted(series)).await?;
        // `all` knows everybody by one sketch per bucket; the union over many keys would cost far more.
        let everybody = match cells.stored {
            None if query.filter.is_empty() && cells.view.names.id("all").is_some() => {
                Some(query::distinct(&query.filter, cells.of("all", None)).estimate())
            }
            _ => None,
        };
        let unit = match measure {
            v1::Measure::Count => "events",
            v1::Measure::Sum => "value",
            v1::Measure::Users => "users",
        };
        let info = info(&cells, range.end, unit, has_quantiles);
        let found = work_out(cells, series, move |cells, series| {
            query::top(&query, cells.of(series, None), everybody)
        });
        let (entries, total, keys) = found.await?;
        Ok(v1::TopResponse {
            info: Some(info),
            entries,
            total: Some(total),
            keys,
        })
    }

    /// Distinct users over a range.
    ///
    /// # Errors
    /// A parameter that cannot be used, or a store that cannot be read.
    pub async fn distinct_users(
        &self,
        request: v1::DistinctUsersRequest,
    ) -> Result<v1::DistinctUsersResponse, Problem> {
        let (series, dimensions) = self.known_series(&request.by)?;
        let filter = Filter::read(&dimensions, &request.filter)?;
        let range = seconds(request.range.as_ref())?;
        let wanted = Wanted {
            series,
            range: range.clone(),
            step_s: None,
            quantiles: false,
        };
        let cells = self.cells(wanted).await?;
        let info = info(&cells, range.end, "users", false);
        let found = work_out(cells, series, move |cells, series| {
            query::distinct(&filter, cells.of(series, None))
        });
        let users = found.await?;
        let (lower, upper) = users.bounds();
        Ok(v1::DistinctUsersResponse {
            info: Some(info),
            users: users.estimate(),
            lower,
            upper,
        })
    }

    /// What one user did, page by page.
    ///
    /// # Errors
    /// A parameter that cannot be used, or a store that cannot be read.
    pub async fn user_activity(
        &self,
        request: v1::UserActivityRequest,
    ) -> Result<v1::UserActivityResponse, Problem> {
        if request.user_id.is_empty() {
            let problem = Problem::new(ErrorCode::MissingField, "a user_id is needed");
            return Err(problem.field("user_id"));
        }
        let limit = self.limit(request.limit, self.config.query.keys_default)?;
        let wanted = |text: &'_ String| (!text.is_empty()).then(|| text.clone());
        let (page, kind) = (wanted(&request.page_url), wanted(&request.event_type));
        let filter = UserFilter {
            user_id: &request.user_id,
            page_url: page.as_deref(),
            event_type: kind.as_deref(),
            limit: self.config.query.rows_max,
        };
        let (view, stored) = self.stored_user(filter).await?;
        let mut count = stored.count;
        let mut pages: HashMap<(String, String), (u64, i64)> = stored
            .rows
            .into_iter()
            .map(|row| ((row.page_url, row.event_type), (row.count, row.last_us)))
            .collect();
        for overlay in view.overlays_at(stored.generation).unwrap_or_default() {
            let kept = overlay.pages_of(filter.user_id).filter(|row| {
                filter
                    .page_url
                    .is_none_or(|page| *row.key.page_url == *page)
                    && filter
                        .event_type
                        .is_none_or(|kind| *row.key.event_type == *kind)
            });
            for row in kept {
                let key = (row.key.page_url.to_string(), row.key.event_type.to_string());
                let sum = pages.entry(key).or_default();
                *sum = (sum.0.saturating_add(row.count), sum.1.max(row.last_us));
                count = count.saturating_add(row.count);
            }
        }
        let mut pages: Vec<v1::PageActivity> = pages
            .into_iter()
            .map(
                |((page_url, event_type), (count, last_us))| v1::PageActivity {
                    page_url,
                    event_type,
                    count,
                    last_us,
                },
            )
            .collect();
        pages.sort_by(|one, other| {
            let counts = other.count.cmp(&one.count);
            counts.then_with(|| {
                (&one.page_url, &one.event_type).cmp(&(&other.page_url, &other.event_type))
            })
        });
        pages.truncate(limit);
        let info = v1::AnswerInfo {
            as_of_us: view.as_of_us,
            watermark_us: view.watermark_us,
            // More may come at any time: the range has no end.
            r#final: false,
            unit: String::from("events"),
            ..v1::AnswerInfo::default()
        };
        Ok(v1::UserActivityResponse {
            info: Some(info),
            user_id: request.user_id,
            count,
            pages,
        })
    }

    /// The ledger of each partition.
    ///
    /// # Errors
    /// As [`Service::view`].
    pub fn ledger(&self) -> Result<v1::LedgerResponse, Problem> {
        let view = self.view()?;
        Ok(crate::ledger::answer(&view))
    }

    /// The series seen so far.
    ///
    /// # Errors
    /// As [`Service::view`].
    pub fn list_series(&self) -> Result<v1::ListSeriesResponse, Problem> {
        let view = self.view()?;
        let mut series: Vec<v1::SeriesInfo> = view
            .names
            .iter()
            .map(|name| v1::SeriesInfo {
                name: name.to_string(),
                dimensions: dimensions_of(name).into_iter().map(String::from).collect(),
            })
            .collect();
        series.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(v1::ListSeriesResponse { series })
    }

    /// The series of this name, and its dimensions.
    ///
    /// # Errors
    /// When no event of it was counted so far.
    pub fn known_series<'a>(&self, by: &'a str) -> Result<(&'a str, Vec<&'a str>), Problem> {
        let name = if by.is_empty() { "all" } else { by };
        let view = self.view()?;
        // Before the first event `all` is empty rather than unknown.
        if name != "all" && view.names.id(name).is_none() {
            let mut known: Vec<&str> = view.names.iter().map(|name| &**name).collect();
            known.sort_unstable();
            let known = if known.is_empty() {
                String::from("none")
            } else {
                known.join("; ")
            };
            let message = format!("there is no series {name}; series with events so far: {known}");
            return Err(Problem::new(ErrorCode::NotFound, message).field("by"));
        }
        Ok((name, dimensions_of(name)))
    }

    fn limit(&self, asked: u32, default: u32) -> Result<usize, Problem> {
        let most = self.config.query.keys_max;
        match asked {
            0 => Ok(default.min(most) as usize),
            asked if asked <= most => Ok(asked as usize),
            _ => Err(invalid("limit", format!("the limit is at most {most}"))),
        }
    }

    async fn cells(&self, wanted: Wanted<'_>) -> Result<Cells, Problem> {
        let view = self.view()?;
        if wanted.range.start >= view.recent_from_s {
            self.metrics.query(Source::Memory);
            return Ok(Cells {
                view,
                stored: None,
                range: wanted.range,
                resolution_s: 1,
            });
        }
        self.metrics.query(Source::Store);
        let floors = self
            .config
            .retention
            .floors(self.clock.now_us().div_euclid(1_000_000));
        let covered = query::cover(wanted.range.clone(), wanted.step_s, &floors).map_err(|kept| {
            let message = format!("of that age only buckets of {kept} s are kept; take a step that is a multiple of it");
            invalid("step", message)
        })?;
        let (view, scanned) = self.stored_rows(&wanted, &covered).await?;
        let mut keys = view.keys.sibling();
        let rows = scanned.rows.into_iter().filter_map(|(start, text, value)| {
            let key = keys.from_text(&text);
            if key.is_none() {
                tracing::error!(
                    series = wanted.series,
                    key = text,
                    "a key in the store cannot be read"
                );
            }
            Some((start, key?, value))
        });
        let stored = Stored {
            rows: rows.collect(),
            generation: scanned.generation,
        };
        let (range, resolution_s) = (covered.range, covered.resolution_s);
        Ok(Cells {
            view,
            stored: Some(stored),
            range,
            resolution_s,
        })
    }

    /// The store's rows and a view that completes them.
    async fn stored_rows(
        &self,
        wanted: &Wanted<'_>,
        covered: &Cover,
    ) -> Result<(Arc<View>, Scanned), Problem> {
        let scan = Scan {
            series: wanted.series,
            segments: &covered.segments,
            rows_max: self.config.query.rows_max,
            quantiles: wanted.quantiles,
        };
        for _ in 0..self.config.query.attempts_max.max(1) {
            let scanned = self.ask(self.store.scan(scan)).await?;
            let view = self.view()?;
            if view.overlays_at(scanned.generation).is_some() {
                return Ok((view, scanned));
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(overtaken())
    }

    async fn stored_user(&self, filter: UserFilter<'_>) -> Result<(Arc<View>, UserPages), Problem> {
        for _ in 0..self.config.query.attempts_max.max(1) {
            let stored = self.ask(self.store.user_pages(filter)).await?;
            let view = self.view()?;
            if view.overlays_at(stored.generation).is_some() {
                return Ok((view, stored));
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(overtaken())
    }

    async fn ask<T>(&self, work: crate::store::StoreFuture<'_, T>) -> Result<T, Problem> {
        let is_failure = |error: &StoreError| error.is_retryable();
        self.breaker.call(is_failure, work).await.map_err(|error| {
            self.metrics.core.error("query", "store");
            store_problem(error)
        })
    }
}

/// Adds cells up: what is in memory here and now, what came from the store, which may be much, on a thread for long work.
async fn work_out<T: Send + 'static>(
    cells: Cells,
    series: &str,
    work: impl FnOnce(&Cells, &str) -> T + Send + 'static,
) -> Result<T, Problem> {
    if cells.stored.is_none() {
        return Ok(work(&cells, series));
    }
    let series = series.to_owned();
    tokio::task::spawn_blocking(move || work(&cells, &series))
        .await
        .map_err(|error| {
            tracing::error!(%error, "a query failed");
            Problem::new(
                ErrorCode::Internal,
                "the query failed; the log has the cause",
            )
        })
}

/// Another instance's checkpoint was there first, and this one has not followed yet.
fn overtaken() -> Problem {
    tracing::warn!("a query found the store at a checkpoint that memory does not know yet");
    unavailable(Duration::from_secs(1))
}

fn info(cells: &Cells, end_s: i64, unit: &str, has_quantiles: bool) -> v1::AnswerInfo {
    v1::AnswerInfo {
        as_of_us: cells.view.as_of_us,
        watermark_us: cells.view.watermark_us,
        r#final: end_s.saturating_mul(1_000_000) <= cells.view.watermark_us,
        unit: String::from(unit),
        distinct_error: USERS_ERROR,
        quantile_error: if has_quantiles { QUANTILES_ERROR } else { 0.0 },
        resolution_s: cells.resolution_s as u32,
    }
}

/// The whole seconds of a range.
fn seconds(range: Option<&v1::TimeRange>) -> Result<Range<i64>, Problem> {
    let Some(range) = range else {
        return Err(Problem::new(ErrorCode::MissingField, "a range is needed").field("range"));
    };
    let start = range.from_us.div_euclid(1_000_000);
    let end = range.to_us.saturating_add(999_999).div_euclid(1_000_000);
    if start < 0 || end > LATEST_S {
        return Err(invalid(
            "range",
            "the range must lie between the years 1970 and 9999",
        ));
    }
    if start >= end {
        return Err(invalid("range", "the range must end after it begins"));
    }
    Ok(start..end)
}

fn checked_ranks(ranks: Vec<f64>) -> Result<Vec<f64>, Problem> {
    const RANKS_MAX: usize = 16;
    if ranks.len() > RANKS_MAX {
        return Err(invalid(
            "quantiles",
            format!("at most {RANKS_MAX} quantiles"),
        ));
    }
    match ranks.iter().find(|rank| !(0.0..=1.0).contains(*rank)) {
        Some(rank) => Err(invalid(
            "quantiles",
            format!("{rank} is not a rank between 0 and 1"),
        )),
        None => Ok(ranks),
    }
}
