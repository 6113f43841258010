//! Committed offsets on the wire: OffsetCommit and OffsetFetch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName,
};
use tracing::warn;

use super::{Context, disk, distinct, text};
use crate::config::Fsync;
use crate::group::offsets::Committed;
use crate::log::now_ms;

pub async fn offset_commit(ctx: &Context, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let groups = &ctx.node.groups;
    let generation = request.generation_id_or_member_epoch;
    if generation >= 0 && groups.get(&request.group_id).is_none() {
        return commit_response(&request, |_, _| E::IllegalGeneration.code());
    }
    let group = match groups.get_or_create(&request.group_id) {
        Ok(group) => group,
        Err(error) => return commit_response(&request, |_, _| error.code()),
    };
    // Held over the write: see the coordinator.
    let mut group = group.lock().await;
    let allowed = group.check_commit(
        &request.member_id,
        request.group_instance_id.as_deref(),
        generation,
        Instant::now(),
    );
    if let Err(error) = allowed {
        return commit_response(&request, |_, _| error.code());
    }
    store_offsets(ctx, &request)
}

fn store_offsets(ctx: &Context, request: &OffsetCommitRequest) -> OffsetCommitResponse {
    let node = &ctx.node;
    let longest = node.config.offset_metadata_max_bytes;
    let check = |topic: &str, partition: i32, metadata_len: usize| {
        if node.topics.partition(topic, partition).is_none() {
            E::UnknownTopicOrPartition.code()
        } else if metadata_len > longest {
            E::OffsetMetadataTooLarge.code()
        } else {
            0
        }
    };
    let committed_ms = now_ms();
    let mut accepted = Vec::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
            if check(&topic.name, partition.partition_index, metadata.len()) == 0 {
                let committed = Committed {
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: metadata.to_owned(),
                    committed_ms,
                };
                accepted.push((topic.name.to_string(), partition.partition_index, committed));
            }
        }
    }
    let sync = node.config.fsync == Fsync::Always;
    let stored = match accepted.is_empty() {
        true => Ok(()),
        false => disk(|| {
            node.groups
                .offsets
                .commit(&request.group_id, accepted, sync)
        }),
    };
    if let Err(error) = stored {
        warn!(%error, "storing committed offsets failed");
        return commit_response(request, |_, _| E::CoordinatorNotAvailable.code());
    }
    commit_response(request, |topic, partition| {
        let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
        check(topic, partition.partition_index, metadata.len())
    })
}

type CommitPartition =
    kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;

fn commit_response(
    request: &OffsetCommitRequest,
    code: impl Fn(&str, &CommitPartition) -> i16,
) -> OffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(&topic.name, partition))
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

/// One partition's answer in the shape of all versions.
struct Fetched {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
}

/// The partitions asked for, each once, by topic.
type Wanted = BTreeMap<String, BTreeSet<i32>>;

fn wanted(named: impl Iterator<Item = (TopicName, Vec<i32>)>) -> Wanted {
    let mut wanted = Wanted::new();
    for (topic, partitions) in named {
        let partitions_wanted = wanted.entry(topic.to_string()).or_default();
        partitions_wanted.extend(partitions);
    }
    wanted
}

/// A group's offsets by topic: those asked for, or all it has.
fn fetch_offsets(
    ctx: &Context,
    group: &str,
    topics: Option<Wanted>,
) -> Vec<(TopicName, Vec<Fetched>)> {
    let store = &ctx.node.groups.offsets;
    if let Some(topics) = topics {
        let fetched = topics.into_iter().map(|(topic, partitions)| {
            let offsets = partitions
                .into_iter()
                .map(|partition| fetched(partition, store.get(group, &topic, partition)));
            let offsets = offsets.collect();
            (TopicName(text(topic)), offsets)
        });
        return fetched.collect();
    }
    let mut all: Vec<(TopicName, Vec<Fetched>)> = Vec::new();
    for ((topic, partition), committed) in store.all(group) {
        let fetched = fetched(partition, Some(committed));
        match all.last_mut() {
            Some((name, offsets)) if **name == *topic => offsets.push(fetched),
            _ => all.push((TopicName(text(topic)), vec![fetched])),
        }
    }
    all
}

fn fetched(partition: i32, committed: Option<Committed>) -> Fetched {
    match committed {
        Some(committed) => Fetched {
            partition,
            offset: committed.offset,
            leader_epoch: committed.leader_epoch,
            metadata: committed.metadata,
        },
        None => Fetched {
            partition,
            offset: -1,
            leader_epoch: -1,
            metadata: String::new(),
        },
    }
}

pub fn offset_fetch(ctx: &Context, request: OffsetFetchRequest) -> OffsetFetchResponse {
    if ctx.version >= 8 {
        let groups = distinct(request.groups, |group| group.group_id.clone());
        let groups = groups.into_iter().map(|group| {
            let topics = group.topics.map(|topics| {
                let named = topics.into_iter();
                wanted(named.map(|topic| (topic.name, topic.partition_indexes)))
            });
            let fetched = fetch_offsets(ctx, &group.group_id, topics);
            OffsetFetchResponseGroup::default()
                .with_group_id(group.group_id)
                .with_topics(fetched.into_iter().map(fetched_topic_8).collect())
        });
        return OffsetFetchResponse::default().with_groups(groups.collect());
    }
    let topics = request.topics.map(|topics| {
        let named = topics.into_iter();
        wanted(named.map(|topic| (topic.name, topic.partition_indexes)))
    });
    let fetched = fetch_offsets(ctx, &request.group_id, topics);
    OffsetFetchResponse::default().with_topics(fetched.into_iter().map(fetched_topic).collect())
}

fn fetched_topic((name, offsets): (TopicName, Vec<Fetched>)) -> OffsetFetchResponseTopic {
    let partitions = offsets.into_iter().map(|fetched| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(fetched.partition)
            .with_committed_offset(fetched.offset)
            .with_committed_leader_epoch(fetched.leader_epoch)
            .with_metadata(Some(text(fetched.metadata)))
    });
    OffsetFetchResponseTopic::default()
        .with_name(name)
        .with_partitions(partitions.collect())
}

fn fetched_topic_8((name, offsets): (TopicName, Vec<Fetched>)) -> OffsetFetchResponseTopics {
    let partitions = offsets.into_iter().map(|fetched| {
        OffsetFetchResponsePartitions::default()
            .with_partition_index(fetched.partition)
            .with_committed_offset(fetched.offset)
            .with_committed_leader_epoch(fetched.leader_epoch)
            .with_metadata(Some(text(fetched.metadata)))
    });
    OffsetFetchResponseTopics::default()
        .with_name(name)
        .with_partitions(partitions.collect())
}
