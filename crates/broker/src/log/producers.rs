//! What a partition remembers of idempotent producers: their epoch and last
//! five batches, enough to tell a repeated batch from a lost one. Bounded by
//! count and by silence. A snapshot beside the log saves scanning all of it at
//! start; what the snapshot lacks is replayed from batch headers.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};

use super::batch::{BatchHeader, wrapping_sequence};
use crate::durable;

/// Producers keep at most five requests in flight, so older ones never return.
const BATCHES_REMEMBERED: usize = 5;
const MAGIC: u32 = 0x5347_5031;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BatchMark {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    last_seen_ms: i64,
    batches: VecDeque<BatchMark>,
}

/// What to do with a batch of an idempotent producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Append,
    /// Stored before, at this offset: acknowledge it again.
    Duplicate(i64),
    OutOfOrder,
    Fenced,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Producers {
    known: HashMap<i64, Producer>,
}

impl Producers {
    /// Judges a batch without changing anything.
    pub fn check(&self, header: &BatchHeader) -> Verdict {
        let Some(producer) = self.known.get(&header.producer_id) else {
            return Verdict::Append;
        };
        if header.producer_epoch < producer.epoch {
            return Verdict::Fenced;
        }
        if header.producer_epoch > producer.epoch {
            return match header.base_sequence {
                0 => Verdict::Append,
                _ => Verdict::OutOfOrder,
            };
        }
        if let Some(offset) = producer.find_duplicate(header) {
            return Verdict::Duplicate(offset);
        }
        match producer.batches.back() {
            Some(last) if wrapping_sequence(last.last_sequence, 1) != header.base_sequence => {
                Verdict::OutOfOrder
            }
            _ => Verdict::Append,
        }
    }

    /// Takes note of a stored batch; `header` carries its final offset.
    pub fn record(&mut self, header: &BatchHeader, now_ms: i64, bound: usize) {
        if !header.is_idempotent() {
            return;
        }
        if self.known.len() >= bound && !self.known.contains_key(&header.producer_id) {
            self.forget_most_silent();
        }
        let producer = self.known.entry(header.producer_id).or_insert(Producer {
            epoch: header.producer_epoch,
            last_seen_ms: now_ms,
            batches: VecDeque::with_capacity(BATCHES_REMEMBERED),
        });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == BATCHES_REMEMBERED {
            producer.batches.pop_front();
        }
        producer.last_seen_ms = now_ms;
        producer.batches.push_back(BatchMark {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
        });
    }

    /// Forgets producers last seen before `limit_ms`.
    pub fn expire(&mut self, limit_ms: i64) {
        self.known
            .retain(|_, producer| producer.last_seen_ms >= limit_ms);
    }

    fn forget_most_silent(&mut self) {
        let silent = self
            .known
            .iter()
            .min_by_key(|(_, producer)| producer.last_seen_ms)
            .map(|(id, _)| *id);
        if let Some(id) = silent {
            self.known.remove(&id);
        }
    }

