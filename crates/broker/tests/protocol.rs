//! What a hostile or broken client may send: its connection closes, and the
//! broker goes on serving others.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiVersionsResponse, BrokerId, DescribeConfigsRequest, DescribeGroupsRequest, FetchRequest,
    GroupId, JoinGroupRequest, MetadataRequest, OffsetFetchRequest, ProduceRequest, ResponseHeader,
    TopicName,
};
use kafka_protocol::protocol::{Decodable, Request, StrBytes};
use proptest::prelude::*;
use streamgauge_broker::{Broker, BrokerConfig, Left};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn connect(broker: &Broker) -> TcpStream {
    TcpStream::connect(broker.local_addr()).await.unwrap()
}

/// Sends bytes and reads until the broker closes the connection.
async fn closes_on(broker: &Broker, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(broker).await;
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer));
    let _ = read.await.expect("the connection stayed open");
    answer
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as i32).to_be_bytes()[..], body].concat()
}

/// Key, version, correlation id 7, client id "x".
fn header(key: i16, version: i16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(key.to_be_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend([0, 0, 0, 7, 0, 1, b'x']);
    bytes
}

#[tokio::test]
async fn frames_that_make_no_sense_close_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let huge_count = [header(3, 1), vec![0x7f, 0xff, 0xff, 0xff]].concat();
    let bad: [Vec<u8>; 8] = [
        (-1i32).to_be_bytes().to_vec(),
        0i32.to_be_bytes().to_vec(),
        i32::MAX.to_be_bytes().to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        frame(&header(999, 0)),
        frame(&header(0, 99)),
        frame(&[&header(3, 1)[..8], &[0x7f, 0xff, 1, 2]].concat()),
        frame(&huge_count),
    ];
    for bytes in bad {
        assert!(closes_on(&broker, &bytes).await.is_empty(), "{bytes:?}");
    }
    eventually("all to be counted", || {
        broker.stats().requests_malformed == 8
    })
    .await;
    eventually("all to be closed", || broker.stats().connections_open == 0).await;
    stop(broker).await;
}

#[tokio::test]
async fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let mut stream = connect(&broker).await;
    stream.write_all(&frame(&header(18, 99))).await.unwrap();
    let length = stream.read_i32().await.unwrap();
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await.unwrap();
    let mut body = bytes::Bytes::from(body);
    let head = ResponseHeader::decode(&mut body, 0).unwrap();
    let answer = ApiVersionsResponse::decode(&mut body, 0).unwrap();
    assert_eq!((head.correlation_id, answer.error_code), (7, 35));
    assert!(
        answer
            .api_keys
            .iter()
            .any(|api| api.api_key == 18 && api.max_version == 4)
    );
    stop(broker).await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        max_connections: 2,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    let _one = connect(&broker).await;
    let two = connect(&broker).await;
    eventually("two connections", || broker.stats().connections_open == 2).await;
    assert!(closes_on(&broker, &[]).await.is_empty());
    assert_eq!(broker.stats().connections_refused, 1);
    drop(two);
    eventually("room again", || broker.stats().connections_open == 1).await;
    let _three = connect(&broker).await;
    eventually("two connections", || broker.stats().connections_open == 2).await;
    stop(broker).await;
}

#[tokio::test]
async fn a_stalled_client_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        connection_idle_ms: 50,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    let half_a_frame = [&1_000i32.to_be_bytes()[..], &header(3, 1)].concat();
    assert!(closes_on(&broker, &half_a_frame).await.is_empty());
    stop(broker).await;
}

/// Frames whose announced length takes all the memory that requests share.
const STALLED: usize = 1024 * 1024;

fn with_little_memory(dir: &std::path::Path) -> BrokerConfig {
    BrokerConfig {
        max_message_bytes: 900_000,
        max_request_bytes: STALLED,
        max_inflight_request_bytes: STALLED,
        frame_read_timeout_ms: 200,
        ..config(dir)
    }
}

#[tokio::test]
async fn frames_that_never_arrive_give_their_memory_back() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(with_little_memory(dir.path())).await.unwrap();
    broker.create_topic("alive", 1).await.unwrap();
    let announced = (STALLED as i32).to_be_bytes();
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&broker).await;
        stream.write_all(&announced).await.unwrap();
        stream.write_all(&header(0, 9)).await.unwrap();
        stalled.push(stream);
    }
    let bootstrap = broker.bootstrap();
    blocking(move || fill(&bootstrap, "alive", Some(0), 5, &[7; 150_000])).await;
    for mut stream in stalled {
        let read = tokio::time::timeout(LIMIT, stream.read(&mut [0; 1])).await;
        assert!(matches!(read.expect("it stayed open"), Ok(0) | Err(_)));
    }
    stop(broker).await;
}

