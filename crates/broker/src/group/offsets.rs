//! Committed offsets: in memory, and in a compact append-only log of their own
//! that is replayed at start. Every entry carries a checksum; a torn end is cut.
//! One commit request is one entry, so it is kept whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use parking_lot::Mutex;
use tracing::warn;

use crate::durable;
use crate::log::segment::open_log;

/// The log is rewritten when it is this many times larger than what lives.
const COMPACT_RATIO: u64 = 4;
const COMPACT_BYTES_MIN: u64 = 1024 * 1024;
const ENTRY_PREFIX: usize = 8;

const OP_COMMIT: u8 = 1;
const OP_REMOVE_GROUP: u8 = 2;
const OP_REMOVE_TOPIC: u8 = 3;
const OP_REMOVE_OFFSET: u8 = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
    pub committed_ms: i64,
}

type Offsets = BTreeMap<(String, i32), Committed>;

/// One change, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Commit(String, String, i32, Committed),
    RemoveGroup(String),
    RemoveTopic(String),
    RemoveOffset(String, String, i32),
}

pub struct OffsetStore {
    dir: PathBuf,
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    /// The folder may not know the file's name for good.
    is_new_file: bool,
    size: u64,
    /// What the live offsets would take, freshly written.
    live_bytes: u64,
    groups: HashMap<String, Offsets>,
}

impl OffsetStore {
    pub fn open(data_dir: &Path) -> io::Result<OffsetStore> {
        let path = data_dir.join("committed-offsets.log");
        durable::remove_if_present(&path.with_extension("tmp"))?;
        let bytes = durable::read_if_present(&path)?.unwrap_or_default();
        let mut groups = HashMap::new();
        let size = replay(&bytes, &mut groups);
        if size < bytes.len() {
            let cut_bytes = bytes.len() - size;
            warn!(path = %path.display(), cut_bytes, "cut a torn end off the committed offsets");
        }
        let file = open_log(&path)?;
        file.set_len(size as u64)?;
        let inner = Inner {
            file,
            is_new_file: true,
            size: size as u64,
            live_bytes: live_bytes(&groups),
            groups,
        };
        Ok(OffsetStore {
            dir: data_dir.to_path_buf(),
            path,
            inner: Mutex::new(inner),
        })
    }

    /// Stores a group's offsets, all or none.
    pub fn commit(
        &self,
        group: &str,
        offsets: Vec<(String, i32, Committed)>,
        sync: bool,
    ) -> io::Result<()> {
        let ops: Vec<Op> = offsets
            .into_iter()
            .map(|(topic, partition, committed)| {
                Op::Commit(group.to_owned(), topic, partition, committed)
            })
            .collect();
        self.apply(&ops, sync)
    }

    pub fn remove_group(&self, group: &str) -> io::Result<()> {
        self.apply(&[Op::RemoveGroup(group.to_owned())], true)
    }

    pub fn remove_topic(&self, topic: &str) -> io::Result<()> {
        self.apply(&[Op::RemoveTopic(topic.to_owned())], true)
    }

    /// Removes the offsets committed before `limit_ms` of groups that are
    /// `idle`.
    pub fn expire(&self, limit_ms: i64, idle: impl Fn(&str) -> bool) -> io::Result<()> {
        let expired: Vec<Op> = {
            let inner = self.inner.lock();
            let idle_groups = inner.groups.iter().filter(|(group, _)| idle(group));
            idle_groups
                .flat_map(|(group, offsets)| {
                    let old = offsets.iter().filter(|(_, c)| c.committed_ms < limit_ms);
                    old.map(|((topic, partition), _)| {
                        Op::RemoveOffset(group.clone(), topic.clone(), *partition)
                    })
                })
                .collect()
        };
        match expired.is_empty() {
            true => Ok(()),
            false => self.apply(&expired, false),
        }
    }

    pub fn get(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        let key = (topic.to_owned(), partition);
        self.inner.lock().groups.get(group)?.get(&key).cloned()
    }

