//! What an audit tells, for people.

use std::io;

use streamgauge_audit::{
    Break, PartitionFacts, ProducerFacts, Rebuilt, SpoolFacts, StoreSums, Terms,
};

use super::{
    dead_letters::Foreign,
    range::{RangeLine, TimeRange},
    services::{Said, Store},
    view,
};
use crate::{
    error::Exit,
    output::{Output, Paint},
    table::{Align, Table, whole},
};

/// The end of an audit.
pub struct Report {
    /// Per partition.
    pub facts: Vec<PartitionFacts>,
    /// The range asked for.
    pub range: Option<TimeRange>,
    /// Why dead letters were not compared.
    pub dead_letters_unknown: Option<String>,
    /// Records in the dead-letter topic that name no source in this system.
    pub dead_letters_foreign: Foreign,
    /// What the services said.
    pub said: Said,
}

impl Report {
    /// Everything that does not add up.
    pub fn breaks(&self) -> Vec<Break> {
        let mut breaks: Vec<Break> = self.facts.iter().flat_map(PartitionFacts::breaks).collect();
        breaks.extend(self.sums().into_iter().flat_map(StoreSums::breaks));
        let end = |partition: i32| {
            let facts = self.facts.iter().find(|facts| facts.partition == partition);
            facts.map(|facts| facts.source_high)
        };
        let producers = self.said.producers.iter();
        breaks.extend(producers.flat_map(|producer| producer.breaks(end)));
        breaks
    }

    /// What the store's rows add up to.
    pub fn sums(&self) -> Option<&StoreSums> {
        match &self.said.store {
            Store::Answered { sums, .. } => sums.as_ref(),
            Store::Silent(_) | Store::LeftOut => None,
        }
    }

    /// The rebuild that made the store's rows.
    pub fn rebuilt(&self) -> Option<&Rebuilt> {
        self.sums().and_then(|sums| sums.rebuilt.as_ref())
    }

    /// The terms over all partitions.
    pub fn total(&self) -> Terms {
        let mut total = Terms::default();
        self.facts.iter().for_each(|facts| total += facts.terms());
        total
    }

    /// What the partitions say of the range asked for.
    pub fn range_lines(&self) -> Vec<RangeLine> {
        self.facts.iter().filter_map(RangeLine::of).collect()
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        match &self.said.store {
            _ if !self.breaks().is_empty() => Exit::No,
            Store::Silent(_) => Exit::Unreachable,
            Store::Answered { .. } | Store::LeftOut => Exit::Ok,
        }
    }

    /// Why the store was not compared.
    pub fn store_not_compared(&self) -> Option<&str> {
        match &self.said.store {
            Store::Answered { .. } => None,
            Store::Silent(reason) => Some(reason),
            Store::LeftOut => Some("--no-store was given"),
        }
    }

    /// The last word, where nothing is broken.
    pub fn verdict(&self) -> &'static str {
        match self.store_not_compared() {
            None => "balanced",
            Some(_) => "balanced, store not compared",
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn print(&self, output: &mut Output) -> io::Result<()> {
        if output.json() {
            return output.document(&view::of(self));
        }
        for line in self.table().lines() {
            output.line(line)?;
        }
        output.line("")?;
        output.line(self.total().to_string())?;
        self.print_range(output)?;
        self.print_producers(output)?;
        if let Some(rebuilt) = self.rebuilt().filter(|rebuilt| rebuilt.is_different()) {
            output.line(rebuilt.to_string())?;
        }
        let breaks = self.breaks();
        if breaks.is_empty() {
            let paint = match self.store_not_compared() {
                None => Paint::Green,
                Some(_) => Paint::Yellow,
            };
            let verdict = output.paint(paint, self.verdict());
            output.line(verdict)?;
        }
        for found in &breaks {
            let broken = output.paint(Paint::Red, &found.to_string());
            output.line(broken)?;
        }
        self.print_remarks(output)
    }

    fn print_range(&self, output: &mut Output) -> io::Result<()> {
        let Some(range) = self.range else {
            return Ok(());
        };
        let lines = self.range_lines();
        let mut terms = Terms::default();
        lines.iter().for_each(|line| terms += line.terms);
        output.line(format!("range {}: {terms}", range.show()))?;
        for line in lines.iter().filter(|line| line.is_wider()) {
            output.note(format!(
                "Partition {}: the range is offsets {} to {}; whole batches make it {} to {}.",
                line.partition, line.from, line.to, line.covered_from, line.covered_to
            ))?;
        }
        Ok(())
    }

    fn print_producers(&self, output: &mut Output) -> io::Result<()> {
        for producer in &self.said.producers {
            output.line(format!(
                "producer {}: received {} = {} accepted + {} rejected + {} failed + {} in flight; the log acknowledged \
                 {} records",
                producer.name,
                whole(producer.received),
                whole(producer.accepted),
                whole(producer.rejected),
                whole(producer.failed),
                whole(producer.in_flight),
                whole(producer.acknowledged_records()),
            ))?;
            if let Some(spool) = producer.spool.as_ref().filter(|spool| spool.is_used()) {
                output.line(spool_line(&producer.name, spool))?;
            }
        }
        Ok(())
    }

    fn print_remarks(&self, output: &mut Output) -> io::Result<()> {
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
        }
        for remark in self.remarks() {
            output.note(remark)?;
        }
        Ok(())
    }

