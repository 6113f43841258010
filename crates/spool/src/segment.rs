//! Segments by their names: `ID-FIRST-SALT.seg`, all in hexadecimal.
//!
//! Segments are read in the order of their ids. A segment ends where the next one's first number begins: frames beyond
//! were never confirmed. A segment with damage ends as `….kept` and is left to the operator; until it is drained an empty
//! file `….keep` beside it says so, over restarts.

use std::path::{Path, PathBuf};

const SEGMENT: &str = "seg";
const KEPT: &str = "kept";
const MARK: &str = "keep";

/// What a segment's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub id: u64,
    /// The number of its first record.
    pub first: u64,
    /// What its checksums begin with.
    pub salt: u64,
}

impl Name {
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.{SEGMENT}", self.stem()))
    }

    /// Where it is left when it holds damage.
    pub fn kept_path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.{KEPT}", self.stem()))
    }

    /// What says that it is to be left.
    pub fn mark_path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.{MARK}", self.stem()))
    }

    fn stem(&self) -> String {
        format!("{:016x}-{:016x}-{:016x}", self.id, self.first, self.salt)
    }

    fn parse(stem: &str) -> Option<Self> {
        let mut parts = stem.split('-');
        let mut next = || {
            let part = parts.next().filter(|part| part.len() == 16)?;
            u64::from_str_radix(part, 16).ok()
        };
        let name = Self {
            id: next()?,
            first: next()?,
            salt: next()?,
        };
        (parts.next().is_none() && name.stem() == stem).then_some(name)
    }
}

/// What a file of the folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Segment(Name),
    Kept(Name),
    Mark(Name),
}

/// What a file is by its name; none when it is not a segment.
pub fn kind(path: &Path) -> Option<Kind> {
    let name = Name::parse(path.file_stem()?.to_str()?)?;
    match path.extension()?.to_str()? {
        SEGMENT => Some(Kind::Segment(name)),
        KEPT => Some(Kind::Kept(name)),
        MARK => Some(Kind::Mark(name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_was_given() {
        let name = Name {
            id: 7,
            first: u64::MAX,
            salt: 0xab,
        };
        let dir = Path::new("/spool");
        assert_eq!(kind(&name.path(dir)), Some(Kind::Segment(name)));
        assert_eq!(kind(&name.kept_path(dir)), Some(Kind::Kept(name)));
        assert_eq!(kind(&name.mark_path(dir)), Some(Kind::Mark(name)));
    }

    #[test]
    fn other_files_are_no_segments() {
        for other in ["position", "spool.lock", "1-2-3.seg", "x.seg", "topic.tmp"] {
            assert_eq!(kind(Path::new(other)), None, "{other}");
        }
        let upper = "000000000000000A-0000000000000000-0000000000000000.seg";
        assert_eq!(kind(Path::new(upper)), None);
    }
}
