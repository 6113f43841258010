//! How a record lies in a segment: a head, then its bytes.
//!
//! The head has a checksum of its own, so that a record with damaged bytes still tells its length and its number, and
//! costs no neighbour. Where a head is damaged, [`find`] looks for the next one. Both checksums begin with the
//! segment's salt, a random number that no client knows: bytes inside a record cannot be made to look like a frame.
//!
//! ```text
//! 0      4      8            16           24         28         32
//! | SGs1 | len  | number     | time in us | body CRC | head CRC | body …
//! ```
//! Integers are little-endian, checksums are CRC-32C.

use memchr::memmem;

/// A head, in bytes.
pub const HEAD_BYTES: usize = 32;

/// The longest body: what a reader must hold at once.
pub const BODY_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 4] = *b"SGs1";

/// What stands before a record's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub body_bytes: usize,
    /// The record's number: one more than that of the record before it.
    pub seq: u64,
    pub at_us: i64,
    body_crc: u32,
}

/// Appends the frame of a record, whose body must not be longer than [`BODY_BYTES_MAX`].
pub fn write(out: &mut Vec<u8>, salt: u64, seq: u64, at_us: i64, body: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&at_us.to_le_bytes());
    out.extend_from_slice(&body_crc(salt, seq, body).to_le_bytes());
    let head_crc = head_crc(salt, &out[start..]);
    out.extend_from_slice(&head_crc.to_le_bytes());
    out.extend_from_slice(body);
}

/// The head at the beginning of these bytes; none when it is damaged, or is none.
pub fn head(bytes: &[u8], salt: u64) -> Option<Head> {
    let bytes = bytes.first_chunk::<HEAD_BYTES>()?;
    if bytes[..4] != MAGIC || word(bytes, 28) != head_crc(salt, &bytes[..28]) {
        return None;
    }
    let body_bytes = word(bytes, 4) as usize;
    (body_bytes <= BODY_BYTES_MAX).then(|| Head {
        body_bytes,
        seq: long(bytes, 8),
        at_us: long(bytes, 16).cast_signed(),
        body_crc: word(bytes, 24),
    })
}

impl Head {
    /// The frame's length.
    pub const fn frame_bytes(&self) -> usize {
        HEAD_BYTES + self.body_bytes
    }

    /// Whether these are the bytes that were written.
    pub fn fits(&self, salt: u64, body: &[u8]) -> bool {
        body.len() == self.body_bytes && body_crc(salt, self.seq, body) == self.body_crc
    }
}

/// Where the next sound head begins.
pub fn find(bytes: &[u8], salt: u64) -> Option<usize> {
    memmem::find_iter(bytes, &MAGIC).find(|at| head(&bytes[*at..], salt).is_some())
}

fn head_crc(salt: u64, head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), head)
}

/// The number is part of it, so that a body that was swapped for another does not fit.
fn body_crc(salt: u64, seq: u64, body: &[u8]) -> u32 {
    let salted = crc32c::crc32c(&salt.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(salted, &seq.to_le_bytes()), body)
}

fn word(bytes: &[u8; HEAD_BYTES], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8; HEAD_BYTES], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}
