//! Reading from a partition: whole batches by offset, and offsets by time.
//! The place is looked up under the partition's lock, the file is read without
//! it. Nothing beyond the high watermark is ever returned, and nothing that is
//! not what was stored: what does not match its checksum, or does not join up
//! with what follows it, is told as damage. A disk may lose bytes of a file
//! that was closed in order, and few clients check for themselves.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};

use super::batch::{self, BatchHeader, HEADER_LEN, TimedOffset};
use super::segment::{Locator, relative_offset};
use super::{Partition, index};

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the offset is not in the log")]
    OutOfRange,
    #[error("reading the log failed")]
    Io(#[from] io::Error),
    /// What is stored there is not what was written.
    #[error("{} is damaged at or after byte {position}", path.display())]
    Damaged { path: PathBuf, position: u64 },
}

/// What is needed to read a segment after its partition's lock is released.
struct Place {
    base_offset: i64,
    path: PathBuf,
    file: Arc<File>,
    size: u64,
    end_offset: i64,
    locator: Locator,
}

/// Batches before the one wanted that a read may have to step over.
const SCAN_WINDOW_BYTES: u64 = 64 * 1024;

impl Partition {
    /// Reads whole batches from the one that holds `offset`, at least one and
    /// no more than `max_bytes` when the first fits; empty at the end.
    pub fn read(&self, offset: i64, max_bytes: usize) -> Result<Bytes, ReadError> {
        let read = self.read_sound(offset, max_bytes);
        if matches!(read, Err(ReadError::Damaged { .. })) {
            self.damaged_reads.fetch_add(1, Ordering::Relaxed);
        }
        read
    }

    fn read_sound(&self, offset: i64, max_bytes: usize) -> Result<Bytes, ReadError> {
        let limit = self.high_watermark();
        if offset < self.log_start() || offset > limit {
            return Err(ReadError::OutOfRange);
        }
        if offset == limit {
            return Ok(Bytes::new());
        }
        let Some(place) = self.place_of(offset)? else {
            return Err(ReadError::OutOfRange);
        };
        let relative = relative_offset(place.base_offset, offset);
        let start = place.start(|entry| entry.relative_offset <= relative)?;
        let mut scanner = Scanner::new(&place, start);
        while let Some(header) = scanner.next_header()? {
            if header.next_offset() > offset {
                if header.base_offset > offset {
                    break;
                }
                return collect(&mut scanner, header, limit, max_bytes);
            }
            scanner.skip(&header);
        }
        // The segment has the offset, and no batch that holds it.
        Err(scanner.damage())
    }

    fn place_of(&self, offset: i64) -> io::Result<Option<Place>> {
        let inner = self.inner.lock();
        let after = inner
            .segments
            .partition_point(|segment| segment.base_offset <= offset);
        let Some(segment) = after.checked_sub(1).and_then(|at| inner.segments.get(at)) else {
            return Ok(None);
        };
        Ok(Some(Place {
            base_offset: segment.base_offset,
            path: segment.path.clone(),
            file: segment.handle()?,
            size: segment.size,
            end_offset: segment.end_offset,
            locator: segment.locate_offset(offset),
        }))
    }

    /// The first record at or after `timestamp`; `None` when all are earlier.
    pub fn offset_at(&self, timestamp: i64) -> io::Result<Option<TimedOffset>> {
        let mut from = i64::MIN;
        // A segment's latest record may lie before the log's start: then the
        // answer is in a later one.
        while let Some(place) = self.place_of_time(from, timestamp)? {
            let start = place.start(|entry| entry.max_timestamp_before < timestamp)?;
            let wanted = |header: &BatchHeader| header.max_timestamp >= timestamp;
            let found = self.first_in(&place, start, wanted, |header, batch, log_start| {
                batch::first_at_or_after(header, batch, timestamp, log_start)
            })?;
            if found.is_some() {
                return Ok(found);
            }
            from = place.base_offset + 1;
        }
        Ok(None)
    }

    /// The first segment from `from` on with a record at or after `timestamp`.
    fn place_of_time(&self, from: i64, timestamp: i64) -> io::Result<Option<Place>> {
        let inner = self.inner.lock();
        let found = inner.segments.iter().find(|segment| {
            segment.base_offset >= from
                && !segment.is_empty()
                && segment.max_timestamp >= timestamp
                && segment.end_offset > inner.log_start
        });
        let Some(segment) = found else {
            return Ok(None);
        };
        Ok(Some(Place {
            base_offset: segment.base_offset,
            path: segment.path.clone(),
            file: segment.handle()?,
            size: segment.size,
            end_offset: segment.end_offset,
            locator: segment.locate_timestamp(timestamp),
        }))
    }

    /// The record with the largest timestamp; `None` in an empty log.
    pub fn offset_of_latest_time(&self) -> io::Result<Option<TimedOffset>> {
        let (place, timestamp) = {
            let inner = self.inner.lock();
            let found = inner
                .segments
                .iter()
                .filter(|segment| !segment.is_empty() && segment.end_offset > inner.log_start)
                .rev()
                .max_by_key(|segment| segment.max_timestamp);
            let Some(segment) = found else {
                return Ok(None);
            };
            let place = Place {
                base_offset: segment.base_offset,
                path: segment.path.clone(),
                file: segment.handle()?,
                size: segment.size,
                end_offset: segment.end_offset,
                locator: segment.locate_timestamp(segment.max_timestamp),
            };
            (place, segment.max_timestamp)
        };
        let start = place.start(|entry| entry.max_timestamp_before < timestamp)?;
        let wanted = |header: &BatchHeader| header.max_timestamp >= timestamp;
        self.first_in(&place, start, wanted, |header, batch, _| {
            Some(batch::latest_in(header, batch))
        })
    }

