//! What a hostile or broken client may send: its connection closes, and the
//! broker goes on serving others.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use kafka_protocol::messages::{ApiVersionsResponse, ResponseHeader};
use kafka_protocol::protocol::Decodable;
use proptest::prelude::*;
use streamgauge_broker::{Broker, BrokerConfig};
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
