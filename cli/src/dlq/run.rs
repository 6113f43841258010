//! `streamgauge dlq replay` and `drop`: starts the one or the other, and follows it to its end.

use clap::Args;
use serde::Serialize;
use streamgauge_proto::v1::{
    DeadLetterOutcome, DeadLetterProgress, DropDeadLettersRequest, ReplayDeadLettersRequest,
};
use tonic::Streaming;

use super::{
    client::Desk,
    select::{SelectionArgs, show_id},
};
use crate::{
    error::{CliError, Exit},
    output::{Output, Paint},
    progress_bar,
    table::{printable, whole},
};

/// Outcomes that are told one by one; the rest are counted.
const TOLD_MAX: usize = 1_000;

/// Write dead letters to the source topic again, as they are or mended
///
/// Each is marked as it goes, so that a second replay passes it over. An edited event is keyed by
/// its user_id. An event keeps its event_id: what was counted within the dedupe horizon already
/// ends as a duplicate. --again refuses those whose earlier replay lies further back, for nothing
/// would know them; --count-twice replays them all the same.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge dlq replay 0/1234
  streamgauge dlq replay --reason late --set historical=true
  streamgauge dlq replay --reason missing_field --rename properties.kind=event_type --dry-run
  streamgauge dlq replay --reason wrong_key --rekey --rate 100
  streamgauge dlq replay --state unfinished --again

Fields: event_id, user_id, event_type, occurred_at, page_url, session_id, value, historical,
properties and properties.NAME. Renames go before sets.")]
pub struct ReplayArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Set a field of the event
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Move a value from one field of the event to another
    #[arg(long, value_name = "OLD=NEW")]
    rename: Vec<String>,
    /// Take the event's user_id for the key, and change nothing else
    #[arg(long)]
    rekey: bool,
    /// Give events without an event_id one that is made of where they came from
    #[arg(long)]
    assign_ids: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Also those that were replayed or dropped, or whose replay is unfinished
    #[arg(long)]
    again: bool,
    /// With --again, also those whose earlier replay lies so far back that they would count a second time
    #[arg(long, requires = "again")]
    count_twice: bool,
    /// How many at most [default: the consumer's desk.run_letters_max]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// How many in a second at most [default: the consumer's desk.per_second_max]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

/// Lay dead letters aside
///
/// They are marked as dropped. The log is not rewritten: the records stay where they are until
/// retention removes them, and `replay --again` still finds them.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge dlq drop 0/1234
  streamgauge dlq drop --reason undecodable --to now-7d --dry-run
  streamgauge dlq drop --all")]
pub struct DropArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Also those that were replayed or dropped
    #[arg(long)]
    again: bool,
    /// How many at most [default: the consumer's desk.run_letters_max]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

impl ReplayArgs {
    /// The request.
    ///
    /// # Errors
    /// When nothing is selected, or a time cannot be read.
    pub fn request(&self, now_us: i64) -> Result<ReplayDeadLettersRequest, CliError> {
        Ok(ReplayDeadLettersRequest {
            selection: Some(self.selection.selection(now_us)?),
            set: self.set.clone(),
            rename: self.rename.clone(),
            rekey: self.rekey,
            assign_ids: self.assign_ids,
            dry_run: self.dry_run,
            again: self.again,
            count_twice: self.count_twice,
            limit: self.limit.unwrap_or_default(),
            per_second: self.rate.unwrap_or_default(),
        })
    }
}

impl DropArgs {
    /// The request.
    ///
    /// # Errors
    /// When nothing is selected, or a time cannot be read.
    pub fn request(&self, now_us: i64) -> Result<DropDeadLettersRequest, CliError> {
        Ok(DropDeadLettersRequest {
            selection: Some(self.selection.selection(now_us)?),
            dry_run: self.dry_run,
            again: self.again,
            limit: self.limit.unwrap_or_default(),
        })
    }
}

pub async fn replay(
    request: ReplayDeadLettersRequest,
    desk: &mut Desk,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let started = desk.calls.replay(request).await;
    let told = started.map_err(|status| desk.refused(status))?;
    follow("replayed", told.into_inner(), output).await
}

pub async fn drop(
    request: DropDeadLettersRequest,
    desk: &mut Desk,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let started = desk.calls.drop(request).await;
    let told = started.map_err(|status| desk.refused(status))?;
    follow("dropped", told.into_inner(), output).await
}

/// How it ended.
#[derive(Debug, Default, Serialize)]
struct Ended {
    #[serde(flatten)]
    progress: DeadLetterProgress,
    /// Outcomes beyond those that are told one by one.
    outcomes_left_out: u64,
}

