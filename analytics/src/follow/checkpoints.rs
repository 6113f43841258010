//! Checkpoints of a session: begun by time or by size, written beside the loop, and followed when another instance's
//! came first.

use std::{future::pending, sync::Arc, time::Instant};

use streamgauge_lifecycle::Shutdown;
use tokio::task::JoinHandle;

use super::{Ended, session::Session};
use crate::{
    checkpoint::{self, Checkpointed},
    load, retention,
    store::StoreError,
};

/// A checkpoint under way, and since when.
pub type Running = Option<(Instant, JoinHandle<Checkpointed>)>;

/// How a checkpoint ended; never when there is none.
pub async fn finished(running: &mut Running) -> Checkpointed {
    match running {
        Some((_, task)) => match task.await {
            Ok(done) => done,
            Err(error) => Checkpointed::Failed(task_failed("write a checkpoint", error)),
        },
        None => pending().await,
    }
}

fn task_failed(op: &'static str, error: tokio::task::JoinError) -> StoreError {
    let source = sqlx::Error::Io(std::io::Error::other(error));
    StoreError::Database { op, source }
}

impl Session<'_> {
    /// Whether more is waiting for a checkpoint than may be.
    pub(super) fn is_full(&self) -> bool {
        let bounds = &self.parts.config.checkpoint;
        let fresh = &self.fold.view().fresh;
        fresh.cells >= bounds.cells_max.max(1) || fresh.user_rows() >= bounds.user_rows_max.max(1)
    }

    /// Begins a checkpoint, unless one is under way; one that failed is repeated as it was.
    pub(super) fn begin_checkpoint(&mut self) {
        if self.checkpoint.is_some() {
            return;
        }
        let Some(frozen) = self.fold.freeze(checkpoint::random_name()) else {
            return;
        };
        // Readers must know the name before the store bears it.
        self.parts.publish(&self.fold);
        let now_s = self.parts.clock.now_us().div_euclid(1_000_000);
        let floors = retention::kept_from(&self.parts.config.retention, now_s);
        let (names, store) = (
            Arc::clone(&self.fold.view().names),
            Arc::clone(&self.parts.store),
        );
        let task = tokio::spawn(async move {
            let rows =
                tokio::task::spawn_blocking(move || checkpoint::rows(&frozen, &names, &floors));
            match rows.await {
                Ok(rows) => checkpoint::write(store, rows).await,
                Err(error) => Checkpointed::Failed(task_failed("sum up a checkpoint", error)),
            }
        });
        self.checkpoint = Some((Instant::now(), task));
    }

    pub(super) async fn finish_checkpoint(&mut self, done: Checkpointed) -> Result<(), Ended> {
        let Some((start, _)) = self.checkpoint.take() else {
            return Ok(());
        };
        let parts = self.parts;
        match done {
            Checkpointed::Done => {
                parts
                    .metrics
                    .core
                    .stage("checkpoint")
                    .observe(start.elapsed().as_secs_f64(), None);
                parts.store_up.up();
                self.fold.thaw();
            }
            Checkpointed::Failed(error) if !error.is_retryable() => {
                return Err(Ended::Failed(error.into()));
            }
            Checkpointed::Failed(error) => {
                tracing::warn!(%error, "the checkpoint is tried again at its next time");
                parts.metrics.core.error("checkpoint", "store");
                if self.is_full() {
                    parts.store_failed(&error);
                }
                return Ok(());
            }
            Checkpointed::Overtaken => {
                tracing::debug!("another instance wrote the checkpoint");
                let overlaid = load::overlay(&parts.store, &mut self.fold);
                unless_shutdown(&parts.shutdown, overlaid)
                    .await?
                    .map_err(|error| self.rebuild(&error))?;
            }
        }
        parts.publish(&self.fold);
        if self.is_full() {
            self.begin_checkpoint();
        }
        Ok(())
    }

    /// A query found the store at a checkpoint that is not known here: follows it, unless a checkpoint of our own is under
    /// way, which finds out by itself.
    pub(super) async fn follow_checkpoint(&mut self) -> Result<(), Ended> {
        if self.checkpoint.is_some() {
            return Ok(());
        }
        let parts = self.parts;
        let caught_up = load::catch_up(&parts.store, &mut self.fold);
        match unless_shutdown(&parts.shutdown, caught_up).await? {
            Ok(true) => parts.publish(&self.fold),
            Ok(false) => {}
            Err(error) => return Err(self.rebuild(&error)),
        }
        Ok(())
    }

    /// Other rows may be served: then memory is built anew beside them.
    pub(super) async fn follow_swap(&mut self) -> Result<(), Ended> {
        let served = self.parts.store.served();
        match unless_shutdown(&self.parts.shutdown, served).await? {
            Ok(slot) if slot != self.fold.view().slot => Err(Ended::Swapped),
            _ => Ok(()),
        }
    }

    /// The overlay may be half filled: what queries see stays as it was until memory is built anew.
    fn rebuild(&self, error: &StoreError) -> Ended {
        if matches!(error, StoreError::Swapped) {
            return Ended::Swapped;
        }
        self.parts.store_failed(error);
        Ended::Reload
    }
}

async fn unless_shutdown<T>(
    shutdown: &Shutdown,
    work: impl Future<Output = T>,
) -> Result<T, Ended> {
    tokio::select! {
        done = work => Ok(done),
        () = shutdown.triggered() => Err(Ended::Shutdown),
    }
}
