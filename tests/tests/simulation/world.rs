//! The modelled world: logs, group, network and time, and the schedule that a seed draws.

mod readers;

use std::{collections::HashSet, fmt::Write, sync::Arc};

use bytes::Bytes;
use streamgauge_chain::Verdict;
use streamgauge_consumer::core::{
    partition::{Checkpoint, Effect, Input, Problem, Report, Settings, Ticket},
    series::{Plan, SeriesConfig},
    validate::Limits,
};

use crate::{
    coverage::Coverage,
    judge::Judge,
    owner::{Answer, Owner, Reading},
    random::Random,
    reader::Reader,
    source::Source,
    store::ModelStore,
};

const HORIZON_US: i64 = 800_000;
const ACCEPTED_AGE_US: i64 = 3_600_000_000;
const OWNERS_MAX: usize = 4;
/// How far one clock may lie behind another.
const SKEW_MS_MAX: u64 = 7_200_000;

/// What a seed stands for.
#[derive(Clone, Copy, Debug)]
pub struct WorldConfig {
    pub seed: u64,
    /// Keeps the schedule as text.
    pub told: bool,
    /// The judge ignores the rule.
    pub ignore_rule: bool,
    /// The store lets whoever writes last win.
    pub ignore_swap: bool,
}

impl WorldConfig {
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            told: false,
            ignore_rule: false,
            ignore_swap: false,
        }
    }
}

/// The world of one seed.
pub struct World {
    config: WorldConfig,
    random: Random,
    now_ms: u64,
    source: Source,
    /// Retention takes what nobody has read.
    truncates: bool,
    deltas: Vec<Bytes>,
    deltas_low: i64,
    /// Retention of `metrics-data` takes what analytics has not read.
    cuts: bool,
    /// Writes that were reported as failed and may yet land.
    under_way: Vec<Bytes>,
    dead: HashSet<i64>,
    committed: Option<(i64, String)>,
    owners: Vec<Owner>,
    next_owner: u64,
    store: Arc<ModelStore>,
    readers: Vec<Reader>,
    next_reader: u64,
    settings: Settings,
    judge: Judge,
    coverage: Coverage,
    schedule: String,
    calm: bool,
}

impl World {
    pub fn new(config: WorldConfig) -> Self {
        let mut random = Random::new(config.seed);
        let (truncates, cuts) = (random.percent(25), random.percent(15));
        let settings = settings(&mut random);
        let store = ModelStore::new(random.fork(), config.ignore_swap);
        Self {
            now_ms: 1_000,
            source: Source::new(truncates, HORIZON_US, ACCEPTED_AGE_US),
            truncates,
            deltas: Vec::new(),
            deltas_low: 0,
            cuts,
            under_way: Vec::new(),
            dead: HashSet::new(),
            committed: None,
            owners: Vec::new(),
            next_owner: 0,
            store: Arc::new(store),
            readers: Vec::new(),
            next_reader: 0,
            settings,
            judge: Judge::new(config.ignore_rule),
            coverage: Coverage::default(),
            schedule: String::new(),
            calm: false,
            random,
            config,
        }
    }

    pub fn schedule(&self) -> &str {
        &self.schedule
    }

    pub fn coverage(&self) -> Coverage {
        let mut coverage = self.coverage;
        let seen = self.store.lock().seen;
        coverage.store_failures += seen.failed;
        coverage.store_unheard += seen.unheard;
        coverage.store_late += seen.late;
        coverage.store_conflicts += seen.conflicts;
        for reader in &self.readers {
            coverage.checkpoints_overtaken += reader.overtaken;
            coverage.outrun += reader.outrun;
        }
        coverage
    }

    /// Runs the seed: a stormy part, then calm until everything is counted.
    pub fn run(&mut self) -> Result<(), String> {
        let (events, steps) = (8 + self.random.below(25), 100 + self.random.below(250));
        for step in 0..steps {
            let due = (events * step / steps).cast_signed() + 2;
            while self.source.high() < due {
                self.source.append(&mut self.random);
            }
            self.step()?;
            // Where retention outruns analytics, analytics is slow.
            if self.random.percent(if self.cuts { 15 } else { 60 }) {
                self.step_readers()?;
            }
        }
        self.rest()?;
        self.rest_readers()
    }

