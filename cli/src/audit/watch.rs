//! The audit as a watch: round after round until Ctrl-C, each reading on from where the one before
//! ended.

use std::{io, time::Duration};

use serde::Serialize;
use streamgauge_audit::{Break, Terms};

use super::{
    books::Books,
    report::Report,
    services::Services,
    unreachable,
    view::{self, View},
};
use crate::{
    error::{CliError, Exit, describe},
    output::{Output, Paint},
    signals::Signals,
    times,
};

/// After so many rounds without a change a sign of life is given.
const ROUNDS_QUIET_MAX: u32 = 6;

/// What a round is recognised by: when it is as before, nothing is said.
#[derive(PartialEq)]
enum Seen {
    Books(Terms, Vec<Break>, Option<String>, Vec<String>),
    Unreachable,
}

#[derive(Serialize)]
struct Round {
    at: String,
    #[serde(flatten)]
    view: View,
}

#[derive(Serialize)]
struct Beat {
    at: String,
    heartbeat: bool,
    balanced: Option<bool>,
}

/// Watches until a signal. The exit code is [`Exit::No`] when any round was broken, else that of the last round.
///
/// # Errors
/// What no other round would mend: settings, topics that are not there; output that nobody takes.
pub async fn run(
    mut books: Books,
    services: &Services,
    brokers: &str,
    every: Duration,
    output: &mut Output,
) -> Result<Exit, CliError> {
    let mut signals = Signals::new()?;
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut log = Log::default();
    let mut last = Exit::Ok;
    loop {
        tokio::select! {
            () = signals.next() => break,
            _ = ticks.tick() => {}
        }
        let round = async { books.look(services.ask().await).await };
        let looked = tokio::select! {
            () = signals.next() => break,
            looked = round => looked,
        };
        last = match looked {
            Ok(report) => {
                log.round(&report, output)?;
                report.exit()
            }
            Err(error) => log.silence(unreachable(brokers, error), output)?,
        };
        log.broken |= last == Exit::No;
    }
    Ok(if log.broken { Exit::No } else { last })
}

/// What was said so far.
#[derive(Default)]
struct Log {
    seen: Option<Seen>,
    quiet_rounds: u32,
    broken: bool,
}

impl Log {
    /// Whether something changed.
    fn is_new(&mut self, seen: Seen) -> bool {
        let is_new = self.seen.as_ref() != Some(&seen);
        self.seen = Some(seen);
        if is_new {
            self.quiet_rounds = 0;
        } else {
            self.quiet_rounds += 1;
        }
        is_new
    }

    /// Whether it is time for a sign of life.
    fn is_due(&mut self) -> bool {
        let due = self.quiet_rounds >= ROUNDS_QUIET_MAX;
        if due {
            self.quiet_rounds = 0;
        }
        due
    }

    fn round(&mut self, report: &Report, output: &mut Output) -> io::Result<()> {
        let (breaks, at) = (report.breaks(), times::show(times::now_us()));
        let store = report.store_not_compared().map(str::to_owned);
        let spots = report.spots();
        let seen = Seen::Books(report.total(), breaks.clone(), store, spots.clone());
        let known = match &self.seen {
            Some(Seen::Books(.., known)) => known.clone(),
            Some(Seen::Unreachable) | None => Vec::new(),
        };
        if self.is_new(seen) {
            if output.json() {
                let view = view::of(report);
                return line(output, &Round { at, view });
            }
            let (paint, verdict) = if breaks.is_empty() {
                (Paint::Green, report.verdict())
            } else {
                (Paint::Red, "BROKEN")
            };
            let verdict = output.paint(paint, verdict);
            output.line(format!("{at} {verdict}: {}", report.total()))?;
            for found in &breaks {
                let broken = output.paint(Paint::Red, &found.to_string());
                output.line(format!("{at} {broken}"))?;
            }
            for spot in spots.iter().filter(|spot| !known.contains(spot)) {
                output.line(format!("{at} {spot}"))?;
            }
        } else if self.is_due() {
            let balanced = breaks.is_empty();
            self.beat(at, Some(balanced), output)?;
        }
        Ok(())
    }

