//! The way of spans out of the process: a bounded queue per service, emptied by a thread that does nothing else. The
//! SDK's own batch processor drops in silence and exports on the caller's terms; here every span is either exported or
//! counted as dropped, and no caller ever waits.

use std::fmt;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter as OtlpExporter;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span as SdkSpan, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::trace::{FinishedSpan, FinishedSpans, SpanCounters};

/// Hands ended spans to the queue, and never waits.
pub(crate) struct QueueProcessor {
    pub(crate) queue: mpsc::Sender<SpanData>,
    pub(crate) counters: SpanCounters,
}

impl fmt::Debug for QueueProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueueProcessor")
    }
}

impl SpanProcessor for QueueProcessor {
    fn on_start(&self, _span: &mut SdkSpan, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.queue.try_send(span).is_err() {
            self.counters.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Keeps ended spans in memory, for tests.
pub(crate) struct MemoryProcessor {
    pub(crate) service: &'static str,
    pub(crate) spans: FinishedSpans,
}

impl fmt::Debug for MemoryProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryProcessor")
    }
}

impl SpanProcessor for MemoryProcessor {
    fn on_start(&self, _span: &mut SdkSpan, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        let span = FinishedSpan::new(self.service, &span);
        self.spans.0.lock().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends one service's spans to the collector, in batches.
pub(crate) struct Worker {
    pub(crate) service: &'static str,
    pub(crate) exporter: OtlpExporter,
    pub(crate) queue: mpsc::Receiver<SpanData>,
    pub(crate) counters: SpanCounters,
    pub(crate) batch_size: usize,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// Turns true when it is time to empty the queue and stop.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Worker {
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(self.batch_size);
        let mut reachable = true;
        let mut tick = tokio::time::interval_at(Instant::now() + self.interval, self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.batch_size - batch.len();
            let (send, stop) = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => (true, true),
                _ = tick.tick() => (true, false),
                received = self.queue.recv_many(&mut batch, room) => (received == room, received == 0),
            };
            if send && !batch.is_empty() {
                self.export(std::mem::take(&mut batch), &mut reachable)
                    .await;
            }
            if stop {
                break;
            }
        }
        // What ends from now on counts as dropped; what is queued still goes.
        self.queue.close();
        while self.queue.recv_many(&mut batch, self.batch_size).await > 0 {
            self.export(std::mem::take(&mut batch), &mut reachable)
                .await;
        }
    }

    /// Exports a batch; a failure is told once when it begins and once when it is over, not for each batch.
    async fn export(&self, batch: Vec<SpanData>, reachable: &mut bool) {
        let count = batch.len() as u64;
        let result = tokio::time::timeout(self.timeout, self.exporter.export(batch)).await;
        let failure = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {:?}", self.timeout)),
        };
        match failure {
            None => {
                self.counters.exported.inc_by(count);
                if !std::mem::replace(reachable, true) {
                    tracing::info!(
                        service = self.service,
                        "the trace collector takes spans again"
                    );
                }
            }
            Some(error) => {
                self.counters.dropped.inc_by(count);
                if std::mem::replace(reachable, false) {
                    tracing::warn!(
                        service = self.service,
                        error,
                        "the trace collector does not take spans; they are dropped until it does"
                    );
                }
            }
        }
    }
}
