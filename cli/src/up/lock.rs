//! One process per data folder.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::error::CliError;

const FILE_NAME: &str = "streamgauge.lock";

/// The right to a data folder, for as long as it lives. The operating system takes it back from a
/// process that is killed, so that no lock is ever stale.
#[derive(Debug)]
pub struct FolderLock {
    /// Holds the lock.
    _file: File,
}

impl FolderLock {
    /// Makes the folder if need be and takes the lock, without waiting.
    ///
    /// # Errors
    /// When another process has it, which the error names, or the folder cannot be used.
    pub fn take(folder: &Path) -> Result<Self, CliError> {
        fs::create_dir_all(folder)
            .map_err(|source| CliError::file("make the data folder", folder, source))?;
        let path = folder.join(FILE_NAME);
        let cannot = |source| CliError::file("open", &path, source);
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
            Err(TryLockError::WouldBlock) => return Err(taken(folder, &mut file)),
            Err(TryLockError::Error(source)) => return Err(cannot(source)),
        }
        write_pid(&mut file).map_err(cannot)?;
        Ok(Self { _file: file })
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn taken(folder: &Path, file: &mut File) -> CliError {
    let mut pid = String::new();
    // Who holds it is a courtesy: without it the sentence still says what to do.
    let _ = file.read_to_string(&mut pid);
    let holder = match pid.trim() {
        "" => String::from("another process"),
        pid => format!("process {pid}"),
    };
    let folder: PathBuf = folder.to_owned();
    CliError::usage(format!(
        "the data folder {} is in use by {holder}; stop it, or choose another --data-dir (and --port-offset) to run \
         beside it",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once_and_given_back() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("deep/data");
        let lock = FolderLock::take(&folder).expect("free");
        let error = FolderLock::take(&folder).expect_err("taken").to_string();
        let pid = format!("in use by process {}", std::process::id());
        assert!(
            error.contains(&pid) && error.contains("--data-dir"),
            "{error}"
        );
        drop(lock);
        FolderLock::take(&folder).expect("free again");
    }
}
