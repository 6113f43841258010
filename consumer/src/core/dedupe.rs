//! Which events were seen within the horizon, by `(tenant, user_id, event_id)`.
//!
//! An event is a duplicate when the same ids occurred within the last `horizon` of log time, so
//! the answer is a function of that stretch of the log alone: an owner that starts from there
//! answers as one that never stopped. For the same reason an occurrence renews its id.
//!
//! One table holds 16 bytes an id: 120 bits of XXH3-128 and 8 bits of age. (With ten million ids
//! in a set, the odds that any new event is taken for a duplicate by chance are 1 in 10^29.) The
//! age is the number of a generation, an eighth of the horizon; a generation that ends is dropped
//! whole. The set never holds more than `ids_max`: beyond it the oldest generation goes early,
//! which is counted, for it shortens the horizon.

use std::collections::VecDeque;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_128;

/// Generations in a horizon.
const GENERATIONS: i64 = 8;

/// Generations that may be alive at once: those of the horizon, the current one, and as many
/// again that were closed by size; far below the 256 that the age byte can tell apart.
const ALIVE_MAX: usize = 32;

/// Room that is kept when the set empties, in ids.
const KEEP_CAPACITY: usize = 1024;

/// The identity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(u128);

/// Builds identities; the buffer spares an allocation per event.
#[derive(Debug, Default)]
pub struct Identifier {
    buffer: Vec<u8>,
    user_end: usize,
}

