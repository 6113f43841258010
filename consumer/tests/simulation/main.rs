//! A deterministic simulation of the chain protocol, run with the real code of the pure core.
//!
//! Each seed makes a small world: a source log, `metrics-data`, a dead-letter topic, committed
//! offsets, and several owners of one partition at once, of which at most one is meant to be. A
//! schedule drawn from the seed lets them read, write, crash, lose acknowledgements, land writes
//! late, go on as zombies and hand over, while retention removes what was or was not read. After
//! every step the invariants of DESIGN hold, or the seed fails and prints its schedule.
//!
//! `SIMULATION_SEEDS=1000000 cargo test -p streamgauge-consumer --test simulation` runs more;
//! `SIMULATION_SEED=42` replays one and prints it.

mod judge;
mod owner;
mod random;
mod source;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use world::{World, WorldConfig};

/// Seeds that a plain run covers.
const SEEDS: u64 = 100_000;

/// Seeds that once failed, or that show something worth keeping.
const KEPT: [u64; 0] = [];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs one seed; on failure runs it again, telling every step.
fn check(seed: u64) {
    if let Err(violation) = World::new(WorldConfig::of(seed)).run() {
        let mut told = World::new(WorldConfig {
            told: true,
            ..WorldConfig::of(seed)
        });
        let again = told.run();
        panic!(
            "seed {seed}: {violation}\nagain: {again:?}\nschedule:\n{}\n\
             replay with SIMULATION_SEED={seed}",
            told.schedule()
        );
    }
}

#[test]
fn every_seed_keeps_the_invariants() {
    if let Some(seed) = number("SIMULATION_SEED") {
        let mut world = World::new(WorldConfig {
            told: true,
            ..WorldConfig::of(seed)
        });
        let outcome = world.run();
        println!("{}", world.schedule());
        outcome.expect("the seed holds");
        return;
    }
    KEPT.into_iter().for_each(check);
    let (seeds, next) = (
        number("SIMULATION_SEEDS").unwrap_or(SEEDS),
        AtomicU64::new(0),
    );
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    check(seed);
                }
            });
        }
    });
}

/// The simulation can fail: a reader that ignores the rule of the chain counts doubles, and the
/// judge says so.
#[test]
fn without_the_rule_doubles_are_found() {
    let broken = (0..300)
        .filter(|seed| {
            World::new(WorldConfig {
                ignore_rule: true,
                ..WorldConfig::of(*seed)
            })
            .run()
            .is_err()
        })
        .count();
    assert!(broken > 30, "only {broken} of 300 seeds found the doubles");
}

/// The faults that the simulation is for do occur in it.
#[test]
fn the_seeds_cover_the_faults() {
    let mut seen = world::Coverage::default();
    for seed in 0..3_000 {
        let mut world = World::new(WorldConfig::of(seed));
        world.run().expect("the seed holds");
        seen.add(world.coverage());
    }
    println!("{seen:#?}");
    assert!(seen.is_complete(), "{seen:#?}");
}
