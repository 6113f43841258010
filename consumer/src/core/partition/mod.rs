//! The owner of one partition, as a state machine.
//!
//! It is told what was read, written and committed, and answers with effects for the shell to
//! carry out. It keeps exactly-once as DESIGN's chain asks: a batch starts at the head, at most
//! one is in flight, and it counts only when the log says so. Whatever happens in between (a
//! crash, a lost acknowledgement, another writer) is resolved by reading the log, never by
//! guessing.
//!
//! Every request carries a ticket that its answer must bring back. An answer with another ticket
//! belongs to state that was dropped, and is passed over: records read before a seek above all,
//! for after the seek they would look like a gap.

mod checkpoint;
mod confirm;
mod fold;
mod history;
mod intake;
mod messages;
mod recovery;

use std::sync::Arc;

use streamgauge_chain::{Outcomes, TraceBytes};

pub use checkpoint::Checkpoint;
pub use history::{Base, Place};
pub use messages::{
    Effect, Input, Problem, Progress, Report, SourceRecord, StateName, Taken, Ticket,
};

use self::{confirm::InFlight, fold::Fold};
use super::{
    aggregate::Aggregator,
    dedupe::{Dedupe, Horizon, Identifier},
    series::Plan,
    validate::Limits,
};

/// What the owner is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The compiled series.
    pub plan: Arc<Plan>,
    /// Who writes, for people who read the log: `instance/epoch`.
    pub writer: String,
    /// A batch closes this long after its first record.
    pub batch_wait_ms: u64,
    /// A batch closes at this many source offsets.
    pub batch_records_max: u64,
    /// A batch closes when its encoded form may have reached this size.
    pub batch_bytes_max: usize,
    /// Once dead letters that are not acknowledged take this much, nothing more is taken.
    pub dead_letters_bytes_max: usize,
    /// Positions are committed at most this often.
    pub commit_interval_ms: u64,
    /// The first and the longest wait before the log is asked or written again.
    pub retry_ms: (u64, u64),
    /// A record that would move log time further ahead of the clock does not, and is not counted.
    pub log_time_ahead_us_max: i64,
    /// Older events are late.
    pub accepted_age_us: i64,
    /// How far the watermark stays behind the latest event.
    pub allowed_lateness_us: i64,
    /// Limits of one event.
    pub limits: Limits,
    /// How long an id is remembered, in log time.
    pub dedupe_horizon_us: i64,
    /// How many ids are remembered at most.
    pub dedupe_ids_max: usize,
    /// Distinct keys per series and hour of event time.
    pub keys_max: usize,
    /// Longest key.
    pub key_bytes_max: usize,
}

#[derive(Debug)]
enum State {
    /// Nothing is known yet.
    Starting,
    /// Reading `metrics-data` to find the head.
    Recovering { ticket: Ticket },
    /// Asking where the dedupe horizon starts in the source.
    Locating { ticket: Ticket },
    /// The source ends before the head, or the head is not known; asking again at this time.
    Stalled { until_ms: u64 },
    /// Reading the source up to the head for the dedupe set alone.
    Rebuilding { ticket: Ticket },
    /// Reading the source from the head on.
    Running { ticket: Ticket },
    /// Given up; nothing is accepted any more.
    Stopped,
}

/// The batch that takes events.
#[derive(Debug)]
struct Open {
    from: i64,
    aggregates: Aggregator,
    outcomes: Outcomes,
    traces: Vec<TraceBytes>,
    /// When its first offset came.
    first_at_ms: Option<u64>,
    /// Log time of its first record.
    first_log_us: Option<i64>,
    /// The least time of a record that was refused because it ran ahead.
    refused_from_us: Option<i64>,
    /// It takes no more, so that it ends with a log time before that.
    sealed: bool,
    /// Dead letters that are not acknowledged; the batch that counts them must wait.
    unacknowledged: u64,
}

/// The owner of one partition.
#[derive(Debug)]
pub struct Partition {
    settings: Arc<Settings>,
    state: State,
    last_ticket: Ticket,
    /// Counts how often local state was dropped, so that acknowledgements of dead letters from
    /// before are told apart.
    incarnation: u64,
    draining: bool,
    fold: Fold,
    dedupe: Dedupe,
    identifier: Identifier,
    open: Open,
    /// What the dead letters take that the shell holds, those of earlier incarnations too.
    letters_bytes: usize,
    in_flight: Option<InFlight>,
    /// The next source offset.
    position: i64,
    /// Largest log time up to `position`.
    log_time_us: i64,
    /// Largest event time up to `position`, never ahead of log time.
    event_time_us: i64,
    /// The wall clock, as far as the owner was told; without one nothing is ahead of it.
    clock_us: i64,
    /// What a replay was told of the log time behind the records that come next.
    log_time_was_us: Option<i64>,
    committed: Option<i64>,
    commit_at_ms: u64,
    retry_ms: u64,
}

