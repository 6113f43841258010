//! What an audit tells.

use std::io;

use serde::Serialize;
use streamgauge_chain::Outcomes;

use super::judge::{Break, PartitionFacts, What};
use crate::{
    error::Exit,
    output::{Output, Paint},
    table::{Align, Table, whole},
};

/// Whether the store was held against the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// It was.
    Yes,
    /// It did not answer; the reason.
    No(String),
    /// Nobody wanted it to be.
    LeftOut,
}

/// The end of an audit.
pub struct Report {
    /// Per partition.
    pub facts: Vec<PartitionFacts>,
    /// Why dead letters were not compared.
    pub dead_letters_unknown: Option<String>,
    /// Records in the dead-letter topic that name no source in this system.
    pub dead_letters_foreign: u64,
    /// Whether the store was compared.
    pub store: Compared,
}

#[derive(Serialize)]
struct View<'a> {
    balanced: bool,
    partitions: Vec<PartitionView>,
    total: TermsView,
    breaks: Vec<BreakView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letters_not_compared: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_not_compared: Option<&'a str>,
}

#[derive(Serialize)]
struct PartitionView {
    partition: i32,
    start: i64,
    end: i64,
    head: i64,
    #[serde(flatten)]
    terms: TermsView,
    valid_batches: u64,
    void_batches: u64,
    undecodable: u64,
    about_to_be_missing: i64,
    dead_letters_found: Option<u64>,
    store_head: Option<i64>,
    truncated: bool,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct TermsView {
    offsets: i64,
    counted: u64,
    duplicate: u64,
    late: u64,
    dead_lettered: u64,
    missing: u64,
    no_record: u64,
    in_flight: i64,
}

#[derive(Serialize)]
struct BreakView {
    partition: i32,
    by: i64,
    since: i64,
    what: What,
    message: String,
}

impl From<&Break> for BreakView {
    fn from(found: &Break) -> Self {
        let Break {
            partition,
            by,
            since,
            what,
        } = *found;
        Self {
            partition,
            by,
            since,
            what,
            message: found.to_string(),
        }
    }
}

impl From<&PartitionFacts> for TermsView {
    fn from(facts: &PartitionFacts) -> Self {
        let ledger = &facts.fold.ledger;
        let Outcomes {
            counted,
            duplicate,
            late,
            dead_lettered,
            missing,
            no_record,
        } = ledger.outcomes();
        let offsets = facts.source_high - ledger.base();
        let in_flight = facts.in_flight();
        Self {
            offsets,
            counted,
            duplicate,
            late,
            dead_lettered,
            missing,
            no_record,
            in_flight,
        }
    }
}

impl TermsView {
    fn add(self, other: Self) -> Self {
        Self {
            offsets: self.offsets + other.offsets,
            counted: self.counted + other.counted,
            duplicate: self.duplicate + other.duplicate,
            late: self.late + other.late,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            missing: self.missing + other.missing,
            no_record: self.no_record + other.no_record,
            in_flight: self.in_flight + other.in_flight,
        }
    }

    fn cells(&self) -> Vec<String> {
        let mut cells: Vec<String> = [
            self.counted,
            self.duplicate,
            self.late,
            self.dead_lettered,
            self.missing,
            self.no_record,
        ]
        .map(whole)
        .into();
        cells.push(whole(self.in_flight));
        cells
    }

    fn equation(&self) -> String {
        format!(
            "end - start = {} = {} counted + {} duplicate + {} late + {} dead-lettered + {} missing + {} no record + {} in flight",
            whole(self.offsets),
            whole(self.counted),
            whole(self.duplicate),
            whole(self.late),
            whole(self.dead_lettered),
            whole(self.missing),
            whole(self.no_record),
            whole(self.in_flight),
        )
    }
}

impl Report {
    fn breaks(&self) -> Vec<Break> {
        self.facts.iter().flat_map(PartitionFacts::breaks).collect()
    }

    fn total(&self) -> TermsView {
        self.facts
            .iter()
            .map(TermsView::from)
            .fold(TermsView::default(), TermsView::add)
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        match &self.store {
            _ if !self.breaks().is_empty() => Exit::No,
            Compared::No(_) => Exit::Unreachable,
            Compared::Yes | Compared::LeftOut => Exit::Ok,
        }
    }

    /// Why the store was not compared.
    fn store_not_compared(&self) -> Option<&str> {
        match &self.store {
            Compared::Yes => None,
            Compared::No(reason) => Some(reason),
            Compared::LeftOut => Some("--no-store was given"),
        }
    }

