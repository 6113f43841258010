//! Alertmanager is asked seldom, and what goes wrong with it is told.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, http::StatusCode, routing::get};
use streamgauge_lifecycle::ManualClock;
use tokio::net::TcpListener;

use super::*;

/// An Alertmanager under `/am` that gives this answer, and how often it was asked.
async fn alertmanager(status: StatusCode, body: String) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let answer = get(async move || {
        count.fetch_add(1, Ordering::SeqCst);
        (status, body.clone())
    });
    let router = Router::new().route("/am/api/v2/alerts", answer);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}/am/"), asked)
}

fn config(url: &str) -> AlertsConfig {
    AlertsConfig {
        alertmanager: SecretUrl::from(url),
        // Long enough for a machine that is busy; nothing waits for it.
        timeout_ms: 30_000,
        ..AlertsConfig::default()
    }
}

fn over(config: &AlertsConfig) -> (Alerts, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(1_000_000));
    let alerts = Alerts::new(config, clock.clone()).expect("settings");
    (alerts, clock)
}

const ALL: v1::AlertsRequest = v1::AlertsRequest { all: true };

#[tokio::test]
async fn many_who_ask_cost_one_question() {
    let body = String::from(r#"[{"labels": {"alertname": "Down"}}]"#);
    let (url, asked) = alertmanager(StatusCode::OK, body).await;
    let (alerts, clock) = over(&config(&url));
    let answers = futures::future::join_all((0..20).map(|_| alerts.list(ALL))).await;
    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!((answer.as_of_us, answer.alerts.len()), (1_000_000, 1));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    clock.advance(Duration::from_millis(999));
    alerts.list(ALL).await.expect("an answer");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    clock.advance(Duration::from_millis(1));
    let answer = alerts.list(ALL).await.expect("an answer");
    assert_eq!(answer.as_of_us, 2_000_000);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn one_that_fails_is_told_and_asked_no_more_often() {
    let (url, asked) = alertmanager(StatusCode::BAD_GATEWAY, String::new()).await;
    let (alerts, _clock) = over(&config(&url));
    for _ in 0..3 {
        let problem = alerts.list(ALL).await.expect_err("it fails");
        assert_eq!(problem.code, ErrorCode::AlertsUnavailable);
        assert!(problem.message.contains("502"), "{problem}");
        assert!(problem.retry_after.is_some());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn one_that_is_away_is_told_without_its_password() {
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("bound")
    };
    let (alerts, _clock) = over(&config(&format!("http://me:secret@{gone}")));
    let problem = alerts.list(ALL).await.expect_err("nobody listens");
    assert!(problem.message.contains("refused"), "{problem}");
    assert!(!problem.message.contains("secret"), "{problem}");
}

#[tokio::test]
async fn an_answer_without_bounds_is_not_read() {
    let (url, _) = alertmanager(StatusCode::OK, "x".repeat(3_000)).await;
    let config = AlertsConfig {
        answer_kib_max: 2,
        ..config(&url)
    };
    let problem = over(&config).0.list(ALL).await.expect_err("too much");
    assert!(problem.message.contains("more than 2 KiB"), "{problem}");
}

#[tokio::test]
async fn without_an_alertmanager_it_says_what_to_set() {
    let (alerts, _clock) = over(&AlertsConfig::default());
    let problem = alerts.list(ALL).await.expect_err("none is set");
    assert_eq!(problem.code, ErrorCode::NotFound);
    assert!(problem.message.contains("alerts.alertmanager"), "{problem}");
}

#[test]
fn what_is_no_url_is_refused() {
    let clock = Arc::new(ManualClock::new(0));
    for url in ["alertmanager:9093", "https://alertmanager", "http://"] {
        let made = Alerts::new(&config(url), clock.clone());
        let error = made.err().expect(url).to_string();
        assert!(error.contains("alerts.alertmanager"), "{error}");
    }
}
