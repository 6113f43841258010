//! Valid events as protobuf, all of a request in one buffer.
//!
//! The key of a record and the event's id lie inside its payload as they are, so that ranges of the buffer serve for
//! both and nothing is allocated for each event. The bytes are those that `prost` would decode; a property test holds
//! the two together.

use std::borrow::Cow;
use std::ops::Range;

use uuid::Uuid;

use super::validate::Valid;
use super::{Rejection, timestamp};

/// Names of events that derive from an idempotency key; chosen once, at random.
const KEYED_IDS: Uuid = Uuid::from_u128(0x5c6b_1f0e_9c1d_4f57_a9a3_6a3f_d3a2_71e4);

/// What a request stamps on each of its events.
#[derive(Clone, Debug)]
pub struct Stamp<'a> {
    pub tenant: &'a str,
    /// Exempts the events from the accepted age.
    pub historical: bool,
    pub ids: Ids<'a>,
}

/// Where the ids of events without one come from.
#[derive(Clone, Debug)]
pub enum Ids<'a> {
    /// UUIDv7, ascending within the request.
    Random(RandomIds),
    /// Derived from the tenant, this key and the event's place, so that a retry yields the same ids.
    Keyed(Cow<'a, str>),
}

/// One draw of randomness for a whole request: each event's id is the one before plus one.
#[derive(Clone, Debug)]
pub struct RandomIds {
    millis: u64,
    seed: [u8; 16],
}

impl RandomIds {
    pub fn new(now_us: i64) -> Self {
        Self {
            millis: (now_us / 1_000).max(0) as u64,
            seed: Uuid::new_v4().into_bytes(),
        }
    }

    fn id(&self, index: usize) -> Uuid {
        // A v4 holds its random bits where a v7 wants them. The sum wraps within the last 62, so ids stay apart.
        let (mut random, mut low) = ([0; 10], [0; 8]);
        low.copy_from_slice(&self.seed[8..]);
        random[..2].copy_from_slice(&self.seed[6..8]);
        random[2..].copy_from_slice(
            &u64::from_be_bytes(low)
                .wrapping_add(index as u64)
                .to_be_bytes(),
        );
        uuid::Builder::from_unix_timestamp_millis(self.millis, &random).into_uuid()
    }
}

impl Ids<'_> {
    fn id(&self, tenant: &str, index: usize) -> Uuid {
        match self {
            Self::Random(random) => random.id(index),
            Self::Keyed(key) => {
                let mut name = Vec::with_capacity(tenant.len() + key.len() + 16);
                name.extend_from_slice(&(tenant.len() as u64).to_be_bytes());
                name.extend_from_slice(tenant.as_bytes());
                name.extend_from_slice(key.as_bytes());
                name.extend_from_slice(&(index as u64).to_be_bytes());
                Uuid::new_v5(&KEYED_IDS, &name)
            }
        }
    }
}

/// The events of one request, in order.
#[derive(Debug)]
pub struct Batch {
    received_at_us: i64,
    buffer: Vec<u8>,
    entries: Vec<Entry>,
    ready: usize,
    kinds: Vec<Kind>,
}

/// An event type of the batch.
#[derive(Debug)]
struct Kind {
    name: Range<u32>,
    ready: u64,
}

/// Event types of one batch that are told apart for its metrics; those beyond share the last place.
const KINDS_MAX: usize = 32;

/// What a refusal takes with its sentence, in bytes.
const REJECTION_BYTES: usize = 256;

/// One event of a request.
#[derive(Debug)]
pub enum Entry {
    Ready(Encoded),
    Rejected(Box<Rejection>),
}

/// Where an encoded event lies in the buffer of its batch.
#[derive(Clone, Debug)]
pub struct Encoded {
    payload: Range<u32>,
    user_id: Range<u32>,
    event_id: Range<u32>,
    kind: u8,
}

