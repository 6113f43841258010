//! One trace from the HTTP request, through both topics, to the applied delta.

use std::time::Duration;

use streamgauge_tests::{collector::Collector, system::System};
use tokio::time::Instant;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_request_is_one_trace_through_all_three_services() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let settings = format!("each.telemetry.otlp_endpoint={endpoint}");
    let system = System::start(&[&settings]).await;
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/events", system.producer()))
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .json(&serde_json::json!({ "user_id": "u", "event_type": "click" }))
        .send()
        .await
        .expect("the producer answers");
    assert_eq!(answer.status(), 200);
    let [sent, processed, applied] = [
        format!("send {}", system.events_topic()),
        format!("process {}", system.events_topic()),
        format!("apply {}", system.metrics_topic()),
    ];
    let end = Instant::now() + Duration::from_secs(90);
    let spans = loop {
        let spans = collector.trace(TRACE);
        let has = |name: &str| spans.iter().any(|span| span.name == name);
        if has(&sent) && has(&processed) && has(&applied) {
            break spans;
        }
        assert!(Instant::now() < end, "the trace is not whole: {spans:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let one = |name: &str| {
        spans
            .iter()
            .find(|span| span.name == name)
            .expect("found above")
    };
    let (process, apply) = (one(&processed), one(&applied));
    // The batch on metrics-data is sent too; the send meant here is the one that was processed.
    let send = spans.iter().find(|span| span.span_id == process.parent_id);
    let send = send.expect("the processing continues a send");
    assert!(send.name.starts_with("send "), "{send:?}");
    assert_eq!(apply.parent_id, process.span_id);
    for (span, service) in [
        (send, "producer"),
        (process, "consumer"),
        (apply, "analytics"),
    ] {
        assert!(span.service.contains(service), "{span:?}");
        assert_eq!(
            span.attribute("messaging.system"),
            Some("kafka"),
            "{span:?}"
        );
    }
    let server = spans.iter().find(|span| span.span_id == send.parent_id);
    assert_eq!(
        server.expect("the server's span").parent_id,
        "00f067aa0ba902b7"
    );
}
