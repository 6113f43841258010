//! Walks a request before it is decoded, to bound what decoding may allocate.
//!
//! The codec reserves memory for an array by its announced count, so a frame of
//! fifty bytes could claim gigabytes. The walk follows the schema of each
//! request that is served, counts every element that is really there, and
//! refuses what claims more. It allocates nothing. A test holds each schema
//! against the codec's own encoding in every version.

use kafka_protocol::messages::ApiKey;

/// One field: its layout, and the versions that have it.
struct Field {
    since: i16,
    until: i16,
    layout: Layout,
}

enum Layout {
    Fixed(usize),
    /// A string, or null.
    Text,
    /// Bytes, or null.
    Blob,
    /// An array of fixed-size numbers.
    Numbers(usize),
    /// An array of strings.
    Texts,
    /// An array of structures.
    Structs(&'static [Field]),
}

use Layout::{Blob, Fixed, Numbers, Structs, Text, Texts};

const fn f(layout: Layout) -> Field {
    between(0, i16::MAX, layout)
}

const fn since(since: i16, layout: Layout) -> Field {
    between(since, i16::MAX, layout)
}

const fn until(until: i16, layout: Layout) -> Field {
    between(0, until, layout)
}

const fn between(since: i16, until: i16, layout: Layout) -> Field {
    Field {
        since,
        until,
        layout,
    }
}

/// A request's fields and the first version in the compact encoding.
struct Schema {
    flexible: i16,
    fields: &'static [Field],
}

const fn schema(flexible: i16, fields: &'static [Field]) -> Schema {
    Schema { flexible, fields }
}

const TOPIC_PARTITIONS: &[Field] = &[f(Text), f(Numbers(4))];

static PRODUCE: Schema = schema(
    9,
    &[
        f(Text),
        f(Fixed(6)),
        f(Structs(&[f(Text), f(Structs(&[f(Fixed(4)), f(Blob)]))])),
    ],
);
static FETCH: Schema = schema(
    12,
    &[
        f(Fixed(17)),
        since(7, Fixed(8)),
        f(Structs(&[
            f(Text),
            f(Structs(&[
                f(Fixed(4)),
                since(9, Fixed(4)),
                f(Fixed(8)),
                since(12, Fixed(4)),
                since(5, Fixed(8)),
                f(Fixed(4)),
            ])),
        ])),
        since(7, Structs(TOPIC_PARTITIONS)),
        since(11, Text),
    ],
);
static LIST_OFFSETS: Schema = schema(
    6,
    &[
        f(Fixed(4)),
        since(2, Fixed(1)),
        f(Structs(&[
            f(Text),
            f(Structs(&[f(Fixed(4)), since(4, Fixed(4)), f(Fixed(8))])),
        ])),
    ],
);
static METADATA: Schema = schema(
    9,
    &[
        f(Structs(&[since(10, Fixed(16)), f(Text)])),
        since(4, Fixed(1)),
        between(8, 10, Fixed(1)),
        since(8, Fixed(1)),
    ],
);
static OFFSET_COMMIT: Schema = schema(
    8,
    &[
        f(Text),
        f(Fixed(4)),
        f(Text),
        since(7, Text),
        until(4, Fixed(8)),
        f(Structs(&[
            f(Text),
            f(Structs(&[f(Fixed(12)), since(6, Fixed(4)), f(Text)])),
        ])),
    ],
);
static OFFSET_FETCH: Schema = schema(
    6,
    &[
        until(7, Text),
        until(7, Structs(TOPIC_PARTITIONS)),
        since(
            8,
            Structs(&[
                f(Text),
                since(9, Text),
                since(9, Fixed(4)),
                f(Structs(TOPIC_PARTITIONS)),
            ]),
        ),
        since(7, Fixed(1)),
    ],
);
static FIND_COORDINATOR: Schema = schema(3, &[until(3, Text), since(1, Fixed(1)), since(4, Texts)]);
static JOIN_GROUP: Schema = schema(
    6,
    &[
        f(Text),
        f(Fixed(4)),
        since(1, Fixed(4)),
        f(Text),
        since(5, Text),
        f(Text),
        f(Structs(&[f(Text), f(Blob)])),
        since(8, Text),
    ],
);
static HEARTBEAT: Schema = schema(4, &[f(Text), f(Fixed(4)), f(Text), since(3, Text)]);
static LEAVE_GROUP: Schema = schema(
    4,
    &[
        f(Text),
        until(2, Text),
        since(3, Structs(&[f(Text), f(Text), since(5, Text)])),
    ],
);
static SYNC_GROUP: Schema = schema(
    4,
    &[
        f(Text),
        f(Fixed(4)),
        f(Text),
        since(3, Text),
        since(5, Text),
        since(5, Text),
        f(Structs(&[f(Text), f(Blob)])),
    ],
);
static DESCRIBE_GROUPS: Schema = schema(5, &[f(Texts), since(3, Fixed(1))]);
static LIST_GROUPS: Schema = schema(3, &[since(4, Texts), since(5, Texts)]);
static API_VERSIONS: Schema = schema(3, &[since(3, Text), since(3, Text)]);
static CREATE_TOPICS: Schema = schema(
    5,
    &[
        f(Structs(&[
            f(Text),
            f(Fixed(6)),
            f(Structs(&[f(Fixed(4)), f(Numbers(4))])),
            f(Structs(&[f(Text), f(Text)])),
        ])),
        f(Fixed(5)),
    ],
);
static DELETE_TOPICS: Schema = schema(
    4,
    &[
        since(6, Structs(&[f(Text), f(Fixed(16))])),
        until(5, Texts),
        f(Fixed(4)),
    ],
);
static DELETE_RECORDS: Schema = schema(
    2,
    &[
        f(Structs(&[f(Text), f(Structs(&[f(Fixed(12))]))])),
        f(Fixed(4)),
    ],
);
static INIT_PRODUCER_ID: Schema = schema(2, &[f(Text), f(Fixed(4)), since(3, Fixed(10))]);
static OFFSET_FOR_LEADER_EPOCH: Schema = schema(
    4,
    &[
        since(3, Fixed(4)),
        f(Structs(&[f(Text), f(Structs(&[f(Fixed(12))]))])),
    ],
);
static DESCRIBE_CONFIGS: Schema = schema(
    4,
    &[
        f(Structs(&[f(Fixed(1)), f(Text), f(Texts)])),
        f(Fixed(1)),
        since(3, Fixed(1)),
    ],
);
static DELETE_GROUPS: Schema = schema(2, &[f(Texts)]);
static CONSUMER_GROUP_HEARTBEAT: Schema = schema(
    0,
    &[
        f(Text),
        f(Text),
        f(Fixed(4)),
        f(Text),
        f(Text),
        f(Fixed(4)),
        f(Texts),
        since(1, Text),
        f(Text),
        f(Structs(&[f(Fixed(16)), f(Numbers(4))])),
    ],
);

fn schema_of(api: ApiKey) -> Option<&'static Schema> {
    Some(match api {
        ApiKey::Produce => &PRODUCE,
        ApiKey::Fetch => &FETCH,
        ApiKey::ListOffsets => &LIST_OFFSETS,
        ApiKey::Metadata => &METADATA,
        ApiKey::OffsetCommit => &OFFSET_COMMIT,
        ApiKey::OffsetFetch => &OFFSET_FETCH,
        ApiKey::FindCoordinator => &FIND_COORDINATOR,
        ApiKey::JoinGroup => &JOIN_GROUP,
        ApiKey::Heartbeat => &HEARTBEAT,
        ApiKey::LeaveGroup => &LEAVE_GROUP,
        ApiKey::SyncGroup => &SYNC_GROUP,
        ApiKey::DescribeGroups => &DESCRIBE_GROUPS,
        ApiKey::ListGroups => &LIST_GROUPS,
        ApiKey::ApiVersions => &API_VERSIONS,
        ApiKey::CreateTopics => &CREATE_TOPICS,
        ApiKey::DeleteTopics => &DELETE_TOPICS,
        ApiKey::DeleteRecords => &DELETE_RECORDS,
        ApiKey::InitProducerId => &INIT_PRODUCER_ID,
        ApiKey::OffsetForLeaderEpoch => &OFFSET_FOR_LEADER_EPOCH,
        ApiKey::DescribeConfigs => &DESCRIBE_CONFIGS,
        ApiKey::DeleteGroups => &DELETE_GROUPS,
        ApiKey::ConsumerGroupHeartbeat => &CONSUMER_GROUP_HEARTBEAT,
        _ => return None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("the request ends before its fields do")]
    Truncated,
    #[error("a length in the request is not possible")]
    BadLength,
    #[error("the request has more elements than allowed")]
    TooManyElements,
    #[error("the request's kind is not served")]
    NotServed,
}

/// Walks a request's body; what is left after it is ignored, as decoding does.
pub fn check_body(
    api: ApiKey,
    version: i16,
    body: &[u8],
    max_elements: usize,
) -> Result<(), ShapeError> {
    let schema = schema_of(api).ok_or(ShapeError::NotServed)?;
    let mut walk = Walk {
        rest: body,
        version,
        compact: version >= schema.flexible,
        elements_left: max_elements,
    };
    walk.fields(schema.fields)
}

/// Walks a request's header.
pub fn check_header(frame: &[u8], compact: bool, max_elements: usize) -> Result<(), ShapeError> {
    let mut walk = Walk {
        rest: frame,
        version: 0,
        compact: false,
        elements_left: max_elements,
    };
    walk.skip(8)?;
    // The client id keeps the old encoding in every version.
    walk.text()?;
    walk.compact = compact;
    walk.tags()
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    compact: bool,
    elements_left: usize,
}

impl Walk<'_> {
    fn fields(&mut self, fields: &[Field]) -> Result<(), ShapeError> {
        for field in fields {
            if (field.since..=field.until).contains(&self.version) {
                self.field(&field.layout)?;
            }
        }
        self.tags()
    }