    /// A round in which the log did not answer. What no other round would mend ends the watch.
    fn silence(&mut self, error: CliError, output: &mut Output) -> Result<Exit, CliError> {
        if error.exit() != Exit::Unreachable {
            return Err(error);
        }
        let at = times::show(times::now_us());
        if self.is_new(Seen::Unreachable) {
            if output.json() {
                line(
                    output,
                    &serde_json::json!({"at": at, "error": describe(&error)}),
                )?;
            } else {
                output.labelled(Paint::Red, &at, &describe(&error))?;
            }
        } else if self.is_due() {
            self.beat(at, None, output)?;
        }
        Ok(Exit::Unreachable)
    }

    fn beat(&self, at: String, balanced: Option<bool>, output: &mut Output) -> io::Result<()> {
        if output.json() {
            let heartbeat = true;
            return line(
                output,
                &Beat {
                    at,
                    heartbeat,
                    balanced,
                },
            );
        }
        let state = match balanced {
            Some(true) => "balanced",
            Some(false) => "BROKEN",
            None => "the log does not answer",
        };
        output.line(format!("{at} {state}, as before"))
    }
}

fn line(output: &mut Output, value: &impl Serialize) -> io::Result<()> {
    output.line(serde_json::to_string(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::report::tests::report;

    #[test]
    fn a_change_is_told_at_once_and_quiet_once_in_a_while() {
        let (mut output, out, _) = Output::captured(false);
        let (mut log, mut books) = (Log::default(), report());
        for _ in 0..=ROUNDS_QUIET_MAX {
            log.round(&books, &mut output).expect("memory");
        }
        books.facts[0].source_high += 1;
        log.round(&books, &mut output).expect("memory");
        for at in [1, 2] {
            books.facts[0].fold.record(at, Some(b"no batch"));
            log.round(&books, &mut output).expect("memory");
        }
        let text = out.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert!(
            lines[0].contains("Z balanced: end - start = 1,005"),
            "{text}"
        );
        assert!(lines[1].ends_with("balanced, as before"), "{text}");
        assert!(lines[2].contains("1,006"), "{text}");
        let spot = "Partition 0: 1 records of metrics-data are no batches";
        assert!(lines[4].contains(spot), "{text}");
        assert!(
            lines[6].ends_with("offset 1 of metrics-data; the last lies at 2."),
            "{text}"
        );
    }

    #[test]
    fn as_json_each_line_is_a_document() {
        let (mut output, out, _) = Output::captured(true);
        let (mut log, mut books) = (Log::default(), report());
        for _ in 0..=ROUNDS_QUIET_MAX {
            log.round(&books, &mut output).expect("memory");
        }
        books.facts[0].dead_letters = Some(1);
        log.round(&books, &mut output).expect("memory");
        let silence = CliError::unreachable("the log", "h:1", io::Error::other("refused"));
        let exit = log.silence(silence, &mut output).expect("it goes on");
        assert_eq!(exit, Exit::Unreachable);
        let found: Vec<serde_json::Value> = out
            .text()
            .lines()
            .map(|line| serde_json::from_str(line).expect("a document"))
            .collect();
        assert_eq!(found.len(), 4);
        assert_eq!(found[0]["balanced"], true);
        assert_eq!(found[1]["heartbeat"], true);
        assert_eq!(found[2]["breaks"][0]["what"], "dead_letters");
        assert!(found[3]["error"].is_string());
    }

    #[test]
    fn what_no_round_mends_ends_the_watch() {
        let (mut output, ..) = Output::captured(false);
        let ended = Log::default().silence(CliError::usage("no topic"), &mut output);
        assert_eq!(ended.expect_err("it ends").exit(), Exit::Usage);
    }
}
