//! Frames: a length, then a request. A length is believed only as far as bytes
//! have arrived: the buffer grows with what is received, not with what is
//! announced.

use bytes::{Buf, Bytes, BytesMut};

pub const LENGTH_LEN: usize = 4;
/// Api key, version, correlation id, length of the client id.
const REQUEST_LEN_MIN: usize = 10;
/// How much room to make for reading at a time.
pub const READ_CHUNK_BYTES: usize = 64 * 1024;
const READ_CHUNK_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is shorter than any request")]
    TooShort(i32),
    #[error("a frame of {0} bytes is larger than allowed")]
    TooLarge(usize),
}

/// The size of the frame at the start of `buffer` without its length field, or
/// `None` before that has arrived.
pub fn announced_len(buffer: &[u8], max_bytes: usize) -> Result<Option<usize>, FrameError> {
    let Some((mut length, _)) = buffer.split_at_checked(LENGTH_LEN) else {
        return Ok(None);
    };
    let length = length.get_i32();
    let announced = usize::try_from(length).map_err(|_| FrameError::TooShort(length))?;
    if announced < REQUEST_LEN_MIN {
        return Err(FrameError::TooShort(length));
    }
    if announced > max_bytes {
        return Err(FrameError::TooLarge(announced));
    }
    Ok(Some(announced))
}

/// Takes a complete frame off the buffer, without its length field.
pub fn take_frame(buffer: &mut BytesMut, max_bytes: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(announced) = announced_len(buffer, max_bytes)? else {
        return Ok(None);
    };
    if buffer.len() < LENGTH_LEN + announced {
        return Ok(None);
    }
    buffer.advance(LENGTH_LEN);
    Ok(Some(buffer.split_to(announced).freeze()))
}

/// Makes room for reading on. The room at most doubles what is there already.
pub fn make_room(buffer: &mut BytesMut, max_bytes: usize) {
    let missing = match announced_len(buffer, max_bytes) {
        Ok(Some(announced)) => (LENGTH_LEN + announced).saturating_sub(buffer.len()),
        _ => 0,
    };
    let step = buffer.len().clamp(READ_CHUNK_BYTES, READ_CHUNK_BYTES_MAX);
    let wanted = missing.clamp(READ_CHUNK_BYTES / 2, step);
    if buffer.capacity() - buffer.len() < wanted {
        buffer.reserve(wanted.max(READ_CHUNK_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_taken_when_whole() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9][..]);
        assert_eq!(take_frame(&mut buffer, 100), Ok(None));
        buffer.extend_from_slice(&[10, 99]);
        let frame = take_frame(&mut buffer, 100).unwrap().unwrap();
        assert_eq!(&frame[..], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(&buffer[..], &[99]);
    }

    #[test]
    fn impossible_lengths_are_errors() {
        let negative = (-5i32).to_be_bytes();
        assert_eq!(announced_len(&negative, 100), Err(FrameError::TooShort(-5)));
        assert_eq!(
            announced_len(&3i32.to_be_bytes(), 100),
            Err(FrameError::TooShort(3))
        );
        assert_eq!(
            announced_len(&101i32.to_be_bytes(), 100),
            Err(FrameError::TooLarge(101))
        );
    }

    proptest! {
        #[test]
        fn room_never_follows_an_announced_length(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut buffer = BytesMut::from(&bytes[..]);
            make_room(&mut buffer, 100 * 1024 * 1024);
            prop_assert!(buffer.capacity() <= 4 * READ_CHUNK_BYTES);
            let _ = take_frame(&mut buffer, 100 * 1024 * 1024);
        }
    }
}
