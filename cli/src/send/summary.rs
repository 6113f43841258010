//! How sending ended: counts, rate, latencies and reasons.

use std::{collections::HashMap, io, time::Duration};

use serde::Serialize;
use serde_json::json;

use crate::{
    error::Exit,
    latency::Latencies,
    output::{Output, Paint},
    submit::{Delivered, Fate, Reason},
    table::{printable, whole},
    times,
};

/// Most distinct reasons that are told.
const REASONS_MAX: usize = 10;

/// The end of a run.
#[derive(Debug, Default)]
pub struct Summary {
    /// Events that were asked for.
    pub asked: u64,
    /// Acknowledged.
    pub accepted: u64,
    /// Refused for good.
    pub rejected: u64,
    /// Without an acknowledgement in time, or in a request that was refused as a whole.
    pub failed: u64,
    /// Repeated submissions.
    pub retried: u64,
    /// Requests made, each until its events were settled.
    pub requests: u64,
    /// Whether the producer ever answered.
    pub answered: bool,
    /// From the first event to the last verdict.
    pub took: Duration,
    latencies: Latencies,
    reasons: HashMap<Reason, u64>,
    failure: Option<String>,
    refusal: Option<Reason>,
}

#[derive(Serialize)]
struct LatencyMs {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Summary {
    /// The empty summary of a run of so many events.
    pub fn of(asked: u64) -> Self {
        Self {
            asked,
            ..Self::default()
        }
    }

    /// Counts a request that was sent this long after it was due.
    pub fn add(&mut self, delivered: Delivered, late: Duration) {
        self.requests += 1;
        self.retried += delivered.retried;
        self.answered |= delivered.answered;
        self.latencies.record(delivered.took + late);
        for fate in delivered.fates {
            match fate {
                Fate::Accepted => self.accepted += 1,
                Fate::Rejected(reason) => {
                    self.rejected += 1;
                    self.because(reason);
                }
                Fate::Refused(reason) => {
                    self.failed += 1;
                    self.refusal.get_or_insert_with(|| reason.clone());
                    self.because(reason);
                }
                Fate::Failed(reason) => {
                    self.failed += 1;
                    self.failure.get_or_insert_with(|| reason.message.clone());
                    self.because(reason);
                }
            }
        }
    }

    fn because(&mut self, reason: Reason) {
        let known = self.reasons.len() < REASONS_MAX || self.reasons.contains_key(&reason);
        let reason = if known {
            reason
        } else {
            Reason::new("", "", "for other reasons")
        };
        *self.reasons.entry(reason).or_default() += 1;
    }

    /// Why the first event without an acknowledgement has none.
    pub fn first_failure(&self) -> Option<String> {
        self.failure.clone()
    }

    /// Why the producer refused a request as a whole: so it will with the next.
    pub const fn refusal(&self) -> Option<&Reason> {
        self.refusal.as_ref()
    }

    /// How the command ends.
    pub const fn exit(&self) -> Exit {
        let settled = self.accepted + self.rejected;
        if settled < self.asked {
            Exit::Partial
        } else if self.rejected > 0 {
            Exit::No
        } else {
            Exit::Ok
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn print(&self, output: &mut Output) -> io::Result<()> {
        let mut reasons: Vec<(&Reason, u64)> = self
            .reasons
            .iter()
            .map(|(reason, count)| (reason, *count))
            .collect();
        reasons.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.message.cmp(&b.0.message)));
        if output.json() {
            return self.json(output, &reasons);
        }
        self.human(output)?;
        for (reason, count) in reasons {
            let code = if reason.code.is_empty() {
                String::new()
            } else {
                format!(" ({})", reason.code)
            };
            let text = format!("{} {}{code}", whole(count), printable(&reason.message));
            output.labelled(Paint::Yellow, "not in", &text)?;
        }
        // Those that were under way when nobody wanted to wait any more are among them.
        let left = self.asked - self.accepted - self.rejected - self.failed;
        if left > 0 {
            let text = format!("{} events were not sent, or not waited for", whole(left));
            output.labelled(Paint::Red, "cut off", &text)?;
        }
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.accepted as f64 / self.took.as_secs_f64().max(1e-6)
    }

