//! The limit before a simulated service of fixed capacity, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A queue before a few workers. Times are nanoseconds.
struct Service {
    workers: usize,
    /// What a worker needs for one job.
    service_ns: fn(u32, &mut StdRng) -> u64,
    waiting: VecDeque<Job>,
    working: BinaryHeap<Reverse<(u64, Job)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    begun_ns: u64,
    beside: u32,
    units: u32,
    client: usize,
}

impl Service {
    fn new(workers: usize, service_ns: fn(u32, &mut StdRng) -> u64) -> Self {
        Self {
            workers,
            service_ns,
            waiting: VecDeque::new(),
            working: BinaryHeap::new(),
        }
    }

    fn take(&mut self, job: Job, now_ns: u64, random: &mut StdRng) {
        self.waiting.push_back(job);
        self.begin(now_ns, random);
    }

    fn begin(&mut self, now_ns: u64, random: &mut StdRng) {
        while self.working.len() < self.workers
            && let Some(job) = self.waiting.pop_front()
        {
            let needs = (self.service_ns)(job.units, random);
            self.working.push(Reverse((now_ns + needs, job)));
        }
    }

    fn next_done(&self) -> u64 {
        self.working.peek().map_or(u64::MAX, |next| next.0.0)
    }
}

/// What became of a phase.
#[derive(Debug, Default)]
struct Seen {
    taken: usize,
    refused: usize,
    latencies_ns: Vec<u64>,
}

impl Seen {
    fn p99(&mut self) -> Duration {
        self.latencies_ns.sort_unstable();
        let place = self.latencies_ns.len().saturating_sub(1) * 99 / 100;
        Duration::from_nanos(self.latencies_ns.get(place).copied().unwrap_or_default())
    }
}

struct World {
    limit: ConcurrencyLimit,
    service: Service,
    in_flight: u32,
    refused_ns: Option<u64>,
    now_ns: u64,
    next_arrival_ns: u64,
    random: StdRng,
}

impl World {
    fn new(config: &ConcurrencyConfig, service: Service) -> Self {
        Self {
            limit: ConcurrencyLimit::new(config),
            service,
            in_flight: 0,
            refused_ns: None,
            now_ns: 0,
            next_arrival_ns: 0,
            random: StdRng::seed_from_u64(7),
        }
    }

    fn offer(&mut self, client: usize, units: u32, seen: &mut Seen) -> bool {
        if self.in_flight >= self.limit.limit() {
            seen.refused += 1;
            self.refused_ns = Some(self.now_ns);
            return false;
        }
        let job = Job {
            begun_ns: self.now_ns,
            beside: self.in_flight,
            units,
            client,
        };
        seen.taken += 1;
        self.in_flight += units;
        self.service.take(job, self.now_ns, &mut self.random);
        true
    }

    /// Ends the job that is done next.
    fn finish(&mut self, seen: &mut Seen) -> Job {
        let Reverse((done_ns, job)) = self.service.working.pop().unwrap();
        self.now_ns = done_ns;
        self.in_flight -= job.units;
        self.service.begin(done_ns, &mut self.random);
        seen.latencies_ns.push(done_ns - job.begun_ns);
        self.limit.observe(Sample {
            now: Duration::from_nanos(done_ns),
            latency: Duration::from_nanos(done_ns - job.begun_ns),
            units: job.units,
            beside_units: job.beside,
            left_units: self.in_flight,
            lost: false,
            pressed: self
                .refused_ns
                .is_some_and(|refused| done_ns < refused + 2_000_000_000),
        });
        job
    }

    /// Requests of one unit that come at random, so many a second, whatever is answered.
    fn open_loop(&mut self, per_second: f64, seconds: u64) -> Seen {
        let end_ns = self.now_ns + seconds * 1_000_000_000;
        let mut seen = Seen::default();
        self.next_arrival_ns = self.now_ns;
        while self.now_ns < end_ns {
            if self.service.next_done() <= self.next_arrival_ns {
                self.finish(&mut seen);
                continue;
            }
            self.now_ns = self.next_arrival_ns;
            self.offer(0, 1, &mut seen);
            let draw: f64 = self.random.random_range(f64::EPSILON..1.0);
            self.next_arrival_ns += (-draw.ln() / per_second * 1e9) as u64 + 1;
        }
        seen
    }

