//! One run: a system under load, struck by one fault, and judged.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use crate::{
    canary,
    failure::Failure,
    judge,
    load::{Harvest, Load, LoadConfig},
    options::{Options, Size},
    report::{Row, Verdict},
    sampler::Sampler,
    system::{Blueprint, Ground, System},
};

/// Requests under way at once.
const CONNECTIONS: u32 = 8;
/// Events in a request.
const BATCH: u32 = 50;
/// How long a client waits for its answer; a little longer than the producer takes to give one.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a client goes on trying.
const PATIENCE: Duration = Duration::from_secs(240);
/// The system runs so long under load before the fault strikes.
const WARM_UP: Duration = Duration::from_secs(3);

/// Changes how the load is made.
pub type Tune<'a> = Box<dyn Fn(&mut LoadConfig) + Send + 'a>;

/// How a run differs from the usual.
pub struct Setup<'a> {
    /// Settings of the services, as in [`Blueprint`].
    pub settings: Vec<String>,
    /// What the system runs on.
    pub ground: Ground<'a>,
    /// Changes to the load; `None` for a fault that brings its own.
    pub load: Option<Tune<'a>>,
}

/// A run under way.
pub struct Trial<'a> {
    /// The command line.
    pub options: &'a Options,
    /// Its size.
    pub size: Size,
    /// The system under test.
    pub system: System,
    /// What is watched.
    pub sampler: Sampler,
    /// Chooses moments.
    pub random: StdRng,
    /// Source offsets that the fault removed unread.
    pub missing: u64,
    /// Records that the fault wrote and that must end as dead letters.
    pub dead_letters: u64,
    row: Row,
    load: Option<Load>,
    harvests: Vec<Harvest>,
    /// The lag that is normal under this load.
    baseline: u64,
    begun: Instant,
}

impl<'a> Trial<'a> {
    /// Starts a system, puts it under load and waits until both have settled.
    pub async fn begin(options: &'a Options, row: Row, setup: Setup<'_>) -> Result<Self, Failure> {
        let begun = Instant::now();
        let size = options.size();
        let id = format!("chaos{}_{}", row.number, std::process::id());
        let mutation = options.mutation.clone();
        let blueprint = Blueprint {
            id: id.clone(),
            binary: binary(options)?,
            settings: [setup.settings, options.set.clone()].concat(),
            environment: mutation
                .map(|name| (String::from("STREAMGAUGE_MUTATION"), name))
                .into_iter()
                .collect(),
            ground: setup.ground,
        };
        let system = System::start(blueprint).await?;
        let sampler = Sampler::start(&system)?;
        let mut trial = Self {
            options,
            size,
            sampler,
            system,
            random: StdRng::seed_from_u64(options.seed ^ u64::from(row.number)),
            missing: 0,
            dead_letters: 0,
            row,
            load: None,
            harvests: Vec::new(),
            baseline: u64::from(size.rate) / 2,
            begun,
        };
        if let Some(change) = setup.load {
            let mut config = trial.load_config("main");
            change(&mut config);
            trial.load = Some(Load::start(&config)?);
            tokio::time::sleep(WARM_UP / 2).await;
            let settled = Instant::now();
            tokio::time::sleep(WARM_UP / 2).await;
            trial.baseline = trial.baseline.max(trial.sampler.lag_peak(settled));
        }
        Ok(trial)
    }

    /// The usual load under a name of its own.
    pub fn load_config(&self, name: &str) -> LoadConfig {
        LoadConfig {
            run: format!("r{}{name}", self.row.number),
            url: self.system.url("producer"),
            users: self.options.users.max(CONNECTIONS),
            connections: CONNECTIONS,
            batch: BATCH,
            rate: self.size.rate,
            open: false,
            events_min: self.size.events,
            timeout: CLIENT_TIMEOUT,
            patience: PATIENCE,
            keep_alive: true,
            sources: Vec::<IpAddr>::new(),
            clocks_off_s: Vec::new(),
            seed: self.options.seed,
        }
    }

    /// Offers a load of its own for a time, whatever goes on beside it.
    pub async fn offer(
        &self,
        name: &str,
        lasts: Duration,
        change: impl Fn(&mut LoadConfig),
    ) -> Result<Harvest, Failure> {
        let mut config = self.load_config(name);
        config.events_min = 0;
        change(&mut config);
        let load = Load::start(&config)?;
        tokio::time::sleep(lasts).await;
        load.finish().await
    }

    /// The lag that is normal under this load, in events.
    pub fn baseline(&self) -> u64 {
        self.baseline
    }

