//! A disk that fails on purpose.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::{ErrorKind, Observer};
use crate::files::{Appending, Disk, Files};

/// What goes wrong; clones share it.
#[derive(Clone, Default)]
pub struct Faults {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Writes put down half of their bytes and then find the disk full.
    full: AtomicBool,
    /// Bytes that a file may have before the disk is full; 0 is as many as there are.
    room: AtomicU64,
    syncs_fail: AtomicBool,
    /// Nothing can be tidied up either.
    stuck: AtomicBool,
    replacing_fails: AtomicBool,
    syncs: AtomicUsize,
    /// Held by a test to make syncs wait.
    gate: Mutex<()>,
}

impl Faults {
    pub fn disk_full(&self, full: bool) {
        self.inner.full.store(full, Ordering::SeqCst);
    }

    pub fn room(&self, bytes: u64) {
        self.inner.room.store(bytes, Ordering::SeqCst);
    }

    pub fn syncs_fail(&self, fail: bool) {
        self.inner.syncs_fail.store(fail, Ordering::SeqCst);
    }

    pub fn stuck(&self, stuck: bool) {
        self.inner.stuck.store(stuck, Ordering::SeqCst);
    }

    pub fn replacing_fails(&self, fail: bool) {
        self.inner.replacing_fails.store(fail, Ordering::SeqCst);
    }

    pub fn syncs(&self) -> usize {
        self.inner.syncs.load(Ordering::SeqCst)
    }

    /// Runs `work` while every sync waits.
    pub fn while_syncs_wait<R>(&self, work: impl FnOnce() -> R) -> R {
        let _gate = self.inner.gate.lock();
        work()
    }

    fn tidy(&self) -> io::Result<()> {
        match self.inner.stuck.load(Ordering::SeqCst) {
            true => Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)),
            false => Ok(()),
        }
    }
}

struct FaultyFile {
    file: Box<dyn Appending>,
    written: u64,
    faults: Faults,
}

impl Appending for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.faults.inner.full.load(Ordering::SeqCst) {
            self.file.append(&bytes[..bytes.len() / 2])?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.written += bytes.len() as u64;
        let room = self.faults.inner.room.load(Ordering::SeqCst);
        if room > 0 && self.written > room {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        let _gate = self.faults.inner.gate.lock();
        self.faults.inner.syncs.fetch_add(1, Ordering::SeqCst);
        if self.faults.inner.syncs_fail.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk lost its cache"));
        }
        self.file.sync()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.faults.tidy()?;
        self.file.truncate(bytes)
    }
}

impl Files for Faults {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appending>> {
        Ok(Box::new(FaultyFile {
            file: Disk.create(path)?,
            written: 0,
            faults: self.clone(),
        }))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if self.inner.replacing_fails.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Disk.replace(path, content)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.tidy()?;
        Disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.tidy()?;
        Disk.rename(from, to)
    }
}

/// Remembers what it was told.
#[derive(Clone, Default)]
pub struct Told {
    errors: Arc<Mutex<Vec<ErrorKind>>>,
    lost: Arc<Mutex<u64>>,
}

impl Told {
    pub fn errors(&self) -> Vec<ErrorKind> {
        self.errors.lock().clone()
    }

    pub fn lost(&self) -> u64 {
        *self.lost.lock()
    }
}

impl Observer for Told {
    fn error(&self, kind: ErrorKind) {
        self.errors.lock().push(kind);
    }

    fn lost(&self, records: u64) {
        *self.lost.lock() += records;
    }
}
