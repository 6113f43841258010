//! Taking source records: each offset from the head on gets exactly one outcome.

use streamgauge_chain::sketch::UserHash;

use super::{Effect, Partition, Problem, SourceRecord, State, Taken, Ticket};
use crate::core::{
    dedupe::Seen,
    reject::{Reason, Reject},
    validate::{self, Event},
};

/// Most trace contexts in one batch.
const TRACES_MAX: usize = streamgauge_chain::delta::TRACES_MAX;

impl Partition {
    /// Takes the next source record that was delivered under `ticket`.
    ///
    /// Call [`Partition::handle`] with a tick after each run of records, so that what became
    /// possible is done.
    #[inline]
    pub fn take(
        &mut self,
        ticket: Ticket,
        record: &SourceRecord<'_>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) -> Taken {
        match self.state {
            State::Running { ticket: expected } if expected == ticket => {}
            State::Rebuilding { ticket: expected } if expected == ticket => {
                if record.offset < self.open.from {
                    return self.revisit(record);
                }
                self.run(ticket);
            }
            _ => return Taken::Done,
        }
        if record.offset < self.position {
            return Taken::Done;
        }
        if self.hides_refusal(record) {
            self.open.sealed = true;
        }
        if self.draining || self.is_full() {
            self.close_if_due(now_ms, effects);
            if self.draining || self.is_full() {
                return Taken::Full;
            }
        }
        if !self.has_letter_room() {
            return Taken::Full;
        }
        self.count(record, now_ms)
    }

    /// Whether the record at `offset` would be counted into a batch that still takes contexts.
    pub fn wants_trace(&self, offset: i64) -> bool {
        let reading = matches!(self.state, State::Running { .. } | State::Rebuilding { .. });
        reading
            && offset >= self.position.max(self.open.from)
            && self.open.traces.len() < TRACES_MAX
    }

    /// Whether the open batch has reached a limit.
    pub(super) fn is_full(&self) -> bool {
        self.open.sealed
            || self.open_records() >= self.settings.batch_records_max
            || self.open.aggregates.encoded_bytes_max() >= self.settings.batch_bytes_max
    }

    /// Whether another dead letter may be made. Any record may become one, so that without room none
    /// is taken. The last one may be of any size, or a large record would stop its partition.
    pub(super) fn has_letter_room(&self) -> bool {
        self.letters_bytes < self.settings.dead_letters_bytes_max
    }

    fn open_records(&self) -> u64 {
        (self.position - self.open.from).max(0).cast_unsigned()
    }

    /// Below the head: the offset has its outcome already. A record that was written there later,
    /// after the source had lost its end, has none and is kept.
    fn revisit(&mut self, record: &SourceRecord<'_>) -> Taken {
        if record.offset < self.position {
            return Taken::Done;
        }
        if self
            .fold
            .reused_from
            .is_none_or(|from| record.offset < from)
        {
            self.position = record.offset + 1;
            self.remember(record);
            return Taken::Done;
        }
        if self.open.unacknowledged >= self.settings.batch_records_max || !self.has_letter_room() {
            return Taken::Full;
        }
        self.position = record.offset + 1;
        self.dead_letter(record, reused(self.open.from))
    }

    /// Only the id matters. A record that was refused for its time neither moved log time nor gave
    /// its id; which those were is told by the chain, not by log time as it is at the head.
    fn remember(&mut self, record: &SourceRecord<'_>) {
        let time_us = time_us(record);
        let refused = match self.log_time_was_us {
            Some(log_time_us) => time_us > log_time_us,
            None => self.fold.history.refused(record.offset, time_us),
        };
        if refused {
            return;
        }
        self.see_time(record);
        let (log_time_us, limits) = (self.log_time_us, &self.settings.limits);
        if let Ok(event) = validate::event(record.key, record.payload, log_time_us, limits)
            && self.late_from(&event).is_none()
        {
            let id = self
                .identifier
                .identify(event.tenant, event.user_id, event.event_id);
            self.dedupe.insert(id, log_time_us);
        }
    }

    fn count(&mut self, record: &SourceRecord<'_>, now_ms: u64) -> Taken {
        let ahead = self.is_ahead(record);
        if !ahead {
            self.see_time(record);
        }
        self.open.first_at_ms.get_or_insert(now_ms);
        self.open.first_log_us.get_or_insert(self.log_time_us);
        // Offsets between records hold none: control records, or what compaction removed.
        let gap = record.offset - self.position;
        self.open.outcomes.no_record += gap.cast_unsigned();
        self.position = record.offset + 1;

        if ahead {
            let from_us = self.open.refused_from_us.get_or_insert(i64::MAX);
            *from_us = (*from_us).min(time_us(record));
            return self.refuse(record, ahead_of_clock(record.timestamp_ms, self.clock_us));
        }
        let (log_time_us, limits) = (self.log_time_us, &self.settings.limits);
        match validate::event(record.key, record.payload, log_time_us, limits) {
            Ok(event) => self.count_event(&event, record),
            Err(reject) => self.refuse(record, reject),
        }
    }

    fn refuse(&mut self, record: &SourceRecord<'_>, reject: Reject) -> Taken {
        self.open.outcomes.dead_lettered += 1;
        self.dead_letter(record, reject)
    }

