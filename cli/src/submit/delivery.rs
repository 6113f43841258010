//! One batch, delivered: submitted, retried where that helps, split where it is too large, and
//! given up, by name, when its time is over.

use std::time::Duration;

use streamgauge_proto::v1::SubmittedEvent;
use streamgauge_resilience::{Backoff, BackoffConfig};
use tokio::time::Instant;

use super::{Batch, BatchError, Reason, Submitter, Verdict};
use crate::error::describe;

/// How long and how patiently to retry.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// From the first submission of a batch to the last.
    pub retry_for: Duration,
}

/// How an event ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged.
    Accepted,
    /// Refused for good.
    Rejected(Reason),
    /// The producer refused the request as a whole, which says nothing of the event.
    Refused(Reason),
    /// Not acknowledged in time; it may or may not be in the log.
    Failed(Reason),
}

/// How a batch ended.
#[derive(Debug)]
pub struct Delivered {
    /// One per event, in order.
    pub fates: Vec<Fate>,
    /// Events that were submitted more than once, counted each time.
    pub retried: u64,
    /// From the first submission to the last verdict.
    pub took: Duration,
    /// Whether the producer answered at all.
    pub answered: bool,
}

/// Delivers batches over one connection.
#[derive(Clone, Debug)]
pub struct Deliverer {
    submitter: Submitter,
    policy: RetryPolicy,
}

/// The first wait is short, since most refusals pass quickly; later ones spare the producer.
const WAITS: BackoffConfig = BackoffConfig {
    initial_ms: 100,
    max_ms: 5_000,
    multiplier: 2.0,
    attempts: 0,
};

impl Deliverer {
    /// A deliverer over this connection.
    pub const fn new(submitter: Submitter, policy: RetryPolicy) -> Self {
        Self { submitter, policy }
    }

    /// Submits a batch until each event is accepted, rejected, or out of time.
    pub async fn deliver(&self, batch: &Batch) -> Delivered {
        let started = Instant::now();
        let mut run = Run {
            batch,
            fates: vec![None; batch.events.len()],
            submitted: vec![false; batch.events.len()],
            retried: 0,
            answered: false,
            deadline: started + self.policy.retry_for,
            waits: Backoff::new(&WAITS, rand::random()),
        };
        let mut parts: Vec<Vec<usize>> = vec![(0..batch.events.len()).collect()];
        while let Some(part) = parts.pop() {
            run.part(&self.submitter, part, &mut parts).await;
        }
        let unsettled = || Fate::Failed(Reason::new("", "", "not submitted"));
        Delivered {
            fates: run
                .fates
                .into_iter()
                .map(|fate| fate.unwrap_or_else(unsettled))
                .collect(),
            retried: run.retried,
            took: started.elapsed(),
            answered: run.answered,
        }
    }
}

struct Run<'a> {
    batch: &'a Batch,
    fates: Vec<Option<Fate>>,
    submitted: Vec<bool>,
    retried: u64,
    answered: bool,
    deadline: Instant,
    waits: Backoff,
}

