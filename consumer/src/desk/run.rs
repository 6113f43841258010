//! A replay or a drop under way.
//!
//! For each dead letter a replay writes three records, each acknowledged before the next: the mark `unfinished`, the
//! record itself to the source topic, and the mark `replayed`. So a crash anywhere in between leaves a dead letter that
//! is passed over afterwards unless somebody insists, and never one that is silently replayed twice.

use std::{sync::Arc, time::Duration};

use streamgauge_kafka::{PublishError, Publisher, Record};
use streamgauge_lifecycle::{SharedClock, Shutdown};
use streamgauge_proto::v1;
use streamgauge_resilience::{Backoff, BackoffConfig};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};

use super::{
    config::DeskConfig,
    edit::Edit,
    index::Selected,
    letter::Stored,
    mark::{Mark, State},
    scan::Scanner,
    view,
};
use crate::{metrics::ConsumerMetrics, provenance::Replay};

/// What is done to each.
#[derive(Clone, Debug)]
pub enum Action {
    /// Written to the source topic again.
    Replay {
        /// How it is mended.
        edit: Edit,
        /// How long dedupe surely knows a record, in microseconds. One whose earlier replay lies further back is refused;
        /// without it none is.
        known_us: Option<i64>,
    },
    /// Laid aside.
    Drop,
}

/// A replay or a drop.
pub struct Run {
    /// What is done.
    pub action: Action,
    /// Nothing is written.
    pub dry_run: bool,
    /// To which, in this order.
    pub selected: Vec<Selected>,
    /// How fast at most.
    pub per_second: u32,
    /// Reads the dead letters.
    pub scanner: Scanner,
    /// Writes.
    pub publisher: Publisher,
    /// The source topic.
    pub source: String,
    /// This instance.
    pub instance: String,
    /// The bounds.
    pub config: Arc<DeskConfig>,
    /// What is counted.
    pub metrics: ConsumerMetrics,
    /// Time.
    pub clock: SharedClock,
    /// Ends it between two steps.
    pub stop: Shutdown,
    /// What makes it the only one.
    pub permit: OwnedSemaphorePermit,
}

/// A record to be written.
#[derive(Debug)]
struct Outgoing {
    topic: String,
    partition: Option<i32>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

const NOBODY_LISTENS: &str = "nobody listens any more";

type Told = mpsc::Sender<v1::DeadLetterProgress>;

impl Run {
    /// Runs to the end, to the shutdown, or until nobody listens any more.
    pub async fn run(self, mut progress: v1::DeadLetterProgress, told: Told) {
        let started = self.clock.monotonic();
        let mut next = Instant::now();
        // The totals are known at once.
        let mut listening = self.tell(&told, &progress).await;
        for step in steps(
            &self.selected,
            self.step_letters(),
            self.config.step_kib_max * 1024,
        ) {
            let ended = match listening {
                true => self.wait_until(next, &told).await,
                false => Some(NOBODY_LISTENS),
            };
            if let Some(reason) = ended {
                progress.stopped = reason.to_owned();
                break;
            }
            next = next.max(Instant::now()) + self.time_for(step.len());
            match self.step(step).await {
                Ok(outcomes) => tally(&mut progress, outcomes),
                Err(error) => {
                    self.metrics.core().error("kafka", "desk");
                    progress.stopped = format!("the dead-letter topic cannot be read: {error}");
                    break;
                }
            }
            listening = self.tell(&told, &progress).await;
            progress.outcomes.clear();
        }
        progress.finished = true;
        let seconds = self.clock.monotonic().saturating_sub(started).as_secs_f64();
        let v1::DeadLetterProgress {
            selected,
            done,
            refused,
            failed,
            ..
        } = progress;
        let (what, dry_run, stopped) = (self.verb(), self.dry_run, &progress.stopped);
        tracing::info!(
            what,
            dry_run,
            selected,
            done,
            refused,
            failed,
            seconds,
            stopped,
            "dead letters"
        );
        // The next one may begin before the last word of this one is read.
        drop(self.permit);
        // Nobody may be there any more.
        let _ = told.send_timeout(progress, self.config.stall()).await;
    }

