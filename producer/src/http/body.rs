//! Reads a request's body: in time, within its limits, decompressed.
//!
//! Decompression stops at the limit of what may come out, so that a small body that would swell to gigabytes costs no
//! more than the limit, and it steps aside now and then for other requests.

use std::time::Duration;

use async_compression::tokio::bufread::{
    BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder,
};
use async_compression::zstd::DParameter;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use streamgauge_proto::{ErrorCode, Problem};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::admission::Room;
use crate::config::Limits;

/// How much is decompressed before other tasks get their turn, and read at a time.
const TURN_BYTES: usize = 256 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// The largest window a zstd frame may ask for, as a power of two: 8 MiB, what RFC 8878 recommends to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Encoding {
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else {
            return Ok(Self::Identity);
        };
        let value = value.as_bytes().trim_ascii();
        let is = |name: &str| value.eq_ignore_ascii_case(name.as_bytes());
        let encoding = if is("identity") || is("") {
            Some(Self::Identity)
        } else if is("gzip") || is("x-gzip") {
            Some(Self::Gzip)
        } else if is("deflate") {
            Some(Self::Deflate)
        } else if is("br") {
            Some(Self::Brotli)
        } else if is("zstd") {
            Some(Self::Zstd)
        } else {
            None
        };
        encoding.filter(|_| values.next().is_none()).ok_or_else(|| {
            let message = "send one of gzip, deflate, br, zstd or identity";
            Problem::new(ErrorCode::UnsupportedEncoding, message).field("Content-Encoding")
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// Reads the whole body and decompresses it, within the room that there is.
pub async fn read(
    body: Body,
    encoding: Encoding,
    limits: &Limits,
    room: &Room,
) -> Result<Bytes, Problem> {
    let max = limits.body_bytes_max;
    if body.size_hint().lower() > max as u64 {
        return Err(too_large("the body", "limits.body_bytes_max", max));
    }
    let timeout = Duration::from_millis(limits.body_timeout_ms);
    let body = tokio::time::timeout(timeout, collect(body, max, room))
        .await
        .map_err(|_| {
            let message = format!(
                "the body did not arrive within {} ms",
                limits.body_timeout_ms
            );
            Problem::new(ErrorCode::BodyTimeout, message)
        })??;
    match encoding {
        // A body of identity coding has been measured already, but its own limit may be the lower one.
        Encoding::Identity if body.len() <= limits.decompressed_bytes_max => Ok(body),
        Encoding::Identity => Err(decompressed_too_large(limits)),
        encoding => inflate(encoding, &body, limits, room).await,
    }
}

/// Gathers the body; one that comes in a single piece is not copied.
async fn collect(mut body: Body, max: usize, room: &Room) -> Result<Bytes, Problem> {
    let Some(first) = next_piece(&mut body).await? else {
        return Ok(Bytes::new());
    };
    room.grow(first.len())?;
    if body.is_end_stream() && first.len() <= max {
        return Ok(first);
    }
    let expected = first.len() + usize::try_from(body.size_hint().lower()).unwrap_or(max);
    let mut all = Vec::with_capacity(expected.min(max));
    let mut piece = Some(first);
    while let Some(bytes) = piece {
        if all.len() + bytes.len() > max {
            return Err(too_large("the body", "limits.body_bytes_max", max));
        }
        all.extend_from_slice(&bytes);
        piece = next_piece(&mut body).await?;
        room.grow(piece.as_ref().map_or(0, Bytes::len))?;
    }
    Ok(all.into())
}

async fn next_piece(body: &mut Body) -> Result<Option<Bytes>, Problem> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            tracing::debug!(%error, "a body ended early");
            Problem::new(ErrorCode::MalformedBody, "the body ended early")
        })?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

