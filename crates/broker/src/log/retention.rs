//! Deleting what is too old or too much: whole segments from the old end.
//! A segment goes only when all of it is expired; the newest one is closed
//! first when even it has expired.

use std::io;

use super::segment::Segment;
use super::{Inner, Partition, now_ms};

impl Partition {
    /// Applies the limits once. Returns how many bytes were deleted.
    pub fn enforce_retention(&self) -> io::Result<u64> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Ok(0);
        }
        let silence_ms = i64::try_from(self.settings.producer_id_expiration_ms).unwrap_or(i64::MAX);
        inner.producers.expire(now_ms().saturating_sub(silence_ms));
        self.mend_tail(&mut inner)?;
        let Some(log_start) = self.retained_from(&mut inner)? else {
            return Ok(0);
        };
        // Consumers must never see a start beyond what they may read.
        let log_start = log_start.min(self.high_watermark());
        let before = inner.size();
        if log_start > inner.log_start {
            super::log_start::save(&self.dir, log_start)?;
        }
        self.move_log_start(&mut inner, log_start);
        Ok(before - inner.size())
    }

    /// The first offset to keep, or `None` when everything stays.
    fn retained_from(&self, inner: &mut Inner) -> io::Result<Option<i64>> {
        let expired = self.count_expired(inner);
        if expired == inner.segments.len() {
            self.roll(inner)?;
        }
        let oversized = self.count_oversized(inner);
        let goes = expired.max(oversized);
        Ok(goes
            .checked_sub(1)
            .and_then(|last| inner.segments.get(last))
            .map(|segment| segment.end_offset))
    }

    fn count_expired(&self, inner: &Inner) -> usize {
        if self.settings.retention_ms < 0 {
            return 0;
        }
        let limit = now_ms().saturating_sub(self.settings.retention_ms);
        inner
            .segments
            .iter()
            .take_while(|segment| !segment.is_empty() && newest_ms(segment) < limit)
            .count()
    }

    /// How many of the oldest segments can go with the rest still at or above
    /// the limit.
    fn count_oversized(&self, inner: &Inner) -> usize {
        let Ok(limit) = u64::try_from(self.settings.retention_bytes) else {
            return 0;
        };
        let mut size = inner.size();
        inner
            .segments
            .iter()
            .take(inner.segments.len() - 1)
            .take_while(|segment| {
                size -= segment.size;
                size >= limit
            })
            .count()
    }
}

/// The largest timestamp of a segment's records, but no later than its last
/// write: a client's clock that runs ahead cannot keep a segment forever.
fn newest_ms(segment: &Segment) -> i64 {
    let modified = segment
        .handle()
        .and_then(|file| file.metadata())
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .and_then(|since| i64::try_from(since.as_millis()).ok());
    match modified {
        Some(modified) if segment.max_timestamp >= 0 => segment.max_timestamp.min(modified),
        Some(modified) => modified,
        None => segment.max_timestamp,
    }
}
