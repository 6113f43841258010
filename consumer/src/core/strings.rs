//! Interned strings of one batch: each distinct text is kept once and known by a number.
//!
//! A known text costs one hash and one comparison, and allocates nothing.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

/// The table of one batch.
#[derive(Debug, Default)]
pub struct Strings {
    arena: String,
    entries: Vec<Entry>,
    index: HashTable<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u64,
    start: u32,
    end: u32,
}

impl Strings {
    /// The number of `text`, which is added when it is new.
    #[inline]
    pub fn intern(&mut self, text: &str) -> u32 {
        let hash = xxh3_64(text.as_bytes());
        let (arena, entries) = (&self.arena, &self.entries);
        let same = |id: &u32| {
            let entry = entries[*id as usize];
            entry.hash == hash && arena[entry.start as usize..entry.end as usize] == *text
        };
        match self.index.find(hash, same) {
            Some(id) => *id,
            None => self.add(text, hash),
        }
    }

    #[cold]
    fn add(&mut self, text: &str, hash: u64) -> u32 {
        let id = self.entries.len() as u32;
        let start = self.arena.len() as u32;
        self.arena.push_str(text);
        self.entries.push(Entry {
            hash,
            start,
            end: self.arena.len() as u32,
        });
        let entries = &self.entries;
        self.index
            .insert_unique(hash, id, |id| entries[*id as usize].hash);
        id
    }

    /// The text with this number.
    pub fn get(&self, id: u32) -> &str {
        let entry = self.entries[id as usize];
        &self.arena[entry.start as usize..entry.end as usize]
    }

    /// The hash of the text with this number; the same in every batch.
    pub fn hash(&self, id: u32) -> u64 {
        self.entries[id as usize].hash
    }

    /// How many distinct texts there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Their length together.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// The texts in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.entries.len() as u32).map(|id| self.get(id))
    }

    /// Forgets every text and keeps the room.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.entries.clear();
        self.index.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equal_texts_share_a_number(texts in prop::collection::vec("[a-c]{0,3}", 0..60)) {
            let mut strings = Strings::default();
            let mut model = HashMap::new();
            for text in &texts {
                let next = model.len() as u32;
                let expected = *model.entry(text.clone()).or_insert(next);
                prop_assert_eq!(strings.intern(text), expected);
                prop_assert_eq!(strings.get(expected), text);
            }
            prop_assert_eq!(strings.len(), model.len());
            strings.clear();
            prop_assert_eq!(strings.intern("x"), 0);
        }
    }
}