    /// What `pick` takes from the first readable batch from `start` on that is
    /// `wanted` and has it. It is told where the log starts.
    fn first_in(
        &self,
        place: &Place,
        start: u64,
        wanted: impl Fn(&BatchHeader) -> bool,
        pick: impl Fn(&BatchHeader, &Bytes, i64) -> Option<TimedOffset>,
    ) -> io::Result<Option<TimedOffset>> {
        let (log_start, limit) = (self.log_start(), self.high_watermark());
        let mut scanner = Scanner::new(place, start);
        while let Some(header) = scanner.next_header()? {
            if header.base_offset >= limit {
                return Ok(None);
            }
            if header.next_offset() > log_start && wanted(&header) {
                let batch = scanner.take(header.total_len)?;
                if !batch::checksum_matches(&header, &batch) {
                    return Err(io::Error::other(scanner.damage()));
                }
                if let Some(found) = pick(&header, &batch, log_start) {
                    return Ok(Some(found));
                }
            }
            scanner.skip(&header);
        }
        Ok(None)
    }
}

impl Place {
    fn start(&self, before: impl Fn(&index::Entry) -> bool) -> io::Result<u64> {
        match self.locator {
            Locator::At(position) => Ok(position),
            Locator::IndexFile => index::position_in_file(&self.path, before),
        }
    }
}

/// Whole batches from the scanner's place on, in one read, as far as they are
/// sound. A base offset is not part of a batch's checksum: it has to lead to
/// the batch behind it, or to the end of the segment.
fn collect(
    scanner: &mut Scanner<'_>,
    first: BatchHeader,
    limit: i64,
    max_bytes: usize,
) -> Result<Bytes, ReadError> {
    let wanted = max_bytes.max(first.total_len);
    // The header behind the last one is looked at, but not given.
    let bytes = scanner.take(wanted.saturating_add(HEADER_LEN))?;
    let (mut end, mut header) = (0, Some(first));
    while let Some(batch) = header {
        let next = end + batch.total_len;
        if next > wanted || next > bytes.len() || batch.base_offset >= limit {
            break;
        }
        header = bytes.get(next..).and_then(BatchHeader::parse);
        let at_end = scanner.position + next as u64 == scanner.place.size;
        let joins = match &header {
            Some(following) => following.base_offset == batch.next_offset(),
            None => at_end && batch.next_offset() == scanner.place.end_offset,
        };
        // Nor is what comes before the checksum part of it.
        let is_whole = batch::is_stored_header(&batch, batch.base_offset)
            && batch::checksum_matches(&batch, &bytes[end..]);
        if !joins || !is_whole {
            break;
        }
        end = next;
    }
    match end {
        // What comes first has to be given, so it is not sound.
        0 => Err(scanner.damage()),
        _ => Ok(bytes.slice(..end)),
    }
}

/// Steps over batch headers from a position of a segment file, reading the
/// file in windows rather than header by header.
struct Scanner<'a> {
    place: &'a Place,
    position: u64,
    window: Bytes,
    window_start: u64,
}

impl<'a> Scanner<'a> {
    fn new(place: &'a Place, position: u64) -> Self {
        Scanner {
            place,
            position,
            window: Bytes::new(),
            window_start: position,
        }
    }

    fn next_header(&mut self) -> io::Result<Option<BatchHeader>> {
        if self.position + HEADER_LEN as u64 > self.place.size {
            return Ok(None);
        }
        if self.windowed(HEADER_LEN).is_none() {
            self.window = self.read(SCAN_WINDOW_BYTES as usize)?;
            self.window_start = self.position;
        }
        Ok(self
            .windowed(HEADER_LEN)
            .as_deref()
            .and_then(BatchHeader::parse))
    }

    fn damage(&self) -> ReadError {
        ReadError::Damaged {
            path: self.place.path.clone(),
            position: self.position,
        }
    }

    fn skip(&mut self, header: &BatchHeader) {
        self.position += header.total_len as u64;
    }

    /// Up to `len` bytes from the current position.
    fn take(&mut self, len: usize) -> io::Result<Bytes> {
        let left = self.place.size.saturating_sub(self.position);
        let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        match self.windowed(len) {
            Some(bytes) => Ok(bytes),
            None => self.read(len),
        }
    }

    fn windowed(&self, len: usize) -> Option<Bytes> {
        let start = usize::try_from(self.position.checked_sub(self.window_start)?).ok()?;
        let end = start.checked_add(len)?;
        (end <= self.window.len()).then(|| self.window.slice(start..end))
    }

    fn read(&self, len: usize) -> io::Result<Bytes> {
        let left = self.place.size.saturating_sub(self.position);
        let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut buffer = BytesMut::zeroed(len);
        self.place.file.read_exact_at(&mut buffer, self.position)?;
        Ok(buffer.freeze())
    }
}
