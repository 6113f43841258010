//! The report: a table for people, and the same as JSON and Markdown.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use serde::Serialize;

use crate::failure::Failure;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything held.
    Passed,
    /// Something did not.
    Failed,
    /// The fault could not be made here, or has nothing to strike.
    NotRun,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotRun => "not run",
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The fault's number.
    pub number: u8,
    /// Its name.
    pub fault: &'static str,
    /// Events submitted and answered.
    pub acknowledged: u64,
    /// Records that these became, retries included.
    pub records: u64,
    /// Acknowledged and not in the store.
    pub lost: u64,
    /// In the store and never acknowledged, or once too often.
    pub double: u64,
    /// Records beyond the number of submissions.
    pub surplus_records: u64,
    /// First records out of their user's order.
    pub order_breaks: u64,
    /// From the end of the fault to the lag from before it, in seconds; the longest where it struck several times.
    pub recovery_s: Option<f64>,
    /// Peak resident memory of each process, in MiB.
    pub memory_mib: BTreeMap<String, u64>,
    /// The ledger's terms, and batches that did not count.
    pub ledger: BTreeMap<&'static str, u64>,
    /// How long the run took, in seconds.
    pub seconds: f64,
    /// How it ended.
    pub verdict: Verdict,
    /// What did not hold.
    pub broken: Vec<String>,
    /// What else was seen.
    pub notes: Vec<String>,
}

impl Row {
    /// A run of which nothing is known yet.
    pub fn new(number: u8, fault: &'static str) -> Self {
        Self {
            number,
            fault,
            acknowledged: 0,
            records: 0,
            lost: 0,
            double: 0,
            surplus_records: 0,
            order_breaks: 0,
            recovery_s: None,
            memory_mib: BTreeMap::new(),
            ledger: BTreeMap::new(),
            seconds: 0.0,
            verdict: Verdict::NotRun,
            broken: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Whether the run shows that something was lost, doubled, or written more often than it was sent.
    pub fn shows_damage(&self) -> bool {
        self.lost + self.double + self.surplus_records > 0
    }

    fn cells(&self) -> [String; 9] {
        let ran = self.verdict != Verdict::NotRun;
        let count = |count: u64| {
            if ran {
                count.to_string()
            } else {
                String::from("–")
            }
        };
        let recovery = self.recovery_s.map(|seconds| format!("{seconds:.1}"));
        let memory = self.memory_mib.values().max();
        [
            format!("{:>2} {}", self.number, self.fault),
            count(self.records),
            count(self.acknowledged),
            count(self.lost),
            count(self.double),
            count(self.order_breaks),
            recovery.unwrap_or_else(|| String::from("–")),
            memory.map_or_else(|| String::from("–"), u64::to_string),
            String::from(self.verdict.text()),
        ]
    }
}

const HEADINGS: [&str; 9] = [
    "fault",
    "records",
    "acknowledged",
    "lost",
    "double",
    "order breaks",
    "recovery s",
    "peak MiB",
    "verdict",
];

/// All runs of one call.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// When it began.
    pub began: String,
    /// The command line.
    pub command: String,
    /// The seed.
    pub seed: u64,
    /// The runs.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether nothing failed, and anything ran at all.
    pub fn passed(&self) -> bool {
        let ran = |row: &&Row| row.verdict != Verdict::NotRun;
        self.rows.iter().any(|row| ran(&row))
            && self.rows.iter().all(|row| row.verdict != Verdict::Failed)
    }

    /// Whether every run shows damage.
    pub fn all_damaged(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(Row::shows_damage)
    }

    /// The table, as Markdown that reads well as plain text too.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 9]> = self.rows.iter().map(Row::cells).collect();
        let mut widths = HEADINGS.map(|heading| heading.chars().count());
        for cells in &rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        line(&mut text, &widths, &HEADINGS.map(String::from));
        let rules = std::array::from_fn(|place| {
            let dashes = "-".repeat(widths[place].saturating_sub(1));
            if place == 0 || place == 8 {
                format!("{dashes}-")
            } else {
                format!("{dashes}:")
            }
        });
        line(&mut text, &widths, &rules);
        for cells in &rows {
            line(&mut text, &widths, cells);
        }
        text
    }

    /// What did not hold and what else was seen, run by run.
    pub fn remarks(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            for broken in &row.broken {
                let _ = writeln!(text, "- {} {}: FAILED: {broken}", row.number, row.fault);
            }
            for note in &row.notes {
                let _ = writeln!(text, "- {} {}: {note}", row.number, row.fault);
            }
        }
        text
    }

    /// Writes `report.json` and `report.md`.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        let failed = || Failure::io(format!("the report in {}", folder.display()));
        std::fs::create_dir_all(folder).map_err(failed())?;
        let json = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        std::fs::write(folder.join("report.json"), json.map_err(failed())?).map_err(failed())?;
        let (began, command) = (&self.began, &self.command);
        let (table, remarks) = (self.table(), self.remarks());
        let text = format!("`{command}`, {began}\n\n{table}\n{remarks}");
        std::fs::write(folder.join("report.md"), text).map_err(failed())
    }
}

fn line(text: &mut String, widths: &[usize; 9], cells: &[String; 9]) {
    for (place, (width, cell)) in widths.iter().zip(cells).enumerate() {
        let _ = if place == 0 || place == 8 {
            write!(text, "| {cell:<width$} ")
        } else {
            write!(text, "| {cell:>width$} ")
        };
    }
    text.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rows: Vec<Row>) -> Report {
        Report {
            began: String::from("now"),
            command: String::from("streamgauge-chaos"),
            seed: 1,
            rows,
        }
    }

    fn row(verdict: Verdict) -> Row {
        Row {
            verdict,
            ..Row::new(1, "kills")
        }
    }

    #[test]
    fn what_did_not_run_neither_passes_nor_fails() {
        assert!(!report(vec![]).passed());
        assert!(!report(vec![row(Verdict::NotRun)]).passed());
        assert!(report(vec![row(Verdict::NotRun), row(Verdict::Passed)]).passed());
        assert!(!report(vec![row(Verdict::Failed), row(Verdict::Passed)]).passed());
    }

    #[test]
    fn damage_is_loss_or_double() {
        let mut damaged = row(Verdict::Failed);
        assert!(!report(vec![damaged.clone()]).all_damaged());
        damaged.double = 1;
        assert!(report(vec![damaged.clone()]).all_damaged());
        assert!(!report(vec![damaged, row(Verdict::Failed)]).all_damaged());
    }

    #[test]
    fn every_line_of_the_table_is_as_wide() {
        let mut long = row(Verdict::Passed);
        long.acknowledged = 123_456_789_012_345;
        let table = report(vec![row(Verdict::NotRun), long]).table();
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        assert!(table.contains("not run") && table.contains("123456789012345"));
    }
}
