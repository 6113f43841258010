//! Reading what is there: the ends of a partition, an offset by time, a range of records.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError as Native, KafkaResult, RDKafkaErrorCode},
};
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::{
    Chunk, ChunkBuilder, FetchConfig, KafkaConfig, KafkaError, StatsSink, context::Context,
    patience::ask,
};

/// Chunks that are read ahead of the caller.
const CHUNKS_AHEAD: usize = 4;
/// Longest single wait inside librdkafka, so that a stalled read is noticed.
const POLL: Duration = Duration::from_millis(100);
/// How long a client may tell of itself after a question.
const SERVE: Duration = Duration::from_millis(1);
/// Most errors that it tells then; what is more comes after the next question.
const ERRORS_MAX: usize = 100;

/// The ends of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The first offset that the log still holds.
    pub low: i64,
    /// One past the last offset.
    pub high: i64,
}

/// A reading client without a group; clones share one connection and take turns.
#[derive(Clone)]
pub struct LogReader {
    consumer: Arc<BaseConsumer<Context>>,
    /// Held for the length of a range by the thread that reads it: one client has one position,
    /// and a caller who goes away does not end the thread at once.
    turn: Arc<tokio::sync::Mutex<()>>,
    brokers: String,
    timeout: Duration,
    fetch: FetchConfig,
}

impl LogReader {
    /// A client that connects in the background; a broker that is away is no error here.
    ///
    /// # Errors
    /// When librdkafka refuses a setting.
    pub fn new(
        kafka: &KafkaConfig,
        fetch: &FetchConfig,
        stats: Option<StatsSink>,
    ) -> Result<Self, KafkaError> {
        let mut client = kafka.client(stats.as_ref())?;
        fetch.apply(&mut client);
        client.set("group.id", format!("{}-reader", kafka.client_id));
        let client = kafka.finish(client)?;
        let consumer = BaseConsumer::from_config_and_context(&client, Context { stats })?;
        Ok(Self {
            consumer: Arc::new(consumer),
            turn: Arc::new(tokio::sync::Mutex::new(())),
            brokers: kafka.brokers.clone(),
            timeout: kafka.request_timeout(),
            fetch: fetch.clone(),
        })
    }

    /// The ends of a partition, asked of the broker.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] when no broker answers in time.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> Result<Watermarks, KafkaError> {
        let (refresh, reader, name) = (self.refresh(topic), self.clone(), topic.to_owned());
        let question = move |wait| {
            let answer = reader.consumer.fetch_watermarks(&name, partition, wait);
            reader.serve();
            answer
        };
        ask(self.timeout, question, refresh)
            .await?
            .map(|(low, high)| Watermarks { low, high })
            .map_err(|source| self.unreachable(source))
    }

    /// The first offset whose record is not older than `timestamp_ms`; `None` when all are older.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] when no broker answers in time, or none knows who leads the partition.
    pub async fn offset_for_time(
        &self,
        topic: &str,
        partition: i32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(topic, partition, Offset::Offset(timestamp_ms.max(0)))?;
        let (refresh, reader) = (self.refresh(topic), self.clone());
        let question = move |wait| {
            let answer = reader.consumer.offsets_for_times(list.clone(), wait);
            reader.serve();
            answer
        };
        let found = ask(self.timeout, question, refresh)
            .await?
            .map_err(|source| self.unreachable(source))?;
        let told = found.find_partition(topic, partition);
        let told = told.map(|element| (element.error(), element.offset()));
        offset_told(told).map_err(|source| self.unreachable(source))
    }

    /// Reads the records of `[from, to)` in order; memory is bounded by a few chunks.
    ///
    /// # Errors
    /// [`KafkaError::Stalled`] when nothing comes for the request time-out, as from a broker that
    /// does not show `to` yet; other errors as they are. What was read until then has been handed
    /// over.
    pub async fn read_range(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        to: i64,
        mut on_chunk: impl FnMut(&Chunk) + Send,
    ) -> Result<(), KafkaError> {
        if from >= to {
            return Ok(());
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let (sender, mut chunks) = mpsc::channel(CHUNKS_AHEAD);
        let range = RangeRead {
            reader: self.clone(),
            topic: topic.to_owned(),
            partition,
            next: from,
            to,
            sender,
            confirmed_end: false,
            _turn: turn,
        };
        let read = tokio::task::spawn_blocking(move || range.run());
        while let Some(chunk) = chunks.recv().await {
            on_chunk(&chunk);
        }
        read.await.map_err(|_| KafkaError::Closed)?
    }

    /// Asks the broker where the partitions of a topic are. A failure is the next question's to tell.
    fn refresh(&self, topic: &str) -> impl Fn(Duration) + Send + 'static {
        let (reader, topic) = (self.clone(), topic.to_owned());
        move |wait| {
            let asked = reader.consumer.fetch_metadata(Some(&topic), wait);
            tracing::debug!(
                topic,
                answered = asked.is_ok(),
                "looked for the leaders again"
            );
        }
    }

    /// Takes what the client has to tell, its log and its errors. It keeps all of it until somebody does, and one that
    /// is only asked questions is polled by nobody. A range under way polls by itself.
    fn serve(&self) {
        let Ok(_turn) = self.turn.try_lock() else {
            return;
        };
        for _ in 0..ERRORS_MAX {
            // All that waits is taken within this time; only an error comes back by itself.
            if self.consumer.poll(SERVE).is_none() {
                return;
            }
        }
    }

    fn unreachable(&self, source: Native) -> KafkaError {
        KafkaError::Unreachable {
            brokers: self.brokers.clone(),
            source,
        }
    }
}

