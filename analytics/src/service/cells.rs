//! Finding the cells that a query needs: in memory, or in the store with the overlays that complete its rows.

use std::{ops::Range, sync::Arc, time::Duration};

use streamgauge_proto::{ErrorCode, Problem};

use super::Service;
use crate::{
    error::{invalid, store_problem},
    metrics::Source,
    query::{self, Cover},
    store::{Scan, Scanned},
    view::{CellRef, Key, View},
};

/// Wait before rows and memory are read again, when a checkpoint came in between.
const AGAIN: Duration = Duration::from_millis(5);

/// Cells that answer a query, held for as long as it takes.
pub(super) struct Cells {
    pub(super) view: Arc<View>,
    /// What the store adds to memory; `None` when memory holds all.
    pub(super) stored: Option<Stored>,
    range: Range<i64>,
    pub(super) resolution_s: i64,
}

pub(super) struct Stored {
    rows: Vec<(i64, Arc<Key>, crate::view::CellValue)>,
    generation: i64,
}

/// What cells a query needs.
pub(super) struct Wanted<'a> {
    pub(super) series: &'a str,
    pub(super) range: Range<i64>,
    pub(super) step_s: Option<i64>,
    pub(super) quantiles: bool,
}

impl Cells {
    /// Whether adding them up takes so long that it belongs on a thread for long work.
    fn are_many(&self, series: &str, step_s: Option<i64>, most: usize) -> bool {
        self.stored.is_some() || self.of(series, step_s).nth(most).is_some()
    }

    pub(super) fn of<'a>(
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
    pub(super) async fn cells(&self, wanted: Wanted<'_>) -> Result<Cells, Problem> {
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
        let scan = |slot| Scan {
            slot,
            series: wanted.series,
            segments: &covered.segments,
            rows_max: self.config.query.rows_max,
            quantiles: wanted.quantiles,
        };
        for _ in 0..self.config.query.attempts_max.max(1) {
            let slot = self.view()?.slot;
            let scanned = self.ask(self.store.scan(scan(slot))).await?;
            let view = self.view()?;
            if view.slot == slot && view.overlays_at(scanned.generation).is_some() {
                return Ok((view, scanned));
            }
            self.wait_for_view().await;
        }
        Err(self.left_behind())
    }

    /// A checkpoint came in between, or another instance's is not known here yet: the writer is told, and given a moment.
    pub(super) async fn wait_for_view(&self) {
        self.overtaken.notify_one();
        tokio::time::sleep(AGAIN).await;
    }

    /// Another instance's checkpoint was there first, and this one has not followed in time.
    pub(super) fn left_behind(&self) -> Problem {
        tracing::warn!("a query found the store at a checkpoint that memory does not know yet");
        let message = "another instance has just moved the store on, and this one is following; ask again shortly";
        Problem::new(ErrorCode::NotReady, message).retry_after(Duration::from_secs(1))
    }

    pub(super) async fn ask<T>(
        &self,
        work: crate::store::StoreFuture<'_, T>,
    ) -> Result<T, Problem> {
        work.await.map_err(|error| {
            self.metrics.core.error("query", "store");
            store_problem(error)
        })
    }

    /// Adds cells up: few in memory here and now, any more on a thread for long work.
    pub(super) async fn work_out<T: Send + 'static>(
        &self,
        cells: Cells,
        series: &str,
        step_s: Option<i64>,
        work: impl FnOnce(&Cells, &str) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        if !cells.are_many(series, step_s, self.config.query.inline_cells_max) {
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
}
