//! Finding the head and rebuilding what an owner must know to go on from there.

use super::{Checkpoint, Effect, Partition, Problem, State, Ticket};
use crate::core::dedupe::Dedupe;

impl Partition {
    /// The group's committed offset says from where to read the chain. Without one, or with one
    /// that another tool wrote, the chain is read whole: it is the truth, the offset a shortcut.
    pub(super) fn on_committed(
        &mut self,
        committed: Option<(i64, &str)>,
        effects: &mut Vec<Effect>,
    ) {
        if !matches!(self.state, State::Starting) {
            return;
        }
        self.committed = committed.map(|(offset, _)| offset);
        let checkpoint = committed.and_then(|(head, text)| Checkpoint::parse(head, text));
        self.fold.restore(checkpoint.unwrap_or_default());
        self.ask_chain(effects);
    }

    /// Reads the chain from where the fold stands.
    pub(super) fn ask_chain(&mut self, effects: &mut Vec<Effect>) {
        let ticket = self.next_ticket();
        self.state = State::Recovering { ticket };
        effects.push(Effect::AskChain { ticket });
    }

    pub(super) fn on_chain_bounds(
        &mut self,
        ticket: Ticket,
        low: i64,
        high: i64,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_resolving(ticket) {
            return self.on_resolve_bounds(ticket, low, high, now_ms, effects);
        }
        if !matches!(self.state, State::Recovering { ticket: expected } if expected == ticket) {
            return;
        }
        self.fold.doubtful = false;
        let wanted = self.fold.next;
        if wanted < low || wanted > high {
            // Below: batches were removed before they were read. Beyond: the topic is another one
            // than at the commit. Either way what is there is folded onto the head that is known.
            if wanted < low {
                (self.fold.truncated, self.fold.resumed) = (true, false);
            }
            self.fold.next = low;
            self.fold.forget_past();
            effects.push(Effect::Problem(Problem::ChainTruncated {
                wanted,
                low,
                high,
            }));
        }
        self.fold.see_low(low);
        let from = self.fold.due();
        if from == high {
            self.chain_read(now_ms, effects);
        } else {
            effects.push(Effect::ReadChain {
                ticket,
                from,
                to: high,
            });
        }
    }

    pub(super) fn on_chain_record(
        &mut self,
        ticket: Ticket,
        offset: i64,
        payload: Option<&[u8]>,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_resolving(ticket) {
            self.on_resolve_record(offset, payload, effects);
        } else if matches!(self.state, State::Recovering { ticket: expected } if expected == ticket)
        {
            self.fold.offer_or_report(offset, payload, effects);
        }
    }

    pub(super) fn on_chain_end(
        &mut self,
        ticket: Ticket,
        next: i64,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let resolving = self.is_resolving(ticket);
        let recovering =
            matches!(self.state, State::Recovering { ticket: expected } if expected == ticket);
        if !resolving && !recovering {
            return;
        }
        let expected = self.fold.due();
        if expected < next && !self.fold.doubtful && !self.fold.truncated && self.fold.doubts() {
            effects.push(Effect::Problem(Problem::ChainIncomplete { expected }));
        }
        if self.fold.doubtful {
            // The same question again: its answer begins at what was left out.
            effects.push(Effect::AskChain { ticket });
            return;
        }
        self.fold.read_to(next);
        if resolving {
            self.on_resolved(now_ms, effects);
        } else {
            self.chain_read(now_ms, effects);
        }
    }

    /// All that the log holds is folded. When part of it was gone and nothing that is left tells
    /// where the chain goes on, any head would be a guess, and a wrong one counts twice or never.
    fn chain_read(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.fold.truncated && !self.fold.resumed {
            let high = self.fold.next;
            effects.push(Effect::Problem(Problem::HeadUnknown { high }));
            self.stall(now_ms);
        } else {
            self.fold.truncated = false;
            self.locate(effects);
        }
    }

    fn stall(&mut self, now_ms: u64) {
        self.state = State::Stalled {
            until_ms: self.next_retry_at(now_ms),
        };
    }