impl Run<'_> {
    /// Settles these events, or pushes their halves when they are too large for one request.
    async fn part(
        &mut self,
        submitter: &Submitter,
        mut open: Vec<usize>,
        parts: &mut Vec<Vec<usize>>,
    ) {
        while !open.is_empty() {
            let outcome = self.submit(submitter, &open).await;
            self.answered |= !matches!(outcome, Err(BatchError::Silent(_)));
            let (reason, after) = match outcome {
                Ok(verdicts) => match self.settle(&mut open, verdicts) {
                    Some(reason) => (reason, None),
                    None => return,
                },
                Err(BatchError::TooLarge { .. }) if open.len() > 1 => {
                    let second = open.split_off(open.len() / 2);
                    parts.push(second);
                    parts.push(open);
                    return;
                }
                // Alone in its request, the event itself is too large.
                Err(BatchError::TooLarge { reason }) => {
                    return self.all(&open, &Fate::Rejected(reason));
                }
                Err(BatchError::Refused { reason }) => {
                    return self.all(&open, &Fate::Refused(reason));
                }
                Err(BatchError::Later { reason, after }) => (reason, after),
                Err(error @ BatchError::Silent(_)) => {
                    (Reason::new("", "", &describe(&error)), None)
                }
            };
            if !self.wait(after).await {
                return self.all(&open, &Fate::Failed(reason));
            }
        }
    }

    async fn submit(
        &mut self,
        submitter: &Submitter,
        open: &[usize],
    ) -> Result<Vec<Verdict>, BatchError> {
        for index in open {
            let again = std::mem::replace(&mut self.submitted[*index], true);
            self.retried += u64::from(again);
        }
        let historical = self.batch.historical;
        if open.len() == self.batch.events.len() {
            return submitter.submit(&self.batch.events, historical).await;
        }
        let events: Vec<SubmittedEvent> = open
            .iter()
            .map(|index| self.batch.events[*index].clone())
            .collect();
        submitter.submit(&events, historical).await
    }

    /// Takes what is settled out of `open`; says why something is left.
    fn settle(&mut self, open: &mut Vec<usize>, verdicts: Vec<Verdict>) -> Option<Reason> {
        let mut last = None;
        let mut left = Vec::new();
        for (index, verdict) in open.iter().zip(verdicts) {
            match verdict {
                Verdict::Accepted => self.fates[*index] = Some(Fate::Accepted),
                Verdict::Rejected(reason) => self.fates[*index] = Some(Fate::Rejected(reason)),
                Verdict::Retry(reason) => {
                    left.push(*index);
                    last = Some(reason);
                }
            }
        }
        *open = left;
        last
    }

    fn all(&mut self, open: &[usize], fate: &Fate) {
        for index in open {
            self.fates[*index] = Some(fate.clone());
        }
    }

    /// Waits as long as the producer asked, or as the back-off says; false when time is over.
    async fn wait(&mut self, asked: Option<Duration>) -> bool {
        let wait = self
            .waits
            .next()
            .unwrap_or_default()
            .max(asked.unwrap_or_default());
        let until = Instant::now() + wait;
        if until >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(until).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::submit::fake::{FakeProducer, accept, refusal, silence};

    const RETRY_FOR: Duration = Duration::from_secs(30);

    fn batch(ids: &[&str]) -> Batch {
        let event = |id: &&str| SubmittedEvent {
            event_id: (*id).to_owned(),
            ..SubmittedEvent::default()
        };
        Batch {
            events: ids.iter().map(event).collect(),
            historical: false,
        }
    }

    async fn deliver(fake: &Arc<FakeProducer>, ids: &[&str]) -> Delivered {
        let policy = RetryPolicy {
            retry_for: RETRY_FOR,
        };
        Deliverer::new(fake.submitter(), policy)
            .deliver(&batch(ids))
            .await
    }

    fn reason(code: &str) -> Reason {
        Reason::new(code, "", "not now")
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_asked_for_again_with_the_same_ids() {
        let fake = FakeProducer::new(|request, events| match request {
            0 => silence(),
            _ => accept(events),
        });
        let delivered = deliver(&fake, &["a", "b"]).await;
        assert_eq!(delivered.fates, [Fate::Accepted, Fate::Accepted]);
        assert_eq!(delivered.retried, 2);
        assert_eq!(fake.requests(), [["a", "b"], ["a", "b"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_not_settled_is_sent_again() {
        let fake = FakeProducer::new(|request, events| match request {
            0 => Ok(vec![
                Verdict::Accepted,
                Verdict::Retry(reason("overloaded")),
                Verdict::Rejected(reason("missing_field")),
            ]),
            _ => accept(events),
        });
        let delivered = deliver(&fake, &["a", "b", "c"]).await;
        let rejected = Fate::Rejected(reason("missing_field"));
        assert_eq!(delivered.fates, [Fate::Accepted, Fate::Accepted, rejected]);
        assert_eq!(fake.requests(), [vec!["a", "b", "c"], vec!["b"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_producer_that_asks_to_wait_is_obeyed() {
        let asked = Duration::from_secs(7);
        let fake = FakeProducer::new(move |request, events| match request {
            0 => Err(BatchError::Later {
                reason: reason("rate_limited"),
                after: Some(asked),
            }),
            _ => accept(events),
        });
        let delivered = deliver(&fake, &["a"]).await;
        assert_eq!(delivered.fates, [Fate::Accepted]);
        assert!(delivered.took >= asked, "{:?}", delivered.took);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_is_split_down_to_the_event_at_fault() {
        let fake = FakeProducer::new(|_, events| {
            let too_large = events.len() > 2 || events.iter().any(|event| event.event_id == "huge");
            if too_large {
                let reason = reason("body_too_large");
                return Err(BatchError::TooLarge { reason });
            }
            accept(events)
        });
        let delivered = deliver(&fake, &["a", "b", "huge", "c", "d"]).await;
        for (index, fate) in delivered.fates.iter().enumerate() {
            assert_eq!(*fate == Fate::Accepted, index != 2, "{index}: {fate:?}");
        }
        assert!(matches!(delivered.fates[2], Fate::Rejected(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_request_says_nothing_of_its_events_and_is_not_repeated() {
        let fake = FakeProducer::new(|_, _| refusal());
        let delivered = deliver(&fake, &["a", "b"]).await;
        assert!(
            delivered
                .fates
                .iter()
                .all(|fate| matches!(fate, Fate::Refused(_)))
        );
        assert!(delivered.answered);
        assert_eq!(fake.requests().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_when_its_time_is_over() {
        let fake = FakeProducer::new(|_, _| silence());
        let delivered = deliver(&fake, &["a"]).await;
        assert!(matches!(delivered.fates[..], [Fate::Failed(_)]));
        assert!(!delivered.answered && delivered.took <= RETRY_FOR);
        assert!(fake.requests().len() > 3);
    }
}
