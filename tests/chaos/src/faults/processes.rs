//! Processes that are killed, stopped, drained, starved and joined.

use std::time::Duration;

use streamgauge_tests::system::number;
use tokio::time::Instant;

use super::READY_WITHIN;
use crate::{
    failure::Failure,
    stack::{PROXIED, Stack},
    system::Ground,
    toxiproxy::{Stream, Toxic},
    trial::{Setup, Trial},
};

/// A member with a name of its own gets its partitions back without waiting for the group to give up on its former self.
pub const KILLS_SETTINGS: [&str; 1] = ["consumer.group.instance_id=chaos"];

/// The shortest session that Kafka grants by default, in milliseconds.
pub const SHORT_SESSION: &str = "consumer.group.session_timeout_ms=6000";
/// Long enough for the group to give the partitions to another member.
const PAST_SESSION: Duration = Duration::from_secs(12);
/// How often a consumer's writes are held up, and how often at most until one of them has come too late.
const ZOMBIE_ROUNDS: usize = 2;
const ZOMBIE_ROUNDS_MAX: usize = 8;
/// The service whose writes are held up.
const HELD_UP: &[&str] = &["consumer"];

/// How often a look is taken at what must change.
const POLL: Duration = Duration::from_millis(10);
/// How long a consumer that gets a part of the time runs at a time.
const TURN: Duration = Duration::from_millis(20);

/// SIGKILL for each service in turn, at random moments.
pub async fn kills(trial: &mut Trial<'_>) -> Result<(), Failure> {
    let mut slowest = Duration::ZERO;
    for _ in 0..trial.size.kills {
        for name in PROXIED {
            let pause = Duration::from_millis(50)..Duration::from_millis(1_500);
            trial.sleep_between(pause).await;
            trial.system.kill(name);
            trial.system.start_again(name);
            let took = trial.ready_within(name, READY_WITHIN).await?;
            slowest = slowest.max(took);
        }
    }
    let kills = trial.size.kills;
    trial.note(format!(
        "{kills} kills of each service; slowest ready again {slowest:.1?}"
    ));
    trial.healed().await;
    Ok(())
}

/// The consumer reaches Kafka through a proxy, so that its writes can be held up.
pub async fn setup_zombie(setup: &mut Setup<'_>, stack: &Stack) -> Result<(), Failure> {
    stack.proxy_kafka(HELD_UP[0]).await?;
    if let Ground::Stack { proxied, .. } = &mut setup.ground {
        *proxied = HELD_UP;
    }
    setup.settings = vec![String::from(SHORT_SESSION)];
    Ok(())
}

/// A consumer is stopped until its group has given its partitions away, and then goes on where it was. Then, surer than
/// any luck with signals: its batches and heartbeats are held up on their way, and arrive when another consumer has
/// moved the chain on long since.
pub async fn zombie(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    trial.system.add_consumer("consumer-2");
    trial.ready_within("consumer-2", READY_WITHIN).await?;
    for name in ["consumer", "consumer-2"] {
        let there = trial.system.process(name).signal("STOP");
        tokio::time::sleep(PAST_SESSION).await;
        let continued = trial.system.process(name).signal("CONT");
        trial.require(there && continued, || format!("{name} ended by itself"));
        trial.healed().await;
    }
    let proxy = stack.toxiproxy.existing(HELD_UP[0]);
    // Where the rule is switched off on purpose no batch is void, and all rounds are gone through: not in each of them
    // comes a batch too late.
    let judged = trial.options.mutation.is_none();
    let mut late = 0;
    for round in 0..ZOMBIE_ROUNDS_MAX {
        if round >= ZOMBIE_ROUNDS && late > 0 {
            break;
        }
        let before = void_batches(trial).await?;
        proxy
            .add(Toxic::Latency(60_000, 0), Stream::Up, 1.0)
            .await?;
        tokio::time::sleep(PAST_SESSION).await;
        // What was held up comes through now.
        proxy.heal().await?;
        trial.healed().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let void = void_batches(trial).await? - before;
        trial.note(format!("{void} late batches were void"));
        late += void;
    }
    trial.require(late > 0 || !judged, || {
        String::from("no batch came late: the fault did not strike")
    });
    Ok(())
}

/// Batches that counted for nobody.
async fn void_batches(trial: &Trial<'_>) -> Result<u64, Failure> {
    let ledger = trial.system.ask("/v1/ledger").await?;
    Ok(number(&ledger["total"]["void_batches"]))
}

