//! Where the records of a client lie: how many the log has acknowledged of each partition, and between which offsets.
//!
//! Kept by the client's poll thread, one short lock per record that nobody else wants; memory is bounded by the
//! partitions that are written to.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What was acknowledged of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Records.
    pub records: u64,
    /// The least offset; -1 when the broker told none.
    pub first: i64,
    /// The greatest offset; -1 when the broker told none.
    pub last: i64,
}

impl Default for Span {
    fn default() -> Self {
        Self {
            records: 0,
            first: -1,
            last: -1,
        }
    }
}

impl Span {
    fn add(&mut self, offset: i64) {
        self.records += 1;
        // A record that the broker had already is acknowledged without an offset.
        if offset >= 0 {
            self.first = if self.first < 0 {
                offset
            } else {
                self.first.min(offset)
            };
            self.last = self.last.max(offset);
        }
    }
}

/// The spans of a client's topics and partitions.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    topics: Mutex<BTreeMap<String, BTreeMap<i32, Span>>>,
}

impl Acknowledged {
    pub(crate) fn add(&self, topic: &str, partition: i32, offset: i64) {
        let mut topics = self.topics.lock();
        // No text is made for a topic that is known.
        match topics.get_mut(topic) {
            Some(spans) => spans.entry(partition).or_default().add(offset),
            None => {
                let spans = topics.entry(topic.to_owned()).or_default();
                spans.entry(partition).or_default().add(offset);
            }
        }
    }

    pub(crate) fn of(&self, topic: &str) -> BTreeMap<i32, Span> {
        self.topics.lock().get(topic).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_counted_and_bounded_per_partition() {
        let acknowledged = Acknowledged::default();
        for (topic, partition, offset) in [
            ("a", 0, 7),
            ("a", 0, 5),
            ("a", 0, -1),
            ("a", 1, -1),
            ("b", 0, 100),
        ] {
            acknowledged.add(topic, partition, offset);
        }
        let found = acknowledged.of("a");
        let span = |records, first, last| Span {
            records,
            first,
            last,
        };
        assert_eq!(found[&0], span(3, 5, 7));
        assert_eq!(found[&1], span(1, -1, -1));
        assert!(acknowledged.of("c").is_empty());
    }
}