impl Identifier {
    /// The identity of an event. Lengths stand between the parts, so that no two triples share
    /// their bytes.
    pub fn identify(&mut self, tenant: &str, user_id: &str, event_id: &str) -> EventId {
        self.buffer.clear();
        self.buffer
            .extend_from_slice(&(tenant.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(tenant.as_bytes());
        self.buffer
            .extend_from_slice(&(user_id.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(user_id.as_bytes());
        self.user_end = self.buffer.len();
        self.buffer.extend_from_slice(event_id.as_bytes());
        EventId(xxh3_128(&self.buffer))
    }

    /// The identity of the user of the event that was identified last (tenant and user id).
    pub fn user(&self) -> &[u8] {
        &self.buffer[..self.user_end]
    }
}

/// What the set says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not seen within the horizon.
    New,
    /// Seen within the horizon.
    Duplicate,
}

/// How log time is divided: into slices, of which eight are a horizon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    slice_us: i64,
}

impl Horizon {
    /// A horizon of this length.
    pub fn new(horizon_us: i64) -> Self {
        Self {
            slice_us: (horizon_us / GENERATIONS).max(1),
        }
    }

    /// The slice in which a log time lies.
    pub fn slice(self, log_time_us: i64) -> i64 {
        log_time_us.div_euclid(self.slice_us)
    }

    /// The log time from which on ids are remembered at `log_time_us`.
    pub fn start_us(self, log_time_us: i64) -> i64 {
        self.slice(log_time_us)
            .saturating_sub(GENERATIONS)
            .saturating_mul(self.slice_us)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    /// 56 more bits of the identity above, the generation's tag in the lowest byte.
    tagged: u64,
}

#[derive(Clone, Copy, Debug)]
struct Generation {
    tag: u8,
    slice: i64,
    ids: usize,
}

/// The set of one partition.
#[derive(Debug)]
pub struct Dedupe {
    slots: HashTable<Slot>,
    alive: [bool; 256],
    /// Oldest first; the last one takes new ids.
    generations: VecDeque<Generation>,
    next_tag: u8,
    horizon: Horizon,
    ids_max: usize,
    evicted: u64,
}

impl Dedupe {
    /// An empty set with this horizon and bound.
    pub fn new(horizon_us: i64, ids_max: usize) -> Self {
        Self {
            slots: HashTable::new(),
            alive: [false; 256],
            generations: VecDeque::new(),
            next_tag: 0,
            horizon: Horizon::new(horizon_us),
            ids_max: ids_max.max(GENERATIONS as usize),
            evicted: 0,
        }
    }

    /// The log time from which the source must be read again to rebuild the set as it is at
    /// `log_time_us`.
    pub fn horizon_start_us(&self, log_time_us: i64) -> i64 {
        self.horizon.start_us(log_time_us)
    }

    /// Adds an event at a log time that never runs backwards, and says whether it was there.
    #[inline]
    pub fn insert(&mut self, id: EventId, log_time_us: i64) -> Seen {
        let current = self.advance(log_time_us);
        let hash = id.0 as u64;
        let identity = ((id.0 >> 64) as u64) & !0xff;
        let same = |slot: &Slot| slot.hash == hash && slot.tagged & !0xff == identity;
        if let Some(slot) = self.slots.find_mut(hash, same) {
            let before = slot.tagged as u8;
            if before != current {
                slot.tagged = identity | u64::from(current);
                Self::moved(&mut self.generations, before);
            }
            #[cfg(feature = "mutations")]
            if crate::mutation::is_off() {
                return Seen::New;
            }
            return Seen::Duplicate;
        }
        let slot = Slot {
            hash,
            tagged: identity | u64::from(current),
        };
        self.slots.insert_unique(hash, slot, |slot| slot.hash);
        if let Some(last) = self.generations.back_mut() {
            last.ids += 1;
        }
        Seen::New
    }

    /// Whether an event is in the set at a log time that never runs backwards; it is neither added nor renewed.
    pub fn knows(&mut self, id: EventId, log_time_us: i64) -> bool {
        self.advance(log_time_us);
        let identity = ((id.0 >> 64) as u64) & !0xff;
        let hash = id.0 as u64;
        let same = |slot: &Slot| slot.hash == hash && slot.tagged & !0xff == identity;
        self.slots.find(hash, same).is_some()
    }

    /// How many ids the set holds.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The memory that the table takes.
    pub fn memory_bytes(&self) -> usize {
        self.slots.allocation_size()
    }

    /// How many ids were dropped before their time because of `ids_max`.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The tag of the generation that takes ids at this log time; opens and drops generations.
    #[inline]
    fn advance(&mut self, log_time_us: i64) -> u8 {
        let slice = self.horizon.slice(log_time_us);
        match self.generations.back() {
            Some(last) if last.slice >= slice && last.ids < self.generation_ids_max() => last.tag,
            _ => self.turn(slice),
        }
    }

    fn generation_ids_max(&self) -> usize {
        self.ids_max / GENERATIONS as usize
    }

    #[cold]
    fn turn(&mut self, slice: i64) -> u8 {
        let slice = self
            .generations
            .back()
            .map_or(slice, |last| last.slice.max(slice));
        let before = self.generations.len();
        while self
            .generations
            .front()
            .is_some_and(|first| first.slice < slice - GENERATIONS)
        {
            self.drop_oldest();
        }
        let room = self.ids_max - self.generation_ids_max();
        while self.generations.len() >= ALIVE_MAX || self.total() > room {
            self.evicted += self.drop_oldest() as u64;
        }
        if self.generations.len() < before {
            self.sweep();
        }
        self.open(slice)
    }

    fn total(&self) -> usize {
        self.generations
            .iter()
            .map(|generation| generation.ids)
            .sum()
    }

    fn open(&mut self, slice: i64) -> u8 {
        let tag = self.next_tag;
        self.next_tag = self.next_tag.wrapping_add(1);
        self.alive[usize::from(tag)] = true;
        self.generations
            .push_back(Generation { tag, slice, ids: 0 });
        tag
    }

    fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.generations.pop_front() else {
            return 0;
        };
        self.alive[usize::from(oldest.tag)] = false;
        oldest.ids
    }

    /// Removes the ids of dropped generations, and gives memory back when much became free.
    fn sweep(&mut self) {
        let alive = &self.alive;
        self.slots
            .retain(|slot| alive[usize::from(slot.tagged as u8)]);
        if self.slots.capacity() > KEEP_CAPACITY.max(self.slots.len() * 4) {
            self.slots.shrink_to(self.slots.len() * 2, |slot| slot.hash);
        }
    }

    #[cold]
    fn moved(generations: &mut VecDeque<Generation>, before: u8) {
        if let Some(old) = generations
            .iter_mut()
            .find(|generation| generation.tag == before)
        {
            old.ids -= 1;
        }
        if let Some(last) = generations.back_mut() {
            last.ids += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HORIZON_US: i64 = 800;

    fn id(number: u32) -> EventId {
        Identifier::default().identify("", "user", &number.to_string())
    }

    #[test]
    fn lengths_keep_the_parts_apart() {
        let mut identifier = Identifier::default();
        let ids = [
            ("a", "b", "c"),
            ("ab", "", "c"),
            ("a", "bc", ""),
            ("", "ab", "c"),
        ]
        .map(|(tenant, user, event)| identifier.identify(tenant, user, event));
        for (index, one) in ids.iter().enumerate() {
            assert!(!ids[index + 1..].contains(one));
        }
    }

    #[test]
    fn the_user_is_the_same_for_every_event() {
        let mut identifier = Identifier::default();
        identifier.identify("t", "u", "1");
        let one = identifier.user().to_vec();
        identifier.identify("t", "u", "another");
        assert_eq!(identifier.user(), one);
    }

    #[test]
    fn memory_stays_within_the_documented_bytes_per_id() {
        let mut set = Dedupe::new(HORIZON_US, 10_000_000);
        let mut range = (f64::MAX, 0f64);
        for number in 0..1_000_000u32 {
            set.insert(id(number), 1);
            if number > 100_000 {
                let bytes = set.memory_bytes() as f64 / set.len() as f64;
                range = (range.0.min(bytes), range.1.max(bytes));
            }
        }
        println!(
            "bytes an id: {range:?}; for 1 M ids: {}",
            set.memory_bytes()
        );
        assert!(range.0 > 16.0 && range.1 < 40.0, "{range:?}");
    }

    #[test]
    fn an_emptied_set_gives_its_memory_back() {
        let mut set = Dedupe::new(HORIZON_US, 10_000_000);
        for number in 0..200_000 {
            set.insert(id(number), 1);
        }
        set.insert(id(1), 1_000_000);
        assert_eq!(set.len(), 1);
        assert!(set.memory_bytes() < 100_000);
    }

    #[test]
    fn the_bound_holds_and_what_it_costs_is_counted() {
        let mut set = Dedupe::new(HORIZON_US, 800);
        for number in 0..10_000 {
            set.insert(id(number), i64::from(number) / 1000);
            assert!(set.len() <= 800);
        }
        assert_eq!(set.evicted() + set.len() as u64, 10_000);
        // The newest ids are still known, the oldest are gone.
        assert_eq!(set.insert(id(9_999), 10), Seen::Duplicate);
        assert_eq!(set.insert(id(0), 10), Seen::New);
    }

    /// The definition: whether the id occurred since the start of the horizon.
    fn model(log: &[(u32, i64)], at: usize) -> Seen {
        let start = Dedupe::new(HORIZON_US, 1).horizon_start_us(log[at].1);
        let seen = log[..at]
            .iter()
            .any(|(id, time)| *id == log[at].0 && *time >= start);
        if seen { Seen::Duplicate } else { Seen::New }
    }

    fn log() -> impl Strategy<Value = Vec<(u32, i64)>> {
        let step = prop_oneof![8 => 0i64..50, 1 => 0i64..2000];
        prop::collection::vec((0u32..30, step), 1..300).prop_map(|steps| {
            let mut now = 0;
            steps
                .into_iter()
                .map(|(id, step)| {
                    now += step;
                    (id, now)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn it_answers_as_its_definition(log in log()) {
            let mut set = Dedupe::new(HORIZON_US, 1_000_000);
            for at in 0..log.len() {
                let known = set.knows(id(log[at].0), log[at].1);
                prop_assert_eq!(known, model(&log, at) == Seen::Duplicate, "at {}", at);
                prop_assert_eq!(set.insert(id(log[at].0), log[at].1), model(&log, at), "at {}", at);
                prop_assert_eq!(set.total(), set.len());
            }
        }

        /// A set rebuilt from the horizon answers from then on as the one that never stopped.
        #[test]
        fn a_rebuilt_set_answers_alike(log in log(), cut in any::<prop::sample::Index>()) {
            let cut = cut.index(log.len());
            let mut continuous = Dedupe::new(HORIZON_US, 1_000_000);
            for (n, time) in &log[..cut] {
                continuous.insert(id(*n), *time);
            }
            let mut rebuilt = Dedupe::new(HORIZON_US, 1_000_000);
            let last = log[..cut].last().map_or(0, |(_, time)| *time);
            let start = rebuilt.horizon_start_us(last);
            for (n, time) in log[..cut].iter().filter(|(_, time)| *time >= start) {
                rebuilt.insert(id(*n), *time);
            }
            for (n, time) in &log[cut..] {
                prop_assert_eq!(rebuilt.insert(id(*n), *time), continuous.insert(id(*n), *time));
            }
        }
    }
}
