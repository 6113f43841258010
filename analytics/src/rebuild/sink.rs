//! Turns recomputed batches into rows, by the code that turns applied ones into rows.

use std::{collections::BTreeMap, sync::Arc};

use streamgauge_proto::v1::DeltaBatch;
use streamgauge_resilience::{BackoffConfig, retry};

use super::RebuildError;
use crate::{
    checkpoint::{self, Checkpointed, random_name},
    config::{CheckpointConfig, Config},
    store::{CheckpointWrite, Slot, Store, StoreError},
    view::{Fold, Limits},
};

pub(super) struct Sink {
    store: Arc<dyn Store>,
    slot: Slot,
    /// Collects what is to be written; keeps nothing else.
    fold: Fold,
    bounds: CheckpointConfig,
    backoff: BackoffConfig,
}

impl Sink {
    pub fn new(store: Arc<dyn Store>, config: &Config, slot: Slot, name: i64) -> Self {
        let limits = Limits {
            recent_seconds: 0,
            recent_bytes_max: 0,
            settle_after_s: 0,
        };
        Self {
            store,
            slot,
            fold: Fold::new(limits, 0, name, BTreeMap::new()).over(slot),
            bounds: config.checkpoint.clone(),
            backoff: config.store.write.clone(),
        }
    }

    /// What the checkpoint of the rows is named, as long as they are this sink's alone.
    pub fn name(&self) -> i64 {
        self.fold.view().generation
    }

    /// Adds a batch; writes when as much has come together as one checkpoint holds.
    pub async fn add(
        &mut self,
        partition: i32,
        batch: &DeltaBatch,
        floors: &[i64; 4],
    ) -> Result<(), RebuildError> {
        self.fold.overlay(partition, 0, batch);
        let fresh = &self.fold.view().fresh;
        let is_full = fresh.cells >= self.bounds.cells_max.max(1)
            || fresh.user_rows() >= self.bounds.user_rows_max.max(1);
        if is_full {
            self.flush(floors).await?;
        }
        Ok(())
    }

    /// Writes what has come together.
    pub async fn flush(&mut self, floors: &[i64; 4]) -> Result<(), RebuildError> {
        let Some(frozen) = self.fold.freeze(random_name()) else {
            return Ok(());
        };
        let (names, floors) = (Arc::clone(&self.fold.view().names), *floors);
        let rows =
            tokio::task::spawn_blocking(move || checkpoint::rows(&frozen, &names, &floors)).await;
        let rows = rows.map_err(|error| StoreError::Database {
            op: "sum up rebuilt rows",
            source: sqlx::Error::Io(std::io::Error::other(error)),
        })?;
        self.write(rows).await?;
        self.fold.thaw();
        Ok(())
    }

    /// Tells the rows up to which position of `metrics-data` they hold each partition.
    pub async fn set_positions(
        &mut self,
        positions: BTreeMap<i32, i64>,
    ) -> Result<(), RebuildError> {
        let (from, to) = (self.fold.view().generation, random_name());
        self.write(CheckpointWrite {
            slot: self.slot,
            from,
            to,
            positions: positions.clone(),
            buckets: Vec::new(),
            users: Vec::new(),
        })
        .await?;
        self.fold.adopt(to, positions);
        Ok(())
    }

    /// Writes, and finds out whether an attempt whose outcome was not heard of has succeeded.
    async fn write(&self, write: CheckpointWrite) -> Result<(), RebuildError> {
        let attempt = |_| async {
            match checkpoint::write(Arc::clone(&self.store), write.clone()).await {
                Checkpointed::Done => Ok(()),
                Checkpointed::Overtaken => Err(RebuildError::LockLost),
                Checkpointed::Failed(error) => Err(RebuildError::Store(error)),
            }
        };
        let is_retryable = |error: &RebuildError| matches!(error, RebuildError::Store(error) if error.is_retryable());
        retry(
            &self.backoff,
            None,
            is_retryable,
            |_, error, wait| tracing::warn!(%error, ?wait, "writing rebuilt rows is tried again"),
            attempt,
        )
        .await
    }
}
