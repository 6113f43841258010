//! Closing a batch, and finding out whether it counts.

use bytes::Bytes;
use streamgauge_chain::{Range, TraceBytes};

use super::{Effect, Partition, Problem, Report, State, Ticket, fold::Confirmed};
use crate::core::encode::{self, Summary};

/// A batch that was written and is not confirmed.
#[derive(Debug)]
pub(super) struct InFlight {
    range: Range,
    batch: Bytes,
    traces: Vec<TraceBytes>,
    log_time_us: i64,
    watermark_us: i64,
    first_log_us: Option<i64>,
    report: Box<Report>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Waiting for the write's outcome.
    Writing { ticket: Ticket },
    /// Reading what lies on `metrics-data` since the fold.
    Resolving { ticket: Ticket, search: Search },
    /// Before reading again (an acknowledged batch was not visible yet), or writing again.
    Waiting { until_ms: u64, search: Search },
}

/// What reading the log is to find out.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// The write was acknowledged: it lies below this offset, and reading must get there.
    at_least: Option<i64>,
    /// The own batch was found valid.
    own: bool,
    /// Another writer's batch was found valid.
    foreign: bool,
}

impl InFlight {
    pub fn first_log_us(&self) -> Option<i64> {
        self.first_log_us
    }

    pub fn retry_at_ms(&self) -> Option<u64> {
        match self.phase {
            Phase::Waiting { until_ms, .. } => Some(until_ms),
            _ => None,
        }
    }
}

impl Partition {
    /// Writes the open batch when it is due, nothing else is in flight, and every dead letter
    /// that it counts is safe.
    pub(super) fn close_if_due(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(opened_at_ms) = self.open.first_at_ms else {
            return;
        };
        let running = matches!(self.state, State::Running { .. });
        if !running || self.in_flight.is_some() || self.open.unacknowledged > 0 {
            return;
        }
        let waited = now_ms.saturating_sub(opened_at_ms) >= self.settings.batch_wait_ms;
        if waited || self.draining || self.is_full() {
            self.close(opened_at_ms, now_ms, effects);
        }
    }

    fn close(&mut self, opened_at_ms: u64, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(range) = Range::new(self.open.from, self.position) else {
            return;
        };
        let outcomes = self.open.outcomes;
        debug_assert!(outcomes.balances(range), "{outcomes:?} over {range}");
        if !outcomes.balances(range) {
            let sum = outcomes.total().unwrap_or(u64::MAX);
            let (from, to) = (range.from(), range.to());
            effects.push(Effect::Problem(Problem::Unbalanced { from, to, sum }));
            return self.start_over(effects);
        }
        let watermark_us = self.watermark_us();
        let traces = std::mem::take(&mut self.open.traces);
        let summary = Summary {
            range,
            outcomes,
            log_time_us: self.log_time_us,
            watermark_us,
            traces: &traces,
            writer: &self.settings.writer,
        };
        let batch = encode::batch(&summary, &self.open.aggregates);
        let types = self.open.aggregates.type_counts();
        let report = Box::new(Report {
            range,
            outcomes,
            types: types
                .map(|(text, count)| (String::from(text), count))
                .collect(),
            folded_keys: self.open.aggregates.folded(),
            bytes: batch.len(),
            opened_at_ms,
            written_at_ms: now_ms,
        });
        let ticket = self.next_ticket();
        self.in_flight = Some(InFlight {
            range,
            batch,
            traces,
            log_time_us: self.log_time_us,
            watermark_us,
            first_log_us: self.open.first_log_us,
            report,
            phase: Phase::Writing { ticket },
        });
        self.open.restart(range.to());
        self.write(ticket, effects);
    }

    fn write(&mut self, ticket: Ticket, effects: &mut Vec<Effect>) {
        let Some(in_flight) = &mut self.in_flight else {
            return;
        };
        in_flight.phase = Phase::Writing { ticket };
        effects.push(Effect::WriteBatch {
            ticket,
            batch: in_flight.batch.clone(),
            records: in_flight.range.offsets(),
            traces: in_flight.traces.clone(),
        });
    }

    fn is_writing(&self, ticket: Ticket) -> bool {
        self.in_flight.as_ref().is_some_and(
            |batch| matches!(batch.phase, Phase::Writing { ticket: expected } if expected == ticket),
        )
    }

    pub(super) fn is_resolving(&self, ticket: Ticket) -> bool {
        self.in_flight.as_ref().is_some_and(
            |batch| matches!(batch.phase, Phase::Resolving { ticket: expected, .. } if expected == ticket),
        )
    }