    /// The last word, where nothing is broken.
    fn verdict(&self, output: &Output) -> String {
        match &self.store {
            Compared::Yes => output.paint(Paint::Green, "balanced"),
            Compared::No(_) | Compared::LeftOut => {
                output.paint(Paint::Yellow, "balanced, store not compared")
            }
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn print(&self, output: &mut Output) -> io::Result<()> {
        if output.json() {
            return output.document(&self.view());
        }
        for line in self.table().lines() {
            output.line(line)?;
        }
        output.line("")?;
        output.line(self.total().equation())?;
        let breaks = self.breaks();
        if breaks.is_empty() {
            output.line(self.verdict(output))?;
        }
        for found in &breaks {
            let broken = output.paint(Paint::Red, &found.to_string());
            output.line(broken)?;
        }
        self.remarks(output)
    }

    fn remarks(&self, output: &mut Output) -> io::Result<()> {
        for facts in &self.facts {
            let (partition, lost) = (facts.partition, facts.about_to_be_missing());
            if lost > 0 {
                let text = format!(
                    "partition {partition}: retention removed {} events that no batch covers; they will be counted \
                     as missing",
                    whole(lost)
                );
                output.labelled(Paint::Red, "missing", &text)?;
            }
            if facts.fold.truncated {
                let base = facts.fold.ledger.base();
                output.note(format!(
                    "Partition {partition}: retention has cut metrics-data; the books begin at offset {base}."
                ))?;
            }
        }
        if let Some(reason) = &self.dead_letters_unknown {
            output.note(format!("Dead letters were not compared: {reason}."))?;
        }
        if self.dead_letters_foreign > 0 {
            let count = whole(self.dead_letters_foreign);
            output.note(format!(
                "{count} records in the dead-letter topic name no source here."
            ))?;
        }
        match self.store_not_compared() {
            Some(reason) => output.note(format!("The store was not compared: {reason}.")),
            None => Ok(()),
        }
    }

    fn table(&self) -> Table {
        let names = [
            "partition",
            "start",
            "end",
            "counted",
            "duplicate",
            "late",
            "dead",
            "missing",
            "no record",
            "in flight",
            "not applied",
        ];
        let mut table = Table::new(names.map(|name| (name, Align::Right)));
        for facts in &self.facts {
            let ends = [
                facts.partition.to_string(),
                whole(facts.fold.ledger.base()),
                whole(facts.source_high),
            ];
            let applied = facts.not_applied().map_or_else(|| String::from("?"), whole);
            let terms = TermsView::from(facts).cells();
            table.row(ends.into_iter().chain(terms).chain([applied]));
        }
        let total = self.total().cells();
        let heading = [String::from("total"), String::new(), String::new()];
        table.row(heading.into_iter().chain(total));
        table
    }

    fn view(&self) -> View<'_> {
        let partition = |facts: &PartitionFacts| {
            let ledger = &facts.fold.ledger;
            PartitionView {
                partition: facts.partition,
                start: ledger.base(),
                end: facts.source_high,
                head: ledger.head(),
                terms: TermsView::from(facts),
                valid_batches: ledger.valid_batches(),
                void_batches: ledger.void_batches(),
                undecodable: facts.fold.undecodable,
                about_to_be_missing: facts.about_to_be_missing(),
                dead_letters_found: facts.dead_letters,
                store_head: facts.store.as_ref().map(|store| store.head),
                truncated: facts.fold.truncated,
            }
        };
        let breaks = self.breaks();
        View {
            balanced: breaks.is_empty(),
            partitions: self.facts.iter().map(partition).collect(),
            total: self.total(),
            breaks: breaks.iter().map(BreakView::from).collect(),
            dead_letters_not_compared: self.dead_letters_unknown.as_deref(),
            store_not_compared: self.store_not_compared(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use streamgauge_proto::v1::{DeltaBatch, PartitionLedger};

    use super::*;
    use crate::audit::fold::Fold;

    fn report() -> Report {
        let outcomes = Outcomes {
            counted: 990,
            duplicate: 8,
            late: 2,
            ..Outcomes::default()
        };
        let batch = DeltaBatch {
            from: 0,
            to: 1000,
            outcomes: Some(outcomes.into()),
            ..DeltaBatch::default()
        };
        let mut fold = Fold::new(0, Some(1000));
        fold.record(Some(&batch.encode_to_vec()));
        let store = PartitionLedger {
            head: 1000,
            counted: 990,
            duplicate: 8,
            late: 2,
            ..PartitionLedger::default()
        };
        let facts = PartitionFacts {
            partition: 0,
            source_low: 0,
            source_high: 1005,
            fold,
            dead_letters: Some(2),
            store: Some(store),
        };
        Report {
            facts: vec![facts],
            dead_letters_unknown: None,
            dead_letters_foreign: 0,
            store: Compared::Yes,
        }
    }

    fn print(report: &Report, json: bool) -> String {
        let (mut output, out, notes) = Output::captured(json);
        report.print(&mut output).expect("memory");
        format!("{}{}", out.text(), notes.text())
    }

    #[test]
    fn books_that_balance_say_so() {
        let report = report();
        assert_eq!(report.exit(), Exit::Ok);
        insta::assert_snapshot!(print(&report, false), @r"
        partition  start    end  counted  duplicate  late  dead  missing  no record  in flight  not applied
                0      0  1,005      990          8     2     0        0          0          5            0
            total                    990          8     2     0        0          0          5

        end - start = 1,005 = 990 counted + 8 duplicate + 2 late + 0 dead-lettered + 0 missing + 0 no record + 5 in flight
        balanced
        ");
    }

    #[test]
    fn books_without_the_store_say_that_it_is_lacking() {
        let mut report = report();
        report.facts[0].store = None;
        report.store = Compared::No(String::from("cannot reach analytics"));
        assert_eq!(report.exit(), Exit::Unreachable);
        let text = print(&report, false);
        assert!(text.contains("balanced, store not compared"), "{text}");
        assert!(text.contains("cannot reach analytics"), "{text}");
        report.store = Compared::LeftOut;
        assert_eq!(report.exit(), Exit::Ok);
        let json: serde_json::Value = serde_json::from_str(&print(&report, true)).expect("JSON");
        assert_eq!(json["store_not_compared"], "--no-store was given");
    }

    #[test]
    fn books_that_do_not_say_where() {
        let mut report = report();
        report.facts[0].dead_letters = Some(1);
        report.store = Compared::No(String::from("cannot reach analytics"));
        assert_eq!(report.exit(), Exit::No);
        let text = print(&report, false);
        assert!(
            text.contains("BROKEN at partition 0 by 1 since offset 0: dead letters"),
            "{text}"
        );
        assert!(!text.contains("balanced"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&print(&report, true)).expect("JSON");
        assert_eq!(json["balanced"], false);
        assert_eq!(json["breaks"][0]["what"], "dead_letters");
        assert_eq!(json["partitions"][0]["in_flight"], 5);
    }
}
