//! Where logs start and end: ListOffsets, OffsetForLeaderEpoch, DeleteRecords.

use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::delete_records_request::DeleteRecordsPartition;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse, ListOffsetsRequest, ListOffsetsResponse,
    OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
};
use tracing::warn;

use super::{Asked, Context, disk};
use crate::log::{LEADER_EPOCH, Partition};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// DeleteRecords up to the end, whatever it is.
const TO_HIGH_WATERMARK: i64 = -1;

pub fn list_offsets(ctx: &Context, request: &ListOffsetsRequest) -> ListOffsetsResponse {
    let mut asked = Asked::default();
    let topics = request.topics.iter().map(|topic| {
        let named = topic.partitions.iter();
        let first = named.filter(|partition| asked.is_new(&topic.name, partition.partition_index));
        let partitions = first.map(|partition| {
            match ctx
                .node
                .topics
                .partition(&topic.name, partition.partition_index)
            {
                Some(log) => list_one(ctx.version, partition, &log),
                None => not_listed(partition, E::UnknownTopicOrPartition),
            }
        });
        ListOffsetsTopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

fn list_one(
    version: i16,
    partition: &ListOffsetsPartition,
    log: &Partition,
) -> ListOffsetsPartitionResponse {
    // Older versions have no field for it, and the codec refuses to leave it out.
    let leader_epoch = match version {
        ..4 => -1,
        _ => LEADER_EPOCH,
    };
    let found = match partition.timestamp {
        LATEST => Ok(Some((log.high_watermark(), -1))),
        EARLIEST => Ok(Some((log.log_start(), -1))),
        MAX_TIMESTAMP => disk(|| log.offset_of_latest_time())
            .map(|found| found.map(|found| (found.offset, found.timestamp))),
        timestamp if timestamp < 0 => return not_listed(partition, E::UnsupportedVersion),
        timestamp => disk(|| log.offset_at(timestamp))
            .map(|found| found.map(|found| (found.offset, found.timestamp))),
    };
    match found {
        Ok(Some((offset, timestamp))) => ListOffsetsPartitionResponse::default()
            .with_partition_index(partition.partition_index)
            .with_offset(offset.max(log.log_start()))
            .with_timestamp(timestamp)
            .with_leader_epoch(leader_epoch),
        Ok(None) => ListOffsetsPartitionResponse::default()
            .with_partition_index(partition.partition_index)
            .with_offset(-1)
            .with_timestamp(-1)
            .with_leader_epoch(-1),
        Err(error) => {
            warn!(%error, "looking up an offset failed");
            not_listed(partition, E::KafkaStorageError)
        }
    }
}

fn not_listed(partition: &ListOffsetsPartition, error: E) -> ListOffsetsPartitionResponse {
    ListOffsetsPartitionResponse::default()
        .with_partition_index(partition.partition_index)
        .with_error_code(error.code())
        .with_offset(-1)
        .with_timestamp(-1)
}

/// The epoch never changes, so its end is the end of the log.
pub fn offset_for_leader_epoch(
    ctx: &Context,
    request: &OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let mut asked = Asked::default();
    let topics = request.topics.iter().map(|topic| {
        let named = topic.partitions.iter();
        let first = named.filter(|partition| asked.is_new(&topic.topic, partition.partition));
        let partitions = first.map(|partition| {
            match ctx.node.topics.partition(&topic.topic, partition.partition) {
                Some(log) => epoch_end(partition, &log),
                None => no_epoch(partition, E::UnknownTopicOrPartition),
            }
        });
        OffsetForLeaderTopicResult::default()
            .with_topic(topic.topic.clone())
            .with_partitions(partitions.collect())
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn epoch_end(partition: &OffsetForLeaderPartition, log: &Partition) -> EpochEndOffset {
    if partition.current_leader_epoch > LEADER_EPOCH {
        return no_epoch(partition, E::UnknownLeaderEpoch);
    }
    let known = partition.leader_epoch == LEADER_EPOCH;
    EpochEndOffset::default()
        .with_partition(partition.partition)
        .with_leader_epoch(if known { LEADER_EPOCH } else { -1 })
        .with_end_offset(if known { log.high_watermark() } else { -1 })
}

fn no_epoch(partition: &OffsetForLeaderPartition, error: E) -> EpochEndOffset {
    EpochEndOffset::default()
        .with_partition(partition.partition)
        .with_error_code(error.code())
        .with_leader_epoch(-1)
        .with_end_offset(-1)
}

pub fn delete_records(ctx: &Context, request: &DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut asked = Asked::default();
    let topics = request.topics.iter().map(|topic| {
        let named = topic.partitions.iter();
        let first = named.filter(|partition| asked.is_new(&topic.name, partition.partition_index));
        let partitions = first.map(|partition| {
            match ctx
                .node
                .topics
                .partition(&topic.name, partition.partition_index)
            {
                Some(log) => delete_one(partition, &log),
                None => not_deleted(partition, E::UnknownTopicOrPartition),
            }
        });
        DeleteRecordsTopicResult::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

fn delete_one(partition: &DeleteRecordsPartition, log: &Partition) -> DeleteRecordsPartitionResult {
    let offset = match partition.offset {
        TO_HIGH_WATERMARK => log.high_watermark(),
        offset => offset,
    };
    match disk(|| log.delete_before(offset)) {
        Ok(Some(log_start)) => DeleteRecordsPartitionResult::default()
            .with_partition_index(partition.partition_index)
            .with_low_watermark(log_start),
        Ok(None) => not_deleted(partition, E::OffsetOutOfRange),
        Err(error) => {
            warn!(%error, "deleting records failed");
            not_deleted(partition, E::KafkaStorageError)
        }
    }
}

fn not_deleted(partition: &DeleteRecordsPartition, error: E) -> DeleteRecordsPartitionResult {
    DeleteRecordsPartitionResult::default()
        .with_partition_index(partition.partition_index)
        .with_error_code(error.code())
        .with_low_watermark(-1)
}
