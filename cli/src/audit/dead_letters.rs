//! Which source offsets lie in the dead-letter topic. A crash may write one twice; the triple of
//! source topic, partition and offset is what is counted.

use std::collections::{HashMap, HashSet};

use streamgauge_consumer::dead_letter::{SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC};
use streamgauge_kafka::{Headers, RecordRef};

/// The distinct dead letters of one source topic.
#[derive(Debug)]
pub struct DeadLetters {
    topic: String,
    max: usize,
    offsets: HashMap<i32, HashSet<i64>>,
    count: usize,
    /// Records without a readable source.
    pub foreign: u64,
    /// Why the count is not the whole: retention, or too many.
    pub incomplete: Option<String>,
}

impl DeadLetters {
    /// None yet; at most `max` are remembered.
    pub fn of(topic: &str, max: usize) -> Self {
        Self {
            topic: topic.to_owned(),
            max,
            offsets: HashMap::new(),
            count: 0,
            foreign: 0,
            incomplete: None,
        }
    }

    /// Takes a record of the dead-letter topic in.
    pub fn record(&mut self, record: RecordRef<'_>) {
        let Some((partition, offset)) = self.source(record.headers) else {
            self.foreign += 1;
            return;
        };
        if self.count >= self.max {
            let reason = format!("there are more than {} of them", self.max);
            self.incomplete.get_or_insert(reason);
            return;
        }
        self.count += usize::from(self.offsets.entry(partition).or_default().insert(offset));
    }

    /// The consumer's own headers come first: those of the record that it refused follow, and may
    /// have any name.
    fn source(&self, mut headers: Headers<'_>) -> Option<(i32, i64)> {
        let mut text = |name| {
            let (_, value) = headers.find(|(found, _)| *found == name)?;
            std::str::from_utf8(value?).ok()
        };
        if text(SOURCE_TOPIC)? != self.topic {
            return None;
        }
        Some((
            text(SOURCE_PARTITION)?.parse().ok()?,
            text(SOURCE_OFFSET)?.parse().ok()?,
        ))
    }

    /// How many there are of a partition within `[from, to)`; `None` when that is not known.
    pub fn within(&self, partition: i32, from: i64, to: i64) -> Option<u64> {
        if self.incomplete.is_some() {
            return None;
        }
        let offsets = self.offsets.get(&partition);
        let inside = |offset: &&i64| (from..to).contains(*offset);
        Some(offsets.map_or(0, |offsets| offsets.iter().filter(inside).count() as u64))
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_kafka::ChunkBuilder;

    use super::*;

    fn letters(max: usize, records: &[(&str, &str, &str)]) -> DeadLetters {
        let mut builder = ChunkBuilder::new(0);
        for (offset, (topic, partition, source)) in records.iter().enumerate() {
            let headers = [
                (SOURCE_TOPIC, Some(topic.as_bytes())),
                (SOURCE_PARTITION, Some(partition.as_bytes())),
                (SOURCE_OFFSET, Some(source.as_bytes())),
            ];
            builder.push(offset as i64, 0, None, None, headers);
        }
        let mut letters = DeadLetters::of("events", max);
        for record in builder.take().expect("records").iter() {
            letters.record(record);
        }
        letters
    }

    #[test]
    fn each_source_offset_counts_once() {
        let found = letters(
            10,
            &[
                ("events", "0", "5"),
                ("events", "0", "5"),
                ("events", "1", "5"),
                ("events", "0", "9"),
            ],
        );
        assert_eq!(found.within(0, 0, 9), Some(1));
        assert_eq!(found.within(0, 0, 10), Some(2));
        assert_eq!(
            (found.within(1, 0, 10), found.within(7, 0, 10)),
            (Some(1), Some(0))
        );
    }

    #[test]
    fn what_is_not_ours_and_what_is_too_much_is_told() {
        let found = letters(
            1,
            &[
                ("other", "0", "5"),
                ("events", "x", "5"),
                ("events", "0", "1"),
            ],
        );
        assert_eq!((found.foreign, found.within(0, 0, 10)), (2, Some(1)));
        let found = letters(1, &[("events", "0", "1"), ("events", "0", "2")]);
        assert_eq!(found.within(0, 0, 10), None);
        assert!(found.incomplete.is_some());
    }
}
