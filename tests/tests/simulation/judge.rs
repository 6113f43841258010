//! An independent reader of `metrics-data`, who checks every batch as it lands.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use streamgauge_analytics::view::ChainRow;
use streamgauge_chain::{Ledger, Outcomes, Verdict, delta};
use streamgauge_proto::v1::DeltaBatch;

use crate::source::{Fate, Source};

/// What the judge has seen.
#[derive(Debug)]
pub struct Judge {
    pub ledger: Ledger,
    /// Takes every batch for valid: the mutation that must be found.
    ignore_rule: bool,
    valid: HashSet<(i64, i64)>,
    /// The ledger behind each record of the log.
    behind: Vec<Ledger>,
    /// Whole events counted, by key.
    counted: BTreeMap<String, u64>,
}

impl Judge {
    pub fn new(ignore_rule: bool) -> Self {
        let (valid, counted) = (HashSet::new(), BTreeMap::new());
        Self {
            ledger: Ledger::starting_at(0),
            ignore_rule,
            valid,
            behind: Vec::new(),
            counted,
        }
    }

    pub fn is_valid(&self, from: i64, to: i64) -> bool {
        self.valid.contains(&(from, to))
    }

    /// Reads a batch that has just landed.
    pub fn read(
        &mut self,
        bytes: &Bytes,
        source: &Source,
        dead: &HashSet<i64>,
    ) -> Result<Verdict, String> {
        let batch = delta::decode(bytes).map_err(|error| error.to_string())?;
        let range = delta::range(&batch).map_err(|error| error.to_string())?;
        let outcomes = delta::outcomes(&batch);
        let verdict = self.ledger.offer(range, outcomes);
        self.behind.push(self.ledger);
        if verdict == Verdict::Void && !self.ignore_rule {
            return Ok(verdict);
        }
        if self.ledger.imbalance() != 0 {
            return Err(format!(
                "the ledger is out of balance by {}",
                self.ledger.imbalance()
            ));
        }
        self.valid.insert((range.from(), range.to()));
        check_outcomes(&batch, outcomes, source)?;
        check_dead(&batch, source, dead)?;
        self.add(&batch)?;
        self.check_counts(source)?;
        Ok(verdict)
    }

    /// A record that is not a batch.
    pub fn read_garbage(&mut self) {
        self.behind.push(self.ledger);
    }

    /// A chain in the store is the fold of the log up to its position.
    ///
    /// Where retention took batches that it had not read (`cut`), what it takes up behind them may be a batch that is
    /// void for who has read them all. Then it still counts no offset twice, and adds up.
    pub fn check_chain(&self, row: &ChainRow, source: &Source, cut: bool) -> Result<(), String> {
        let position = row.delta_position.cast_unsigned() as usize;
        let Some(expected) = position.checked_sub(1).and_then(|at| self.behind.get(at)) else {
            return Err(format!(
                "the store has read up to {position}, beyond the log"
            ));
        };
        let is_same =
            row.ledger.head() == expected.head() && row.ledger.outcomes() == expected.outcomes();
        let adds_up = row.ledger.imbalance() == 0 && row.ledger.head() <= source.high();
        if is_same || (cut && adds_up) {
            return Ok(());
        }
        Err(format!(
            "at {position} the store's chain is {:?}, not {expected:?}",
            row.ledger
        ))
    }

    /// Figures of analytics, by key as text. Where retention has cut, none may be more than the source holds.
    pub fn check_figures(
        &self,
        found: &BTreeMap<String, u64>,
        source: &Source,
        cut: bool,
    ) -> Result<(), String> {
        let as_text = |(key, count): (&str, &u64)| (format!("[\"{key}\"]"), *count);
        let counted = self
            .counted
            .iter()
            .map(|(key, count)| (key.as_str(), count));
        let due: BTreeMap<String, u64> = counted.map(as_text).collect();
        if *found == due {
            return Ok(());
        }
        let all = expected_counts(source, 0, source.high());
        let all: BTreeMap<String, u64> = all
            .iter()
            .map(|(key, count)| as_text((key, count)))
            .collect();
        let mut counts = found.iter();
        if cut && counts.all(|(key, count)| all.get(key).is_some_and(|due| count <= due)) {
            return Ok(());
        }
        Err(format!("{found:?} was found, not {due:?}"))
    }