impl Ended {
    /// Keeps what is worth telling: in a dry run everything, else what was not done.
    fn take(&mut self, progress: DeadLetterProgress) {
        let mut kept = std::mem::take(&mut self.progress.outcomes);
        self.progress = progress;
        for outcome in std::mem::take(&mut self.progress.outcomes) {
            let tell =
                self.progress.dry_run || ["refused", "failed"].contains(&outcome.outcome.as_str());
            if tell && kept.len() < TOLD_MAX {
                kept.push(outcome);
            } else {
                self.outcomes_left_out += u64::from(tell);
            }
        }
        self.progress.outcomes = kept;
    }

    fn exit(&self) -> Exit {
        let progress = &self.progress;
        if !progress.finished || !progress.stopped.is_empty() {
            Exit::Partial
        } else if progress.refused + progress.failed > 0 {
            Exit::No
        } else {
            Exit::Ok
        }
    }
}

async fn follow(
    verb: &str,
    mut told: Streaming<DeadLetterProgress>,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let bar = progress_bar::towards(0, "dead letters");
    let mut ended = Ended::default();
    loop {
        match told.message().await {
            Ok(Some(progress)) => {
                bar.set_length(progress.selected);
                bar.set_position(progress.done + progress.refused + progress.failed);
                ended.take(progress);
            }
            Ok(None) => break,
            Err(status) => {
                ended.progress.stopped = format!("the consumer went away: {}", status.message());
                break;
            }
        }
    }
    bar.finish_and_clear();
    if !ended.progress.finished && ended.progress.stopped.is_empty() {
        ended.progress.stopped = String::from("the consumer went away");
    }
    if output.json() {
        output.document(&ended)?;
    } else {
        view(verb, &ended, output)?;
    }
    Ok(ended.exit())
}

fn view(verb: &str, ended: &Ended, output: &mut Output) -> Result<(), CliError> {
    let progress = &ended.progress;
    for outcome in &progress.outcomes {
        output.line(outcome_line(outcome, progress.dry_run))?;
    }
    if ended.outcomes_left_out > 0 {
        output.line(format!("and {} more", whole(ended.outcomes_left_out)))?;
    }
    output.line(summary(verb, progress))?;
    if !progress.stopped.is_empty() {
        output.labelled(
            Paint::Yellow,
            "warning",
            &format!("it ended before its end: {}", progress.stopped),
        )?;
    }
    Ok(())
}

fn outcome_line(outcome: &DeadLetterOutcome, dry_run: bool) -> String {
    let id = show_id(outcome.id.as_ref());
    let verb = match (dry_run, outcome.outcome.as_str()) {
        (true, "refused") => "would be refused",
        (true, "replayed") => "would be replayed",
        (true, "dropped") => "would be dropped",
        (_, verb) => verb,
    };
    let mut line = format!("{id}  {verb}");
    for text in [&outcome.message, &outcome.preview] {
        if !text.is_empty() {
            line.push_str("  ");
            line.push_str(&printable(text));
        }
    }
    line
}

fn summary(verb: &str, progress: &DeadLetterProgress) -> String {
    let done = match progress.dry_run {
        true => format!("{} would be {verb}", whole(progress.done)),
        false => format!("{} {verb}", whole(progress.done)),
    };
    let mut text = format!("{done} of {}", whole(progress.selected));
    let more = [
        (progress.refused, "refused"),
        (progress.failed, "failed"),
        (
            progress.skipped,
            "passed over, for they are marked already (--again takes them too)",
        ),
        (progress.beyond_limit, "beyond the limit"),
    ];
    for (count, what) in more.into_iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!("; {} {what}", whole(count)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(outcome: &str) -> DeadLetterOutcome {
        DeadLetterOutcome {
            outcome: outcome.to_owned(),
            message: String::from("why"),
            ..DeadLetterOutcome::default()
        }
    }

    #[test]
    fn only_what_needs_a_look_is_told_one_by_one() {
        let mut ended = Ended::default();
        for _ in 0..2 {
            ended.take(DeadLetterProgress {
                selected: 9,
                done: 7,
                refused: 1,
                failed: 1,
                skipped: 4,
                finished: true,
                outcomes: vec![outcome("replayed"), outcome("refused"), outcome("failed")],
                ..DeadLetterProgress::default()
            });
        }
        assert_eq!(ended.progress.outcomes.len(), 4);
        assert_eq!(ended.exit(), Exit::No);
        let text = summary("replayed", &ended.progress);
        assert_eq!(
            text,
            "7 replayed of 9; 1 refused; 1 failed; 4 passed over, for they are marked already (--again takes them too)"
        );
    }

    #[test]
    fn what_is_told_is_bounded() {
        let mut ended = Ended::default();
        ended.take(DeadLetterProgress {
            dry_run: true,
            outcomes: vec![outcome("replayed"); TOLD_MAX + 5],
            ..DeadLetterProgress::default()
        });
        assert_eq!(
            (ended.progress.outcomes.len(), ended.outcomes_left_out),
            (TOLD_MAX, 5)
        );
        assert_eq!(ended.exit(), Exit::Partial, "it was not finished");
        assert!(outcome_line(&ended.progress.outcomes[0], true).contains("would be replayed  why"));
    }
}
