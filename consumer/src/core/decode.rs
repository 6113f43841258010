//! Reads an `Event` from protobuf without copying: every text field borrows from the record.
//!
//! It accepts exactly what the generated code accepts (a property test holds the two together)
//! and does a third of its work, for nothing is allocated. It never panics and never reads past
//! the bytes; unknown fields are passed over, so that newer producers may add some.

use std::str;

/// An event as its bytes say; nothing about it has been judged yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RawEvent<'a> {
    /// The client's id or an assigned one.
    pub event_id: &'a str,
    /// From the credential; empty for the default tenant.
    pub tenant: &'a str,
    /// The partition key.
    pub user_id: &'a str,
    /// What happened.
    pub event_type: &'a str,
    /// Event time, microseconds since the Unix epoch.
    pub occurred_at_us: i64,
    /// When the producer read it, microseconds since the Unix epoch.
    pub received_at_us: i64,
    /// Where it happened.
    pub page_url: &'a str,
    /// The client's session.
    pub session_id: &'a str,
    /// The measure.
    pub value: Option<f64>,
    /// A JSON object, unparsed.
    pub properties: &'a [u8],
    /// Exempt from the accepted age.
    pub historical: bool,
}

/// Why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end in the middle of a field.
    #[error("the value ends inside a field")]
    Truncated,
    /// A number of more than 64 bits.
    #[error("a number has more than 64 bits")]
    Varint,
    /// A field key that protobuf does not allow.
    #[error("a field key is not valid")]
    Key,
    /// A known field with the wrong encoding.
    #[error("field {field} has wire type {wire}")]
    WireType {
        /// The field's number.
        field: u32,
        /// What it was encoded as.
        wire: u8,
    },
    /// Text that is not UTF-8.
    #[error("field {field} is not UTF-8")]
    Utf8 {
        /// The field's number.
        field: u32,
    },
    /// A group that is not closed, closed twice, or nested too deep.
    #[error("a group is not balanced")]
    Group,
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const GROUP_START: u8 = 3;
const GROUP_END: u8 = 4;
const FIXED32: u8 = 5;

/// How deep unknown groups may nest; the generated code stops at the same depth.
const GROUP_DEPTH_MAX: u32 = 100;

/// Reads an event.
///
/// # Errors
/// When the bytes are not an encoded event; see [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<RawEvent<'_>, DecodeError> {
    let mut reader = Reader { rest: bytes };
    let mut event = RawEvent::default();
    while !reader.rest.is_empty() {
        let (field, wire) = reader.key()?;
        match field {
            1 => event.event_id = reader.text(field, wire)?,
            2 => event.tenant = reader.text(field, wire)?,
            3 => event.user_id = reader.text(field, wire)?,
            4 => event.event_type = reader.text(field, wire)?,
            5 => event.occurred_at_us = reader.number(field, wire)?.cast_signed(),
            6 => event.received_at_us = reader.number(field, wire)?.cast_signed(),
            7 => event.page_url = reader.text(field, wire)?,
            8 => event.session_id = reader.text(field, wire)?,
            9 => event.value = Some(reader.double(field, wire)?),
            10 => event.properties = reader.bytes(field, wire)?,
            11 => event.historical = reader.number(field, wire)? != 0,
            _ => reader.skip(field, wire, GROUP_DEPTH_MAX)?,
        }
    }
    Ok(event)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn key(&mut self) -> Result<(u32, u8), DecodeError> {
        let key = u32::try_from(self.varint()?).map_err(|_| DecodeError::Key)?;
        let (field, wire) = (key >> 3, (key & 7) as u8);
        if field == 0 || wire > FIXED32 {
            Err(DecodeError::Key)
        } else {
            Ok((field, wire))
        }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, DecodeError> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            // The tenth byte holds the last bit of 64; anything more does not fit.
            if index == 9 && *byte > 1 {
                return Err(DecodeError::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if *byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 {
            DecodeError::Truncated
        } else {
            DecodeError::Varint
        })
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(length).map_err(|_| DecodeError::Truncated)?;
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn bytes(&mut self, field: u32, wire: u8) -> Result<&'a [u8], DecodeError> {
        expect(LENGTH, field, wire)?;
        let length = self.varint()?;
        self.take(length)
    }

    #[inline]
    fn text(&mut self, field: u32, wire: u8) -> Result<&'a str, DecodeError> {
        let bytes = self.bytes(field, wire)?;
        str::from_utf8(bytes).map_err(|_| DecodeError::Utf8 { field })
    }

    fn number(&mut self, field: u32, wire: u8) -> Result<u64, DecodeError> {
        expect(VARINT, field, wire)?;
        self.varint()
    }

    fn double(&mut self, field: u32, wire: u8) -> Result<f64, DecodeError> {
        expect(FIXED64, field, wire)?;
        let (bytes, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(f64::from_le_bytes(*bytes))
    }

    fn skip(&mut self, field: u32, wire: u8, depth: u32) -> Result<(), DecodeError> {
        match wire {
            VARINT => self.varint().map(drop),
            FIXED64 => self.take(8).map(drop),
            FIXED32 => self.take(4).map(drop),
            LENGTH => {
                let length = self.varint()?;
                self.take(length).map(drop)
            }
            GROUP_START => self.skip_group(field, depth),
            _ => Err(DecodeError::Group),
        }
    }

    fn skip_group(&mut self, field: u32, depth: u32) -> Result<(), DecodeError> {
        let depth = depth.checked_sub(1).ok_or(DecodeError::Group)?;
        loop {
            match self.key()? {
                (inner, GROUP_END) if inner == field => return Ok(()),
                (_, GROUP_END) => return Err(DecodeError::Group),
                (inner, wire) => self.skip(inner, wire, depth)?,
            }
        }
    }
}

