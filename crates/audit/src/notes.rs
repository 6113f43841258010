//! What reading the log shows beside the ledger: records that count for nobody, by where the first and the last of each
//! kind lie, and batches that count and do not hold what they say.
//!
//! Void batches are no fault: consumers that follow each other leave them, now and then the same one twice. But a record
//! that somebody has added by hand is one of these, so that each kind names its spot.

use std::collections::{BTreeMap, hash_map::DefaultHasher};
use std::hash::Hasher;

use serde::Serialize;
use streamgauge_chain::{Outcomes, Range, canary};
use streamgauge_proto::v1::{DeltaBatch, SeriesDelta};

use crate::whole;

/// A batch as it was met in the log.
#[derive(Clone, Copy, Debug)]
pub struct Met<'a> {
    /// Its offset in `metrics-data`.
    pub at: i64,
    /// The source offsets that it covers.
    pub range: Range,
    /// How they ended, as it says.
    pub outcomes: Outcomes,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// A batch that began beyond the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Its first source offset.
    pub from: i64,
    /// Its offset in `metrics-data`.
    pub at: i64,
}

/// Batches that began beyond the head. No honest writer begins there: what led up to such a batch was removed, or the
/// batch was added by hand. Both are told; which it is shows once the chain has gone on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strays {
    count: u64,
    first: Option<Stray>,
    /// The least of those that the chain has not reached.
    waiting: Option<Stray>,
}

impl Strays {
    /// A void batch was read while the chain stood at `head`.
    pub fn void(&mut self, head: i64, range: Range, at: i64) {
        if range.from() <= head {
            return;
        }
        let stray = Stray {
            from: range.from(),
            at,
        };
        self.count += 1;
        self.first.get_or_insert(stray);
        if self.waiting.is_none_or(|least| stray.from < least.from) {
            self.waiting = Some(stray);
        }
    }

    /// The chain went on to `head`: somebody wrote what lies before the strays that it has reached.
    pub fn went_on(&mut self, head: i64) {
        if self.waiting.is_some_and(|stray| stray.from <= head) {
            self.waiting = None;
        }
    }

    /// How many there were.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The first that there was.
    pub const fn first(&self) -> Option<Stray> {
        self.first
    }

    /// The least that the chain has not reached.
    pub const fn waiting(&self) -> Option<Stray> {
        self.waiting
    }
}

/// Where a record lies that counts for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Its offset in `metrics-data`.
    pub at: i64,
    /// The source offsets that it covers; `None` when it is no batch.
    pub range: Option<Range>,
    /// The offset in `metrics-data` of the batch that counts and that it is held against.
    pub against: Option<i64>,
}

/// Records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    count: u64,
    first: Option<Spot>,
    last_at: i64,
}

impl Kind {
    fn add(&mut self, spot: Spot) {
        self.count += 1;
        self.first.get_or_insert(spot);
        self.last_at = spot.at;
    }

    /// How many there are.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The first that there was.
    pub const fn first(&self) -> Option<Spot> {
        self.first
    }

    /// The offset in `metrics-data` of the last, where there is more than one.
    pub fn last_at(&self) -> Option<i64> {
        (self.count > 1).then_some(self.last_at)
    }

    /// How many, what, and where; `held` is the word between the first and the batch that it is held against.
    fn sentence(&self, what: &str, held: &str) -> Option<String> {
        let (first, count) = (self.first?, whole(self.count));
        let mut text = format!(
            "{count} {what}; the first lies at offset {} of metrics-data",
            first.at
        );
        if let Some(range) = first.range {
            let (from, to) = (range.from(), range.to());
            text.push_str(&format!(" and covers {from} to {to} of the source"));
        }
        if let Some(against) = first.against {
            text.push_str(&format!(", {held} the one at {against}"));
        }
        if let Some(last) = self.last_at() {
            text.push_str(&format!("; the last lies at {last}"));
        }
        Some(text)
    }

    fn line(&self, what: &'static str) -> Option<SpotLine> {
        let first = self.first?;
        Some(SpotLine {
            what,
            count: self.count,
            first_offset: first.at,
            last_offset: self.last_at(),
            covers: first.range.map(|range| [range.from(), range.to()]),
            against_offset: first.against,
        })
    }
}

/// Records that count for nobody, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spots {
    /// All batches that do not continue the chain.
    pub void: Kind,
    /// Those of them that are, byte for byte, a batch that counts.
    pub copies: Kind,
    /// Those of them that contradict a batch that counts: over the same offsets they say another sum, or they begin in
    /// its midst, where the chain never stood.
    pub contradictions: Kind,
    /// Records that are no batch.
    pub undecodable: Kind,
}

/// A kind of record that counts for nobody, as an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SpotLine {
    /// `void`, `copy`, `contradiction`, `stray` or `undecodable`.
    pub what: &'static str,
    /// How many there are.
    pub count: u64,
    /// Where the first lies in `metrics-data`.
    pub first_offset: i64,
    /// Where the last lies, where there is more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_offset: Option<i64>,
    /// The source offsets that the first covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covers: Option<[i64; 2]>,
    /// Where the batch that counts lies that the first repeats or contradicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_offset: Option<i64>,
}

/// Batches that count, as far as they are remembered.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    batches_max: usize,
    /// By the first source offset: the chain takes none twice.
    batches: BTreeMap<i64, CountedBatch>,
}

#[derive(Clone, Copy, Debug)]
struct CountedBatch {
    at: i64,
    to: i64,
    outcomes: Outcomes,
    digest: u64,
}

