//! Ten times what the system can take, from clients that come back at once whatever they are told, beside others that mean
//! no good.
//!
//! The producer reaches Kafka over a narrow line, which is why it can take less than it can receive: on a machine that all
//! share, so much could otherwise not be offered without taking the time of those to whom it is offered.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use rustix::thread::gettid;
use tokio::runtime::{Builder, Handle, Runtime};

use super::mean::{self, ADDRESSES, CUT_OFF, Mean};
use crate::{
    failure::Failure,
    load::{Harvest, Load},
    stack::Stack,
    system::Ground,
    toxiproxy::{Stream, Toxic},
    trial::{Setup, Trial},
};

/// The service that is flooded, and its line to Kafka.
const FLOODED: &[&str] = &["producer"];
const LINE_KB_S: u32 = 700;
/// Connections that find out what the system can take, and that flood it.
const SATURATE: u32 = 40;
const FLOOD: u32 = 512;
/// What is offered, in capacities; a little more than is asked for.
const OFFERED: f64 = 11.0;
const OFFERED_MIN: f64 = 10.0;
/// The share of the capacity that honest clients want who send few events at a time, and as much those who send many.
const HONEST_SHARE: f64 = 0.15;
/// Events in a request of a client that has few; others send as many as the usual load.
const FEW: u32 = 10;
/// How long each figure is measured without the flood.
const SPELL: Duration = Duration::from_secs(20);
/// What the limit gets to find its place when the flood comes, as in the tests of the limit by itself.
const SETTLES: Duration = Duration::from_secs(15);
/// An accepted request may take so many times what it takes without the flood.
const SLOWER_MAX: f64 = 2.0;
/// Longest time to a refusal, beside which the producer's own delay of it (`admission.refusal_delay_ms`) is small.
const REFUSAL_MS_MAX: f64 = 250.0;
/// What is still accepted, of the capacity.
const GOODPUT_MIN: f64 = 0.5;
/// Every address has an allowance of its own, larger than what anyone here asks for, and none is forgotten the while.
const SETTINGS: [&str; 3] = [
    "producer.rate_limit.address.per_second=100000",
    "producer.rate_limit.address.burst=200000",
    "producer.rate_limit.evict_interval_s=1800",
];

/// The producer reaches Kafka through a proxy.
pub async fn setup(setup: &mut Setup<'_>, stack: &Stack) -> Result<(), Failure> {
    stack.proxy_kafka(FLOODED[0]).await?;
    if let Ground::Stack { proxied, .. } = &mut setup.ground {
        *proxied = FLOODED;
    }
    setup.settings = SETTINGS.map(String::from).into();
    setup.load = None;
    Ok(())
}

/// Measures what can be taken, and how long it takes honest clients; then the flood and the mean come as well.
pub async fn overload(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    // All share one machine here. The mean, and those behind the log, get the time that the producer, Kafka and the honest
    // clients leave, as if each stood on a machine of its own. Otherwise an honest client would be measured waiting for
    // their work rather than for the producer's.
    for name in ["consumer", "analytics"] {
        if let Some(pid) = trial.system.process(name).pid() {
            stand_back(&["--all-tasks", "--pid", "0", &pid.to_string()]);
        }
    }
    let threads = Builder::new_multi_thread()
        .on_thread_start(|| stand_back(&["--pid", "0", &gettid().as_raw_nonzero().to_string()]))
        .enable_all()
        .build()
        .map_err(Failure::io("threads for the flood"))?;
    stack.postgres(&["idle"]).await?;
    let ended = strike(trial, stack, &threads).await;
    threads.shutdown_background();
    stack.postgres(&["usual"]).await?;
    ended
}

/// The processor goes to whoever else wants it, at once (`SCHED_IDLE`). Threads that begin later inherit that.
fn stand_back(whom: &[&str]) {
    // Where it may not be, the measurement is only harder to pass.
    let _ = Command::new("chrt").arg("--idle").args(whom).status();
}

async fn strike(trial: &mut Trial<'_>, stack: &Stack, threads: &Runtime) -> Result<(), Failure> {
    let line = stack.toxiproxy.existing(FLOODED[0]);
    line.add(Toxic::Bandwidth(LINE_KB_S), Stream::Up, 1.0)
        .await?;
    let busy = trial.offer("busy", SPELL, |config| {
        (config.connections, config.rate) = (SATURATE, 0);
    });
    let busy = busy.await?;
    let capacity = busy.tally.events as f64 / busy.seconds;
    trial.harvest(busy);
    let rate = (capacity * HONEST_SHARE) as u32;
    let calm = honest(trial, "calm", rate, SPELL).await?;

    let producer = SocketAddr::from((Ipv4Addr::LOCALHOST, trial.system.http_port("producer")));
    let mean = Mean::begin(threads.handle(), producer);
    let flood = flood(trial, capacity, threads.handle())?;
    let onset = honest(trial, "onset", rate, SETTLES).await?;
    let lasts = Duration::from_secs(if trial.size.full { 120 } else { 60 });
    let amid = honest(trial, "amid", rate, lasts).await?;
    let mean = mean.end().await;
    let flood = flood.finish().await?;
    trial.healed().await;
    line.heal().await?;

    judge_flood(trial, capacity, &flood, &amid[1]);
    judge_mean(trial, &mean).await?;
    for (place, who) in ["few", "many"].into_iter().enumerate() {
        slower(trial, who, &calm[place], &amid[place]);
    }
    let loads = [calm, onset, amid].into_iter().flatten();
    for harvest in loads.chain([flood, mean.addresses]) {
        only_refused(trial, &harvest);
        trial.harvest(harvest);
    }
    Ok(())
}

