//! Ids that derive from what is imported: the content of the whole input, how it is read, and the
//! record's position in it.
//!
//! The same file gives the same ids, whether packed or not and whatever it is called, so that a
//! second import within the dedupe horizon is all duplicates. Two equal lines of one file are two
//! events.

use uuid::{Builder, Uuid, Variant, Version};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::{mapping::Mapping, records::Format};

/// What an import is, as far as its events are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    content: u128,
    format: Format,
    mapping: String,
    seed: u128,
}

impl Identity {
    /// The identity of content that is read in this way.
    pub fn new(content: u128, format: Format, mapping: &Mapping) -> Self {
        let mapping = mapping.canonical();
        let mut hash = Xxh3::new();
        hash.update(&content.to_le_bytes());
        hash.update(format.name().as_bytes());
        hash.update(b"\0");
        hash.update(mapping.as_bytes());
        Self {
            content,
            format,
            mapping,
            seed: hash.digest128(),
        }
    }

    /// The id of the record that starts on a line.
    pub fn event_id(&self, line: u64) -> String {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&self.seed.to_le_bytes());
        bytes[16..].copy_from_slice(&line.to_le_bytes());
        let id: Uuid = Builder::from_u128(xxh3_128(&bytes))
            .with_variant(Variant::RFC4122)
            .with_version(Version::Custom)
            .into_uuid();
        id.hyphenated().to_string()
    }

    /// The key in the import journal, together with the system it goes into.
    pub fn journal_key(&self, system: &str) -> String {
        let Self {
            content,
            format,
            mapping,
            ..
        } = self;
        format!("{content:032x} {} {mapping} {system}", format.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_the_same_for_the_same_file_only() {
        let plain = Identity::new(1, Format::Combined, &Mapping::default());
        let ids: HashSet<String> = (1..=1000).map(|line| plain.event_id(line)).collect();
        assert_eq!(ids.len(), 1000);
        assert_eq!(plain.event_id(7), plain.clone().event_id(7));
        let mapping = Mapping::parse(&[String::from("user_id=a")], &[]).expect("valid");
        let others = [
            Identity::new(2, Format::Combined, &Mapping::default()),
            Identity::new(1, Format::Ndjson, &Mapping::default()),
            Identity::new(1, Format::Combined, &mapping),
        ];
        assert!(others.iter().all(|other| !ids.contains(&other.event_id(7))));
    }

    #[test]
    fn ids_never_change_between_versions() {
        let identity = Identity::new(0x1234, Format::Combined, &Mapping::default());
        assert_eq!(identity.event_id(1), "ffe24c1d-c12f-833f-a4db-8308b4bf3ba8");
    }
}
