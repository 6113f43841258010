//! The judgement at the end of a run: the log, the store and the audit against the oracle.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use prost::Message;
use serde_json::Value;
use streamgauge_chain::canary;
use streamgauge_proto::v1;
use streamgauge_tests::system::number;
use tokio::time::Instant;

use crate::{
    failure::Failure,
    load::Harvest,
    log_check::{Findings, LogCheck, parse_id},
    oracle::{Cell, TYPES, Tally, differences},
    system::{PARTITIONS, System},
};

/// Longest wait for everything in the log to be in the store.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(180);
/// How often the ledger is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Users that are asked for at once.
const QUESTIONS: usize = 16;
/// How far events may lie from now, either way.
const REACH: jiff::SignedDuration = jiff::SignedDuration::from_hours(48);

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// Acknowledged events that the store does not have.
    pub lost: u64,
    /// Events that the store has beyond those acknowledged.
    pub double: u64,
    /// What the log holds against what was submitted, all loads together.
    pub log: Findings,
    /// Events of the canary in the log, however often each stands there.
    pub canary: u64,
    /// The total of the ledger.
    pub ledger: Value,
    /// What does not hold, in sentences.
    pub broken: Vec<String>,
}

/// Waits until the store covers all of the log; returns the ledger.
pub async fn drained(system: &System) -> Result<Value, Failure> {
    let reader = system.reader()?;
    let (begun, mut last) = (Instant::now(), String::new());
    while begun.elapsed() < DRAIN_DEADLINE {
        match covered(system, &reader).await {
            Ok((true, ledger)) => return Ok(ledger),
            Ok((false, ledger)) => last = ledger.to_string(),
            Err(failure) => last = failure.to_string(),
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Failure::Unmet(format!(
        "the log is not covered after {DRAIN_DEADLINE:?}: {last}"
    )))
}

async fn covered(
    system: &System,
    reader: &streamgauge_kafka::LogReader,
) -> Result<(bool, Value), Failure> {
    let ledger = system.ask("/v1/ledger").await?;
    for partition in 0..PARTITIONS {
        let marks = reader.watermarks(&system.topics().events, partition).await;
        let marks = marks.map_err(Failure::kafka("the ends of the log"))?;
        if head(&ledger, partition) != marks.high.max(0).cast_unsigned() {
            return Ok((false, ledger));
        }
    }
    Ok((true, ledger))
}

/// How far a partition is covered.
fn head(ledger: &Value, partition: i32) -> u64 {
    let mut rows = ledger["partitions"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["partition"].as_i64() == Some(i64::from(partition)));
    row.map_or(0, |row| number(&row["head"]))
}

/// Compares everything that is known. `missing` source offsets are lost openly: the ledger must name as many, and the
/// store may have so many events less.
pub async fn judge(
    system: &System,
    harvests: &[Harvest],
    missing: u64,
) -> Result<Judgement, Failure> {
    let books = drained(system).await?;
    let mut judgement = Judgement {
        ledger: books["total"].clone(),
        ..Judgement::default()
    };
    let tallies: Vec<&Tally> = harvests.iter().map(|harvest| &harvest.tally).collect();
    let expected: u64 = tallies.iter().map(|tally| tally.events).sum();
    judgement.the_log(system, &books, &tallies, missing).await?;
    judgement.the_users(system, &tallies).await?;
    judgement.the_keys(system, &tallies, expected).await?;
    let of_canary = judgement.canary;
    judgement.the_ledger(expected + of_canary, missing);
    judgement.the_audit(system).await?;
    Ok(judgement)
}

impl Judgement {
    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(what());
        }
    }

    /// A count of the ledger.
    pub fn count(&self, outcome: &str) -> u64 {
        number(&self.ledger[outcome])
    }

    /// Reads the events' topic back, as far as the books go: what the canary had under way when it ended may be
    /// written behind that.
    async fn the_log(
        &mut self,
        system: &System,
        books: &Value,
        tallies: &[&Tally],
        missing: u64,
    ) -> Result<(), Failure> {
        let mut checks: BTreeMap<&str, LogCheck> = tallies
            .iter()
            .map(|tally| (tally.run.as_str(), LogCheck::default()))
            .collect();
        let mut of_canary = HashSet::new();
        let (reader, topic) = (system.reader()?, &system.topics().events);
        for partition in 0..PARTITIONS {
            let marks = reader.watermarks(topic, partition).await;
            let marks = marks.map_err(Failure::kafka("the ends of the log"))?;
            let end = head(books, partition).cast_signed();
            let read = reader.read_range(topic, partition, marks.low, end, |chunk| {
                for record in chunk.iter() {
                    let event = v1::Event::decode(record.payload.unwrap_or_default());
                    let Ok(event) = event else { continue };
                    if event.event_type == canary::EVENT_TYPE {
                        of_canary.insert(event.event_id);
                        continue;
                    }
                    let Some((run, key)) = parse_id(&event.event_id) else {
                        continue;
                    };
                    // Poison may bear an honest id under another key: it is not that user's event.
                    let honest = record.key == Some(event.user_id.as_bytes());
                    if let (true, Some(check)) = (honest, checks.get_mut(run)) {
                        check.record(partition, key);
                    }
                }
            });
            read.await.map_err(Failure::kafka("reading the log back"))?;
        }
        self.canary = of_canary.len() as u64;
        for tally in tallies {
            let found = checks[tally.run.as_str()].findings(&tally.sequences, &tally.attempts);
            self.log.absent += found.absent;
            self.log.surplus += found.surplus;
            self.log.order_breaks += found.order_breaks;
            self.log.strayed += found.strayed;
        }
        let log = self.log;
        if missing == 0 {
            self.require(log.absent == 0, || {
                format!("{} acknowledged events are not in the log", log.absent)
            });
        }
        self.require(log.order_breaks == 0, || {
            format!(
                "{} events stand behind a later one of their user",
                log.order_breaks
            )
        });
        self.require(log.strayed == 0, || {
            format!(
                "{} records are in another partition than their user",
                log.strayed
            )
        });
        Ok(())
    }

    /// Each user's counts per page and type; what is lost or double is summed over these, so that the
    /// one cannot hide the other.
    async fn the_users(&mut self, system: &System, tallies: &[&Tally]) -> Result<(), Failure> {
        for tally in tallies {
            let users = tally.by_user();
            let answers = stream::iter(users.keys().map(|user| {
                let path = format!("/v1/users/{}/activity?limit=1000", tally.user_id(*user));
                async move { Ok::<_, Failure>((*user, cells(&system.ask(&path).await?))) }
            }));
            let mut answers = answers.buffer_unordered(QUESTIONS);
            while let Some(answer) = answers.next().await {
                let (user, found) = answer?;
                let (lost, double) = differences(&users[&user], &found);
                self.lost += lost;
                self.double += double;
            }
        }
        Ok(())
    }

    /// The sums over all users, per page and per type.
    async fn the_keys(
        &mut self,
        system: &System,
        tallies: &[&Tally],
        expected: u64,
    ) -> Result<(), Failure> {
        let sums = |key: fn(Cell) -> String| {
            let mut sums: BTreeMap<String, u64> = BTreeMap::new();
            for (name, count) in tallies.iter().flat_map(|tally| tally.by(key)) {
                *sums.entry(name).or_default() += count;
            }
            sums
        };
        let questions = [
            ("page_url", sums(Cell::page_url)),
            ("event_type", sums(|cell| cell.event_type().to_owned())),
        ];
        let (lost, double) = (self.lost, self.double);
        for (dimension, sums) in questions {
            let found = top(system, dimension).await?;
            let (less, more) = differences(&sums, &found);
            let all: u64 = sums.values().sum();
            self.require(all == expected, || {
                format!("the oracle adds up to {all} by {dimension} and to {expected} in all")
            });
            // A series that differs where no user does is a defect of its own.
            self.require((less > 0) <= (lost > 0) && (more > 0) <= (double > 0), || {
                format!(
                    "by {dimension}: {less} too few and {more} too many, while users show {lost} and {double}"
                )
            });
        }
        self.require(double == 0, || format!("{double} events are counted twice"));
        Ok(())
    }

    fn the_ledger(&mut self, expected: u64, missing: u64) {
        let (counted, found) = (self.count("counted"), self.count("missing"));
        let (lost, double) = (self.lost, self.double);
        self.require(lost <= missing, || {
            format!("{lost} acknowledged events are lost")
        });
        self.require(found == missing, || {
            format!("{found} offsets are counted as missing where {missing} were removed")
        });
        self.require(counted + lost == expected + double, || {
            format!(
                "the ledger counts {counted}; {expected} were sent, {lost} lost, {double} double"
            )
        });
        let imbalance = self.ledger["imbalance"].as_i64().unwrap_or(i64::MIN);
        self.require(imbalance == 0, || {
            format!("the ledger's imbalance is {imbalance}")
        });
    }

    async fn the_audit(&mut self, system: &System) -> Result<(), Failure> {
        let (code, report) = system.audit().await?;
        let balanced = code == 0 && report["balanced"] == true;
        self.require(balanced, || {
            format!("the audit ended with {code}: {report}")
        });
        Ok(())
    }
}

