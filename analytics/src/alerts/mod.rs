//! What fires, as Alertmanager tells it. Whoever shows alerts need not reach Alertmanager by themselves: they ask here,
//! and however many ask, Alertmanager is asked at most once in `alerts.refresh_ms`, one question at a time.

mod answer;

use std::time::Duration;

use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};
use streamgauge_lifecycle::SharedClock;
use streamgauge_proto::{ErrorCode, Problem, v1};
use streamgauge_settings::SecretUrl;
use tokio::sync::Mutex;

use self::answer::Found;
use crate::error::Error;

/// What Alertmanager is asked for: silenced and inhibited ones too, which cost nothing more.
const PATH: &str = "api/v2/alerts";

/// Where alerts come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertsConfig {
    /// Alertmanager's URL, as in `http://alertmanager:9093`; empty: alerts are not told here.
    pub alertmanager: SecretUrl,
    /// Time for it to answer, in milliseconds.
    pub timeout_ms: u64,
    /// How long an answer, or that there was none, is good for, in milliseconds.
    pub refresh_ms: u64,
    /// Largest answer that is read, in KiB.
    pub answer_kib_max: usize,
    /// Most alerts that are told; those beyond, the least severe ones, are counted only.
    pub alerts_max: usize,
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            alertmanager: SecretUrl::default(),
            timeout_ms: 2_000,
            refresh_ms: 1_000,
            answer_kib_max: 4_096,
            alerts_max: 500,
        }
    }
}

/// Asks, and keeps what was answered last.
pub struct Alerts {
    config: AlertsConfig,
    clock: SharedClock,
    client: Client,
    /// None where no Alertmanager is set.
    url: Option<Url>,
    last: Mutex<Option<Looked>>,
}

struct Looked {
    at_us: i64,
    found: Result<Found, Problem>,
}

impl Alerts {
    /// Over the Alertmanager that the settings name.
    ///
    /// # Errors
    /// When that is no URL.
    pub fn new(config: &AlertsConfig, clock: SharedClock) -> Result<Self, Error> {
        let client = Client::builder()
            .timeout(Duration::from_millis(config.timeout_ms.max(1)))
            .no_proxy()
            .build();
        let client = client.map_err(|error| Error::Setting(format!("alerts: {error}")))?;
        let url = match config.alertmanager.is_empty() {
            true => None,
            false => Some(url(&config.alertmanager)?),
        };
        Ok(Self {
            config: config.clone(),
            clock,
            client,
            url,
            last: Mutex::new(None),
        })
    }

    /// What fires; silenced and inhibited alerts too, if asked for.
    ///
    /// # Errors
    /// When no Alertmanager is set, or it does not answer.
    pub async fn list(&self, request: v1::AlertsRequest) -> Result<v1::AlertsResponse, Problem> {
        let Some(url) = &self.url else {
            let message = "alerts are not told here: set alerts.alertmanager to Alertmanager's URL";
            return Err(Problem::new(ErrorCode::NotFound, message));
        };
        // Those who come while it is being asked wait for the same answer.
        let mut last = self.last.lock().await;
        let good_us = i64::try_from(self.config.refresh_ms.saturating_mul(1_000));
        let good_us = good_us.unwrap_or(i64::MAX);
        let is_good = |looked: &Looked| {
            let age_us = self.clock.now_us().saturating_sub(looked.at_us);
            (0..good_us).contains(&age_us)
        };
        if !last.as_ref().is_some_and(is_good) {
            *last = Some(self.look(url).await);
        }
        let Some(Looked { at_us, found }) = last.as_ref() else {
            return Err(Problem::new(ErrorCode::Internal, "nothing was asked"));
        };
        let found = found.as_ref().map_err(Problem::clone)?;
        Ok(found.answer(*at_us, request.all, self.config.alerts_max))
    }

    async fn look(&self, url: &Url) -> Looked {
        let found = self.ask(url).await.map_err(|reason| {
            tracing::warn!(%reason, "Alertmanager cannot be asked");
            let message = format!("Alertmanager cannot be asked now: {reason}");
            Problem::new(ErrorCode::AlertsUnavailable, message).retry_after(Duration::from_secs(1))
        });
        Looked {
            at_us: self.clock.now_us(),
            found,
        }
    }

    async fn ask(&self, url: &Url) -> Result<Found, String> {
        // An error of the client names the URL, which may hold a password.
        let told = |error: reqwest::Error| {
            let timeout_ms = self.config.timeout_ms;
            match error.is_timeout() {
                true => format!("no answer within {timeout_ms} ms"),
                false => streamgauge_lifecycle::error_chain(&error.without_url()),
            }
        };
        let mut response = self.client.get(url.clone()).send().await.map_err(told)?;
        if !response.status().is_success() {
            return Err(format!("HTTP {}", response.status()));
        }
        let bytes_max = self.config.answer_kib_max.saturating_mul(1024);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(told)? {
            if body.len() + chunk.len() > bytes_max {
                let kib_max = self.config.answer_kib_max;
                return Err(format!("its answer has more than {kib_max} KiB"));
            }
            body.extend_from_slice(&chunk);
        }
        Found::parse(&body)
    }
}

fn url(setting: &SecretUrl) -> Result<Url, Error> {
    let wrong = |why: String| Error::Setting(format!("alerts.alertmanager: {setting}: {why}"));
    let base = format!("{}/", setting.expose().trim_end_matches('/'));
    let url = Url::parse(&base).map_err(|error| wrong(error.to_string()))?;
    if url.scheme() != "http" {
        return Err(wrong(String::from(
            "write it as in http://alertmanager:9093",
        )));
    }
    url.join(PATH).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests;
