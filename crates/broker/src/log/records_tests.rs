use std::io::Write;

use proptest::prelude::*;

use super::super::batch::{LENGTH_PREFIX, testing::TestBatch, validate_produced};
use super::*;

const BYTES_MAX: usize = 100_000;

/// The batch with another body, as if it had been made so: lengths and checksum fit.
fn with_body(batch: &[u8], codec: u8, body: &[u8]) -> Vec<u8> {
    let mut made = batch[..HEADER_LEN].to_vec();
    made.extend(body);
    made[22] = codec;
    let length = (made.len() - LENGTH_PREFIX) as i32;
    made[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&made[21..]);
    made[17..21].copy_from_slice(&crc.to_be_bytes());
    made
}

fn packed(codec: u8, body: &[u8]) -> Vec<u8> {
    match codec {
        1 => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        2 => snap::raw::Encoder::new().compress_vec(body).unwrap(),
        3 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        4 => zstd::encode_all(body, 1).unwrap(),
        _ => body.to_vec(),
    }
}

/// Snappy as Java's clients write it: blocks of at most so many bytes.
fn xerial(body: &[u8], block: usize) -> Vec<u8> {
    let mut framed = XERIAL_MAGIC.to_vec();
    framed.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    for block in body.chunks(block) {
        let block = packed(2, block);
        framed.extend((block.len() as u32).to_be_bytes());
        framed.extend(block);
    }
    framed
}

fn judge(batch: &[u8]) -> Result<(), BatchError> {
    let header = validate_produced(batch, 1 << 20).expect("header and checksum are sound");
    check(&header, batch, BYTES_MAX)
}

fn sound(records: usize, payload: usize) -> Vec<u8> {
    let batch = TestBatch {
        timestamps: (0..records as i64).map(|n| 1_000 - n % 3).collect(),
        payload,
        ..TestBatch::default()
    };
    batch.build().to_vec()
}

#[test]
fn every_codec_is_read() {
    for (records, payload) in [(1, 0), (300, 40), (3, 20_000)] {
        let batch = sound(records, payload);
        let body = &batch[HEADER_LEN..];
        for codec in 0..=4 {
            let made = with_body(&batch, codec, &packed(codec, body));
            assert_eq!(
                judge(&made),
                Ok(()),
                "codec {codec}, {records} of {payload}"
            );
        }
        let made = with_body(&batch, 2, &xerial(body, 1_000));
        assert_eq!(judge(&made), Ok(()), "{records} of {payload}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_for_what_it_is() {
    let batch = sound(5, 100);
    let body = &batch[HEADER_LEN..];
    for codec in 5..=7 {
        let made = with_body(&batch, codec, body);
        assert_eq!(judge(&made), Err(BatchError::Codec(i16::from(codec))));
    }
    for codec in 1..=4 {
        let whole = packed(codec, body);
        for broken in [body, &whole[..whole.len() / 2], &[]] {
            let refused = judge(&with_body(&batch, codec, broken));
            assert!(
                matches!(
                    refused,
                    Err(BatchError::Compression | BatchError::Records | BatchError::Swollen)
                ),
                "codec {codec}: {refused:?}"
            );
        }
    }
    // A record too few, one too many, a length that lies, and offsets out of order.
    let fewer = sound(4, 100);
    let more = sound(6, 100);
    let mut lying = body.to_vec();
    lying[0] ^= 0x02;
    let mut disordered = body.to_vec();
    disordered[4] ^= 0x02;
    for body in [
        &fewer[HEADER_LEN..],
        &more[HEADER_LEN..],
        &lying,
        &disordered,
    ] {
        for codec in 0..=4 {
            let made = with_body(&batch, codec, &packed(codec, body));
            assert_eq!(judge(&made), Err(BatchError::Records), "codec {codec}");
        }
    }
}

#[test]
fn what_swells_beyond_the_bound_is_refused() {
    let batch = sound(3, BYTES_MAX);
    let body = &batch[HEADER_LEN..];
    for codec in 1..=4 {
        let made = with_body(&batch, codec, &packed(codec, body));
        assert!(made.len() < 50_000, "codec {codec}: {}", made.len());
        assert_eq!(judge(&made), Err(BatchError::Swollen), "codec {codec}");
    }
    // Without compression a batch is as large as it is.
    assert_eq!(judge(&batch), Ok(()));
}

proptest! {
    #[test]
    fn random_bodies_never_panic(
        codec in 0u8..8,
        seed in any::<bool>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let batch = sound(5, 30);
        let body = match seed {
            true => {
                let mut body = packed(codec, &batch[HEADER_LEN..]);
                let at = at.index(body.len());
                body[at] = byte;
                body
            }
            false => body,
        };
        let _ = judge(&with_body(&batch, codec, &body));
    }
}