    /// Says where it is; `false` when nobody takes it for too long, or the consumer shuts down meanwhile.
    async fn tell(&self, told: &Told, progress: &v1::DeadLetterProgress) -> bool {
        tokio::select! {
            biased;
            sent = told.send_timeout(progress.clone(), self.config.stall()) => sent.is_ok(),
            () = self.stop.triggered() => false,
        }
    }

    const fn verb(&self) -> &'static str {
        match self.action {
            Action::Replay { .. } => "replayed",
            Action::Drop => "dropped",
        }
    }

    /// Small steps for a low rate, so that progress is told often.
    fn step_letters(&self) -> usize {
        let per_step = u64::from(self.per_second) * self.config.pace_ms / 1_000;
        (per_step as usize).clamp(1, self.config.step_letters_max)
    }

    fn time_for(&self, letters: usize) -> Duration {
        Duration::from_secs_f64(letters as f64 / f64::from(self.per_second))
    }

    /// Waits for the turn of the next step; says why there is none.
    async fn wait_until(&self, next: Instant, told: &Told) -> Option<&'static str> {
        tokio::select! {
            biased;
            () = self.stop.triggered() => Some("the consumer shuts down"),
            () = told.closed() => Some(NOBODY_LISTENS),
            () = tokio::time::sleep_until(next) => None,
        }
    }

    async fn step(
        &self,
        step: &[Selected],
    ) -> Result<Vec<v1::DeadLetterOutcome>, streamgauge_kafka::KafkaError> {
        let Action::Replay { edit, known_us } = &self.action else {
            let letters: Vec<&Selected> = step.iter().collect();
            let marked = match self.dry_run {
                true => vec![Ok(()); letters.len()],
                false => self.mark(&letters, State::Dropped, "").await,
            };
            let outcomes = letters.into_iter().zip(marked);
            return Ok(outcomes
                .map(|(one, marked)| self.outcome(one, marked.map_err(not_marked)))
                .collect());
        };
        let stored = self.scanner.stored(step).await?;
        let mut outcomes = Vec::with_capacity(step.len());
        let mut ready = Vec::new();
        for (one, stored) in step.iter().zip(stored) {
            let outgoing = match known_us.and_then(|known_us| self.unknown(one, known_us)) {
                None => self.outgoing(stored, edit),
                Some(why) => Err(why),
            };
            match outgoing {
                Ok(outgoing) => ready.push((one, outgoing)),
                Err(why) => outcomes.push(refused(one, why)),
            }
        }
        if self.dry_run {
            outcomes.extend(ready.iter().map(|(one, outgoing)| v1::DeadLetterOutcome {
                preview: preview(outgoing, self.config.body_kib_max * 1024),
                ..self.outcome(one, Ok(()))
            }));
        } else {
            outcomes.extend(self.replay(ready, edit.text()).await);
        }
        Ok(outcomes)
    }

    /// Why nothing would know the record by the one that an earlier replay wrote, or may have written. Asked when it is
    /// about to be written: a slow replay may take longer than the horizon.
    fn unknown(&self, one: &Selected, known_us: i64) -> Option<String> {
        let since_us = one.standing.begun_us()?;
        let ago_us = self.clock.now_us().saturating_sub(since_us);
        (ago_us > known_us).then(|| {
            let (ago_s, known_s) = (ago_us / 1_000_000, known_us / 1_000_000);
            format!(
                "a replay of it began {ago_s} s ago, and dedupe surely knows a record for {known_s} s only: if that one reached the source, it would count a second time; look for it first, and ask for count_twice (--count-twice) if it is to be counted all the same"
            )
        })
    }

    /// The record as it goes to the source, or why it does not.
    fn outgoing(&self, stored: Option<Stored>, edit: &Edit) -> Result<Outgoing, String> {
        let stored = stored.ok_or("retention has removed it meanwhile")?;
        let letter = &stored.letter;
        if *letter.id.topic != *self.source {
            let (from, reads) = (&letter.id.topic, &self.source);
            return Err(format!(
                "it came from {from}, and this consumer reads {reads}"
            ));
        }
        if !letter.is_whole() {
            return Err(String::from("its record was too large to be kept whole"));
        }
        let mended = edit.apply(&stored).map_err(|error| error.to_string())?;
        let past = Replay {
            first: letter.first(),
            replays: letter.attempts,
        };
        let headers = past.headers().into_iter();
        let headers = headers.map(|(name, value)| (name.to_owned(), value.into_bytes()));
        Ok(Outgoing {
            topic: self.source.clone(),
            // A record with a key lies where its key belongs; one without stays where it was.
            partition: mended.key.is_none().then_some(letter.id.partition),
            key: mended.key,
            value: mended.value,
            headers: headers.chain(stored.headers).collect(),
        })
    }

    async fn replay(
        &self,
        ready: Vec<(&Selected, Outgoing)>,
        edit: &str,
    ) -> Vec<v1::DeadLetterOutcome> {
        let letters: Vec<&Selected> = ready.iter().map(|(one, _)| *one).collect();
        let marked = self.mark(&letters, State::Unfinished, edit).await;
        let mut outcomes = Vec::with_capacity(ready.len());
        let mut begun = Vec::with_capacity(ready.len());
        for ((one, outgoing), marked) in ready.into_iter().zip(marked) {
            match marked {
                Ok(()) => begun.push((one, outgoing)),
                Err(error) => outcomes.push(self.outcome(one, Err(not_marked(error)))),
            }
        }
        let records: Vec<&Outgoing> = begun.iter().map(|(_, outgoing)| outgoing).collect();
        let written = self.write(&records).await;
        let (mut replayed, mut refused) = (Vec::new(), Vec::new());
        for ((one, _), written) in begun.iter().zip(written) {
            match written {
                Ok(()) => {
                    self.metrics.replayed(one.reason);
                    replayed.push(*one);
                }
                Err(error) if error.is_uncertain() => {
                    let why =
                        format!("{error}; it may have been written, and is marked unfinished");
                    outcomes.push(self.outcome(one, Err(why)));
                }
                Err(error) => {
                    outcomes.push(self.outcome(one, Err(error.to_string())));
                    refused.push(*one);
                }
            }
        }
        // What was surely not written is open again.
        for (one, error) in refused
            .iter()
            .zip(self.mark(&refused, State::Open, edit).await)
        {
            if let Err(error) = error {
                tracing::warn!(letter = %one.id, %error, "a dead letter that was not replayed stays unfinished");
            }
        }
        let marked = self.mark(&replayed, State::Replayed, edit).await;
        let why =
            |error| format!("it was replayed, but not marked so, and stays unfinished: {error}");
        outcomes.extend(
            replayed
                .into_iter()
                .zip(marked)
                .map(|(one, marked)| self.outcome(one, marked.map_err(why))),
        );
        outcomes
    }

    fn outcome(&self, one: &Selected, ended: Result<(), String>) -> v1::DeadLetterOutcome {
        let (outcome, message) = match ended {
            Ok(()) => (self.verb(), String::new()),
            Err(why) => ("failed", why),
        };
        outcome_of(one, outcome, message)
    }

    /// Writes a mark for each, trying again what may pass.
    async fn mark(
        &self,
        letters: &[&Selected],
        state: State,
        edit: &str,
    ) -> Vec<Result<(), PublishError>> {
        let marks: Vec<Outgoing> = letters
            .iter()
            .map(|one| self.mark_record(one, state, edit))
            .collect();
        let mut waits = Backoff::new(&self.mark_backoff(), 0);
        let mut ended = self.write(&marks.iter().collect::<Vec<_>>()).await;
        while ended.iter().any(may_pass) && !self.stop.is_triggered() {
            let Some(wait) = waits.next() else { break };
            tokio::time::sleep(wait).await;
            let again: Vec<usize> = (0..ended.len())
                .filter(|at| may_pass(&ended[*at]))
                .collect();
            let records: Vec<&Outgoing> = again.iter().map(|at| &marks[*at]).collect();
            for (at, result) in again.into_iter().zip(self.write(&records).await) {
                ended[at] = result;
            }
        }
        ended
    }

    /// A mark is later than every mark before it, whatever the clocks of those who wrote them.
    fn mark_record(&self, one: &Selected, state: State, edit: &str) -> Outgoing {
        let begun = i64::from(state != State::Unfinished);
        let time_us = self.clock.now_us().max(one.standing.time_us + 1 + begun);
        let mark = Mark {
            id: one.id.clone(),
            state,
            time_us,
        };
        let headers = mark.headers(&self.instance, edit).into_iter();
        Outgoing {
            topic: self.scanner.topic.clone(),
            partition: Some(one.place.partition),
            key: Some(one.id.to_string().into_bytes()),
            value: Some(Vec::new()),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.into_bytes()))
                .collect(),
        }
    }

    fn mark_backoff(&self) -> BackoffConfig {
        BackoffConfig {
            initial_ms: 50,
            max_ms: 2_000,
            multiplier: 2.0,
            attempts: self.config.mark_attempts_max,
        }
    }

    async fn write(&self, records: &[&Outgoing]) -> Vec<Result<(), PublishError>> {
        let mut batch = self.publisher.batch();
        for record in records {
            let headers = record.headers.iter();
            let headers: Vec<_> = headers.map(|(name, value)| (&**name, &**value)).collect();
            batch.push(Record {
                topic: &record.topic,
                partition: record.partition,
                key: record.key.as_deref(),
                payload: record.value.as_deref(),
                timestamp_ms: None,
                headers: &headers,
            });
        }
        let mut ended = vec![Ok(()); records.len()];
        for (at, error) in batch.finish().await.failed {
            self.metrics.core().error("kafka", "desk");
            ended[at] = Err(error);
        }
        ended
    }
}

