//! A store whose operations are measured, end in time, and are not tried while it is down.
//!
//! A connection that hangs says nothing, not even that it failed: so each operation has a limit. A store that fails again
//! and again is left alone for a while, by one breaker for all who use it: then applying waits, and queries are refused at
//! once instead of waiting for a connection that nobody answers. The first operation after that time is the probe.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use streamgauge_resilience::{Breaker, BreakerError};

use super::{
    Advance, CheckpointState, CheckpointWrite, Connections, Contents, DeltaRow, Scan, Scanned,
    Slot, Slots, Store, StoreError, StoreFuture, Sums, SumsOf, Swapped, UserFilter, UserPages,
};
use crate::{
    config::StoreConfig,
    metrics::{AnalyticsMetrics, OpOutcome, StoreOp},
    view::ChainRow,
};

/// How long operations may take.
#[derive(Clone, Copy, Debug)]
struct TimeLimits {
    operation_ms: u64,
    bulk_ms: u64,
}

impl From<&StoreConfig> for TimeLimits {
    fn from(config: &StoreConfig) -> Self {
        Self {
            operation_ms: config.operation_timeout_ms.max(1),
            bulk_ms: config.bulk_timeout_ms.max(1),
        }
    }
}

impl TimeLimits {
    /// The limit of an operation, and the setting that it comes from.
    fn of(self, op: StoreOp) -> (u64, &'static str) {
        match op {
            StoreOp::Migrate | StoreOp::Checkpoint | StoreOp::Trim | StoreOp::Expire => {
                (self.bulk_ms, "store.bulk_timeout_ms")
            }
            _ => (self.operation_ms, "store.operation_timeout_ms"),
        }
    }
}

/// The store.
pub struct Observed {
    inner: Arc<dyn Store>,
    limits: TimeLimits,
    breaker: Breaker,
    /// What the store said when it failed last.
    cause: Mutex<Arc<str>>,
    metrics: AnalyticsMetrics,
}

impl Observed {
    /// Measures, limits and guards `inner`.
    pub fn new(inner: Arc<dyn Store>, config: &StoreConfig, metrics: AnalyticsMetrics) -> Self {
        let observer = crate::metrics::observer(&metrics);
        Self {
            inner,
            limits: TimeLimits::from(config),
            breaker: Breaker::new(crate::metrics::BREAKER, &config.breaker, observer),
            cause: Mutex::new(Arc::from("it does not answer")),
            metrics,
        }
    }

    fn measure<'a, T: Send + 'a>(
        &'a self,
        op: StoreOp,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        self.measure_as(op, |_| OpOutcome::Ok, work)
    }

    fn measure_as<'a, T: Send + 'a>(
        &'a self,
        op: StoreOp,
        outcome: fn(&T) -> OpOutcome,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let attempt = async move {
            let start = Instant::now();
            let (limit_ms, setting) = self.limits.of(op);
            let limit = Duration::from_millis(limit_ms);
            let result = tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                Err(StoreError::TimedOut {
                    op: op.as_str(),
                    setting,
                    limit_ms,
                })
            });
            let outcome = result.as_ref().map_or(OpOutcome::Error, outcome);
            self.metrics
                .operation(op, outcome, start.elapsed().as_secs_f64());
            self.metrics.connections(self.inner.connections());
            if let Err(error) = &result
                && error.is_outage()
            {
                *self.cause.lock() = Arc::from(error.to_string());
            }
            result
        };
        async move {
            let guarded = self.breaker.call(StoreError::is_outage, attempt).await;
            guarded.map_err(|error| match error {
                BreakerError::Inner(error) => error,
                BreakerError::Open(open) => StoreError::Resting {
                    cause: self.cause.lock().clone(),
                    retry_after: open.retry_after,
                },
            })
        }
        .boxed()
    }
}

fn swapped(swapped: &Swapped) -> OpOutcome {
    match swapped {
        Swapped::Done => OpOutcome::Ok,
        Swapped::Conflict => OpOutcome::Conflict,
    }
}

impl Store for Observed {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        self.measure(StoreOp::Migrate, self.inner.migrate())
    }

    fn served(&self) -> StoreFuture<'_, Slot> {
        self.measure(StoreOp::Served, self.inner.served())
    }

    fn contents(&self, slot: Slot) -> StoreFuture<'_, Contents> {
        self.measure(StoreOp::Contents, self.inner.contents(slot))
    }

    fn chains<'a>(&'a self, partitions: &'a [i32]) -> StoreFuture<'a, Vec<ChainRow>> {
        self.measure(StoreOp::Chains, self.inner.chains(partitions))
    }

    fn checkpoint_state(&self, slot: Slot) -> StoreFuture<'_, CheckpointState> {
        self.measure(StoreOp::CheckpointState, self.inner.checkpoint_state(slot))
    }

    fn deltas(&self, partition: i32, from: i64, limit: u32) -> StoreFuture<'_, Vec<DeltaRow>> {
        self.measure(StoreOp::Deltas, self.inner.deltas(partition, from, limit))
    }

    fn apply<'a>(&'a self, advances: &'a [Advance]) -> StoreFuture<'a, Swapped> {
        self.measure_as(StoreOp::Apply, swapped, self.inner.apply(advances))
    }

    fn checkpoint<'a>(&'a self, write: &'a CheckpointWrite) -> StoreFuture<'a, Swapped> {
        self.measure_as(StoreOp::Checkpoint, swapped, self.inner.checkpoint(write))
    }

    fn trim<'a>(&'a self, slot: Slot, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, ()> {
        self.measure(StoreOp::Trim, self.inner.trim(slot, positions))
    }

    fn scan<'a>(&'a self, scan: Scan<'a>) -> StoreFuture<'a, Scanned> {
        self.measure(StoreOp::Scan, self.inner.scan(scan))
    }

    fn user_pages<'a>(&'a self, filter: UserFilter<'a>) -> StoreFuture<'a, UserPages> {
        self.measure(StoreOp::UserPages, self.inner.user_pages(filter))
    }

    fn expire(&self, slot: Slot, tier_s: i64, before_s: i64, limit: u32) -> StoreFuture<'_, u64> {
        let expired = self.inner.expire(slot, tier_s, before_s, limit);
        self.measure(StoreOp::Expire, expired)
    }

    fn slots(&self) -> &dyn Slots {
        self.inner.slots()
    }

    fn sums<'a>(&'a self, sums: SumsOf<'a>) -> StoreFuture<'a, Sums> {
        self.measure(StoreOp::Sums, self.inner.sums(sums))
    }

    fn connections(&self) -> Connections {
        self.inner.connections()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}
