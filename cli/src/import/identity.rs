//! Ids that derive from what is imported: the content of the whole input, how it is read, and the
//! record's position in it.
//!
//! The same file gives the same ids, whether packed or not and whatever it is called, so that a
//! second import within the dedupe horizon is all duplicates. Two equal lines of one file are two
//! events.

use uuid::{Builder, Uuid, Variant, Version};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::records::{Format, ReadOptions};

/// What an import is, as far as its events are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    content: u128,
    format: Format,
    reading: String,
    seed: u128,
}

impl Identity {
    /// The identity of content that is read in this way.
    pub fn new(content: u128, options: &ReadOptions) -> Self {
        let format = options.format;
        let mut reading = options.mapping.canonical();
        // The comma goes without saying, so that ids do not change.
        if format == Format::Csv && options.delimiter != b',' {
            reading.push_str(&format!(" delimiter={}", options.delimiter));
        }
        let mut hash = Xxh3::new();
        hash.update(&content.to_le_bytes());
        hash.update(format.name().as_bytes());
        hash.update(b"\0");
        hash.update(reading.as_bytes());
        Self {
            content,
            format,
            reading,
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

    /// The key in the import journal, beside the system it goes into.
    pub fn journal_key(&self) -> String {
        let Self {
            content,
            format,
            reading,
            ..
        } = self;
        format!("{content:032x} {} {reading}", format.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::import::mapping::Mapping;

    fn identity(content: u128, format: Format, mapping: Mapping, delimiter: u8) -> Identity {
        let options = ReadOptions {
            format,
            mapping,
            delimiter,
            record_bytes_max: 1,
        };
        Identity::new(content, &options)
    }

    #[test]
    fn ids_are_the_same_for_the_same_file_only() {
        let plain = identity(1, Format::Csv, Mapping::default(), b',');
        let ids: HashSet<String> = (1..=1000).map(|line| plain.event_id(line)).collect();
        assert_eq!(ids.len(), 1000);
        assert_eq!(plain.event_id(7), plain.clone().event_id(7));
        let mapping = Mapping::parse(&[String::from("user_id=a")], &[]).expect("valid");
        let others = [
            identity(2, Format::Csv, Mapping::default(), b','),
            identity(1, Format::Ndjson, Mapping::default(), b','),
            identity(1, Format::Csv, mapping, b','),
            identity(1, Format::Csv, Mapping::default(), b';'),
        ];
        for other in others {
            assert!(!ids.contains(&other.event_id(7)), "{other:?}");
            assert_ne!(other.journal_key(), plain.journal_key());
        }
        // Where there are no columns, what would stand between them does not matter.
        let combined = |delimiter| identity(1, Format::Combined, Mapping::default(), delimiter);
        assert_eq!(combined(b','), combined(b';'));
    }

    #[test]
    fn ids_never_change_between_versions() {
        let identity = identity(0x1234, Format::Combined, Mapping::default(), b',');
        assert_eq!(identity.event_id(1), "ffe24c1d-c12f-833f-a4db-8308b4bf3ba8");
    }
}
