//! Accumulates one open batch: the cells of every series, counts per user and page, and what the
//! batch says of itself. It is the hot path: for a key that the batch knows, an event costs a few
//! hash look-ups and no allocation.
//!
//! Cells stand in the order in which their first event came, so equal input gives equal batches.

use std::sync::Arc;

use hashbrown::HashTable;
use streamgauge_chain::{
    canary,
    sketch::{Quantiles, UserHash, Users},
};

use super::{
    keys::{KeyBudget, OTHER},
    series::{DIMENSIONS_MAX, Field, Plan},
    strings::Strings,
    validate::Event,
};

const MICROS: i64 = 1_000_000;
const HOUR_S: i64 = 3_600;

/// The dimensions of a cell, as numbers of strings; unused places are zero.
pub type Key = [u32; DIMENSIONS_MAX];

/// What was added to one key of one series in one base bucket.
#[derive(Debug)]
pub struct Cell {
    /// Start of the bucket, seconds.
    pub bucket_s: i64,
    /// The key; as many places count as the series has dimensions.
    pub key: Key,
    /// Events.
    pub count: u64,
    /// Events with a value.
    pub value_count: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Least value.
    pub min: f64,
    /// Greatest value.
    pub max: f64,
    /// Distinct users, where the series wants them.
    pub users: Option<Users>,
    /// Quantiles of the values, where the series wants them and there are values.
    pub quantiles: Option<Quantiles>,
}

/// Events of one user, page and type.
#[derive(Clone, Copy, Debug)]
pub struct UserPage {
    /// Number of the string.
    pub user_id: u32,
    /// Number of the string.
    pub page_url: u32,
    /// Number of the string.
    pub event_type: u32,
    /// Events.
    pub count: u64,
    /// Latest event time, microseconds.
    pub last_us: i64,
}

/// Leads from a key to its cell. Several keys lead to one cell when they were folded.
#[derive(Clone, Copy, Debug)]
struct Lead {
    series: u16,
    bucket_s: i64,
    key: Key,
    cell: u32,
}

/// Upper bounds of encoded sizes, for closing a batch in time.
mod size {
    /// A cell without its sketches and strings.
    pub const CELL: usize = 72;
    /// A count per user and page.
    pub const USER_PAGE: usize = 40;
    /// What a string costs beside its bytes.
    pub const STRING: usize = 4;
    /// A per-type count.
    pub const TYPE: usize = 16;
    /// The headers of the two sketches.
    pub const USERS_EMPTY: usize = 48;
    pub const QUANTILES_EMPTY: usize = 96;
    /// A sketch of users grows by 4 bytes an event until it is a table of registers.
    pub const USERS_GROWING: u64 = 800;
    /// A sketch of quantiles grows by 8 bytes a value until it compacts.
    pub const QUANTILES_GROWING: u64 = 800;
    /// Two doubles, two varints and room for what stands once per batch.
    pub const BATCH: usize = 512;
}

/// One open batch of one partition; reused for the next when it is closed.
#[derive(Debug)]
pub struct Aggregator {
    plan: Arc<Plan>,
    budget: KeyBudget,
    key_bytes_max: usize,
    pub(super) strings: Strings,
    pub(super) cells: Vec<Vec<Cell>>,
    leads: HashTable<Lead>,
    pub(super) user_pages: Vec<UserPage>,
    user_page_index: HashTable<u32>,
    pub(super) types: Vec<u64>,
    pub(super) oldest_received_us: i64,
    bytes: usize,
    folded: u64,
    slots: Vec<u32>,
    properties: Vec<String>,
}

impl Aggregator {
    /// An empty batch. Keys longer than `key_bytes_max` are cut, at most `keys_max` are kept
    /// apart per series and hour of event time.
    pub fn new(plan: Arc<Plan>, keys_max: usize, key_bytes_max: usize) -> Self {
        Self {
            budget: KeyBudget::new(keys_max),
            key_bytes_max,
            strings: Strings::default(),
            cells: plan.series.iter().map(|_| Vec::new()).collect(),
            leads: HashTable::new(),
            user_pages: Vec::new(),
            user_page_index: HashTable::new(),
            types: Vec::new(),
            oldest_received_us: 0,
            bytes: size::BATCH,
            folded: 0,
            slots: vec![0; plan.fields.len()],
            properties: Vec::new(),
            plan,
        }
    }

