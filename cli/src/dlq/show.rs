//! `streamgauge dlq show`: everything about dead letters.

use clap::Args;
use serde_json::Value;
use streamgauge_consumer::desk;
use streamgauge_proto::v1::{
    DeadLetter, DeadLetterBody, DeadLetterFilter, DeadLetterId, DeadLetterText,
    ShowDeadLetterRequest,
};

use super::{
    client::Desk,
    list::pages,
    select::{FilterArgs, id, show_id},
};
use crate::{
    error::{CliError, Exit},
    output::{Output, Paint},
    table::printable,
    times,
};

/// Everything about dead letters: where they came from, why they are here, headers and body
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge dlq show 0/1234
  streamgauge dlq show analytics-events/0/1234 analytics-events/7/55 --json
  streamgauge dlq show 0/1234 --from now-1h
  streamgauge dlq show --reason undecodable --limit 3

With ids, what else is given must hold of each. --from bounds how much of the dead-letter topic is read:
where there is more of it than the consumer's desk.scan_records_max, say from when on it was refused.")]
pub struct ShowArgs {
    /// These, as `list` shows them: TOPIC/PARTITION/OFFSET, or PARTITION/OFFSET of the events' topic
    #[arg(value_name = "ID", value_parser = id)]
    ids: Vec<DeadLetterId>,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// How many at most, without ids
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

pub async fn run(
    args: &ShowArgs,
    filter: DeadLetterFilter,
    desk: &mut Desk,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let letters = if args.ids.is_empty() {
        pages(desk, filter, args.limit, true).await?.letters
    } else {
        let mut letters = Vec::with_capacity(args.ids.len());
        for id in args.ids.clone() {
            let request = ShowDeadLetterRequest {
                id: Some(id),
                filter: Some(filter.clone()),
            };
            let answer = desk.calls.show(request).await;
            letters.push(answer.map_err(|status| desk.refused(status))?.into_inner());
        }
        letters
    };
    if output.json() {
        let letters: Vec<Value> = letters.iter().map(desk::json).collect();
        output.document(&letters)?;
        return Ok(Exit::Ok);
    }
    if letters.is_empty() {
        output.line("no dead letters")?;
    }
    for letter in &letters {
        view(letter, output)?;
    }
    Ok(Exit::Ok)
}

fn view(letter: &DeadLetter, output: &mut Output) -> Result<(), CliError> {
    let title = format!("{}  {}", show_id(letter.id.as_ref()), letter.state);
    let title = output.paint(Paint::Bold, &title);
    output.line(title)?;
    for (label, text) in lines(letter) {
        for (nth, line) in text.lines().enumerate() {
            let label = if nth == 0 { label } else { "" };
            output.line(format!("  {label:<10} {}", printable(line)))?;
        }
    }
    output.line("")?;
    Ok(())
}

fn lines(letter: &DeadLetter) -> Vec<(&'static str, String)> {
    let refused = format!(
        "{} by {} in {}, attempt {}",
        times::show(letter.refused_us),
        letter.group,
        letter.step,
        letter.attempts
    );
    let mut lines = vec![
        ("reason", format!("{}: {}", letter.reason, letter.detail)),
        ("", letter.explanation.clone()),
        ("refused", refused),
    ];
    if let Some(first) = &letter.first {
        let (id, time) = (show_id(first.id.as_ref()), times::show(first.refused_us));
        lines.push((
            "first",
            format!("{id}, refused {time} for {}", first.reason),
        ));
    }
    if letter.source_us != 0 {
        lines.push(("written", times::show(letter.source_us)));
    }
    if letter.marked_us != 0 {
        lines.push((
            "marked",
            format!("{} {}", letter.state, times::show(letter.marked_us)),
        ));
    }
    let copies = match letter.copies {
        0 | 1 => String::new(),
        copies => format!(", {copies} copies"),
    };
    let (partition, offset) = (letter.dlq_partition, letter.dlq_offset);
    lines.push((
        "lies at",
        format!("partition {partition}, offset {offset} of the dead-letter topic{copies}"),
    ));
    for note in &letter.notes {
        lines.push(("note", note.clone()));
    }
    if let Some(key) = &letter.key {
        lines.push(("key", text(key)));
    }
    for header in &letter.headers {
        let value = header.value.as_ref().map(text).unwrap_or_default();
        lines.push(("header", format!("{}: {value}", header.name)));
    }
    if let Some(body) = &letter.body {
        lines.push(("body", body_text(body)));
    }
    lines
}

fn text(shown: &DeadLetterText) -> String {
    let cut = if shown.cut { "…" } else { "" };
    match shown.encoding.as_str() {
        "none" => String::from("none"),
        "hex" => format!("{}{cut} (hex, {} bytes)", shown.text, shown.bytes),
        _ if shown.text.is_empty() => String::from("empty"),
        _ if shown.cut => format!("{}{cut} ({} bytes)", shown.text, shown.bytes),
        _ => shown.text.clone(),
    }
}

fn body_text(body: &DeadLetterBody) -> String {
    let Some(content) = &body.content else {
        return String::from("none");
    };
    let event = (body.kind == "event" && !content.cut).then(|| {
        let event: Value = serde_json::from_str(&content.text).ok()?;
        serde_json::to_string_pretty(&event).ok()
    });
    event.flatten().unwrap_or_else(|| text(content))
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::v1::{DeadLetterHeader, DeadLetterOrigin};

    use super::*;

    fn shown(text: &str, encoding: &str) -> Option<DeadLetterText> {
        Some(DeadLetterText {
            text: text.to_owned(),
            encoding: encoding.to_owned(),
            bytes: text.len() as u64,
            cut: false,
        })
    }

    #[test]
    fn all_of_a_dead_letter_is_told() {
        let id = |offset| {
            Some(DeadLetterId {
                topic: String::from("events"),
                partition: 3,
                offset,
            })
        };
        let letter = DeadLetter {
            id: id(77),
            state: String::from("replayed"),
            marked_us: 1_714_521_600_000_001,
            reason: String::from("late"),
            explanation: String::from("Too old."),
            detail: String::from("from 1970"),
            step: String::from("validate"),
            group: String::from("g"),
            refused_us: 1_714_521_600_000_000,
            attempts: 2,
            first: Some(DeadLetterOrigin {
                id: id(5),
                reason: String::from("wrong_key"),
                refused_us: 1_714_521_500_000_000,
            }),
            copies: 2,
            dlq_partition: 1,
            dlq_offset: 9,
            key: shown("u\u{1b}[2J", "utf8"),
            headers: vec![DeadLetterHeader {
                name: String::from("trace"),
                value: shown("ff", "hex"),
            }],
            body: Some(DeadLetterBody {
                kind: String::from("event"),
                content: shown("{\"user_id\":\"u\"}", "utf8"),
            }),
            ..DeadLetter::default()
        };
        let (mut output, out, _) = Output::captured(false);
        view(&letter, &mut output).expect("memory");
        insta::assert_snapshot!(out.text(), @r#"
        events/3/77  replayed
          reason     late: from 1970
                     Too old.
          refused    2024-05-01T00:00:00Z by g in validate, attempt 2
          first      events/3/5, refused 2024-04-30T23:58:20Z for wrong_key
          marked     replayed 2024-05-01T00:00:00.000001Z
          lies at    partition 1, offset 9 of the dead-letter topic, 2 copies
          key        u\u{1b}[2J
          header     trace: ff (hex, 2 bytes)
          body       {
                       "user_id": "u"
                     }
        "#);
    }
}