async fn inflate(
    encoding: Encoding,
    compressed: &[u8],
    limits: &Limits,
    room: &Room,
) -> Result<Bytes, Problem> {
    let max = limits.decompressed_bytes_max;
    // One byte more than allowed is enough to know.
    let mut reader = decoder(encoding, compressed).take(max as u64 + 1);
    let mut plain = Vec::new();
    let mut more = compressed.len().saturating_mul(4);
    let mut turn_ends = TURN_BYTES;
    loop {
        if plain.len() == plain.capacity() {
            // Twice the size each time, so that little is copied, but not beyond what may come.
            let add = more.max(CHUNK_BYTES).min(max + 1 - plain.len());
            room.grow(add)?;
            plain.reserve_exact(add);
            more = plain.capacity();
        }
        let read = reader.read_buf(&mut plain).await.map_err(|error| {
            let message = format!("the body is not {}: {error}", encoding.name());
            Problem::new(ErrorCode::MalformedBody, message).field("Content-Encoding")
        })?;
        if plain.len() > max {
            return Err(decompressed_too_large(limits));
        }
        if read == 0 {
            return Ok(plain.into());
        }
        if plain.len() >= turn_ends {
            turn_ends = plain.len() + TURN_BYTES;
            tokio::task::yield_now().await;
        }
    }
}

fn decoder(encoding: Encoding, compressed: &[u8]) -> Box<dyn AsyncRead + Send + Unpin + '_> {
    match encoding {
        Encoding::Identity => Box::new(compressed),
        Encoding::Gzip => {
            let mut decoder = GzipDecoder::new(compressed);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        // The standard says zlib; some clients send the bare stream.
        Encoding::Deflate if is_zlib(compressed) => Box::new(ZlibDecoder::new(compressed)),
        Encoding::Deflate => Box::new(DeflateDecoder::new(compressed)),
        Encoding::Brotli => Box::new(BrotliDecoder::new(compressed)),
        Encoding::Zstd => {
            let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
            let mut decoder = ZstdDecoder::with_params(compressed, &window);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
    }
}

/// Whether the first two bytes are a zlib header (RFC 1950).
fn is_zlib(bytes: &[u8]) -> bool {
    match bytes {
        [method, flags, ..] => {
            method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31)
        }
        _ => false,
    }
}

fn decompressed_too_large(limits: &Limits) -> Problem {
    too_large(
        "the decompressed body",
        "limits.decompressed_bytes_max",
        limits.decompressed_bytes_max,
    )
}

