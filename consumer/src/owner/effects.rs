//! What an owner carries out: dead letters, and the effects that the core asks for.

use std::{future::Future, sync::Arc, time::Duration};

use streamgauge_kafka::{KafkaError, Record};
use streamgauge_resilience::Backoff;
use streamgauge_telemetry::{Span, context::TRACEPARENT};
use tokio::sync::mpsc;

use super::{Answer, Mailbox, Owner};
use crate::{
    core::partition::{Effect, Input, Problem, Ticket},
    dead_letter::{self, DeadLetter},
    metrics::{CONFIRM, EMIT},
};

impl Owner {
    /// Writes dead letters beside everything else. They are in memory until they are acknowledged, which the core
    /// bounds by `bytes`.
    pub(super) fn send_dead_letters(&mut self, letters: Vec<DeadLetter>, bytes: usize) {
        if letters.is_empty() {
            return;
        }
        let (shared, view) = (Arc::clone(&self.shared), self.view.clone());
        let (incarnation, partition) = (self.partition.incarnation(), self.partition_id);
        self.running.push(Box::pin(async move {
            let reasons: Vec<_> = letters.iter().map(|letter| letter.reason).collect();
            let target = dead_letter::Target {
                publisher: &shared.dead_letters,
                topic: &shared.config.topics.dead_letters,
                backoff: &shared.backoff(),
                refusals_max: shared.config.owner.dead_letter_refusals_max,
            };
            dead_letter::write(&target, letters, |error| {
                tracing::warn!(partition, %error, "dead letters are not written yet");
                shared.metrics.core().error("kafka", "dead_letter");
                view.error(format!("dead letters: {error}"));
            })
            .await;
            let count = reasons.len() as u64;
            reasons
                .into_iter()
                .for_each(|reason| shared.metrics.dead_letter(reason));
            Answer::DeadLetters {
                incarnation,
                count,
                bytes,
            }
        }));
    }