    fn dead_letter(&mut self, record: &SourceRecord<'_>, reject: Reject) -> Taken {
        self.open.unacknowledged += 1;
        self.letters_bytes = self.letters_bytes.saturating_add(record.letter_bytes());
        Taken::DeadLetter(reject)
    }

    /// One record time far ahead would make everything after it late, for ever. A record that moves
    /// no log time does no harm, whatever the clock says.
    fn is_ahead(&self, record: &SourceRecord<'_>) -> bool {
        let latest_us = self
            .clock_us
            .saturating_add(self.settings.log_time_ahead_us_max);
        time_us(record) > latest_us.max(self.log_time_us)
    }

    /// Whether the open batch would end with a log time at or beyond that of a record that it
    /// refused: the clock has gone on since. Then it ends before this record, so that log time at its
    /// end tells what it refused.
    fn hides_refusal(&self, record: &SourceRecord<'_>) -> bool {
        self.open
            .refused_from_us
            .is_some_and(|from_us| time_us(record) >= from_us && !self.is_ahead(record))
    }

    fn count_event(&mut self, event: &Event<'_>, record: &SourceRecord<'_>) -> Taken {
        let id = self
            .identifier
            .identify(event.tenant, event.user_id, event.event_id);
        let late_from = self.late_from(event);
        let seen = match late_from {
            None => self.dedupe.insert(id, self.log_time_us),
            Some(_) if self.dedupe.knows(id, self.log_time_us) => Seen::Duplicate,
            Some(_) => Seen::New,
        };
        if seen == Seen::Duplicate {
            self.open.outcomes.duplicate += 1;
            return Taken::Done;
        }
        if let Some(accepted_from) = late_from {
            self.open.outcomes.late += 1;
            return self.dead_letter(record, late(event.occurred_at_us, accepted_from));
        }
        self.open.outcomes.counted += 1;
        self.open
            .aggregates
            .add(event, UserHash::of(self.identifier.user()));
        self.event_time_us = self
            .event_time_us
            .max(event.occurred_at_us.min(self.log_time_us));
        if let Some(trace) = record.trace
            && self.open.traces.len() < TRACES_MAX
        {
            self.open.traces.push(trace);
        }
        Taken::Done
    }

    /// For an event that is too old: from when on events are accepted. A late event does not take its id, so that it is
    /// counted when it is replayed as a historical one. Whether an event is late follows from the log alone, so that a
    /// rebuilt set holds the same ids.
    fn late_from(&self, event: &Event<'_>) -> Option<i64> {
        let accepted_from = self
            .log_time_us
            .saturating_sub(self.settings.accepted_age_us);
        (event.occurred_at_us < accepted_from && !event.historical).then_some(accepted_from)
    }

    /// Log time is the largest record time so far, so that it never runs backwards.
    fn see_time(&mut self, record: &SourceRecord<'_>) {
        self.log_time_us = self.log_time_us.max(time_us(record));
    }

    pub(super) fn on_end(&mut self, ticket: Ticket, offset: i64, now_ms: u64) {
        match self.state {
            State::Running { ticket: expected } if expected == ticket => {}
            State::Rebuilding { ticket: expected } if expected == ticket => {
                if offset < self.open.from {
                    return;
                }
                self.run(ticket);
            }
            _ => return,
        }
        if offset > self.position {
            self.open.first_at_ms.get_or_insert(now_ms);
            self.open.outcomes.no_record += (offset - self.position).cast_unsigned();
            self.position = offset;
        }
    }

    /// Retention was faster than the reader: go on at what is left.
    pub(super) fn on_out_of_range(
        &mut self,
        ticket: Ticket,
        low: i64,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        match self.state {
            State::Running { ticket: expected } | State::Rebuilding { ticket: expected }
                if expected == ticket => {}
            _ => return,
        }
        if low <= self.position {
            // The position is not below the log, so it is beyond: ask where the source ends.
            self.in_flight = None;
            self.start_over(effects);
        } else if low <= self.open.from {
            self.seek(low, effects);
        } else {
            self.position = self.position.max(self.open.from);
            self.skip_hole(low, now_ms, effects);
        }
    }

    /// Counts the offsets up to `low` as missing and goes on there.
    pub(super) fn skip_hole(&mut self, low: i64, now_ms: u64, effects: &mut Vec<Effect>) {
        let from = self.position;
        self.open.first_at_ms.get_or_insert(now_ms);
        self.open.outcomes.missing += (low - from).cast_unsigned();
        effects.push(Effect::Problem(Problem::SourceTruncated { from, to: low }));
        self.seek(low, effects);
    }
}

fn time_us(record: &SourceRecord<'_>) -> i64 {
    record.timestamp_ms.saturating_mul(1000)
}

#[cold]
fn reused(head: i64) -> Reject {
    let detail =
        format!("the offset was accounted for before the source lost its end; the head is {head}");
    Reject::validate(Reason::ReusedOffset, detail)
}

#[cold]
fn ahead_of_clock(timestamp_ms: i64, clock_us: i64) -> Reject {
    let detail = format!(
        "the record time is {timestamp_ms} ms, the clock {} ms; see events.log_time_ahead_max_ms",
        clock_us / 1000
    );
    Reject::validate(Reason::RecordTimeAhead, detail)
}

#[cold]
fn late(occurred_at_us: i64, accepted_from_us: i64) -> Reject {
    let detail = format!("occurred_at is {occurred_at_us} us; accepted from {accepted_from_us} us");
    Reject::validate(Reason::Late, detail)
}