/// What one user did, by page and type.
fn cells(activity: &Value) -> BTreeMap<Cell, u64> {
    let pages = activity["pages"].as_array().into_iter().flatten();
    let cell = |entry: &Value| {
        let page = entry["page_url"].as_str()?.strip_prefix("/page/")?;
        let kind = entry["event_type"].as_str()?;
        let kind = TYPES.iter().position(|name| *name == kind)?;
        let page = page.parse().ok()?;
        let kind = u8::try_from(kind).ok()?;
        Some((Cell { page, kind }, number(&entry["count"])))
    };
    pages.filter_map(cell).collect()
}

/// Events per key of one dimension, whenever they were.
async fn top(system: &System, dimension: &str) -> Result<BTreeMap<String, u64>, Failure> {
    let now = jiff::Timestamp::now();
    let (from, to) = (now - REACH, now + REACH);
    let path = format!("/v1/top?by={dimension}&from={from:.0}&to={to:.0}&limit=1000");
    let answer = system.ask(&path).await?;
    let entries = answer["entries"].as_array();
    let entries = entries.ok_or_else(|| Failure::Unmet(format!("{path}: {answer}")))?;
    let entry = |entry: &Value| {
        let key = entry["key"][0].as_str()?.to_owned();
        Some((key, number(&entry["value"]["count"])))
    };
    Ok(entries.iter().filter_map(entry).collect())
}
