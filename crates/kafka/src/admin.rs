//! Topics: created when missing, checked when there.

use std::sync::Arc;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    config::FromClientConfigAndContext,
    types::RDKafkaErrorCode,
};

use crate::{KafkaConfig, KafkaError, context::Context};

/// A topic as the pipeline needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: i32,
    /// Copies of each partition.
    pub replication: i32,
    /// Topic settings by Kafka's names, used at creation only.
    pub config: Vec<(String, String)>,
}

/// Creates the topics that are missing and checks the partition counts of the others.
///
/// # Errors
/// [`KafkaError::PartitionMismatch`] names both counts; [`KafkaError::Unreachable`] asks for a
/// retry; anything else is Kafka's own refusal.
pub async fn ensure_topics(kafka: &KafkaConfig, topics: &[TopicSpec]) -> Result<(), KafkaError> {
    let admin = Arc::new(client(kafka)?);
    for spec in topics {
        match found(kafka, &admin, &spec.name).await? {
            Some(found) if found == spec.partitions => {}
            Some(found) => return Err(mismatch(spec, found)),
            None => create(kafka, &admin, spec).await?,
        }
    }
    Ok(())
}

/// How many partitions a topic has; `None` when there is no such topic.
///
/// # Errors
/// [`KafkaError::Unreachable`] when no broker answers.
pub async fn partition_count(kafka: &KafkaConfig, topic: &str) -> Result<Option<i32>, KafkaError> {
    let (kafka, topic) = (kafka.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || partitions_of(&kafka, &client(&kafka)?, &topic))
        .await
        .map_err(|_| KafkaError::Closed)?
}

/// The client waits for its answer on a thread of its own, not on one that runs others.
async fn found(
    kafka: &KafkaConfig,
    admin: &Arc<AdminClient<Context>>,
    topic: &str,
) -> Result<Option<i32>, KafkaError> {
    let (kafka, admin, topic) = (kafka.clone(), Arc::clone(admin), topic.to_owned());
    tokio::task::spawn_blocking(move || partitions_of(&kafka, &admin, &topic))
        .await
        .map_err(|_| KafkaError::Closed)?
}

fn client(kafka: &KafkaConfig) -> Result<AdminClient<Context>, KafkaError> {
    let config = kafka.finish(kafka.client(None)?)?;
    Ok(AdminClient::from_config_and_context(
        &config,
        Context::default(),
    )?)
}

fn partitions_of(
    kafka: &KafkaConfig,
    admin: &AdminClient<Context>,
    topic: &str,
) -> Result<Option<i32>, KafkaError> {
    // All topics are asked for: naming one would create it where the broker does so by itself.
    let metadata = admin
        .inner()
        .fetch_metadata(None, kafka.request_timeout())
        .map_err(|source| KafkaError::Unreachable {
            brokers: kafka.brokers.clone(),
            source,
        })?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    Ok(found
        .map(|found| found.partitions().len() as i32)
        .filter(|count| *count > 0))
}

fn mismatch(spec: &TopicSpec, found: i32) -> KafkaError {
    KafkaError::PartitionMismatch {
        topic: spec.name.clone(),
        found,
        expected: spec.partitions,
    }
}

async fn create(
    kafka: &KafkaConfig,
    admin: &Arc<AdminClient<Context>>,
    spec: &TopicSpec,
) -> Result<(), KafkaError> {
    let mut topic = NewTopic::new(
        &spec.name,
        spec.partitions,
        TopicReplication::Fixed(spec.replication),
    );
    for (name, value) in &spec.config {
        topic = topic.set(name, value);
    }
    // The one bounds how long the broker works on it, the other how long a broker is waited for that does not answer.
    let options = AdminOptions::new()
        .operation_timeout(Some(kafka.request_timeout()))
        .request_timeout(Some(kafka.request_timeout()));
    for result in admin.create_topics([&topic], &options).await? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(KafkaError::CreateTopic { topic, code }),
        }
    }
    // Another instance may have created it at the same moment, with another count.
    match found(kafka, admin, &spec.name).await? {
        Some(found) if found != spec.partitions => Err(mismatch(spec, found)),
        _ => Ok(()),
    }
}
