//! The queries, once for all protocols: reads requests, finds the cells, answers.
//!
//! gRPC and REST are thin adapters over this. A range that lies wholly in memory is answered from one view and touches
//! no lock; any other from the store's rows and the overlays that complete them, of one moment.

mod cells;
mod users;

use std::{ops::Range, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use futures::FutureExt;
use streamgauge_chain::sketch::{QUANTILES_ERROR, USERS_ERROR};
use streamgauge_lifecycle::SharedClock;
use streamgauge_proto::{ErrorCode, Problem, v1};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use self::cells::{Cells, Wanted};
pub use self::users::UserEvents;
use crate::{
    alerts::Alerts,
    config::Config,
    error::{invalid, too_many_queries},
    ledger::Checker,
    metrics::AnalyticsMetrics,
    query::{self, Filter, SeriesQuery, TopQuery},
    store::Store,
    view::{View, dimensions_of},
};

/// The view that queries see, replaced as a whole by its one writer; none until the store was read.
pub type SharedView = Arc<ArcSwapOption<View>>;

/// The latest second that a range may reach: the year 9999.
const LATEST_S: i64 = 253_402_300_799;

/// The queries.
pub struct Service {
    view: SharedView,
    store: Arc<dyn Store>,
    clock: SharedClock,
    metrics: AnalyticsMetrics,
    config: Arc<Config>,
    checker: Arc<Checker>,
    alerts: Alerts,
    /// Told when the store is at a checkpoint that the view does not know.
    overtaken: Arc<Notify>,
    /// Places for queries.
    places: Semaphore,
}

impl Service {
    /// The queries over a view and a store, and what fires.
    pub fn new(
        view: SharedView,
        store: Arc<dyn Store>,
        alerts: Alerts,
        clock: SharedClock,
        metrics: AnalyticsMetrics,
        config: Arc<Config>,
    ) -> Self {
        let places = config.query.concurrent_max.clamp(1, Semaphore::MAX_PERMITS);
        let overtaken = Arc::new(Notify::new());
        let checker = Arc::new(Checker::new(
            Arc::clone(&store),
            Arc::clone(&view),
            clock.clone(),
            metrics.clone(),
            Arc::clone(&config),
            Arc::clone(&overtaken),
        ));
        Self {
            checker,
            alerts,
            overtaken,
            places: Semaphore::new(places),
            view,
            store,
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
            Problem::new(ErrorCode::NotReady, message).retry_after(Duration::from_secs(1))
        })
    }

    /// Told when a query finds the store at a checkpoint that the view does not know: another instance wrote it.
    pub fn overtaken(&self) -> Arc<Notify> {
        Arc::clone(&self.overtaken)
    }

    /// A place for a query, which may take time.
    fn place(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.places
            .try_acquire()
            .map_err(|_| too_many_queries(self.config.query.concurrent_max))
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
        let _place = self.place()?;
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
        let found = self.work_out(cells, series, Some(step_s), move |cells, series| {
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
        let _place = self.place()?;
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
        let found = self.work_out(cells, series, None, move |cells, series| {
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
        let _place = self.place()?;
        let cells = self.cells(wanted).await?;
        let info = info(&cells, range.end, "users", false);
        let found = self.work_out(cells, series, None, move |cells, series| {
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

    /// The ledger of each partition.
    ///
    /// # Errors
    /// As [`Service::view`].
    pub fn ledger(&self) -> Result<v1::LedgerResponse, Problem> {
        let view = self.view()?;
        Ok(crate::ledger::answer(&view, self.checker.last().as_deref()))
    }

    /// The ledger of each partition, after the store was read back if that is asked for. A store that cannot be read
    /// is remarked: what was followed is told all the same, with what was found last.
    ///
    /// # Errors
    /// As [`Service::view`]; when too much is asked at once.
    pub async fn judged_ledger(
        &self,
        request: v1::LedgerRequest,
    ) -> Result<v1::LedgerResponse, Problem> {
        let looked = if request.check_store {
            let _place = self.place()?;
            self.ask(self.checker.look().boxed()).await
        } else {
            Ok(())
        };
        let mut answer = self.ledger()?;
        if let Err(problem) = looked {
            let remark = format!("the store was not read back: {}", problem.message);
            answer.remarks.push(remark);
        }
        Ok(answer)
    }

    /// What fires.
    ///
    /// # Errors
    /// When no Alertmanager is set, or it does not answer.
    pub async fn alerts(&self, request: v1::AlertsRequest) -> Result<v1::AlertsResponse, Problem> {
        self.alerts.list(request).await
    }

    /// Who reads the store back.
    pub fn checker(&self) -> Arc<Checker> {
        Arc::clone(&self.checker)
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
