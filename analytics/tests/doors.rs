//! The doors: what they refuse and how, how they describe themselves, and whether they keep to that.

mod common;

use common::{NOW_S, running::*};
use serde_json::Value;
use streamgauge_proto::v1;

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_with_the_parameters_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    analytics.until_ready().await;
    for (path, field) in [
        ("/v1/users/%ff/activity", "user_id"),
        ("/v1/top?to=-9223372036854775808&last=1d", "range"),
        ("/v1/top?to=9223372036854775807&last=1d", "range"),
        ("/analytics/events?page_url=/", "user_id"),
    ] {
        let (status, body) = analytics.get(path).await;
        assert_eq!(status, 400, "{path}: {body}");
        assert_eq!(body["error"]["field"], field, "{path}: {body}");
    }
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_trace_that_shows_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let analytics = Analytics::start(config(folder.path(), &broker.bootstrap())).await;
    analytics.until_ready().await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for (flags, expected) in [("01", Value::from(trace)), ("00", Value::Null)] {
        let url = format!("http://{}/v1/top?by=nobody&last=1m", analytics.http);
        let caller = format!("00-{trace}-b7ad6b7169203331-{flags}");
        let request = analytics.client.get(url).header("traceparent", caller);
        let answer = request.send().await.expect("an answer");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"]["trace_id"], expected, "{body}");
    }
    analytics.stop().await;
}