/// SIGTERM for each service in turn, under load.
pub async fn drain(trial: &mut Trial<'_>) -> Result<(), Failure> {
    // The services' own deadlines, with a second for the process to end.
    let deadlines = [("producer", 22), ("consumer", 11), ("analytics", 11)];
    let rounds = if trial.size.full { 5 } else { 2 };
    let mut spans = Vec::new();
    for _ in 0..rounds {
        for (name, seconds) in deadlines {
            let pause = Duration::from_millis(500)..Duration::from_millis(1_500);
            trial.sleep_between(pause).await;
            let url = format!("{}/readyz", trial.system.url(name));
            let watcher = tokio::spawn(not_ready(url));
            let (code, took) = trial.system.terminate(name).await;
            let ended = Instant::now();
            watcher.abort();
            if let Ok(Some(down)) = watcher.await {
                spans.push((name, down, ended));
            }
            trial.require(code == Some(0), || format!("{name} ended with {code:?}"));
            let most = Duration::from_secs(seconds);
            trial.require(took <= most, || format!("{name} took {took:.1?} to drain"));
            trial.note(format!("{name} drained in {took:.1?}"));
            trial.system.start_again(name);
            trial.ready_within(name, READY_WITHIN).await?;
        }
    }
    trial.healed().await;
    trial.finish_load().await?;
    let errors: Vec<_> = trial.harvests()[0].seen.server_errors.clone();
    let seen = spans.iter().filter(|span| span.0 == "producer").count();
    trial.require(seen == rounds, || {
        format!("the producer's readiness was seen to go down {seen} times in {rounds} drains")
    });
    for (name, down, ended) in spans {
        let within = |error: &&(Instant, u16)| (down..ended).contains(&error.0);
        let count = errors.iter().filter(within).count();
        trial.require(count == 0, || {
            format!("{count} answers with 5xx after the readiness of {name} had gone down")
        });
    }
    Ok(())
}

/// The moment at which a service says that it is not ready. `None` when it never says so.
async fn not_ready(url: String) -> Option<Instant> {
    let client = reqwest::Client::new();
    loop {
        let answer = client.get(&url).send().await.ok()?;
        if answer.status() != 200 {
            return Some(Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The consumer runs a tenth of the time; where that is still enough for the load, a hundredth.
pub async fn slow_consumer(trial: &mut Trial<'_>) -> Result<(), Failure> {
    let usual = trial.baseline();
    let (mut share, mut peak) = (0, 0);
    for parts in [10, 100] {
        if peak <= usual {
            share = parts;
            peak = slowed_to(trial, share).await;
        }
    }
    trial.note(format!(
        "with 1/{share} of the time the lag rose to {peak} events, where up to {usual} are usual"
    ));
    trial.require(peak > usual, || {
        String::from("the lag did not rise: the fault did not strike")
    });
    trial.healed().await;
    Ok(())
}

/// Gives the consumer this part of the time for a while; returns the largest lag.
async fn slowed_to(trial: &mut Trial<'_>, parts: u32) -> u64 {
    let begun = Instant::now();
    while begun.elapsed() < trial.size.outage * 3 {
        let stopped = trial.system.process("consumer").signal("STOP");
        tokio::time::sleep(TURN * (parts - 1)).await;
        let continued = trial.system.process("consumer").signal("CONT");
        tokio::time::sleep(TURN).await;
        trial.require(stopped && continued, || {
            String::from("the consumer ended by itself")
        });
    }
    trial.sampler.lag_peak(begun)
}

/// A second consumer joins and leaves, by turns in order and without a word.
pub async fn storm(trial: &mut Trial<'_>) -> Result<(), Failure> {
    let (name, mut there) = ("consumer-2", false);
    let mut slowest = u64::MAX;
    for change in 0..trial.size.changes {
        let before = covered(trial).await?;
        match (there, change % 4) {
            (false, _) if change == 0 => trial.system.add_consumer(name),
            (false, _) => trial.system.start_again(name),
            (true, 1) => {
                let (code, _) = trial.system.terminate(name).await;
                trial.require(code == Some(0), || format!("{name} ended with {code:?}"));
            }
            (true, _) => trial.system.kill(name),
        }
        there = !there;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let moved = covered(trial).await?.saturating_sub(before);
        slowest = slowest.min(moved);
        trial.require(moved > 0, || {
            format!("nothing was counted after change {change}")
        });
    }
    trial.note(format!(
        "at least {slowest} offsets were covered in each 10 s"
    ));
    trial.healed().await;
    Ok(())
}

/// Source offsets that are accounted for.
async fn covered(trial: &Trial<'_>) -> Result<u64, Failure> {
    let ledger = trial.system.ask("/v1/ledger").await?;
    Ok(number(&ledger["total"]["head"]))
}