    /// The compiled series.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Adds an event. `user` is its user, hashed for the sketches.
    pub fn add(&mut self, event: &Event<'_>, user: UserHash) {
        let event_type = self.strings.intern(event.event_type);
        self.count_type(event_type);
        let bucket_s = event.occurred_at_us.div_euclid(MICROS);
        if event.event_type == canary::EVENT_TYPE {
            let mut key = Key::default();
            key[0] = self.strings.intern(cut(event.user_id, self.key_bytes_max));
            self.add_to_cell(self.plan.canary(), bucket_s, key, None, user);
        } else {
            self.add_to_all_series(event, event_type, bucket_s, user);
        }
        if self.oldest_received_us == 0 || event.received_at_us < self.oldest_received_us {
            self.oldest_received_us = event.received_at_us;
        }
    }

    fn add_to_all_series(
        &mut self,
        event: &Event<'_>,
        event_type: u32,
        bucket_s: i64,
        user: UserHash,
    ) {
        self.intern_fields(event, event_type);
        for series in 0..self.plan.canary() {
            let mut key = Key::default();
            for (place, dimension) in key.iter_mut().zip(&self.plan.series[series].dimensions) {
                *place = self.slots[*dimension];
            }
            self.add_to_cell(series, bucket_s, key, event.value, user);
        }
        if self.plan.user_pages {
            self.count_user_page(event, event_type);
        }
    }

    /// An upper bound of the batch's encoded size.
    pub fn encoded_bytes_max(&self) -> usize {
        self.bytes + self.strings.bytes() + size::STRING * self.strings.len()
    }

    /// How many keys were folded into `(other)` in this batch, once per key and bucket.
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// Events by type; adds up to the events that were added.
    pub fn type_counts(&self) -> impl Iterator<Item = (&str, u64)> {
        let counted = self
            .types
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0);
        counted.map(|(id, count)| (self.strings.get(id as u32), *count))
    }

    /// Starts the next batch in the same memory.
    pub fn clear(&mut self) {
        self.strings.clear();
        self.cells.iter_mut().for_each(Vec::clear);
        self.leads.clear();
        self.user_pages.clear();
        self.user_page_index.clear();
        self.types.clear();
        self.oldest_received_us = 0;
        self.bytes = size::BATCH;
        self.folded = 0;
    }

    fn count_type(&mut self, event_type: u32) {
        let place = event_type as usize;
        if self.types.len() <= place {
            self.types.resize(place + 1, 0);
        }
        if self.types[place] == 0 {
            self.bytes += size::TYPE;
        }
        self.types[place] += 1;
    }

    /// Looks up the text of every field that any series groups by, once per event.
    fn intern_fields(&mut self, event: &Event<'_>, event_type: u32) {
        if self.plan.properties() > 0 {
            self.plan.read_properties(event, &mut self.properties);
        }
        for (slot, field) in self.slots.iter_mut().zip(&self.plan.fields) {
            let text = match field {
                Field::EventType => {
                    *slot = event_type;
                    continue;
                }
                Field::PageUrl => event.page_url,
                Field::UserId => event.user_id,
                Field::SessionId => event.session_id,
                Field::Tenant => event.tenant,
                Field::Property(place) => &self.properties[*place],
            };
            *slot = self.strings.intern(cut(text, self.key_bytes_max));
        }
    }

    fn add_to_cell(
        &mut self,
        series: usize,
        bucket_s: i64,
        key: Key,
        value: Option<f64>,
        user: UserHash,
    ) {
        let hash = hash_lead(series as u16, bucket_s, &key);
        let same = |lead: &Lead| {
            lead.key == key && lead.bucket_s == bucket_s && usize::from(lead.series) == series
        };
        let index = match self.leads.find(hash, same) {
            Some(lead) => lead.cell,
            None => self.open_cell(series, bucket_s, key, hash),
        };
        let cell = &mut self.cells[series][index as usize];
        cell.count += 1;
        if let Some(users) = &mut cell.users {
            users.insert(user);
            if cell.count < size::USERS_GROWING {
                self.bytes += 4;
            }
        }
        if let Some(value) = value {
            let wanted = self.plan.series[series].quantiles;
            self.bytes += add_value(cell, value, wanted);
        }
    }

    /// Finds room for a key that this batch meets for the first time in this bucket.
    #[cold]
    fn open_cell(&mut self, series: usize, bucket_s: i64, key: Key, hash: u64) -> u32 {
        let dimensions = self.plan.series[series].dimensions.len();
        let hour = bucket_s.div_euclid(HOUR_S);
        let known = dimensions == 0
            || self
                .budget
                .admit(series as u16, hour, self.key_hash(&key[..dimensions]));
        let cell = if known {
            self.push_cell(series, bucket_s, key)
        } else {
            self.folded += 1;
            self.other_cell(series, bucket_s, dimensions)
        };
        self.lead_to(
            Lead {
                series: series as u16,
                bucket_s,
                key,
                cell,
            },
            hash,
        );
        cell
    }

    /// The hash of a key's texts; unlike their numbers it means the same in every batch.
    fn key_hash(&self, key: &[u32]) -> u64 {
        key.iter()
            .fold(0, |hash, id| mix(hash, self.strings.hash(*id)))
    }

    fn other_cell(&mut self, series: usize, bucket_s: i64, dimensions: usize) -> u32 {
        let mut key = Key::default();
        key[..dimensions].fill(self.strings.intern(OTHER));
        let hash = hash_lead(series as u16, bucket_s, &key);
        let same = |lead: &Lead| {
            lead.key == key && lead.bucket_s == bucket_s && usize::from(lead.series) == series
        };
        if let Some(lead) = self.leads.find(hash, same) {
            return lead.cell;
        }
        let cell = self.push_cell(series, bucket_s, key);
        self.lead_to(
            Lead {
                series: series as u16,
                bucket_s,
                key,
                cell,
            },
            hash,
        );
        cell
    }

    fn lead_to(&mut self, lead: Lead, hash: u64) {
        self.leads.insert_unique(hash, lead, |lead| {
            hash_lead(lead.series, lead.bucket_s, &lead.key)
        });
    }

    fn push_cell(&mut self, series: usize, bucket_s: i64, key: Key) -> u32 {
        let users = self.plan.series[series].distinct_users.then(Users::new);
        self.bytes += size::CELL
            + if users.is_some() {
                size::USERS_EMPTY
            } else {
                0
            };
        let cells = &mut self.cells[series];
        cells.push(Cell {
            bucket_s,
            key,
            count: 0,
            value_count: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            users,
            quantiles: None,
        });
        (cells.len() - 1) as u32
    }

    fn count_user_page(&mut self, event: &Event<'_>, event_type: u32) {
        let user_id = self.strings.intern(event.user_id);
        let page_url = self.strings.intern(cut(event.page_url, self.key_bytes_max));
        let hash = hash_user_page(user_id, page_url, event_type);
        let pages = &mut self.user_pages;
        let same = |index: &u32| {
            let page = &pages[*index as usize];
            page.user_id == user_id && page.page_url == page_url && page.event_type == event_type
        };
        if let Some(index) = self.user_page_index.find(hash, same) {
            let page = &mut pages[*index as usize];
            page.count += 1;
            page.last_us = page.last_us.max(event.occurred_at_us);
            return;
        }
        let last_us = event.occurred_at_us;
        pages.push(UserPage {
            user_id,
            page_url,
            event_type,
            count: 1,
            last_us,
        });
        self.bytes += size::USER_PAGE;
        self.user_page_index
            .insert_unique(hash, (pages.len() - 1) as u32, |index| {
                let page = &pages[*index as usize];
                hash_user_page(page.user_id, page.page_url, page.event_type)
            });
    }
}

