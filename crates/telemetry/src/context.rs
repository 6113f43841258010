//! W3C trace context: what crosses a process boundary so that spans on both sides form one trace. It arrives from
//! clients and from records on topics, so parsing takes any bytes and never panics.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use pin_project_lite::pin_project;

/// The name of the header that carries it, in HTTP, gRPC and Kafka alike.
pub const TRACEPARENT: &str = "traceparent";

/// The length of a `traceparent` header.
const HEADER_LEN: usize = 55;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub sampled: bool,
}

impl TraceContext {
    /// The length of its binary form.
    pub const LEN: usize = 25;

    /// Reads a `traceparent` header; none if it is not one.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (version, rest) = (header.get(..2)?, header.get(2..)?);
        let [version] = unhex(version)?;
        // Version 255 is forbidden. Later versions may add to the end what version 0 does not know.
        let length_fits = match version {
            0 => header.len() == HEADER_LEN,
            0xff => false,
            _ => header.len() == HEADER_LEN || header.get(HEADER_LEN) == Some(&b'-'),
        };
        let dashes = [rest.first(), rest.get(33), rest.get(50)];
        if !length_fits || dashes.iter().any(|dash| *dash != Some(&b'-')) {
            return None;
        }
        let trace_id = unhex(rest.get(1..33)?)?;
        let span_id = unhex(rest.get(34..50)?)?;
        let [flags] = unhex(rest.get(51..53)?)?;
        Self::valid(trace_id, span_id, flags)
    }

    /// The `traceparent` header.
    pub fn header(&self) -> String {
        self.to_string()
    }

    /// Reads the binary form; none if it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LEN {
            return None;
        }
        let trace_id = bytes[..16].try_into().ok()?;
        let span_id = bytes[16..24].try_into().ok()?;
        Self::valid(trace_id, span_id, bytes[24])
    }

    /// The trace id, the span id and the flags.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = u8::from(self.sampled);
        bytes
    }

    /// The trace id as 32 hexadecimal digits, as it stands in logs and exemplars.
    pub fn trace_id_hex(&self) -> String {
        Hex(&self.trace_id).to_string()
    }

    /// The span id as 16 hexadecimal digits.
    pub fn span_id_hex(&self) -> String {
        Hex(&self.span_id).to_string()
    }

    /// Runs `fut` within this trace: log lines it writes carry the ids.
    pub fn scope<F: Future>(self, fut: F) -> InTrace<F> {
        InTrace {
            context: Some(self),
            fut,
        }
    }

    /// The trace that the running code belongs to, if it said so by `scope`.
    pub fn current() -> Option<TraceContext> {
        CURRENT.get()
    }

    fn valid(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Option<Self> {
        let ids_given = trace_id != [0; 16] && span_id != [0; 8];
        ids_given.then_some(TraceContext {
            trace_id,
            span_id,
            sampled: flags & 1 == 1,
        })
    }

    pub(crate) fn from_otel(context: &SpanContext) -> Self {
        TraceContext {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            sampled: context.is_sampled(),
        }
    }

    /// As the SDK wants a parent or a link from elsewhere.
    pub(crate) fn to_otel(self) -> SpanContext {
        let flags = if self.sampled {
            TraceFlags::SAMPLED
        } else {
            TraceFlags::default()
        };
        SpanContext::new(
            TraceId::from_bytes(self.trace_id),
            SpanId::from_bytes(self.span_id),
            flags,
            true,
            TraceState::default(),
        )
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(
            f,
            "00-{}-{}-{flags:02x}",
            Hex(&self.trace_id),
            Hex(&self.span_id)
        )
    }
}

/// Bytes as lower-case hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads 2·N lower-case hexadecimal digits; the standard does not allow upper case.
fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

thread_local! {
    static CURRENT: Cell<Option<TraceContext>> = const { Cell::new(None) };
}

pin_project! {
    /// A future within a trace.
    #[must_use]
    pub struct InTrace<F> {
        context: Option<TraceContext>,
        #[pin]
        fut: F,
    }
}

impl<F> InTrace<F> {
    pub(crate) fn new(context: Option<TraceContext>, fut: F) -> Self {
        InTrace { context, fut }
    }
}

impl<F: Future> Future for InTrace<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        /// Puts the former context back even when the poll unwinds.
        struct Restore(Option<TraceContext>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let this = self.project();
        let _restore = Restore(CURRENT.replace(*this.context));
        this.fut.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn headers_are_read_as_the_standard_says() {
        for (header, sampled) in [
            (HEADER.to_owned(), Some(true)),
            (HEADER.replace("-01", "-00"), Some(false)),
            (HEADER.replace("-01", "-03"), Some(true)),
            (HEADER.replacen("00", "cc", 1), Some(true)),
            (HEADER.replacen("00", "cc", 1) + "-more", Some(true)),
            (HEADER.replacen("00", "cc", 1) + ".more", None),
            (HEADER.to_owned() + "-more", None),
            (HEADER.replacen("00", "ff", 1), None),
            (HEADER.to_uppercase(), None),
            (HEADER.replace('-', "_"), None),
            (
                HEADER.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
                None,
            ),
            (HEADER.replace("b7ad6b7169203331", &"0".repeat(16)), None),
            (HEADER[..54].to_owned(), None),
            (String::new(), None),
        ] {
            let parsed = TraceContext::parse(header.as_bytes());
            assert_eq!(parsed.map(|context| context.sampled), sampled, "{header}");
        }
        let parsed = TraceContext::parse(HEADER.as_bytes()).unwrap();
        assert_eq!(parsed.header(), HEADER);
        assert_eq!(parsed.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parsed.span_id_hex(), "b7ad6b7169203331");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceContext::parse(&bytes);
            let _ = TraceContext::from_bytes(&bytes);
        }

        #[test]
        fn nor_do_damaged_headers(at in 0usize..55, byte: u8, cut in 0usize..=55) {
            let mut header = HEADER.as_bytes().to_vec();
            header[at] = byte;
            let _ = TraceContext::parse(&header);
            let _ = TraceContext::parse(&header[..cut]);
        }

        #[test]
        fn both_forms_round_trip(trace_id: [u8; 16], span_id: [u8; 8], sampled: bool) {
            prop_assume!(trace_id != [0; 16] && span_id != [0; 8]);
            let context = TraceContext { trace_id, span_id, sampled };
            prop_assert_eq!(TraceContext::parse(context.header().as_bytes()), Some(context));
            prop_assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
            prop_assert_eq!(TraceContext::from_otel(&context.to_otel()), context);
        }
    }

    #[tokio::test]
    async fn a_scope_holds_across_awaits_and_ends() {
        let context = TraceContext::parse(HEADER.as_bytes()).unwrap();
        let inside = context.scope(async {
            tokio::task::yield_now().await;
            TraceContext::current()
        });
        assert_eq!(inside.await, Some(context));
        assert_eq!(TraceContext::current(), None);
    }
}
