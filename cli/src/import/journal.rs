//! The import journal: which inputs are in, and how far those are that were cut off.
//!
//! Ids make a second import harmless only within the dedupe horizon. Beyond it this journal does:
//! it refuses what is in, and resumes what is not wholly in. The file is replaced as a whole, under
//! a lock, and synced before events go out that it must know of.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::progress::Progress;
use crate::{error::CliError, files};

/// Most imports remembered; the oldest go first.
const ENTRIES_MAX: usize = 1000;

/// One import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What was imported, and how.
    pub key: String,
    /// Into which system, by any of its names.
    #[serde(default)]
    pub system: BTreeSet<String>,
    /// The input's name, for people.
    pub name: String,
    /// When its first event was first submitted, microseconds since the Unix epoch.
    pub started_us: i64,
    /// When this entry was last written.
    pub updated_us: i64,
    /// Whether every record is settled.
    pub complete: bool,
    /// How far it is.
    pub progress: Progress,
    /// Where each partition of the log ended at that time, where it was known. A log that ends
    /// earlier now is another one, or was emptied.
    #[serde(default)]
    pub ends: BTreeMap<i32, i64>,
}

impl Entry {
    fn is(&self, key: &str, system: &BTreeSet<String>) -> bool {
        self.key == key && !self.system.is_disjoint(system)
    }
}

/// What to do about an import, given what the journal knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing is known of it.
    Fresh,
    /// The system holds less than at the last import: it was emptied.
    Emptied,
    /// It is in, so recently that all of it will be recognised as duplicates. Each duplicate renews
    /// its id, so that the horizon begins anew once all of the second import is in, not before.
    Recent,
    /// It is in, and its ids may be forgotten.
    AlreadyIn {
        /// When it was done.
        at_us: i64,
    },
    /// It was cut off.
    Resume {
        /// Where.
        progress: Progress,
        /// When the first import began.
        started_us: i64,
        /// Records that may be counted twice, since their ids may be forgotten.
        at_risk: u64,
    },
}

/// Decides; `ends` is where the partitions of the log end now, as far as is known. What is not
/// known is never taken for less: importing anew counts twice what is there.
pub fn decide(
    entry: Option<&Entry>,
    now_us: i64,
    horizon: Duration,
    ends: &BTreeMap<i32, i64>,
) -> Decision {
    let Some(entry) = entry else {
        return Decision::Fresh;
    };
    let less = |(partition, then): (&i32, &i64)| ends.get(partition).is_some_and(|now| now < then);
    if entry.ends.iter().any(less) {
        return Decision::Emptied;
    }
    // The first event was submitted first and is forgotten first. A tenth is left for the time
    // that the second import takes.
    let safe_us = i64::try_from(horizon.as_micros()).unwrap_or(i64::MAX) / 10 * 9;
    let recent = |since_us: i64| now_us.saturating_sub(since_us) <= safe_us;
    match entry.complete {
        true if recent(entry.started_us) => Decision::Recent,
        true => Decision::AlreadyIn {
            at_us: entry.updated_us,
        },
        false => Decision::Resume {
            progress: entry.progress.clone(),
            started_us: entry.started_us,
            at_risk: if recent(entry.updated_us) {
                0
            } else {
                entry.progress.uncertain()
            },
        },
    }
}

/// The journal's file.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    version: u32,
    entries: Vec<Entry>,
}

