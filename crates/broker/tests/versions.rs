//! Every announced version of every request is answered. Clients differ in which version they take, and an answer that
//! cannot be encoded in it closes their connection.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Request, StrBytes};
use support::*;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic() -> TopicName {
    TopicName(text("t"))
}

fn group() -> GroupId {
    GroupId(text("g"))
}

/// Asks in each version that is announced.
struct Asker {
    client: Raw,
    announced: BTreeMap<i16, (i16, i16)>,
    asked: BTreeSet<i16>,
}

impl Asker {
    fn versions<R: Request>(&mut self) -> std::ops::RangeInclusive<i16> {
        self.asked.insert(R::KEY);
        let (min, max) = self.announced[&R::KEY];
        // Produce is announced from versions on that nobody can send any more.
        min.max(R::VERSIONS.min)..=max
    }

    async fn in_version<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let version = version.clamp(*self.versions::<R>().start(), *self.versions::<R>().end());
        let answered = self.client.try_call(version, request).await;
        answered.unwrap_or_else(|error| panic!("request {} in {version}: {error}", R::KEY))
    }

    async fn each<R: Request>(
        &mut self,
        request: impl Fn(i16) -> R,
        is_good: impl Fn(&R::Response) -> bool,
    ) {
        for version in self.versions::<R>() {
            let answer = self.in_version(version, &request(version)).await;
            assert!(is_good(&answer), "request {} in {version}", R::KEY);
        }
    }
}

#[tokio::test]
async fn every_announced_version_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("t", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    blocking(move || fill(&bootstrap, "t", Some(0), 1, b"value")).await;
    let mut client = Raw::connect(&broker).await;
    let answer = client.call(0, &ApiVersionsRequest::default()).await;
    let versions = answer.api_keys.iter();
    let mut asker = Asker {
        client,
        announced: versions
            .map(|api| (api.api_key, (api.min_version, api.max_version)))
            .collect(),
        asked: BTreeSet::new(),
    };
    records_are_written_and_read(&mut asker).await;
    offsets_are_looked_up(&mut asker).await;
    offsets_are_committed(&mut asker).await;
    groups_live_and_die(&mut asker).await;
    topics_come_and_go(&mut asker).await;
    let announced: BTreeSet<i16> = asker.announced.keys().copied().collect();
    assert_eq!(asker.asked, announced);
    stop(broker).await;
}

fn fetch_request() -> FetchRequest {
    let partition = FetchPartition::default().with_partition_max_bytes(1_000);
    let wanted = FetchTopic::default()
        .with_topic(topic())
        .with_partitions(vec![partition]);
    FetchRequest::default()
        .with_max_bytes(1_000)
        .with_topics(vec![wanted])
}

async fn records_are_written_and_read(asker: &mut Asker) {
    let batch = |answer: &FetchResponse| answer.responses[0].partitions[0].records.clone();
    let answer = asker.in_version(12, &fetch_request()).await;
    let records: Bytes = batch(&answer).unwrap();
    asker
        .each(
            |_| fetch_request(),
            |answer| batch(answer).as_ref() == Some(&records),
        )
        .await;
    // The broker knows the batch again, and answers as if it stored it.
    let produced = |_| {
        let data = PartitionProduceData::default().with_records(Some(records.clone()));
        let data = TopicProduceData::default()
            .with_name(topic())
            .with_partition_data(vec![data]);
        ProduceRequest::default()
            .with_acks(-1)
            .with_topic_data(vec![data])
    };
    let stored = |answer: &ProduceResponse| {
        let partition = &answer.responses[0].partition_responses[0];
        (partition.error_code, partition.base_offset) == (0, 0)
    };
    asker.each(produced, stored).await;
    let init = |_| InitProducerIdRequest::default().with_transactional_id(None);
    asker.each(init, |answer| answer.error_code == 0).await;
}

