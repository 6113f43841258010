use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Encodable, StrBytes};
use proptest::prelude::*;

use super::*;
use crate::dispatch::{SERVED, decodes};

const ELEMENTS: usize = 1_000;

fn s(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn topic(name: &'static str) -> TopicName {
    TopicName(s(name))
}

fn group(name: &'static str) -> GroupId {
    GroupId(s(name))
}

fn encoded(request: &impl Encodable, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    request.encode(&mut bytes, version).unwrap();
    bytes.freeze()
}

/// A request with something in every field its version has.
fn sample(api: ApiKey, v: i16) -> Bytes {
    match api {
        ApiKey::Produce => {
            let partition = produce_request::PartitionProduceData::default()
                .with_index(3)
                .with_records(Some(Bytes::from_static(b"records")));
            let data = produce_request::TopicProduceData::default()
                .with_name(topic("t"))
                .with_partition_data(vec![partition.clone(), partition.with_records(None)]);
            let request = ProduceRequest::default()
                .with_transactional_id(Some(TransactionalId(s("tx"))))
                .with_topic_data(vec![data.clone(), data]);
            encoded(&request, v)
        }
        ApiKey::Fetch => {
            let partition = fetch_request::FetchPartition::default().with_fetch_offset(5);
            let wanted = fetch_request::FetchTopic::default()
                .with_topic(topic("t"))
                .with_partitions(vec![partition.clone(), partition]);
            let mut request = FetchRequest::default().with_topics(vec![wanted]);
            if v >= 7 {
                let forgotten = fetch_request::ForgottenTopic::default()
                    .with_topic(topic("f"))
                    .with_partitions(vec![1, 2, 3]);
                request = request.with_forgotten_topics_data(vec![forgotten]);
            }
            if v >= 11 {
                request = request.with_rack_id(s("rack"));
            }
            encoded(&request, v)
        }
        ApiKey::ListOffsets => {
            let partition = list_offsets_request::ListOffsetsPartition::default();
            let wanted = list_offsets_request::ListOffsetsTopic::default()
                .with_name(topic("t"))
                .with_partitions(vec![partition.clone(), partition]);
            encoded(&ListOffsetsRequest::default().with_topics(vec![wanted]), v)
        }
        ApiKey::Metadata => {
            let wanted =
                metadata_request::MetadataRequestTopic::default().with_name(Some(topic("t")));
            let request =
                MetadataRequest::default().with_topics(Some(vec![wanted.clone(), wanted]));
            encoded(&request, v)
        }
        ApiKey::OffsetCommit => {
            let partition = offset_commit_request::OffsetCommitRequestPartition::default()
                .with_committed_metadata(Some(s("meta")));
            let committed = offset_commit_request::OffsetCommitRequestTopic::default()
                .with_name(topic("t"))
                .with_partitions(vec![partition.clone(), partition]);
            let mut request = OffsetCommitRequest::default()
                .with_group_id(group("g"))
                .with_member_id(s("m"))
                .with_topics(vec![committed]);
            if v >= 7 {
                request = request.with_group_instance_id(Some(s("i")));
            }
            encoded(&request, v)
        }
        ApiKey::OffsetFetch if v >= 8 => {
            let wanted = offset_fetch_request::OffsetFetchRequestTopics::default()
                .with_name(topic("t"))
                .with_partition_indexes(vec![1, 2]);
            let wanted = offset_fetch_request::OffsetFetchRequestGroup::default()
                .with_group_id(group("g"))
                .with_topics(Some(vec![wanted]));
            encoded(&OffsetFetchRequest::default().with_groups(vec![wanted]), v)
        }
        ApiKey::OffsetFetch => {
            let wanted = offset_fetch_request::OffsetFetchRequestTopic::default()
                .with_name(topic("t"))
                .with_partition_indexes(vec![1, 2]);
            let request = OffsetFetchRequest::default()
                .with_group_id(group("g"))
                .with_topics(Some(vec![wanted]));
            encoded(&request, v)
        }
        ApiKey::FindCoordinator => {
            let request = match v {
                0..=3 => FindCoordinatorRequest::default().with_key(s("g")),
                _ => FindCoordinatorRequest::default().with_coordinator_keys(vec![s("g"), s("h")]),
            };
            encoded(&request, v)
        }
        ApiKey::JoinGroup => {
            let protocol = join_group_request::JoinGroupRequestProtocol::default()
                .with_name(s("range"))
                .with_metadata(Bytes::from_static(b"meta"));
            let mut request = JoinGroupRequest::default()
                .with_group_id(group("g"))
                .with_protocols(vec![protocol.clone(), protocol]);
            if v >= 8 {
                request = request.with_reason(Some(s("why")));
            }
            encoded(&request, v)
        }
        ApiKey::Heartbeat => encoded(&HeartbeatRequest::default().with_group_id(group("g")), v),
        ApiKey::LeaveGroup => {
            let member = leave_group_request::MemberIdentity::default().with_member_id(s("m"));
            let request = match v {
                0..=2 => LeaveGroupRequest::default().with_member_id(s("m")),
                _ => LeaveGroupRequest::default().with_members(vec![member.clone(), member]),
            };
            encoded(&request, v)
        }
        ApiKey::SyncGroup => {
            let assignment = sync_group_request::SyncGroupRequestAssignment::default()
                .with_member_id(s("m"))
                .with_assignment(Bytes::from_static(b"mine"));
            let request = SyncGroupRequest::default()
                .with_group_id(group("g"))
                .with_assignments(vec![assignment.clone(), assignment]);
            encoded(&request, v)
        }
        ApiKey::DescribeGroups => {
            let request =
                DescribeGroupsRequest::default().with_groups(vec![group("g"), group("h")]);
            encoded(&request, v)
        }
        ApiKey::ListGroups => {
            let mut request = ListGroupsRequest::default();
            if v >= 4 {
                request = request.with_states_filter(vec![s("Stable"), s("Empty")]);
            }
            encoded(&request, v)
        }
        ApiKey::ApiVersions => encoded(
            &ApiVersionsRequest::default()
                .with_client_software_name(s("name"))
                .with_client_software_version(s("1")),
            v,
        ),
        ApiKey::CreateTopics => {
            let assignment = create_topics_request::CreatableReplicaAssignment::default()
                .with_broker_ids(vec![BrokerId(1), BrokerId(2)]);
            let config = create_topics_request::CreatableTopicConfig::default().with_name(s("c"));
            let created = create_topics_request::CreatableTopic::default()
                .with_name(topic("t"))
                .with_assignments(vec![assignment])
                .with_configs(vec![config]);
            encoded(
                &CreateTopicsRequest::default().with_topics(vec![created]),
                v,
            )
        }
        ApiKey::DeleteTopics => {
            let deleted =
                delete_topics_request::DeleteTopicState::default().with_name(Some(topic("t")));
            let request = match v {
                0..=5 => DeleteTopicsRequest::default().with_topic_names(vec![topic("t")]),
                _ => DeleteTopicsRequest::default().with_topics(vec![deleted]),
            };
            encoded(&request, v)
        }
        ApiKey::DeleteRecords => {
            let partition = delete_records_request::DeleteRecordsPartition::default();
            let deleted = delete_records_request::DeleteRecordsTopic::default()
                .with_name(topic("t"))
                .with_partitions(vec![partition.clone(), partition]);
            encoded(
                &DeleteRecordsRequest::default().with_topics(vec![deleted]),
                v,
            )
        }
        ApiKey::InitProducerId => encoded(&InitProducerIdRequest::default(), v),
        ApiKey::OffsetForLeaderEpoch => {
            let partition = offset_for_leader_epoch_request::OffsetForLeaderPartition::default();
            let wanted = offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
                .with_topic(topic("t"))
                .with_partitions(vec![partition.clone(), partition]);
            encoded(
                &OffsetForLeaderEpochRequest::default().with_topics(vec![wanted]),
                v,
            )
        }
        ApiKey::DescribeConfigs => {
            let resource = describe_configs_request::DescribeConfigsResource::default()
                .with_resource_name(s("t"))
                .with_configuration_keys(Some(vec![s("a"), s("b")]));
            encoded(
                &DescribeConfigsRequest::default().with_resources(vec![resource]),
                v,
            )
        }
        ApiKey::DeleteGroups => {
            let request =
                DeleteGroupsRequest::default().with_groups_names(vec![group("g"), group("h")]);
            encoded(&request, v)
        }
        ApiKey::ConsumerGroupHeartbeat => {
            let owned = consumer_group_heartbeat_request::TopicPartitions::default()
                .with_partitions(vec![1, 2]);
            let mut request = ConsumerGroupHeartbeatRequest::default()
                .with_group_id(group("g"))
                .with_member_id(s("m"))
                .with_subscribed_topic_names(Some(vec![topic("t"), topic("u")]))
                .with_topic_partitions(Some(vec![owned.clone(), owned]));
            if v >= 1 {
                request = request.with_subscribed_topic_regex(Some(s("t.*")));
            }
            encoded(&request, v)
        }
        api => panic!("no sample of {api:?}"),
    }
}

fn each_version(mut visit: impl FnMut(ApiKey, i16, Bytes)) {
    for served in &SERVED {
        for version in served.min..=served.max {
            visit(served.api, version, sample(served.api, version));
        }
    }
}

#[test]
fn every_schema_agrees_with_the_codec_in_every_version() {
    each_version(|api, version, body| {
        let schema = schema_of(api).unwrap();
        let mut walk = Walk {
            rest: &body,
            version,
            compact: version >= schema.flexible,
            elements_left: ELEMENTS,
        };
        walk.fields(schema.fields)
            .unwrap_or_else(|error| panic!("{api:?} {version}: {error}"));
        assert!(
            walk.rest.is_empty(),
            "{api:?} {version}: {} left",
            walk.rest.len()
        );
        let flexible = api.request_header_version(version) >= 2;
        assert_eq!(flexible, version >= schema.flexible, "{api:?} {version}");
    });
}

#[test]
fn a_cut_request_is_refused_at_every_cut() {
    each_version(|api, version, body| {
        for cut in 0..body.len() {
            let result = check_body(api, version, &body[..cut], ELEMENTS);
            assert!(result.is_err(), "{api:?} {version} cut at {cut}");
        }
    });
}

#[test]
fn a_count_that_cannot_be_true_is_refused() {
    let huge = [0x7f, 0xff, 0xff, 0xff];
    let refused = check_body(ApiKey::Metadata, 1, &huge, ELEMENTS);
    assert_eq!(refused, Err(ShapeError::Truncated));
    let many = [&2_000i32.to_be_bytes()[..], &[0; 8_000]].concat();
    let refused = check_body(ApiKey::Metadata, 1, &many, ELEMENTS);
    assert_eq!(refused, Err(ShapeError::TooManyElements));
}

proptest! {
    #[test]
    fn random_bodies_never_panic(which in 0..SERVED.len(), ahead in 0i16..10, bytes: Vec<u8>) {
        let served = &SERVED[which];
        let version = served.min + ahead % (served.max - served.min + 1);
        if check_body(served.api, version, &bytes, ELEMENTS).is_ok() {
            let _ = decodes(served.api, version, Bytes::from(bytes));
        }
    }

    #[test]
    fn damaged_requests_never_panic(
        which in 0..SERVED.len(),
        ahead in 0i16..10,
        at: prop::sample::Index,
        byte: u8,
    ) {
        let served = &SERVED[which];
        let version = served.min + ahead % (served.max - served.min + 1);
        let mut body = sample(served.api, version).to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if check_body(served.api, version, &body, ELEMENTS).is_ok() {
            let _ = decodes(served.api, version, Bytes::from(body));
        }
    }

    #[test]
    fn random_headers_never_panic(bytes: Vec<u8>, compact: bool) {
        let _ = check_header(&bytes, compact, ELEMENTS);
    }
}
