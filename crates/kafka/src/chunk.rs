//! Runs of records of one partition, copied out of librdkafka into one buffer.
//!
//! A chunk is one allocation for the bytes and one for the index, whatever the number of its
//! records, so that handing records from the poll thread to their owner costs little.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rdkafka::{
    Message,
    message::{BorrowedHeaders, BorrowedMessage, Headers as _},
};

const ABSENT: u32 = u32::MAX;

/// Consecutive records of one partition.
#[derive(Debug)]
pub struct Chunk {
    partition: i32,
    bytes: Vec<u8>,
    index: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: i64,
    timestamp_ms: i64,
    start: u32,
    /// Length of the key, or [`ABSENT`].
    key: u32,
    /// Length of the payload, or [`ABSENT`].
    payload: u32,
    /// Length of the encoded headers, or [`ABSENT`] when they could not be read.
    headers: u32,
}

/// A record as it lies in a chunk.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, milliseconds since the Unix epoch; -1 when it has none.
    pub timestamp_ms: i64,
    /// Its key; `None` when it has none.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` for a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// A record's headers, in order; names may repeat.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    unreadable: bool,
}

impl<'a> Headers<'a> {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Size of the names and values that are left, with 8 bytes for each pair.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the record has headers that the client cannot read, as with a name that is not
    /// UTF-8; then there is none here.
    pub fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The last value under `name`.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.filter(|(found, _)| *found == name)
            .last()
            .and_then(|(_, value)| value)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(head)
    }

    fn take_length(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let name_length = self.take_length()? as usize;
        let name = std::str::from_utf8(self.take(name_length)?).ok()?;
        let value_length = self.take_length()?;
        let value = if value_length == ABSENT {
            None
        } else {
            Some(self.take(value_length as usize)?)
        };
        Some((name, value))
    }
}

impl Chunk {
    /// The partition.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// How many records there are; at least one.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no record, which a chunk that is handed over never has.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Size of keys, payloads and headers together.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The first record's offset.
    pub fn first_offset(&self) -> Option<i64> {
        self.index.first().map(|entry| entry.offset)
    }

    /// One past the last record's offset.
    pub fn next_offset(&self) -> Option<i64> {
        self.index.last().map(|entry| entry.offset + 1)
    }

    /// The record at a position within the chunk.
    pub fn get(&self, position: usize) -> Option<RecordRef<'_>> {
        self.index.get(position).map(|entry| self.record(entry))
    }

    /// The records in order of offset.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> {
        self.index.iter().map(|entry| self.record(entry))
    }

    fn record(&self, entry: &Entry) -> RecordRef<'_> {
        let mut at = entry.start as usize;
        let mut part = |length: u32| {
            let range = Range {
                start: at,
                end: at + length as usize,
            };
            at = range.end;
            &self.bytes[range]
        };
        let key = (entry.key != ABSENT).then(|| part(entry.key));
        let payload = (entry.payload != ABSENT).then(|| part(entry.payload));
        let unreadable = entry.headers == ABSENT;
        let bytes = if unreadable { &[] } else { part(entry.headers) };
        let headers = Headers { bytes, unreadable };
        RecordRef {
            offset: entry.offset,
            timestamp_ms: entry.timestamp_ms,
            key,
            payload,
            headers,
        }
    }
}

/// Collects records into a [`Chunk`].
#[derive(Debug)]
pub struct ChunkBuilder {
    partition: i32,
    bytes: Vec<u8>,
    index: Vec<Entry>,
}

impl ChunkBuilder {
    /// An empty builder for a partition.
    pub fn new(partition: i32) -> Self {
        Self {
            partition,
            bytes: Vec::new(),
            index: Vec::new(),
        }
    }

    /// How many records were pushed.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no record was pushed.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes pushed.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a record whose headers cannot be read. Offsets must ascend.
    pub fn push_without_headers(
        &mut self,
        offset: i64,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
    ) {
        self.push(offset, timestamp_ms, key, payload, []);
        if let Some(entry) = self.index.last_mut() {
            entry.headers = ABSENT;
        }
    }

