//! The long-lived tasks of a process. They stand and fall together: when one fails the others are asked to drain, the
//! first failure is what is reported, and whoever misses the deadline is named and aborted.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;

use thiserror::Error as ThisError;
use tokio::task::{Id, JoinError, JoinSet};

use crate::program::error_chain;
use crate::{Deadline, Shutdown, Stage, Unfinished};

pub type BoxError = Box<dyn Error + Send + Sync>;

/// How it ended.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// Every task ended well.
    Clean,
    /// This task was the first to fail.
    Failed { task: &'static str, error: BoxError },
    /// Tasks that had not ended by the deadline, or that had to leave something behind.
    Unfinished(Unfinished),
}

impl Outcome {
    /// With what was left after the tasks, if anything was.
    pub fn with_left(self, what: Option<String>) -> Self {
        let mut left = match self {
            Self::Failed { .. } => return self,
            Self::Clean => Vec::new(),
            Self::Unfinished(unfinished) => unfinished.left().to_vec(),
        };
        left.extend(what);
        Unfinished::of(left).map_or(Self::Clean, Self::Unfinished)
    }
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
    ended: Ended,
}

/// What the tasks that have ended said.
#[derive(Debug, Default)]
struct Ended {
    failed: Option<(&'static str, BoxError)>,
    left: Vec<String>,
}

impl Tasks {
    pub fn new(shutdown: Shutdown) -> Self {
        Tasks {
            shutdown,
            set: JoinSet::new(),
            names: HashMap::new(),
            ended: Ended::default(),
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

    /// Waits until every task has ended. From the moment the shutdown is triggered, by anyone, there is what the
    /// deadline leaves for draining.
    pub async fn wait(mut self, deadline: &Deadline) -> Outcome {
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                ended = self.set.join_next_with_id() => match ended {
                    Some(ended) => self.note(ended),
                    None => return self.ended.outcome(),
                },
                () = shutdown.triggered() => break,
            }
        }
        let end = deadline.end(Stage::Drain);
        loop {
            match tokio::time::timeout_at(end, self.set.join_next_with_id()).await {
                Ok(Some(ended)) => self.note(ended),
                Ok(None) => return self.ended.outcome(),
                Err(_) => break,
            }
        }
        let mut left: Vec<_> = self.names.into_values().collect();
        left.sort_unstable();
        self.set.abort_all();
        tracing::error!(?left, "tasks did not end in time and are aborted");
        self.ended.left.extend(left.into_iter().map(str::to_owned));
        self.ended.outcome()
    }

    fn note(&mut self, ended: Result<(Id, Result<(), BoxError>), JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(panicked(error))),
        };
        let task = self.names.remove(&id).unwrap_or("unnamed");
        let error = match result {
            Ok(()) => return tracing::debug!(task, "task ended"),
            Err(error) => error,
        };
        if let Some(unfinished) = Unfinished::among(&*error) {
            let left = unfinished.left();
            tracing::error!(task, ?left, "task was cut off at the deadline");
            let named = left.iter().map(|left| format!("{task}: {left}"));
            self.ended.left.extend(named);
        } else {
            tracing::error!(task, error = %error_chain(&*error), "task failed; shutting down");
            self.ended.failed.get_or_insert((task, error));
        }
        self.shutdown.trigger();
    }
}

impl Ended {
    fn outcome(self) -> Outcome {
        match (self.failed, Unfinished::of(self.left)) {
            (Some((task, error)), _) => Outcome::Failed { task, error },
            (None, Some(unfinished)) => Outcome::Unfinished(unfinished),
            (None, None) => Outcome::Clean,
        }
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
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    /// What is left of it for draining.
    const DRAIN: Duration = Duration::from_millis(8_500);

    async fn wait(tasks: Tasks) -> Outcome {
        let deadline = Deadline::new(&tasks.shutdown, Duration::from_secs(10));
        tasks.wait(&deadline).await
    }

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
        let waiting = tokio::spawn(wait(tasks));
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
        match wait(tasks).await {
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
        let outcome = wait(tasks).await;
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
        let outcome = wait(tasks).await;
        assert_eq!(started.elapsed(), DRAIN);
        assert!(
            matches!(outcome, Outcome::Unfinished(unfinished) if unfinished.left() == ["stuck"])
        );
        aborted.triggered().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_task_left_behind_is_no_failure_but_is_named() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        let stop = shutdown.triggered_owned();
        tasks.spawn("door", async {
            stop.await;
            Err(Unfinished::new("2 requests").into())
        });
        tasks.spawn("stuck", std::future::pending());
        shutdown.trigger();
        match wait(tasks).await.with_left(Some(String::from("a store"))) {
            Outcome::Unfinished(unfinished) => {
                assert_eq!(unfinished.left(), ["door: 2 requests", "stuck", "a store"]);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(Outcome::Clean.with_left(None), Outcome::Clean));
    }
}