impl Batch {
    /// A batch that was received at this time, with room for what a body of this length holds.
    pub fn new(received_at_us: i64, body_bytes: usize) -> Self {
        let events = body_bytes / 160 + 1;
        Self {
            received_at_us,
            // A payload is shorter than its JSON, but may gain an id of 36 bytes.
            buffer: Vec::with_capacity(body_bytes + events * 40),
            entries: Vec::with_capacity(events),
            ready: 0,
            kinds: Vec::new(),
        }
    }

    /// Takes the next event of the request.
    pub fn push(&mut self, event: Result<Valid<'_>, Rejection>, stamp: &Stamp<'_>) {
        let entry = match event {
            Ok(valid) => {
                self.ready += 1;
                Entry::Ready(self.encode(&valid, stamp))
            }
            Err(rejection) => Entry::Rejected(Box::new(rejection)),
        };
        self.entries.push(entry);
    }

    pub fn received_at_us(&self) -> i64 {
        self.received_at_us
    }

    /// Every event, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Every refusal, in order.
    pub fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Ready(_) => None,
            Entry::Rejected(rejection) => Some(&**rejection),
        })
    }

    /// The memory that the batch takes, in bytes; of refusals, which vary, about.
    pub fn memory(&self) -> usize {
        let rejected = self.entries.len() - self.ready;
        self.buffer.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + rejected * REJECTION_BYTES
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many events are fit to be published.
    pub fn ready(&self) -> usize {
        self.ready
    }

    pub fn payload(&self, encoded: &Encoded) -> &[u8] {
        self.bytes(&encoded.payload)
    }

    /// The record's key.
    pub fn key(&self, encoded: &Encoded) -> &[u8] {
        self.bytes(&encoded.user_id)
    }

    pub fn event_id(&self, encoded: &Encoded) -> &str {
        self.text(&encoded.event_id)
    }

    /// The type of an event, for metrics; none where a batch holds too many to tell apart.
    pub fn kind(&self, encoded: &Encoded) -> Option<&str> {
        self.kinds
            .get(usize::from(encoded.kind))
            .map(|kind| self.text(&kind.name))
    }

    /// How many events of each type are fit to be published; what is not told apart has no name.
    pub fn kinds(&self) -> impl Iterator<Item = (Option<&str>, u64)> {
        let named: u64 = self.kinds.iter().map(|kind| kind.ready).sum();
        let rest = self.ready as u64 - named;
        let kinds = self
            .kinds
            .iter()
            .map(|kind| (Some(self.text(&kind.name)), kind.ready));
        kinds.chain((rest > 0).then_some((None, rest)))
    }

    fn text(&self, range: &Range<u32>) -> &str {
        std::str::from_utf8(self.bytes(range)).unwrap_or_default()
    }

    fn bytes(&self, range: &Range<u32>) -> &[u8] {
        &self.buffer[range.start as usize..range.end as usize]
    }
}

impl Batch {
    fn encode(&mut self, event: &Valid<'_>, stamp: &Stamp<'_>) -> Encoded {
        let index = self.entries.len();
        let buffer = &mut self.buffer;
        let start = position(buffer);
        let event_id = match event.event_id.as_deref() {
            Some(event_id) => bytes_field(buffer, 1, event_id.as_bytes()),
            None => {
                let mut text = Uuid::encode_buffer();
                let id = stamp
                    .ids
                    .id(stamp.tenant, index)
                    .hyphenated()
                    .encode_lower(&mut text);
                bytes_field(buffer, 1, id.as_bytes())
            }
        };
        optional_field(buffer, 2, stamp.tenant.as_bytes());
        let user_id = bytes_field(buffer, 3, event.user_id.as_bytes());
        let event_type = bytes_field(buffer, 4, event.event_type.as_bytes());
        varint_field(buffer, 5, event.occurred_at_us as u64);
        varint_field(buffer, 6, self.received_at_us as u64);
        optional_field(buffer, 7, event.page_url.as_bytes());
        optional_field(buffer, 8, event.session_id.as_bytes());
        if let Some(value) = event.value {
            buffer.push(tag(9, WireType::Fixed64));
            buffer.extend_from_slice(&value.to_le_bytes());
        }
        optional_field(buffer, 10, event.properties.as_bytes());
        if stamp.historical {
            varint_field(buffer, 11, 1);
        }
        let payload = start..position(buffer);
        Encoded {
            payload,
            user_id,
            event_id,
            kind: self.count_kind(event_type),
        }
    }