    fn rest(&mut self) -> Result<(), String> {
        self.calm = true;
        // Whoever is left goes on alone, in half of the seeds; else a newcomer does.
        let keep = usize::from(self.random.percent(50)).min(self.owners.len());
        self.owners.drain(keep..);
        self.owners.retain(|owner| !owner.revoked);
        if self.owners.is_empty() {
            self.join();
        }
        while let Some(batch) = self.under_way.pop() {
            self.land(batch)?;
        }
        for _ in 0..3_000 {
            self.now_ms += 3;
            self.step_owner(0)?;
            self.step_readers()?;
            let idle =
                self.owners[0].head() == self.source.high() && self.owners[0].todo.is_empty();
            if idle && self.judge.ledger.head() == self.source.high() {
                return self.judge.check_at_rest(&self.source);
            }
        }
        Err(format!("no rest is found: {:?}", self.owners[0].state()))
    }

    fn step(&mut self) -> Result<(), String> {
        self.now_ms += self.random.below(4);
        match self.random.below(100) {
            0..=2 => self.crash(),
            3..=5 => self.usurp(),
            6..=7 => self.revoke(),
            8..=9 => self.land_late()?,
            10..=11 => self.truncate(),
            12..=14 if self.owners.len() < OWNERS_MAX => self.join(),
            15 => self.scribble(),
            _ => {
                if self.owners.is_empty() {
                    self.join();
                }
                let owner = self.random.index(self.owners.len());
                // An owner gets some time in a row, as a process does.
                for _ in 0..1 + self.random.below(6) {
                    self.step_owner(owner)?;
                }
            }
        }
        self.owners.retain(|owner| owner.state() != "stopped");
        Ok(())
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.config.told {
            let text = what();
            let _ = writeln!(self.schedule, "{:>6} {text}", self.now_ms);
        }
    }

    fn join(&mut self) {
        let id = self.next_owner;
        self.next_owner += 1;
        let settings = Settings {
            writer: format!("o{id}"),
            ..self.settings.clone()
        };
        let committed = self.committed.clone();
        self.tell(|| format!("owner {id} starts at {committed:?}"));
        let skew_ms = self.random.below(SKEW_MS_MAX);
        self.owners
            .push(Owner::new(id, Arc::new(settings), committed, skew_ms));
    }

    fn crash(&mut self) {
        if !self.owners.is_empty() {
            let gone = self.random.index(self.owners.len());
            let owner = self.owners.swap_remove(gone);
            self.coverage.crashes += 1;
            self.tell(|| format!("owner {} crashes", owner.id));
            // What it had sent may land all the same.
            for effect in owner.todo {
                if let Effect::WriteBatch { batch, .. } = effect {
                    self.under_way.push(batch);
                }
            }
        }
    }

    /// A new owner starts while the old one does not know: it is a zombie from here on.
    fn usurp(&mut self) {
        if !self.owners.is_empty() && self.owners.len() < OWNERS_MAX {
            self.coverage.zombies += 1;
            self.join();
        }
    }

    fn revoke(&mut self) {
        if !self.owners.is_empty() {
            let now_ms = self.now_ms;
            let place = self.random.index(self.owners.len());
            let owner = &mut self.owners[place];
            owner.revoked = true;
            owner.handle(Input::Revoke, now_ms);
            let id = owner.id;
            self.coverage.handovers += 1;
            self.tell(|| format!("owner {id} is revoked"));
        }
    }

    fn land_late(&mut self) -> Result<(), String> {
        if self.under_way.is_empty() {
            return Ok(());
        }
        let place = self.random.index(self.under_way.len());
        let batch = self.under_way.swap_remove(place);
        self.coverage.late_writes += 1;
        self.tell(|| String::from("a write lands late"));
        self.land(batch).map(drop)
    }

    fn truncate(&mut self) {
        if self.truncates && self.random.percent(30) {
            let room = (self.source.high() - self.source.low).cast_unsigned();
            self.source.low += self.random.below(room / 2 + 1).cast_signed();
            self.coverage.truncations += 1;
            let low = self.source.low;
            self.tell(|| format!("the source is truncated to {low}"));
        }
        // Retention of metrics-data takes what every later start has in its checkpoint.
        let checkpoint = self
            .committed
            .as_ref()
            .and_then(|(h, text)| Checkpoint::parse(*h, text));
        if let Some(checkpoint) = checkpoint {
            let least = self.owners.iter().map(|owner| owner.delta_position());
            let mut safe = least
                .min()
                .unwrap_or(i64::MAX)
                .min(checkpoint.delta_position);
            let unread = self
                .store
                .lock()
                .chain
                .map_or(0, |chain| chain.delta_position);
            if !self.cuts {
                safe = safe.min(unread);
            }
            self.coverage.cuts += u64::from(safe > unread.max(self.deltas_low));
            self.deltas_low = self.deltas_low.max(safe);
        }
    }

    /// Someone else writes to `metrics-data`: it counts for nobody, and takes an offset.
    fn scribble(&mut self) {
        self.deltas.push(Bytes::from_static(b"garbage"));
        self.judge.read_garbage();
        self.coverage.garbage += 1;
        self.tell(|| String::from("garbage lands"));
    }