impl Partition {
    /// An owner that waits for [`Input::Committed`].
    pub fn new(settings: Arc<Settings>) -> Self {
        let aggregates = Aggregator::new(
            Arc::clone(&settings.plan),
            settings.keys_max,
            settings.key_bytes_max,
        );
        Self {
            state: State::Starting,
            last_ticket: Ticket::default(),
            incarnation: 0,
            draining: false,
            fold: Fold::new(Horizon::new(settings.dedupe_horizon_us)),
            dedupe: Dedupe::new(settings.dedupe_horizon_us, settings.dedupe_ids_max),
            identifier: Identifier::default(),
            open: Open {
                from: 0,
                aggregates,
                outcomes: Outcomes::default(),
                traces: Vec::new(),
                first_at_ms: None,
                first_log_us: None,
                refused_from_us: None,
                sealed: false,
                unacknowledged: 0,
            },
            letters_bytes: 0,
            in_flight: None,
            position: 0,
            log_time_us: 0,
            event_time_us: 0,
            clock_us: i64::MAX,
            log_time_was_us: None,
            committed: None,
            commit_at_ms: 0,
            retry_ms: settings.retry_ms.0,
            settings,
        }
    }

    /// Tells the wall clock. It only judges record times that would run away with log time; what
    /// was judged lies on the chain, so that a replay needs no clock.
    pub fn see_clock(&mut self, now_us: i64) {
        self.clock_us = now_us;
    }

    /// Tells a replay of the log time with which the batch ended that covers the records that come next: what lies ahead
    /// of it was refused. `None` when nothing tells; then the time of every record is believed.
    pub fn see_log_time_was(&mut self, log_time_us: Option<i64>) {
        self.log_time_was_us = log_time_us;
        self.clock_us = log_time_us.map_or(i64::MAX, |log_time_us| {
            log_time_us.saturating_sub(self.settings.log_time_ahead_us_max)
        });
    }