    /// Clients that send the next request as soon as the last is answered, and a refused one a second later.
    fn closed_loop(&mut self, clients: usize, units: u32, seconds: u64) -> Seen {
        let end_ns = self.now_ns + seconds * 1_000_000_000;
        let mut seen = Seen::default();
        let mut back: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        for client in 0..clients {
            back.push(Reverse((self.now_ns + client as u64 * 10_000, client)));
        }
        while self.now_ns < end_ns {
            let next_back = back.peek().map_or(u64::MAX, |next| next.0.0);
            if self.service.next_done() <= next_back {
                let job = self.finish(&mut seen);
                back.push(Reverse((self.now_ns, job.client)));
                continue;
            }
            let Reverse((at_ns, client)) = back.pop().unwrap();
            self.now_ns = at_ns;
            if !self.offer(client, units, &mut seen) {
                back.push(Reverse((at_ns + 1_000_000_000, client)));
            }
        }
        while self.in_flight > 0 {
            self.finish(&mut Seen::default());
        }
        seen
    }
}

fn small() -> ConcurrencyConfig {
    ConcurrencyConfig {
        units_min: 5,
        units_max: 5_000,
        latency_floor_ms: 1,
        ..ConcurrencyConfig::default()
    }
}

fn always_10_ms(_: u32, _: &mut StdRng) -> u64 {
    10_000_000
}

/// Exponential, with a mean of 10 ms.
fn about_10_ms(_: u32, random: &mut StdRng) -> u64 {
    let draw: f64 = random.random_range(f64::EPSILON..1.0);
    (-draw.ln() * 10_000_000.0) as u64
}

/// 20 workers at 10 ms do 2,000 a second.
const WORKERS: usize = 20;
const CAPACITY: f64 = 2_000.0;

#[test]
fn ten_times_the_capacity_costs_neither_latency_nor_throughput_and_is_forgotten() {
    for service_ns in [always_10_ms, about_10_ms] {
        let mut world = World::new(&small(), Service::new(WORKERS, service_ns));
        let mut unloaded = world.open_loop(CAPACITY / 10.0, 20);
        assert_eq!(unloaded.refused, 0);
        let p99 = unloaded.p99();

        let converging = world.open_loop(CAPACITY * 10.0, 15);
        assert!(converging.refused > 0);
        // Two minutes, as long as an overload has to be borne.
        let mut overloaded = world.open_loop(CAPACITY * 10.0, 120);
        assert!(
            overloaded.p99() <= 2 * p99,
            "{:?}, {p99:?}",
            overloaded.p99()
        );
        let done = overloaded.latencies_ns.len() as f64;
        assert!(done >= 0.9 * CAPACITY * 120.0, "{done}");

        world.open_loop(CAPACITY / 2.0, 5);
        let mut recovered = world.open_loop(CAPACITY / 2.0, 20);
        assert_eq!(recovered.refused, 0);
        assert!(recovered.p99() <= p99.mul_f64(1.1), "{:?}", recovered.p99());
    }
}

#[test]
fn a_service_whose_latency_varies_is_left_alone_at_half_its_capacity() {
    for seed in 0..10 {
        let mut world = World::new(&small(), Service::new(WORKERS, about_10_ms));
        world.random = StdRng::seed_from_u64(seed);
        world.open_loop(CAPACITY / 10.0, 20);
        world.open_loop(CAPACITY * 10.0, 10);
        world.open_loop(CAPACITY / 2.0, 5);
        assert_eq!(world.open_loop(CAPACITY / 2.0, 20).refused, 0, "{seed}");
    }
}

#[test]
fn an_overload_from_the_first_moment_on_is_borne_as_well() {
    let mut alone = World::new(&small(), Service::new(WORKERS, about_10_ms));
    let p99 = alone.open_loop(CAPACITY / 10.0, 20).p99();
    let mut world = World::new(&small(), Service::new(WORKERS, about_10_ms));
    world.open_loop(CAPACITY * 10.0, 20);
    let mut overloaded = world.open_loop(CAPACITY * 10.0, 30);
    assert!(
        overloaded.p99() <= 2 * p99,
        "{:?}, {p99:?}",
        overloaded.p99()
    );
    assert!(overloaded.latencies_ns.len() as f64 >= 0.9 * CAPACITY * 30.0);
}

#[test]
fn a_service_that_loses_and_regains_its_capacity_is_followed() {
    let mut world = World::new(&small(), Service::new(WORKERS, always_10_ms));
    assert_eq!(world.open_loop(1_500.0, 20).refused, 0);
    world.service.workers = 2;
    // What was let in before the limit came down is done first.
    world.open_loop(1_500.0, 40);
    let mut slow = world.open_loop(1_500.0, 20);
    assert!(slow.refused > 20_000, "{}", slow.refused);
    assert!(
        slow.latencies_ns.len() >= 3_600,
        "{}",
        slow.latencies_ns.len()
    );
    assert!(slow.p99() <= millis(60), "{:?}", slow.p99());
    world.service.workers = WORKERS;
    world.open_loop(1_500.0, 10);
    assert_eq!(world.open_loop(1_500.0, 20).refused, 0);
}