    /// Lets an owner do one thing.
    fn step_owner(&mut self, place: usize) -> Result<(), String> {
        match self.random.below(6) {
            0 | 1 => self.carry_out(place),
            2 => {
                self.answer(place);
                Ok(())
            }
            3 | 4 => {
                self.read(place);
                Ok(())
            }
            _ => self.tick(place),
        }
    }

    fn tick(&mut self, place: usize) -> Result<(), String> {
        let now_ms = self.now_ms;
        self.owners[place].handle(Input::Tick, now_ms);
        if let Some(letter) = self.owners[place].dead.pop_front() {
            self.dead.insert(letter.offset);
            self.owners[place].others.push(Answer::Dead(letter));
        }
        Ok(())
    }

    fn answer(&mut self, place: usize) {
        let now_ms = self.now_ms;
        let pick = self.random.percent(50);
        let owner = &mut self.owners[place];
        let answer = if owner.others.is_empty() || (pick && !owner.chain.is_empty()) {
            owner.chain.pop_front()
        } else {
            let index = self.random.index(owner.others.len());
            Some(owner.others.swap_remove(index))
        };
        if let Some(answer) = answer {
            owner.answer(&answer, now_ms);
            let (id, state) = (owner.id, owner.state());
            self.tell(|| format!("owner {id} hears {answer:?}: {state}"));
        }
    }

    /// Delivers source records, at times some from before the last seek.
    fn read(&mut self, place: usize) {
        let stale = !self.calm && self.random.percent(10);
        let owner = &mut self.owners[place];
        let reading = if stale { owner.stale } else { owner.reading };
        let Some(Reading { ticket, next }) = reading else {
            return;
        };
        if stale {
            self.coverage.stale_records += 1;
        }
        if next < self.source.low || next > self.source.high() {
            let low = self.source.low;
            return owner.handle(Input::OutOfRange { ticket, low }, self.now_ms);
        }
        let mut next = next;
        for _ in 0..1 + self.random.below(5) {
            match self.source.record(next) {
                Some(record) if owner.take(ticket, &record, self.now_ms) => {
                    next = record.offset + 1
                }
                Some(_) => break,
                None => {
                    let offset = self.source.high();
                    owner.handle(Input::EndOfPartition { ticket, offset }, self.now_ms);
                    next = offset;
                    break;
                }
            }
        }
        let reading = if stale {
            &mut owner.stale
        } else {
            &mut owner.reading
        };
        *reading = Some(Reading { ticket, next });
        let (id, state) = (owner.id, owner.state());
        self.tell(|| format!("owner {id} has read up to {next} (stale: {stale}): {state}"));
    }

    fn carry_out(&mut self, place: usize) -> Result<(), String> {
        let Some(effect) = self.owners[place].todo.pop_front() else {
            return Ok(());
        };
        let id = self.owners[place].id;
        self.tell(|| format!("owner {id} does {effect:?}"));
        match effect {
            Effect::AskChain { ticket } => self.bounds(place, ticket),
            Effect::ReadChain { ticket, from, to } => self.read_chain(place, ticket, from, to),
            Effect::FindHorizon {
                ticket,
                log_time_ms,
            } => self.find(place, ticket, log_time_ms),
            Effect::SeekSource { ticket, offset } => {
                let owner = &mut self.owners[place];
                owner.stale = owner.reading;
                owner.reading = Some(Reading {
                    ticket,
                    next: offset,
                });
            }
            Effect::WriteBatch { ticket, batch, .. } => return self.write(place, ticket, batch),
            Effect::Commit { offset, metadata } => self.commit(offset, metadata),
            Effect::Confirmed(report) => return self.check_confirmed(&report),
            Effect::Problem(problem) => return self.check_problem(&problem),
            Effect::Stopped => {}
        }
        Ok(())
    }

    /// A zombie's old commit may still win here, unlike with a real group: it is a shortcut only.
    /// It must just not point at what retention was allowed to take.
    fn commit(&mut self, offset: i64, metadata: String) {
        let checkpoint = Checkpoint::parse(offset, &metadata);
        if checkpoint.is_some_and(|checkpoint| checkpoint.delta_position >= self.deltas_low) {
            self.committed = Some((offset, metadata));
        }
    }

    fn bounds(&mut self, place: usize, ticket: Ticket) {
        let (low, high) = (self.deltas_low, self.deltas.len() as i64);
        self.owners[place]
            .chain
            .push_back(Answer::Bounds { ticket, low, high });
    }

