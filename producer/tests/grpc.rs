//! Submission over gRPC: the same verdicts and limits, as messages and statuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Producer, broker, config, eventually, message as event};
use streamgauge_proto::v1::submission_client::SubmissionClient;
use streamgauge_proto::v1::{
    SubmitBatchRequest, SubmitRequest, SubmitStreamRequest, SubmittedEvent, VerdictStatus,
};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test(flavor = "multi_thread")]
async fn batches_get_verdicts_and_single_events_statuses() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let mut client = SubmissionClient::new(producer.channel().await);

    let properties = |text: &'static str| SubmittedEvent {
        properties: text.into(),
        ..event("p")
    };
    let at = |us| SubmittedEvent {
        occurred_at_us: Some(us),
        ..event("t")
    };
    let value = |value| SubmittedEvent {
        value: Some(value),
        ..event("v")
    };
    let cases = [
        (event("u"), None),
        (event(""), Some(("missing_field", "user_id"))),
        (event(&"u".repeat(201)), Some(("field_too_long", "user_id"))),
        (event("undefined"), Some(("placeholder_id", "user_id"))),
        (properties("{\"a\":1}"), None),
        (properties("[]"), Some(("wrong_type", "properties"))),
        (properties("{\"a\""), Some(("invalid_value", "properties"))),
        (at(1_715_932_800_000_000), None),
        (at(1), Some(("invalid_timestamp", "occurred_at_us"))),
        (at(i64::MAX), Some(("invalid_timestamp", "occurred_at_us"))),
        (value(1.5), None),
        (value(f64::NAN), Some(("invalid_value", "value"))),
    ];
    let (events, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let batch = SubmitBatchRequest {
        events,
        historical: true,
        idempotency_key: "k".into(),
    };
    let answer = client
        .submit_batch(batch.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((answer.accepted, answer.rejected, answer.retry), (4, 8, 0));
    for (verdict, expected) in answer.verdicts.iter().zip(expected) {
        let found = (verdict.status == i32::from(VerdictStatus::Rejected))
            .then_some((verdict.code.as_str(), verdict.field.as_str()));
        assert_eq!(found, expected, "{verdict:?}");
    }
    let again = client.submit_batch(batch).await.unwrap().into_inner();
    assert_eq!(
        again.verdicts, answer.verdicts,
        "the idempotency key gives the same ids"
    );

    let single = client
        .submit(SubmitRequest {
            event: Some(event("u")),
            historical: false,
        })
        .await
        .unwrap();
    let verdict = single.into_inner().verdict.unwrap();
    assert_eq!(verdict.status, i32::from(VerdictStatus::Accepted));
    for (request, code, says) in [
        (
            SubmitRequest {
                event: Some(event("null")),
                historical: false,
            },
            Code::InvalidArgument,
            "user_id",
        ),
        (
            SubmitRequest {
                event: None,
                historical: false,
            },
            Code::InvalidArgument,
            "no event",
        ),
    ] {
        let status = client.submit(request).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(says), "{status:?}");
        assert!(
            !status.details().is_empty(),
            "the reason stands in the details"
        );
    }
    let status = client
        .submit_batch(SubmitBatchRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    let written = producer.written().await;
    assert_eq!(written.len(), 9);
    assert_eq!(
        written
            .iter()
            .filter(|record| record.event.historical)
            .count(),
        8
    );
    producer.ledger();
    assert_eq!(
        producer.metric("rpc_server_requests_total{method=\"streamgauge.v1.Submission/SubmitBatch\",code=\"ok\"}"),
        2.0
    );
    drop(client);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_end_in_the_statuses_that_mirror_http() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let mut config = config(&broker.bootstrap());
    config.grpc.message_bytes_max = 100_000;
    config.limits.event_bytes_max = 50_000;
    config.limits.batch_events_max = 10;
    (config.rate_limit.per_second, config.rate_limit.burst) = (1, 2);
    let producer = Producer::start(config).await;
    let mut client = SubmissionClient::new(producer.channel().await);
    let batch = |events| SubmitBatchRequest {
        events,
        ..SubmitBatchRequest::default()
    };
    let large = |bytes| SubmittedEvent {
        page_url: "x".repeat(bytes),
        ..event("u")
    };

    let status = client
        .submit_batch(batch(vec![large(100_001)]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("grpc.message_bytes_max"));
    let answer = client
        .submit_batch(batch(vec![large(60_000)]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.verdicts[0].code, "event_too_large");
    let status = client
        .submit_batch(batch(vec![event("u"); 11]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    client
        .submit_batch(batch(vec![event("u"); 2]))
        .await
        .unwrap();
    let status = client
        .submit_batch(batch(vec![event("u")]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let needle = b"google.rpc.RetryInfo";
    assert!(
        status
            .details()
            .windows(needle.len())
            .any(|part| part == needle)
    );
    producer.ledger();
    drop(client);
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_in_order_and_outlives_refusals() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let mut client = SubmissionClient::new(producer.channel().await);
    let request = |sequence, events: usize| SubmitStreamRequest {
        sequence,
        batch: Some(SubmitBatchRequest {
            events: vec![event("u"); events],
            ..SubmitBatchRequest::default()
        }),
    };
    let requests = (0..50).map(move |sequence| request(sequence, usize::from(sequence != 7)));
    let answers = client
        .submit_stream(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    assert_eq!(answers.len(), 50);
    for (sequence, answer) in (0..).zip(&answers) {
        assert_eq!(answer.sequence, sequence);
        assert_eq!(
            answer.refusal.as_ref().map(|refusal| refusal.code.as_str()),
            (sequence == 7).then_some("empty_body")
        );
        assert_eq!(
            answer.result.as_ref().map(|result| result.accepted),
            (sequence != 7).then_some(1)
        );
    }
    assert_eq!(producer.written().await.len(), 49);

    // A stream that stays open does not hold up a shutdown.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    sender.send(request(0, 1)).await.unwrap();
    let mut answers = client.submit_stream(stream).await.unwrap().into_inner();
    assert_eq!(answers.next().await.unwrap().unwrap().sequence, 0);
    producer.shutdown.trigger();
    assert!(answers.next().await.is_none());
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_readiness_and_services_are_reflected() {
    let producer = Producer::launch(config("127.0.0.1:1")).await;
    let channel = producer.channel().await;
    let mut health = HealthClient::new(channel.clone());
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let status = health.check(check("")).await.unwrap().into_inner().status;
    assert_eq!(status, i32::from(ServingStatus::NotServing));
    let status = SubmissionClient::new(channel.clone())
        .submit(SubmitRequest {
            event: Some(event("u")),
            historical: false,
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    drop((health, channel));
    producer.stop().await.unwrap();

    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let channel = producer.channel().await;
    let mut health = HealthClient::new(channel.clone());
    eventually("the service is serving", async || {
        let answer = health.check(check("streamgauge.v1.Submission")).await;
        answer.is_ok_and(|answer| answer.into_inner().status == i32::from(ServingStatus::Serving))
    })
    .await;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_response::MessageResponse,
    };
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert!(
        names.contains(&"streamgauge.v1.Submission") && names.contains(&"grpc.health.v1.Health"),
        "{names:?}"
    );
    drop((reflection, health));
    producer.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calls_trace_and_deadline_are_honoured() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let mut client = SubmissionClient::new(producer.channel().await);
    let mut request = Request::new(SubmitRequest {
        event: Some(event("u")),
        historical: false,
    });
    let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request
        .metadata_mut()
        .insert("traceparent", caller.parse().unwrap());
    let answer = client.submit(request).await.unwrap();
    let traceparent = answer
        .metadata()
        .get("traceparent")
        .unwrap()
        .to_str()
        .unwrap();
    assert!(traceparent.contains("0af7651916cd43dd8448eb211c80319c"));
    assert!(
        producer.written().await[0]
            .traceparent
            .as_ref()
            .unwrap()
            .contains("0af7651916cd43dd8448eb211c80319c")
    );

    broker.faults().delay_appends(Duration::from_millis(700));
    let mut request = Request::new(SubmitBatchRequest {
        events: vec![event("u")],
        ..SubmitBatchRequest::default()
    });
    request.set_timeout(Duration::from_millis(300));
    let answer = client.submit_batch(request).await.unwrap().into_inner();
    assert_eq!(answer.retry, 1);
    assert_eq!(answer.verdicts[0].code, "deadline_exceeded");
    assert_eq!(producer.ledger(), [2.0, 1.0, 0.0, 1.0]);
    drop(client);
    producer.stop().await.unwrap();
}
