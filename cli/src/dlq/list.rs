//! `streamgauge dlq list`: one line per dead letter.

use clap::Args;
use serde_json::json;
use streamgauge_consumer::desk;
use streamgauge_proto::v1::{
    DeadLetter, DeadLetterFilter, ListDeadLettersRequest, ListDeadLettersResponse,
};

use super::{
    client::Desk,
    select::{FilterArgs, show_id},
};
use crate::{
    error::{CliError, Exit},
    output::{Output, Paint},
    table::{Align, Table, whole},
    times,
};

/// Longest text in a cell, in characters.
const CELL_CHARS_MAX: usize = 60;

/// One line per dead letter, in the order in which they were refused
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge dlq list
  streamgauge dlq list --reason late,wrong_key --state open --from now-1d
  streamgauge dlq list --partition 3 --offsets 100..200
  streamgauge dlq list --event-type click --limit 1000 --json

States: open; unfinished: a replay began and did not say how it ended; replayed; dropped.")]
pub struct ListArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

pub async fn run(
    args: &ListArgs,
    filter: DeadLetterFilter,
    desk: &mut Desk,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let found = pages(desk, filter, args.limit, false).await?;
    if output.json() {
        let letters: Vec<_> = found.letters.iter().map(desk::json).collect();
        let mut document = json!(found);
        document["letters"] = letters.into();
        output.document(&document)?;
    } else {
        view(&found, output)?;
    }
    Ok(Exit::Ok)
}

/// Asks for page after page until there are so many.
pub async fn pages(
    desk: &mut Desk,
    filter: DeadLetterFilter,
    limit: u32,
    full: bool,
) -> Result<ListDeadLettersResponse, CliError> {
    let mut request = ListDeadLettersRequest {
        filter: Some(filter),
        limit,
        full,
        page: String::new(),
    };
    let mut letters: Vec<DeadLetter> = Vec::new();
    loop {
        let answer = desk.calls.list(request.clone()).await;
        let mut found = answer.map_err(|status| desk.refused(status))?.into_inner();
        letters.append(&mut found.letters);
        request.limit = limit.saturating_sub(letters.len() as u32);
        request.page.clone_from(&found.next_page);
        if request.limit == 0 || request.page.is_empty() {
            return Ok(ListDeadLettersResponse { letters, ..found });
        }
    }
}

fn view(found: &ListDeadLettersResponse, output: &mut Output) -> Result<(), CliError> {
    let mut table = Table::new([
        ("dead letter", Align::Left),
        ("state", Align::Left),
        ("reason", Align::Left),
        ("refused", Align::Left),
        ("attempts", Align::Right),
        ("event type", Align::Left),
        ("detail", Align::Left),
    ]);
    for letter in &found.letters {
        table.row([
            show_id(letter.id.as_ref()),
            letter.state.clone(),
            letter.reason.clone(),
            times::show(letter.refused_us),
            letter.attempts.to_string(),
            cell(&letter.event_type),
            cell(&letter.detail),
        ]);
    }
    if table.is_empty() {
        output.line("no dead letters")?;
    } else {
        let mut lines = table.lines().into_iter();
        if let Some(headings) = lines.next() {
            let headings = output.paint(Paint::Bold, &headings);
            output.line(headings)?;
        }
        for line in lines {
            output.line(line)?;
        }
    }
    let footer = output.paint(Paint::Dim, &footer(found));
    output.line(footer)?;
    Ok(())
}

fn footer(found: &ListDeadLettersResponse) -> String {
    let states = found.states.unwrap_or_default();
    let mut footer = format!(
        "{} of {} shown · open {} · unfinished {} · replayed {} · dropped {}",
        whole(found.letters.len() as i128),
        whole(found.matched),
        whole(states.open),
        whole(states.unfinished),
        whole(states.replayed),
        whole(states.dropped),
    );
    if found.foreign > 0 {
        footer.push_str(&format!(" · {} foreign records", whole(found.foreign)));
    }
    footer
}

fn cell(text: &str) -> String {
    if text.chars().count() <= CELL_CHARS_MAX {
        return text.to_owned();
    }
    let start: String = text.chars().take(CELL_CHARS_MAX - 1).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::v1::{DeadLetterCounts, DeadLetterId};

    use super::*;

    #[test]
    fn a_list_has_a_line_each_and_says_how_many_there_are() {
        let id = DeadLetterId {
            topic: String::from("events"),
            partition: 3,
            offset: 77,
        };
        let letter = DeadLetter {
            id: Some(id),
            state: String::from("open"),
            reason: String::from("late"),
            refused_us: 1_714_521_600_000_000,
            attempts: 2,
            event_type: String::from("click"),
            detail: "x".repeat(100),
            ..DeadLetter::default()
        };
        let found = ListDeadLettersResponse {
            letters: vec![letter],
            matched: 1_234,
            states: Some(DeadLetterCounts {
                open: 1_234,
                dropped: 5,
                ..DeadLetterCounts::default()
            }),
            foreign: 1,
            ..ListDeadLettersResponse::default()
        };
        let (mut output, out, _) = Output::captured(false);
        view(&found, &mut output).expect("memory");
        let text = out.text();
        assert!(
            text.contains("events/3/77  open   late    2024-05-01T00:00:00Z         2  click"),
            "{text}"
        );
        assert!(
            text.contains(
                "1 of 1,234 shown · open 1,234 · unfinished 0 · replayed 0 · dropped 5 · 1 foreign"
            ),
            "{text}"
        );
        assert!(
            text.lines().all(|line| line.chars().count() < 150),
            "{text}"
        );
    }
}
