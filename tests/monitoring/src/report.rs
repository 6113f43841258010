//! What is printed: a line a step as it ends, and the alerts as a table.

use std::{
    io::{self, Write},
    time::Duration,
};

use tokio::time::Instant;

use crate::failure::{Failure, Outcome};

/// What became of one alert that a fault should raise.
#[derive(Clone, Debug)]
pub struct AlertRow {
    /// The alert.
    pub alert: &'static str,
    /// The fault that was made.
    pub fault: &'static str,
    /// From the fault to the first notification.
    pub fired: Option<Duration>,
    /// From the end of the fault to the notification that it is over.
    pub resolved: Option<Duration>,
    /// What did not hold.
    pub problem: Option<String>,
}

impl AlertRow {
    fn line(&self) -> String {
        let word = if self.problem.is_none() {
            "ok    "
        } else {
            "FAILED"
        };
        let seconds = |time: Option<Duration>| match time {
            Some(time) => format!("{:6.1} s", time.as_secs_f64()),
            None => format!("{:>8}", "-"),
        };
        let (fired, resolved) = (seconds(self.fired), seconds(self.resolved));
        let problem = self
            .problem
            .as_deref()
            .map(|text| format!(": {text}"))
            .unwrap_or_default();
        format!(
            "{word}  {:<26} {fired}  {resolved}  {}{problem}",
            self.alert, self.fault
        )
    }
}

/// All that was found so far.
pub struct Report {
    began: Instant,
    failed: usize,
    passed: usize,
    alerts: Vec<AlertRow>,
}

impl Report {
    /// An empty one; its clock starts.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            failed: 0,
            passed: 0,
            alerts: Vec::new(),
        }
    }

    /// Notes how a step ended and prints it.
    pub fn step(&mut self, name: &str, outcome: Outcome) -> io::Result<()> {
        let at = self.began.elapsed().as_secs();
        let (word, text) = match &outcome {
            Ok(figures) => ("ok    ", figures.clone()),
            Err(failure) => ("FAILED", failure.to_string()),
        };
        match outcome {
            Ok(_) => self.passed += 1,
            Err(_) => self.failed += 1,
        }
        writeln!(io::stdout().lock(), "{word}  {at:>4} s  {name}: {text}")
    }

    /// Notes what became of a group's alerts.
    pub fn alerts(&mut self, group: &str, rows: Vec<AlertRow>) -> io::Result<()> {
        let wrong = rows.iter().filter(|row| row.problem.is_some()).count();
        let outcome = match wrong {
            0 => Ok(format!("{} alerts fired and resolved", rows.len())),
            _ => Err(Failure::Unmet(format!("{wrong} of {} alerts", rows.len()))),
        };
        self.step(&format!("faults, {group}"), outcome)?;
        let mut output = io::stdout().lock();
        for row in &rows {
            writeln!(output, "                {}", row.line())?;
        }
        self.alerts.extend(rows);
        Ok(())
    }

    /// A step of its own: so many different alerts fired and resolved.
    pub fn enough_alerts(&mut self, least: usize) -> io::Result<()> {
        let proven = self.proven();
        let text = format!(
            "{proven} different alerts fired by their fault and resolved; at least {least} must"
        );
        let outcome = if proven < least {
            Err(Failure::Unmet(text))
        } else {
            Ok(text)
        };
        self.step("alerts", outcome)
    }

    /// How many different alerts fired and resolved.
    pub fn proven(&self) -> usize {
        let good = self
            .alerts
            .iter()
            .filter(|row| row.problem.is_none() && row.resolved.is_some());
        let mut names: Vec<_> = good.map(|row| row.alert).collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    }

    /// Prints the table of alerts and the sum of it all; says whether everything held.
    pub fn finish(&self) -> io::Result<bool> {
        let mut output = io::stdout().lock();
        let mut rows = self.alerts.clone();
        rows.sort_by_key(|row| row.fired);
        if !rows.is_empty() {
            writeln!(
                output,
                "\n        {:<26} {:>8}  {:>8}  fault",
                "alert", "fired", "resolved"
            )?;
        }
        for row in &rows {
            writeln!(output, "{}", row.line())?;
        }
        let seconds = self.began.elapsed().as_secs();
        let (passed, failed) = (self.passed, self.failed);
        writeln!(
            output,
            "\n{passed} steps passed, {failed} failed, {} alerts proven, {seconds} s",
            self.proven()
        )?;
        Ok(failed == 0)
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}
