//! Measures the pure core: decode, validate, deduplicate, aggregate and encode, without any IO.
//!
//! ```text
//! cargo run --release -p streamgauge-consumer --example consumer_hot_path -- [EVENTS] [SERIES]
//! ```
//!
//! SERIES is `default` (the series that exist unless others are configured, with counts per user
//! and page), `streams` (one series over event type and page with distinct users, the work that
//! is compared with Kafka Streams), or `none` (decode and dedupe alone).

use std::{hint::black_box, sync::Arc, time::Instant};

use prost::Message;
use streamgauge_consumer::{
    Config,
    core::{
        partition::{Effect, Input, Partition, Settings, SourceRecord, Taken, Ticket},
        series::{Plan, SeriesConfig},
    },
};
use streamgauge_proto::v1::Event;

const USERS: u64 = 50_000;
const PAGES: u64 = 1_000;
const PARTITIONS: usize = 12;
const EVENTS_PER_SECOND: u64 = 10_000;
const START_US: i64 = 1_700_000_000_000_000;
const CHUNK: usize = 2_000;

struct Sample {
    key: String,
    payload: Vec<u8>,
    timestamp_ms: i64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Small numbers far more often than large ones.
    fn skewed(&mut self, bound: u64) -> u64 {
        let unit = self.below(1 << 30) as f64 / f64::from(1 << 30);
        ((unit * unit * unit) * bound as f64) as u64
    }
}

/// 1% duplicates, up to 500 ms out of order.
fn samples(count: u64) -> Vec<Vec<Sample>> {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut partitions: Vec<Vec<Sample>> = (0..PARTITIONS).map(|_| Vec::new()).collect();
    for n in 0..count {
        let user = random.skewed(USERS);
        let partition = &mut partitions[(user as usize * 7919) % PARTITIONS];
        let now_us = START_US + (n * 1_000_000 / EVENTS_PER_SECOND) as i64;
        if random.below(100) == 0
            && let Some(last) = partition.last()
        {
            let again = Sample {
                key: last.key.clone(),
                payload: last.payload.clone(),
                timestamp_ms: now_us / 1000,
            };
            partition.push(again);
            continue;
        }
        let event = Event {
            event_id: format!("{:016x}{n:016x}", random.0),
            user_id: format!("user-{user:06}"),
            event_type: ["view", "click", "scroll", "purchase"][random.skewed(4) as usize]
                .to_owned(),
            occurred_at_us: now_us - random.below(500_000) as i64,
            received_at_us: now_us,
            page_url: format!("/products/page-{:04}", random.skewed(PAGES)),
            session_id: format!("session-{user:06}"),
            value: Some(random.below(10_000) as f64 / 100.0),
            properties: "{\"browser\":\"firefox\"}".into(),
            ..Event::default()
        };
        partition.push(Sample {
            key: event.user_id.clone(),
            payload: event.encode_to_vec(),
            timestamp_ms: now_us / 1000,
        });
    }
    partitions
}

/// An owner whose writes succeed at once.
struct Owner {
    partition: Partition,
    ticket: Ticket,
    deltas: i64,
    bytes: usize,
    now_ms: u64,
}

impl Owner {
    fn new(settings: Settings, high: i64) -> Self {
        let mut owner = Self {
            partition: Partition::new(Arc::new(settings)),
            ticket: Ticket::default(),
            deltas: 0,
            bytes: 0,
            now_ms: 0,
        };
        let mut effects = Vec::new();
        owner
            .partition
            .handle(Input::Committed(None), 0, &mut effects);
        owner.carry_out(effects, high);
        owner
    }