    fn field(&mut self, layout: &Layout) -> Result<(), ShapeError> {
        match layout {
            Fixed(size) => self.skip(*size),
            Text => self.text(),
            Blob => self.blob(),
            Numbers(size) => {
                let count = self.count()?;
                self.skip(count.checked_mul(*size).ok_or(ShapeError::BadLength)?)
            }
            Texts => (0..self.count()?).try_for_each(|_| self.text()),
            Structs(fields) => (0..self.count()?).try_for_each(|_| self.fields(fields)),
        }
    }

    fn skip(&mut self, len: usize) -> Result<(), ShapeError> {
        self.rest = self.rest.get(len..).ok_or(ShapeError::Truncated)?;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], ShapeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(ShapeError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// An unsigned varint of at most five bytes.
    fn varint(&mut self) -> Result<usize, ShapeError> {
        let mut value: u64 = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let value = u32::try_from(value).map_err(|_| ShapeError::BadLength)?;
                return Ok(value as usize);
            }
        }
        Err(ShapeError::BadLength)
    }

    /// A length that says null as -1, or as 0 with one added to all others.
    fn length(&mut self, wide: bool) -> Result<usize, ShapeError> {
        if self.compact {
            return Ok(self.varint()?.saturating_sub(1));
        }
        let length = match wide {
            true => i32::from_be_bytes(self.take()?),
            false => i32::from(i16::from_be_bytes(self.take()?)),
        };
        match length {
            -1 => Ok(0),
            length => usize::try_from(length).map_err(|_| ShapeError::BadLength),
        }
    }

    fn text(&mut self) -> Result<(), ShapeError> {
        let len = self.length(false)?;
        self.skip(len)
    }

    fn blob(&mut self) -> Result<(), ShapeError> {
        let len = self.length(true)?;
        self.skip(len)
    }

    fn count(&mut self) -> Result<usize, ShapeError> {
        let count = self.length(true)?;
        self.spend(count)?;
        Ok(count)
    }

    fn spend(&mut self, count: usize) -> Result<(), ShapeError> {
        // Every element takes at least a byte.
        if count > self.rest.len() {
            return Err(ShapeError::Truncated);
        }
        let left = self.elements_left.checked_sub(count);
        self.elements_left = left.ok_or(ShapeError::TooManyElements)?;
        Ok(())
    }

    fn tags(&mut self) -> Result<(), ShapeError> {
        if !self.compact {
            return Ok(());
        }
        let count = self.varint()?;
        self.spend(count)?;
        for _ in 0..count {
            self.varint()?;
            let len = self.varint()?;
            self.skip(len)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