fn may_pass(ended: &Result<(), PublishError>) -> bool {
    ended.as_ref().is_err_and(PublishError::is_retryable)
}

fn not_marked(error: PublishError) -> String {
    format!("it could not be marked, and was left as it is: {error}")
}

fn refused(one: &Selected, why: String) -> v1::DeadLetterOutcome {
    outcome_of(one, "refused", why)
}

fn outcome_of(one: &Selected, outcome: &str, message: String) -> v1::DeadLetterOutcome {
    v1::DeadLetterOutcome {
        id: Some(view::id(&one.id)),
        reason: one.reason.as_str().to_owned(),
        outcome: outcome.to_owned(),
        message,
        preview: String::new(),
    }
}

fn preview(outgoing: &Outgoing, bytes_max: usize) -> String {
    let value = outgoing.value.as_deref().unwrap_or_default();
    match prost::Message::decode(value) {
        Ok(event) if !value.is_empty() => {
            view::clip(&view::event_json(&event), bytes_max).to_owned()
        }
        _ => String::new(),
    }
}

fn tally(progress: &mut v1::DeadLetterProgress, outcomes: Vec<v1::DeadLetterOutcome>) {
    for one in &outcomes {
        match one.outcome.as_str() {
            "refused" => progress.refused += 1,
            "failed" => progress.failed += 1,
            _ => progress.done += 1,
        }
    }
    progress.outcomes = outcomes;
}