#[tokio::test]
async fn a_frame_that_trickles_in_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(with_little_memory(dir.path())).await.unwrap();
    let mut stream = connect(&broker).await;
    let announced = (STALLED as i32).to_be_bytes();
    stream.write_all(&announced).await.unwrap();
    let started = std::time::Instant::now();
    while stream.write_all(&[0]).await.is_ok() {
        assert!(started.elapsed() < LIMIT, "the connection stayed open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop(broker).await;
}

#[tokio::test]
async fn a_request_without_records_may_not_be_large() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        max_control_request_bytes: 2_000,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    let allowed = [header(3, 1), one_name(1_900)].concat();
    let mut stream = connect(&broker).await;
    stream.write_all(&frame(&allowed)).await.unwrap();
    assert!(stream.read_i32().await.unwrap() > 0);
    let large = [header(3, 1), one_name(2_000)].concat();
    assert!(closes_on(&broker, &frame(&large)).await.is_empty());
    eventually("it to be counted", || {
        broker.stats().requests_malformed == 1
    })
    .await;
    // Records may be larger than that.
    let request = records(10_000);
    let answer = Raw::connect(&broker).await.call(9, &request).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 3);
    stop(broker).await;
}

/// A request to write that many bytes to a topic that is not there.
fn records(bytes: usize) -> ProduceRequest {
    let data = PartitionProduceData::default().with_records(Some(vec![0; bytes].into()));
    let topic = TopicProduceData::default()
        .with_name(TopicName(text("nowhere")))
        .with_partition_data(vec![data]);
    ProduceRequest::default()
        .with_acks(1)
        .with_topic_data(vec![topic])
}

/// The body of a metadata request for one topic with a long name.
fn one_name(len: i16) -> Vec<u8> {
    let name = vec![b'x'; len as usize];
    [&1i32.to_be_bytes()[..], &len.to_be_bytes(), &name].concat()
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// How often one request names the same thing.
const TIMES: usize = 100_000;

/// An answer about one thing takes far less, one about each naming far more.
const ONE_ANSWER_BYTES: usize = 10_000;

async fn answered_once<R: Request>(broker: &Broker, version: i16, request: R) -> R::Response {
    let mut client = Raw::connect(broker).await;
    client.send(version, &request).await.unwrap();
    let (size, answer) = client.receive::<R>(version).await.unwrap();
    assert!(size < ONE_ANSWER_BYTES, "{size} bytes");
    answer
}

#[tokio::test]
async fn what_is_named_many_times_is_answered_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    broker.create_topic("named", 20).await.unwrap();
    let named = TopicName(text("named"));

    let topic = MetadataRequestTopic::default().with_name(Some(named.clone()));
    let request = MetadataRequest::default().with_topics(Some(vec![topic; TIMES]));
    let answer = answered_once(&broker, 8, request).await;
    assert_eq!(answer.topics.len(), 1);
    assert_eq!(answer.topics[0].partitions.len(), 20);

    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text("named"))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource; TIMES]);
    assert_eq!(answered_once(&broker, 1, request).await.results.len(), 1);

    let group = GroupId(text("group"));
    let request = DescribeGroupsRequest::default().with_groups(vec![group.clone(); TIMES]);
    assert_eq!(answered_once(&broker, 5, request).await.groups.len(), 1);

    let asked = OffsetFetchRequestGroup::default()
        .with_group_id(group.clone())
        .with_topics(None);
    let request = OffsetFetchRequest::default().with_groups(vec![asked; TIMES]);
    assert_eq!(answered_once(&broker, 8, request).await.groups.len(), 1);

    let topic = OffsetFetchRequestTopic::default()
        .with_name(named.clone())
        .with_partition_indexes(vec![3; TIMES / 2 - 1]);
    let request = OffsetFetchRequest::default()
        .with_group_id(group)
        .with_topics(Some(vec![topic; 2]));
    let answer = answered_once(&broker, 7, request).await;
    assert_eq!(answer.topics[0].partitions.len(), 1);

    let partition = FetchPartition::default().with_partition_max_bytes(1_000);
    let topic = FetchTopic::default()
        .with_topic(named)
        .with_partitions(vec![partition; TIMES - 1]);
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_topics(vec![topic]);
    let answer = answered_once(&broker, 11, request).await;
    assert_eq!(answer.responses[0].partitions.len(), 1);
    stop(broker).await;
}

