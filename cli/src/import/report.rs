//! What an import tells at its end.

use std::{io, time::Duration};

use serde_json::json;

use super::{pipeline::Tally, reconcile::Reconciled};
use crate::{
    error::{CliError, Exit},
    output::{Output, Paint},
    table::{printable, whole},
    times,
};

/// The end of an import.
pub struct Report {
    /// The input's name.
    pub name: String,
    /// What became of the records.
    pub tally: Tally,
    /// From the first record to the last verdict.
    pub took: Duration,
    /// What the ledger says, or why it says nothing.
    pub outcome: Result<Reconciled, String>,
}

impl Report {
    /// Prints it, and says how the command ends.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn print(&self, output: &mut Output) -> Result<Exit, CliError> {
        if output.json() {
            self.json(output)?;
        } else {
            self.human(output)?;
        }
        self.warn(output)?;
        Ok(self.exit())
    }

    fn exit(&self) -> Exit {
        let refused = match &self.outcome {
            Ok(ledger) if !ledger.others => ledger.late + ledger.dead_lettered,
            _ => 0,
        };
        if !self.tally.complete {
            Exit::Partial
        } else if self.tally.rejected + self.tally.unreadable + refused > 0 {
            Exit::No
        } else {
            Exit::Ok
        }
    }

    fn rate(&self) -> f64 {
        self.tally.accepted as f64 / self.took.as_secs_f64().max(1e-6)
    }

    fn json(&self, output: &mut Output) -> io::Result<()> {
        let (ledger, ledger_error) = match &self.outcome {
            Ok(ledger) => (Some(ledger), None),
            Err(reason) => (None, Some(reason)),
        };
        output.document(&json!({
            "input": self.name,
            "records": self.tally,
            "took_seconds": self.took.as_secs_f64(),
            "events_per_second": self.rate(),
            "ledger": ledger,
            "ledger_error": ledger_error,
        }))
    }

    fn human(&self, output: &mut Output) -> io::Result<()> {
        let tally = &self.tally;
        output.line(format!(
            "{}: {} records in {} ({} events/s)",
            printable(&self.name),
            whole(tally.read),
            times::show_duration(self.took),
            whole(self.rate() as u64),
        ))?;
        let mut terms = vec![
            format!("{} accepted", whole(tally.accepted)),
            format!("{} rejected", whole(tally.rejected)),
            format!("{} unreadable", whole(tally.unreadable)),
        ];
        if tally.refused > 0 {
            terms.push(format!(
                "{} refused with their request",
                whole(tally.refused)
            ));
        }
        if tally.failed > 0 {
            terms.push(format!("{} without an answer", whole(tally.failed)));
        }
        output.line(format!("  producer  {}", terms.join(", ")))?;
        if let Ok(ledger) = &self.outcome {
            let terms = [
                ("counted", ledger.counted),
                ("duplicates", ledger.duplicate),
                ("late", ledger.late),
                ("dead-lettered", ledger.dead_lettered),
                ("in flight", ledger.in_flight),
            ];
            // The first two always: that there are none is what one wants to know.
            let shown = terms
                .iter()
                .enumerate()
                .filter(|(index, (_, count))| *index < 2 || *count > 0);
            let terms: Vec<String> = shown
                .map(|(_, (name, count))| format!("{} {name}", whole(*count)))
                .collect();
            output.line(format!("  ledger    {}", terms.join(", ")))?;
        }
        if tally.historical > 0 {
            output.line(format!(
                "  {} were submitted as history",
                whole(tally.historical)
            ))?;
        }
        Ok(())
    }

    fn warn(&self, output: &mut Output) -> io::Result<()> {
        let tally = &self.tally;
        for note in &tally.notes {
            let text = format!("line {}: {}", note.line, printable(&note.reason));
            output.labelled(Paint::Yellow, "not in", &text)?;
        }
        let more = (tally.rejected + tally.unreadable).saturating_sub(tally.notes.len() as u64);
        if more > 0 {
            output.labelled(Paint::Yellow, "not in", &format!("{} more", whole(more)))?;
        }
        match &self.outcome {
            Ok(ledger) if ledger.others => output.note(
                "Other events came in at the same time; the ledger's line holds them as well.",
            )?,
            Ok(ledger) if ledger.in_flight > 0 => output
                .note("Not all of it is counted yet; `streamgauge audit` tells when it is.")?,
            Ok(_) => {}
            Err(reason) => output.labelled(Paint::Yellow, "no ledger", reason)?,
        }
        if !tally.complete {
            let refusal = tally.refusal.as_ref();
            let refusal = refusal.map(|reason| format!("the producer refused: {reason}"));
            let reason = refusal.as_deref().or(tally.failure.as_deref());
            let reason = reason.unwrap_or("interrupted");
            let text = format!(
                "{}. The same command goes on from there.",
                printable(reason)
            );
            output.labelled(Paint::Red, "cut off", &text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::pipeline::Note;

    fn report() -> Report {
        Report {
            name: String::from("access.log.gz"),
            tally: Tally {
                read: 10_000,
                accepted: 10_000,
                complete: true,
                ..Tally::default()
            },
            took: Duration::from_millis(1250),
            outcome: Ok(Reconciled {
                duplicate: 10_000,
                ..Reconciled::default()
            }),
        }
    }

    fn print(report: &Report) -> (String, Exit) {
        let (mut output, out, notes) = Output::captured(false);
        let exit = report.print(&mut output).expect("memory");
        (format!("{}{}", out.text(), notes.text()), exit)
    }

    #[test]
    fn a_second_import_is_all_duplicates() {
        let (text, exit) = print(&report());
        assert_eq!(exit, Exit::Ok);
        insta::assert_snapshot!(text, @r"
        access.log.gz: 10,000 records in 1.25 s (8,000 events/s)
          producer  10,000 accepted, 0 rejected, 0 unreadable
          ledger    0 counted, 10,000 duplicates
        ");
    }

    #[test]
    fn what_is_not_in_is_told_line_by_line() {
        let mut report = report();
        report.tally.unreadable = 12;
        report.tally.notes = vec![Note {
            line: 3,
            reason: String::from("there is no `[time]`"),
        }];
        report.outcome = Err(String::from("cannot reach analytics at 127.0.0.1:50053"));
        let (text, exit) = print(&report);
        assert_eq!(exit, Exit::No);
        insta::assert_snapshot!(text, @r"
        access.log.gz: 10,000 records in 1.25 s (8,000 events/s)
          producer  10,000 accepted, 0 rejected, 12 unreadable
        not in: line 3: there is no `[time]`
        not in: 11 more
        no ledger: cannot reach analytics at 127.0.0.1:50053
        ");
    }

    #[test]
    fn what_was_cut_off_says_how_to_go_on() {
        let mut report = report();
        report.tally.complete = false;
        report.tally.failed = 500;
        report.tally.failure = Some(String::from("no answer from the producer"));
        let (text, exit) = print(&report);
        assert_eq!(exit, Exit::Partial);
        assert!(text.contains("500 without an answer"), "{text}");
        assert!(
            text.contains("cut off: no answer from the producer. The same command"),
            "{text}"
        );
    }
}