fn expect(expected: u8, field: u32, wire: u8) -> Result<(), DecodeError> {
    if wire == expected {
        Ok(())
    } else {
        Err(DecodeError::WireType { field, wire })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;
    use streamgauge_proto::v1::Event;

    use super::*;

    fn borrowed(event: &Event) -> RawEvent<'_> {
        RawEvent {
            event_id: &event.event_id,
            tenant: &event.tenant,
            user_id: &event.user_id,
            event_type: &event.event_type,
            occurred_at_us: event.occurred_at_us,
            received_at_us: event.received_at_us,
            page_url: &event.page_url,
            session_id: &event.session_id,
            value: event.value,
            properties: &event.properties,
            historical: event.historical,
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let ids = ("\\PC{0,20}", "\\PC{0,5}", "\\PC{0,20}", "\\PC{0,10}");
        let rest = (any::<i64>(), any::<i64>(), "\\PC{0,30}", "\\PC{0,5}");
        let value = prop::option::of(-1e12f64..1e12);
        (
            ids,
            rest,
            value,
            prop::collection::vec(any::<u8>(), 0..50),
            any::<bool>(),
        )
            .prop_map(|(ids, rest, value, properties, historical)| Event {
                event_id: ids.0,
                tenant: ids.1,
                user_id: ids.2,
                event_type: ids.3,
                occurred_at_us: rest.0,
                received_at_us: rest.1,
                page_url: rest.2,
                session_id: rest.3,
                value,
                properties: Bytes::from(properties),
                historical,
            })
    }

    /// Both readers agree on these bytes: the same event, or a refusal.
    fn assert_agreement(bytes: &[u8]) {
        match (decode(bytes), Event::decode(bytes)) {
            (Ok(ours), Ok(theirs)) => {
                let bits = |value: Option<f64>| value.map(f64::to_bits);
                assert_eq!(bits(ours.value), bits(theirs.value));
                let (ours, mut theirs) = (
                    RawEvent {
                        value: None,
                        ..ours
                    },
                    theirs,
                );
                theirs.value = None;
                assert_eq!(ours, borrowed(&theirs));
            }
            (Err(_), Err(_)) => {}
            (ours, theirs) => panic!("{bytes:02x?}: {ours:?} but {theirs:?}"),
        }
    }

    #[test]
    fn each_defect_has_its_error() {
        let cases: [(&[u8], DecodeError); 9] = [
            (&[0x0a], DecodeError::Truncated),
            (&[0x0a, 5, b'a'], DecodeError::Truncated),
            (&[0x28, 0x80], DecodeError::Truncated),
            (
                &[0x28, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
                DecodeError::Varint,
            ),
            (&[0x00], DecodeError::Key),
            (&[0x0e], DecodeError::Key),
            (&[0x08, 1], DecodeError::WireType { field: 1, wire: 0 }),
            (&[0x1a, 1, 0xff], DecodeError::Utf8 { field: 3 }),
            (&[0xa3, 1, 0xac, 1], DecodeError::Group),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode(bytes), Err(expected), "{bytes:02x?}");
            assert_agreement(bytes);
        }
    }

    #[test]
    fn groups_nest_as_deep_as_the_generated_code_allows() {
        for depth in [1usize, 50, 98, 99, 100, 101, 102, 5000] {
            let mut bytes = [0xa3, 1].repeat(depth);
            bytes.extend([0xa4, 1].repeat(depth));
            assert_agreement(&bytes);
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read(event in any_event()) {
            let bytes = event.encode_to_vec();
            prop_assert_eq!(decode(&bytes).expect("encoded"), borrowed(&event));
        }

        #[test]
        fn cut_short_or_flipped_it_agrees_with_the_generated_code(
            event in any_event(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0u8..8
        ) {
            let mut bytes = event.encode_to_vec();
            bytes.push(0x28);
            bytes.push(7);
            assert_agreement(&bytes[..cut.index(bytes.len())]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            assert_agreement(&bytes);
        }

        #[test]
        fn foreign_bytes_agree_with_the_generated_code(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            assert_agreement(&bytes);
        }

        #[test]
        fn unknown_fields_are_passed_over(event in any_event(), number in 12u32..1000, blob in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut bytes = Vec::new();
            prost::encoding::bytes::encode(number, &blob, &mut bytes);
            prost::encoding::fixed32::encode(number, &7, &mut bytes);
            event.encode(&mut bytes).expect("a vector has room");
            prop_assert_eq!(decode(&bytes).expect("encoded"), borrowed(&event));
        }
    }
}