    /// Events acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.load.as_ref().map_or(0, Load::acknowledged)
    }

    /// How long nothing was acknowledged.
    pub fn silence(&self) -> Duration {
        let last = self.load.as_ref().and_then(Load::last_acknowledged);
        last.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// Waits until this holds, and requires that it does in time.
    pub async fn comes_about(
        &mut self,
        what: &str,
        within: Duration,
        holds: impl AsyncFn(&Self) -> bool,
    ) {
        let end = Instant::now() + within * self.options.slack;
        while !holds(self).await {
            if Instant::now() > end {
                return self.require(false, || format!("{what}: not within {within:?}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Adds what came of a load that the fault brought itself.
    pub fn harvest(&mut self, harvest: Harvest) {
        self.harvests.push(harvest);
    }

    /// Something that must hold.
    pub fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.row.broken.push(what());
        }
    }

    /// Something worth telling.
    pub fn note(&mut self, what: impl Into<String>) {
        self.row.notes.push(what.into());
    }

    /// Sleeps for a random time.
    pub async fn sleep_between(&mut self, range: std::ops::Range<Duration>) {
        let (from, to) = (range.start.as_millis(), range.end.as_millis());
        let millis = self.random.random_range(from as u64..to as u64);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// The fault is over: waits until the lag is what it was before, and notes how long that took.
    pub async fn healed(&mut self) {
        let deadline = Duration::from_secs(self.options.recovery_s_max);
        let (since, bound) = (Instant::now(), self.baseline);
        match self.sampler.recovered(since, bound, deadline).await {
            Some(took) => {
                let took = took.as_secs_f64();
                self.row.recovery_s = Some(self.row.recovery_s.unwrap_or(0.0).max(took));
            }
            None => self.row.broken.push(format!(
                "the lag is not back at {bound} events {deadline:?} after the fault; {}",
                self.sampler.last()
            )),
        }
    }

    /// Waits until a service is ready and requires that this takes no longer than `most`.
    pub async fn ready_within(&mut self, name: &str, most: Duration) -> Result<Duration, Failure> {
        let most = most * self.options.slack;
        let took = self.system.ready(name, Duration::from_secs(90)).await?;
        self.require(took <= most, || {
            format!("{name} was ready after {took:.1?}, not within {most:?}")
        });
        Ok(took)
    }

    /// Ends the load. Some faults want to look at what it saw before all is judged.
    pub async fn finish_load(&mut self) -> Result<(), Failure> {
        if let Some(load) = self.load.take() {
            self.harvests.push(load.finish().await?);
        }
        Ok(())
    }

    /// What the loads that are over saw.
    pub fn harvests(&self) -> &[Harvest] {
        &self.harvests
    }

    /// Ends the load, judges, and returns the row.
    pub async fn conclude(mut self, struck: Result<(), Failure>) -> Row {
        let ended = match struck {
            Ok(()) => self.canary_and_oracle().await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = ended {
            self.row.broken.push(failure.to_string());
        }
        self.row.memory_mib = self.sampler.peaks_mib();
        let most = self.options.memory_mib_max;
        for (name, mib) in self.row.memory_mib.clone() {
            self.require(mib <= most, || {
                format!("{name} had {mib} MiB resident; {most} are allowed")
            });
        }
        let replaced = self.sampler.replaced();
        if replaced > 0 {
            self.note(format!(
                "the client that measures the lag did not find back to Kafka and was replaced {replaced} times"
            ));
        }
        self.row.seconds = self.begun.elapsed().as_secs_f64();
        self.row.verdict = if self.row.broken.is_empty() {
            Verdict::Passed
        } else {
            Verdict::Failed
        };
        if self.row.verdict == Verdict::Failed || self.options.keep_logs {
            let folder = self
                .options
                .output
                .join(format!("logs-{}", self.row.number));
            if let Err(failure) = self.system.keep_logs(&folder) {
                self.row.notes.push(failure.to_string());
            }
        }
        self.row
    }

    async fn canary_and_oracle(&mut self) -> Result<(), Failure> {
        let returned = canary::probe(&self.system, self.options.slack).await?;
        self.require(returned.all(), || {
            format!("the canary after the fault: {returned:?}")
        });
        self.judge().await
    }

    async fn judge(&mut self) -> Result<(), Failure> {
        self.finish_load().await?;
        let found = judge::judge(&self.system, &self.harvests, self.missing).await?;
        let row = &mut self.row;
        row.acknowledged = self.harvests.iter().map(|one| one.tally.events).sum();
        (row.lost, row.double) = (found.lost.saturating_sub(self.missing), found.double);
        (row.surplus_records, row.order_breaks) = (found.log.surplus, found.log.order_breaks);
        for term in TERMS {
            row.ledger.insert(term, found.count(term));
        }
        row.records = row.ledger["head"] - row.ledger["base"];
        let dead = (row.ledger["dead_lettered"], row.ledger["late"]);
        row.broken.extend(found.broken);
        let expected = (self.dead_letters, 0);
        self.require(dead == expected, || {
            format!("dead-lettered and late are {dead:?} and must be {expected:?}")
        });
        self.clients();
        Ok(())
    }

    fn clients(&mut self) {
        let (mut refused, mut silent, mut unanswered, mut retried) = (0, 0, 0, 0);
        for seen in self.harvests.iter().map(|one| &one.seen) {
            refused += seen.refused;
            silent += seen.refused_without_retry_after;
            unanswered += seen.unanswered;
            retried += seen.retried_events;
        }
        self.require(silent == 0, || {
            format!("{silent} refusals did not say when to come back")
        });
        let (duplicate, void) = (
            self.row.ledger["duplicate"],
            self.row.ledger["void_batches"],
        );
        self.note(format!(
            "{refused} requests refused, {unanswered} unanswered, {retried} events told to retry; \
             {duplicate} duplicates, {void} void batches"
        ));
    }
}

/// The terms of the ledger that a row keeps.
const TERMS: [&str; 9] = [
    "base",
    "head",
    "counted",
    "duplicate",
    "late",
    "dead_lettered",
    "missing",
    "no_record",
    "void_batches",
];

/// The binary under test.
fn binary(options: &Options) -> Result<PathBuf, Failure> {
    let found = match &options.binary {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()
            .map_err(Failure::io("the path of this program"))?
            .with_file_name("streamgauge"),
    };
    if found.exists() {
        return Ok(found);
    }
    let path = found.display();
    Err(Failure::Unmet(format!(
        "{path} is not there: build it first"
    )))
}
