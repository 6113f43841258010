//! How far the spool has been drained, as it lies on the disk: a magic, a number, a checksum.

/// The file's name.
pub const FILE: &str = "position";

const MAGIC: [u8; 8] = *b"SGspos01";
const BYTES: usize = 20;

pub fn encode(seq: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&seq.to_le_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The number of the first record that was not drained; none when the bytes are damaged.
pub fn decode(bytes: &[u8]) -> Option<u64> {
    let bytes = <&[u8; BYTES]>::try_from(bytes).ok()?;
    let (content, crc) = bytes.split_at(BYTES - 4);
    if content[..8] != MAGIC || crc32c::crc32c(content).to_le_bytes() != crc {
        return None;
    }
    let mut seq = [0; 8];
    seq.copy_from_slice(&content[8..]);
    Some(u64::from_le_bytes(seq))
}
