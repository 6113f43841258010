//! Which source offsets lie in the dead-letter topic. A crash may write one twice; the triple of
//! source topic, partition and offset is what is counted.

use std::collections::{HashMap, HashSet};

use streamgauge_consumer::dead_letter::{MARK, SOURCE_OFFSET, SOURCE_PARTITION, SOURCE_TOPIC};
use streamgauge_kafka::{Headers, RecordRef};

/// Records that name no source here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// How many there are.
    pub count: u64,
    /// Partition and offset of the first.
    pub first: Option<(i32, i64)>,
}

/// The distinct dead letters of one source topic.
#[derive(Debug)]
pub struct DeadLetters {
    topic: String,
    max: usize,
    offsets: HashMap<i32, HashSet<i64>>,
    count: usize,
    /// Records without a readable source.
    pub foreign: Foreign,
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
            foreign: Foreign::default(),
            incomplete: None,
        }
    }

    /// Takes a record of this partition of the dead-letter topic in. A mark about a dead letter is none itself: it must not stand in for
    /// one that is missing.
    pub fn record(&mut self, own_partition: i32, record: RecordRef<'_>) {
        let mut headers = record.headers;
        if headers.next().is_some_and(|(name, _)| name == MARK) {
            return;
        }
        let Some((partition, offset)) = self.source(record.headers) else {
            self.foreign.count += 1;
            let spot = (own_partition, record.offset);
            self.foreign.first.get_or_insert(spot);
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
            letters.record(0, record);
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
    fn marks_are_no_dead_letters_and_a_letter_with_a_header_of_that_name_is_one() {
        let source = [
            (SOURCE_TOPIC, Some(&b"events"[..])),
            (SOURCE_PARTITION, Some(b"0")),
            (SOURCE_OFFSET, Some(b"5")),
        ];
        let mark = [(MARK, Some(&b"replayed"[..]))];
        let count = |headers: Vec<(&str, Option<&[u8]>)>| {
            let mut builder = ChunkBuilder::new(0);
            builder.push(0, 0, None, None, headers);
            let mut letters = DeadLetters::of("events", 10);
            let chunk = builder.take().expect("a record");
            chunk.iter().for_each(|record| letters.record(0, record));
            (letters.within(0, 0, 10), letters.foreign.count)
        };
        assert_eq!(count([&mark[..], &source].concat()), (Some(0), 0));
        assert_eq!(count([&source[..], &mark].concat()), (Some(1), 0));
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
        assert_eq!((found.foreign.count, found.within(0, 0, 10)), (2, Some(1)));
        assert_eq!(found.foreign.first, Some((0, 0)));
        let found = letters(1, &[("events", "0", "1"), ("events", "0", "2")]);
        assert_eq!(found.within(0, 0, 10), None);
        assert!(found.incomplete.is_some());
    }
}
