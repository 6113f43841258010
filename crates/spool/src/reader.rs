//! The reading side: gives back what was confirmed, in order, and says what it cannot.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Damage, ErrorKind, Observer, SpoolError};
use crate::frame::{self, HEAD_BYTES};
use crate::segment::Name;
use crate::state::Shared;

/// How much is read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// A record that was confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub seq: u64,
    pub at_us: i64,
    range: Range<usize>,
}

/// Some records, in order.
#[derive(Debug, Default)]
pub struct Stretch {
    buffer: Vec<u8>,
    records: Vec<Stored>,
    end: u64,
    lost: u64,
}

impl Stretch {
    pub fn records(&self) -> &[Stored] {
        &self.records
    }

    pub fn body(&self, record: &Stored) -> &[u8] {
        &self.buffer[record.range.clone()]
    }

    /// The number behind the last of them, and behind what is lost.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many records are lost before its end.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    pub fn last_us(&self) -> Option<i64> {
        self.records.last().map(|last| last.at_us)
    }
}

/// Reads from a number on.
pub struct Reader {
    shared: Arc<Shared>,
    /// The number of the next record.
    expected: u64,
    open: Option<Open>,
    /// Segments up to this one are read.
    done: Option<u64>,
}

/// What is confirmed of a segment by now.
struct Bounds {
    name: Name,
    bytes: u64,
    end: u64,
    growing: bool,
}

/// The segment that is being read.
struct Open {
    id: u64,
    salt: u64,
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// The buffer's place in the file.
    base: u64,
    /// The next frame's place in the buffer.
    cursor: usize,
    /// Where the stretch begins that could not be read so far.
    bad_from: Option<u64>,
}

/// What stands at the cursor.
enum Found {
    Record {
        record: Stored,
        begins: u64,
    },
    /// Not a record that is wanted; the cursor has moved on.
    Nothing,
    /// All that is confirmed has been read.
    End,
}

impl Reader {
    pub fn new(shared: Arc<Shared>, from: u64) -> Self {
        Self {
            shared,
            expected: from,
            open: None,
            done: None,
        }
    }

    /// Reads at most so many records and, but for the last record, bytes.
    pub fn read(&mut self, records_max: usize, bytes_max: usize) -> Result<Stretch, SpoolError> {
        let (mut stretch, began) = (Stretch::default(), self.expected);
        while stretch.records.len() < records_max && stretch.buffer.len() < bytes_max {
            let Some(bounds) = self.bounds() else {
                break;
            };
            let open = match &mut self.open {
                Some(open) if open.id == bounds.name.id => open,
                slot => match Open::new(&bounds, &self.shared.dir) {
                    Ok(open) => slot.insert(open),
                    // What has been read of the segments before must be given out: it is not read again. The next call
                    // comes here first and tells.
                    Err(_) if self.expected > began => break,
                    Err(error) => {
                        self.shared.observer.error(ErrorKind::File);
                        return Err(error);
                    }
                },
            };
            match open.next(&bounds, self.expected, &mut stretch.buffer) {
                Found::Record { record, begins } => {
                    let lost = record.seq - self.expected;
                    let damage = open.damage(begins, lost);
                    self.expected = record.seq + 1;
                    stretch.records.push(record);
                    stretch.lost += lost;
                    self.report(&bounds, damage);
                }
                Found::Nothing => {}
                Found::End => {
                    let lost = bounds.end.saturating_sub(self.expected);
                    let damage = open.damage(bounds.bytes, lost);
                    self.expected = self.expected.max(bounds.end);
                    stretch.lost += lost;
                    // A torn tail was told when the spool was opened.
                    self.report(&bounds, damage.filter(|_| lost > 0));
                    if bounds.growing {
                        break;
                    }
                    self.done = Some(bounds.name.id);
                    self.open = None;
                }
            }
        }
        stretch.end = self.expected;
        Ok(stretch)
    }

    fn bounds(&self) -> Option<Bounds> {
        let done = self.done;
        self.shared.with(|state| {
            let mut segments = state.segments.iter();
            let segment =
                segments.find(|segment| done.is_none_or(|done| segment.name.id > done))?;
            Some(Bounds {
                name: segment.name,
                bytes: segment.bytes,
                end: segment.end,
                growing: state.active == Some(segment.name.id),
            })
        })
    }

    fn report(&self, bounds: &Bounds, damage: Option<Damage>) {
        let Some(damage) = damage else {
            return;
        };
        report(&damage, &*self.shared.observer);
        if damage.lost > 0 {
            self.shared.keep(|segment| segment.name == bounds.name);
        }
    }
}

/// Counts damage and says where it is.
pub fn report(damage: &Damage, observer: &dyn Observer) {
    let (file, offset, bytes) = (damage.path.display(), damage.offset, damage.bytes);
    if damage.lost == 0 {
        observer.error(ErrorKind::TornTail);
        tracing::warn!(
            %file, offset, bytes,
            "the spool holds bytes that cannot be read, as a crash leaves them; no record is known to be lost"
        );
        return;
    }
    observer.error(ErrorKind::Damaged);
    observer.lost(damage.lost);
    tracing::error!(
        %file, offset, bytes, lost = damage.lost,
        "the spool is damaged: accepted records cannot be read; the file will be kept beside the spool"
    );
}

impl Open {
    fn new(bounds: &Bounds, dir: &Path) -> Result<Self, SpoolError> {
        let path = bounds.name.path(dir);
        let file = File::open(&path).map_err(|source| SpoolError::io("open", &path, source))?;
        Ok(Self {
            id: bounds.name.id,
            salt: bounds.name.salt,
            path,
            file,
            buffer: Vec::new(),
            base: 0,
            cursor: 0,
            bad_from: None,
        })
    }

