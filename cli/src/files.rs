//! Files that must never be seen half written.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use crate::error::CliError;

/// Replaces a file by a whole new one: written beside it, synced, renamed over it, and the folder
/// synced, so that after a crash there is the old one or the new one.
///
/// # Errors
/// When a step fails; the old file is then still there.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let write = || -> io::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.tmp", std::process::id()));
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            Some(parent) => File::open(parent)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    };
    write().map_err(|source| CliError::file("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_file_takes_the_place_of_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        replace(&path, b"old").expect("written");
        replace(&path, b"new").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
        let error = replace(&folder.path().join("no/where"), b"").expect_err("no folder");
        assert!(error.to_string().contains("where"));
    }
}