    /// Takes an input other than a record. `now_ms` is a clock that never runs backwards.
    pub fn handle(&mut self, input: Input<'_>, now_ms: u64, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        match input {
            Input::Committed(committed) => self.on_committed(committed, effects),
            Input::ChainBounds { ticket, low, high } => {
                self.on_chain_bounds(ticket, low, high, now_ms, effects);
            }
            Input::ChainRecord {
                ticket,
                offset,
                payload,
            } => {
                self.on_chain_record(ticket, offset, payload, effects);
            }
            Input::ChainEnd { ticket, next } => self.on_chain_end(ticket, next, now_ms, effects),
            Input::HorizonStart {
                ticket,
                offset,
                low,
                high,
            } => {
                self.on_horizon(ticket, offset, low, high, now_ms, effects);
            }
            Input::EndOfPartition { ticket, offset } => self.on_end(ticket, offset, now_ms),
            Input::OutOfRange { ticket, low } => self.on_out_of_range(ticket, low, now_ms, effects),
            Input::DeadLettersAcknowledged {
                incarnation,
                count,
                bytes,
            } => {
                self.letters_bytes = self.letters_bytes.saturating_sub(bytes);
                if incarnation == self.incarnation {
                    self.open.unacknowledged = self.open.unacknowledged.saturating_sub(count);
                }
            }
            Input::BatchDelivered { ticket, offset } => {
                self.on_delivered(ticket, offset, now_ms, effects);
            }
            Input::BatchFailed { ticket } => self.on_failed(ticket, now_ms, effects),
            Input::Revoke => self.draining = true,
            Input::Tick => self.on_tick(now_ms, effects),
        }
        self.advance(now_ms, effects);
    }

    /// What must be acknowledged before the open batch may be written is counted per incarnation.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// When [`Input::Tick`] is due next; `None` when only other inputs matter.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let running = matches!(self.state, State::Running { .. });
        let batch = match (&self.in_flight, self.open.first_at_ms) {
            (None, Some(first)) if running && self.open.unacknowledged == 0 => {
                Some(first.saturating_add(self.settings.batch_wait_ms))
            }
            _ => None,
        };
        let retry = self.in_flight.as_ref().and_then(InFlight::retry_at_ms);
        let commit = self.commit_is_due().then_some(self.commit_at_ms);
        let stalled = match self.state {
            State::Stalled { until_ms } => Some(until_ms),
            _ => None,
        };
        [batch, retry, commit, stalled].into_iter().flatten().min()
    }

    /// Where the owner stands.
    pub fn progress(&self) -> Progress {
        let waiting = self.in_flight.as_ref().map(InFlight::first_log_us);
        Progress {
            state: self.state_name(),
            head: self.fold.chain.head(),
            position: self.position,
            committed: self.committed,
            delta_position: self.fold.next,
            log_time_us: self.log_time_us.max(self.fold.log_time_us),
            watermark_us: self.watermark_us(),
            oldest_unconfirmed_us: waiting.unwrap_or(self.open.first_log_us),
            dedupe_ids: self.dedupe.len() as u64,
            dedupe_bytes: self.dedupe.memory_bytes() as u64,
            dedupe_evicted: self.dedupe.evicted(),
            void_batches: self.fold.void,
        }
    }

    fn state_name(&self) -> StateName {
        match self.state {
            State::Starting | State::Recovering { .. } | State::Locating { .. } => {
                StateName::Recovering
            }
            State::Rebuilding { .. } => StateName::Rebuilding,
            State::Stalled { .. } => StateName::Stalled,
            State::Running { .. } if self.is_full() || !self.has_letter_room() => {
                StateName::Backpressure
            }
            State::Running { .. } => StateName::Running,
            State::Stopped => StateName::Stopped,
        }
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket = self.last_ticket.next();
        self.last_ticket
    }

    /// The next wait before asking again; they double up to the bound.
    fn next_retry_at(&mut self, now_ms: u64) -> u64 {
        let wait = self.retry_ms;
        self.retry_ms = (wait * 2).min(self.settings.retry_ms.1);
        now_ms.saturating_add(wait)
    }

    fn on_tick(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        match self.state {
            State::Stalled { until_ms } if now_ms >= until_ms => {
                if self.fold.truncated {
                    self.ask_chain(effects);
                } else {
                    self.locate(effects);
                }
            }
            _ => self.retry_in_flight(now_ms, effects),
        }
    }

    /// Does whatever has become possible: closes a batch, commits, stops.
    fn advance(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        self.close_if_due(now_ms, effects);
        self.commit_if_due(now_ms, effects);
        if self.draining && self.is_drained() {
            self.commit_now(now_ms, effects);
            self.state = State::Stopped;
            effects.push(Effect::Stopped);
        }
    }

    fn is_drained(&self) -> bool {
        match self.state {
            State::Running { .. } => self.in_flight.is_none() && self.open.is_empty(),
            _ => true,
        }
    }

    fn commit_is_due(&self) -> bool {
        matches!(self.state, State::Running { .. })
            && self.committed != Some(self.fold.chain.head())
    }

    fn commit_if_due(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if now_ms >= self.commit_at_ms {
            self.commit_now(now_ms, effects);
        }
    }

    fn commit_now(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.commit_is_due() {
            self.commit(now_ms, effects);
        }
    }

    fn commit(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let checkpoint = self.fold.checkpoint();
        self.committed = Some(checkpoint.head);
        self.commit_at_ms = now_ms.saturating_add(self.settings.commit_interval_ms);
        effects.push(Effect::Commit {
            offset: checkpoint.head,
            metadata: checkpoint.metadata(),
        });
    }

    fn watermark_us(&self) -> i64 {
        let own = self
            .event_time_us
            .saturating_sub(self.settings.allowed_lateness_us);
        self.fold.watermark_us.max(own).max(0)
    }
}

impl Open {
    fn is_empty(&self) -> bool {
        self.first_at_ms.is_none()
    }

    /// Starts the next batch at this offset.
    fn restart(&mut self, from: i64) {
        self.from = from;
        self.aggregates.clear();
        self.outcomes = Outcomes::default();
        self.traces.clear();
        self.first_at_ms = None;
        self.first_log_us = None;
        self.refused_from_us = None;
        self.sealed = false;
        self.unacknowledged = 0;
    }
}

#[cfg(test)]
mod tests;
