//! Keys and series by name: each text is held once, however many cells refer to it.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use hashbrown::{DefaultHashBuilder, HashTable};
use streamgauge_chain::canary;

/// The values of a series' dimensions, in order.
#[derive(Debug)]
pub struct Key {
    values: Vec<Box<str>>,
    hash: u64,
}

impl Key {
    /// The values.
    pub fn values(&self) -> &[Box<str>] {
        &self.values
    }

    /// The values as owned strings, for an answer.
    pub fn to_strings(&self) -> Vec<String> {
        self.values.iter().map(|value| value.to_string()).collect()
    }

    /// Hash of the values; the same within one process only.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The text under which the store keeps the key: a JSON array, which no value can forge.
    pub fn to_text(&self) -> String {
        serde_json::to_string(&self.values).expect("strings are always JSON")
    }

    fn size_bytes(&self) -> usize {
        size_of::<Self>()
            + self
                .values
                .iter()
                .map(|value| value.len() + 16)
                .sum::<usize>()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.hash == other.hash && self.values == other.values)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Keys in use. Clones share the hash function, so that keys of one are found among those of the other.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    table: HashTable<Arc<Key>>,
    hasher: DefaultHashBuilder,
}

impl Keys {
    /// No keys yet, with the hash function of `self`.
    pub fn sibling(&self) -> Self {
        Self {
            table: HashTable::new(),
            hasher: self.hasher.clone(),
        }
    }

    /// The key of these values.
    pub fn intern(&mut self, values: &[&str]) -> Arc<Key> {
        let hash = self.hash_of(values);
        let same = |key: &Arc<Key>| {
            key.hash == hash
                && key.values.len() == values.len()
                && key
                    .values
                    .iter()
                    .zip(values)
                    .all(|(one, other)| **one == **other)
        };
        if let Some(key) = self.table.find(hash, same) {
            return Arc::clone(key);
        }
        let values = values.iter().map(|value| Box::from(*value)).collect();
        let key = Arc::new(Key { values, hash });
        self.table
            .insert_unique(hash, Arc::clone(&key), |key| key.hash);
        key
    }

    /// The key of a store's text; `None` when it is not one.
    pub fn from_text(&mut self, text: &str) -> Option<Arc<Key>> {
        let values: Vec<String> = serde_json::from_str(text).ok()?;
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        Some(self.intern(&values))
    }

    /// Forgets the keys that no cell refers to.
    pub fn forget_unused(&mut self) {
        self.table.retain(|key| Arc::strong_count(key) > 1);
    }

    /// Size of the keys in memory.
    pub fn size_bytes(&self) -> usize {
        self.table.iter().map(|key| key.size_bytes() + 8).sum()
    }

    fn hash_of(&self, values: &[&str]) -> u64 {
        self.hasher.hash_one(values)
    }
}

/// Index of a series in [`SeriesNames`].
pub type SeriesId = usize;

/// The series seen so far, by name. There are as many as are configured: a handful.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesNames(Vec<Arc<str>>);

impl SeriesNames {
    /// The series of a name.
    pub fn id(&self, name: &str) -> Option<SeriesId> {
        self.0.iter().position(|known| **known == *name)
    }

    /// The names, in order of first sight.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter()
    }

    /// The name of a series.
    pub fn name(&self, id: SeriesId) -> Option<&Arc<str>> {
        self.0.get(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a name that is not known yet.
    pub fn push(&mut self, name: &str) -> SeriesId {
        self.0.push(Arc::from(name));
        self.0.len() - 1
    }
}

/// The dimensions that a series' name stands for: `all` has none, `event_type,page_url` has two.
pub fn dimensions_of(series: &str) -> Vec<&str> {
    if series == canary::ALL {
        Vec::new()
    } else {
        series.split(',').collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_survive_the_store(values in prop::collection::vec(".{0,8}", 0..4)) {
            let mut keys = Keys::default();
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let key = keys.intern(&values);
            let again = keys.from_text(&key.to_text()).expect("own text");
            prop_assert!(Arc::ptr_eq(&key, &again));
            let mut sibling = keys.sibling();
            prop_assert_eq!(&*sibling.intern(&values), &*key);
        }
    }

    #[test]
    fn values_cannot_forge_another_key() {
        let mut keys = Keys::default();
        let keys: Vec<_> = [&["a", "b"][..], &["a\",\"b"], &["ab"], &["a", "", "b"], &[]]
            .iter()
            .map(|values| keys.intern(values).to_text())
            .collect();
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn unused_keys_are_forgotten() {
        let mut keys = Keys::default();
        let held = keys.intern(&["held"]);
        keys.intern(&["dropped"]);
        keys.forget_unused();
        assert_eq!(keys.table.len(), 1);
        assert!(Arc::ptr_eq(&held, &keys.intern(&["held"])));
    }
}
