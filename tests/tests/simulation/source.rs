//! The source log, and what a single perfect reader would make of it.

use std::collections::HashMap;

use prost::Message;
use streamgauge_chain::Outcomes;
use streamgauge_consumer::core::{dedupe::Dedupe, partition::SourceRecord};
use streamgauge_proto::v1::Event;

use crate::random::Random;

/// Log time of the first record.
pub const START_MS: i64 = 1_700_000_000_000;

/// How an offset must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Counted under this key.
    Counted(String),
    Duplicate,
    Late,
    DeadLettered,
    NoRecord,
}

/// What lies at an offset.
#[derive(Clone, Debug)]
pub struct Entry {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    pub fate: Fate,
}

/// The source partition.
#[derive(Debug)]
pub struct Source {
    entries: Vec<Entry>,
    pub low: i64,
    /// The clock of whoever writes.
    now_ms: i64,
    /// The largest record time so far.
    log_time_ms: i64,
    seen: HashMap<String, i64>,
    horizon: Dedupe,
    /// Each event has an id of its own, as where retention may take what dedupe needs.
    unique: bool,
    accepted_age_us: i64,
}

impl Source {
    pub fn new(unique: bool, horizon_us: i64, accepted_age_us: i64) -> Self {
        Self {
            entries: Vec::new(),
            low: 0,
            now_ms: START_MS,
            log_time_ms: 0,
            seen: HashMap::new(),
            horizon: Dedupe::new(horizon_us, 1),
            unique,
            accepted_age_us,
        }
    }

    pub fn high(&self) -> i64 {
        self.entries.len() as i64
    }

    pub fn fate(&self, offset: i64) -> &Fate {
        &self.entries[offset as usize].fate
    }

    /// The record at or after an offset.
    pub fn record(&self, from: i64) -> Option<SourceRecord<'_>> {
        let entries = self.entries.iter().enumerate().skip(from as usize);
        let mut records = entries.filter(|(_, entry)| entry.fate != Fate::NoRecord);
        records.next().map(|(offset, entry)| SourceRecord {
            offset: offset as i64,
            timestamp_ms: entry.timestamp_ms,
            key: entry.key.as_deref(),
            payload: entry.payload.as_deref(),
            headers_bytes: 0,
            trace: None,
        })
    }

    /// The first offset with a record at or after this time.
    pub fn offset_for_time(&self, timestamp_ms: i64) -> Option<i64> {
        let from = self.low as usize;
        let found = self.entries[from..]
            .iter()
            .position(|entry| entry.fate != Fate::NoRecord && entry.timestamp_ms >= timestamp_ms);
        found.map(|place| (from + place) as i64)
    }

    /// What the offsets of a range add up to.
    pub fn expected(&self, from: i64, to: i64) -> Outcomes {
        let mut sum = Outcomes::default();
        for entry in &self.entries[from as usize..to as usize] {
            match entry.fate {
                Fate::Counted(_) => sum.counted += 1,
                Fate::Duplicate => sum.duplicate += 1,
                Fate::Late => sum.late += 1,
                Fate::DeadLettered => sum.dead_lettered += 1,
                Fate::NoRecord => sum.no_record += 1,
            }
        }
        sum
    }

    /// Appends something: mostly events, some of them again, and whatever else a topic may hold.
    pub fn append(&mut self, random: &mut Random) {
        if random.percent(10) {
            // A jump past several generations of the dedupe set, at times past all of them.
            self.now_ms += random.below(400) as i64;
        }
        self.now_ms += random.below(5) as i64;
        if random.percent(5) {
            let (timestamp_ms, fate) = (self.now_ms, Fate::NoRecord);
            self.entries.push(Entry {
                timestamp_ms,
                key: None,
                payload: None,
                fate,
            });
            return;
        }
        // Record times may run backwards; log time does not.
        let timestamp_ms = self.now_ms - if random.percent(10) { 3 } else { 0 };
        self.log_time_ms = self.log_time_ms.max(timestamp_ms);
        let entry = match random.below(20) {
            1 => dead(timestamp_ms, Some(b"user".to_vec()), None),
            2 => dead(
                timestamp_ms,
                Some(b"user".to_vec()),
                Some(b"{\"garbage\":1}".to_vec()),
            ),
            3 => dead(
                timestamp_ms,
                Some(b"another".to_vec()),
                Some(self.event("x", false)),
            ),
            4 => self.event_entry(timestamp_ms, true, random),
            _ => self.event_entry(timestamp_ms, false, random),
        };
        self.entries.push(entry);
    }

    fn event_entry(&mut self, timestamp_ms: i64, late: bool, random: &mut Random) -> Entry {
        let fresh = format!("e{}", self.entries.len());
        let id = if self.unique || random.percent(60) {
            fresh
        } else {
            format!("r{}", random.below(4))
        };
        let payload = self.event(&id, late);
        let now_us = self.log_time_ms * 1000;
        let start_us = self.horizon.horizon_start_us(now_us);
        // A late event takes no id.
        let before = match late {
            true => self.seen.get(&id).copied(),
            false => self.seen.insert(id.clone(), now_us),
        };
        let fate = match before {
            Some(before_us) if before_us >= start_us => Fate::Duplicate,
            _ if late => Fate::Late,
            _ => Fate::Counted(id),
        };
        Entry {
            timestamp_ms,
            key: Some(b"user".to_vec()),
            payload: Some(payload),
            fate,
        }
    }

    fn event(&self, id: &str, late: bool) -> Vec<u8> {
        let age_us = if late {
            self.accepted_age_us + 1_000_000
        } else {
            0
        };
        let event = Event {
            event_id: String::from(id),
            user_id: String::from("user"),
            event_type: String::from("t"),
            occurred_at_us: self.log_time_ms * 1000 - age_us,
            page_url: String::from(id),
            ..Event::default()
        };
        event.encode_to_vec()
    }
}

fn dead(timestamp_ms: i64, key: Option<Vec<u8>>, payload: Option<Vec<u8>>) -> Entry {
    Entry {
        timestamp_ms,
        key,
        payload,
        fate: Fate::DeadLettered,
    }
}