    /// Counts an event of this type and returns the type's place.
    fn count_kind(&mut self, name: Range<u32>) -> u8 {
        let wanted = self.bytes(&name);
        let known = self
            .kinds
            .iter()
            .position(|kind| self.bytes(&kind.name) == wanted);
        let place = known.unwrap_or(self.kinds.len());
        match self.kinds.get_mut(place) {
            Some(kind) => kind.ready += 1,
            None if place < KINDS_MAX => self.kinds.push(Kind { name, ready: 1 }),
            None => {}
        }
        place as u8
    }
}

#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
}

/// Field numbers up to 15 take one byte.
const fn tag(field: u8, wire: WireType) -> u8 {
    (field << 3) | wire as u8
}

fn position(buffer: &[u8]) -> u32 {
    u32::try_from(buffer.len()).expect("a request is bounded far below 4 GiB")
}

/// Writes a field of bytes and returns where its content lies.
fn bytes_field(buffer: &mut Vec<u8>, field: u8, content: &[u8]) -> Range<u32> {
    buffer.push(tag(field, WireType::Bytes));
    varint(buffer, content.len() as u64);
    let start = position(buffer);
    buffer.extend_from_slice(content);
    start..position(buffer)
}

fn optional_field(buffer: &mut Vec<u8>, field: u8, content: &[u8]) {
    if !content.is_empty() {
        bytes_field(buffer, field, content);
    }
}

fn varint_field(buffer: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        buffer.push(tag(field, WireType::Varint));
        varint(buffer, value);
    }
}

fn varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