#[tokio::test]
async fn a_member_that_offers_too_much_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        group_max_protocols: 3,
        group_metadata_max_bytes: 1_024,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    let join = |count: usize, metadata_len: usize| {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(text("range"))
            .with_metadata(vec![7; metadata_len].into());
        JoinGroupRequest::default()
            .with_group_id(GroupId(text("group")))
            .with_session_timeout_ms(10_000)
            .with_rebalance_timeout_ms(10_000)
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol; count])
    };
    let mut client = Raw::connect(&broker).await;
    for (count, metadata_len, error) in [(4, 1, 42), (1, 1_024, 81), (1, 100, 79)] {
        let answer = client.call(5, &join(count, metadata_len)).await;
        assert_eq!(answer.error_code, error, "{count} of {metadata_len}");
    }
    stop(broker).await;
}

/// Fetches from the start of a partition; the bytes of records that came.
async fn fetch_bytes(client: &mut Raw, min_bytes: i32, max_bytes: i32) -> usize {
    let partition = FetchPartition::default().with_partition_max_bytes(max_bytes);
    let topic = FetchTopic::default()
        .with_topic(TopicName(text("large")))
        .with_partitions(vec![partition]);
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(60_000)
        .with_min_bytes(min_bytes)
        .with_max_bytes(max_bytes)
        .with_topics(vec![topic]);
    let answer = client.call(11, &request).await;
    let partition = &answer.responses[0].partitions[0];
    partition.records.as_ref().map_or(0, bytes::Bytes::len)
}

#[tokio::test]
async fn fetches_share_memory_and_give_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        max_message_bytes: 50_000,
        max_inflight_fetch_bytes: 300_000,
        ..config(dir.path())
    };
    let broker = Broker::start(config).await.unwrap();
    broker.create_topic("large", 1).await.unwrap();
    let bootstrap = broker.bootstrap();
    blocking(move || {
        let producer = producer(&bootstrap, &[("batch.num.messages", "1")]);
        for n in 0..20 {
            send(&producer, "large", Some(0), &format!("{n}"), &[7; 30_000]);
        }
        settle(&producer);
    })
    .await;
    let mut client = Raw::connect(&broker).await;
    for _ in 0..20 {
        // More than may be held: it answers with less rather than wait.
        let fetched = fetch_bytes(&mut client, 500_000, 500_000).await;
        assert!((30_000..=300_000).contains(&fetched), "{fetched}");
        // What an answer held is free again once it is sent.
        let started = std::time::Instant::now();
        while fetch_bytes(&mut client, 1, 250_000).await < 200_000 {
            assert!(started.elapsed() < LIMIT, "the memory never came back");
        }
    }
    let bootstrap = broker.bootstrap();
    let seen = blocking(move || read_all(&bootstrap, "large", 1)).await;
    assert_eq!(seen.len(), 20);
    stop(broker).await;
}

#[tokio::test]
async fn a_dropped_broker_closes_its_connections_and_frees_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let mut stream = connect(&broker).await;
    eventually("the connection", || broker.stats().connections_open == 1).await;
    let config = BrokerConfig {
        data_dir_lock_wait_ms: 50,
        ..config(dir.path())
    };
    let refused = Broker::start(config).await.err().unwrap();
    assert!(refused.to_string().contains("in use"), "{refused}");
    drop(broker);
    let read = tokio::time::timeout(LIMIT, stream.read(&mut [0; 1]))
        .await
        .unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    stop(start(dir.path()).await).await;
}

#[tokio::test]
async fn a_shutdown_says_what_it_had_to_leave() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    // One with a request under way, and one that is idle.
    broker.faults().delay_appends(LIMIT);
    let mut stuck = Raw::connect(&broker).await;
    stuck.send(9, &records(100)).await.unwrap();
    let idle = connect(&broker).await;
    eventually("the request to be under way", || {
        let stats = broker.stats();
        stats.requests == 1 && stats.connections_open == 2
    })
    .await;
    let left = broker.shutdown(Duration::from_millis(500)).await;
    assert_eq!((left.connections, left.logs_open), (1, false));
    assert_eq!(left.told(), ["1 connection to the log"]);
    drop((stuck, idle));
    let left = start(dir.path()).await.shutdown(LIMIT).await;
    assert_eq!(left, Left::default());
}

#[test]
fn random_frames_never_stop_the_broker() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let broker = runtime.block_on(start(dir.path()));
    let run = |key: i16, version: i16, body: Vec<u8>| {
        runtime.block_on(async {
            let mut stream = connect(&broker).await;
            let bytes = frame(&[header(key, version), body].concat());
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer));
            let _ = read.await.expect("the connection stayed open");
        });
    };
    let cases = ProptestConfig::with_cases(300);
    proptest!(cases, |(key in 0i16..48, version in 0i16..13, body: Vec<u8>)| run(key, version, body));
    let bootstrap = broker.bootstrap();
    runtime.block_on(async {
        broker.create_topic("after", 1).await.unwrap();
        blocking(move || fill(&bootstrap, "after", None, 10, b"value")).await;
        broker.shutdown(Duration::from_secs(5)).await;
    });
}