    /// The pages of the one user are the keys of the one series.
    pub fn check_users(
        &self,
        users: &BTreeMap<String, u64>,
        keys: &BTreeMap<String, u64>,
    ) -> Result<(), String> {
        let pages: BTreeMap<String, u64> = users
            .iter()
            .map(|(page, count)| (format!("[\"{page}\"]"), *count))
            .collect();
        if pages == *keys {
            return Ok(());
        }
        Err(format!("the user's pages are {pages:?}, not {keys:?}"))
    }

    fn add(&mut self, batch: &DeltaBatch) -> Result<(), String> {
        let mut sum = 0;
        for cell in batch.series.iter().flat_map(|series| &series.cells) {
            let key = &batch.strings[cell.key[0] as usize];
            *self.counted.entry(key.clone()).or_default() += cell.count;
            sum += cell.count;
        }
        let counted = delta::outcomes(batch).counted;
        if sum == counted {
            Ok(())
        } else {
            Err(format!("cells hold {sum}, counted are {counted}"))
        }
    }

    /// No key was counted more often than the log up to the head holds it.
    fn check_counts(&self, source: &Source) -> Result<(), String> {
        let expected = expected_counts(source, 0, self.ledger.head());
        for (key, count) in &self.counted {
            let allowed = expected.get(key.as_str()).copied().unwrap_or_default();
            if *count > allowed {
                return Err(format!("`{key}` was counted {count} times, not {allowed}"));
            }
        }
        Ok(())
    }

    /// At rest everything that retention has not taken is counted, exactly.
    pub fn check_at_rest(&self, source: &Source) -> Result<(), String> {
        if self.ledger.head() != source.high() {
            return Err(format!(
                "the head is {}, the end {}",
                self.ledger.head(),
                source.high()
            ));
        }
        let total = self.ledger.outcomes();
        if source.low == 0 && total != source.expected(0, source.high()) {
            return Err(format!(
                "{total:?} in all, not {:?}",
                source.expected(0, source.high())
            ));
        }
        for (key, expected) in expected_counts(source, source.low, source.high()) {
            let counted = self.counted.get(key).copied().unwrap_or_default();
            if counted < expected {
                return Err(format!(
                    "`{key}` was counted {counted} times, not {expected}"
                ));
            }
        }
        Ok(())
    }
}

fn expected_counts(source: &Source, from: i64, to: i64) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for offset in from..to {
        if let Fate::Counted(key) = source.fate(offset) {
            *counts.entry(key.as_str()).or_default() += 1;
        }
    }
    counts
}

/// A batch over what nobody truncated says exactly what a perfect reader says.
fn check_outcomes(batch: &DeltaBatch, outcomes: Outcomes, source: &Source) -> Result<(), String> {
    let expected = source.expected(batch.from, batch.to);
    if outcomes.missing == 0 && outcomes != expected {
        return Err(format!(
            "[{}, {}) ended {outcomes:?}, not {expected:?}",
            batch.from, batch.to
        ));
    }
    let truncated = (source.low.min(batch.to) - batch.from)
        .max(0)
        .cast_unsigned();
    if outcomes.missing > truncated {
        return Err(format!(
            "{} are missing, {truncated} were truncated",
            outcomes.missing
        ));
    }
    Ok(())
}

/// What a batch counts as dead-lettered or late lies in the dead-letter topic already.
fn check_dead(batch: &DeltaBatch, source: &Source, dead: &HashSet<i64>) -> Result<(), String> {
    let lost = (batch.from.max(source.low)..batch.to).find(|offset| {
        matches!(source.fate(*offset), Fate::DeadLettered | Fate::Late) && !dead.contains(offset)
    });
    match lost {
        Some(offset) => Err(format!("offset {offset} is not in the dead-letter topic")),
        None => Ok(()),
    }
}