/// What the answer about one partition says: an offset, or that every record is older. A partition about which the first
/// broker asked knew nothing yet comes with an error and without an offset, which must not be taken for the latter, even
/// where the call as a whole went well.
fn offset_told(told: Option<(KafkaResult<()>, Offset)>) -> KafkaResult<Option<i64>> {
    let unknown = || Native::OffsetFetch(RDKafkaErrorCode::NoOffset);
    let (error, offset) = told.ok_or_else(unknown)?;
    error?;
    match offset {
        Offset::Offset(offset) => Ok(Some(offset)),
        Offset::End => Ok(None),
        _ => Err(unknown()),
    }
}

struct RangeRead {
    reader: LogReader,
    topic: String,
    partition: i32,
    next: i64,
    to: i64,
    sender: mpsc::Sender<Chunk>,
    /// The broker has said that the log reaches `to`, and was asked for records once more.
    confirmed_end: bool,
    _turn: OwnedMutexGuard<()>,
}

impl RangeRead {
    fn run(mut self) -> Result<(), KafkaError> {
        self.assign()?;
        let result = self.poll_all();
        let unassigned = self.reader.consumer.unassign();
        result.and(unassigned.map_err(KafkaError::from))
    }

    fn assign(&self) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.topic, self.partition, Offset::Offset(self.next))?;
        Ok(self.reader.consumer.assign(&list)?)
    }

    fn poll_all(&mut self) -> Result<(), KafkaError> {
        let mut builder = ChunkBuilder::new(self.partition);
        let result = self.poll_into(&mut builder);
        self.hand_over(&mut builder);
        result
    }

    fn poll_into(&mut self, builder: &mut ChunkBuilder) -> Result<(), KafkaError> {
        let consumer = self.reader.consumer.clone();
        let (mut progress, mut at_end) = (Instant::now(), false);
        while self.next < self.to && !self.sender.is_closed() {
            match consumer.poll(POLL) {
                // Left over from an earlier range.
                Some(Ok(message)) if self.is_foreign(&message) => {}
                Some(Ok(message)) if message.offset() >= self.to => break,
                Some(Ok(message)) => {
                    (progress, at_end) = (Instant::now(), false);
                    self.next = message.offset() + 1;
                    builder.push_message(&message);
                }
                Some(Err(Native::PartitionEOF(partition))) if partition == self.partition => {
                    if self.confirmed_end {
                        break;
                    }
                    at_end = true;
                }
                Some(Err(error)) => {
                    tracing::debug!(topic = self.topic, partition = self.partition, %error, "read");
                    self.check_progress(progress)?;
                }
                None => self.check_progress(progress)?,
            }
            if at_end && !self.confirmed_end {
                self.confirm_end()?;
                at_end = !self.confirmed_end;
            }
            if builder.len() >= self.reader.fetch.chunk_records_max.max(1)
                || builder.size_bytes() >= self.reader.fetch.chunk_kib_max.max(1) * 1024
            {
                self.hand_over(builder);
            }
        }
        Ok(())
    }

    /// The topic goes unchecked: the turn is handed on only after the assignment was taken back.
    fn is_foreign(&self, message: &rdkafka::message::BorrowedMessage<'_>) -> bool {
        message.partition() != self.partition || message.offset() < self.next
    }

    /// The end came before `to`. A replica may lag behind what another has shown, so that this
    /// proves nothing; but when the leader says that the log reaches `to`, and a fetch after that
    /// meets the end at this very place again, the offsets up to `to` hold no record.
    fn confirm_end(&mut self) -> Result<(), KafkaError> {
        let ends = self
            .reader
            .consumer
            .fetch_watermarks(&self.topic, self.partition, POLL);
        if ends.is_ok_and(|(_, high)| high >= self.to) {
            self.confirmed_end = true;
            self.assign()?;
        }
        Ok(())
    }

    fn hand_over(&mut self, builder: &mut ChunkBuilder) {
        if let Some(chunk) = builder.take()
            && self.sender.blocking_send(chunk).is_err()
        {
            // The caller has gone: there is nobody to read for.
            self.next = self.to;
        }
    }

    fn check_progress(&self, since: Instant) -> Result<(), KafkaError> {
        if since.elapsed() < self.reader.timeout {
            return Ok(());
        }
        Err(KafkaError::Stalled {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.next,
            waited_ms: since.elapsed().as_millis() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_without_an_error_says_that_all_records_are_older() {
        let stale = || Err(Native::OffsetFetch(RDKafkaErrorCode::UnknownLeaderEpoch));
        let cases = [
            (Some((Ok(()), Offset::Offset(7))), Ok(Some(7))),
            (Some((Ok(()), Offset::End)), Ok(None)),
            (
                Some((stale(), Offset::End)),
                Err(RDKafkaErrorCode::UnknownLeaderEpoch),
            ),
            (
                Some((Ok(()), Offset::Invalid)),
                Err(RDKafkaErrorCode::NoOffset),
            ),
            (None, Err(RDKafkaErrorCode::NoOffset)),
        ];
        for (told, expected) in cases {
            let shown = format!("{told:?}");
            let found = offset_told(told).map_err(|error| error.rdkafka_error_code().unwrap());
            assert_eq!(found, expected, "{shown}");
        }
    }
}