    pub fn all(&self, group: &str) -> Vec<((String, i32), Committed)> {
        let inner = self.inner.lock();
        let offsets = inner.groups.get(group).into_iter().flatten();
        offsets
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    pub fn groups(&self) -> Vec<String> {
        self.inner.lock().groups.keys().cloned().collect()
    }

    pub fn has_group(&self, group: &str) -> bool {
        self.inner.lock().groups.contains_key(group)
    }

    pub fn sync(&self) -> io::Result<()> {
        let file = {
            let mut inner = self.inner.lock();
            self.sync_name(&mut inner)?;
            inner.file.try_clone()?
        };
        file.sync_data()
    }

    /// Makes the file's name durable, without which its content is not.
    fn sync_name(&self, inner: &mut Inner) -> io::Result<()> {
        if inner.is_new_file {
            durable::sync_dir(&self.dir)?;
            inner.is_new_file = false;
        }
        Ok(())
    }

    fn apply(&self, ops: &[Op], sync: bool) -> io::Result<()> {
        let entry = encode_entry(ops)?;
        let mut inner = self.inner.lock();
        let size = inner.size;
        if let Err(error) = inner.file.write_all_at(&entry, size) {
            // Cut the torn entry so that later ones are not lost behind it.
            let _ = inner.file.set_len(size);
            return Err(error);
        }
        inner.size += entry.len() as u64;
        for op in ops {
            apply_op(&mut inner.groups, op.clone());
        }
        if sync {
            inner.file.sync_data()?;
            self.sync_name(&mut inner)?;
        }
        if inner.size > COMPACT_BYTES_MIN && inner.size > COMPACT_RATIO * inner.live_bytes {
            // What was asked for is stored either way.
            if let Err(error) = self.compact(&mut inner) {
                warn!(%error, "compacting the committed offsets failed");
            }
        }
        Ok(())
    }

    /// Rewrites the log with nothing but what lives.
    fn compact(&self, inner: &mut Inner) -> io::Result<()> {
        inner.live_bytes = live_bytes(&inner.groups);
        if inner.size <= COMPACT_RATIO * inner.live_bytes {
            return Ok(());
        }
        let mut bytes = Vec::new();
        for (group, offsets) in &inner.groups {
            let ops: Vec<Op> = offsets
                .iter()
                .map(|((topic, partition), committed)| {
                    Op::Commit(group.clone(), topic.clone(), *partition, committed.clone())
                })
                .collect();
            bytes.extend(encode_entry(&ops)?);
        }
        // From here on the name stands for the new file, whatever else fails.
        inner.file = durable::replace(&self.path, &bytes)?;
        inner.is_new_file = true;
        inner.size = bytes.len() as u64;
        inner.live_bytes = inner.size;
        self.sync_name(inner)
    }
}

fn live_bytes(groups: &HashMap<String, Offsets>) -> u64 {
    let entries = groups.iter().flat_map(|(group, offsets)| {
        offsets.iter().map(move |((topic, _), committed)| {
            (group.len() + topic.len() + committed.metadata.len() + 40) as u64
        })
    });
    entries.sum()
}

fn apply_op(groups: &mut HashMap<String, Offsets>, op: Op) {
    match op {
        Op::Commit(group, topic, partition, committed) => {
            let offsets = groups.entry(group).or_default();
            offsets.insert((topic, partition), committed);
        }
        Op::RemoveGroup(group) => {
            groups.remove(&group);
        }
        Op::RemoveTopic(topic) => {
            for offsets in groups.values_mut() {
                offsets.retain(|(other, _), _| *other != topic);
            }
            groups.retain(|_, offsets| !offsets.is_empty());
        }
        Op::RemoveOffset(group, topic, partition) => {
            if let Some(offsets) = groups.get_mut(&group) {
                offsets.remove(&(topic, partition));
                if offsets.is_empty() {
                    groups.remove(&group);
                }
            }
        }
    }
}

/// Length, checksum, then the operations.
fn encode_entry(ops: &[Op]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    for op in ops {
        encode_op(&mut body, op)?;
    }
    let mut entry = Vec::with_capacity(ENTRY_PREFIX + body.len());
    entry.put_u32(u32::try_from(body.len()).map_err(io::Error::other)?);
    entry.put_u32(crc32c::crc32c(&body));
    entry.extend(body);
    Ok(entry)
}

fn encode_op(out: &mut Vec<u8>, op: &Op) -> io::Result<()> {
    match op {
        Op::Commit(group, topic, partition, committed) => {
            out.put_u8(OP_COMMIT);
            put_string(out, group)?;
            put_string(out, topic)?;
            out.put_i32(*partition);
            out.put_i64(committed.offset);
            out.put_i32(committed.leader_epoch);
            out.put_i64(committed.committed_ms);
            put_string(out, &committed.metadata)
        }
        Op::RemoveGroup(group) => {
            out.put_u8(OP_REMOVE_GROUP);
            put_string(out, group)
        }
        Op::RemoveTopic(topic) => {
            out.put_u8(OP_REMOVE_TOPIC);
            put_string(out, topic)
        }
        Op::RemoveOffset(group, topic, partition) => {
            out.put_u8(OP_REMOVE_OFFSET);
            put_string(out, group)?;
            put_string(out, topic)?;
            out.put_i32(*partition);
            Ok(())
        }
    }
}

/// Applies every whole entry; returns where the first bad one starts.
fn replay(bytes: &[u8], groups: &mut HashMap<String, Offsets>) -> usize {
    let mut sound = 0;
    while let Some((ops, len)) = decode_entry(&bytes[sound..]) {
        for op in ops {
            apply_op(groups, op);
        }
        sound += len;
    }
    sound
}

fn decode_entry(mut bytes: &[u8]) -> Option<(Vec<Op>, usize)> {
    let length = bytes.try_get_u32().ok()? as usize;
    let crc = bytes.try_get_u32().ok()?;
    let mut body = bytes.get(..length)?;
    if length == 0 || crc32c::crc32c(body) != crc {
        return None;
    }
    let mut ops = Vec::new();
    while body.has_remaining() {
        ops.push(decode_op(&mut body)?);
    }
    Some((ops, ENTRY_PREFIX + length))
}

fn decode_op(body: &mut &[u8]) -> Option<Op> {
    match body.try_get_u8().ok()? {
        OP_COMMIT => {
            let group = get_string(body)?;
            let topic = get_string(body)?;
            let partition = body.try_get_i32().ok()?;
            let committed = Committed {
                offset: body.try_get_i64().ok()?,
                leader_epoch: body.try_get_i32().ok()?,
                committed_ms: body.try_get_i64().ok()?,
                metadata: get_string(body)?,
            };
            Some(Op::Commit(group, topic, partition, committed))
        }
        OP_REMOVE_GROUP => Some(Op::RemoveGroup(get_string(body)?)),
        OP_REMOVE_TOPIC => Some(Op::RemoveTopic(get_string(body)?)),
        OP_REMOVE_OFFSET => {
            let (group, topic) = (get_string(body)?, get_string(body)?);
            Some(Op::RemoveOffset(group, topic, body.try_get_i32().ok()?))
        }
        _ => None,
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    out.put_u16(u16::try_from(text.len()).map_err(io::Error::other)?);
    out.extend(text.as_bytes());
    Ok(())
}

fn get_string(body: &mut &[u8]) -> Option<String> {
    let length = usize::from(body.try_get_u16().ok()?);
    let (text, rest) = body.split_at_checked(length)?;
    *body = rest;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> Committed {
        Committed {
            offset,
            leader_epoch: 0,
            metadata: format!("meta {offset}"),
            committed_ms: offset,
        }
    }

    #[test]
    fn offsets_survive_a_restart_with_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let store = OffsetStore::open(dir.path()).unwrap();
        let offsets = vec![("t".to_owned(), 0, at(5)), ("t".to_owned(), 1, at(6))];
        store.commit("g", offsets, false).unwrap();
        store
            .commit("g", vec![("t".to_owned(), 0, at(9))], true)
            .unwrap();
        store
            .commit("gone", vec![("t".to_owned(), 0, at(1))], true)
            .unwrap();
        store.remove_group("gone").unwrap();
        let store = OffsetStore::open(dir.path()).unwrap();
        assert_eq!(store.get("g", "t", 0), Some(at(9)));
        assert_eq!(store.get("g", "t", 1), Some(at(6)));
        assert_eq!(store.groups(), ["g"]);
        store.expire(7, |_| true).unwrap();
        assert_eq!(store.all("g").len(), 1);
    }

    #[test]
    fn a_torn_entry_loses_only_itself_at_every_cut() {
        let dir = tempfile::tempdir().unwrap();
        let store = OffsetStore::open(dir.path()).unwrap();
        store
            .commit("g", vec![("t".to_owned(), 0, at(1))], false)
            .unwrap();
        let path = dir.path().join("committed-offsets.log");
        let first = std::fs::metadata(&path).unwrap().len() as usize;
        store
            .commit("g", vec![("t".to_owned(), 0, at(2))], false)
            .unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in first..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let store = OffsetStore::open(dir.path()).unwrap();
            assert_eq!(store.get("g", "t", 0), Some(at(1)), "cut at {cut}");
        }
    }

