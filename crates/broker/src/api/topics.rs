//! CreateTopics and DeleteTopics.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
};
use tracing::warn;
use uuid::Uuid;

use super::configs::SOURCE_TOPIC;
use super::{Context, disk, distinct, text};
use crate::error::BrokerError;
use crate::node::NODE_ID;

pub fn create_topics(ctx: &Context, request: &CreateTopicsRequest) -> CreateTopicsResponse {
    let validate_only = request.validate_only;
    let topics = request
        .topics
        .iter()
        .map(|topic| disk(|| create_one(ctx, topic, validate_only)));
    CreateTopicsResponse::default().with_topics(topics.collect())
}

fn create_one(ctx: &Context, topic: &CreatableTopic, validate_only: bool) -> CreatableTopicResult {
    let result = CreatableTopicResult::default()
        .with_name(topic.name.clone())
        .with_num_partitions(-1)
        .with_replication_factor(-1);
    match try_create(ctx, topic, validate_only) {
        Ok((id, partitions, configs)) => result
            .with_topic_id(id)
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(Some(configs)),
        Err((error, message)) => result
            .with_error_code(error.code())
            .with_error_message(Some(text(message))),
    }
}

type Created = (Uuid, i32, Vec<CreatableTopicConfigs>);

fn try_create(
    ctx: &Context,
    topic: &CreatableTopic,
    validate_only: bool,
) -> Result<Created, (E, String)> {
    let partitions = partition_count(topic, ctx.node.config.num_partitions)?;
    if !matches!(topic.replication_factor, -1 | 1) {
        let message = "this broker is a single node: the replication factor must be 1";
        return Err((E::InvalidReplicationFactor, message.to_owned()));
    }
    let configs: BTreeMap<String, String> = topic
        .configs
        .iter()
        .filter_map(|config| {
            let value = config.value.as_ref()?;
            Some((config.name.to_string(), value.to_string()))
        })
        .collect();
    let described = configs.iter().map(|(name, value)| {
        CreatableTopicConfigs::default()
            .with_name(text(name))
            .with_value(Some(text(value)))
            .with_config_source(SOURCE_TOPIC)
    });
    let described = described.collect();
    let topics = &ctx.node.topics;
    let id = match validate_only {
        true => topics
            .check_new(&topic.name, partitions, &configs)
            .map(|()| Uuid::nil()),
        false => topics
            .create(&topic.name, partitions, configs)
            .map(|topic| topic.id),
    };
    let id = id.map_err(|error| (code_of(&error), error.to_string()))?;
    Ok((id, partitions, described))
}

/// The count asked for, given directly or by an assignment to this one node.
fn partition_count(topic: &CreatableTopic, default: i32) -> Result<i32, (E, String)> {
    if topic.assignments.is_empty() {
        return Ok(match topic.num_partitions {
            -1 => default,
            count => count,
        });
    }
    let all_here = topic
        .assignments
        .iter()
        .all(|partition| partition.broker_ids.iter().all(|id| id.0 == NODE_ID));
    match all_here {
        true => Ok(i32::try_from(topic.assignments.len()).unwrap_or(i32::MAX)),
        false => Err((
            E::InvalidReplicaAssignment,
            format!("the only node is {NODE_ID}"),
        )),
    }
}

fn code_of(error: &BrokerError) -> E {
    match error {
        BrokerError::InvalidTopicName { .. } => E::InvalidTopicException,
        BrokerError::InvalidPartitions { .. } => E::InvalidPartitions,
        BrokerError::InvalidTopicConfig { .. } => E::InvalidConfig,
        BrokerError::TopicExists { .. } => E::TopicAlreadyExists,
        BrokerError::UnknownTopic { .. } => E::UnknownTopicOrPartition,
        _ => E::KafkaStorageError,
    }
}

pub fn delete_topics(ctx: &Context, request: &DeleteTopicsRequest) -> DeleteTopicsResponse {
    let by_name = request
        .topic_names
        .iter()
        .map(|name| (Some(name.clone()), Uuid::nil()));
    let by_either = request
        .topics
        .iter()
        .map(|topic| (topic.name.clone(), topic.topic_id));
    let responses = distinct(by_name.chain(by_either), Clone::clone)
        .into_iter()
        .map(|(name, id)| disk(|| delete_one(ctx, name, id)));
    DeleteTopicsResponse::default().with_responses(responses.collect())
}

fn delete_one(ctx: &Context, name: Option<TopicName>, id: Uuid) -> DeletableTopicResult {
    let result = DeletableTopicResult::default()
        .with_name(name.clone())
        .with_topic_id(id);
    let found = match &name {
        Some(name) => Some(name.to_string()),
        None => ctx
            .node
            .topics
            .get_by_id(id)
            .map(|topic| topic.name.clone()),
    };
    let Some(name) = found else {
        return result.with_error_code(E::UnknownTopicId.code());
    };
    match ctx.node.topics.delete(&name) {
        Ok(topic) => {
            if let Err(error) = ctx.node.groups.offsets.remove_topic(&name) {
                warn!(%error, topic = name, "removing a deleted topic's offsets failed");
            }
            result
                .with_name(Some(TopicName(text(name))))
                .with_topic_id(topic.id)
        }
        Err(error) => result
            .with_error_code(code_of(&error).code())
            .with_error_message(Some(text(error.to_string()))),
    }
}