/// Adds a value to a cell; returns by how much its encoded form may have grown.
fn add_value(cell: &mut Cell, value: f64, quantiles_wanted: bool) -> usize {
    cell.value_count += 1;
    cell.sum += value;
    cell.min = cell.min.min(value);
    cell.max = cell.max.max(value);
    if !quantiles_wanted {
        return 0;
    }
    let mut grown = 0;
    let quantiles = cell.quantiles.get_or_insert_with(|| {
        grown += size::QUANTILES_EMPTY;
        Quantiles::new()
    });
    quantiles.insert(value);
    if cell.value_count < size::QUANTILES_GROWING {
        grown + 8
    } else {
        grown
    }
}

/// The text, or as much of its start as fits.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Folds a 128-bit product; every bit of the input reaches every bit of the result.
#[inline]
fn mix(hash: u64, value: u64) -> u64 {
    let product =
        u128::from(hash ^ 0x9e37_79b9_7f4a_7c15) * u128::from(value ^ 0xe703_7ed1_a0b4_28db);
    (product as u64) ^ ((product >> 64) as u64)
}

#[inline]
fn hash_lead(series: u16, bucket_s: i64, key: &Key) -> u64 {
    let low = u64::from(key[0]) | u64::from(key[1]) << 32;
    let high = u64::from(key[2]) | u64::from(key[3]) << 32;
    let place = bucket_s.cast_unsigned() ^ u64::from(series) << 48;
    mix(mix(mix(0, place), low), high)
}

#[inline]
fn hash_user_page(user_id: u32, page_url: u32, event_type: u32) -> u64 {
    let pair = u64::from(user_id) | u64::from(page_url) << 32;
    mix(mix(1, pair), u64::from(event_type))
}

#[cfg(test)]
#[path = "aggregate_tests.rs"]
mod tests;
