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

use super::Group;
use super::offsets::OffsetStore;
use crate::config::BrokerConfig;
use crate::log::now_ms;

pub type SharedGroup = Arc<tokio::sync::Mutex<Group>>;

/// How often deadlines are looked at.
pub const TICK: Duration = Duration::from_millis(50);

pub struct Coordinator {
    groups: Mutex<HashMap<String, SharedGroup>>,
    pub offsets: OffsetStore,
    initial_delay: Duration,
    members_max: usize,
    groups_max: usize,
    offsets_retention_ms: i64,
}

impl Coordinator {
    pub fn open(data_dir: &Path, config: &BrokerConfig) -> io::Result<Coordinator> {
        Ok(Coordinator {
            groups: Mutex::default(),
            offsets: OffsetStore::open(data_dir)?,
            initial_delay: Duration::from_millis(config.group_initial_rebalance_delay_ms),
            members_max: config.group_max_members,
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
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(id) {
            return Ok(Arc::clone(group));
        }
        if groups.len() >= self.groups_max {
            return Err(E::CoordinatorNotAvailable);
        }
        let group = Group::new(self.initial_delay, self.members_max);
        let group = Arc::new(tokio::sync::Mutex::new(group));
        groups.insert(id.to_owned(), Arc::clone(&group));
        Ok(group)
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
