//! Reading the books: both topics and the dead letters, from their beginning, or on from where they
//! were read before.

use indicatif::ProgressBar;
use streamgauge_audit::{Fold, PartitionFacts};
use streamgauge_kafka::{KafkaError, LogReader, Watermarks, admin};

use super::{
    AuditConfig, TopicsConfig,
    dead_letters::DeadLetters,
    range::TimeRange,
    report::Report,
    services::{Said, Store},
};
use crate::progress_bar;

/// A partition of `metrics-data` as far as it was read.
struct Read {
    fold: Fold,
    next: i64,
}

/// The books, as far as they were read.
pub struct Books {
    config: AuditConfig,
    reader: LogReader,
    range: Option<TimeRange>,
    trail: usize,
    batches: Vec<Read>,
    letters: DeadLetters,
    /// How far each partition of the dead-letter topic was read.
    letters_next: Vec<i64>,
}

impl Books {
    /// Books of which nothing was read. With a `trail` they can be looked at again.
    ///
    /// # Errors
    /// When Kafka refuses a setting.
    pub fn new(
        config: AuditConfig,
        range: Option<TimeRange>,
        trail: usize,
    ) -> Result<Self, KafkaError> {
        let reader = LogReader::new(&config.kafka, &config.fetch, None)?;
        let letters = DeadLetters::of(&config.topics.events, config.dead_letters_max);
        Ok(Self {
            config,
            reader,
            range,
            trail,
            batches: Vec::new(),
            letters,
            letters_next: Vec::new(),
        })
    }

    /// Batches before dead letters, dead letters before the ends of the source: each is written
    /// before what was read before it, so that nothing seems to be lacking that is only late.
    ///
    /// # Errors
    /// When the log does not answer, or holds no such topics.
    pub async fn look(&mut self, said: Said) -> Result<Report, KafkaError> {
        let partitions = self.partitions().await?;
        if self.batches.len() != partitions as usize {
            self.batches.clear();
        }
        let bar = progress_bar::counting("records");
        for partition in 0..partitions {
            self.read_batches(partition, &said.store, &bar).await?;
        }
        self.read_letters(&bar).await?;
        let mut facts = Vec::new();
        for partition in 0..partitions {
            let topic = &self.config.topics.events;
            let source = self.reader.watermarks(topic, partition).await?;
            facts.push(self.facts(partition, source, &said.store));
        }
        bar.finish_and_clear();
        Ok(Report {
            facts,
            range: self.range,
            dead_letters_unknown: self.letters.incomplete.clone(),
            dead_letters_foreign: self.letters.foreign,
            said,
        })
    }

    fn facts(&self, partition: i32, source: Watermarks, store: &Store) -> PartitionFacts {
        let fold = self.batches[partition as usize].fold.clone();
        let (base, head) = (fold.ledger.base(), fold.ledger.head());
        PartitionFacts {
            partition,
            source_low: source.low,
            source_high: source.high,
            dead_letters: self.letters.within(partition, base, head),
            store: store.partition(partition),
            fold,
        }
    }

    /// The partitions of the source, which those of the deltas equal.
    async fn partitions(&self) -> Result<i32, KafkaError> {
        let AuditConfig {
            kafka,
            topics: TopicsConfig {
                events, metrics, ..
            },
            ..
        } = &self.config;
        let count = |topic: String| async move {
            let count = admin::partition_count(kafka, &topic).await?;
            count.ok_or(KafkaError::UnknownTopic(topic))
        };
        let expected = count(events.clone()).await?;
        let found = count(metrics.clone()).await?;
        if found == expected {
            return Ok(expected);
        }
        Err(KafkaError::PartitionMismatch {
            topic: metrics.clone(),
            found,
            expected,
        })
    }