    fn carry_out(&mut self, effects: Vec<Effect>, high: i64) {
        let mut next = Vec::new();
        for effect in effects {
            let input = match effect {
                Effect::AskChain { ticket } => Input::ChainBounds {
                    ticket,
                    low: 0,
                    high: 0,
                },
                Effect::FindHorizon { ticket, .. } => Input::HorizonStart {
                    ticket,
                    offset: None,
                    low: 0,
                    high,
                },
                Effect::SeekSource { ticket, .. } => {
                    self.ticket = ticket;
                    continue;
                }
                Effect::WriteBatch { ticket, batch, .. } => {
                    self.deltas += 1;
                    self.bytes += black_box(&batch).len();
                    Input::BatchDelivered {
                        ticket,
                        offset: self.deltas - 1,
                    }
                }
                _ => continue,
            };
            self.partition.handle(input, self.now_ms, &mut next);
        }
        if !next.is_empty() {
            self.carry_out(next, high);
        }
    }

    fn take(&mut self, offset: i64, samples: &[Sample], high: i64) {
        let mut effects = Vec::new();
        for (sample, offset) in samples.iter().zip(offset..) {
            let record = SourceRecord {
                offset,
                timestamp_ms: sample.timestamp_ms,
                key: Some(sample.key.as_bytes()),
                payload: Some(&sample.payload),
                headers_bytes: 0,
                trace: None,
            };
            while self
                .partition
                .take(self.ticket, &record, self.now_ms, &mut effects)
                == Taken::Full
            {
                self.carry_out(std::mem::take(&mut effects), high);
            }
        }
        self.partition
            .handle(Input::Tick, self.now_ms, &mut effects);
        self.carry_out(effects, high);
    }
}

fn settings(series: &str) -> Settings {
    let base = Config::default()
        .partition()
        .expect("the defaults are valid");
    let streams = SeriesConfig {
        name: String::from("event_type,page_url"),
        dimensions: vec![String::from("event_type"), String::from("page_url")],
        distinct_users: true,
        quantiles: false,
    };
    let plan = match series {
        "streams" => Plan::compile(&[streams], false),
        "none" => Plan::compile(&[], false),
        _ => Plan::compile(&SeriesConfig::defaults(), true),
    };
    Settings {
        plan: Arc::new(plan.expect("valid series")),
        ..base
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let count = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(3_000_000);
    let series = arguments.next().unwrap_or_else(|| String::from("default"));
    let partitions = samples(count);
    let mut owners: Vec<_> = partitions
        .iter()
        .map(|samples| Owner::new(settings(&series), samples.len() as i64))
        .collect();
    let started = Instant::now();
    let longest = partitions.iter().map(Vec::len).max().unwrap_or_default();
    for at in (0..longest).step_by(CHUNK) {
        for (owner, samples) in owners.iter_mut().zip(&partitions) {
            let chunk = samples
                .get(at..(at + CHUNK).min(samples.len()))
                .unwrap_or_default();
            owner.take(at as i64, chunk, samples.len() as i64);
        }
    }
    for (owner, samples) in owners.iter_mut().zip(&partitions) {
        owner.now_ms = 1_000;
        owner.take(samples.len() as i64, &[], samples.len() as i64);
    }
    let spent = started.elapsed();
    let heads: i64 = owners
        .iter()
        .map(|owner| owner.partition.progress().head)
        .sum();
    let batches: i64 = owners.iter().map(|owner| owner.deltas).sum();
    let bytes: usize = owners.iter().map(|owner| owner.bytes).sum();
    let ids: u64 = owners
        .iter()
        .map(|owner| owner.partition.progress().dedupe_ids)
        .sum();
    let id_bytes: u64 = owners
        .iter()
        .map(|owner| owner.partition.progress().dedupe_bytes)
        .sum();
    let report = format!(
        "series {series}: {heads} events in {:.2} s on one thread: {:.0} ns an event, {:.2} M events/s\n\
         {batches} batches, {:.1} bytes an event on metrics-data\n\
         dedupe set: {ids} ids, {:.1} bytes an id\n",
        spent.as_secs_f64(),
        spent.as_nanos() as f64 / heads as f64,
        heads as f64 / spent.as_secs_f64() / 1e6,
        bytes as f64 / heads as f64,
        id_bytes as f64 / ids.max(1) as f64,
    );
    let _ = std::io::Write::write_all(&mut std::io::stdout(), report.as_bytes());
}