/// Many connections, from addresses of their own, that keep their pace whatever they are told.
fn flood(trial: &Trial<'_>, capacity: f64, threads: &Handle) -> Result<Load, Failure> {
    let mut config = trial.load_config("flood");
    (config.connections, config.open, config.events_min) = (FLOOD, true, 0);
    config.rate = (capacity * OFFERED) as u32;
    config.sources = (0..FLOOD)
        .map(|number| mean::address(0x00ff_0000 + number))
        .collect();
    Load::start_on(threads, &config)
}

/// Those who are measured, for a time: requests of few events, and of many, each kind at this rate.
async fn honest(
    trial: &Trial<'_>,
    name: &str,
    rate: u32,
    lasts: Duration,
) -> Result<[Harvest; 2], Failure> {
    let (few, many) = (format!("{name}few"), format!("{name}many"));
    let few = trial.offer(&few, lasts, |config| {
        (config.batch, config.rate) = (FEW, rate);
    });
    let many = trial.offer(&many, lasts, |config| {
        // In the flood most of these are refused; they come back as often for the sake of the figures.
        (config.rate, config.open) = (rate, true);
    });
    let (few, many) = tokio::join!(few, many);
    Ok([few?, many?])
}

fn judge_flood(trial: &mut Trial<'_>, capacity: f64, flood: &Harvest, beside: &Harvest) {
    let batch = f64::from(trial.load_config("").batch);
    let offered = flood.offered_per_second() * batch / capacity;
    let taken = flood.tally.events as f64 / flood.seconds / capacity;
    // The flood's own threads wait for the processor, so that others tell how long an answer takes.
    let refusal = beside.seen.refusal_ms(99);
    trial.note(format!(
        "{capacity:.0} events a second could be taken; {offered:.1} times as many were offered for {:.0} s and {taken:.2} \
         times as many accepted; {} of {} requests of the flood were refused; a refusal took {refusal:.0} ms at the 99th \
         percentile",
        flood.offering_seconds, flood.seen.refused, flood.seen.offered,
    ));
    trial.require(offered >= OFFERED_MIN, || {
        format!("only {offered:.1} times the capacity was offered")
    });
    trial.require(taken >= GOODPUT_MIN, || {
        format!("only {taken:.2} of the capacity was accepted in the flood")
    });
    trial.require(refusal <= REFUSAL_MS_MAX, || {
        format!("refusals took {refusal:.0} ms")
    });
}

async fn judge_mean(trial: &mut Trial<'_>, mean: &mean::Outcome) -> Result<(), Failure> {
    let statuses = &mean.bombs;
    let told = |status: &u16| [CUT_OFF, 413, 429, 503].contains(status);
    trial.require(!statuses.is_empty() && statuses.iter().all(told), || {
        format!("bombs were answered {statuses:?}")
    });
    let accepted = mean.addresses.tally.events;
    trial.require(accepted == u64::from(ADDRESSES), || {
        format!("the events of {accepted} of {ADDRESSES} addresses were accepted")
    });
    let keys = ("rate_limiter_keys", r#"scope="address""#);
    let allowances = trial.system.metric("producer", keys.0, keys.1).await?;
    trial.require(allowances >= f64::from(ADDRESSES), || {
        format!("{allowances} of {ADDRESSES} addresses hold an allowance")
    });
    Ok(())
}

/// Who is accepted is not kept waiting.
fn slower(trial: &mut Trial<'_>, who: &str, calm: &Harvest, amid: &Harvest) {
    let [before, after] = [calm, amid].map(|harvest| harvest.seen.latency_ms(99));
    trial.note(format!(
        "p99 of accepted requests of {who} events: {before:.1} ms without, {after:.1} ms in the flood"
    ));
    trial.require(after <= before * SLOWER_MAX, || {
        format!("p99 of requests of {who} events rose from {before:.1} to {after:.1} ms")
    });
}

/// Whoever is not accepted is refused, in so many words.
fn only_refused(trial: &mut Trial<'_>, harvest: &Harvest) {
    let errors = &harvest.seen.server_errors;
    let other = errors.iter().filter(|error| error.1 != 503).count();
    let (run, silent) = (&harvest.tally.run, harvest.seen.unanswered);
    trial.require(other == 0 && silent == 0, || {
        format!(
            "{run}: {other} answers with 5xx other than 503, {silent} requests without an answer"
        )
    });
}
