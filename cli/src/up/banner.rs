//! What `up` says once everything is ready: what to open and what to type next.

use std::{io, path::Path};

use streamgauge_lifecycle::reachable;

use crate::{
    endpoints::{EndpointsFile, FILE_NAME},
    output::{Output, Paint},
};

/// Prints it; as JSON, the endpoints.
///
/// # Errors
/// When it cannot be printed.
pub fn print(
    endpoints: &EndpointsFile,
    data_dir: &Path,
    usual_addresses: bool,
    output: &mut Output,
) -> io::Result<()> {
    if output.json() {
        return output.document(endpoints);
    }
    let ready = output.paint(Paint::Green, "streamgauge is ready");
    output.line(format!("{ready}; its data is in {}", data_dir.display()))?;
    output.line("")?;
    let rows = [
        (
            "events in",
            format!("http://{}/v1/events", reachable(endpoints.producer.http)),
        ),
        ("", format!("{} (gRPC)", reachable(endpoints.producer.grpc))),
        (
            "queries",
            format!(
                "http://{}/v1/openapi.yaml",
                reachable(endpoints.analytics.http)
            ),
        ),
        (
            "",
            format!("{} (gRPC)", reachable(endpoints.analytics.grpc)),
        ),
        (
            "consumer",
            format!("http://{}/health", reachable(endpoints.consumer.http)),
        ),
        ("log", format!("{} (Kafka protocol)", endpoints.broker)),
    ];
    for (name, address) in rows {
        output.line(format!("  {name:<10} {address}"))?;
    }
    output.line("")?;
    output.line("Next, in another terminal:")?;
    // Where the addresses are not the usual ones, the file of endpoints says which. The other
    // terminal may be in another folder.
    if !usual_addresses {
        let file = std::path::absolute(data_dir.join(FILE_NAME))?;
        output.line(format!("  export STREAMGAUGE_ENDPOINTS={}", file.display()))?;
    }
    let click = r#"{"user_id":"u1","event_type":"click","page_url":"/"}"#;
    output.line(format!(
        "  curl -d '{click}' http://{}/v1/events",
        reachable(endpoints.producer.http)
    ))?;
    for command in [
        "send-events --count 10000 --rate 1000",
        "query series --by event_type --last 15m --step 10s",
        "query top --by page_url",
        "audit",
        "watch",
        "health",
    ] {
        output.line(format!("  streamgauge {command}"))?;
    }
    output.line("")?;
    let stop = output.paint(Paint::Dim, "Ctrl-C drains and stops; nothing is lost.");
    output.line(stop)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::endpoints::ServiceEndpoints;

    fn endpoints() -> EndpointsFile {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let service = |http, grpc| ServiceEndpoints {
            http: at(http),
            grpc: at(grpc),
            metrics: None,
        };
        EndpointsFile {
            pid: 1,
            version: String::from("0.1.0"),
            broker: at(9092),
            producer: service(8081, 50051),
            consumer: service(8082, 50052),
            analytics: service(8083, 50053),
        }
    }

    #[test]
    fn the_banner_says_what_to_do_next() {
        let (mut output, out, _) = Output::captured(false);
        print(&endpoints(), Path::new("data"), true, &mut output).expect("memory");
        insta::assert_snapshot!(out.text(), @r#"
        streamgauge is ready; its data is in data

          events in  http://127.0.0.1:8081/v1/events
                     127.0.0.1:50051 (gRPC)
          queries    http://127.0.0.1:8083/v1/openapi.yaml
                     127.0.0.1:50053 (gRPC)
          consumer   http://127.0.0.1:8082/health
          log        127.0.0.1:9092 (Kafka protocol)

        Next, in another terminal:
          curl -d '{"user_id":"u1","event_type":"click","page_url":"/"}' http://127.0.0.1:8081/v1/events
          streamgauge send-events --count 10000 --rate 1000
          streamgauge query series --by event_type --last 15m --step 10s
          streamgauge query top --by page_url
          streamgauge audit
          streamgauge watch
          streamgauge health

        Ctrl-C drains and stops; nothing is lost.
        "#);
        let (mut output, out, _) = Output::captured(false);
        print(&endpoints(), Path::new("/d"), false, &mut output).expect("memory");
        assert!(
            out.text()
                .contains("export STREAMGAUGE_ENDPOINTS=/d/endpoints.json")
        );
    }
}
