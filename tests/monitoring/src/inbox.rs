//! The receiving end of Alertmanager's webhooks, in this process: it notes what arrived, for whom and when.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, time::Instant};

use crate::failure::{Failure, Outcome};

/// One alert in one message.
#[derive(Clone, Debug)]
pub struct Notification {
    /// The receiver that it was routed to.
    pub receiver: String,
    /// Whether it fires; else it is resolved.
    pub firing: bool,
    /// The alert's labels.
    pub labels: BTreeMap<String, String>,
    /// When it arrived.
    pub at: Instant,
}

/// The alerts that are meant: a name, and labels that tell it from others of the name.
#[derive(Clone, Copy, Debug)]
pub struct Alert {
    /// Its name.
    pub name: &'static str,
    /// Labels that it must have.
    pub labels: &'static [(&'static str, &'static str)],
}

impl Alert {
    /// Any of this name.
    pub const fn named(name: &'static str) -> Self {
        Self { name, labels: &[] }
    }

    /// Those of this name with these labels.
    pub const fn with(name: &'static str, labels: &'static [(&'static str, &'static str)]) -> Self {
        Self { name, labels }
    }

    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |key: &str, value: &str| labels.get(key).is_some_and(|found| found == value);
        has("alertname", self.name) && self.labels.iter().all(|(key, value)| has(key, value))
    }
}

#[derive(Default)]
struct Kept {
    notifications: Vec<Notification>,
    /// Receivers that answer with a refusal.
    refused: Vec<String>,
}

/// The inbox; it serves until the runtime ends.
#[derive(Clone)]
pub struct Inbox {
    url: String,
    kept: Arc<Mutex<Kept>>,
    arrived: Arc<watch::Sender<usize>>,
}

impl Inbox {
    /// Serves on a free port.
    pub async fn start() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.map_err(Failure::io("a port for webhooks"))?;
        let address = listener
            .local_addr()
            .map_err(Failure::io("a port for webhooks"))?;
        let inbox = Self {
            url: format!("http://{address}"),
            kept: Arc::default(),
            arrived: Arc::new(watch::Sender::new(0)),
        };
        let router = Router::new()
            .route("/{receiver}", post(receive))
            .with_state(inbox.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(inbox)
    }

    /// Where to send to; receivers are paths below it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Refuses what comes for this receiver, until [`Inbox::take_again`].
    pub fn refuse(&self, receiver: &str) {
        self.lock().refused.push(receiver.to_owned());
    }

    /// Takes everything again.
    pub fn take_again(&self) {
        self.lock().refused.clear();
    }

    /// The receivers that heard of an alert since a moment, in the order in which they did, with the seconds after it.
    pub fn heard(&self, alert: Alert, since: Instant) -> Vec<(String, f64)> {
        let mut heard: Vec<(String, f64)> = Vec::new();
        for one in &self.lock().notifications {
            let known = heard.iter().any(|(name, _)| *name == one.receiver);
            if one.at >= since && one.firing && alert.matches(&one.labels) && !known {
                heard.push((one.receiver.clone(), (one.at - since).as_secs_f64()));
            }
        }
        heard
    }

    /// How often a receiver heard of an alert since a moment.
    pub fn count(&self, alert: Alert, since: Instant) -> usize {
        let kept = self.lock();
        let meant = kept
            .notifications
            .iter()
            .filter(|one| one.at >= since && alert.matches(&one.labels));
        meant.count()
    }

    /// Those of the meant alerts that fire, as far as was heard.
    pub fn active(&self, alert: Alert) -> Vec<BTreeMap<String, String>> {
        let mut states: BTreeMap<BTreeMap<String, String>, bool> = BTreeMap::new();
        for one in &self.lock().notifications {
            if alert.matches(&one.labels) {
                states.insert(one.labels.clone(), one.firing);
            }
        }
        let active = states.into_iter().filter(|(_, firing)| *firing);
        active.map(|(labels, _)| labels).collect()
    }

    /// The names of all alerts that fire, as far as was heard.
    pub fn firing_names(&self) -> Vec<String> {
        let mut states: BTreeMap<BTreeMap<String, String>, bool> = BTreeMap::new();
        for one in &self.lock().notifications {
            states.insert(one.labels.clone(), one.firing);
        }
        let firing = states.into_iter().filter(|(_, firing)| *firing);
        let mut names: Vec<_> = firing
            .filter_map(|(labels, _)| labels.get("alertname").cloned())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Waits until an alert was heard to fire since a moment; returns how long after it that was.
    pub async fn fired(
        &self,
        alert: Alert,
        since: Instant,
        deadline: Duration,
    ) -> Option<Duration> {
        self.until(deadline, || {
            let kept = self.lock();
            let first = kept
                .notifications
                .iter()
                .find(|one| one.at >= since && one.firing && alert.matches(&one.labels));
            first.map(|one| one.at - since)
        })
        .await
    }

    /// Waits until none of the meant alerts fires any more; returns how long after a moment the last was heard to end.
    pub async fn resolved(
        &self,
        alert: Alert,
        since: Instant,
        deadline: Duration,
    ) -> Option<Duration> {
        self.until(deadline, || {
            if !self.active(alert).is_empty() {
                return None;
            }
            let kept = self.lock();
            let last = kept
                .notifications
                .iter()
                .rev()
                .find(|one| !one.firing && alert.matches(&one.labels));
            last.map(|one| one.at.saturating_duration_since(since))
        })
        .await
    }

    async fn until<T>(&self, deadline: Duration, found: impl Fn() -> Option<T>) -> Option<T> {
        let mut arrived = self.arrived.subscribe();
        let wait = async {
            loop {
                arrived.borrow_and_update();
                if let Some(found) = found() {
                    return Some(found);
                }
                if arrived.changed().await.is_err() {
                    return None;
                }
            }
        };
        tokio::time::timeout(deadline, wait).await.ok().flatten()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn receive(
    State(inbox): State<Inbox>,
    Path(receiver): Path<String>,
    Json(message): Json<Value>,
) -> StatusCode {
    let mut kept = inbox.lock();
    if kept.refused.contains(&receiver) {
        // A refusal that no retry helps, so that Alertmanager gives up at once.
        return StatusCode::FORBIDDEN;
    }
    for alert in message["alerts"].as_array().into_iter().flatten() {
        let labels = alert["labels"].as_object().into_iter().flatten();
        let labels =
            labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
        kept.notifications.push(Notification {
            receiver: receiver.clone(),
            firing: alert["status"] == "firing",
            labels: labels.collect(),
            at: Instant::now(),
        });
    }
    drop(kept);
    inbox.arrived.send_modify(|count| *count += 1);
    StatusCode::OK
}
