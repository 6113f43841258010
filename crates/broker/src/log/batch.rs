//! The header of a record batch (format 2), read in place. The records inside
//! are checked once, on the way in ([`super::records`]); later only a lookup by
//! time looks at them, and only when they are not compressed.

use bytes::{Buf, Bytes};

/// Bytes before the first record.
pub const HEADER_LEN: usize = 61;
/// Bytes before the field that counts the rest: base offset and length.
pub const LENGTH_PREFIX: usize = 12;
/// The checksum covers everything from here on.
const CRC_START: usize = 21;

const ATTRIBUTE_CODEC: i16 = 0b111;
const ATTRIBUTE_TRANSACTIONAL: i16 = 1 << 4;
const ATTRIBUTE_CONTROL: i16 = 1 << 5;

/// The fields of a batch header that the broker acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// Size of the whole batch, length prefix included.
    pub total_len: usize,
    pub magic: i8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

/// Why a produced batch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the partition's record set is empty")]
    Empty,
    #[error("the batch is shorter than its header says")]
    Truncated,
    #[error("a produce request must hold exactly one batch per partition")]
    MoreThanOne,
    #[error("record format {0} is not supported, only 2")]
    Magic(i8),
    #[error("the batch is larger than max_message_bytes")]
    TooLarge,
    #[error("the batch does not match its checksum")]
    Checksum,
    #[error("the batch's record count and offsets disagree")]
    Counts,
    #[error("compression codec {0} is not known")]
    Codec(i16),
    #[error("the batch cannot be decompressed")]
    Compression,
    #[error("the batch is larger than max_decompressed_bytes once it is decompressed")]
    Swollen,
    #[error("the batch's records cannot be read")]
    Records,
    #[error("control batches are not accepted from clients")]
    Control,
    #[error("transactions are not supported")]
    Transactional,
    #[error("the producer id, epoch and sequence disagree")]
    ProducerFields,
}

impl BatchHeader {
    /// Reads a header; `None` when there are too few bytes or the length field
    /// could not be that of a batch.
    pub fn parse(bytes: &[u8]) -> Option<BatchHeader> {
        let mut b = bytes.get(..HEADER_LEN)?;
        let base_offset = b.get_i64();
        let length = usize::try_from(b.get_i32()).ok()?;
        let total_len = length.checked_add(LENGTH_PREFIX)?;
        if total_len < HEADER_LEN {
            return None;
        }
        let _leader_epoch = b.get_i32();
        Some(BatchHeader {
            base_offset,
            total_len,
            magic: b.get_i8(),
            crc: b.get_u32(),
            attributes: b.get_i16(),
            last_offset_delta: b.get_i32(),
            base_timestamp: b.get_i64(),
            max_timestamp: b.get_i64(),
            producer_id: b.get_i64(),
            producer_epoch: b.get_i16(),
            base_sequence: b.get_i32(),
            record_count: b.get_i32(),
        })
    }

    /// The offset after this batch's last record.
    pub fn next_offset(&self) -> i64 {
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
            .saturating_add(1)
    }

    /// 0 for none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
    pub fn codec(&self) -> i16 {
        self.attributes & ATTRIBUTE_CODEC
    }

    pub fn is_compressed(&self) -> bool {
        self.codec() != 0
    }

    pub fn is_idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    /// The sequence number of the last record, which wraps to 0 after `i32::MAX`.
    pub fn last_sequence(&self) -> i32 {
        wrapping_sequence(self.base_sequence, self.last_offset_delta)
    }

    fn has_plausible_counts(&self) -> bool {
        self.record_count > 0 && self.last_offset_delta == self.record_count - 1
    }
}

/// Adds to a sequence number as producers do: 0 follows `i32::MAX`.
pub fn wrapping_sequence(base: i32, delta: i32) -> i32 {
    let sum = i64::from(base) + i64::from(delta);
    let wrapped = sum % (i64::from(i32::MAX) + 1);
    i32::try_from(wrapped).unwrap_or(0)
}

/// Whether the bytes of a whole batch match the checksum in its header.
pub fn checksum_matches(header: &BatchHeader, batch: &[u8]) -> bool {
    batch
        .get(CRC_START..header.total_len)
        .is_some_and(|covered| crc32c::crc32c(covered) == header.crc)
}

