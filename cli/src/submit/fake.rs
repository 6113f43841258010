//! A producer in the hands of a test: it answers by a script and remembers what it was sent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use streamgauge_proto::v1::SubmittedEvent;
use tokio::sync::Semaphore;

use super::{BatchError, Reason, Submitter, Verdict};

type Answer = Result<Vec<Verdict>, BatchError>;
type Script = dyn Fn(usize, &[SubmittedEvent]) -> Answer + Send + Sync;

/// The producer.
pub struct FakeProducer {
    script: Box<Script>,
    requests: Mutex<Vec<Vec<String>>>,
    /// A request is answered once it has a permit.
    pub gate: Semaphore,
}

impl std::fmt::Debug for FakeProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeProducer").finish_non_exhaustive()
    }
}

impl FakeProducer {
    /// Answers request number 0, 1, 2, ... as the script says.
    pub fn new(
        script: impl Fn(usize, &[SubmittedEvent]) -> Answer + Send + Sync + 'static,
    ) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            script: Box::new(script),
            requests: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    /// One connection to it.
    pub fn submitter(self: &std::sync::Arc<Self>) -> Submitter {
        Submitter::Fake(self.clone())
    }

    /// The ids of each request so far.
    pub fn requests(&self) -> Vec<Vec<String>> {
        self.lock().clone()
    }

    pub(super) async fn submit(&self, events: &[SubmittedEvent]) -> Answer {
        let number = {
            let mut requests = self.lock();
            requests.push(events.iter().map(|event| event.event_id.clone()).collect());
            requests.len() - 1
        };
        match self.gate.acquire().await {
            Ok(permit) => permit.forget(),
            Err(closed) => return Err(BatchError::Silent(closed.into())),
        }
        (self.script)(number, events)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<String>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All accepted.
pub fn accept(events: &[SubmittedEvent]) -> Answer {
    Ok(vec![Verdict::Accepted; events.len()])
}

/// No answer.
pub fn silence() -> Answer {
    Err(BatchError::Silent("the connection was cut".into()))
}

/// The request is refused as a whole.
pub fn refusal() -> Answer {
    let reason = Reason::new("unauthenticated", "", "no such token");
    Err(BatchError::Refused { reason })
}