    /// One past what was folded: nobody else wrote, so the batch counts. Anywhere else: read what
    /// lies between. An idempotent retry may be acknowledged without a place; then the batch lies
    /// somewhere beyond the fold.
    pub(super) fn on_delivered(
        &mut self,
        ticket: Ticket,
        offset: i64,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_writing(ticket) {
            return;
        }
        if offset == self.fold.next {
            self.confirm(offset, now_ms, effects);
        } else {
            let at_least = Some(offset.max(self.fold.next) + 1);
            self.resolve(
                Search {
                    at_least,
                    own: false,
                    foreign: false,
                },
                effects,
            );
        }
    }

    /// The batch may lie in the log, or may come to lie there later: ask the log.
    pub(super) fn on_failed(&mut self, ticket: Ticket, _now_ms: u64, effects: &mut Vec<Effect>) {
        if self.is_writing(ticket) {
            self.resolve(
                Search {
                    at_least: None,
                    own: false,
                    foreign: false,
                },
                effects,
            );
        }
    }

    fn confirm(&mut self, offset: i64, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(batch) = self.in_flight.take() else {
            return;
        };
        let confirmed = Confirmed {
            range: batch.range,
            dead_lettered: batch.report.outcomes.dead_lettered,
            log_time_us: batch.log_time_us,
            watermark_us: batch.watermark_us,
        };
        self.fold.confirm(&confirmed, offset);
        self.confirmed(batch.report, now_ms, effects);
    }

    fn confirmed(&mut self, report: Box<Report>, now_ms: u64, effects: &mut Vec<Effect>) {
        self.retry_ms = self.settings.retry_ms.0;
        effects.push(Effect::Confirmed(report));
        self.close_if_due(now_ms, effects);
    }

    fn resolve(&mut self, search: Search, effects: &mut Vec<Effect>) {
        let ticket = self.next_ticket();
        if let Some(batch) = &mut self.in_flight {
            batch.phase = Phase::Resolving { ticket, search };
            effects.push(Effect::AskChain { ticket });
        }
    }

    pub(super) fn on_resolve_bounds(
        &mut self,
        ticket: Ticket,
        low: i64,
        high: i64,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.fold.doubtful = false;
        let from = self.fold.next;
        if from < low || from > high {
            // The part of the log that decides is gone.
            self.start_over(effects);
        } else if from == high {
            self.on_resolved(now_ms, effects);
        } else {
            effects.push(Effect::ReadChain {
                ticket,
                from,
                to: high,
            });
        }
    }

    pub(super) fn on_resolve_record(
        &mut self,
        offset: i64,
        payload: Option<&[u8]>,
        effects: &mut Vec<Effect>,
    ) {
        let valid = self
            .fold
            .offer_or_report(offset, payload, effects)
            .is_some();
        let Some(InFlight {
            batch,
            phase: Phase::Resolving { search, .. },
            ..
        }) = &mut self.in_flight
        else {
            return;
        };
        if valid && payload == Some(batch.as_ref()) {
            search.own = true;
        } else if valid {
            search.foreign = true;
        }
    }

    /// Everything that the log held was read: the chain has decided, or the batch is not there.
    pub(super) fn on_resolved(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(InFlight {
            phase: Phase::Resolving { search, .. },
            ..
        }) = &self.in_flight
        else {
            return;
        };
        let search = *search;
        if search.own
            && let Some(batch) = &self.in_flight
        {
            let report = batch.report.clone();
            if search.foreign {
                effects.push(Effect::Confirmed(report));
                return self.overtaken(effects);
            }
            self.in_flight = None;
            return self.confirmed(report, now_ms, effects);
        }
        if search.foreign {
            return self.overtaken(effects);
        }
        let until_ms = self.next_retry_at(now_ms);
        if let Some(batch) = &mut self.in_flight {
            batch.phase = Phase::Waiting { until_ms, search };
        }
    }

    /// Reads again while an acknowledged batch is not visible, else writes the very same bytes
    /// again. Should the first copy land after all, whichever lies first counts and the other is
    /// void; for the sums it makes no difference which.
    pub(super) fn retry_in_flight(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(InFlight {
            phase: Phase::Waiting { until_ms, search },
            ..
        }) = self.in_flight
        else {
            return;
        };
        if now_ms < until_ms {
            return;
        }
        if search
            .at_least
            .is_some_and(|at_least| self.fold.next < at_least)
        {
            self.resolve(search, effects);
        } else {
            let ticket = self.next_ticket();
            self.write(ticket, effects);
        }
    }
}
