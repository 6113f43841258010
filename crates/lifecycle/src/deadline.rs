//! The one deadline of a shutdown: how its stages share the time, and what is said of what did not get done by then.

use std::fmt;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use crate::Shutdown;
use crate::program::causes;

/// The stages of an end, in their order. What a stage does not use is left to those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Requests under way, once no new ones are taken.
    Doors,
    /// The tasks behind the doors.
    Drain,
    /// What was left on its way to the log or to the store.
    Flush,
    /// The last spans.
    Telemetry,
}

impl Stage {
    /// By when it is over, in percent of the whole.
    const fn end(self) -> u32 {
        match self {
            Self::Doors => 75,
            Self::Drain => 85,
            Self::Flush => 95,
            Self::Telemetry => 100,
        }
    }

    /// Its own part of the whole, in percent.
    const fn own(self) -> u32 {
        let before = match self {
            Self::Doors => 0,
            Self::Drain => Self::Doors.end(),
            Self::Flush => Self::Drain.end(),
            Self::Telemetry => Self::Flush.end(),
        };
        self.end() - before
    }
}

/// The moment by which a process that was told to end has ended. Its time counts from the first signal; every stage
/// is handed its share of it here, and nowhere else.
#[derive(Clone, Debug)]
pub struct Deadline {
    shutdown: Shutdown,
    total: Duration,
    /// No stage takes longer than this.
    most: Duration,
}

impl Deadline {
    /// So much time for all stages together, from the shutdown on.
    pub fn new(shutdown: &Shutdown, total: Duration) -> Self {
        Deadline {
            shutdown: shutdown.clone(),
            total,
            most: total,
        }
    }

    /// The same, with no stage later than `most` after the shutdown.
    pub fn within(&self, most: Duration) -> Self {
        Deadline {
            most: most.min(self.most),
            ..self.clone()
        }
    }

    /// The signal from which on the doors take nothing new.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// The moment at which the stage is over. While nothing was raised it has its own share from now on.
    pub fn end(&self, stage: Stage) -> Instant {
        match self.shutdown.since() {
            Some(since) => since + self.most.min(self.total * stage.end() / 100),
            None => Instant::now() + self.most.min(self.total * stage.own() / 100),
        }
    }

    /// What is left of the stage.
    pub fn left(&self, stage: Stage) -> Duration {
        self.end(stage).saturating_duration_since(Instant::now())
    }

    /// Completes when the shutdown was raised and the stage is over.
    pub async fn passed(&self, stage: Stage) {
        self.shutdown.triggered().await;
        tokio::time::sleep_until(self.end(stage)).await;
    }
}

/// What a shutdown had to leave behind at its deadline. A program that ends with it among the causes of its error ends
/// with [`crate::EXIT_UNFINISHED`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not finished at the deadline of the shutdown: {}", left.join(", "))]
pub struct Unfinished {
    left: Vec<String>,
}

impl Unfinished {
    /// One thing that was left.
    pub fn new(what: impl fmt::Display) -> Self {
        Unfinished {
            left: vec![what.to_string()],
        }
    }

    /// All of these; none when there are none.
    pub fn of(left: Vec<String>) -> Option<Self> {
        (!left.is_empty()).then_some(Unfinished { left })
    }

    /// The one among the causes of an error, if there is one.
    pub fn among<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }

    /// What was left, thing by thing.
    pub fn left(&self) -> &[String] {
        &self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGES: [Stage; 4] = [Stage::Doors, Stage::Drain, Stage::Flush, Stage::Telemetry];

    #[tokio::test(start_paused = true)]
    async fn all_stages_together_take_the_one_deadline() {
        let total = Duration::from_secs(20);
        let signal = Shutdown::new();
        let doors = signal.later();
        let deadline = Deadline::new(&doors, total);
        let alone: Duration = STAGES.map(|stage| deadline.left(stage)).iter().sum();
        assert_eq!(
            alone, total,
            "each has its own share while nothing was raised"
        );

        signal.trigger();
        tokio::time::advance(Duration::from_secs(5)).await;
        doors.trigger();
        let left = STAGES.map(|stage| deadline.left(stage).as_secs());
        assert_eq!(left, [10, 12, 14, 15], "what came before the doors counts");
        deadline.passed(Stage::Telemetry).await;
        assert_eq!(signal.since().map(|since| since.elapsed()), Some(total));
        assert_eq!(deadline.left(Stage::Telemetry), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_may_be_held_to_less() {
        let shutdown = Shutdown::new();
        let deadline = Deadline::new(&shutdown, Duration::from_secs(20));
        shutdown.trigger();
        let short = deadline.within(Duration::from_secs(2));
        assert_eq!(short.left(Stage::Doors), Duration::from_secs(2));
        let long = short.within(Duration::from_secs(60));
        assert_eq!(long.left(Stage::Doors), Duration::from_secs(2));
        assert_eq!(deadline.left(Stage::Doors), Duration::from_secs(15));
    }

    #[test]
    fn it_is_found_among_causes() {
        #[derive(Debug, Error)]
        #[error("the doors: {0}")]
        struct Outer(#[source] Unfinished);

        let unfinished = Unfinished::new("1 request");
        assert_eq!(Unfinished::among(&unfinished), Some(&unfinished));
        let outer = Outer(unfinished.clone());
        assert_eq!(Unfinished::among(&outer), Some(&unfinished));
        assert_eq!(Unfinished::among(&std::io::Error::other("else")), None);
        assert_eq!(Unfinished::of(Vec::new()), None);
    }
}
