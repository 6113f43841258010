//! gRPC when something is wrong: messages that cannot be read, clients that stall, credentials, outages, shutdowns.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use common::{Producer, broker, broker_on, config, eventually, message};
use prost::Message;
use streamgauge_producer::TokenConfig;
use streamgauge_proto::v1::submission_client::SubmissionClient;
use streamgauge_proto::v1::{
    SubmitBatchRequest, SubmitRequest, SubmitStreamRequest, SubmittedEvent, VerdictStatus,
};
use streamgauge_settings::Secret;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::{Stream, StreamExt};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const SUBMIT: &str = "/streamgauge.v1.Submission/Submit";
const SUBMIT_BATCH: &str = "/streamgauge.v1.Submission/SubmitBatch";
const SUBMIT_STREAM: &str = "/streamgauge.v1.Submission/SubmitStream";

/// Messages as they are, for those that no client library would write.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// Sends messages and returns how many answers came, and the status at the end if that was not "ok".
async fn send(
    channel: Channel,
    method: &'static str,
    messages: impl Stream<Item = Vec<u8>> + Send + 'static,
) -> (usize, Option<Status>) {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(method);
    let mut answers = match client.streaming(Request::new(messages), path, Raw).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (0, Some(status)),
    };
    let mut count = 0;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(_) => count += 1,
            Err(status) => return (count, Some(status)),
        }
    }
    (count, None)
}

fn batch(events: Vec<SubmittedEvent>) -> SubmitBatchRequest {
    SubmitBatchRequest {
        events,
        ..SubmitBatchRequest::default()
    }
}

fn single(event: SubmittedEvent) -> SubmitRequest {
    SubmitRequest {
        event: Some(event),
        historical: false,
    }
}

