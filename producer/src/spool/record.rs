//! How an event lies in the spool: what Kafka is given, as it was encoded when the event came in. Its id and the time it
//! was received are part of the payload, so that nothing changes while it waits.
//!
//! ```text
//! | version 1 | length of traceparent, 1 | length of key, 2 | traceparent | key | payload |
//! ```

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 4;

/// What a record takes at most beside its payload.
pub const RECORD_EXTRA_BYTES_MAX: usize = HEAD_BYTES + u8::MAX as usize + u16::MAX as usize;

/// An event as Kafka is given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpooledEvent<'a> {
    pub key: &'a [u8],
    pub payload: &'a [u8],
    /// The trace that it goes on.
    pub traceparent: Option<&'a str>,
}

impl<'a> SpooledEvent<'a> {
    /// Appends the record. A traceparent that is none is left out; keys are bounded far below the length's range.
    pub fn write(&self, out: &mut Vec<u8>) {
        let traceparent = self
            .traceparent
            .and_then(|header| Some((u8::try_from(header.len()).ok()?, header)));
        let (trace_bytes, traceparent) = traceparent.unwrap_or((0, ""));
        let key_bytes = u16::try_from(self.key.len()).expect("a user id has at most 200 bytes");
        out.extend_from_slice(&[VERSION, trace_bytes]);
        out.extend_from_slice(&key_bytes.to_le_bytes());
        out.extend_from_slice(traceparent.as_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.payload);
    }

    /// Reads a record; none when another version wrote it.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let ([version, trace_bytes, low, high], rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        if *version != VERSION {
            return None;
        }
        let (traceparent, rest) = rest.split_at_checked(usize::from(*trace_bytes))?;
        let key_bytes = usize::from(u16::from_le_bytes([*low, *high]));
        let (key, payload) = rest.split_at_checked(key_bytes)?;
        let traceparent = std::str::from_utf8(traceparent).ok()?;
        Some(Self {
            key,
            payload,
            traceparent: (!traceparent.is_empty()).then_some(traceparent),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            key in prop::collection::vec(any::<u8>(), 0..300), payload in prop::collection::vec(any::<u8>(), 0..300),
            traceparent in prop::option::of("[ -~]{1,60}"),
        ) {
            let event = SpooledEvent { key: &key, payload: &payload, traceparent: traceparent.as_deref() };
            let mut bytes = Vec::new();
            event.write(&mut bytes);
            prop_assert_eq!(SpooledEvent::read(&bytes), Some(event));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(event) = SpooledEvent::read(&bytes) {
                prop_assert!(event.key.len() + event.payload.len() < bytes.len());
            }
        }
    }
}
