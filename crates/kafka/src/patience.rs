//! Questions to the broker on a thread that may block, given up soon after the asker has gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    error::{KafkaError as Native, KafkaResult},
    types::RDKafkaErrorCode as Code,
};

use crate::KafkaError;

/// Longest single wait inside librdkafka; a thread outlives its asker, and with it a shutdown, by no more.
const STEP: Duration = Duration::from_secs(1);

/// How long a partition may be without a leader before that is the answer: a client that has lost its broker and found it
/// again knows of no partition until it has asked.
const LEADERLESS_MAX: Duration = Duration::from_secs(2);
/// Between two questions about such a partition.
const LEADERLESS_PAUSE: Duration = Duration::from_millis(50);

/// Lowered when the asker goes away.
struct Asking(Arc<AtomicBool>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Asks until there is an answer, the time-out has passed, or the caller has dropped the future.
#[allow(
    clippy::disallowed_methods,
    reason = "a thread that may block, and a short pause"
)]
pub(crate) async fn ask<T: Send + 'static>(
    timeout: Duration,
    question: impl Fn(Duration) -> KafkaResult<T> + Send + 'static,
) -> Result<KafkaResult<T>, KafkaError> {
    let wanted = Arc::new(AtomicBool::new(true));
    let _asking = Asking(Arc::clone(&wanted));
    let ask = move || {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            let answer = question(left.min(STEP));
            let pause = match &answer {
                Err(error) if is_timeout(error) => Duration::ZERO,
                Err(error) if is_leaderless(error) && begun.elapsed() < LEADERLESS_MAX => {
                    LEADERLESS_PAUSE
                }
                _ => return answer,
            };
            if left <= STEP || !wanted.load(Ordering::Acquire) {
                return answer;
            }
            std::thread::sleep(pause);
        }
    };
    tokio::task::spawn_blocking(ask)
        .await
        .map_err(|_| KafkaError::Closed)
}

fn is_timeout(error: &Native) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::OperationTimedOut | Code::RequestTimedOut)
    )
}

fn is_leaderless(error: &Native) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownPartition | Code::LeaderNotAvailable | Code::NotLeaderForPartition)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed_out<T>() -> KafkaResult<T> {
        Err(Native::MetadataFetch(Code::OperationTimedOut))
    }

    #[tokio::test]
    async fn a_question_is_asked_until_its_time_is_over() {
        let asked = Arc::new(AtomicBool::new(false));
        let before = Arc::clone(&asked);
        let answer = ask(Duration::from_secs(60), move |_| {
            if before.swap(true, Ordering::AcqRel) {
                Ok(7)
            } else {
                timed_out()
            }
        });
        assert_eq!(answer.await.unwrap().unwrap(), 7);
        assert!(
            ask::<u8>(Duration::ZERO, |_| timed_out())
                .await
                .unwrap()
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_partition_that_finds_its_leader_soon_has_an_answer() {
        let leaderless = || Err(Native::MetadataFetch(Code::UnknownPartition));
        let asked = Arc::new(AtomicBool::new(false));
        let before = Arc::clone(&asked);
        let answer = ask(Duration::from_secs(60), move |_| {
            if before.swap(true, Ordering::AcqRel) {
                Ok(7)
            } else {
                leaderless()
            }
        });
        assert_eq!(answer.await.unwrap().unwrap(), 7);
        let answer = ask::<u8>(Duration::from_secs(60), move |_| leaderless());
        assert!(
            answer.await.unwrap().is_err(),
            "it is told long before the time-out"
        );
    }

    #[tokio::test]
    async fn nobody_is_asked_for_who_has_gone() {
        let (asks, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let asking = tokio::spawn(ask::<u8>(Duration::from_secs(3_600), move |_| {
            let _ = asks.send(());
            timed_out()
        }));
        asked.recv().await.unwrap();
        asking.abort();
        // The thread ends, and its end of the channel with it.
        while asked.recv().await.is_some() {}
    }
}
