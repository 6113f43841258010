//! The disk, as far as the spool writes to it: the seam at which tests make it fail.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A file that grows at its end.
pub trait Appending: Send {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// What was appended survives a power cut.
    fn sync(&mut self) -> io::Result<()>;
    fn truncate(&mut self, bytes: u64) -> io::Result<()>;
}

/// Changes to a folder. Each is durable when it returns.
pub trait Files: Send + Sync + 'static {
    /// A new, empty file.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appending>>;
    /// The file has this content or the one before, whenever the power is cut.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
}

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Appending for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

impl Files for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Appending>> {
        // Appending, so that what follows a truncation does not leave a hole.
        let file = File::options().append(true).create_new(true).open(path)?;
        sync_parent(path)?;
        Ok(Box::new(file))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let aside = path.with_extension("tmp");
        let mut file = File::create(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_parent(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            // Gone already is what was wanted.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_parent(path),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::rename(from, to) {
            // Done before, when something else failed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && to.exists() => {}
            renamed => renamed?,
        }
        sync_parent(to)
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