    /// Writes a snapshot of the state as of `offset`.
    pub fn save(&self, dir: &Path, offset: i64) -> io::Result<()> {
        let mut bytes = Vec::new();
        bytes.put_u32(MAGIC);
        bytes.put_i64(offset);
        bytes.put_u32(u32::try_from(self.known.len()).map_err(io::Error::other)?);
        for (id, producer) in &self.known {
            bytes.put_i64(*id);
            bytes.put_i16(producer.epoch);
            bytes.put_i64(producer.last_seen_ms);
            bytes.put_u8(producer.batches.len() as u8);
            for batch in &producer.batches {
                bytes.put_i32(batch.first_sequence);
                bytes.put_i32(batch.last_sequence);
                bytes.put_i64(batch.base_offset);
            }
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.put_u32(crc);
        durable::write_atomic(&snapshot_path(dir), &bytes)
    }

    /// Loads the snapshot and the offset it was taken at; `None` when absent
    /// or damaged.
    pub fn load(dir: &Path) -> io::Result<Option<(Producers, i64)>> {
        let bytes = durable::read_if_present(&snapshot_path(dir))?;
        Ok(bytes.and_then(|bytes| decode(&bytes)))
    }
}

impl Producer {
    fn find_duplicate(&self, header: &BatchHeader) -> Option<i64> {
        self.batches
            .iter()
            .find(|batch| {
                batch.first_sequence == header.base_sequence
                    && batch.last_sequence == header.last_sequence()
            })
            .map(|batch| batch.base_offset)
    }
}

/// The file of a partition's snapshot.
pub fn snapshot_path(dir: &Path) -> PathBuf {
    dir.join("producers.snapshot")
}

fn decode(bytes: &[u8]) -> Option<(Producers, i64)> {
    let (content, mut crc) = bytes.split_at(bytes.len().checked_sub(4)?);
    if crc32c::crc32c(content) != crc.get_u32() {
        return None;
    }
    let mut rest = content;
    if rest.try_get_u32().ok()? != MAGIC {
        return None;
    }
    let offset = rest.try_get_i64().ok()?;
    let count = rest.try_get_u32().ok()?;
    let mut producers = Producers::default();
    for _ in 0..count {
        let id = rest.try_get_i64().ok()?;
        let mut producer = Producer {
            epoch: rest.try_get_i16().ok()?,
            last_seen_ms: rest.try_get_i64().ok()?,
            batches: VecDeque::new(),
        };
        for _ in 0..rest.try_get_u8().ok()? {
            producer.batches.push_back(BatchMark {
                first_sequence: rest.try_get_i32().ok()?,
                last_sequence: rest.try_get_i32().ok()?,
                base_offset: rest.try_get_i64().ok()?,
            });
        }
        producers.known.insert(id, producer);
    }
    Some((producers, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i16, sequence: i32, count: i32, base_offset: i64) -> BatchHeader {
        BatchHeader {
            base_offset,
            total_len: 100,
            magic: 2,
            crc: 0,
            attributes: 0,
            last_offset_delta: count - 1,
            base_timestamp: 0,
            max_timestamp: 0,
            producer_id: 7,
            producer_epoch: epoch,
            base_sequence: sequence,
            record_count: count,
        }
    }

    #[test]
    fn the_last_five_batches_are_duplicates_older_ones_are_out_of_order() {
        let mut producers = Producers::default();
        for n in 0..7 {
            let header = batch(0, n * 10, 10, i64::from(n) * 100);
            assert_eq!(producers.check(&header), Verdict::Append);
            producers.record(&header, 0, 10);
        }
        assert_eq!(
            producers.check(&batch(0, 60, 10, 0)),
            Verdict::Duplicate(600)
        );
        assert_eq!(
            producers.check(&batch(0, 20, 10, 0)),
            Verdict::Duplicate(200)
        );
        assert_eq!(producers.check(&batch(0, 10, 10, 0)), Verdict::OutOfOrder);
        assert_eq!(producers.check(&batch(0, 80, 10, 0)), Verdict::OutOfOrder);
        assert_eq!(producers.check(&batch(0, 70, 10, 0)), Verdict::Append);
    }

    #[test]
    fn a_new_epoch_starts_at_zero_and_fences_the_old() {
        let mut producers = Producers::default();
        producers.record(&batch(1, 0, 5, 0), 0, 10);
        assert_eq!(producers.check(&batch(2, 5, 5, 0)), Verdict::OutOfOrder);
        assert_eq!(producers.check(&batch(2, 0, 5, 0)), Verdict::Append);
        producers.record(&batch(2, 0, 5, 5), 0, 10);
        assert_eq!(producers.check(&batch(1, 5, 5, 0)), Verdict::Fenced);
    }

    #[test]
    fn a_snapshot_round_trips_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut producers = Producers::default();
        producers.record(&batch(0, 0, 5, 3), 42, 10);
        producers.save(dir.path(), 8).unwrap();
        assert_eq!(Producers::load(dir.path()).unwrap(), Some((producers, 8)));
        let path = snapshot_path(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[6] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Producers::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn the_count_is_bounded() {
        let mut producers = Producers::default();
        for id in 0..50 {
            let header = BatchHeader {
                producer_id: id,
                ..batch(0, 0, 1, id)
            };
            producers.record(&header, id, 10);
        }
        assert_eq!(producers.known.len(), 10);
        producers.expire(45);
        assert_eq!(producers.known.len(), 5);
    }
}