    fn offset(&self) -> u64 {
        self.base + self.cursor as u64
    }

    /// Looks at what stands at the cursor and moves it on. A record's bytes are added to `out`.
    fn next(&mut self, bounds: &Bounds, expected: u64, out: &mut Vec<u8>) -> Found {
        let begins = self.offset();
        if begins >= bounds.bytes {
            return Found::End;
        }
        self.fill(HEAD_BYTES, bounds);
        let Some(head) = frame::head(&self.buffer[self.cursor..], self.salt) else {
            self.seek_head(bounds);
            return Found::Nothing;
        };
        if begins + head.frame_bytes() as u64 > bounds.bytes {
            // Its end was never confirmed, or the file was cut.
            self.bad_from.get_or_insert(begins);
            self.cursor += HEAD_BYTES;
            return Found::Nothing;
        }
        self.fill(head.frame_bytes(), bounds);
        let end = self.cursor + head.frame_bytes();
        let Some(body) = self.buffer.get(self.cursor + HEAD_BYTES..end) else {
            // The file could not be read that far, and the cursor stands behind it.
            return Found::Nothing;
        };
        self.cursor = end;
        if head.seq < expected {
            // Drained before, and so is what was unreadable before it.
            self.bad_from = None;
        } else if head.seq < bounds.end {
            if head.fits(self.salt, body) {
                let start = out.len();
                out.extend_from_slice(body);
                let record = Stored {
                    seq: head.seq,
                    at_us: head.at_us,
                    range: start..out.len(),
                };
                return Found::Record { record, begins };
            }
            self.bad_from.get_or_insert(begins);
        }
        // Beyond the segment's end are frames that were never confirmed.
        Found::Nothing
    }

    /// Moves on to the next sound head, or as far as it is certain that there is none.
    fn seek_head(&mut self, bounds: &Bounds) {
        self.bad_from.get_or_insert(self.base + self.cursor as u64);
        let from = self.cursor + 1;
        let rest = self.buffer.get(from..).unwrap_or_default();
        let is_all = self.base + self.buffer.len() as u64 >= bounds.bytes;
        self.cursor = match frame::find(rest, self.salt) {
            Some(at) => from + at,
            None if is_all => self.buffer.len(),
            // The beginning of a head may stand at the end.
            None => from.max(self.buffer.len().saturating_sub(HEAD_BYTES - 1)),
        };
    }

    /// Reads on until so many bytes stand behind the cursor, or the segment ends. What the disk does not give is bad
    /// to the segment's end.
    fn fill(&mut self, bytes: usize, bounds: &Bounds) {
        while self.buffer.len() - self.cursor < bytes
            && self.base + (self.buffer.len() as u64) < bounds.bytes
        {
            let error = match self.read_more(bytes, bounds) {
                Ok(1..) => continue,
                Ok(0) => io::Error::from(io::ErrorKind::UnexpectedEof),
                Err(error) => error,
            };
            tracing::error!(file = %self.path.display(), %error, "a segment of the spool cannot be read");
            self.bad_from.get_or_insert(self.base + self.cursor as u64);
            (self.base, self.cursor) = (bounds.bytes, 0);
            self.buffer.clear();
        }
    }

    fn read_more(&mut self, bytes: usize, bounds: &Bounds) -> io::Result<usize> {
        self.buffer.drain(..self.cursor);
        self.base += self.cursor as u64;
        self.cursor = 0;
        let held = self.buffer.len();
        let at = self.base + held as u64;
        let left = usize::try_from(bounds.bytes - at).unwrap_or(usize::MAX);
        let wanted = bytes.max(CHUNK_BYTES).min(left);
        self.buffer.resize(held + wanted, 0);
        self.file.seek(SeekFrom::Start(at))?;
        let read = self.file.read(&mut self.buffer[held..])?;
        self.buffer.truncate(held + read);
        Ok(read)
    }

    /// What could not be read until `end`, and what is lost with it; none when all is well.
    fn damage(&mut self, end: u64, lost: u64) -> Option<Damage> {
        let bad_from = self.bad_from.take();
        if bad_from.is_none() && lost == 0 {
            return None;
        }
        let offset = bad_from.unwrap_or(end);
        Some(Damage {
            path: self.path.clone(),
            offset,
            bytes: end.saturating_sub(offset),
            lost,
        })
    }
}

/// What a segment from before the start holds, when no other tells where it ends.
pub struct Measured {
    /// The number behind its last record.
    pub end: u64,
    pub bytes: u64,
    /// Bytes behind that record, as a crash leaves them. What they were nobody can tell.
    pub torn: Option<Damage>,
}

/// Reads a segment through.
pub fn measure(name: Name, dir: &Path) -> Result<Measured, SpoolError> {
    let path = name.path(dir);
    let bytes = std::fs::metadata(&path)
        .map_err(|source| SpoolError::io("look at", &path, source))?
        .len();
    let bounds = Bounds {
        name,
        bytes,
        end: u64::MAX,
        growing: false,
    };
    let mut open = Open::new(&bounds, dir)?;
    let (mut end, mut body) = (name.first, Vec::new());
    loop {
        body.clear();
        match open.next(&bounds, end, &mut body) {
            Found::Record { record, .. } => {
                end = record.seq + 1;
                open.bad_from = None;
            }
            Found::Nothing => {}
            Found::End => {
                let torn = open.damage(bytes, 0);
                return Ok(Measured { end, bytes, torn });
            }
        }
    }
}
