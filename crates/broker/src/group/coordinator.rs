//! All groups of the broker and their clock. Each group has its own lock, held
//! over the write of a commit so that a member of an older generation cannot
//! overwrite a newer one's offsets.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError as E;
use parking_lot::Mutex;
use tracing::warn;

use super::offsets::OffsetStore;
use super::{Group, Limits};
use crate::config::BrokerConfig;
use crate::log::now_ms;

pub type SharedGroup = Arc<tokio::sync::Mutex<Group>>;

/// How often deadlines are looked at.
pub const TICK: Duration = Duration::from_millis(50);

pub struct Coordinator {
    groups: Mutex<HashMap<String, SharedGroup>>,
    pub offsets: OffsetStore,
    initial_delay: Duration,
    limits: Limits,
    groups_max: usize,
    offsets_retention_ms: i64,
}

impl Coordinator {
    pub fn open(data_dir: &Path, config: &BrokerConfig) -> io::Result<Coordinator> {
        Ok(Coordinator {
            groups: Mutex::default(),
            offsets: OffsetStore::open(data_dir)?,
            initial_delay: Duration::from_millis(config.group_initial_rebalance_delay_ms),
            limits: Limits {
                members: config.group_max_members,
                metadata_bytes: config.group_metadata_max_bytes,
            },
            groups_max: config.max_groups,
            offsets_retention_ms: config.offsets_retention_ms,
        })
    }

    pub fn get(&self, id: &str) -> Option<SharedGroup> {
        self.groups.lock().get(id).cloned()
    }

    /// The group, made if there is room for one more.
    pub fn get_or_create(&self, id: &str) -> Result<SharedGroup, E> {
        if id.is_empty() {
            return Err(E::InvalidGroupId);
        }
        if let Some(group) = self.get(id) {
            return Ok(group);
        }
        // Asked before this lock is taken: the store may be waiting for the disk.
        let stored = match self.offsets.has_group(id) {
            true => None,
            false => Some(self.offsets.groups()),
        };
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(id) {
            return Ok(Arc::clone(group));
        }
        if stored.is_some_and(|stored| self.is_full(&groups, &stored)) {
            warn!(group = id, "refused a new group: max_groups exist");
            return Err(E::CoordinatorNotAvailable);
        }
        let group = Group::new(self.initial_delay, self.limits);
        let group = Arc::new(tokio::sync::Mutex::new(group));
        groups.insert(id.to_owned(), Arc::clone(&group));
        Ok(group)
    }

    /// Whether as many groups as may be have members or committed offsets.
    fn is_full(&self, live: &HashMap<String, SharedGroup>, stored: &[String]) -> bool {
        let stored_only = stored.iter().filter(|name| !live.contains_key(*name));
        live.len() + stored_only.count() >= self.groups_max
    }

    /// Names of groups with members or committed offsets.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.offsets.groups().into_iter().collect();
        names.extend(self.groups.lock().keys().cloned());
        names
    }

    /// Acts on passed deadlines and lets go of groups without members. A group
    /// that is busy is looked at next time.
    pub fn tick(&self, now: Instant) {
        let mut groups = self.groups.lock();
        groups.retain(|_, group| {
            let Ok(mut locked) = group.try_lock() else {
                return true;
            };
            locked.tick(now);
            let idle = locked.is_idle();
            drop(locked);
            !idle || Arc::strong_count(group) > 1
        });
    }

    /// Drops the offsets of groups that have been without members too long.
    pub fn expire_offsets(&self) {
        if self.offsets_retention_ms < 0 {
            return;
        }
        let active: BTreeSet<String> = self.groups.lock().keys().cloned().collect();
        let limit_ms = now_ms().saturating_sub(self.offsets_retention_ms);
        let result = self
            .offsets
            .expire(limit_ms, |group| !active.contains(group));
        if let Err(error) = result {
            warn!(%error, "expiring committed offsets failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::offsets::Committed;

    fn coordinator(dir: &Path) -> Coordinator {
        let config = BrokerConfig {
            max_groups: 3,
            ..BrokerConfig::default()
        };
        Coordinator::open(dir, &config).unwrap()
    }

    fn commit(coordinator: &Coordinator, group: &str) {
        let committed = Committed {
            offset: 1,
            leader_epoch: 0,
            metadata: String::new(),
            committed_ms: now_ms(),
        };
        let offsets = vec![("t".to_owned(), 0, committed)];
        coordinator.offsets.commit(group, offsets, false).unwrap();
    }

    #[test]
    fn groups_with_offsets_count_and_may_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let coordinator = coordinator(dir.path());
        for name in ["a", "b"] {
            coordinator.get_or_create(name).unwrap();
            commit(&coordinator, name);
        }
        // Both go from memory, as groups without members do.
        coordinator.tick(Instant::now());
        assert!(coordinator.get("a").is_none());
        coordinator.get_or_create("live").unwrap();
        let refused = coordinator.get_or_create("one too many");
        assert_eq!(refused.err(), Some(E::CoordinatorNotAvailable));
        coordinator.get_or_create("a").unwrap();
        coordinator.get_or_create("b").unwrap();
        coordinator.offsets.remove_group("b").unwrap();
        coordinator.tick(Instant::now());
        coordinator.get_or_create("room again").unwrap();
    }
}
