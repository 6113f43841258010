//! `/metrics` where the settings put it: on listeners of its own, for those who know the password, and beside the log
//! that runs alone.

use streamgauge_tests::{process::free_port, system::System};

const SERVICES: [&str; 3] = ["producer", "consumer", "analytics"];

async fn get(url: &str, password: Option<&str>) -> (u16, String) {
    let mut request = reqwest::Client::new().get(url);
    if let Some(password) = password {
        request = request.basic_auth("prometheus", Some(password));
    }
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, response.text().await.expect("a body"))
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_may_have_listeners_of_their_own() {
    let ports = SERVICES.map(|_| free_port());
    let settings: Vec<String> = SERVICES
        .iter()
        .zip(ports)
        .flat_map(|(service, port)| {
            [
                format!("{service}.http.metrics.listen=127.0.0.1:{port}"),
                format!("{service}.http.metrics.username=prometheus"),
                format!("{service}.http.metrics.password=secret-{service}"),
            ]
        })
        .collect();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let system = System::start(&settings).await;
    let beside = [system.producer(), system.consumer(), system.analytics()];
    for ((service, port), beside) in SERVICES.iter().zip(ports).zip(beside) {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let (status, text) = get(&url, Some(&format!("secret-{service}"))).await;
        assert_eq!(status, 200, "{service}");
        let build = format!("build_info{{service=\"{service}\"");
        assert!(text.contains(&build), "{service}: {text}");
        assert_eq!(get(&url, Some("wrong")).await.0, 401, "{service}");
        assert_eq!(get(&format!("{beside}/metrics"), None).await.0, 404);
        assert_eq!(get(&format!("{beside}/readyz"), None).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_runs_alone_tells_of_itself() {
    let system = System::start_apart(&[]).await;
    let body = r#"{"user_id":"u","event_type":"page_view","page_url":"/a"}"#;
    let sent = reqwest::Client::new()
        .post(format!("{}/ingest", system.producer()))
        .body(body)
        .send();
    let sent = sent.await.expect("an answer");
    assert!(sent.status().is_success(), "{sent:?}");
    let log = system.log().expect("it runs alone");
    assert_eq!(get(&format!("{log}/readyz"), None).await.0, 200);
    let (_, text) = get(&format!("{log}/metrics"), None).await;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap_or_else(|| panic!("no {name}: {text}"));
        value.trim().parse::<f64>().expect("a number")
    };
    assert!(value("log_records_appended_total ") >= 1.0);
    assert!(value("log_connections_open ") >= 3.0);
    assert!(value("process_resident_memory_bytes ") > 0.0);
}
