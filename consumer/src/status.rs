//! What people may see of the owners, and the little they may tell them: pause and resume.
//!
//! Owners report here after each turn; HTTP and gRPC read here. Nobody waits for anybody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use streamgauge_proto::{ErrorCode, Problem, v1};
use tokio::sync::Notify;

use crate::core::partition::Progress;

/// One owner, as others see it; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct OwnerView {
    inner: Arc<View>,
}

#[derive(Debug, Default)]
struct View {
    state: Mutex<State>,
    paused: AtomicBool,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    progress: Option<Progress>,
    /// The end of the source partition, when it was last asked for.
    end: Option<i64>,
    last_error: String,
}

impl OwnerView {
    /// Takes the owner's report; returns the one before.
    pub fn report(&self, progress: Progress) -> Option<Progress> {
        self.inner.state.lock().progress.replace(progress)
    }

    /// Remembers what went wrong last.
    pub fn error(&self, text: String) {
        self.inner.state.lock().last_error = text;
    }

    /// Takes the end of the source partition.
    pub fn set_end(&self, end: i64) {
        self.inner.state.lock().end = Some(end);
    }

    /// Whether a person asked for a pause.
    pub fn is_paused(&self) -> bool {
        self.inner.paused.load(Ordering::Acquire)
    }

    /// Completes when a pause begins or ends.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    fn set_paused(&self, paused: bool) {
        self.inner.paused.store(paused, Ordering::Release);
        self.inner.changed.notify_one();
    }

    /// How far the group is behind here: records, and the age of the oldest one in seconds.
    pub fn lag(&self, now_us: i64) -> Option<(i64, f64)> {
        let state = self.inner.state.lock();
        let progress = state.progress?;
        let records = (end_of(&state, &progress) - progress.head).max(0);
        let oldest_us = match (records, progress.oldest_unconfirmed_us) {
            (0, _) => return Some((0, 0.0)),
            (_, Some(oldest_us)) => oldest_us,
            // Not read yet: no older than what was read last.
            (_, None) => progress.log_time_us,
        };
        let age_us = if oldest_us > 0 {
            (now_us - oldest_us).max(0)
        } else {
            0
        };
        Some((records, age_us as f64 / 1e6))
    }

    fn status(&self, partition: i32, now_us: i64) -> v1::PartitionStatus {
        let (lag_records, lag_seconds) = self.lag(now_us).unwrap_or_default();
        let paused = self.is_paused();
        let state = self.inner.state.lock();
        let Some(progress) = state.progress else {
            return v1::PartitionStatus {
                partition,
                state: String::from(if paused { "paused" } else { "recovering" }),
                committed: -1,
                last_error: state.last_error.clone(),
                ..v1::PartitionStatus::default()
            };
        };
        v1::PartitionStatus {
            partition,
            state: String::from(if paused {
                "paused"
            } else {
                progress.state.as_str()
            }),
            head: progress.head,
            position: progress.position,
            end: end_of(&state, &progress),
            lag_records,
            lag_seconds,
            watermark_us: progress.watermark_us,
            committed: progress.committed.unwrap_or(-1),
            delta_position: progress.delta_position,
            dedupe_ids: progress.dedupe_ids,
            void_batches: progress.void_batches,
            last_error: state.last_error.clone(),
        }
    }
}

/// The end is asked for now and then; what was read since lies before it too.
fn end_of(state: &State, progress: &Progress) -> i64 {
    state.end.unwrap_or(0).max(progress.position)
}

/// All owners of this instance; clones are the same.
#[derive(Clone, Debug)]
pub struct Board {
    inner: Arc<BoardInner>,
}

#[derive(Debug)]
struct BoardInner {
    instance: String,
    group: String,
    owners: Mutex<BTreeMap<i32, OwnerView>>,
    /// Partitions that a person has paused here, owned at present or not: a pause outlives its owner, though not this
    /// instance, and says nothing to another one that takes the partition over.
    paused: Mutex<BTreeSet<i32>>,
}

impl Board {
    /// An empty board.
    pub fn new(instance: String, group: String) -> Self {
        Self {
            inner: Arc::new(BoardInner {
                instance,
                group,
                owners: Mutex::default(),
                paused: Mutex::default(),
            }),
        }
    }