    fn human(&self, output: &mut Output) -> io::Result<()> {
        let mut terms = vec![
            format!("{} accepted", whole(self.accepted)),
            format!("{} rejected", whole(self.rejected)),
        ];
        for (count, name) in [
            (self.failed, "without an answer"),
            (self.retried, "retried"),
        ] {
            if count > 0 {
                terms.push(format!("{} {name}", whole(count)));
            }
        }
        output.line(format!("events   {}", terms.join(", ")))?;
        output.line(format!(
            "rate     {} events/s over {}",
            whole(self.rate().round() as u64),
            times::show_duration(self.took)
        ))?;
        let Some(max) = self.latencies.max() else {
            return Ok(());
        };
        let at = |share| times::show_duration(self.latencies.at(share).unwrap_or_default());
        output.line(format!(
            "latency  p50 {}, p90 {}, p99 {}, max {} ({} requests)",
            at(0.5),
            at(0.9),
            at(0.99),
            times::show_duration(max),
            whole(self.requests)
        ))
    }

    fn json(&self, output: &mut Output, reasons: &[(&Reason, u64)]) -> io::Result<()> {
        let millis = |length: Option<Duration>| length.unwrap_or_default().as_secs_f64() * 1000.0;
        let latency = LatencyMs {
            p50: millis(self.latencies.at(0.5)),
            p90: millis(self.latencies.at(0.9)),
            p99: millis(self.latencies.at(0.99)),
            max: millis(self.latencies.max()),
        };
        let reasons: Vec<_> = reasons
            .iter()
            .map(|(reason, count)| {
                json!({"code": reason.code, "message": reason.message, "events": count})
            })
            .collect();
        output.document(&json!({
            "asked": self.asked,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "failed": self.failed,
            "retried": self.retried,
            "requests": self.requests,
            "took_seconds": self.took.as_secs_f64(),
            "events_per_second": self.rate(),
            "latency_ms": latency,
            "reasons": reasons,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(fates: Vec<Fate>, asked: u64) -> Summary {
        let mut summary = Summary {
            asked,
            took: Duration::from_secs(2),
            ..Summary::default()
        };
        let took = Duration::from_millis(12);
        summary.add(
            Delivered {
                fates,
                retried: 1,
                took,
                answered: true,
            },
            Duration::ZERO,
        );
        summary
    }

    fn print(summary: &Summary) -> String {
        let (mut output, out, notes) = Output::captured(false);
        summary.print(&mut output).expect("memory");
        format!("{}{}", out.text(), notes.text())
    }

    #[test]
    fn all_accepted() {
        let summary = summary(vec![Fate::Accepted; 4], 4);
        assert_eq!(summary.exit(), Exit::Ok);
        insta::assert_snapshot!(print(&summary), @r"
        events   4 accepted, 0 rejected, 1 retried
        rate     2 events/s over 2.00 s
        latency  p50 12.0 ms, p90 12.0 ms, p99 12.0 ms, max 12.0 ms (1 requests)
        ");
    }

    #[test]
    fn refusals_are_told_with_their_reason() {
        let rejected = Fate::Rejected(Reason::new("missing_field", "user_id", "must not be empty"));
        let summary = summary(vec![Fate::Accepted, rejected.clone(), rejected], 3);
        assert_eq!(summary.exit(), Exit::No);
        insta::assert_snapshot!(print(&summary), @r"
        events   1 accepted, 2 rejected, 1 retried
        rate     1 events/s over 2.00 s
        latency  p50 12.0 ms, p90 12.0 ms, p99 12.0 ms, max 12.0 ms (1 requests)
        not in: 2 user_id: must not be empty (missing_field)
        ");
    }

    #[test]
    fn what_was_not_settled_makes_it_partial() {
        let failed = Fate::Failed(Reason::new("", "", "no answer from the producer"));
        let summary = summary(vec![Fate::Accepted, failed], 5);
        assert_eq!(summary.exit(), Exit::Partial);
        let text = print(&summary);
        assert!(
            text.contains("cut off: 3 events were not sent, or not waited for"),
            "{text}"
        );
    }
}