impl Journal {
    /// The journal in this file, which need not be there.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn at(path: PathBuf) -> Result<Self, CliError> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            fs::create_dir_all(folder)
                .map_err(|source| CliError::file("make the folder", folder, source))?;
        }
        Ok(Self { path })
    }

    /// `streamgauge/imports.json` in the user's folder for state.
    pub fn default_path() -> PathBuf {
        let state = env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        let folder = state.or_else(home).unwrap_or_else(env::temp_dir);
        folder.join("streamgauge").join("imports.json")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of an import.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn find(&self, key: &str, system: &BTreeSet<String>) -> Result<Option<Entry>, CliError> {
        let entries = self.read()?.entries;
        Ok(entries.into_iter().rfind(|entry| entry.is(key, system)))
    }

    /// Writes what is known of an import, durably.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn save(&self, entry: &Entry) -> Result<(), CliError> {
        self.change(|entries| {
            entries.retain(|known| !known.is(&entry.key, &entry.system));
            entries.push(entry.clone());
            let excess = entries.len().saturating_sub(ENTRIES_MAX);
            entries.drain(..excess);
        })
    }

    /// Forgets an import of which nothing is in, durably.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn forget(&self, entry: &Entry) -> Result<(), CliError> {
        self.change(|entries| entries.retain(|known| !known.is(&entry.key, &entry.system)))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Entry>)) -> Result<(), CliError> {
        let lock_path = self.path.with_extension("lock");
        let lock = File::create(&lock_path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|source| CliError::file("lock", &lock_path, source))?;
        let mut content = self.read()?;
        content.version = 1;
        change(&mut content.entries);
        let bytes = serde_json::to_vec_pretty(&content).map_err(io::Error::from)?;
        files::replace(&self.path, &bytes)?;
        drop(lock);
        Ok(())
    }

    fn read(&self) -> Result<Content, CliError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::default()),
            Err(source) => return Err(CliError::file("read", &self.path, source)),
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error);
            CliError::file(
                "read the import journal (move it away to start anew)",
                &self.path,
                source,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: i64 = 1_000_000;
    const HORIZON: Duration = Duration::from_secs(600);

    fn system(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn find(journal: &Journal, key: &str) -> Option<Entry> {
        journal.find(key, &system(&["h:2"])).expect("read")
    }

    fn entry(complete: bool) -> Entry {
        Entry {
            key: String::from("k"),
            system: system(&["h:1", "h:2"]),
            name: String::from("a.log"),
            started_us: 0,
            updated_us: 10 * SECOND_US,
            complete,
            progress: Progress {
                done: 100,
                reserved: 150,
                ..Progress::default()
            },
            ends: BTreeMap::from([(0, 700), (1, 300)]),
        }
    }

    #[test]
    fn what_is_in_is_let_through_as_duplicates_then_refused() {
        let decide_at = |seconds: i64, ends: &[(i32, i64)]| {
            let ends = ends.iter().copied().collect();
            decide(Some(&entry(true)), seconds * SECOND_US, HORIZON, &ends)
        };
        assert_eq!(decide_at(500, &[(0, 700), (1, 300)]), Decision::Recent);
        let refused = Decision::AlreadyIn {
            at_us: 10 * SECOND_US,
        };
        assert_eq!(decide_at(545, &[(0, 700), (1, 300)]), refused);
        assert_eq!(decide_at(545, &[]), refused, "not known is not less");
        assert_eq!(decide_at(545, &[(1, 300)]), refused, "nor is a part of it");
        assert_eq!(decide_at(545, &[(0, 900), (1, 299)]), Decision::Emptied);
        assert_eq!(decide(None, 0, HORIZON, &BTreeMap::new()), Decision::Fresh);
    }

    #[test]
    fn what_was_cut_off_is_resumed() {
        let at_risk = |seconds: i64| match decide(
            Some(&entry(false)),
            seconds * SECOND_US,
            HORIZON,
            &BTreeMap::new(),
        ) {
            Decision::Resume {
                progress, at_risk, ..
            } => {
                assert_eq!(progress.done, 100);
                at_risk
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(at_risk(500), 0, "ids are still known");
        assert_eq!(at_risk(5000), 50, "what was under way may be counted twice");
    }

    #[test]
    fn entries_are_kept_and_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::at(folder.path().join("deep/imports.json")).expect("made");
        assert_eq!(find(&journal, "k"), None);
        journal.save(&entry(false)).expect("saved");
        journal.save(&entry(true)).expect("saved");
        assert_eq!(find(&journal, "k"), Some(entry(true)));
        let elsewhere = journal.find("k", &system(&["h:3"])).expect("read");
        assert_eq!(elsewhere, None, "another system");
        journal.forget(&entry(true)).expect("saved");
        assert_eq!(find(&journal, "k"), None);
        let many = Content {
            version: 1,
            entries: (0..ENTRIES_MAX)
                .map(|number| Entry {
                    key: number.to_string(),
                    ..entry(true)
                })
                .collect(),
        };
        files::replace(journal.path(), &serde_json::to_vec(&many).expect("JSON")).expect("written");
        journal.save(&entry(true)).expect("saved");
        assert_eq!(find(&journal, "0"), None, "the oldest went");
        assert!(find(&journal, "1").is_some());
    }

    #[test]
    fn a_broken_journal_is_not_taken_for_an_empty_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::at(folder.path().join("imports.json")).expect("made");
        fs::write(journal.path(), "{\"version\":1,\"entr").expect("written");
        let error = journal.find("k", &system(&["h:1"])).expect_err("broken");
        assert!(error.to_string().contains("move it away"), "{error}");
    }
}