    /// Carries out effects until there is none; some lead to others.
    pub(super) async fn carry_out(&mut self) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out_one(effect).await;
            }
        }
    }

    async fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::AskChain { ticket } => self.ask_chain(ticket).await,
            Effect::ReadChain { ticket, from, to } => self.read_chain(ticket, from, to).await,
            Effect::FindHorizon {
                ticket,
                log_time_ms,
            } => self.find_horizon(ticket, log_time_ms).await,
            Effect::SeekSource { ticket, offset } => self.seek(ticket, offset),
            Effect::WriteBatch {
                ticket,
                batch,
                records,
                traces,
            } => {
                let span = self.spans.send(&traces, records);
                self.write_batch(ticket, batch, span);
            }
            Effect::Commit { offset, metadata } => {
                self.shared
                    .group
                    .commit(self.partition_id, offset, metadata);
            }
            Effect::Confirmed(report) => {
                let now_ms = self.shared.now_ms();
                let seconds =
                    |since_ms: u64, to_ms: u64| to_ms.saturating_sub(since_ms) as f64 / 1e3;
                let metrics = &self.shared.metrics;
                metrics
                    .stage(EMIT)
                    .observe(seconds(report.opened_at_ms, report.written_at_ms), None);
                metrics
                    .stage(CONFIRM)
                    .observe(seconds(report.written_at_ms, now_ms), None);
                metrics.confirmed(&report);
            }
            Effect::Problem(problem) => self.tell(&problem),
            Effect::Stopped => self.stopped = true,
        }
    }

    fn tell(&mut self, problem: &Problem) {
        let partition = self.partition_id;
        match problem {
            Problem::Overtaken { .. } => tracing::warn!(partition, "{problem}"),
            _ => tracing::error!(partition, "{problem}"),
        }
        if matches!(problem, Problem::Overtaken { .. }) {
            self.recovering_since = Some(self.shared.clock.monotonic());
        }
        self.shared.metrics.core().error("chain", problem.kind());
        self.view.error(problem.to_string());
    }

    async fn ask_chain(&mut self, ticket: Ticket) {
        let ends = self.ask("chain_bounds", |owner| {
            let (shared, partition) = (Arc::clone(&owner.shared), owner.partition_id);
            async move {
                shared
                    .reader
                    .watermarks(&shared.config.topics.metrics, partition)
                    .await
            }
        });
        if let Some(ends) = ends.await {
            self.handle(Input::ChainBounds {
                ticket,
                low: ends.low,
                high: ends.high,
            });
        }
    }

    /// Reads in place: until the log is read there is nothing else to do. What was handed over before a failure is
    /// not taken twice, and asking for the ends again finds out whether the log was cut meanwhile.
    async fn read_chain(&mut self, ticket: Ticket, from: i64, to: i64) {
        let (shared, revoked, told) = (Arc::clone(&self.shared), self.revoked.clone(), self.told);
        let topic = &shared.config.topics.metrics;
        let (partition, effects, now_ms) =
            (&mut self.partition, &mut self.effects, shared.now_ms());
        let read = shared
            .reader
            .read_range(topic, self.partition_id, from, to, |chunk| {
                for record in chunk.iter() {
                    let (offset, payload) = (record.offset, record.payload);
                    partition.handle(
                        Input::ChainRecord {
                            ticket,
                            offset,
                            payload,
                        },
                        now_ms,
                        effects,
                    );
                }
            });
        let result = tokio::select! {
            result = read => Some(result),
            () = revoked.triggered(), if !told => None,
        };
        let go_on = match result {
            Some(Ok(())) => return self.handle(Input::ChainEnd { ticket, next: to }),
            Some(Err(error)) => {
                self.failed("chain_read", &error);
                let wait = Duration::from_millis(shared.config.owner.retry_ms_max);
                self.pause_for(wait).await
            }
            // While a batch's outcome is open the reading goes on, up to the time for revoking.
            None => {
                self.hear_revoke();
                !self.has_stopped()
            }
        };
        if go_on {
            self.ask_chain(ticket).await;
        }
    }

    async fn find_horizon(&mut self, ticket: Ticket, log_time_ms: Option<i64>) {
        let found = self.ask("horizon", |owner| {
            let (shared, partition) = (Arc::clone(&owner.shared), owner.partition_id);
            async move {
                let topic = &shared.config.topics.events;
                let offset = match log_time_ms {
                    Some(time) => {
                        shared
                            .reader
                            .offset_for_time(topic, partition, time)
                            .await?
                    }
                    None => Some(0),
                };
                // Asked last, so that the offset is not beyond the end.
                Ok((offset, shared.reader.watermarks(topic, partition).await?))
            }
        });
        if let Some((offset, ends)) = found.await {
            let (low, high) = (ends.low, ends.high);
            self.view.set_end(high);
            self.handle(Input::HorizonStart {
                ticket,
                offset,
                low,
                high,
            });
        }
    }

    pub(super) fn source_ends(
        owner: &Self,
    ) -> impl Future<Output = Result<streamgauge_kafka::Watermarks, KafkaError>> + Send + use<>
    {
        let (shared, partition) = (Arc::clone(&owner.shared), owner.partition_id);
        async move {
            shared
                .reader
                .watermarks(&shared.config.topics.events, partition)
                .await
        }
    }

    /// A new mailbox for a new position: what was read for an earlier one goes with its own.
    pub(super) fn seek(&mut self, ticket: Ticket, offset: i64) {
        let (sender, receiver) = mpsc::channel(self.shared.config.owner.mailbox_chunks_max);
        self.current = None;
        self.mailbox = Some(Mailbox { ticket, receiver });
        self.shared.group.start(self.partition_id, offset, sender);
        if self.was_paused {
            self.shared.group.pause(self.partition_id);
        }
    }

    fn write_batch(&mut self, ticket: Ticket, batch: bytes::Bytes, mut span: Span) {
        let (shared, view) = (Arc::clone(&self.shared), self.view.clone());
        let partition = self.partition_id;
        self.running.push(Box::pin(async move {
            let header = span.context().map(|context| context.header());
            let headers: Vec<(&str, &[u8])> =
                header.iter().map(|header| (TRACEPARENT, header.as_bytes())).collect();
            let record = Record {
                topic: &shared.config.topics.metrics,
                partition: Some(partition),
                key: None,
                payload: Some(&batch),
                timestamp_ms: None,
                headers: &headers,
            };
            match shared.deltas.send(record).await {
                Ok(delivery) => Answer::Delivered { ticket, offset: delivery.offset },
                Err(error) => {
                    span.error("write");
                    tracing::warn!(partition, %error, "the outcome of a batch is read from the log");
                    shared.metrics.core().error("kafka", "write");
                    view.error(format!("writing a batch: {error}"));
                    Answer::Failed { ticket }
                }
            }
        }));
    }

    /// Asks Kafka until it answers; `None` when the core has stopped meanwhile. One that was revoked
    /// with a batch in flight has not, and still needs its answer.
    pub(super) async fn ask<T, F>(
        &mut self,
        kind: &'static str,
        request: impl Fn(&Self) -> F,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, KafkaError>>,
    {
        let revoked = self.revoked.clone();
        let waits = Backoff::new(
            &self.shared.backoff(),
            self.partition_id.unsigned_abs().into(),
        );
        for wait in waits {
            let answer = tokio::select! {
                answer = request(self) => Some(answer),
                () = revoked.triggered(), if !self.told => None,
            };
            let go_on = match answer {
                Some(Ok(answer)) => return Some(answer),
                Some(Err(error)) => {
                    self.failed(kind, &error);
                    self.pause_for(wait).await
                }
                None => {
                    self.hear_revoke();
                    !self.has_stopped()
                }
            };
            if !go_on {
                return None;
            }
        }
        None
    }

    fn failed(&self, kind: &'static str, error: &KafkaError) {
        tracing::warn!(partition = self.partition_id, kind, %error, "Kafka is asked again");
        self.shared.metrics.core().error("kafka", kind);
        self.view.error(format!("{kind}: {error}"));
    }
}