/// Checks what a client sent for one partition: exactly one sound batch.
pub fn validate_produced(records: &[u8], max_bytes: usize) -> Result<BatchHeader, BatchError> {
    if records.is_empty() {
        return Err(BatchError::Empty);
    }
    let header = BatchHeader::parse(records).ok_or(BatchError::Truncated)?;
    if header.magic != 2 {
        return Err(BatchError::Magic(header.magic));
    }
    if header.total_len > max_bytes {
        return Err(BatchError::TooLarge);
    }
    match records.len() {
        len if len < header.total_len => return Err(BatchError::Truncated),
        len if len > header.total_len => return Err(BatchError::MoreThanOne),
        _ => {}
    }
    if header.attributes & ATTRIBUTE_CONTROL != 0 {
        return Err(BatchError::Control);
    }
    if header.attributes & ATTRIBUTE_TRANSACTIONAL != 0 {
        return Err(BatchError::Transactional);
    }
    if !header.has_plausible_counts() {
        return Err(BatchError::Counts);
    }
    if header.is_idempotent() && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return Err(BatchError::ProducerFields);
    }
    if !checksum_matches(&header, records) {
        return Err(BatchError::Checksum);
    }
    Ok(header)
}

/// Whether a header found in a log file can stand at `expected_offset`.
pub fn is_stored_header(header: &BatchHeader, expected_offset: i64) -> bool {
    header.magic == 2 && header.base_offset == expected_offset && header.has_plausible_counts()
}

/// The header to store: the batch's own with its place in the log filled in.
/// Both fields lie outside of the checksum.
pub fn stored_header(records: &[u8], base_offset: i64, leader_epoch: i32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let len = records.len().min(HEADER_LEN);
    header[..len].copy_from_slice(&records[..len]);
    header[..8].copy_from_slice(&base_offset.to_be_bytes());
    header[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
    header
}

/// One record's place and time, as a lookup by time answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOffset {
    pub offset: i64,
    pub timestamp: i64,
}

/// The first record at or after `timestamp` that is not before `log_start`, in
/// a batch whose latest record is late enough. In a compressed batch it is the
/// first that can be read, which may be earlier: reading from there misses
/// nothing.
pub fn first_at_or_after(
    header: &BatchHeader,
    batch: &Bytes,
    timestamp: i64,
    log_start: i64,
) -> Option<TimedOffset> {
    let is_whole = header.base_offset >= log_start;
    if header.is_compressed() || (is_whole && header.base_timestamp >= timestamp) {
        return Some(TimedOffset {
            offset: header.base_offset.max(log_start),
            timestamp: header.base_timestamp,
        });
    }
    RecordTimes::new(header, batch)
        .find(|record| record.offset >= log_start && record.timestamp >= timestamp)
}

/// The record with the batch's largest timestamp; in a compressed batch its
/// last record stands for it.
pub fn latest_in(header: &BatchHeader, batch: &Bytes) -> TimedOffset {
    let last = TimedOffset {
        offset: header.next_offset() - 1,
        timestamp: header.max_timestamp,
    };
    if header.is_compressed() {
        return last;
    }
    RecordTimes::new(header, batch)
        .find(|record| record.timestamp == header.max_timestamp)
        .unwrap_or(last)
}

/// Walks the records of an uncompressed batch, reading only offset and time.
struct RecordTimes {
    base_offset: i64,
    base_timestamp: i64,
    rest: Bytes,
}

impl RecordTimes {
    fn new(header: &BatchHeader, batch: &Bytes) -> Self {
        let end = header.total_len.min(batch.len());
        RecordTimes {
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            rest: batch.slice(HEADER_LEN.min(end)..end),
        }
    }
}

impl Iterator for RecordTimes {
    type Item = TimedOffset;

    fn next(&mut self) -> Option<TimedOffset> {
        let length = usize::try_from(read_varint(&mut self.rest)?).ok()?;
        if length == 0 || length > self.rest.len() {
            return None;
        }
        let mut record = self.rest.split_to(length);
        record.advance(1);
        let timestamp_delta = read_varint(&mut record)?;
        let offset_delta = read_varint(&mut record)?;
        Some(TimedOffset {
            offset: self.base_offset.checked_add(offset_delta)?,
            timestamp: self.base_timestamp.checked_add(timestamp_delta)?,
        })
    }
}

/// A zigzag variable-length integer of at most ten bytes.
fn read_varint(bytes: &mut Bytes) -> Option<i64> {
    let mut value: u64 = 0;
    for shift in (0..70).step_by(7) {
        if !bytes.has_remaining() {
            return None;
        }
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            let magnitude = i64::try_from(value >> 1).ok()?;
            return Some(if value & 1 == 0 {
                magnitude
            } else {
                !magnitude
            });
        }
    }
    None
}

#[cfg(test)]
pub mod testing {
    //! Builds sound batches for tests of the storage.

    use super::*;

    pub struct TestBatch {
        pub timestamps: Vec<i64>,
        pub payload: usize,
        pub producer: (i64, i16, i32),
    }

    impl Default for TestBatch {
        fn default() -> Self {
            TestBatch {
                timestamps: vec![1_000],
                payload: 10,
                producer: (-1, -1, -1),
            }
        }
    }

    fn put_varint(out: &mut Vec<u8>, value: i64) {
        let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
        while zigzag >= 0x80 {
            out.push((zigzag as u8 & 0x7f) | 0x80);
            zigzag >>= 7;
        }
        out.push(zigzag as u8);
    }