/// An Alertmanager in which these alerts fire.
async fn alertmanager(alerts: Value) -> String {
    let answer = axum::routing::get(async move || axum::Json(alerts.clone()));
    let router = axum::Router::new().route("/api/v2/alerts", answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn firing() -> Value {
    serde_json::json!([
        {"labels": {"alertname": "Down", "severity": "critical", "service": "consumer"},
         "annotations": {"summary": "It is down", "runbook_url": "https://runbooks/Down"},
         "startsAt": "2026-01-02T03:04:05Z", "fingerprint": "f"},
        {"labels": {"alertname": "Hushed", "severity": "warning"}, "startsAt": "2026-01-02T03:04:05Z",
         "status": {"state": "suppressed", "silencedBy": ["me"]}},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fires_is_passed_on_over_both_doors() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut config = config(folder.path(), &broker.bootstrap());
    config.alerts.alertmanager = alertmanager(firing()).await.as_str().into();
    let analytics = Analytics::start(config).await;
    // Before anything of the store is known, too: alerts matter most when something is wrong.
    let answer = analytics.answer("/v1/alerts").await;
    let alert = &answer["alerts"][0];
    assert_eq!(
        (&alert["name"], &alert["state"]),
        (&"Down".into(), &"firing".into())
    );
    assert_eq!(alert["starts_at"], "2026-01-02T03:04:05Z");
    assert_eq!(alert["runbook_url"], "https://runbooks/Down");
    assert_eq!(answer["alerts"].as_array().map(Vec::len), Some(1));
    let answer = analytics.answer("/v1/alerts?all=true").await;
    assert_eq!(answer["alerts"][1]["state"], "silenced");
    let mut calls = analytics.calls().await;
    let answer = calls.alerts(v1::AlertsRequest { all: true }).await;
    let answer = answer.expect("an answer").into_inner();
    assert_eq!(answer.alerts[0].name, "Down");
    assert_eq!(answer.alerts[1].state(), v1::AlertState::Silenced);
    analytics.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_bounds_its_requests_and_describes_itself() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut config = config(folder.path(), &broker.bootstrap());
    config.grpc.request_kib_max = 4;
    let analytics = Analytics::start(config).await;
    analytics.until_ready().await;
    let request = v1::UserActivityRequest {
        user_id: "u".repeat(8 * 1024),
        ..v1::UserActivityRequest::default()
    };
    let refused = analytics.calls().await.user_activity(request).await;
    let code = refused.expect_err("too large").code();
    assert!(
        matches!(
            code,
            tonic::Code::OutOfRange | tonic::Code::ResourceExhausted
        ),
        "{code}"
    );

    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", analytics.grpc));
    let channel = endpoint
        .expect("an address")
        .connect()
        .await
        .expect("connected");
    let health = HealthClient::new(channel.clone());
    for service in ["", "streamgauge.v1.Analytics"] {
        // It follows readiness, a moment later.
        until(|| async {
            let service = String::from(service);
            let answer = health.clone().check(HealthCheckRequest { service }).await;
            answer.expect("an answer").into_inner().status() == ServingStatus::Serving
        })
        .await;
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await;
    let answer = answers.expect("a stream").into_inner().message().await;
    let answer = answer.expect("alive").expect("an answer").message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = answer else {
        panic!("{answer:?}");
    };
    let named = |name: &str| listed.service.iter().any(|service| service.name == name);
    assert!(named("streamgauge.v1.Analytics") && named("grpc.health.v1.Health"));
    analytics.stop().await;
}

/// Holds an answer against its schema: the fields that are required are there, and no other than those that are named.
fn conforms(document: &Value, schema: &Value, answer: &Value, place: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#'));
        return conforms(document, target.expect("a schema"), answer, place);
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let is = |name: &str| types.iter().any(|found| found == name);
    let fits = match answer {
        Value::Null => is("null"),
        Value::Bool(_) => is("boolean"),
        Value::String(_) => is("string"),
        Value::Array(_) => is("array"),
        Value::Object(_) => is("object"),
        Value::Number(number) => is("number") || (is("integer") && !number.is_f64()),
    };
    assert!(fits, "{place}: {answer} is not a {types:?}");
    if let Some(items) = answer.as_array() {
        for item in items {
            conforms(document, &schema["items"], item, &format!("{place}[]"));
        }
    }
    let Some(fields) = answer.as_object() else {
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().expect("a name");
        assert!(fields.contains_key(name), "{place} has no {name}");
    }
    for (name, value) in fields {
        let of = match &schema["properties"][name] {
            Value::Null => &schema["additionalProperties"],
            named => named,
        };
        assert!(of.is_object(), "{place}.{name} is not in the document");
        conforms(document, of, value, &format!("{place}.{name}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_the_document_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = broker(folder.path()).await;
    topics(&broker).await;
    let mut writer = Writer::new(&broker.bootstrap());
    let mut config = config(folder.path(), &broker.bootstrap());
    config.alerts.alertmanager = alertmanager(firing()).await.as_str().into();
    let analytics = Analytics::start(config).await;
    writer.valid(0, some_events(NOW_S - 300, 60), vec![]).await;
    analytics.until_head(60).await;
    let document: Value =
        serde_saphyr::from_str(streamgauge_analytics::http::OPENAPI).expect("YAML");
    let mut asked = std::collections::BTreeSet::new();
    for (route, path) in [
        (
            "/v1/series",
            "/v1/series?by=page_url&last=10m&step=10s&q=0.5",
        ),
        ("/v1/series/names", "/v1/series/names"),
        ("/v1/top", "/v1/top?by=page_url&last=10m&q=0.5,0.9"),
        ("/v1/top", "/v1/top?last=2h&measure=users"),
        ("/v1/distinct-users", "/v1/distinct-users?last=10m"),
        ("/v1/users/{user_id}/activity", "/v1/users/user-3/activity"),
        ("/v1/ledger", "/v1/ledger"),
        ("/v1/alerts", "/v1/alerts?all=true"),
        ("/analytics/events", "/analytics/events?user_id=user-3"),
        (
            "/analytics/events",
            "/analytics/events?user_id=user-3&page_url=/page/3",
        ),
    ] {
        asked.insert(route);
        let get = &document["paths"][route]["get"]["responses"];
        let schema = &get["200"]["content"]["application/json"]["schema"];
        conforms(&document, schema, &analytics.answer(path).await, path);
    }
    for route in streamgauge_analytics::http::ROUTES {
        // The stream and the document itself are not JSON.
        let is_json = !["/v1/live", "/v1/openapi.yaml"].contains(&route.path);
        assert!(
            !is_json || asked.contains(route.path),
            "{} is not asked",
            route.path
        );
    }
    let refused = &document["components"]["schemas"]["Problem"];
    for path in ["/v1/top", "/v1/top?by=nobody&last=1m", "/v1/nothing"] {
        conforms(&document, refused, &analytics.get(path).await.1, path);
    }
    analytics.stop().await;
}