    /// Asks where the dedupe horizon of the head starts in the source.
    pub(super) fn locate(&mut self, effects: &mut Vec<Effect>) {
        let ticket = self.next_ticket();
        self.state = State::Locating { ticket };
        let known = self.fold.log_time_us > 0;
        let start_us = self.dedupe.horizon_start_us(self.fold.log_time_us);
        // Record times are whole milliseconds; the first one within the horizon is wanted.
        let log_time_ms =
            known.then(|| start_us.div_euclid(1000) + i64::from(start_us % 1000 != 0));
        effects.push(Effect::FindHorizon {
            ticket,
            log_time_ms,
        });
    }

    pub(super) fn on_horizon(
        &mut self,
        ticket: Ticket,
        offset: Option<i64>,
        low: i64,
        high: i64,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        if !matches!(self.state, State::Locating { ticket: expected } if expected == ticket) {
            return;
        }
        let head = self.fold.chain.head();
        if head > high {
            // Reading on from an offset that does not exist yet would skip, silently, whatever
            // is written below the head. So the partition stands still and says why.
            effects.push(Effect::Problem(Problem::SourceTooShort { head, high }));
            self.note_reused(high, now_ms, effects);
            return self.stall(now_ms);
        }
        self.retry_ms = self.settings.retry_ms.0;
        self.forget(head);
        if head < low {
            self.position = head;
            self.skip_hole(low, now_ms, effects);
        } else {
            // A record that was refused for its time may lie far before the horizon, and the source names its offset.
            let known = self.fold.history.horizon_offset(self.fold.log_time_us);
            let mut start = offset.unwrap_or(head).max(known.unwrap_or(0));
            if let Some(from) = self.fold.reused_from.filter(|from| *from < head) {
                let from = from.max(low);
                effects.push(Effect::Problem(Problem::OffsetsReused { from, to: head }));
                start = start.min(from);
            }
            self.seek(start.clamp(low, head), effects);
        }
    }

    /// Remembers, over restarts too, from where on the source is written a second time.
    fn note_reused(&mut self, high: i64, now_ms: u64, effects: &mut Vec<Effect>) {
        let from = self.fold.reused_from.map_or(high, |from| from.min(high));
        if self.fold.reused_from != Some(from) {
            self.fold.reused_from = Some(from);
            self.commit(now_ms, effects);
        }
    }

    /// Drops all local state; the open batch starts anew at the head.
    fn forget(&mut self, head: i64) {
        self.incarnation += 1;
        self.in_flight = None;
        self.dedupe = Dedupe::new(
            self.settings.dedupe_horizon_us,
            self.settings.dedupe_ids_max,
        );
        self.open.restart(head);
        self.log_time_us = 0;
        self.event_time_us = 0;
    }

    /// Reads the source from here: up to the head for the dedupe set, then for the chain.
    pub(super) fn seek(&mut self, offset: i64, effects: &mut Vec<Effect>) {
        let ticket = self.next_ticket();
        self.position = offset;
        effects.push(Effect::SeekSource { ticket, offset });
        if offset < self.open.from {
            self.state = State::Rebuilding { ticket };
        } else {
            self.run(ticket);
        }
    }

    /// The set is as it was at the head: from here on offsets get outcomes.
    pub(super) fn run(&mut self, ticket: Ticket) {
        self.state = State::Running { ticket };
        self.fold.reused_from = None;
        self.position = self.position.max(self.open.from);
        self.log_time_us = self.log_time_us.max(self.fold.log_time_us);
    }

    /// Another writer moved the head: what was aggregated here is counted there.
    pub(super) fn overtaken(&mut self, effects: &mut Vec<Effect>) {
        self.in_flight = None;
        effects.push(Effect::Problem(Problem::Overtaken {
            head: self.fold.chain.head(),
        }));
        self.locate(effects);
    }

    /// The chain itself changed under the owner: read it again from what is known.
    pub(super) fn start_over(&mut self, effects: &mut Vec<Effect>) {
        self.in_flight = None;
        self.ask_chain(effects);
    }
}