    impl TestBatch {
        pub fn build(&self) -> Bytes {
            let base = self.timestamps[0];
            let max = self.timestamps.iter().copied().max().unwrap();
            let mut records = Vec::new();
            for (index, timestamp) in self.timestamps.iter().enumerate() {
                let mut record = vec![0];
                put_varint(&mut record, timestamp - base);
                put_varint(&mut record, index as i64);
                put_varint(&mut record, -1);
                put_varint(&mut record, self.payload as i64);
                record.extend(std::iter::repeat_n(index as u8, self.payload));
                put_varint(&mut record, 0);
                put_varint(&mut records, record.len() as i64);
                records.extend(record);
            }
            let count = self.timestamps.len() as i32;
            let mut tail = Vec::new();
            tail.extend(0i16.to_be_bytes());
            tail.extend((count - 1).to_be_bytes());
            tail.extend(base.to_be_bytes());
            tail.extend(max.to_be_bytes());
            tail.extend(self.producer.0.to_be_bytes());
            tail.extend(self.producer.1.to_be_bytes());
            tail.extend(self.producer.2.to_be_bytes());
            tail.extend(count.to_be_bytes());
            tail.extend(records);
            let mut batch = Vec::new();
            batch.extend(0i64.to_be_bytes());
            batch.extend((tail.len() as i32 + 9).to_be_bytes());
            batch.extend((-1i32).to_be_bytes());
            batch.push(2);
            batch.extend(crc32c::crc32c(&tail).to_be_bytes());
            batch.extend(tail);
            Bytes::from(batch)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::TestBatch;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sound_batch_is_accepted_and_keeps_its_checksum_at_another_offset() {
        let batch = TestBatch::default().build();
        let header = validate_produced(&batch, 1_000).unwrap();
        assert_eq!((header.base_offset, header.record_count), (0, 1));
        let mut stored = batch.to_vec();
        stored[..HEADER_LEN].copy_from_slice(&stored_header(&batch, 77, 0));
        let moved = BatchHeader::parse(&stored).unwrap();
        assert_eq!(moved.base_offset, 77);
        assert!(checksum_matches(&moved, &stored));
    }

    #[test]
    fn each_defect_has_its_error() {
        let good = TestBatch::default().build().to_vec();
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            validate_produced(&bad, 1_000).unwrap_err()
        };
        assert_eq!(with(16, 1), BatchError::Magic(1));
        assert_eq!(with(21, 1), BatchError::Checksum);
        assert_eq!(with(22, 1 << 5), BatchError::Control);
        assert_eq!(with(22, 1 << 4), BatchError::Transactional);
        assert_eq!(with(60, 9), BatchError::Counts);
        let twice = [good.clone(), good.clone()].concat();
        assert_eq!(
            validate_produced(&twice, 1_000),
            Err(BatchError::MoreThanOne)
        );
        assert_eq!(validate_produced(&good, 50), Err(BatchError::TooLarge));
        assert_eq!(
            validate_produced(&good[..70], 1_000),
            Err(BatchError::Truncated)
        );
        assert_eq!(validate_produced(&[], 1_000), Err(BatchError::Empty));
    }

    #[test]
    fn a_lookup_by_time_finds_the_record() {
        let batch = TestBatch {
            timestamps: vec![100, 90, 200, 300],
            ..TestBatch::default()
        }
        .build();
        let header = BatchHeader::parse(&batch).unwrap();
        assert_eq!(
            first_at_or_after(&header, &batch, 150, 0).unwrap().offset,
            2
        );
        assert_eq!(
            first_at_or_after(&header, &batch, 300, 0).unwrap().offset,
            3
        );
        assert_eq!(first_at_or_after(&header, &batch, 90, 1).unwrap().offset, 1);
        assert_eq!(first_at_or_after(&header, &batch, 301, 0), None);
        assert_eq!(latest_in(&header, &batch).offset, 3);
    }

    #[test]
    fn sequences_wrap_to_zero() {
        assert_eq!(wrapping_sequence(i32::MAX, 0), i32::MAX);
        assert_eq!(wrapping_sequence(i32::MAX, 1), 0);
        assert_eq!(wrapping_sequence(i32::MAX - 1, 3), 1);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = validate_produced(&bytes, 1_000);
            if let Some(header) = BatchHeader::parse(&bytes) {
                let batch = Bytes::from(bytes);
                let _ = first_at_or_after(&header, &batch, 5, 0);
                let _ = latest_in(&header, &batch);
                let _ = header.next_offset();
                let _ = header.last_sequence();
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 16usize..80, bit in 0u8..8) {
            let mut batch = TestBatch { payload: 40, ..TestBatch::default() }.build().to_vec();
            batch[at] ^= 1 << bit;
            prop_assert!(validate_produced(&batch, 1_000).is_err());
        }
    }
}