    #[test]
    fn the_log_is_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let store = OffsetStore::open(dir.path()).unwrap();
        for n in 0..30_000 {
            store
                .commit("g", vec![("t".to_owned(), 0, at(n))], false)
                .unwrap();
        }
        let path = dir.path().join("committed-offsets.log");
        assert!(std::fs::metadata(&path).unwrap().len() < 2 * COMPACT_BYTES_MIN);
        let store = OffsetStore::open(dir.path()).unwrap();
        assert_eq!(store.get("g", "t", 0), Some(at(29_999)));
    }

    #[test]
    fn what_follows_a_compaction_whose_folder_could_not_be_synced_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = OffsetStore::open(dir.path()).unwrap();
        store.sync().unwrap();
        let commit = |store: &OffsetStore, n: i64, sync: bool| {
            store.commit("g", vec![("t".to_owned(), 0, at(n))], sync)
        };
        store.dir = dir.path().join("cannot be synced");
        for n in 0..30_000 {
            commit(&store, n, false).unwrap();
        }
        // The content is there, but a power cut could still take it.
        commit(&store, 30_000, true).unwrap_err();
        assert_eq!(
            OffsetStore::open(dir.path()).unwrap().get("g", "t", 0),
            Some(at(30_000))
        );
        store.dir = dir.path().to_path_buf();
        commit(&store, 30_001, true).unwrap();
    }

    #[test]
    fn random_bytes_never_panic() {
        proptest::proptest!(|(bytes: Vec<u8>)| {
            let mut groups = HashMap::new();
            let sound = replay(&bytes, &mut groups);
            assert!(sound <= bytes.len());
        });
    }
}