impl Counted {
    /// None yet; of more than `batches_max` the oldest are forgotten.
    pub const fn of(batches_max: usize) -> Self {
        Self {
            batches_max,
            batches: BTreeMap::new(),
        }
    }

    /// What was taken for the chain was not.
    pub fn clear(&mut self) {
        self.batches.clear();
    }

    fn add(&mut self, met: &Met<'_>) {
        if self.batches_max == 0 {
            return;
        }
        if self.batches.len() >= self.batches_max {
            self.batches.pop_first();
        }
        let batch = CountedBatch {
            at: met.at,
            to: met.range.to(),
            outcomes: met.outcomes,
            digest: digest(met.payload),
        };
        self.batches.insert(met.range.from(), batch);
    }

    /// The batch that covers the offset.
    fn over(&self, offset: i64) -> Option<(i64, &CountedBatch)> {
        let (from, batch) = self.batches.range(..=offset).next_back()?;
        (offset < batch.to).then_some((*from, batch))
    }
}

/// Tells copies by; nothing depends on it but a remark.
fn digest(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}

/// What was met in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    strays: Strays,
    spots: Spots,
    contents: Option<(i64, i64)>,
}

impl Notes {
    /// A batch that counts.
    pub fn valid(&mut self, met: &Met<'_>, batch: &DeltaBatch, counted: &mut Counted) {
        self.strays.went_on(met.range.to());
        counted.add(met);
        let difference = contents_difference(batch, met.outcomes.counted);
        if difference != 0 {
            let (_, sum) = self.contents.get_or_insert((met.range.from(), 0));
            *sum = sum.saturating_add(difference);
        }
    }

    /// A batch that does not continue the chain, which stood at `head`.
    pub fn void(&mut self, head: i64, met: &Met<'_>, counted: &Counted) {
        self.strays.void(head, met.range, met.at);
        let spot = Spot {
            at: met.at,
            range: Some(met.range),
            against: None,
        };
        self.spots.void.add(spot);
        let Some((from, batch)) = counted.over(met.range.from()) else {
            return;
        };
        let against = Spot {
            against: Some(batch.at),
            ..spot
        };
        let is_same_range = (from, batch.to) == (met.range.from(), met.range.to());
        if is_same_range && batch.digest == digest(met.payload) {
            self.spots.copies.add(against);
        } else if from != met.range.from() || (is_same_range && batch.outcomes != met.outcomes) {
            self.spots.contradictions.add(against);
        }
    }

    /// A record that is no batch.
    pub fn undecodable(&mut self, at: i64) {
        self.spots.undecodable.add(Spot {
            at,
            range: None,
            against: None,
        });
    }

    /// Batches that began beyond the head.
    pub const fn strays(&self) -> &Strays {
        &self.strays
    }

    /// Records that count for nobody.
    pub const fn spots(&self) -> &Spots {
        &self.spots
    }

    /// The first source offset of the first valid batch whose series add up otherwise than it counts, and the sum of
    /// the differences of all such batches.
    pub const fn contents(&self) -> Option<(i64, i64)> {
        self.contents
    }

    /// Where they lie, for people; each goes on from the name of the partition.
    pub fn sentences(&self) -> Vec<String> {
        let strays = self.strays.first().map(|stray| {
            format!(
                "{} of them began beyond the chain's head, as no consumer writes them; the first lies at offset {} of \
                 metrics-data and begins at {} of the source",
                whole(self.strays.count()),
                stray.at,
                stray.from
            )
        });
        let spots = &self.spots;
        let sentences = [
            spots
                .void
                .sentence("batches are void and count for nobody", ""),
            spots
                .copies
                .sentence("of them are, byte for byte, batches that count", "like"),
            spots
                .contradictions
                .sentence("of them contradict batches that count", "unlike"),
            strays,
            spots.undecodable.sentence(
                "records of metrics-data are no batches and count for nobody",
                "",
            ),
        ];
        sentences.into_iter().flatten().collect()
    }

    /// Where they lie, for machines.
    pub fn lines(&self) -> Vec<SpotLine> {
        let stray = self.strays.first().map(|first| SpotLine {
            what: "stray",
            count: self.strays.count(),
            first_offset: first.at,
            last_offset: None,
            covers: None,
            against_offset: None,
        });
        let spots = &self.spots;
        let lines = [
            spots.void.line("void"),
            spots.copies.line("copy"),
            spots.contradictions.line("contradiction"),
            stray,
            spots.undecodable.line("undecodable"),
        ];
        lines.into_iter().flatten().collect()
    }
}

/// How many more events a batch counts than it adds to the event types, or else to the series of all events.
fn contents_difference(batch: &DeltaBatch, counted: u64) -> i64 {
    let difference = |sum: u64| counted as i64 - sum as i64;
    let types = batch.types.iter().map(|entry| entry.count);
    let by_type = difference(types.fold(0, u64::saturating_add));
    if by_type != 0 {
        return by_type;
    }
    let of = |name| batch.series.iter().find(|series| series.series == name);
    let sum = |series: &SeriesDelta| {
        let cells = series.cells.iter().map(|cell| cell.count);
        cells.fold(0, u64::saturating_add)
    };
    of(canary::ALL).map_or(0, |all| {
        difference(sum(all).saturating_add(of(canary::SERIES).map_or(0, sum)))
    })
}

#[cfg(test)]
#[path = "notes_tests.rs"]
mod tests;