    /// A new owner, paused when its partition is.
    pub fn add(&self, partition: i32) -> OwnerView {
        let view = OwnerView::default();
        let mut owners = self.inner.owners.lock();
        if self.inner.paused.lock().contains(&partition) {
            view.set_paused(true);
        }
        owners.insert(partition, view.clone());
        view
    }

    /// The owner has gone.
    pub fn remove(&self, partition: i32) {
        self.inner.owners.lock().remove(&partition);
    }

    /// Whether a partition has an owner here.
    pub fn owns(&self, partition: i32) -> bool {
        self.inner.owners.lock().contains_key(&partition)
    }

    /// The owners there are.
    pub fn owners(&self) -> Vec<(i32, OwnerView)> {
        self.inner
            .owners
            .lock()
            .iter()
            .map(|(partition, view)| (*partition, view.clone()))
            .collect()
    }

    /// What the control service answers.
    pub fn status(&self, now_us: i64) -> v1::StatusResponse {
        let owners = self.inner.owners.lock();
        v1::StatusResponse {
            instance: self.inner.instance.clone(),
            group: self.inner.group.clone(),
            partitions: owners
                .iter()
                .map(|(partition, view)| view.status(*partition, now_us))
                .collect(),
        }
    }

    /// Pauses or resumes the named partitions, or all when none is named: to resume all lifts the pauses of partitions
    /// that are another's by now as well.
    ///
    /// # Errors
    /// When one of them is not owned by this instance; then nothing is changed.
    pub fn set_paused(&self, partitions: &[i32], paused: bool) -> Result<(), Problem> {
        let owners = self.inner.owners.lock();
        if let Some(missing) = partitions
            .iter()
            .find(|partition| !owners.contains_key(partition))
        {
            let message = format!("partition {missing} is not owned by this instance");
            return Err(Problem::new(ErrorCode::NotFound, message).field("partitions"));
        }
        let mut remembered = self.inner.paused.lock();
        if partitions.is_empty() && !paused {
            remembered.clear();
        }
        for (partition, view) in owners.iter() {
            if partitions.is_empty() || partitions.contains(partition) {
                view.set_paused(paused);
                if paused {
                    remembered.insert(*partition);
                } else {
                    remembered.remove(partition);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::partition::StateName;

    fn progress() -> Progress {
        Progress {
            state: StateName::Running,
            head: 10,
            position: 14,
            committed: Some(8),
            delta_position: 3,
            log_time_us: 5_000_000,
            watermark_us: 4_000_000,
            oldest_unconfirmed_us: Some(4_500_000),
            dedupe_ids: 2,
            dedupe_bytes: 100,
            dedupe_evicted: 0,
            void_batches: 1,
        }
    }

    #[test]
    fn lag_is_told_in_records_and_seconds() {
        let board = Board::new(String::from("i"), String::from("g"));
        let view = board.add(3);
        assert_eq!(view.lag(0), None);
        view.report(progress());
        assert_eq!(view.lag(6_500_000), Some((4, 2.0)));
        view.set_end(20);
        assert_eq!(view.lag(6_500_000), Some((10, 2.0)));
        view.report(Progress {
            oldest_unconfirmed_us: None,
            ..progress()
        });
        assert_eq!(view.lag(6_500_000), Some((10, 1.5)));
        view.report(Progress {
            head: 20,
            position: 20,
            ..progress()
        });
        assert_eq!(view.lag(6_500_000), Some((0, 0.0)));
    }

    #[test]
    fn a_pause_is_all_or_nothing() {
        let board = Board::new(String::from("i"), String::from("g"));
        let views = [board.add(0), board.add(1)];
        views[0].report(progress());
        let problem = board.set_paused(&[0, 7], true).expect_err("7 is not owned");
        assert_eq!(problem.code, ErrorCode::NotFound);
        assert!(!views[0].is_paused());
        board.set_paused(&[0], true).expect("owned");
        assert_eq!(board.status(0).partitions[0].state, "paused");
        assert!(!views[1].is_paused());
        board.set_paused(&[], false).expect("all");
        assert_eq!(board.status(0).partitions[0].state, "running");
        board.set_paused(&[0], true).expect("owned");
        board.remove(0);
        assert_eq!(board.status(0).partitions.len(), 1);
        assert!(board.add(0).is_paused(), "the next owner keeps the pause");
        board.remove(0);
        board.set_paused(&[], false).expect("all");
        assert!(!board.add(0).is_paused());
    }
}
