//! Which topics exist, on disk and in memory. A topic appears and disappears
//! as a whole: its folder is prepared aside and renamed into place, and renamed
//! away before it is removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use crate::config::{BrokerConfig, Fsync};
use crate::durable;
use crate::error::BrokerError;
use crate::log::{LogSettings, Partition};

const DESCRIPTION_FILE: &str = "topic.json";
const ASIDE_PREFIX: &str = "~";
const NAME_BYTES_MAX: usize = 249;

pub struct Topic {
    pub name: String,
    pub id: Uuid,
    pub partitions: Vec<Arc<Partition>>,
    /// The settings given at creation.
    pub configs: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    id: Uuid,
    partitions: i32,
    configs: BTreeMap<String, String>,
}

/// A partition's folder and settings.
type Log = (PathBuf, LogSettings);

/// A topic on disk whose logs are not open yet.
struct Found {
    name: String,
    dir: PathBuf,
    settings: LogSettings,
    description: Description,
}

impl Found {
    fn logs(&self) -> impl Iterator<Item = Log> {
        let indexes = 0..self.description.partitions;
        indexes.map(|index| (self.dir.join(index.to_string()), self.settings.clone()))
    }

    /// Takes its partitions off those opened.
    fn with_logs(self, opened: &mut impl Iterator<Item = Arc<Partition>>) -> Topic {
        let count = usize::try_from(self.description.partitions).unwrap_or(0);
        Topic {
            name: self.name,
            id: self.description.id,
            partitions: opened.take(count).collect(),
            configs: self.description.configs,
        }
    }
}

pub struct Topics {
    root: PathBuf,
    defaults: LogSettings,
    max_partitions: usize,
    recovery_threads: usize,
    by_name: RwLock<BTreeMap<String, Arc<Topic>>>,
    /// Held while a topic is created or deleted.
    change: Mutex<()>,
}

impl Topics {
    /// Opens every topic below `root`, removing what a crash left half made.
    pub fn open(root: &Path, config: &BrokerConfig) -> Result<Topics, BrokerError> {
        fs::create_dir_all(root).map_err(BrokerError::storage("creating", root))?;
        let topics = Topics {
            root: root.to_path_buf(),
            defaults: default_settings(config),
            max_partitions: config.max_partitions,
            recovery_threads: config.recovery_threads,
            by_name: RwLock::default(),
            change: Mutex::default(),
        };
        let mut found = Vec::new();
        let entries = fs::read_dir(root).map_err(BrokerError::storage("reading", root))?;
        for entry in entries {
            let entry = entry.map_err(BrokerError::storage("reading", root))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(ASIDE_PREFIX) {
                fs::remove_dir_all(entry.path())
                    .map_err(BrokerError::storage("removing", &entry.path()))?;
                continue;
            }
            found.push(topics.describe(&name, &entry.path())?);
        }
        let logs: Vec<Log> = found.iter().flat_map(Found::logs).collect();
        let mut logs = open_logs(&logs, topics.recovery_threads)?.into_iter();
        for topic in found {
            let topic = topic.with_logs(&mut logs);
            let mut by_name = topics.by_name.write();
            by_name.insert(topic.name.clone(), Arc::new(topic));
        }
        Ok(topics)
    }

