//! Ten times what the system can take, from clients that come back at once whatever they are told.
//!
//! The producer reaches Kafka over a narrow line, which is what it can take less than it could receive: on a machine
//! that all share, the flood could otherwise not be made without taking the time of those who are flooded.

use std::time::Duration;

use tokio::runtime::Handle;

use super::overload;
use crate::{
    failure::Failure,
    load::{Harvest, Load, LoadConfig},
    stack::{PROXIED, Stack},
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
const ASKED_FOR: f64 = 10.0;
/// The share of the capacity that those want who send few events at a time, and as much those who send many.
const CALM_SHARE: f64 = 0.15;
/// Events in a request of a client that has few; others send as many as the usual load.
const FEW: u32 = 10;
/// How long each figure is measured without the flood.
const SPELL: Duration = Duration::from_secs(20);
/// What the limit gets to find its place when the flood comes, as in the tests of the limit by itself.
const SETTLES: Duration = Duration::from_secs(15);
/// An accepted request may take so many times what it takes alone.
const SLOWER_MAX: f64 = 2.0;
/// Longest time to a refusal, beside which the producer's own delay of it (`admission.refusal_delay_ms`) is small.
const REFUSAL_MS_MAX: f64 = 250.0;
/// What is still accepted, of the capacity.
const GOODPUT_MIN: f64 = 0.5;

/// The producer reaches Kafka through a proxy.
pub async fn setup(setup: &mut Setup<'_>, stack: &Stack) -> Result<(), Failure> {
    let (own, told) = stack.kafka_proxies[place()];
    stack.toxiproxy.proxy(FLOODED[0], told, own).await?;
    if let Ground::Stack { proxied, .. } = &mut setup.ground {
        *proxied = FLOODED;
    }
    setup.load = None;
    Ok(())
}

/// Measures what can be taken and how long it takes for few, then offers ten times as much.
pub async fn flood(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    let threads = overload::stand_all_back(trial, stack).await?;
    let ended = strike(trial, stack, threads.handle()).await;
    threads.shutdown_background();
    stack.postgres(&["usual"]).await?;
    ended
}

async fn strike(trial: &mut Trial<'_>, stack: &Stack, threads: &Handle) -> Result<(), Failure> {
    let line = stack.toxiproxy.existing(FLOODED[0]);
    line.add(Toxic::Bandwidth(LINE_KB_S), Stream::Up, 1.0)
        .await?;
    let busy = offer(trial, "busy", SPELL, |config| {
        (config.connections, config.rate) = (SATURATE, 0);
    });
    let busy = busy.await?;
    let capacity = busy.tally.events as f64 / busy.seconds;
    trial.harvest(busy);
    let calm_rate = (capacity * CALM_SHARE) as u32;
    let calm = honest(trial, "calm", calm_rate, SPELL).await?;

    let mut crowd = trial.load_config("flood");
    (crowd.connections, crowd.open, crowd.events_min) = (FLOOD, true, 0);
    crowd.rate = (capacity * OFFERED) as u32;
    let crowd = Load::start_on(threads, &crowd)?;
    let onset = honest(trial, "onset", calm_rate, SETTLES).await?;
    let lasts = Duration::from_secs(if trial.size.full { 120 } else { 60 });
    let amid = honest(trial, "amid", calm_rate, lasts).await?;
    let crowd = crowd.finish().await?;
    trial.healed().await;
    line.heal().await?;

    judge(trial, capacity, &crowd, &amid[1]);
    for (place, who) in ["few", "many"].into_iter().enumerate() {
        slower(trial, who, &calm[place], &amid[place]);
    }
    for harvest in [calm, onset, amid].into_iter().flatten().chain([crowd]) {
        only_refused(trial, &harvest);
        trial.harvest(harvest);
    }
    Ok(())
}

fn place() -> usize {
    let place = PROXIED.iter().position(|name| *name == FLOODED[0]);
    place.expect("it is one of the services")
}

/// Those who are measured, for a time: requests of few events, and of many, each kind at this rate.
async fn honest(
    trial: &Trial<'_>,
    name: &str,
    rate: u32,
    lasts: Duration,
) -> Result<[Harvest; 2], Failure> {
    let (few, many) = (format!("{name}few"), format!("{name}many"));
    let few = offer(trial, &few, lasts, |config| {
        (config.batch, config.rate) = (FEW, rate);
    });
    let many = offer(trial, &many, lasts, |config| {
        // In the flood most of these are refused; they come back as often for the sake of the figures.
        (config.rate, config.open) = (rate, true);
    });
    let (few, many) = tokio::join!(few, many);
    Ok([few?, many?])
}

/// A load for a time, whatever goes on beside it.
async fn offer(
    trial: &Trial<'_>,
    name: &str,
    lasts: Duration,
    change: impl Fn(&mut LoadConfig),
) -> Result<Harvest, Failure> {
    let mut config = trial.load_config(name);
    config.events_min = 0;
    change(&mut config);
    let load = Load::start(&config)?;
    tokio::time::sleep(lasts).await;
    load.finish().await
}

fn judge(trial: &mut Trial<'_>, capacity: f64, crowd: &Harvest, beside: &Harvest) {
    let batch = f64::from(trial.load_config("").batch);
    let offered = crowd.offered_per_second() * batch / capacity;
    let taken = crowd.tally.events as f64 / crowd.seconds / capacity;
    // The flood's own threads wait for the processor, so that others tell how long an answer takes.
    let refusal = beside.seen.refusal_ms(99);
    trial.note(format!(
        "{capacity:.0} events a second could be taken; {offered:.1} times as many were offered for {:.0} s and {taken:.2} \
         times as many accepted; {} of {} requests of the flood were refused; a refusal took {refusal:.0} ms at the 99th \
         percentile",
        crowd.offering_seconds, crowd.seen.refused, crowd.seen.offered,
    ));
    trial.require(offered >= ASKED_FOR, || {
        format!("only {offered:.1} times the capacity was offered")
    });
    trial.require(taken >= GOODPUT_MIN, || {
        format!("only {taken:.2} of the capacity was accepted in the flood")
    });
    trial.require(refusal <= REFUSAL_MS_MAX, || {
        format!("refusals took {refusal:.0} ms")
    });
}

/// Who is accepted is not kept waiting.
fn slower(trial: &mut Trial<'_>, who: &str, calm: &Harvest, amid: &Harvest) {
    let [before, after] = [calm, amid].map(|harvest| harvest.seen.latency_ms(99));
    trial.note(format!(
        "p99 of accepted requests of {who} events: {before:.1} ms alone, {after:.1} ms in the flood"
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
        format!("{run}: {other} answers with 5xx other than 503, {silent} requests without an answer")
    });
}