#[test]
fn a_service_that_is_slower_from_now_on_is_learned_even_under_load() {
    let mut world = World::new(&small(), Service::new(WORKERS, always_10_ms));
    world.open_loop(1_500.0, 20);
    // As many at once, each taking four times as long: 2,000 a second still, with four times the work in flight.
    world.service.service_ns = |_, _| 40_000_000;
    world.service.workers = 4 * WORKERS;
    world.open_loop(1_500.0, 60);
    let after = world.open_loop(1_500.0, 20);
    let share = after.refused as f64 / (after.refused + after.taken) as f64;
    assert!(share < 0.01, "{share}");
}

/// A pipe that takes 5 µs for a unit.
fn pipe(units: u32, _: &mut StdRng) -> u64 {
    u64::from(units) * 5_000
}

#[test]
fn clients_at_full_speed_are_left_alone() {
    for (clients, units) in [(64, 112), (256, 13), (1, 10_012), (7, 1_012)] {
        let mut world = World::new(&ConcurrencyConfig::default(), Service::new(1, pipe));
        let seen = world.closed_loop(clients, units, 20);
        assert_eq!(seen.refused, 0, "{clients} clients, {units} units");
        assert!(seen.taken as f64 * f64::from(units) >= 0.99 * 20.0 * 200_000.0);
    }
}

#[test]
fn far_too_many_clients_at_full_speed_are_held_to_the_accepted_latency() {
    let config = ConcurrencyConfig::default();
    let mut world = World::new(&config, Service::new(1, pipe));
    // They come back a second after a refusal, all at once or not at all.
    world.closed_loop(640, 62, 10);
    let mut seen = world.closed_loop(640, 62, 120);
    let accepted = millis(config.latency_floor_ms);
    assert!(seen.p99() <= 2 * accepted, "{:?}", seen.p99());
    assert!(seen.refused > 0);
    let done = seen.latencies_ns.len() as f64 * 62.0;
    assert!(done >= 0.8 * 120.0 * 200_000.0, "{done}");
}

#[test]
fn a_change_of_sizes_is_no_overload() {
    let config = ConcurrencyConfig {
        units_min: 50,
        units_max: 3_000,
        latency_floor_ms: 1,
        ..ConcurrencyConfig::default()
    };
    // A worker for everybody: larger work takes longer, and nobody waits.
    let mut world = World::new(
        &config,
        Service::new(1_000, |units, _| u64::from(units) * 50_000),
    );
    for (clients, units) in [(200, 13), (20, 112), (200, 13), (2, 1_012), (20, 112)] {
        assert_eq!(world.closed_loop(clients, units, 3).refused, 0);
        assert_eq!(world.limit.limit(), 3_000);
    }
}

#[test]
fn a_queue_that_takes_seconds_to_drain_does_not_put_off_the_cut() {
    let mut world = World::new(&small(), Service::new(WORKERS, always_10_ms));
    world.open_loop(CAPACITY / 10.0, 5);
    // 5,000 are let in at once, two and a half seconds of work.
    let mut seen = Seen::default();
    for _ in 0..6_000 {
        world.offer(0, 1, &mut seen);
    }
    assert!((1_000..1_100).contains(&seen.refused));
    while world.in_flight > 3_000 {
        world.finish(&mut seen);
    }
    assert!(world.limit.limit() < 100, "{}", world.limit.limit());
    while world.in_flight > 0 {
        world.finish(&mut seen);
    }
    assert!(
        world.limit.limit() >= 20,
        "not below what gets done in time"
    );
}

#[test]
fn lost_work_lowers_the_limit_however_quick_the_rest_is() {
    let mut limit = ConcurrencyLimit::new(&small());
    let sample = |n: u64, lost| Sample {
        now: millis(n * 10),
        latency: millis(1),
        units: 1,
        beside_units: 4_999,
        left_units: 0,
        lost,
        pressed: false,
    };
    for n in 0..100 {
        assert_eq!(limit.observe(sample(n + 1, false)), 5_000);
    }
    for n in 100..130 {
        limit.observe(sample(n + 1, n % 10 == 0));
    }
    assert!(limit.limit() < 5_000, "{}", limit.limit());
}

