//! Opens a spool: takes the folder for this process, and finds out what is in it.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::append::{NOTE, Salts, Spool};
use crate::drain::Drainer;
use crate::error::{Damage, ErrorKind, Observer, SpoolError};
use crate::files::Files;
use crate::position;
use crate::reader::{Reader, measure, report};
use crate::segment::{self, Kind, Name};
use crate::state::{Account, Limits, Segment, Shared, State};

const LOCK: &str = "spool.lock";

/// What a spool is handed from outside.
pub struct Deps {
    pub files: Arc<dyn Files>,
    pub observer: Arc<dyn Observer>,
    /// Randomness that no client can guess.
    pub salts: Salts,
}

/// Opens the spool in this folder, which is made if need be. How far it is drained is written down at most once in
/// `persist_interval`, and when it is empty. It waits for the disk.
///
/// # Errors
/// When the folder is another process's or cannot be used.
pub fn open(
    dir: &Path,
    limits: Limits,
    persist_interval: Duration,
    deps: Deps,
) -> Result<(Spool, Drainer), SpoolError> {
    fs::create_dir_all(dir).map_err(|source| SpoolError::io("make", dir, source))?;
    let lock = take(dir)?;
    let position = drained(dir, &*deps.observer)?;
    let state = recover(dir, position, &*deps.observer)?;
    let from = state.acknowledged;
    let noted = read_if_there(&dir.join(NOTE))?;
    let shared = Shared::new(dir.into(), limits, deps.files, deps.observer, state, lock);
    let shared = Arc::new(shared);
    // A crash may have come between the end of the last drain and the removal of its files.
    shared.clean(from)?;
    let mut reader = Reader::new(shared.clone(), from);
    // One record, for its time: how old the spool is must be known before it is drained.
    let ahead = match shared.is_idle() {
        true => None,
        false => Some(reader.read(1, 1)?).filter(|stretch| stretch.end() > from),
    };
    let oldest_us = ahead.as_ref().and_then(|ahead| ahead.last_us());
    shared.with(|state| state.oldest_us = oldest_us);
    let spool = Spool::start(shared.clone(), noted, deps.salts)
        .map_err(|source| SpoolError::io("start the writer of", dir, source))?;
    Ok((spool, Drainer::new(shared, reader, ahead, persist_interval)))
}

fn take(dir: &Path) -> Result<File, SpoolError> {
    let path = dir.join(LOCK);
    let cannot = |source| SpoolError::io("lock", &path, source);
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(source)) => return Err(cannot(source)),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Who holds it is a courtesy.
            let _ = file.read_to_string(&mut pid);
            return Err(SpoolError::Locked {
                dir: dir.into(),
                holder: format!("process {}", pid.trim()),
            });
        }
    }
    write_pid(&mut file).map_err(cannot)?;
    Ok(file)
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// The position that was written down last; none when it cannot be read. Before the first time nothing was drained.
fn drained(dir: &Path, observer: &dyn Observer) -> Result<Option<u64>, SpoolError> {
    let path = dir.join(position::FILE);
    let Some(bytes) = read_if_there(&path)? else {
        return Ok(Some(0));
    };
    let position = position::decode(&bytes);
    if position.is_none() {
        observer.error(ErrorKind::Position);
        tracing::error!(
            file = %path.display(),
            "how far the spool was drained cannot be read; everything that is in it is published again"
        );
    }
    Ok(position)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, SpoolError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SpoolError::io("read", path, source)),
    }
}

/// The segments of the folder, in order, and where they end. Segments that were found are never written to again.
fn recover(
    dir: &Path,
    position: Option<u64>,
    observer: &dyn Observer,
) -> Result<State, SpoolError> {
    let (mut names, mut marked) = (Vec::<Name>::new(), Vec::new());
    let (mut kept_bytes, mut next_id) = (0, 0);
    let cannot = |source| SpoolError::io("list", dir, source);
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let Some(kind) = segment::kind(&entry.path()) else {
            continue;
        };
        let (Kind::Segment(name) | Kind::Kept(name) | Kind::Mark(name)) = kind;
        next_id = next_id.max(name.id + 1);
        match kind {
            Kind::Segment(name) => names.push(name),
            Kind::Mark(name) => marked.push(name),
            Kind::Kept(_) => kept_bytes += entry.metadata().map_err(cannot)?.len(),
        }
    }
    names.sort_unstable();
    let mut segments = VecDeque::with_capacity(names.len());
    let mut next_seq = position.unwrap_or(0);
    for (nth, name) in names.iter().enumerate() {
        let (end, bytes) = match names.get(nth + 1) {
            Some(next) => {
                let path = name.path(dir);
                let metadata = fs::metadata(&path)
                    .map_err(|source| SpoolError::io("look at", &path, source))?;
                (next.first, metadata.len())
            }
            None => {
                let last = measure(*name, dir)?;
                if let Some(torn) = &last.torn {
                    report(torn, observer);
                }
                (last.end, last.bytes)
            }
        };
        next_seq = next_seq.max(end);
        segments.push_back(Segment {
            name: *name,
            bytes,
            end,
            keep: marked.contains(name),
        });
    }
    let acknowledged = start(dir, position, names.first(), observer).unwrap_or(next_seq);
    let left_from = position.unwrap_or(acknowledged);
    let account = Account {
        waiting_at_start: next_seq.saturating_sub(left_from),
        lost: acknowledged.saturating_sub(left_from),
        ..Account::default()
    };
    Ok(State {
        segments,
        active: None,
        next_id,
        next_seq,
        acknowledged,
        pending_appends: 0,
        reserved_bytes: 0,
        kept_bytes,
        oldest_us: None,
        failing: None,
        refusals: 0,
        account,
    })
}

/// Where draining goes on; none when there is nothing to drain. A file is removed only after the position behind it was
/// written down: a first file that begins beyond the position has lost its predecessor.
fn start(
    dir: &Path,
    position: Option<u64>,
    first: Option<&Name>,
    observer: &dyn Observer,
) -> Option<u64> {
    let (Some(position), Some(first)) = (position, first) else {
        return position.or(first.map(|first| first.first));
    };
    if first.first > position {
        let damage = Damage {
            path: dir.to_owned(),
            offset: 0,
            bytes: 0,
            lost: first.first - position,
        };
        report(&damage, observer);
    }
    Some(position.max(first.first))
}
