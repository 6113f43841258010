//! Who the broker is and what topics it has: Metadata and FindCoordinator.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse,
    TopicName,
};

use super::{Context, disk, distinct, text};
use crate::error::BrokerError;
use crate::log::LEADER_EPOCH;
use crate::node::NODE_ID;
use crate::topics::Topic;

/// "Not asked for", as the protocol says it.
const NO_OPERATIONS: i32 = i32::MIN;
const KEY_GROUP: i8 = 0;

pub fn metadata(ctx: &Context, request: &MetadataRequest) -> MetadataResponse {
    let node = &ctx.node;
    let asks_for_all = match &request.topics {
        None => true,
        Some(topics) => ctx.version == 0 && topics.is_empty(),
    };
    let topics = match (&request.topics, asks_for_all) {
        (Some(topics), false) => distinct(topics, |topic| (topic.name.as_deref(), topic.topic_id))
            .into_iter()
            .map(|topic| describe(ctx, topic, request.allow_auto_topic_creation))
            .collect(),
        _ => node.topics.all().iter().map(|topic| found(topic)).collect(),
    };
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(NODE_ID))
        .with_host(text(node.host.clone()))
        .with_port(i32::from(node.port));
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(text(node.cluster_id.clone())))
        .with_controller_id(BrokerId(NODE_ID))
        .with_cluster_authorized_operations(NO_OPERATIONS)
        .with_topics(topics)
}

fn describe(
    ctx: &Context,
    asked: &MetadataRequestTopic,
    client_allows_creation: bool,
) -> MetadataResponseTopic {
    let topics = &ctx.node.topics;
    let Some(name) = &asked.name else {
        return match topics.get_by_id(asked.topic_id) {
            Some(topic) => found(&topic),
            None => MetadataResponseTopic::default()
                .with_topic_id(asked.topic_id)
                .with_name(None)
                .with_topic_authorized_operations(NO_OPERATIONS)
                .with_error_code(E::UnknownTopicId.code()),
        };
    };
    if let Some(topic) = topics.get(name) {
        return found(&topic);
    }
    let creates = ctx.node.config.auto_create_topics && client_allows_creation;
    match creates {
        true => match create(ctx, name) {
            Ok(topic) => found(&topic),
            Err(BrokerError::InvalidTopicName { .. }) => missing(name, E::InvalidTopicException),
            Err(_) => missing(name, E::UnknownTopicOrPartition),
        },
        false => missing(name, E::UnknownTopicOrPartition),
    }
}

fn create(ctx: &Context, name: &str) -> Result<Arc<Topic>, BrokerError> {
    let topics = &ctx.node.topics;
    let partitions = ctx.node.config.num_partitions;
    disk(|| topics.create(name, partitions, BTreeMap::new()))
        .or_else(|error| topics.get(name).ok_or(error))
}

fn missing(name: &TopicName, error: E) -> MetadataResponseTopic {
    MetadataResponseTopic::default()
        .with_name(Some(name.clone()))
        .with_topic_authorized_operations(NO_OPERATIONS)
        .with_error_code(error.code())
}

fn found(topic: &Topic) -> MetadataResponseTopic {
    let here = vec![BrokerId(NODE_ID)];
    let partitions = (0..topic.partitions.len()).map(|index| {
        MetadataResponsePartition::default()
            .with_partition_index(index as i32)
            .with_leader_id(BrokerId(NODE_ID))
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(here.clone())
            .with_isr_nodes(here.clone())
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(topic.name.clone()))))
        .with_topic_id(topic.id)
        .with_topic_authorized_operations(NO_OPERATIONS)
        .with_partitions(partitions.collect())
}

/// Every group is coordinated here; transactions are nowhere.
pub fn find_coordinator(
    ctx: &Context,
    request: &FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let node = &ctx.node;
    let refusal = "transactions are not supported by this broker";
    let supported = request.key_type == KEY_GROUP;
    let error = match supported {
        true => 0,
        false => E::TransactionalIdAuthorizationFailed.code(),
    };
    let message = (!supported).then(|| text(refusal));
    let keys = distinct(&request.coordinator_keys, |key| key.as_str());
    let coordinators = keys.into_iter().map(|key| {
        Coordinator::default()
            .with_key(key.clone())
            .with_node_id(BrokerId(NODE_ID))
            .with_host(text(node.host.clone()))
            .with_port(i32::from(node.port))
            .with_error_code(error)
            .with_error_message(message.clone())
    });
    let response = FindCoordinatorResponse::default();
    if ctx.version >= 4 {
        return response.with_coordinators(coordinators.collect());
    }
    response
        .with_node_id(BrokerId(NODE_ID))
        .with_host(text(node.host.clone()))
        .with_port(i32::from(node.port))
        .with_error_code(error)
        .with_error_message(message)
}
