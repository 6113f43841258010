//! Following `metrics-data`: one task that owns the fold, and the loop in which everything happens to it.
//!
//! Records come from one bounded mailbox. While the store cannot be written, or a checkpoint lags behind what was read,
//! the loop takes nothing, the mailbox fills, and reading pauses; nothing is dropped. What the store has accepted is
//! published; nothing else ever is.

mod checkpoints;
mod idle;
mod range;
mod session;

use std::{sync::Arc, time::Duration};

use streamgauge_kafka::LogReader;
use streamgauge_lifecycle::{Condition, SharedClock, Shutdown};
use streamgauge_telemetry::Tracer;
use tokio::sync::{Notify, watch};

use self::session::Session;
use crate::{
    config::Config,
    error::Error,
    ledger,
    live::Live,
    load,
    metrics::AnalyticsMetrics,
    service::SharedView,
    source::SourceEnds,
    store::{Store, StoreError},
    view::Fold,
};

/// What the task is made of.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub view: SharedView,
    pub live: Live,
    pub metrics: AnalyticsMetrics,
    pub tracer: Tracer,
    pub clock: SharedClock,
    pub config: Arc<Config>,
    pub reader: LogReader,
    pub store_up: Condition,
    pub log_up: Condition,
    /// Told by a query that found the store at a checkpoint that the view does not know.
    pub overtaken: Arc<Notify>,
    /// Told when other rows are served than those that the view completes.
    pub swapped: Arc<Notify>,
    pub shutdown: Shutdown,
    /// `sqlite` or `postgresql`, for spans.
    pub db_system: &'static str,
}

/// What is known once the topics were found.
pub struct Found {
    pub partitions: i32,
    pub ends: watch::Receiver<SourceEnds>,
}

/// Why a session ended.
enum Ended {
    Shutdown,
    /// Memory has to be built anew from the store.
    Reload,
    /// A rebuild has put other rows in the place of those that memory completes.
    Swapped,
    /// Nothing will help.
    Failed(Error),
}

/// Follows until the shutdown, from where a fold stands.
///
/// # Errors
/// When Kafka refuses a setting, or the store says what no retry mends.
pub async fn run(parts: &Parts, fold: Fold, found: Found) -> Result<(), Error> {
    let mut loaded = Some(fold);
    while let Some(fold) = loaded {
        parts.publish(&fold);
        let session = Session::start(parts, fold, &found)?;
        match session.run().await {
            Ended::Shutdown => break,
            Ended::Reload => tracing::warn!("memory is built anew from the store"),
            // Queries go on over the rows from before until memory stands beside the new ones.
            Ended::Swapped => {
                tracing::info!("a rebuild was swapped in; memory is built anew from it")
            }
            Ended::Failed(error) => return Err(error),
        }
        loaded = load_patiently(parts).await?.map(|mut fold| {
            // What was final stays so, whatever memory is built from.
            if let Some(shown) = parts.view.load_full() {
                fold.raise_watermark(shown.watermark_us);
                fold.set_source_ends(shown.source_ends.clone());
            }
            fold
        });
    }
    Ok(())
}

/// Loads, however long it takes; `None` at shutdown.
///
/// # Errors
/// When the store says what no retry mends.
pub async fn load_patiently(parts: &Parts) -> Result<Option<Fold>, Error> {
    loop {
        let now_s = parts.clock.now_us().div_euclid(1_000_000);
        let loading = load::load(&parts.store, &parts.config, now_s);
        tokio::select! {
            loaded = loading => match loaded {
                Ok(fold) => {
                    parts.store_up.up();
                    return Ok(Some(fold));
                }
                Err(error) if error.is_retryable() => parts.store_failed(&error),
                Err(error) => return Err(error.into()),
            },
            () = parts.shutdown.triggered() => return Ok(None),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(parts.config.store.write.max_ms)) => {}
            () = parts.shutdown.triggered() => return Ok(None),
        }
    }
}

impl Parts {
    /// The store cannot be used now.
    pub fn store_failed(&self, error: &StoreError) {
        tracing::error!(%error, "the store cannot be used; what is read waits");
        self.metrics.core.error("apply", "store");
        self.store_up.down(error.to_string());
    }

    /// Shows a fold to queries.
    pub fn publish(&self, fold: &Fold) {
        self.view.store(Some(Arc::new(fold.view().clone())));
        self.metrics
            .ledger_imbalance(ledger::imbalance(fold.view()));
    }

    /// Looks, until the shutdown, whether a rebuild has put other rows in the place of those in memory.
    pub async fn watch_swaps(&self) {
        let period = Duration::from_millis(self.config.store.swap_poll_ms.max(10));
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shutdown.triggered() => return,
            }
            let served = tokio::select! {
                served = self.store.served() => served,
                () = self.shutdown.triggered() => return,
            };
            let shown = self.view.load().as_ref().map(|view| view.slot);
            // A store that fails is told of by whoever needs it; this only asks again.
            if served.is_ok_and(|served| shown.is_some_and(|shown| shown != served)) {
                self.swapped.notify_one();
            }
        }
    }
}