    async fn read_batches(
        &mut self,
        partition: i32,
        store: &Store,
        bar: &ProgressBar,
    ) -> Result<(), KafkaError> {
        let store_head = store.partition(partition).map(|row| row.head);
        let ends = self
            .reader
            .watermarks(&self.config.topics.metrics, partition)
            .await?;
        let place = partition as usize;
        let goes_on = |read: &Read| (ends.low..=ends.high).contains(&read.next);
        if self.batches.get(place).is_some_and(goes_on) {
            self.batches[place].fold.compare_again(store_head);
        } else {
            // Nothing was read yet, or the topic was made anew or cut behind the reader's back.
            let asked = self.offsets(partition).await?;
            let known = self.config.batches_known_max;
            let mut fold = Fold::new(ends.low, store_head).over(asked).knowing(known);
            if self.trail > 0 {
                fold = fold.with_trail(self.trail);
            }
            let next = ends.low;
            self.batches.truncate(place);
            self.batches.push(Read { fold, next });
        }
        let (topic, read) = (&self.config.topics.metrics, &mut self.batches[place]);
        let from = std::mem::replace(&mut read.next, ends.high);
        let fold = &mut read.fold;
        let done = self
            .reader
            .read_range(topic, partition, from, ends.high, |chunk| {
                for record in chunk.iter() {
                    fold.record(record.offset, record.payload);
                }
                bar.inc(chunk.len() as u64);
            });
        let done = done.await;
        if done.is_err() {
            // Part of it was taken in: it is read from the beginning the next time.
            self.batches.truncate(place);
        }
        done
    }

    /// The source offsets of the range.
    async fn offsets(&self, partition: i32) -> Result<Option<(i64, i64)>, KafkaError> {
        let Some(range) = self.range else {
            return Ok(None);
        };
        let topic = &self.config.topics.events;
        let ends = self.reader.watermarks(topic, partition).await?;
        let at = |time_us: Option<i64>, open: i64| async move {
            let Some(time_us) = time_us else {
                return Ok(open);
            };
            let millis = time_us.div_euclid(1_000) + i64::from(time_us.rem_euclid(1_000) > 0);
            let found = self
                .reader
                .offset_for_time(topic, partition, millis)
                .await?;
            Ok::<i64, KafkaError>(found.unwrap_or(ends.high))
        };
        let from = at(range.from_us, ends.low).await?;
        let to = at(range.to_us, ends.high).await?;
        Ok(Some((from, to.max(from))))
    }

    async fn read_letters(&mut self, bar: &ProgressBar) -> Result<(), KafkaError> {
        let topic = self.config.topics.dead_letters.clone();
        let found = admin::partition_count(&self.config.kafka, &topic).await?;
        let partitions = found.unwrap_or(0) as usize;
        let mut ends = Vec::with_capacity(partitions);
        for partition in 0..partitions {
            ends.push(self.reader.watermarks(&topic, partition as i32).await?);
        }
        let is_cut = self.letters_next.len() != partitions
            || (self.letters_next.iter().zip(&ends)).any(|(next, ends)| *next > ends.high);
        if is_cut {
            self.letters =
                DeadLetters::of(&self.config.topics.events, self.config.dead_letters_max);
            self.letters_next = ends.iter().map(|ends| ends.low).collect();
        }
        if found.is_none() {
            self.letters.incomplete = Some(format!("there is no topic {topic}"));
        }
        for (partition, ends) in ends.into_iter().enumerate() {
            if ends.low > 0 {
                let reason = format!("retention has cut {topic}");
                self.letters.incomplete.get_or_insert(reason);
            }
            let from = self.letters_next[partition].max(ends.low);
            let letters = &mut self.letters;
            let take = |chunk: &streamgauge_kafka::Chunk| {
                let place = partition as i32;
                chunk
                    .iter()
                    .for_each(|record| letters.record(place, record));
                bar.inc(chunk.len() as u64);
            };
            // A letter that is read twice counts once.
            self.reader
                .read_range(&topic, partition as i32, from, ends.high, take)
                .await?;
            self.letters_next[partition] = ends.high;
        }
        Ok(())
    }
}