/// Slices of at most so many dead letters, and so many bytes unless one alone is larger.
fn steps(mut rest: &[Selected], letters_max: usize, bytes_max: usize) -> Vec<&[Selected]> {
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(letters_max).take_while(|one| {
            bytes += one.bytes;
            bytes <= bytes_max
        });
        let (step, left) = rest.split_at(fits.count().max(1));
        steps.push(step);
        rest = left;
    }
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        core::reject::Reason,
        desk::{index::Place, letter::LetterId, mark::Standing},
    };

    fn selected(offset: i64, bytes: usize) -> Selected {
        let id = LetterId {
            topic: "t".into(),
            partition: 0,
            offset,
        };
        let place = Place {
            partition: 0,
            offset,
        };
        Selected {
            id,
            reason: Reason::Late,
            place,
            time_us: offset,
            bytes,
            copies: 1,
            standing: Standing::default(),
        }
    }

    proptest! {
        #[test]
        fn steps_are_bounded_and_leave_nothing_out(sizes in prop::collection::vec(0usize..50, 0..40), letters in 1usize..10) {
            let all: Vec<Selected> = (0..).zip(&sizes).map(|(offset, bytes)| selected(offset, *bytes)).collect();
            let steps = steps(&all, letters, 60);
            for step in &steps {
                let bytes: usize = step.iter().map(|one| one.bytes).sum();
                prop_assert!(!step.is_empty() && step.len() <= letters && (bytes <= 60 || step.len() == 1));
            }
            prop_assert_eq!(steps.concat(), all);
        }
    }
}