fn too_large(what: &str, setting: &str, max: usize) -> Problem {
    let message = format!("{what} is larger than {max} bytes ({setting}); split it");
    Problem::new(ErrorCode::BodyTooLarge, message)
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::bufread::{
        BrotliEncoder, DeflateEncoder, GzipEncoder, ZlibEncoder, ZstdEncoder,
    };
    use std::sync::Arc;

    use http::HeaderValue;
    use streamgauge_lifecycle::SystemClock;
    use streamgauge_telemetry::Metrics;

    use super::*;
    use crate::admission::Admission;
    use crate::config::Config;
    use crate::metrics::ProducerMetrics;

    const CODINGS: [Encoding; 4] = [
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Brotli,
        Encoding::Zstd,
    ];

    fn limits() -> Limits {
        Limits {
            body_bytes_max: 100_000,
            decompressed_bytes_max: 1_000_000,
            body_timeout_ms: 50,
            ..Limits::default()
        }
    }

    async fn compress(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
        let mut reader: Box<dyn AsyncRead + Send + Unpin + '_> = match encoding {
            Encoding::Identity => Box::new(plain),
            Encoding::Gzip => Box::new(GzipEncoder::new(plain)),
            Encoding::Deflate => Box::new(ZlibEncoder::new(plain)),
            Encoding::Brotli => Box::new(BrotliEncoder::with_quality(
                plain,
                async_compression::Level::Fastest,
            )),
            Encoding::Zstd => Box::new(ZstdEncoder::new(plain)),
        };
        let mut out = Vec::new();
        reader.read_to_end(&mut out).await.unwrap();
        out
    }

    async fn read_all(bytes: Vec<u8>, encoding: Encoding) -> Result<Bytes, ErrorCode> {
        read(Body::from(bytes), encoding, &limits(), &room(usize::MAX))
            .await
            .map_err(|problem| problem.code)
    }

    fn room(bytes_max: usize) -> Room {
        let limits = Limits {
            in_flight_bytes_max: bytes_max,
            ..Limits::default()
        };
        let config = Config {
            limits,
            ..Config::default()
        };
        let registry = Metrics::new("producer");
        let metrics = ProducerMetrics::register(&registry, &config.metrics);
        let admission = Admission::new(&config, SystemClock::shared(), &registry, metrics);
        Arc::new(admission).room(0).unwrap()
    }

    #[tokio::test]
    async fn what_finds_no_room_is_refused_while_it_grows() {
        let plain = vec![b' '; 500_000];
        let compressed = compress(Encoding::Gzip, &plain).await;
        for (bytes_max, fits) in [(1_000_000, true), (300_000, false)] {
            let room = room(bytes_max);
            let body = Body::from(compressed.clone());
            let read = read(body, Encoding::Gzip, &limits(), &room).await;
            match read {
                Ok(body) => assert!(fits && body.len() == 500_000 && room.held() >= 500_000),
                Err(problem) => assert_eq!((fits, problem.code), (false, ErrorCode::Overloaded)),
            }
        }
        let pieces = (0..10).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1_000])));
        let chunked = Body::from_stream(tokio_stream::iter(pieces));
        let read = read(chunked, Encoding::Identity, &limits(), &room(5_000)).await;
        assert_eq!(read.unwrap_err().code, ErrorCode::Overloaded);
    }

    #[tokio::test]
    async fn every_coding_gives_back_what_was_sent() {
        let plain = br#"{"user_id":"u1","event_type":"click"}"#.repeat(1000);
        for encoding in CODINGS {
            let compressed = compress(encoding, &plain).await;
            assert_eq!(
                read_all(compressed, encoding).await.unwrap(),
                plain,
                "{encoding:?}"
            );
        }
        let mut bare = Vec::new();
        DeflateEncoder::new(&plain[..])
            .read_to_end(&mut bare)
            .await
            .unwrap();
        assert_eq!(read_all(bare, Encoding::Deflate).await.unwrap(), plain);
        let mut members = compress(Encoding::Gzip, b"{}").await;
        members.extend(compress(Encoding::Gzip, b" ").await);
        assert_eq!(
            read_all(members, Encoding::Gzip).await.unwrap(),
            b"{} ".as_slice()
        );
    }

    #[tokio::test]
    async fn a_bomb_stops_at_the_limit() {
        let zeros = vec![b' '; 50_000_000];
        for encoding in CODINGS {
            let bomb = compress(encoding, &zeros).await;
            assert!(bomb.len() < 100_000, "{encoding:?}: {}", bomb.len());
            assert_eq!(
                read_all(bomb, encoding).await,
                Err(ErrorCode::BodyTooLarge),
                "{encoding:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_not_compressed_or_cut_short_is_malformed() {
        for encoding in CODINGS {
            let mut cut = compress(
                encoding,
                &b"some text that is long enough to be cut ".repeat(20),
            )
            .await;
            cut.truncate(cut.len() / 2);
            assert_eq!(
                read_all(cut, encoding).await,
                Err(ErrorCode::MalformedBody),
                "{encoding:?}"
            );
            let plain = b"{\"user_id\":\"u1\"}".to_vec();
            assert_eq!(
                read_all(plain, encoding).await,
                Err(ErrorCode::MalformedBody),
                "{encoding:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_may_be_as_large_as_its_limit() {
        assert_eq!(
            read_all(vec![b' '; 100_000], Encoding::Identity)
                .await
                .unwrap()
                .len(),
            100_000
        );
        assert_eq!(
            read_all(vec![b' '; 100_001], Encoding::Identity).await,
            Err(ErrorCode::BodyTooLarge)
        );
        let pieces = (0..11).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 10_000])));
        let chunked = Body::from_stream(tokio_stream::iter(pieces));
        let problem = read(chunked, Encoding::Identity, &limits(), &room(usize::MAX))
            .await
            .unwrap_err();
        assert_eq!(problem.code, ErrorCode::BodyTooLarge);
        assert!(problem.message.contains("limits.body_bytes_max"));
    }

    #[tokio::test]
    async fn a_body_that_stalls_times_out() {
        let stalled = Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>());
        let problem = read(stalled, Encoding::Identity, &limits(), &room(usize::MAX))
            .await
            .unwrap_err();
        assert_eq!(problem.code, ErrorCode::BodyTimeout);
    }

    #[test]
    fn codings_are_told_by_name() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            Encoding::of(&headers).ok()
        };
        assert_eq!(of(&[]), Some(Encoding::Identity));
        assert_eq!(of(&["GZIP"]), Some(Encoding::Gzip));
        assert_eq!(of(&["br"]), Some(Encoding::Brotli));
        for unknown in [&["lzma"][..], &["gzip, br"], &["gzip", "br"]] {
            assert_eq!(of(unknown), None, "{unknown:?}");
        }
    }
}