/// A limit that has met a quick, idle service, and then so many times this latency beside so much, ten milliseconds apart.
fn limit_after(samples: &[(u64, u32)], times: u64, pressed: bool) -> ConcurrencyLimit {
    let mut limit = ConcurrencyLimit::new(&ConcurrencyConfig::default());
    let quick = (0..100).map(|_| (1, 0, false));
    let then = (0..times).flat_map(|_| {
        samples
            .iter()
            .map(|(latency, beside)| (*latency, *beside, pressed))
    });
    for (n, (latency, beside_units, pressed)) in quick.chain(then).enumerate() {
        limit.observe(Sample {
            now: millis((n as u64 + 1) * 10),
            latency: millis(latency),
            units: 62,
            beside_units,
            left_units: beside_units,
            lost: false,
            pressed,
        });
    }
    limit
}

#[test]
fn a_limit_that_refuses_is_lowered_however_little_is_in_flight() {
    assert_eq!(limit_after(&[(200, 3_600)], 100, false).limit(), 16_384);
    let pressed = limit_after(&[(200, 3_600)], 100, true).limit();
    assert!(pressed < 3_600, "{pressed}");
}

#[test]
fn gaps_between_refused_clients_do_not_raise_the_limit() {
    let crowded = [(200, 3_600); 100];
    let mut quiet = crowded.to_vec();
    quiet.extend([(1, 62); 200]);
    let lowered = limit_after(&crowded, 1, true).limit();
    let after = limit_after(&quiet, 1, true).limit();
    assert!(after <= lowered, "{lowered}, {after}");
}

#[test]
fn what_is_slow_while_others_are_refused_is_not_learned_as_normal() {
    let limit = limit_after(&[(18, 0)], 600, true).limit();
    assert!(limit <= 1_000, "{limit}");
}

#[test]
fn a_few_that_wait_long_are_not_hidden_by_many_that_came_first() {
    // 15 ms are accepted; on average these take 14.
    let burst: Vec<_> = [(5, 9_000); 10]
        .into_iter()
        .chain([(60, 9_000); 2])
        .collect();
    let limit = limit_after(&burst, 20, false).limit();
    assert!(limit < 8_000, "{limit}");
}

prop_compose! {
    fn samples()(
        steps in prop::collection::vec(
            (
                (0u64..50, 0u64..2_000, 1u32..40_000),
                (0u32..200_000, 0u32..200_000, prop::bool::weighted(0.05)),
            ),
            1..400,
        )
    ) -> Vec<Sample> {
        let mut now = Duration::from_secs(10);
        steps
            .into_iter()
            .map(|((pause, latency, units), (beside_units, left_units, lost))| {
                now += millis(pause);
                Sample {
                    now,
                    latency: millis(latency),
                    units,
                    beside_units,
                    left_units,
                    lost,
                    pressed: lost,
                }
            })
            .collect()
    }
}

proptest! {
    #[test]
    fn it_stays_within_its_bounds_and_moves_in_steps(samples in samples()) {
        let config = ConcurrencyConfig::default();
        let mut limit = ConcurrencyLimit::new(&config);
        let mut same = limit.clone();
        for sample in samples {
            let before = limit.limit();
            let after = limit.observe(sample);
            prop_assert!((config.units_min..=config.units_max).contains(&after));
            prop_assert!(after >= before / 2 && f64::from(after) <= f64::from(before + 1) * GROWTH + 1.0);
            prop_assert_eq!(same.observe(sample), after, "the same measurements give the same limit");
        }
    }

    #[test]
    fn what_is_quick_enough_never_lowers_it(samples in samples()) {
        let mut limit = ConcurrencyLimit::new(&ConcurrencyConfig::default());
        for sample in samples {
            let latency = sample.latency.min(millis(5));
            let after = limit.observe(Sample { latency, lost: false, ..sample });
            prop_assert_eq!(after, 16_384);
        }
    }

    #[test]
    fn a_limit_that_is_not_reached_is_left_alone(samples in samples()) {
        let mut limit = ConcurrencyLimit::new(&ConcurrencyConfig::default());
        for sample in samples {
            let (units, beside_units) = (sample.units.min(1_000), sample.beside_units % 7_000);
            let left_units = sample.left_units % 7_000;
            let after = limit.observe(Sample {
                units,
                beside_units,
                left_units,
                pressed: false,
                ..sample
            });
            prop_assert_eq!(after, 16_384);
        }
    }
}