    fn describe(&self, name: &str, dir: &Path) -> Result<Found, BrokerError> {
        let path = dir.join(DESCRIPTION_FILE);
        let text = fs::read(&path).map_err(BrokerError::storage("reading", &path))?;
        let description: Description =
            serde_json::from_slice(&text).map_err(|error| BrokerError::Corrupt {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        Ok(Found {
            name: name.to_owned(),
            dir: dir.to_path_buf(),
            settings: topic_settings(&self.defaults, &description.configs)?,
            description,
        })
    }

    fn open_topic(&self, name: &str, dir: &Path) -> Result<Topic, BrokerError> {
        let found = self.describe(name, dir)?;
        let logs: Vec<Log> = found.logs().collect();
        let mut logs = open_logs(&logs, self.recovery_threads)?.into_iter();
        Ok(found.with_logs(&mut logs))
    }

    pub fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.by_name.read().get(name).cloned()
    }

    pub fn get_by_id(&self, id: Uuid) -> Option<Arc<Topic>> {
        self.by_name
            .read()
            .values()
            .find(|topic| topic.id == id)
            .cloned()
    }

    pub fn partition(&self, name: &str, index: i32) -> Option<Arc<Partition>> {
        let at = usize::try_from(index).ok()?;
        self.by_name.read().get(name)?.partitions.get(at).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Topic>> {
        self.by_name.read().values().cloned().collect()
    }

    /// Checks a creation without doing it.
    pub fn check_new(
        &self,
        name: &str,
        partitions: i32,
        configs: &BTreeMap<String, String>,
    ) -> Result<(), BrokerError> {
        if !is_valid_name(name) {
            return Err(BrokerError::InvalidTopicName {
                name: name.to_owned(),
            });
        }
        if partitions < 1 {
            let reason = "a topic needs at least one";
            return Err(BrokerError::InvalidPartitions { partitions, reason });
        }
        topic_settings(&self.defaults, configs)?;
        let by_name = self.by_name.read();
        if let Some(topic) = by_name.get(name) {
            return Err(BrokerError::TopicExists {
                name: name.to_owned(),
                existing: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
                requested: partitions,
            });
        }
        let existing: usize = by_name.values().map(|topic| topic.partitions.len()).sum();
        if existing.saturating_add(partitions as usize) > self.max_partitions {
            let reason = "max_partitions would be exceeded";
            return Err(BrokerError::InvalidPartitions { partitions, reason });
        }
        Ok(())
    }

    /// Creates a topic that does not exist yet.
    pub fn create(
        &self,
        name: &str,
        partitions: i32,
        configs: BTreeMap<String, String>,
    ) -> Result<Arc<Topic>, BrokerError> {
        let _change = self.change.lock();
        self.check_new(name, partitions, &configs)?;
        let description = Description {
            id: Uuid::new_v4(),
            partitions,
            configs,
        };
        let dir = self.root.join(name);
        // What an earlier attempt could not clear away.
        self.clear_away(&dir)
            .map_err(BrokerError::storage("clearing", &dir))?;
        let topic = match self.make(name, &dir, &description) {
            Ok(topic) => Arc::new(topic),
            Err(error) => {
                // The name stays free, now and after a restart.
                if let Err(error) = self.clear_away(&dir) {
                    warn!(topic = name, %error, "clearing a half-made topic away failed");
                }
                return Err(error);
            }
        };
        self.by_name
            .write()
            .insert(name.to_owned(), Arc::clone(&topic));
        info!(topic = name, partitions, "created a topic");
        Ok(topic)
    }

    fn make(
        &self,
        name: &str,
        dir: &Path,
        description: &Description,
    ) -> Result<Topic, BrokerError> {
        let aside = self.aside();
        prepare_folder(&aside, description)
            .and_then(|()| fs::rename(&aside, dir))
            .and_then(|()| durable::sync_dir(&self.root))
            .map_err(BrokerError::storage("creating", dir))?;
        self.open_topic(name, dir)
    }

    /// A name that no topic can have; what it stands for goes at the next start.
    fn aside(&self) -> PathBuf {
        self.root.join(format!("{ASIDE_PREFIX}{}", Uuid::new_v4()))
    }

    /// Removes a folder that no known topic owns, all or nothing.
    fn clear_away(&self, dir: &Path) -> io::Result<()> {
        let aside = self.aside();
        match fs::rename(dir, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        durable::sync_dir(&self.root)?;
        fs::remove_dir_all(&aside)
    }

    /// Deletes a topic and all its records.
    pub fn delete(&self, name: &str) -> Result<Arc<Topic>, BrokerError> {
        let _change = self.change.lock();
        let Some(topic) = self.get(name) else {
            return Err(BrokerError::UnknownTopic {
                name: name.to_owned(),
            });
        };
        for partition in &topic.partitions {
            partition.mark_closed();
        }
        let dir = self.root.join(name);
        let cleared = self.clear_away(&dir);
        // A folder that could not be moved keeps its topic, to be deleted again.
        if !dir.exists() {
            self.by_name.write().remove(name);
        }
        cleared.map_err(BrokerError::storage("deleting", &dir))?;
        info!(topic = name, "deleted a topic");
        Ok(topic)
    }
}

/// Opens logs in their order, several at a time: after a crash each has to be
/// scanned.
fn open_logs(logs: &[Log], threads: usize) -> Result<Vec<Arc<Partition>>, BrokerError> {
    let next = AtomicUsize::new(0);
    let open_some = || {
        let mut opened = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((dir, settings)) = logs.get(at) else {
                return opened;
            };
            let log = Partition::open(dir, settings.clone()).map(Arc::new);
            opened.push((at, log.map_err(BrokerError::storage("opening", dir))));
        }
    };
    let mut opened = std::thread::scope(|scope| {
        let count = threads.min(logs.len());
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(open_some)).collect();
        let mut opened = Vec::with_capacity(logs.len());
        for worker in workers {
            opened.extend(worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        opened
    });
    opened.sort_unstable_by_key(|(at, _)| *at);
    opened.into_iter().map(|(_, log)| log).collect()
}

fn prepare_folder(dir: &Path, description: &Description) -> io::Result<()> {
    fs::create_dir(dir)?;
    for index in 0..description.partitions {
        fs::create_dir(dir.join(index.to_string()))?;
    }
    let text = serde_json::to_vec_pretty(description).map_err(io::Error::other)?;
    durable::write_atomic(&dir.join(DESCRIPTION_FILE), &text)
}

/// Kafka's rule, which also makes a name safe as a folder.
fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn default_settings(config: &BrokerConfig) -> LogSettings {
    LogSettings {
        segment_bytes: config.segment_bytes,
        index_interval_bytes: config.index_interval_bytes,
        retention_ms: config.retention_ms,
        retention_bytes: config.retention_bytes,
        max_message_bytes: config.max_message_bytes,
        max_producer_ids: config.max_producer_ids_per_partition,
        producer_id_expiration_ms: config.producer_id_expiration_ms,
        publish_when_synced: config.fsync == Fsync::Always,
    }
}

/// The broker's settings with a topic's own on top. Settings that have one
/// sensible value here are accepted with that value only.
fn topic_settings(
    defaults: &LogSettings,
    configs: &BTreeMap<String, String>,
) -> Result<LogSettings, BrokerError> {
    let mut settings = defaults.clone();
    for (key, value) in configs {
        let applied = match key.as_str() {
            "retention.ms" => set_at_least(&mut settings.retention_ms, value, -1),
            "retention.bytes" => set_at_least(&mut settings.retention_bytes, value, -1),
            "segment.bytes" => {
                let mut bytes = settings.segment_bytes as i64;
                let set = set_at_least(&mut bytes, value, 1);
                settings.segment_bytes = bytes.min(2 << 30) as u64;
                set
            }
            "max.message.bytes" => {
                let mut bytes = 0;
                let set = set_at_least(&mut bytes, value, 1);
                settings.max_message_bytes = usize::try_from(bytes)
                    .unwrap_or(usize::MAX)
                    .min(defaults.max_message_bytes);
                set
            }
            "cleanup.policy" => value == "delete",
            "compression.type" => value == "producer",
            "message.timestamp.type" => value == "CreateTime",
            "min.insync.replicas" => value == "1",
            _ => false,
        };
        if !applied {
            return Err(BrokerError::InvalidTopicConfig {
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
    Ok(settings)
}

fn set_at_least(target: &mut i64, value: &str, least: i64) -> bool {
    match value.parse::<i64>() {
        Ok(parsed) if parsed >= least => {
            *target = parsed;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Topics {
        Topics::open(dir, &BrokerConfig::default()).unwrap()
    }

    #[test]
    fn a_topic_survives_a_restart_with_its_settings() {
        let dir = tempfile::tempdir().unwrap();
        let configs = BTreeMap::from([("retention.ms".to_owned(), "123".to_owned())]);
        let id = open(dir.path()).create("a.b-c_1", 3, configs).unwrap().id;
        let topic = open(dir.path()).get("a.b-c_1").unwrap();
        assert_eq!((topic.id, topic.partitions.len()), (id, 3));
        assert_eq!(topic.partitions[0].settings().retention_ms, 123);
    }

    #[test]
    fn a_deleted_topic_stays_deleted_and_half_made_ones_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let topics = open(dir.path());
        topics.create("gone", 1, BTreeMap::new()).unwrap();
        topics.delete("gone").unwrap();
        fs::create_dir(dir.path().join("~half-made")).unwrap();
        assert!(open(dir.path()).all().is_empty());
        assert!(!dir.path().join("~half-made").exists());
    }

    #[test]
    fn what_a_failed_attempt_left_behind_does_not_keep_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let topics = open(dir.path());
        let left = dir.path().join("again");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("half"), b"made").unwrap();
        let topic = topics.create("again", 2, BTreeMap::new()).unwrap();
        assert!(!left.join("half").exists());
        drop(topics);
        assert_eq!(open(dir.path()).get("again").unwrap().id, topic.id);
    }

    #[test]
    fn a_topic_that_could_not_be_opened_leaves_its_name_free() {
        let dir = tempfile::tempdir().unwrap();
        let topics = open(dir.path());
        // Its folder can be made, but its settings cannot be used.
        let half = Description {
            id: Uuid::new_v4(),
            partitions: 1,
            configs: BTreeMap::from([("no".to_owned(), "such".to_owned())]),
        };
        topics
            .make("t", &dir.path().join("t"), &half)
            .err()
            .unwrap();
        assert!(dir.path().join("t").exists());
        topics.create("t", 1, BTreeMap::new()).unwrap();
        assert_eq!(open(dir.path()).all().len(), 1);
    }

    #[test]
    fn many_partitions_open_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in [("a", 3), ("b", 9)] {
            open(dir.path())
                .create(name, count, BTreeMap::new())
                .unwrap();
        }
        for topic in open(dir.path()).all() {
            for (index, log) in topic.partitions.iter().enumerate() {
                let expected = dir.path().join(&topic.name).join(index.to_string());
                assert_eq!(log.dir(), expected);
            }
        }
        fs::remove_dir_all(dir.path().join("b/7")).unwrap();
        let error = Topics::open(dir.path(), &BrokerConfig::default());
        let error = error.err().unwrap().to_string();
        assert!(error.contains("b/7"), "{error}");
    }

    #[test]
    fn bad_names_counts_and_settings_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let topics = open(dir.path());
        for name in ["", ".", "..", "a/b", "ü", &"x".repeat(250)] {
            let error = topics.create(name, 1, BTreeMap::new());
            assert!(matches!(error, Err(BrokerError::InvalidTopicName { .. })));
        }
        for count in [0, -1, 1_000_000] {
            let error = topics.create("t", count, BTreeMap::new());
            assert!(matches!(error, Err(BrokerError::InvalidPartitions { .. })));
        }
        for (key, value) in [
            ("cleanup.policy", "compact"),
            ("retention.ms", "x"),
            ("no", "1"),
        ] {
            let configs = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            let error = topics.create("t", 1, configs);
            assert!(matches!(error, Err(BrokerError::InvalidTopicConfig { .. })));
        }
    }
}
