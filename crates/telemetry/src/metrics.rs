//! A service's registry of metrics and its text for `/metrics`. The registry is handed to the parts, never global, so
//! several services can live in one process, each with its own.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::metric::latency;
use crate::metric::process::{ProcessCollector, RuntimeCollector};

/// Clones share the registry.
#[derive(Clone)]
pub struct Metrics {
    service: &'static str,
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// A registry that holds `build_info`, `process_*` and, when made inside a Tokio runtime, `tokio_*`.
    pub fn new(service: &'static str) -> Self {
        let mut registry = Registry::default();
        let build = vec![
            ("service", service),
            ("version", env!("CARGO_PKG_VERSION")),
            (
                "revision",
                option_env!("STREAMGAUGE_REVISION").unwrap_or("unknown"),
            ),
        ];
        registry.register("build", "The version that is running", Info::new(build));
        registry.register_collector(Box::new(ProcessCollector::new()));
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            registry.register_collector(Box::new(RuntimeCollector::new(handle)));
        }
        Metrics {
            service,
            registry: Arc::new(Mutex::new(registry)),
        }
    }

    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Registers metrics. Name counters without `_total`, which is added.
    pub fn with<R>(&self, f: impl FnOnce(&mut Registry) -> R) -> R {
        f(&mut self.registry.lock())
    }

    /// The text of `/metrics`, in the OpenMetrics format, with `metrics_series` counting what it holds.
    pub fn encode(&self) -> String {
        let registry = self.registry.lock();
        let (mut text, exemplars) = latency::collecting_exemplars(|| {
            let mut text = String::with_capacity(16 * 1024);
            if let Err(error) =
                prometheus_client::encoding::text::encode_registry(&mut text, &registry)
            {
                // Half a page of numbers is better than none, and the log says what is missing.
                tracing::error!(%error, service = self.service, "a metric cannot be written");
            }
            text
        });
        drop(registry);
        text = latency::place_exemplars(&text, exemplars);
        let series = 1 + text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .count();
        text.push_str(
            "# HELP metrics_series Series in this answer.\n# TYPE metrics_series gauge\n",
        );
        text.push_str(&format!("metrics_series {series}\n# EOF\n"));
        text
    }

    /// `encode` as a closure, as the operational routes want it.
    pub fn encoder(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let metrics = self.clone();
        Arc::new(move || metrics.encode())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn the_text_says_what_is_running_and_how_much_it_holds() {
        let metrics = Metrics::new("producer");
        let requests: Counter = Counter::default();
        metrics.with(|registry| registry.register("requests", "Requests", requests.clone()));
        requests.inc_by(3);
        let text = metrics.encoder()();
        assert!(
            text.contains("build_info{service=\"producer\",version=\"0.1.0\",revision="),
            "{text}"
        );
        assert!(text.contains("\nrequests_total 3\n"), "{text}");
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
        assert!(!text.contains("tokio_"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(text.matches("# EOF").count(), 1);
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(
            text.contains(&format!("\nmetrics_series {samples}\n")),
            "{text}"
        );
    }

    #[tokio::test]
    async fn inside_a_runtime_it_tells_about_it() {
        let text = Metrics::new("producer").encode();
        assert!(text.contains("\ntokio_workers 1\n"), "{text}");
        assert!(text.contains("\ntokio_alive_tasks "), "{text}");
    }
}
