//! Finds out whether a disk that refused an append takes bytes again, without an append: whoever stops sending because
//! the spool cannot be written would otherwise never learn that it can.

use std::io;

use crate::state::Shared;

/// The file that a probe writes, and removes again.
pub const FILE: &str = "probe";

const CHUNK: [u8; 16 * 1024] = [0; 16 * 1024];

impl Shared {
    /// Writes and syncs as many bytes as were refused, in a file of their own, and removes them: a disk with room for
    /// less than that would only refuse the next append again. Nothing happens when no append was refused.
    pub fn probe(&self) -> io::Result<()> {
        // A disk that hangs holds one probe up, and not one after the other.
        let Some(_alone) = self.probing.try_lock() else {
            return Err(io::Error::from(io::ErrorKind::WouldBlock));
        };
        let refused = self.with(|state| state.failing.clone());
        let Some(refused) = refused else {
            return Ok(());
        };
        self.write_probe(refused.bytes)?;
        self.with(|state| {
            // Another append may have been refused meanwhile, and would know better.
            let is_same = |failing: &_| *failing == refused;
            if state.failing.as_ref().is_some_and(is_same) {
                state.failing = None;
            }
        });
        Ok(())
    }

    fn write_probe(&self, bytes: usize) -> io::Result<()> {
        let path = self.dir.join(FILE);
        // A crash may have left one.
        self.files.remove(&path)?;
        let mut file = self.files.create(&path)?;
        let mut left = bytes.clamp(1, self.limits.group_bytes_max.max(1));
        let mut written = Ok(());
        while left > 0 && written.is_ok() {
            let chunk = &CHUNK[..left.min(CHUNK.len())];
            written = file.append(chunk);
            left -= chunk.len();
        }
        let written = written.and_then(|()| file.sync());
        drop(file);
        // On a full disk others may need the room, whatever came of it.
        written.and(self.files.remove(&path))
    }
}
