//! Which partitions hold nothing more to wait for, and how far the watermark may go.
//!
//! Pure. A partition is idle when the follower has read `metrics-data` to its end and the chain has reached the end of
//! the source; it is busy again as soon as either has more. It never becomes idle by the passing of time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::view::ChainRow;

/// What is known of each partition.
#[derive(Debug, Default)]
pub struct Idle {
    /// Partitions whose follower has reached the end of `metrics-data`.
    at_end: BTreeSet<i32>,
    /// Partitions that hold nothing more to wait for.
    idle: BTreeSet<i32>,
    /// When each partition was last moved, by the monotonic clock.
    moved_at: BTreeMap<i32, Duration>,
}

impl Idle {
    /// Records came.
    pub fn read(&mut self, partition: i32) {
        self.at_end.remove(&partition);
    }

    /// A fetch came back empty.
    pub fn reached_end(&mut self, partition: i32) {
        self.at_end.insert(partition);
    }

    /// The chain moved.
    pub fn moved(&mut self, partition: i32, now: Duration) {
        self.idle.remove(&partition);
        self.moved_at.insert(partition, now);
    }

    /// The source ended at `end` when it was asked, and the chain stands at `head`.
    pub fn source_end(&mut self, partition: i32, head: i64, end: i64, asked_at: Duration) {
        if head < end {
            self.idle.remove(&partition);
            return;
        }
        let moved_at = self.moved_at.get(&partition);
        let settled = moved_at.is_none_or(|moved_at| *moved_at < asked_at);
        if settled && self.at_end.contains(&partition) {
            self.idle.insert(partition);
        }
    }

    /// The least over partitions that are not idle; with all idle, the latest that any reached.
    pub fn watermark_us(&self, rows: &[ChainRow]) -> i64 {
        let busy = rows
            .iter()
            .filter(|row| !self.idle.contains(&row.partition));
        let least = busy.map(|row| row.watermark_us).min();
        let latest = rows.iter().map(|row| row.watermark_us).max();
        least.or(latest).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(watermarks: &[i64]) -> Vec<ChainRow> {
        let row = |(partition, watermark_us): (usize, &i64)| ChainRow {
            watermark_us: *watermark_us,
            ..ChainRow::new(partition as i32)
        };
        watermarks.iter().enumerate().map(row).collect()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_idle_partition_does_not_hold_the_watermark_and_a_busy_one_does() {
        let mut idle = Idle::default();
        let rows = rows(&[100, 0]);
        assert_eq!(idle.watermark_us(&rows), 0, "nothing is known of 1 yet");
        idle.source_end(1, 0, 0, at(1));
        assert_eq!(idle.watermark_us(&rows), 0, "metrics-data may hold more");
        idle.reached_end(1);
        idle.source_end(1, 0, 0, at(2));
        assert_eq!(idle.watermark_us(&rows), 100);
        idle.reached_end(0);
        idle.source_end(0, 5, 5, at(2));
        assert_eq!(idle.watermark_us(&rows), 100, "all idle: the latest");
    }

    #[test]
    fn an_event_in_the_source_alone_ends_the_idling() {
        let mut idle = Idle::default();
        idle.reached_end(1);
        idle.source_end(1, 0, 0, at(1));
        assert_eq!(idle.watermark_us(&rows(&[100, 0])), 100);
        idle.source_end(1, 0, 1, at(2));
        assert_eq!(idle.watermark_us(&rows(&[200, 0])), 0);
    }

    #[test]
    fn an_end_that_was_asked_for_before_the_chain_moved_says_nothing() {
        let mut idle = Idle::default();
        idle.reached_end(0);
        idle.moved(0, at(5));
        idle.source_end(0, 10, 10, at(4));
        assert_eq!(idle.watermark_us(&rows(&[7, 9])), 7);
        idle.source_end(0, 10, 10, at(6));
        assert_eq!(idle.watermark_us(&rows(&[7, 9])), 9);
        idle.read(0);
        idle.moved(0, at(7));
        assert_eq!(idle.watermark_us(&rows(&[8, 9])), 8);
    }
}