async fn offsets_are_looked_up(asker: &mut Asker) {
    // The end, the start, and a time before all records.
    for timestamp in [-1, -2, 1] {
        let listed = |_| {
            let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
            let wanted = ListOffsetsTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition]);
            ListOffsetsRequest::default().with_topics(vec![wanted])
        };
        let expected = i64::from(timestamp == -1);
        let found = |answer: &ListOffsetsResponse| {
            let partition = &answer.topics[0].partitions[0];
            (partition.error_code, partition.offset) == (0, expected)
        };
        asker.each(listed, found).await;
    }
    let epoch = |_| {
        let wanted = OffsetForLeaderTopic::default()
            .with_topic(topic())
            .with_partitions(vec![OffsetForLeaderPartition::default()]);
        OffsetForLeaderEpochRequest::default().with_topics(vec![wanted])
    };
    let ended = |answer: &OffsetForLeaderEpochResponse| answer.topics[0].partitions[0].end_offset;
    asker.each(epoch, |answer| ended(answer) == 1).await;
    let deleted = |_| {
        let wanted = DeleteRecordsTopic::default()
            .with_name(topic())
            .with_partitions(vec![DeleteRecordsPartition::default()]);
        DeleteRecordsRequest::default().with_topics(vec![wanted])
    };
    let code = |answer: &DeleteRecordsResponse| answer.topics[0].partitions[0].error_code;
    asker.each(deleted, |answer| code(answer) == 0).await;
}

async fn offsets_are_committed(asker: &mut Asker) {
    let commit = |_| {
        let partition = OffsetCommitRequestPartition::default()
            .with_committed_offset(7)
            .with_committed_metadata(Some(text("meta")));
        let committed = OffsetCommitRequestTopic::default()
            .with_name(topic())
            .with_partitions(vec![partition]);
        OffsetCommitRequest::default()
            .with_group_id(group())
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![committed])
    };
    let code = |answer: &OffsetCommitResponse| answer.topics[0].partitions[0].error_code;
    asker.each(commit, |answer| code(answer) == 0).await;
    let committed = |version| match version {
        ..8 => OffsetFetchRequest::default()
            .with_group_id(group())
            .with_topics(all_or_one(version)),
        _ => {
            let wanted = OffsetFetchRequestGroup::default().with_group_id(group());
            OffsetFetchRequest::default().with_groups(vec![wanted.with_topics(None)])
        }
    };
    let found = |answer: &OffsetFetchResponse| match answer.groups.first() {
        Some(group) => group.topics[0].partitions[0].committed_offset == 7,
        None => answer.topics[0].partitions[0].committed_offset == 7,
    };
    asker.each(committed, found).await;
}

/// The first versions cannot ask for all that a group has.
fn all_or_one(version: i16) -> Option<Vec<offset_fetch_request::OffsetFetchRequestTopic>> {
    let one = offset_fetch_request::OffsetFetchRequestTopic::default()
        .with_name(topic())
        .with_partition_indexes(vec![0]);
    (version < 2).then(|| vec![one])
}

async fn groups_live_and_die(asker: &mut Asker) {
    let coordinator = |version| match version {
        ..4 => FindCoordinatorRequest::default().with_key(text("g")),
        _ => FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g")]),
    };
    let found = |answer: &FindCoordinatorResponse| match answer.coordinators.first() {
        Some(coordinator) => coordinator.error_code == 0,
        None => answer.error_code == 0,
    };
    asker.each(coordinator, found).await;
    // It has the most versions of those that a member sends.
    for version in asker.versions::<JoinGroupRequest>() {
        a_member_comes_and_goes(asker, version).await;
    }
    let described = |_| DescribeGroupsRequest::default().with_groups(vec![group()]);
    let is_empty = |answer: &DescribeGroupsResponse| *answer.groups[0].group_state == *"Empty";
    asker.each(described, is_empty).await;
    let listed = |answer: &ListGroupsResponse| answer.groups[0].group_id == group();
    asker.each(|_| ListGroupsRequest::default(), listed).await;
    let newer = |_| ConsumerGroupHeartbeatRequest::default().with_group_id(group());
    let refused = |answer: &ConsumerGroupHeartbeatResponse| answer.error_code == 35;
    asker.each(newer, refused).await;
    let deleted = |_| DeleteGroupsRequest::default().with_groups_names(vec![group()]);
    // Only the first finds it.
    let known = |answer: &DeleteGroupsResponse| matches!(answer.results[0].error_code, 0 | 69);
    asker.each(deleted, known).await;
}

