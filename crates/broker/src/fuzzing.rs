//! Doors for the fuzzer to what reads foreign bytes. Not part of an ordinary build.

use bytes::{Bytes, BytesMut};

use crate::config::BrokerConfig;
use crate::log::batch::{self, BatchHeader};
use crate::log::records;
use crate::{dispatch, frame};

/// Everything that a connection sends.
pub fn frames(bytes: &[u8]) {
    let config = BrokerConfig::default();
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(frame)) = frame::take_frame(&mut buffer, config.max_request_bytes) {
        let _ = dispatch::can_be_read(frame, config.max_request_elements);
    }
}

/// The records of one partition in a produce request. The fuzzer would hardly ever meet a checksum, so what stands
/// behind it is read all the same.
pub fn produced(bytes: &[u8]) {
    let config = BrokerConfig::default();
    let _ = batch::validate_produced(bytes, config.max_message_bytes);
    if let Some(header) = BatchHeader::parse(bytes) {
        let batch = Bytes::copy_from_slice(bytes);
        let _ = batch::checksum_matches(&header, bytes);
        let _ = records::check(&header, bytes, config.max_decompressed_bytes);
        let _ = batch::first_at_or_after(&header, &batch, header.max_timestamp, 0);
        let _ = batch::latest_in(&header, &batch);
    }
}
