//! Asking: each service and Alertmanager over HTTP, with a time-out and a bound on the answer. What
//! goes wrong with one is its answer and never another's.

use std::{
    error::Error as StdError,
    time::{Duration, Instant},
};

use futures::future;
use reqwest::{Client, StatusCode};

use super::{
    answers::{self, Ledger},
    openmetrics::Scrape,
    units,
    visits::{Alerts, Service, Teller, Visit},
};
use crate::{error::CliError, health::ServiceReport};

/// Most bytes of one answer; a service's metrics are about 100 KiB.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Asks.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    timeout: Duration,
    started: Instant,
    /// Where the services serve their metrics, if not beside the rest.
    metrics_at: [Option<String>; 3],
}

impl Fetcher {
    /// One that waits so long for each answer.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(timeout: Duration) -> Result<Self, CliError> {
        let client = Client::builder().timeout(timeout).no_proxy().build();
        let client =
            client.map_err(|error| CliError::System(format!("no HTTP client: {error}")))?;
        Ok(Self {
            client,
            timeout,
            started: Instant::now(),
            metrics_at: [const { None }; 3],
        })
    }

    /// Looks for the metrics of the producer, the consumer and analytics there, where they have an
    /// address of their own: `HOST:PORT`, with `USER:PASSWORD@` before it where they are asked for.
    pub fn metrics_at(self, metrics_at: [Option<String>; 3]) -> Self {
        Self { metrics_at, ..self }
    }

    /// Asks a service for all that it tells, at the same time.
    pub async fn visit(&self, service: Service, address: &str) -> Visit {
        let ledger = async {
            match service {
                Service::Analytics => Some(self.ledger(address).await),
                Service::Producer | Service::Consumer => None,
            }
        };
        let metrics_at = self.metrics_at[service as usize].as_deref();
        let scrape = self.scrape(metrics_at.unwrap_or(address));
        let (health, (scrape, at), ledger) =
            future::join3(self.health(address), scrape, ledger).await;
        Visit {
            at,
            health,
            scrape,
            ledger,
        }
    }

    /// Asks for what fires and is neither silenced nor inhibited.
    pub async fn alerts(&self, teller: &Teller) -> Alerts {
        match teller {
            Teller::Analytics(address) => self.told_alerts(address).await,
            Teller::Alertmanager(address) => {
                let path = "api/v2/alerts?active=true&silenced=false&inhibited=false";
                let alerts = async { answers::alerts(&self.found(address, path).await?) };
                alerts.await.map_or_else(Alerts::Silent, Alerts::Known)
            }
        }
    }

    async fn told_alerts(&self, address: &str) -> Alerts {
        match self.get(address, "v1/alerts").await {
            Ok((StatusCode::OK, body)) => {
                answers::told_alerts(&body).map_or_else(Alerts::Silent, Alerts::Known)
            }
            Ok((StatusCode::NOT_FOUND, _)) => Alerts::NotConfigured,
            Ok((status, body)) => {
                Alerts::Silent(answers::refusal(&body).unwrap_or_else(|| format!("HTTP {status}")))
            }
            Err(reason) => Alerts::Silent(reason),
        }
    }

    async fn health(&self, address: &str) -> Result<ServiceReport, String> {
        // A service that is not ready answers 503 with the same report.
        let (status, body) = self.get(address, "health").await?;
        serde_json::from_slice(&body).map_err(|_| format!("no report of its health, HTTP {status}"))
    }

    /// The metrics, and when they came: rates are per second of that clock.
    async fn scrape(&self, address: &str) -> (Result<Scrape, String>, Duration) {
        let found = self.found(address, "metrics").await;
        let at = self.started.elapsed();
        let scrape = |body: Vec<u8>| Scrape::parse(&body).map_err(|error| error.to_string());
        (found.and_then(scrape), at)
    }

    async fn ledger(&self, address: &str) -> Result<Ledger, String> {
        Ledger::parse(&self.found(address, "v1/ledger").await?)
    }

    /// An answer that is worth reading.
    async fn found(&self, address: &str, path: &str) -> Result<Vec<u8>, String> {
        match self.get(address, path).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, _) => Err(format!("HTTP {status}")),
        }
    }

    async fn get(&self, address: &str, path: &str) -> Result<(StatusCode, Vec<u8>), String> {
        let told = |error| self.reason(&error);
        let request = self.client.get(format!("http://{address}/{path}"));
        let mut response = request.send().await.map_err(told)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(told)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(format!("more than {ANSWER_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }

    /// Why there is no answer, in one line: what lies at the bottom says most.
    fn reason(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            let waited = units::seconds(self.timeout.as_secs_f64());
            return format!("no answer within {waited}");
        }
        let mut deepest: &dyn StdError = error;
        while let Some(cause) = deepest.source() {
            deepest = cause;
        }
        // The system's number for it says nothing that its words do not.
        let told = deepest.to_string();
        let words = told.split(" (os error").next();
        words.unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A server that gives each connection the same answer, or none at all.
    async fn server(answer: Option<Vec<u8>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(answer) = answer.clone() else {
                    kept.push(stream);
                    continue;
                };
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    // The client may have seen enough of it.
                    let _ = stream.write_all(&answer).await;
                });
            }
        });
        address
    }

    fn http(status: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn fetcher(timeout_ms: u64) -> Fetcher {
        Fetcher::new(Duration::from_millis(timeout_ms)).expect("a client")
    }

    const LONG_MS: u64 = 30_000;

    #[tokio::test]
    async fn a_service_that_is_away_says_why() {
        let gone = {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            listener.local_addr().expect("bound").to_string()
        };
        let visit = fetcher(LONG_MS).visit(Service::Analytics, &gone).await;
        let reason = visit.health.expect_err("nobody listens");
        assert_eq!(reason, "Connection refused");
        assert_eq!(visit.scrape.err(), Some(reason.clone()));
        assert_eq!(visit.ledger, Some(Err(reason)));
    }

    #[tokio::test]
    async fn one_that_hangs_is_not_waited_for() {
        let address = server(None).await;
        let visit = fetcher(50).visit(Service::Producer, &address).await;
        assert_eq!(visit.health, Err(String::from("no answer within 50 ms")));
        assert_eq!(visit.ledger, None);
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_cut() {
        let answer = http("200 OK", &vec![b'x'; ANSWER_BYTES_MAX + 1]);
        let address = server(Some(answer)).await;
        let visit = fetcher(LONG_MS).visit(Service::Consumer, &address).await;
        let reason = visit.scrape.expect_err("too much");
        assert!(reason.contains("more than 8388608 bytes"), "{reason}");
    }

    #[tokio::test]
    async fn another_kind_of_server_is_told() {
        let address = server(Some(http("404 Not Found", b"no"))).await;
        let visit = fetcher(LONG_MS).visit(Service::Analytics, &address).await;
        assert_eq!(visit.scrape.err().as_deref(), Some("HTTP 404 Not Found"));
        let health = visit.health.expect_err("no report");
        assert!(health.contains("404"), "{health}");
    }

    #[tokio::test]
    async fn a_service_that_is_not_ready_still_tells() {
        let report = br#"{"ready":false,"conditions":[{"name":"kafka","ready":false}]}"#;
        let address = server(Some(http("503 Service Unavailable", report))).await;
        let visit = fetcher(LONG_MS).visit(Service::Producer, &address).await;
        let report = visit.health.expect("a report");
        assert_eq!(report.conditions[0].name, "kafka");
    }

    #[tokio::test]
    async fn metrics_may_be_elsewhere() {
        let service = server(Some(http("404 Not Found", b"no"))).await;
        let metrics = server(Some(http("200 OK", b"events_received_total 1\n# EOF\n"))).await;
        let metrics_at = [None, Some(format!("me:secret@{metrics}")), None];
        let fetcher = fetcher(LONG_MS).metrics_at(metrics_at);
        let visit = fetcher.visit(Service::Consumer, &service).await;
        assert_eq!(
            visit.scrape.expect("metrics").sum("events_received_total"),
            Some(1.0)
        );
        let visit = fetcher.visit(Service::Producer, &service).await;
        assert_eq!(visit.scrape.err().as_deref(), Some("HTTP 404 Not Found"));
    }

    #[tokio::test]
    async fn alertmanager_is_asked_under_its_address() {
        let alerts = br#"[{"labels":{"alertname":"A","severity":"critical"}}]"#;
        let address = server(Some(http("200 OK", alerts))).await;
        match fetcher(LONG_MS)
            .alerts(&Teller::Alertmanager(address))
            .await
        {
            Alerts::Known(alerts) => assert_eq!(alerts.len(), 1),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn analytics_tells_alerts_or_why_not() {
        let told = async |status, body: &[u8]| {
            let analytics = Teller::Analytics(server(Some(http(status, body))).await);
            fetcher(LONG_MS).alerts(&analytics).await
        };
        let alerts = br#"{"alerts":[{"name":"A","severity":"critical"}]}"#;
        match told("200 OK", alerts).await {
            Alerts::Known(alerts) => assert_eq!(alerts[0].name, "A"),
            other => panic!("{other:?}"),
        }
        assert_eq!(told("404 Not Found", b"").await, Alerts::NotConfigured);
        let refusal = br#"{"error":{"message":"Alertmanager is gone"}}"#;
        for (body, reason) in [
            (refusal.as_slice(), "Alertmanager is gone"),
            (b"<html>", "HTTP 503 Service Unavailable"),
        ] {
            let silent = Alerts::Silent(reason.to_owned());
            assert_eq!(told("503 Service Unavailable", body).await, silent);
        }
    }
}
