//! Whether a service is ready. Readiness is the conjunction of named conditions, each of which starts out
//! not ready and says why. Once a shutdown has begun a service never becomes ready again.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;
use tokio::sync::watch;

/// Clones share the state.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    service: &'static str,
    state: Mutex<State>,
    ready: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    conditions: Vec<ConditionReport>,
    shutting_down: bool,
}

impl State {
    fn ready(&self) -> bool {
        !self.shutting_down && self.conditions.iter().all(|condition| condition.ready)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    pub service: &'static str,
    pub version: &'static str,
    pub ready: bool,
    pub shutting_down: bool,
    pub conditions: Vec<ConditionReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConditionReport {
    pub name: &'static str,
    pub ready: bool,
    /// Why it is not ready. When it is: what there is to say nevertheless, mostly nothing.
    pub detail: String,
}

impl Health {
    pub fn new(service: &'static str) -> Self {
        Health {
            inner: Arc::new(Inner {
                service,
                state: Mutex::default(),
                ready: watch::Sender::new(true),
            }),
        }
    }

    /// A condition of readiness, not met so far. Asking for a name twice gives the same condition.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.update(|state| {
            let known = state.conditions.iter().position(|known| known.name == name);
            let index = known.unwrap_or_else(|| {
                state.conditions.push(ConditionReport {
                    name,
                    ready: false,
                    detail: "starting".to_owned(),
                });
                state.conditions.len() - 1
            });
            Condition {
                health: self.clone(),
                index,
            }
        })
    }

    pub fn ready(&self) -> bool {
        self.inner.state.lock().ready()
    }

    pub fn report(&self) -> HealthReport {
        let state = self.inner.state.lock();
        HealthReport {
            service: self.inner.service,
            version: env!("CARGO_PKG_VERSION"),
            ready: state.ready(),
            shutting_down: state.shutting_down,
            conditions: state.conditions.clone(),
        }
    }

    /// Readiness goes down for good, so that traffic moves elsewhere while the service drains.
    pub fn shutting_down(&self) {
        self.update(|state| state.shutting_down = true);
    }

    /// Follows readiness.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.inner.ready.subscribe()
    }

    /// Changes the state and tells the followers, under one lock, so that they see changes in order.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.inner.state.lock();
        let result = change(&mut state);
        let now = state.ready();
        self.inner
            .ready
            .send_if_modified(|ready| std::mem::replace(ready, now) != now);
        result
    }
}

/// `service_ready` and `service_condition_met`, as they are at each scrape.
impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let report = self.report();
        let ready = encoder.encode_descriptor(
            "service_ready",
            "Whether the service takes requests: 1 or 0.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::from(report.ready)).encode(ready)?;
        let mut met = encoder.encode_descriptor(
            "service_condition_met",
            "Whether a condition of readiness is met: 1 or 0.",
            None,
            MetricType::Gauge,
        )?;
        for condition in &report.conditions {
            let labels = [("condition", condition.name)];
            ConstGauge::new(i64::from(condition.ready)).encode(met.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// One condition of readiness; clones are the same condition.
#[derive(Clone, Debug)]
pub struct Condition {
    health: Health,
    index: usize,
}

impl Condition {
    pub fn up(&self) {
        self.set(true, String::new());
    }

    /// Met, with something to say about it.
    pub fn up_with(&self, note: impl Into<String>) {
        self.set(true, note.into());
    }

    pub fn down(&self, reason: impl Into<String>) {
        self.set(false, reason.into());
    }

    pub fn is_up(&self) -> bool {
        self.health.inner.state.lock().conditions[self.index].ready
    }

    fn set(&self, ready: bool, detail: String) {
        let changed = self.health.update(|state| {
            let condition = &mut state.conditions[self.index];
            let changed = condition.ready != ready;
            condition.ready = ready;
            condition.detail.clone_from(&detail);
            changed.then_some(condition.name)
        });
        let service = self.health.inner.service;
        match changed {
            Some(condition) if ready => tracing::info!(service, condition, "condition met"),
            Some(condition) => {
                tracing::warn!(service, condition, reason = detail, "condition lost")
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_takes_every_condition() {
        let health = Health::new("producer");
        assert!(health.ready(), "no conditions, nothing to wait for");
        let kafka = health.condition("kafka");
        let auth = health.condition("auth");
        assert!(!health.ready());
        kafka.up();
        assert!(!health.ready());
        auth.up();
        assert!(health.ready());
        kafka.up_with("a replica is away");
        assert!(health.ready());
        assert_eq!(health.report().conditions[0].detail, "a replica is away");
        kafka.down("no broker answers");
        let report = health.report();
        assert!(!report.ready);
        assert_eq!(
            report.conditions[0],
            ConditionReport {
                name: "kafka",
                ready: false,
                detail: "no broker answers".to_owned()
            }
        );
        assert!(report.conditions[1].ready);
    }

    #[test]
    fn the_same_name_is_the_same_condition() {
        let health = Health::new("producer");
        let (first, second) = (health.condition("kafka"), health.condition("kafka"));
        first.up();
        assert!(second.is_up() && health.ready());
        assert_eq!(health.report().conditions.len(), 1);
    }

    #[test]
    fn a_shutdown_is_for_good() {
        let health = Health::new("producer");
        let condition = health.condition("kafka");
        condition.up();
        health.shutting_down();
        condition.up();
        health.condition("later").up();
        assert!(!health.ready());
    }

    #[test]
    fn metrics_tell_each_condition() {
        let health = Health::new("producer");
        health.condition("log").up();
        health.condition("spool").down("full");
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(health.clone()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "service_ready 0",
            r#"service_condition_met{condition="log"} 1"#,
            r#"service_condition_met{condition="spool"} 0"#,
        ] {
            assert!(text.lines().any(|told| told == line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn followers_see_changes_only() {
        let health = Health::new("producer");
        let condition = health.condition("kafka");
        let mut ready = health.subscribe();
        assert!(!*ready.borrow_and_update());
        condition.down("still not");
        assert!(!ready.has_changed().unwrap());
        condition.up();
        ready.changed().await.unwrap();
        assert!(*ready.borrow_and_update());
    }
}
