//! Records of the dead-letter topic for the tests of this module.

use streamgauge_kafka::{Chunk, ChunkBuilder};

use crate::{
    core::reject::{Reason, Reject},
    dead_letter::{DeadLetter, Origin},
};

/// One record.
pub fn chunk(
    offset: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[(String, String)],
) -> Chunk {
    let mut builder = ChunkBuilder::new(0);
    let headers = headers
        .iter()
        .map(|(name, value)| (&**name, Some(value.as_bytes())));
    builder.push(offset, 1, key, value, headers);
    builder.take().expect("one record")
}

/// Our own headers of a dead letter, as the writer makes them.
pub fn letter_headers(
    topic: &str,
    partition: i32,
    offset: i64,
    reason: Reason,
    time_us: i64,
) -> Vec<(String, String)> {
    let source = chunk(offset, Some(b"k"), Some(b"v"), &[]);
    let origin = Origin {
        topic,
        partition,
        group: "group",
    };
    let reject = Reject::validate(reason, "why");
    let record = source.get(0).expect("one record");
    DeadLetter::new(origin, &record, &reject, time_us).own_headers(1)
}
