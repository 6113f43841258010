//! The long-lived tasks of a process. They stand and fall together: when one fails the others are asked to drain, the
//! first failure is what is reported, and whoever misses the deadline is named and aborted.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::time::Duration;

use thiserror::Error as ThisError;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use crate::Shutdown;
use crate::program::error_chain;

pub type BoxError = Box<dyn Error + Send + Sync>;

/// How it ended.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// Every task ended well.
    Clean,
    /// This task was the first to fail.
    Failed { task: &'static str, error: BoxError },
    /// These tasks had not ended by the deadline.
    DeadlineExceeded { left: Vec<&'static str> },
}

/// A task that panicked, as an error.
#[derive(Debug, ThisError)]
#[error("panicked: {message}")]
struct Panicked {
    message: String,
}

/// Named tasks under one shutdown signal.
#[derive(Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    set: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub fn new(shutdown: Shutdown) -> Self {
        Tasks {
            shutdown,
            set: JoinSet::new(),
            names: HashMap::new(),
        }
    }

    /// Starts a task, which must watch the shutdown signal by itself.
    pub fn spawn(
        &mut self,
        name: &'static str,
        fut: impl Future<Output = Result<(), BoxError>> + Send + 'static,
    ) {
        let id = self.set.spawn(fut).id();
        self.names.insert(id, name);
    }

    /// Waits until every task has ended. From the moment the shutdown is triggered, by anyone, there is
    /// `drain_deadline` left.
    pub async fn wait(mut self, drain_deadline: Duration) -> Outcome {
        let mut failed = None;
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                ended = self.set.join_next_with_id() => match ended {
                    Some(ended) => self.note(ended, &mut failed),
                    None => return outcome(failed, Vec::new()),
                },
                () = shutdown.triggered() => break,
            }
        }
        let deadline = Instant::now() + drain_deadline;
        loop {
            match tokio::time::timeout_at(deadline, self.set.join_next_with_id()).await {
                Ok(Some(ended)) => self.note(ended, &mut failed),
                Ok(None) => return outcome(failed, Vec::new()),
                Err(_) => break,
            }
        }
        let mut left: Vec<_> = self.names.into_values().collect();
        left.sort_unstable();
        self.set.abort_all();
        tracing::error!(?left, deadline = ?drain_deadline, "tasks did not end in time and are aborted");
        outcome(failed, left)
    }

    fn note(
        &mut self,
        ended: Result<(Id, Result<(), BoxError>), JoinError>,
        failed: &mut Option<(&'static str, BoxError)>,
    ) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(panicked(error))),
        };
        let task = self.names.remove(&id).unwrap_or("unnamed");
        match result {
            Ok(()) => tracing::debug!(task, "task ended"),
            Err(error) => {
                tracing::error!(task, error = %error_chain(&*error), "task failed; shutting down");
                failed.get_or_insert((task, error));
                self.shutdown.trigger();
            }
        }
    }
}

fn outcome(failed: Option<(&'static str, BoxError)>, left: Vec<&'static str>) -> Outcome {
    match failed {
        Some((task, error)) => Outcome::Failed { task, error },
        None if left.is_empty() => Outcome::Clean,
        None => Outcome::DeadlineExceeded { left },
    }
}

fn panicked(error: JoinError) -> BoxError {
    match error.try_into_panic() {
        Ok(panic) => {
            let message = panic
                .downcast_ref::<&str>()
                .map(|message| (*message).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "without a message".to_owned());
            Box::new(Panicked { message })
        }
        Err(cancelled) => Box::new(cancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    fn obedient(shutdown: &Shutdown) -> impl Future<Output = Result<(), BoxError>> + use<> {
        let stop = shutdown.triggered_owned();
        async {
            stop.await;
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_end_well() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("a", obedient(&shutdown));
        tasks.spawn("short", async { Ok(()) });
        let waiting = tokio::spawn(tasks.wait(DEADLINE));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        shutdown.trigger();
        let outcome = waiting.await.unwrap();
        assert!(matches!(outcome, Outcome::Clean), "{outcome:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_ends_the_others_and_is_reported() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("a", obedient(&shutdown));
        let stop = shutdown.triggered_owned();
        tasks.spawn("later", async {
            stop.await;
            Err("as well".into())
        });
        tasks.spawn("first", async { Err("no disk".into()) });
        match tasks.wait(DEADLINE).await {
            Outcome::Failed { task, error } => {
                assert_eq!((task, error.to_string().as_str()), ("first", "no disk"));
            }
            other => panic!("{other:?}"),
        }
        assert!(shutdown.is_triggered());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_failure() {
        let mut tasks = Tasks::new(Shutdown::new());
        tasks.spawn("bad", async { panic!("on {}", "purpose") });
        let outcome = tasks.wait(DEADLINE).await;
        match outcome {
            Outcome::Failed { task, error } => {
                assert_eq!(
                    (task, error.to_string().as_str()),
                    ("bad", "panicked: on purpose")
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_misses_the_deadline_is_named_and_aborted() {
        /// Tells when it is dropped.
        struct Dropped(Shutdown);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.trigger();
            }
        }
        let shutdown = Shutdown::new();
        let aborted = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("a", obedient(&shutdown));
        let dropped = Dropped(aborted.clone());
        tasks.spawn("stuck", async move {
            let _dropped = dropped;
            std::future::pending().await
        });
        shutdown.trigger();
        let started = Instant::now();
        let outcome = tasks.wait(DEADLINE).await;
        assert_eq!(started.elapsed(), DEADLINE);
        assert!(matches!(outcome, Outcome::DeadlineExceeded { left } if left == ["stuck"]));
        aborted.triggered().await;
    }
}
