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

/// How long a partition may be without a leader before that is the answer.
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

/// Asks until there is an answer, the time-out has passed, or the caller has dropped the future. Between two questions
/// the client is made to look again by `refresh`, for it keeps two things that no question shakes: that a partition has
/// no leader, which it was told while the topic was made or before a broker came back, for many minutes; and that its
/// own request for a topic is on the way, when that went down with the bootstrap connection which the first answer of
/// the cluster replaces, for as long as `socket.timeout.ms`.
#[allow(
    clippy::disallowed_methods,
    reason = "a thread that may block, and a short pause"
)]
pub(crate) async fn ask<T: Send + 'static>(
    timeout: Duration,
    question: impl Fn(Duration) -> KafkaResult<T> + Send + 'static,
    refresh: impl Fn(Duration) + Send + 'static,
) -> Result<KafkaResult<T>, KafkaError> {
    let wanted = Arc::new(AtomicBool::new(true));
    let _asking = Asking(Arc::clone(&wanted));
    let ask = move || {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            let answer = question(left.min(STEP));
            let leaderless = match &answer {
                Err(error) if is_timeout(error) => false,
                Err(error) if is_leaderless(error) && begun.elapsed() < LEADERLESS_MAX => true,
                _ => return answer,
            };
            if left <= STEP || !wanted.load(Ordering::Acquire) {
                return answer;
            }
            if leaderless {
                std::thread::sleep(LEADERLESS_PAUSE);
            }
            refresh(timeout.saturating_sub(begun.elapsed()).min(STEP));
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

    /// Long enough that a test which waits for it fails by its own bound.
    const LONG: Duration = Duration::from_secs(3_600);
    /// How long a test waits for what must come.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn failure(code: Code) -> KafkaResult<u8> {
        Err(Native::MetadataFetch(code))
    }

    /// The answer of a client that fails in this way until it is asked again.
    fn at_second(code: Code) -> impl Fn(Duration) -> KafkaResult<u8> {
        let asked = AtomicBool::new(false);
        move |_| match asked.swap(true, Ordering::AcqRel) {
            true => Ok(7),
            false => failure(code),
        }
    }

    #[tokio::test]
    async fn a_question_is_asked_until_its_time_is_over() {
        let answer = ask(LONG, at_second(Code::OperationTimedOut), |_| ());
        assert_eq!(answer.await.unwrap().unwrap(), 7);
        let answer = ask(Duration::ZERO, |_| failure(Code::OperationTimedOut), |_| ());
        assert!(answer.await.unwrap().is_err());
    }

    /// It knows of no leader, or waits for a request that was lost.
    #[tokio::test]
    async fn a_client_that_cannot_know_is_made_to_look_again() {
        for code in [Code::UnknownPartition, Code::OperationTimedOut] {
            let looked = Arc::new(AtomicBool::new(false));
            let looks = Arc::clone(&looked);
            let question = move |_| match looked.load(Ordering::Acquire) {
                true => Ok(7),
                false => failure(code),
            };
            let answer = ask(LONG, question, move |_| {
                looks.store(true, Ordering::Release)
            });
            let answer = tokio::time::timeout(PATIENCE, answer).await;
            assert_eq!(answer.expect("soon").unwrap().unwrap(), 7, "{code}");
        }
    }

    #[tokio::test]
    async fn a_partition_that_stays_without_a_leader_is_told_long_before_the_time_out() {
        let answer = ask(LONG, |_| failure(Code::LeaderNotAvailable), |_| ());
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        assert!(
            answer
                .expect("it does not wait for the time-out")
                .unwrap()
                .is_err()
        );
    }

    #[tokio::test]
    async fn nobody_is_asked_for_who_has_gone() {
        let (asks, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let question = move |_| {
            let _ = asks.send(());
            failure(Code::OperationTimedOut)
        };
        let asking = tokio::spawn(ask(LONG, question, |_| ()));
        asked.recv().await.unwrap();
        asking.abort();
        // The thread ends, and its end of the channel with it.
        while asked.recv().await.is_some() {}
    }
}
