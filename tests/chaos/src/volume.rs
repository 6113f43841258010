//! Small disks of their own, to be filled up or cut off. They need the right to mount.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use crate::{failure::Failure, stack::run};

/// Ends a file system at once: nothing that was not synced reaches the disk any more. The same call by which the tests
/// of Linux's own file systems make a power cut (`FS_IOC_SHUTDOWN` without flushing the journal).
const CUT_OFF: &str = r#"open(my $f, "<", $ARGV[0]) or die "$!"; my $how = pack("L", 2); defined(ioctl($f, 0x8004587d, $how)) or die "$!""#;

/// A file system in a file or in memory, mounted until it is dropped.
pub struct Volume {
    folder: TempDir,
    image: Option<PathBuf>,
}

impl Volume {
    /// Of so many MiB, in memory.
    pub async fn in_memory(mib: u64) -> Result<Self, Failure> {
        let volume = Self {
            folder: TempDir::with_prefix("chaos-disk-").map_err(Failure::io("a folder"))?,
            image: None,
        };
        let size = format!("size={mib}m");
        std::fs::create_dir(volume.path()).map_err(Failure::io("a mount point"))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]);
        run(mount.arg(volume.path())).await?;
        Ok(volume)
    }

    /// Of so many MiB, ext4 in a file.
    pub async fn on_disk(mib: u64) -> Result<Self, Failure> {
        let folder = TempDir::with_prefix("chaos-disk-").map_err(Failure::io("a folder"))?;
        let image = folder.path().join("image");
        let file = std::fs::File::create(&image).map_err(Failure::io("a disk image"))?;
        let sized = file.set_len(mib * 1024 * 1024);
        sized.map_err(Failure::io("a disk image"))?;
        let mut format = Command::new("mkfs.ext4");
        run(format.args(["-q", "-F"]).arg(&image)).await?;
        let volume = Self {
            folder,
            image: Some(image),
        };
        std::fs::create_dir(volume.path()).map_err(Failure::io("a mount point"))?;
        // The mark by which the file system is opened to be cut off; synced with the mount.
        volume.mount().await?;
        std::fs::write(volume.mark(), "").map_err(Failure::io("a file on the new disk"))?;
        run(&mut Command::new("sync")).await?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    fn mark(&self) -> PathBuf {
        self.path().join("mark")
    }

    async fn mount(&self) -> Result<(), Failure> {
        if let Some(image) = &self.image {
            let mut mount = Command::new("mount");
            run(mount.args(["-o", "loop"]).arg(image).arg(self.path())).await?;
        }
        Ok(())
    }

    /// Cuts the disk off, with all that was not synced.
    pub async fn cut_off(&self) -> Result<(), Failure> {
        let mut perl = Command::new("perl");
        run(perl.args(["-e", CUT_OFF]).arg(self.mark())).await?;
        Ok(())
    }

    /// Brings a disk back that was cut off and that nobody uses any more.
    pub async fn bring_back(&self) -> Result<(), Failure> {
        run(Command::new("umount").arg(self.path())).await?;
        self.mount().await
    }

    /// Fills what is left of it with one file.
    pub async fn fill(&self) -> Result<(), Failure> {
        let (file, block) = (self.filler(), vec![0u8; 1 << 16]);
        let written = tokio::task::spawn_blocking(move || fill(&file, &block)).await;
        written
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(Failure::io("filling a disk"))
    }

    /// Takes that file away.
    pub fn empty(&self) -> Result<(), Failure> {
        std::fs::remove_file(self.filler()).map_err(Failure::io("emptying a disk"))
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

fn fill(file: &Path, block: &[u8]) -> std::io::Result<()> {
    use std::io::{ErrorKind, Write};
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)?;
    loop {
        match file.write(block) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may hold it for a moment.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .status();
    }
}