    fn read_chain(&mut self, place: usize, ticket: Ticket, from: i64, to: i64) {
        if from < self.deltas_low {
            return self.bounds(place, ticket);
        }
        // A defect of a client: it leaves something out, or breaks off; never twice in a row.
        let flaw =
            (!self.calm && !self.owners[place].flawed && self.random.percent(8)).then(|| {
                (
                    self.random.below((to - from).cast_unsigned()).cast_signed() + from,
                    self.random.percent(50),
                )
            });
        let (low, high) = (self.deltas_low, self.deltas.len() as i64);
        let owner = &mut self.owners[place];
        owner.flawed = flaw.is_some();
        self.coverage.incomplete_reads += u64::from(owner.flawed);
        for offset in from..to {
            if let Some((_, breaks_off)) = flaw.filter(|(at, _)| *at == offset) {
                if breaks_off {
                    let ends = Answer::Bounds { ticket, low, high };
                    return owner.chain.push_back(ends);
                }
                continue;
            }
            let payload = self.deltas[offset as usize].clone();
            owner.chain.push_back(Answer::Record {
                ticket,
                offset,
                payload,
            });
        }
        owner.chain.push_back(Answer::End { ticket, next: to });
    }

    fn find(&mut self, place: usize, ticket: Ticket, log_time_ms: Option<i64>) {
        let (low, high) = (self.source.low, self.source.high());
        let offset = match log_time_ms {
            None => Some(low),
            Some(time) => self.source.offset_for_time(time),
        };
        self.owners[place].others.push(Answer::Horizon {
            ticket,
            offset,
            low,
            high,
        });
    }

    fn write(&mut self, place: usize, ticket: Ticket, batch: Bytes) -> Result<(), String> {
        let chance = if self.calm { 0 } else { self.random.below(100) };
        let answer = match chance {
            0..70 => Answer::Delivered {
                ticket,
                offset: self.land(batch)?,
            },
            70..78 => {
                self.coverage.lost_acknowledgements += 1;
                self.land(batch)?;
                Answer::Failed { ticket }
            }
            78..84 => {
                self.coverage.placeless_acknowledgements += 1;
                self.land(batch)?;
                Answer::Delivered { ticket, offset: -1 }
            }
            84..92 => {
                self.coverage.failed_writes += 1;
                Answer::Failed { ticket }
            }
            _ => {
                self.under_way.push(batch);
                Answer::Failed { ticket }
            }
        };
        self.tell(|| format!("its write will be told as {answer:?}"));
        self.owners[place].others.push(answer);
        Ok(())
    }

    /// A batch reaches the log: the moment at which the chain decides.
    fn land(&mut self, batch: Bytes) -> Result<i64, String> {
        let offset = self.deltas.len() as i64;
        let verdict = self.judge.read(&batch, &self.source, &self.dead)?;
        if verdict == Verdict::Void {
            self.coverage.void += 1;
        }
        self.deltas.push(batch);
        self.tell(|| format!("a batch lands at {offset}: {verdict:?}"));
        Ok(offset)
    }

    fn check_confirmed(&mut self, report: &Report) -> Result<(), String> {
        let (from, to) = (report.range.from(), report.range.to());
        if self.judge.is_valid(from, to) {
            Ok(())
        } else {
            Err(format!("[{from}, {to}) was taken for valid and is not"))
        }
    }

    fn check_problem(&mut self, problem: &Problem) -> Result<(), String> {
        match problem {
            Problem::Overtaken { .. } => self.coverage.overtaken += 1,
            Problem::NotABatch { .. } | Problem::ChainIncomplete { .. } => {}
            Problem::SourceTruncated { .. } if self.truncates => self.coverage.holes += 1,
            _ => return Err(format!("there is no reason for this: {problem}")),
        }
        Ok(())
    }
}

fn settings(random: &mut Random) -> Settings {
    let series = SeriesConfig {
        name: String::from("page_url"),
        dimensions: vec![String::from("page_url")],
        distinct_users: false,
        quantiles: false,
    };
    Settings {
        plan: Arc::new(Plan::compile(&[series], true).expect("one series")),
        writer: String::new(),
        batch_wait_ms: random.below(20),
        batch_records_max: 1 + random.below(8),
        batch_bytes_max: 1 << 20,
        // Room for two dead letters, so that reading waits for them.
        dead_letters_bytes_max: 2_000,
        commit_interval_ms: random.below(40),
        retry_ms: (1, 10),
        log_time_ahead_us_max: 3_600_000_000,
        accepted_age_us: ACCEPTED_AGE_US,
        allowed_lateness_us: 0,
        limits: Limits {
            event_bytes_max: 10_000,
            future_us_max: 60_000_000,
        },
        dedupe_horizon_us: HORIZON_US,
        dedupe_ids_max: 1_000_000,
        keys_max: 1_000_000,
        key_bytes_max: 100,
    }
}
