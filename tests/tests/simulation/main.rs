//! A deterministic simulation of the chain protocol, run with the real code: the owner's state machine, and what
//! analytics judges, writes, folds and makes checkpoints with.
//!
//! Each seed makes a small world: a source log, `metrics-data`, a dead-letter topic, committed offsets, several owners
//! of one partition at once, of which at most one is meant to be, and several instances of analytics on one store. A
//! schedule drawn from the seed lets them read, write, crash between any two waits, lose acknowledgements, land writes
//! and transactions late, go on as zombies and hand over, while retention removes what was or was not read. After every
//! step the invariants of docs/architecture.md hold, or the seed fails and prints its schedule:
//!
//! - each source offset lies in exactly one valid batch, and each batch's outcomes are what a perfect reader would say;
//! - dead letters are written before they are counted;
//! - the store's chain is the fold of the log up to its position;
//! - once the faults stop everything is read, and the judge, the store and the memory of every instance agree.
//!
//! `make simulate SEEDS=1000000` runs more; `SIMULATION_SEED=42` replays one and prints it.

mod coverage;
mod judge;
mod owner;
mod random;
mod reader;
mod source;
mod store;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use world::{World, WorldConfig};

/// Seeds that a plain run covers.
const SEEDS: u64 = 100_000;

/// Seeds that once failed, or that show something worth keeping.
const KEPT: [u64; 1] = [823_725];

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

/// How many of a few seeds fail in a world that is broken on purpose.
fn failing(config: impl Fn(u64) -> WorldConfig) -> usize {
    let seeds = (0..300).filter(|seed| World::new(config(*seed)).run().is_err());
    seeds.count()
}

/// The simulation can fail: a reader that ignores the rule of the chain counts doubles, and the judge says so.
#[test]
fn without_the_rule_doubles_are_found() {
    let broken = failing(|seed| WorldConfig {
        ignore_rule: true,
        ..WorldConfig::of(seed)
    });
    assert!(broken > 30, "only {broken} of 300 seeds found the doubles");
}

/// Nor would it go unseen if two instances of analytics overwrote each other.
#[test]
fn without_the_swap_differences_are_found() {
    let broken = failing(|seed| WorldConfig {
        ignore_swap: true,
        ..WorldConfig::of(seed)
    });
    assert!(broken > 30, "only {broken} of 300 seeds found differences");
}

/// A seed is enough to see a run again, to the byte.
#[test]
fn a_seed_tells_the_same_story_twice() {
    let tell = |seed| {
        let mut world = World::new(WorldConfig {
            told: true,
            ..WorldConfig::of(seed)
        });
        world.run().expect("the seed holds");
        world.schedule().to_owned()
    };
    for seed in 0..200 {
        assert_eq!(tell(seed), tell(seed), "seed {seed}");
    }
}

/// The faults that the simulation is for do occur in it.
#[test]
fn the_seeds_cover_the_faults() {
    let mut seen = coverage::Coverage::default();
    for seed in 0..4_000 {
        let mut world = World::new(WorldConfig::of(seed));
        world.run().expect("the seed holds");
        seen.add(world.coverage());
    }
    println!("{seen:#?}");
    assert!(seen.is_complete(), "{seen:#?}");
}
