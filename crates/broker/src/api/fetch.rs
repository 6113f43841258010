//! Fetch: whole batches as they are stored, waiting for more when asked to.
//! There are no fetch sessions: each request says all it wants.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tracing::{error, warn};

use super::{Asked, Context, disk};
use crate::log::{LEADER_EPOCH, Partition, ReadError, Watch};
use crate::node::{Node, UNIT_BYTES};
use crate::stats::add;

/// A partition asked for, if it exists.
type Wanted<'a> = (&'a FetchPartition, Option<Arc<Partition>>);

/// The answer, and the share of the memory for fetched records that it holds.
pub type Fetched = (FetchResponse, Option<OwnedSemaphorePermit>);

pub async fn fetch(ctx: &Context, request: FetchRequest) -> Fetched {
    if request.session_id != 0 && request.session_epoch > 0 {
        let error = E::FetchSessionIdNotFound.code();
        return (FetchResponse::default().with_error_code(error), None);
    }
    let node = &ctx.node;
    let mut asked = Asked::default();
    let wanted: Vec<(&FetchTopic, Vec<Wanted<'_>>)> = request
        .topics
        .iter()
        .map(|topic| (topic, find_partitions(node, topic, &mut asked)))
        .filter(|(_, partitions)| !partitions.is_empty())
        .collect();
    let longest_ms = i32::try_from(node.config.fetch_wait_ms_max).unwrap_or(i32::MAX);
    let wait_ms = request.max_wait_ms.clamp(0, longest_ms) as u64;
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    let max_bytes = usize::try_from(request.max_bytes).unwrap_or(0);
    let max_bytes = max_bytes.min(node.config.fetch_max_bytes);
    let min_bytes = usize::try_from(request.min_bytes)
        .unwrap_or(0)
        .min(max_bytes);

    // Interest is declared before looking, so no append can slip in between.
    let waiter = Arc::new(Notify::new());
    let _watches = watch_all(&wanted, &waiter);
    loop {
        let is_due = Instant::now() >= deadline || ctx.gone.is_cancelled();
        if is_due || min_bytes == 0 || may_have_data(&wanted) {
            let share = Share::take(node, most_to_read(&wanted, max_bytes));
            let (response, bytes, has_error) = read_all(&wanted, share.bytes.min(max_bytes));
            let is_enough = bytes >= min_bytes || (share.is_short && bytes > 0);
            if is_due || has_error || is_enough {
                add(&node.counters.bytes_fetched, bytes as u64);
                return (response, share.keep(bytes));
            }
        }
        tokio::select! {
            () = waiter.notified() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = ctx.gone.cancelled() => {}
            () = node.stopping.cancelled() => ctx.gone.cancel(),
        }
    }
}

/// A share of the memory for fetched records, taken before they are read.
struct Share {
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
    /// Less than was wished for.
    is_short: bool,
}

impl Share {
    /// Takes `bytes`, or what is left. With less than a batch left it takes
    /// nothing: then one batch is read uncounted, so that slow readers cannot
    /// stop the others.
    fn take(node: &Node, bytes: usize) -> Share {
        let units = &node.fetch_units;
        let wished = bytes.div_ceil(UNIT_BYTES);
        let count = wished.min(units.available_permits());
        let is_short = count < wished;
        let holds_a_batch = !is_short || count * UNIT_BYTES >= node.config.max_message_bytes;
        let permit = match u32::try_from(count) {
            Ok(count) if holds_a_batch => Arc::clone(units).try_acquire_many_owned(count).ok(),
            _ => None,
        };
        Share {
            bytes: permit.as_ref().map_or(0, |_| count * UNIT_BYTES),
            is_short: is_short || permit.is_none(),
            permit,
        }
    }

    /// Gives back all but what `bytes` need.
    fn keep(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let mut permit = self.permit?;
        let needed = bytes.div_ceil(UNIT_BYTES);
        drop(permit.split(permit.num_permits().saturating_sub(needed)));
        Some(permit)
    }
}

/// The most that reading could give.
fn most_to_read(wanted: &[(&FetchTopic, Vec<Wanted<'_>>)], max_bytes: usize) -> usize {
    let each = logs(wanted).filter_map(|(partition, log)| {
        let log = log.as_ref()?;
        let allowed = usize::try_from(partition.partition_max_bytes).unwrap_or(0);
        let has_new = partition.fetch_offset != log.high_watermark();
        let held = usize::try_from(log.size_bytes()).unwrap_or(usize::MAX);
        // A batch is given whole even when it is larger than was allowed.
        has_new.then(|| allowed.max(log.settings().max_message_bytes).min(held))
    });
    each.fold(0, usize::saturating_add).min(max_bytes)
}

fn find_partitions<'a>(
    node: &Node,
    topic: &'a FetchTopic,
    asked: &mut Asked<'a>,
) -> Vec<Wanted<'a>> {
    topic
        .partitions
        .iter()
        .filter(|partition| asked.is_new(&topic.topic, partition.partition))
        .map(|partition| {
            let log = node.topics.partition(&topic.topic, partition.partition);
            (partition, log)
        })
        .collect()
}

fn logs<'a>(wanted: &'a [(&FetchTopic, Vec<Wanted<'a>>)]) -> impl Iterator<Item = &'a Wanted<'a>> {
    wanted.iter().flat_map(|(_, partitions)| partitions)
}

fn watch_all(wanted: &[(&FetchTopic, Vec<Wanted<'_>>)], waiter: &Arc<Notify>) -> Vec<Watch> {
    logs(wanted)
        .filter_map(|(_, log)| log.as_ref().map(|log| log.watch(waiter)))
        .collect()
}

/// Whether reading could give anything but "nothing new", at no cost.
fn may_have_data(wanted: &[(&FetchTopic, Vec<Wanted<'_>>)]) -> bool {
    logs(wanted).any(|(partition, log)| match log {
        Some(log) => partition.fetch_offset != log.high_watermark(),
        None => true,
    })
}

/// Reads what is there, up to `max_bytes` over all partitions, but always at
/// least one batch.
fn read_all(
    wanted: &[(&FetchTopic, Vec<Wanted<'_>>)],
    max_bytes: usize,
) -> (FetchResponse, usize, bool) {
    let mut total = 0;
    let mut has_error = false;
    let mut topics = Vec::with_capacity(wanted.len());
    for (topic, partitions) in wanted {
        let mut answers = Vec::with_capacity(partitions.len());
        for (partition, log) in partitions {
            let answer = match log {
                Some(log) => read_one(partition, log, max_bytes.saturating_sub(total), total == 0),
                None => failed(partition, E::UnknownTopicOrPartition),
            };
            has_error |= answer.error_code != 0;
            total += answer.records.as_ref().map_or(0, Bytes::len);
            answers.push(answer);
        }
        let response = FetchableTopicResponse::default()
            .with_topic(topic.topic.clone())
            .with_partitions(answers);
        topics.push(response);
    }
    (
        FetchResponse::default().with_responses(topics),
        total,
        has_error,
    )
}

fn read_one(
    partition: &FetchPartition,
    log: &Partition,
    budget: usize,
    is_first: bool,
) -> PartitionData {
    if partition.current_leader_epoch > LEADER_EPOCH {
        return failed(partition, E::UnknownLeaderEpoch);
    }
    let high_watermark = log.high_watermark();
    let has_new = partition.fetch_offset != high_watermark;
    let max_bytes = usize::try_from(partition.partition_max_bytes).unwrap_or(0);
    let records = match has_new && (budget > 0 || is_first) {
        true => disk(|| log.read(partition.fetch_offset, max_bytes.min(budget))),
        false => Ok(Bytes::new()),
    };
    match records {
        // A batch larger than the rest of the budget waits for the next request.
        Ok(records) if !is_first && records.len() > budget => found(partition, log, Bytes::new()),
        Ok(records) => found(partition, log, records),
        Err(ReadError::OutOfRange) => failed(partition, E::OffsetOutOfRange)
            .with_high_watermark(high_watermark)
            .with_last_stable_offset(high_watermark)
            .with_log_start_offset(log.log_start()),
        Err(error @ ReadError::Damaged { .. }) => {
            error!(topic_partition = partition.partition, offset = partition.fetch_offset, %error,
                "a log is damaged: what stands there is not served; restore it, or delete the records up to behind it");
            failed(partition, E::CorruptMessage)
        }
        Err(ReadError::Io(error)) => {
            warn!(%error, "reading a log failed");
            failed(partition, E::KafkaStorageError)
        }
    }
}

fn found(partition: &FetchPartition, log: &Partition, records: Bytes) -> PartitionData {
    let high_watermark = log.high_watermark();
    PartitionData::default()
        .with_partition_index(partition.partition)
        .with_high_watermark(high_watermark)
        .with_last_stable_offset(high_watermark)
        .with_log_start_offset(log.log_start())
        .with_aborted_transactions(None)
        .with_records(Some(records))
}

fn failed(partition: &FetchPartition, error: E) -> PartitionData {
    PartitionData::default()
        .with_partition_index(partition.partition)
        .with_error_code(error.code())
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_aborted_transactions(None)
        .with_records(Some(Bytes::new()))
}
