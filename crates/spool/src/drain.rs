//! The draining side: gives records out in order and forgets them once they are acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::SpoolError;
use crate::reader::{Reader, Stored, Stretch};
use crate::state::Shared;

/// The one reader of a spool.
pub struct Drainer {
    shared: Arc<Shared>,
    reading: Arc<Mutex<Reading>>,
    confirmed: watch::Receiver<u64>,
    persist_interval: Duration,
    persisted: u64,
    persisted_at: Instant,
    /// Records of the stretch in hand that nobody takes.
    put_aside: AtomicU64,
}

struct Reading {
    reader: Reader,
    /// Read and not yet given out: nothing is lost with a call of `next` that is dropped.
    ahead: Option<Stretch>,
}

impl Drainer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        reader: Reader,
        ahead: Option<Stretch>,
        persist_interval: Duration,
    ) -> Self {
        Self {
            confirmed: shared.confirmed.subscribe(),
            persisted: shared.with(|state| state.acknowledged),
            reading: Arc::new(Mutex::new(Reading { reader, ahead })),
            persist_interval,
            persisted_at: Instant::now(),
            put_aside: AtomicU64::new(0),
            shared,
        }
    }

    /// The next records, at most so many and, but for the last one, so many bytes; waits until there are any. A
    /// stretch without records is one that is lost; it must be acknowledged as well.
    ///
    /// # Errors
    /// When a segment cannot be opened; to be tried again after a while.
    pub async fn next(
        &mut self,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Stretch, SpoolError> {
        loop {
            if let Some(stretch) = self.reading.lock().ahead.take() {
                return Ok(stretch);
            }
            let (shared, reading) = (self.shared.clone(), self.reading.clone());
            let read = move || {
                let mut reading = reading.lock();
                if reading.ahead.is_some() {
                    // By a call that was dropped while it read.
                    return Ok(true);
                }
                let stretch = reading.reader.read(records_max, bytes_max)?;
                // What was given out before is acknowledged: that is asked of the caller.
                if stretch.end() > shared.with(|state| state.acknowledged) {
                    reading.ahead = Some(stretch);
                }
                Ok(reading.ahead.is_some())
            };
            // Seen before looking, so that nothing is missed that comes while we look.
            self.confirmed.mark_unchanged();
            if !blocking(read).await? && self.confirmed.changed().await.is_err() {
                return Err(SpoolError::Cut);
            }
        }
    }

    /// The records of the stretch are where they belong, so many of them delivered and the others kept, and will not be
    /// given out again, unless a crash forgets what was not yet written down.
    ///
    /// # Errors
    /// When that cannot be written down, or files cannot be removed; the acknowledgement holds all the same.
    pub async fn acknowledge(
        &mut self,
        stretch: &Stretch,
        delivered: u64,
    ) -> Result<(), SpoolError> {
        let put_aside = std::mem::take(self.put_aside.get_mut());
        self.shared.acknowledge(stretch, delivered, put_aside);
        if self.persisted_at.elapsed() >= self.persist_interval || self.shared.is_idle() {
            return self.persist().await;
        }
        Ok(())
    }

    /// Writes down how far the spool is drained.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub async fn persist(&mut self) -> Result<(), SpoolError> {
        if self.persisted >= self.shared.with(|state| state.acknowledged) {
            return Ok(());
        }
        let shared = self.shared.clone();
        self.persisted_at = Instant::now();
        self.persisted = blocking(move || shared.persist()).await?;
        Ok(())
    }

    /// Has the segment of this record put aside instead of removed, for a record that is wanted by nobody.
    pub fn keep(&self, record: &Stored) {
        self.put_aside.fetch_add(1, Ordering::Relaxed);
        let seq = record.seq;
        self.shared
            .keep(|segment| segment.name.first <= seq && seq < segment.end);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(SpoolError::Cut))
}