    /// Appends a record. Offsets must ascend.
    pub fn push<'a>(
        &mut self,
        offset: i64,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) {
        let start = self.bytes.len();
        let mut part = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => {
                self.bytes.extend_from_slice(bytes);
                bytes.len() as u32
            }
            None => ABSENT,
        };
        let (key, payload) = (part(key), part(payload));
        let headers_start = self.bytes.len();
        for (name, value) in headers {
            self.bytes
                .extend_from_slice(&(name.len() as u32).to_le_bytes());
            self.bytes.extend_from_slice(name.as_bytes());
            let length = value.map_or(ABSENT, |value| value.len() as u32);
            self.bytes.extend_from_slice(&length.to_le_bytes());
            self.bytes.extend_from_slice(value.unwrap_or_default());
        }
        let headers = (self.bytes.len() - headers_start) as u32;
        self.index.push(Entry {
            offset,
            timestamp_ms,
            start: start as u32,
            key,
            payload,
            headers,
        });
    }

    /// Appends a record as librdkafka delivered it.
    pub(crate) fn push_message(&mut self, message: &BorrowedMessage<'_>) {
        let time = message.timestamp().to_millis().unwrap_or(-1);
        let (key, payload) = (message.key(), message.payload());
        match message.headers() {
            None => self.push(message.offset(), time, key, payload, []),
            Some(headers) if are_readable(headers) => {
                let headers = headers.iter().map(|header| (header.key, header.value));
                self.push(message.offset(), time, key, payload, headers);
            }
            Some(_) => self.push_without_headers(message.offset(), time, key, payload),
        }
    }

    /// Takes the chunk out and starts the next one with the same capacity; `None` when empty.
    pub fn take(&mut self) -> Option<Chunk> {
        if self.index.is_empty() {
            return None;
        }
        let (bytes, records) = (self.bytes.len(), self.index.len());
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(bytes));
        let index = std::mem::replace(&mut self.index, Vec::with_capacity(records));
        Some(Chunk {
            partition: self.partition,
            bytes,
            index,
        })
    }

    /// Throws away what was pushed.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.index.clear();
    }
}

/// rdkafka panics on a header name that is not UTF-8, which anyone may write; one such record must
/// not end the thread that reads for everybody.
fn are_readable(headers: &BorrowedHeaders) -> bool {
    catch_unwind(AssertUnwindSafe(|| headers.iter().for_each(drop))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_as_they_went_in() {
        let mut builder = ChunkBuilder::new(3);
        assert!(builder.take().is_none());
        builder.push(5, 100, Some(b"k"), Some(b"value"), []);
        builder.push(7, -1, None, None, []);
        let headers = [("a", Some(&b"1"[..])), ("b", None), ("a", Some(&b""[..]))];
        builder.push(8, 2, Some(b""), Some(b""), headers);
        builder.push_without_headers(9, 3, Some(b"k"), Some(b"v"));
        let chunk = builder.take().expect("four records");
        assert_eq!((chunk.partition(), chunk.len()), (3, 4));
        assert_eq!(
            (chunk.first_offset(), chunk.next_offset()),
            (Some(5), Some(10))
        );
        let records: Vec<_> = chunk.iter().collect();
        assert_eq!(
            (records[0].key, records[0].payload),
            (Some(&b"k"[..]), Some(&b"value"[..]))
        );
        assert!(records[0].headers.is_empty());
        assert_eq!((records[1].key, records[1].payload), (None, None));
        assert_eq!(records[2].key, Some(&b""[..]));
        assert_eq!(records[2].headers.collect::<Vec<_>>(), headers);
        assert_eq!(records[2].headers.get("a"), Some(&b""[..]));
        assert_eq!(records[2].headers.get("c"), None);
        assert_eq!(records[2].headers.size_bytes(), 3 * (8 + 1) + 1);
        assert!(!records[2].headers.is_unreadable());
        assert!(records[3].headers.is_unreadable() && records[3].headers.is_empty());
        assert_eq!(records[3].payload, Some(&b"v"[..]));
        assert!(builder.take().is_none());
    }
}