    /// What is worth a look though it balances, and what was not compared.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<String> = self.facts.iter().flat_map(partition_remarks).collect();
        if let Some(reason) = &self.dead_letters_unknown {
            remarks.push(format!("Dead letters were not compared: {reason}."));
        }
        if let Some((partition, offset)) = self.dead_letters_foreign.first {
            let count = whole(self.dead_letters_foreign.count);
            remarks.push(format!(
                "{count} records in the dead-letter topic name no source here; the first lies at offset {offset} of its \
                 partition {partition}."
            ));
        }
        remarks.extend(self.said.producers.iter().flat_map(producer_remarks));
        for reason in &self.said.silent_producers {
            remarks.push(format!("A producer was not compared: {reason}."));
        }
        if let Some(reason) = self.store_not_compared() {
            remarks.push(format!("The store was not compared: {reason}."));
        }
        if let Store::Answered { remarks: said, .. } = &self.said.store {
            let reasons = said.iter().filter(|remark| remark.starts_with("the store"));
            remarks.extend(reasons.map(|remark| format!("Analytics says: {remark}.")));
        }
        remarks
    }

    /// Where the records lie that count for nobody.
    pub fn spots(&self) -> Vec<String> {
        self.facts.iter().flat_map(partition_spots).collect()
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
            let terms = cells(&facts.terms());
            table.row(ends.into_iter().chain(terms).chain([applied]));
        }
        let heading = [String::from("total"), String::new(), String::new()];
        table.row(heading.into_iter().chain(cells(&self.total())));
        table
    }
}

fn cells(terms: &Terms) -> Vec<String> {
    let mut cells: Vec<String> = terms.counts().map(whole).into();
    cells.push(whole(terms.in_flight));
    cells
}

fn spool_line(producer: &str, spool: &SpoolFacts) -> String {
    format!(
        "spool of producer {producer}: {} waited + {} came = {} wait + {} drained + {} lost + {} put aside; the log \
         acknowledged {} records",
        whole(spool.waiting_at_start),
        whole(spool.spooled),
        whole(spool.waiting),
        whole(spool.drained),
        whole(spool.lost),
        whole(spool.put_aside),
        whole(spool.acknowledged_records()),
    )
}

fn producer_remarks(producer: &ProducerFacts) -> Vec<String> {
    let name = &producer.name;
    let Some(spool) = &producer.spool else {
        return vec![format!(
            "Producer {name} says nothing of a spool: what it accepted was not held against what the log acknowledged."
        )];
    };
    let mut remarks = Vec::new();
    if spool.waiting > 0 {
        remarks.push(format!(
            "Producer {name}: {} events wait in the spool; they are in flight, and in no partition yet.",
            whole(spool.waiting)
        ));
    }
    if spool.put_aside > 0 {
        remarks.push(format!(
            "Producer {name}: {} accepted events of the spool were put aside, since the log does not take them; the files \
             beside the spool (*.kept) hold them.",
            whole(spool.put_aside)
        ));
    }
    remarks
}

fn partition_remarks(facts: &PartitionFacts) -> Vec<String> {
    let (partition, fold) = (facts.partition, &facts.fold);
    let mut remarks = Vec::new();
    if fold.truncated {
        let base = fold.ledger.base();
        remarks.push(format!(
            "Partition {partition}: retention has cut metrics-data; the books begin at offset {base}."
        ));
    }
    remarks.extend(partition_spots(facts));
    remarks
}

fn partition_spots(facts: &PartitionFacts) -> impl Iterator<Item = String> {
    let (partition, spots) = (facts.partition, facts.fold.notes.sentences());
    let spots = spots.into_iter();
    spots.map(move |spot| format!("Partition {partition}: {spot}."))
}

#[cfg(test)]
#[path = "report_tests.rs"]
pub mod tests;
