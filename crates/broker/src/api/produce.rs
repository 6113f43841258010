//! Produce and InitProducerId. An answer without an error means that the batch
//! is written, and with `fsync = "always"` that it is on the disk.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::produce_request::TopicProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse, ProducerId,
};
use tracing::{debug, warn};

use super::{Context, disk, text};
use crate::config::Fsync;
use crate::log::batch::{self, BatchError};
use crate::log::records;
use crate::log::{AppendError, Partition};
use crate::node::Node;
use crate::stats::add;

/// What becomes of a produce request.
pub enum Produced {
    Answer(ProduceResponse),
    /// The answer has to wait for the disk; later requests need not.
    Later(BoxFuture<'static, ProduceResponse>),
    /// The client asked for no answer.
    Silent,
    /// The client asked for no answer but should notice that something is wrong.
    Close,
}

/// A partition whose acknowledgement waits for the disk, and where its result
/// stands in the response.
struct Unsynced {
    topic: usize,
    partition: usize,
    log: Arc<Partition>,
    next_offset: i64,
}

pub async fn produce(ctx: &Context, request: ProduceRequest) -> Produced {
    if let Some(delay) = ctx.node.faults.append_delay() {
        tokio::time::sleep(delay).await;
    }
    let acks = request.acks;
    let (response, unsynced) = match acks {
        -1..=1 => disk(|| store_all(&ctx.node, &request)),
        _ => (refuse_all(&request, E::InvalidRequiredAcks), Vec::new()),
    };
    if ctx.node.faults.takes_acknowledgement() {
        return Produced::Close;
    }
    if acks == 0 {
        return match response.responses.iter().any(has_error) {
            true => Produced::Close,
            false => Produced::Silent,
        };
    }
    match unsynced.is_empty() {
        true => Produced::Answer(response),
        false => Produced::Later(Box::pin(wait_for_disk(response, unsynced))),
    }
}

fn has_error(topic: &TopicProduceResponse) -> bool {
    topic
        .partition_responses
        .iter()
        .any(|partition| partition.error_code != 0)
}

fn refuse_all(request: &ProduceRequest, error: E) -> ProduceResponse {
    let topics = request.topic_data.iter().map(|topic| {
        let partitions = topic.partition_data.iter();
        TopicProduceResponse::default()
            .with_name(topic.name.clone())
            .with_partition_responses(
                partitions
                    .map(|partition| refused(partition.index, error, None))
                    .collect(),
            )
    });
    ProduceResponse::default().with_responses(topics.collect())
}

fn store_all(node: &Node, request: &ProduceRequest) -> (ProduceResponse, Vec<Unsynced>) {
    if request.transactional_id.is_some() {
        let response = refuse_all(request, E::TransactionalIdAuthorizationFailed);
        return (response, Vec::new());
    }
    let mut unsynced = Vec::new();
    let topics = request.topic_data.iter().enumerate();
    let responses = topics.map(|(at, topic)| store_topic(node, at, topic, &mut unsynced));
    let response = ProduceResponse::default().with_responses(responses.collect());
    (response, unsynced)
}

fn store_topic(
    node: &Node,
    topic_at: usize,
    topic: &TopicProduceData,
    unsynced: &mut Vec<Unsynced>,
) -> TopicProduceResponse {
    let must_sync = node.config.fsync == Fsync::Always;
    let partitions = topic.partition_data.iter().enumerate();
    let responses = partitions.map(|(at, data)| {
        let Some(log) = node.topics.partition(&topic.name, data.index) else {
            return refused(data.index, E::UnknownTopicOrPartition, None);
        };
        let records = data.records.clone().unwrap_or_default();
        let (response, next_offset) = store(node, &log, data.index, &records);
        if let Some(next_offset) = next_offset.filter(|_| must_sync) {
            unsynced.push(Unsynced {
                topic: topic_at,
                partition: at,
                log,
                next_offset,
            });
        }
        response
    });
    TopicProduceResponse::default()
        .with_name(topic.name.clone())
        .with_partition_responses(responses.collect())
}

/// Stores one batch; also gives the offset after it when that worked.
fn store(
    node: &Node,
    log: &Partition,
    index: i32,
    batch: &Bytes,
) -> (PartitionProduceResponse, Option<i64>) {
    let sound = batch::validate_produced(batch, log.settings().max_message_bytes);
    let sound = sound.and_then(|header| {
        records::check(&header, batch, node.config.max_decompressed_bytes).map(|()| header)
    });
    let header = match sound {
        Ok(header) => header,
        Err(error) => {
            debug!(%error, "refused a batch");
            add(&node.counters.batches_refused, 1);
            return (
                refused(index, code_of(error), Some(error.to_string())),
                None,
            );
        }
    };
    if node.faults.refuses_appends() {
        return (refused(index, E::KafkaStorageError, None), None);
    }
    match log.append(header, batch) {
        Ok(appended) => {
            match appended.duplicate {
                true => add(&node.counters.batches_duplicate, 1),
                false => {
                    add(&node.counters.batches_appended, 1);
                    add(&node.counters.records_appended, header.record_count as u64);
                    add(&node.counters.bytes_appended, header.total_len as u64);
                }
            }
            let response = PartitionProduceResponse::default()
                .with_index(index)
                .with_base_offset(appended.base_offset)
                .with_log_append_time_ms(-1)
                .with_log_start_offset(log.log_start());
            (response, Some(appended.next_offset))
        }
        Err(error) => {
            add(&node.counters.batches_refused, 1);
            let code = match &error {
                AppendError::OutOfOrderSequence => E::OutOfOrderSequenceNumber,
                AppendError::Fenced => E::InvalidProducerEpoch,
                AppendError::Closed => E::NotLeaderOrFollower,
                AppendError::Io(_) => E::KafkaStorageError,
            };
            (refused(index, code, Some(error.to_string())), None)
        }
    }
}

fn code_of(error: BatchError) -> E {
    match error {
        BatchError::Truncated | BatchError::Checksum => E::CorruptMessage,
        BatchError::TooLarge | BatchError::Swollen => E::MessageTooLarge,
        BatchError::Codec(_) => E::UnsupportedCompressionType,
        BatchError::Magic(0..=1) => E::UnsupportedForMessageFormat,
        BatchError::Magic(_) => E::CorruptMessage,
        BatchError::Transactional => E::TransactionalIdAuthorizationFailed,
        // Its checksum is right: the very same bytes would be sent again, so that a client must not try.
        BatchError::Compression
        | BatchError::Records
        | BatchError::Empty
        | BatchError::MoreThanOne
        | BatchError::Counts
        | BatchError::Control
        | BatchError::ProducerFields => E::InvalidRecord,
    }
}

fn refused(index: i32, error: E, message: Option<String>) -> PartitionProduceResponse {
    PartitionProduceResponse::default()
        .with_index(index)
        .with_error_code(error.code())
        .with_base_offset(-1)
        .with_log_append_time_ms(-1)
        .with_log_start_offset(-1)
        .with_error_message(message.map(text))
}

async fn wait_for_disk(mut response: ProduceResponse, unsynced: Vec<Unsynced>) -> ProduceResponse {
    for wait in unsynced {
        let synced: io::Result<()> = wait.log.wait_synced(wait.next_offset).await;
        if let Err(error) = synced {
            warn!(%error, "a batch could not be synced");
            let slot = &mut response.responses[wait.topic].partition_responses[wait.partition];
            *slot = refused(slot.index, E::KafkaStorageError, None);
        }
    }
    response
}

/// Hands out a producer id. Transactions are refused for good, so that a client
/// does not keep trying.
pub fn init_producer_id(ctx: &Context, request: &InitProducerIdRequest) -> InitProducerIdResponse {
    let refused = |error: E| {
        InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    };
    if request.transactional_id.is_some() {
        return refused(E::TransactionalIdAuthorizationFailed);
    }
    match disk(|| ctx.node.producer_ids.allocate()) {
        Ok(id) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(0),
        Err(error) => {
            warn!(%error, "reserving producer ids failed");
            refused(E::CoordinatorNotAvailable)
        }
    }
}