fn details_hold(status: &Status, needle: &[u8]) -> bool {
    let mut parts = status.details().windows(needle.len());
    parts.any(|part| part == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_be_read_are_the_clients_fault() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.grpc.message_bytes_max = 100_000;
    let producer = Producer::start(config).await;
    let channel = producer.channel().await;

    // Events whose user_id is not UTF-8, and bytes that are no protobuf.
    let invalid_utf8 = b"\x0a\x07\x12\x02\xff\xfe\x1a\x01x".to_vec();
    for message in [invalid_utf8.clone(), b"\xff\xff\xff\xff".to_vec()] {
        for method in [SUBMIT, SUBMIT_BATCH] {
            let messages = tokio_stream::iter([message.clone()]);
            let (answers, status) = send(channel.clone(), method, messages).await;
            let status = status.unwrap();
            assert_eq!(
                (answers, status.code()),
                (0, Code::InvalidArgument),
                "{status:?}"
            );
            assert!(details_hold(&status, b"malformed_body"), "{status:?}");
        }
    }

    // On a stream what came before is answered.
    let good = SubmitStreamRequest {
        sequence: 1,
        batch: Some(batch(vec![message("u")])),
    };
    let large = SubmitStreamRequest {
        sequence: 2,
        batch: Some(batch(vec![message(&"u".repeat(100_001))])),
    };
    for (bad, code, reason) in [
        (
            [b"\x12\x09".to_vec(), invalid_utf8].concat(),
            Code::InvalidArgument,
            "malformed_body",
        ),
        (
            large.encode_to_vec(),
            Code::ResourceExhausted,
            "body_too_large",
        ),
    ] {
        let messages = tokio_stream::iter([good.encode_to_vec(), bad]);
        let (answers, status) = send(channel.clone(), SUBMIT_STREAM, messages).await;
        let status = status.unwrap();
        assert_eq!((answers, status.code()), (1, code), "{status:?}");
        assert!(details_hold(&status, reason.as_bytes()), "{status:?}");
    }
    assert_eq!(producer.ledger(), [2.0, 2.0, 0.0, 0.0]);
    drop(channel);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_has_to_arrive_in_time_and_a_connection_to_live() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.limits.body_timeout_ms = 200;
    config.grpc.max_connections = 1;
    (
        config.grpc.keepalive_interval_ms,
        config.grpc.keepalive_timeout_ms,
    ) = (500, 1_000);
    let producer = Producer::start(config).await;

    let channel = producer.channel().await;
    let (_, status) = send(channel.clone(), SUBMIT, tokio_stream::pending()).await;
    let status = status.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(details_hold(&status, b"body_timeout"), "{status:?}");

    // There is one place, and it is taken.
    let mut refused = TcpStream::connect(producer.grpc).await.unwrap();
    let mut said = Vec::new();
    let _ = refused.read_to_end(&mut said).await;
    assert!(said.is_empty(), "closed without a word");
    drop(channel);
    let submitted = async || {
        let Ok(channel) = Channel::from_shared(format!("http://{}", producer.grpc))
            .unwrap()
            .connect()
            .await
        else {
            return false;
        };
        SubmissionClient::new(channel)
            .submit(single(message("u")))
            .await
            .is_ok()
    };
    eventually("the place is free again", submitted).await;

    // Who takes a place and says nothing loses it.
    let silent = async || {
        let mut stream = TcpStream::connect(producer.grpc).await.unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        // The server's own greeting shows that it had the place.
        !said.is_empty()
    };
    eventually("a silent connection is cut", silent).await;
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_before_anything_is_read() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    let token = |token: &str, suspended| TokenConfig {
        token: Secret::from(token),
        tenant: "acme".to_owned(),
        suspended,
        ..TokenConfig::default()
    };
    config.auth.tokens = vec![token("good", false), token("old", true)];
    let producer = Producer::start(config).await;
    let channel = producer.channel().await;
    let mut client = SubmissionClient::new(channel.clone());
    for (authorization, expected) in [
        (None, Some(Code::Unauthenticated)),
        (Some("Bearer unknown"), Some(Code::Unauthenticated)),
        (Some("Bearer old"), Some(Code::PermissionDenied)),
        (Some("Bearer good"), None),
    ] {
        let mut request = Request::new(single(message("u")));
        if let Some(authorization) = authorization {
            let value = authorization.parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let status = client.submit(request).await.err();
        assert_eq!(
            status.as_ref().map(Status::code),
            expected,
            "{authorization:?}"
        );
    }
    // Neither a body that never comes nor a stream is waited for.
    for method in [SUBMIT, SUBMIT_STREAM] {
        let (_, status) = send(channel.clone(), method, tokio_stream::pending()).await;
        assert_eq!(status.unwrap().code(), Code::Unauthenticated, "{method}");
    }
    let written = producer.written().await;
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].event.tenant, "acme");
    drop((client, channel));
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_made_up_for_with_the_id_that_was_told() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let mut client = SubmissionClient::new(producer.channel().await);
    let hurry = Duration::from_millis(500);
    let late = Duration::from_millis(1_500);

    broker.faults().delay_appends(late);
    let mut request = Request::new(batch(vec![message("u")]));
    request.set_timeout(hurry);
    let answer = client.submit_batch(request).await.unwrap().into_inner();
    assert_eq!(answer.retry, 1, "an answer, since the event was tried");
    let verdict = &answer.verdicts[0];
    assert_eq!(verdict.status, i32::from(VerdictStatus::Retry));
    let told = verdict.event_id.clone();
    broker.faults().delay_appends(Duration::ZERO);
    let again = SubmittedEvent {
        event_id: told.clone(),
        ..message("u")
    };
    let answer = client.submit_batch(batch(vec![again])).await.unwrap();
    assert_eq!(answer.into_inner().accepted, 1);

    broker.faults().delay_appends(late);
    let mut request = Request::new(single(message("u")));
    request.set_timeout(hurry);
    let status = client.submit(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let details = status.details();
    let key = b"event_id";
    let at = details
        .windows(key.len())
        .position(|part| part == key)
        .unwrap();
    // The value's tag and length, then a UUID.
    let value = &details[at + key.len() + 2..][..36];
    let told_alone = String::from_utf8(value.to_vec()).unwrap();
    broker.faults().delay_appends(Duration::ZERO);
    let again = SubmittedEvent {
        event_id: told_alone.clone(),
        ..message("u")
    };
    client.submit(single(again)).await.unwrap();

    let all = async || producer.written().await.len() == 4;
    eventually("the first tries are in the log, too", all).await;
    let written = producer.written().await;
    let ids: BTreeSet<_> = written
        .into_iter()
        .map(|written| written.event.event_id)
        .collect();
    assert_eq!(ids, BTreeSet::from([told, told_alone]));
    drop(client);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_a_verdict_at_first_and_then_a_status() {
    let dir = TempDir::new().unwrap();
    let address = {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        free.local_addr().unwrap()
    };
    let first = broker_on(&dir, address).await;
    let mut config = config(&address.to_string());
    config.publisher.delivery_timeout_ms = 300;
    (config.limits.request_timeout_ms, config.limits.stall_ms) = (1_300, 500);
    config.breaker.consecutive_failures = 2;
    (config.breaker.open_min_ms, config.breaker.open_max_ms) = (200, 400);
    let producer = Producer::start(config).await;
    let mut client = SubmissionClient::new(producer.channel().await);
    client.submit(single(message("u"))).await.unwrap();

    first.shutdown(Duration::from_secs(2)).await;
    let two = || batch(vec![message("u"), message("v")]);
    let answer = client.submit_batch(two()).await.unwrap().into_inner();
    assert_eq!((answer.accepted, answer.retry), (0, 2));
    assert!(
        answer
            .verdicts
            .iter()
            .all(|verdict| !verdict.event_id.is_empty())
    );
    let mut held = async || match client.submit_batch(two()).await {
        Ok(answer) => {
            assert_eq!(answer.into_inner().retry, 2);
            false
        }
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            details_hold(&status, b"google.rpc.RetryInfo")
        }
    };
    eventually("the breaker spares what would fail", &mut held).await;

    let _second = broker_on(&dir, address).await;
    let mut healed = async || {
        let answer = client.submit_batch(two()).await;
        answer.is_ok_and(|answer| answer.into_inner().accepted == 2)
    };
    eventually("events are taken again", &mut healed).await;
    producer.ledger();
    drop(client);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_the_health_does_not_hold_up_a_shutdown() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.shutdown_deadline_ms = 60_000;
    let producer = Producer::start(config).await;
    let mut health = HealthClient::new(producer.channel().await);
    let mut watches = Vec::new();
    for service in ["", "streamgauge.v1.Submission"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        watch.next().await.unwrap().unwrap();
        watches.push(watch);
    }
    let begun = Instant::now();
    producer.shutdown.trigger();
    for watch in &mut watches {
        while let Some(update) = watch.next().await {
            update.unwrap();
        }
    }
    producer.stop().await.unwrap();
    let took = begun.elapsed();
    // Long before the deadline at which a stream that nobody ended would be cut off.
    assert!(took < Duration::from_secs(15), "{took:?}");
}
