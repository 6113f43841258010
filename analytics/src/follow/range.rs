//! A position that lies outside of what the log holds: finds out which, and goes on where the log begins.
//!
//! The client tells it once and then no longer fetches. So the look is repeated until every partition has answered, and
//! every partition is sent to its position again, whether it was the one or not.

use std::{future::pending, sync::Arc};

use streamgauge_kafka::{KafkaError, LogReader, Watermarks};
use tokio::task::JoinHandle;

use super::{Ended, session::Session};
use crate::view::ChainRow;

/// The ends of a partition of `metrics-data`, or why they are not known.
pub struct Answer {
    partition: i32,
    found: Result<Watermarks, KafkaError>,
}

/// Looks under way, and those that are due.
#[derive(Default)]
pub struct RangeLook {
    is_due: bool,
    asking: Option<JoinHandle<Vec<Answer>>>,
}

impl RangeLook {
    /// Some position is out of range.
    pub fn needed(&mut self) {
        self.is_due = true;
    }

    /// Begins a look that is due, beside everything else.
    pub fn begin(&mut self, reader: &LogReader, topic: &str, partitions: i32) {
        if !self.is_due || self.asking.is_some() {
            return;
        }
        let (reader, topic) = (reader.clone(), Arc::<str>::from(topic));
        self.is_due = false;
        self.asking = Some(tokio::spawn(async move {
            let mut answers = Vec::new();
            for partition in 0..partitions {
                let found = reader.watermarks(&topic, partition).await;
                // The other partitions would only wait for the same broker.
                let is_last = found.is_err();
                answers.push(Answer { partition, found });
                if is_last {
                    break;
                }
            }
            answers
        }));
    }

    /// What a look found; never when there is none.
    pub async fn looked(&mut self) -> Vec<Answer> {
        let Some(asking) = &mut self.asking else {
            return pending().await;
        };
        let answers = asking.await.unwrap_or_default();
        self.asking = None;
        answers
    }

    /// Gives up.
    pub fn abort(self) {
        if let Some(asking) = self.asking {
            asking.abort();
        }
    }
}

impl Session<'_> {
    /// Acts on what a look found.
    pub(super) async fn take_range(&mut self, answers: &[Answer]) -> Result<(), Ended> {
        self.take_over_the_store(answers).await?;
        let topic = self.parts.config.topics.metrics.as_str();
        let mut answered = 0;
        let mut beyond = None;
        for answer in answers {
            let partition = answer.partition;
            let position = self.fold.row(partition).delta_position;
            match &answer.found {
                Ok(found) if position > found.high => {
                    beyond = Some((partition, position, found.high));
                }
                Ok(found) => {
                    answered += 1;
                    if position < found.low {
                        // The store has not read them either.
                        tracing::error!(
                            partition,
                            position,
                            low = found.low,
                            "retention removed delta batches before they were read; going on where the log begins"
                        );
                    }
                    self.follower.seek(partition, position.max(found.low));
                }
                Err(error) => {
                    tracing::warn!(partition, %error, "the ends of metrics-data are not known");
                }
            }
        }
        if let Some((partition, position, end)) = beyond {
            self.parts.log_up.down(format!(
                "the store has read {topic}/{partition} up to {position}, but the log ends at {end}: it was replaced; \
                 restore the log, or start with an empty store"
            ));
        }
        if answered == self.partitions {
            self.parts.log_up.up();
        } else {
            self.range.needed();
        }
        Ok(())
    }

    /// Where retention outran this instance, but not another one on the same store, the store has what is gone from the
    /// log: memory is built anew from it.
    async fn take_over_the_store(&self, answers: &[Answer]) -> Result<(), Ended> {
        let is_outrun = |answer: &&Answer| {
            let low = answer.found.as_ref().map_or(0, |found| found.low);
            self.fold.row(answer.partition).delta_position < low
        };
        let outrun: Vec<i32> = answers
            .iter()
            .filter(is_outrun)
            .map(|one| one.partition)
            .collect();
        if outrun.is_empty() {
            return Ok(());
        }
        let rows = tokio::select! {
            rows = self.parts.store.chains(&outrun) => rows,
            () = self.parts.shutdown.triggered() => return Err(Ended::Shutdown),
        };
        match rows {
            Ok(rows) => {
                let is_ahead = |row: &ChainRow| {
                    row.delta_position > self.fold.row(row.partition).delta_position
                };
                if rows.iter().any(is_ahead) {
                    tracing::warn!(
                        "retention outran this instance; the store has what another one read"
                    );
                    return Err(Ended::Reload);
                }
            }
            // The write that finds the hole will be refused, should the store have no hole there.
            Err(error) => self.parts.store_failed(&error),
        }
        Ok(())
    }
}
