//! Whether the records of a produced batch can be read, whatever they are compressed with.
//!
//! Batches are stored and served as they came. One that cannot be decompressed or taken apart would stop every reader of
//! its partition for ever, so that it is refused before it is stored. Records are walked while they are decompressed: no
//! batch is in memory a second time, and what a small one may swell to is bounded.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use super::batch::{BatchError, BatchHeader, HEADER_LEN};

/// What Java's clients put before the blocks of snappy; other clients send one block and nothing before it.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// The magic, and two versions.
const XERIAL_HEADER_LEN: usize = 16;

/// Walks the records of a batch; its header and checksum are known to be sound. `bytes_max` bounds what compressed
/// records may swell to.
///
/// # Errors
/// Why clients could not read it.
pub fn check(header: &BatchHeader, batch: &[u8], bytes_max: usize) -> Result<(), BatchError> {
    let body = batch.get(HEADER_LEN..).unwrap_or_default();
    let count = header.record_count;
    match header.codec() {
        0 => walk(body, count, usize::MAX),
        1 => walk(
            BufReader::new(flate2::bufread::GzDecoder::new(body)),
            count,
            bytes_max,
        ),
        2 => walk(
            BufReader::new(Snappy::new(body, bytes_max)),
            count,
            bytes_max,
        ),
        3 => walk(lz4_flex::frame::FrameDecoder::new(body), count, bytes_max),
        4 => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body)
                .map_err(|_| BatchError::Compression)?;
            // The window is memory that the batch asks for; the highest ordinary level asks for 8 MiB.
            let window_log = bytes_max.max(1).ilog2().clamp(23, 27);
            decoder
                .window_log_max(window_log)
                .map_err(|_| BatchError::Compression)?;
            walk(BufReader::new(decoder), count, bytes_max)
        }
        codec => Err(BatchError::Codec(codec)),
    }
}

fn walk(from: impl BufRead, count: i32, bytes_max: usize) -> Result<(), BatchError> {
    let mut walk = Walk {
        from,
        left: bytes_max,
    };
    for offset_delta in 0..i64::from(count) {
        walk.record(offset_delta)?;
    }
    match walk.more().map_err(broken)? {
        [] => Ok(()),
        _ => Err(BatchError::Records),
    }
}

/// What a decoder says.
fn broken(error: io::Error) -> BatchError {
    match error.kind() {
        ErrorKind::FileTooLarge => BatchError::Swollen,
        _ => BatchError::Compression,
    }
}

/// Reads on through records.
struct Walk<R> {
    from: R,
    /// Bytes that may still come.
    left: usize,
}

impl<R: BufRead> Walk<R> {
    /// What can be read without waiting; empty at the end.
    fn more(&mut self) -> io::Result<&[u8]> {
        self.from.fill_buf()
    }

    fn record(&mut self, offset_delta: i64) -> Result<(), BatchError> {
        let mut length = usize::MAX;
        let announced = self.varint(&mut length)?;
        let mut rest = usize::try_from(announced).map_err(|_| BatchError::Records)?;
        let _attributes = self.byte(&mut rest)?;
        let _timestamp_delta = self.varint(&mut rest)?;
        if self.varint(&mut rest)? != offset_delta {
            return Err(BatchError::Records);
        }
        self.bytes(&mut rest, true)?;
        self.bytes(&mut rest, true)?;
        let headers = self.varint(&mut rest)?;
        if headers < 0 {
            return Err(BatchError::Records);
        }
        for _ in 0..headers {
            self.bytes(&mut rest, false)?;
            self.bytes(&mut rest, true)?;
        }
        match rest {
            0 => Ok(()),
            _ => Err(BatchError::Records),
        }
    }

    /// A length and so many bytes; -1 says that there are none at all, where that may be.
    fn bytes(&mut self, rest: &mut usize, may_be_absent: bool) -> Result<(), BatchError> {
        let length = match self.varint(rest)? {
            -1 if may_be_absent => 0,
            length => usize::try_from(length).map_err(|_| BatchError::Records)?,
        };
        self.spend(rest, length)?;
        let mut due = length;
        while due > 0 {
            let step = self.more().map_err(broken)?.len().min(due);
            if step == 0 {
                return Err(BatchError::Records);
            }
            self.from.consume(step);
            due -= step;
        }
        Ok(())
    }

    fn byte(&mut self, rest: &mut usize) -> Result<u8, BatchError> {
        self.spend(rest, 1)?;
        let next = self.more().map_err(broken)?.first().copied();
        self.from.consume(usize::from(next.is_some()));
        next.ok_or(BatchError::Records)
    }

    /// A zigzag integer of at most ten bytes.
    fn varint(&mut self, rest: &mut usize) -> Result<i64, BatchError> {
        let mut value: u64 = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte(rest)?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
            }
        }
        Err(BatchError::Records)
    }

    /// Takes bytes off what the record has, and off what may come at all.
    fn spend(&mut self, rest: &mut usize, bytes: usize) -> Result<(), BatchError> {
        *rest = rest.checked_sub(bytes).ok_or(BatchError::Records)?;
        self.left = self.left.checked_sub(bytes).ok_or(BatchError::Swollen)?;
        Ok(())
    }
}

/// Blocks of snappy, one after the other.
struct Snappy<'a> {
    rest: &'a [u8],
    /// Each block has its length before it.
    framed: bool,
    bytes_max: usize,
    block: Vec<u8>,
    at: usize,
}

impl<'a> Snappy<'a> {
    fn new(body: &'a [u8], bytes_max: usize) -> Self {
        let framed = body.starts_with(&XERIAL_MAGIC);
        let skipped = if framed { XERIAL_HEADER_LEN } else { 0 };
        Self {
            rest: body.get(skipped..).unwrap_or_default(),
            framed,
            bytes_max,
            block: Vec::new(),
            at: 0,
        }
    }

    /// The next block as it came.
    fn next_block(&mut self) -> io::Result<&'a [u8]> {
        if !self.framed {
            return Ok(std::mem::take(&mut self.rest));
        }
        let (length, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(ErrorKind::InvalidData)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (block, rest) = rest
            .split_at_checked(length)
            .ok_or(ErrorKind::InvalidData)?;
        self.rest = rest;
        Ok(block)
    }
}

impl Read for Snappy<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() && !self.rest.is_empty() {
            let block = self.next_block()?;
            if snap::raw::decompress_len(block)? > self.bytes_max {
                return Err(ErrorKind::FileTooLarge.into());
            }
            self.block = snap::raw::Decoder::new().decompress_vec(block)?;
            self.at = 0;
        }
        let ready = &self.block[self.at..];
        let step = ready.len().min(into.len());
        into[..step].copy_from_slice(&ready[..step]);
        self.at += step;
        Ok(step)
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
