//! DescribeConfigs: the settings that apply to a topic or to the broker.

use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use super::{Context, distinct, text};
use crate::node::NODE_ID;
use crate::topics::Topic;

const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;

pub const SOURCE_TOPIC: i8 = 1;
const SOURCE_BROKER_FILE: i8 = 4;

const TYPE_STRING: i8 = 2;
const TYPE_LONG: i8 = 5;

/// A setting's name, value, protocol type and where it was set.
type Setting = (&'static str, String, i8, i8);

pub fn describe_configs(
    ctx: &Context,
    request: &DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let resources = distinct(&request.resources, |resource| {
        (resource.resource_type, resource.resource_name.as_str())
    });
    let results = resources
        .into_iter()
        .map(|resource| describe(ctx, resource));
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe(ctx: &Context, resource: &DescribeConfigsResource) -> DescribeConfigsResult {
    let result = DescribeConfigsResult::default()
        .with_resource_type(resource.resource_type)
        .with_resource_name(resource.resource_name.clone());
    let settings = match resource.resource_type {
        RESOURCE_TOPIC => match ctx.node.topics.get(&resource.resource_name) {
            Some(topic) => of_topic(&topic),
            None => return result.with_error_code(E::UnknownTopicOrPartition.code()),
        },
        RESOURCE_BROKER if *resource.resource_name == *NODE_ID.to_string() => of_broker(ctx),
        _ => return result.with_error_code(E::InvalidRequest.code()),
    };
    let wanted = settings.into_iter().filter(|(name, ..)| {
        let keys = resource.configuration_keys.as_ref();
        keys.is_none_or(|keys| keys.iter().any(|key| **key == **name))
    });
    result.with_configs(wanted.map(described).collect())
}

fn described((name, value, kind, source): Setting) -> DescribeConfigsResourceResult {
    DescribeConfigsResourceResult::default()
        .with_name(text(name))
        .with_value(Some(text(value)))
        .with_read_only(true)
        .with_config_source(source)
        .with_config_type(kind)
}

fn of_topic(topic: &Topic) -> Vec<Setting> {
    let Some(log) = topic.partitions.first() else {
        return Vec::new();
    };
    let settings = log.settings();
    let source = |name: &str| match topic.configs.contains_key(name) {
        true => SOURCE_TOPIC,
        false => SOURCE_BROKER_FILE,
    };
    let number = |name, value: String| (name, value, TYPE_LONG, source(name));
    let word = |name, value: &str| (name, value.to_owned(), TYPE_STRING, source(name));
    vec![
        number("retention.ms", settings.retention_ms.to_string()),
        number("retention.bytes", settings.retention_bytes.to_string()),
        number("segment.bytes", settings.segment_bytes.to_string()),
        number("max.message.bytes", settings.max_message_bytes.to_string()),
        number("min.insync.replicas", "1".to_owned()),
        word("cleanup.policy", "delete"),
        word("compression.type", "producer"),
        word("message.timestamp.type", "CreateTime"),
    ]
}

fn of_broker(ctx: &Context) -> Vec<Setting> {
    let config = &ctx.node.config;
    let number = |name, value: String| (name, value, TYPE_LONG, SOURCE_BROKER_FILE);
    vec![
        number("log.retention.ms", config.retention_ms.to_string()),
        number("log.retention.bytes", config.retention_bytes.to_string()),
        number("log.segment.bytes", config.segment_bytes.to_string()),
        number("message.max.bytes", config.max_message_bytes.to_string()),
        number("num.partitions", config.num_partitions.to_string()),
    ]
}
