//! Hands out producer ids that are never used twice, not even across crashes:
//! a block is reserved on disk before its first id goes out.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::durable;

const BLOCK: i64 = 1_000;

pub struct ProducerIds {
    path: PathBuf,
    range: Mutex<Range>,
}

struct Range {
    next: i64,
    reserved: i64,
}

impl ProducerIds {
    pub fn open(data_dir: &Path) -> io::Result<ProducerIds> {
        let path = data_dir.join("producer-ids");
        let reserved = match durable::read_if_present(&path)? {
            Some(bytes) => String::from_utf8_lossy(&bytes)
                .trim()
                .parse()
                .map_err(io::Error::other)?,
            None => 1,
        };
        let range = Mutex::new(Range {
            next: reserved,
            reserved,
        });
        Ok(ProducerIds { path, range })
    }

    /// A fresh id. Waits for the disk once per block.
    pub fn allocate(&self) -> io::Result<i64> {
        let mut range = self.range.lock();
        if range.next == range.reserved {
            let reserved = range.reserved + BLOCK;
            durable::write_atomic(&self.path, reserved.to_string().as_bytes())?;
            range.reserved = reserved;
        }
        let id = range.next;
        range.next += 1;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_never_repeat_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = HashSet::new();
        for _ in 0..3 {
            let ids = ProducerIds::open(dir.path()).unwrap();
            for _ in 0..1_500 {
                assert!(seen.insert(ids.allocate().unwrap()));
            }
        }
    }
}