// An accepted time is never negative, so that no varint here takes ten bytes.
const _: () = assert!(timestamp::MIN_US > 0);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use prost::Message;
    use streamgauge_proto::v1::Event;

    use super::*;

    const NOW_US: i64 = 1_763_724_600_000_000;

    fn stamp(ids: Ids<'_>) -> Stamp<'_> {
        Stamp {
            tenant: "acme",
            historical: false,
            ids,
        }
    }

    fn valid(event_id: Option<&str>) -> Valid<'_> {
        Valid {
            event_id: event_id.map(Into::into),
            user_id: "u1".into(),
            event_type: "click".into(),
            occurred_at_us: timestamp::MIN_US,
            page_url: "".into(),
            session_id: "".into(),
            value: None,
            properties: "",
        }
    }

    fn ids(stamp: &Stamp<'_>, events: usize) -> Vec<String> {
        let mut batch = Batch::new(NOW_US, 0);
        (0..events).for_each(|_| batch.push(Ok(valid(None)), stamp));
        ready(&batch)
            .map(|encoded| batch.event_id(encoded).to_owned())
            .collect()
    }

    fn ready(batch: &Batch) -> impl Iterator<Item = &Encoded> {
        batch.entries().iter().filter_map(|entry| match entry {
            Entry::Ready(encoded) => Some(encoded),
            Entry::Rejected(_) => None,
        })
    }

    prop_compose! {
        fn any_valid()(
            event_id in proptest::option::of("\\PC{1,40}"), user_id in "\\PC{1,60}", event_type in "\\PC{1,30}",
            occurred_at_us in timestamp::MIN_US..timestamp::MAX_US, page_url in "\\PC{0,300}",
            session_id in "\\PC{0,20}", value in any::<Option<i32>>(),
        ) -> Valid<'static> {
            Valid {
                event_id: event_id.map(Into::into),
                user_id: user_id.into(),
                event_type: event_type.into(),
                occurred_at_us,
                page_url: page_url.into(),
                session_id: session_id.into(),
                value: value.map(f64::from),
                properties: "{\"a\":[1,2]}",
            }
        }
    }

    proptest! {
        #[test]
        fn prost_reads_what_was_written(
            events in prop::collection::vec(any_valid(), 1..8), tenant in "\\PC{0,12}", historical: bool, now in 0i64..i64::MAX,
        ) {
            let stamp = Stamp { tenant: &tenant, historical, ids: Ids::Keyed("k".into()) };
            let mut batch = Batch::new(now, 0);
            events.iter().for_each(|event| batch.push(Ok(event.clone()), &stamp));
            for (event, encoded) in events.iter().zip(ready(&batch)) {
                let event_id = batch.event_id(encoded).to_owned();
                if let Some(expected) = &event.event_id {
                    prop_assert_eq!(&event_id, expected);
                }
                let expected = Event {
                    event_id,
                    tenant: tenant.clone(),
                    user_id: event.user_id.to_string(),
                    event_type: event.event_type.to_string(),
                    occurred_at_us: event.occurred_at_us,
                    received_at_us: now,
                    page_url: event.page_url.to_string(),
                    session_id: event.session_id.to_string(),
                    value: event.value,
                    properties: event.properties.as_bytes().into(),
                    historical,
                };
                prop_assert_eq!(batch.payload(encoded), &expected.encode_to_vec()[..]);
                prop_assert_eq!(Event::decode(batch.payload(encoded)).unwrap(), expected);
                prop_assert_eq!(batch.key(encoded), event.user_id.as_bytes());
            }
        }
    }

    #[test]
    fn assigned_ids_are_uuid_v7_and_ascend() {
        let stamp = stamp(Ids::Random(RandomIds::new(1_763_724_600_000_000)));
        let ids = ids(&stamp, 1000);
        for id in &ids {
            let id: Uuid = id.parse().unwrap();
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(id.get_timestamp().unwrap().to_unix().0, 1_763_724_600);
        }
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 1000);
    }

    #[test]
    fn requests_of_one_moment_draw_different_ids() {
        let draw = || ids(&stamp(Ids::Random(RandomIds::new(1))), 1).remove(0);
        assert_eq!(
            (0..1000).map(|_| draw()).collect::<HashSet<_>>().len(),
            1000
        );
    }

    #[test]
    fn keyed_ids_repeat_for_the_same_tenant_key_and_place_only() {
        let first = ids(&stamp(Ids::Keyed("order-1".into())), 3);
        assert_eq!(first, ids(&stamp(Ids::Keyed("order-1".into())), 3));
        let mut all: HashSet<_> = first.into_iter().collect();
        all.extend(ids(&stamp(Ids::Keyed("order-2".into())), 3));
        let other = Stamp {
            tenant: "acm",
            ..stamp(Ids::Keyed("eorder-1".into()))
        };
        all.extend(ids(&other, 3));
        assert_eq!(all.len(), 9);
    }

    #[test]
    fn a_rejected_event_keeps_its_place() {
        let stamp = stamp(Ids::Keyed("k".into()));
        let rejection = Rejection::new(
            streamgauge_proto::ErrorCode::MissingField,
            "user_id",
            "user_id is required",
        );
        let mut batch = Batch::new(NOW_US, 0);
        batch.push(Ok(valid(Some("a"))), &stamp);
        batch.push(Err(rejection.clone()), &stamp);
        batch.push(Ok(valid(Some("b"))), &stamp);
        assert_eq!((batch.len(), batch.ready()), (3, 2));
        assert!(matches!(&batch.entries()[1], Entry::Rejected(found) if **found == rejection));
    }
}