async fn a_member_comes_and_goes(asker: &mut Asker, version: i16) {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let mut join = JoinGroupRequest::default()
        .with_group_id(group())
        .with_session_timeout_ms(30_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    if version >= 1 {
        join.rebalance_timeout_ms = 30_000;
    }
    let mut joined = asker.in_version(version, &join).await;
    // Newer members are told their id first.
    if version >= 4 {
        join.member_id = joined.member_id;
        joined = asker.in_version(version, &join).await;
    }
    assert_eq!(joined.error_code, 0, "join in {version}");
    let member = joined.member_id;
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(member.clone())
        .with_assignment(Bytes::from_static(b"mine"));
    let sync = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(joined.generation_id)
        .with_member_id(member.clone())
        .with_assignments(vec![assignment]);
    let synced = asker.in_version(version, &sync).await;
    assert_eq!(synced.assignment, "mine", "sync in {version}");
    let heartbeat = HeartbeatRequest::default()
        .with_group_id(group())
        .with_generation_id(joined.generation_id)
        .with_member_id(member.clone());
    let beat = asker.in_version(version, &heartbeat).await;
    assert_eq!(beat.error_code, 0, "heartbeat in {version}");
    let leave = LeaveGroupRequest::default().with_group_id(group());
    let leave = match version {
        ..3 => leave.with_member_id(member),
        _ => leave.with_members(vec![MemberIdentity::default().with_member_id(member)]),
    };
    let left = asker.in_version(version, &leave).await;
    assert_eq!(left.error_code, 0, "leave in {version}");
}

async fn topics_come_and_go(asker: &mut Asker) {
    let known = |_| {
        let wanted = MetadataRequestTopic::default().with_name(Some(topic()));
        MetadataRequest::default().with_topics(Some(vec![wanted]))
    };
    let partitions = |answer: &MetadataResponse| answer.topics[0].partitions.len();
    asker.each(known, |answer| partitions(answer) == 1).await;
    let configs = |_| {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(text("t"))
            .with_configuration_keys(None);
        DescribeConfigsRequest::default().with_resources(vec![resource])
    };
    let has_some = |answer: &DescribeConfigsResponse| !answer.results[0].configs.is_empty();
    asker.each(configs, has_some).await;
    let asked = |_| {
        ApiVersionsRequest::default()
            .with_client_software_name(text("test"))
            .with_client_software_version(text("1"))
    };
    let is_whole = |answer: &ApiVersionsResponse| answer.error_code == 0;
    asker.each(asked, is_whole).await;
    let created = |version: i16| {
        let topic = CreatableTopic::default()
            .with_name(TopicName(text(&format!("new-{version}"))))
            .with_num_partitions(1)
            .with_replication_factor(1);
        CreateTopicsRequest::default().with_topics(vec![topic])
    };
    let code = |answer: &CreateTopicsResponse| answer.topics[0].error_code;
    asker.each(created, |answer| code(answer) == 0).await;
    let deleted = |version: i16| {
        // Versions of both requests overlap but for the last.
        let name = TopicName(text(&format!("new-{}", version + 1)));
        match version {
            ..6 => DeleteTopicsRequest::default().with_topic_names(vec![name]),
            _ => {
                let topic = DeleteTopicState::default().with_name(Some(name));
                DeleteTopicsRequest::default().with_topics(vec![topic])
            }
        }
    };
    let code = |answer: &DeleteTopicsResponse| answer.responses[0].error_code;
    asker.each(deleted, |answer| code(answer) == 0).await;
}
