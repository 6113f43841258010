//! The bytes of a file or of standard input, unpacked, twice the same.
//!
//! An import reads its input twice: once for the hash of the whole content, from which ids derive,
//! and once for the records. Standard input is therefore kept in a bounded temporary file.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use xxhash_rust::xxh3::Xxh3;

use crate::error::CliError;

const BUFFER_BYTES: usize = 256 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// An input that can be read from its start, as often as needed.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: PathBuf,
    name: String,
    /// How much of the content was hashed; that much is read again, and no more.
    hashed_bytes: Option<u64>,
}

impl Source {
    /// Opens a file, or keeps standard input when the path is `-`.
    ///
    /// # Errors
    /// When it cannot be read, or when standard input is larger than `spool_bytes_max`.
    pub fn open(path: &Path, spool_bytes_max: u64) -> Result<Self, CliError> {
        if path.as_os_str() == "-" {
            return Self::spool(io::stdin().lock(), spool_bytes_max);
        }
        let cannot = |source| CliError::file("open", path, source);
        let file = File::open(path).map_err(cannot)?;
        if file.metadata().map_err(cannot)?.is_dir() {
            return Err(CliError::usage(format!(
                "{} is a folder, not a file",
                path.display()
            )));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            name: path.display().to_string(),
            hashed_bytes: None,
        })
    }

    /// Keeps a stream in a temporary file that has no name.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn spool(stream: impl Read, bytes_max: u64) -> Result<Self, CliError> {
        let path = std::env::temp_dir();
        let cannot = |source| CliError::file("keep standard input in", &path, source);
        let mut file = tempfile::tempfile().map_err(cannot)?;
        let copied = io::copy(&mut stream.take(bytes_max.saturating_add(1)), &mut file)
            .and_then(|copied| file.flush().map(|()| copied))
            .map_err(cannot)?;
        if copied > bytes_max {
            return Err(CliError::usage(format!(
                "standard input is larger than {} MiB; write it to a file, or raise --spool-max-mib",
                bytes_max >> 20
            )));
        }
        Ok(Self {
            file,
            path: PathBuf::from("-"),
            name: String::from("standard input"),
            hashed_bytes: None,
        })
    }

    /// How people know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A reader from the start, unpacked when the content is gzip; of what was hashed, once
    /// something was.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn reader(&self) -> Result<Box<dyn BufRead + Send>, CliError> {
        let reader = self
            .unpacked()
            .map_err(|source| CliError::file("read", &self.path, source))?;
        Ok(match self.hashed_bytes {
            Some(left) => Box::new(Exactly {
                inner: reader,
                left,
            }),
            None => reader,
        })
    }

    fn unpacked(&self) -> io::Result<Box<dyn BufRead + Send>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        let mut buffered = BufReader::with_capacity(BUFFER_BYTES, file);
        if buffered.fill_buf()?.starts_with(&GZIP_MAGIC) {
            let decoder = MultiGzDecoder::new(buffered);
            return Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder)));
        }
        Ok(Box::new(buffered))
    }

    /// The hash of the whole content, unpacked, as it is now.
    ///
    /// # Errors
    /// When the file cannot be read to its end.
    pub fn content_hash(&mut self) -> Result<u128, CliError> {
        self.hashed_bytes = None;
        let mut reader = self.reader()?;
        let mut hash = Xxh3::new();
        let mut hashed = 0;
        loop {
            let bytes = reader
                .fill_buf()
                .map_err(|source| CliError::file("read", &self.path, source))?;
            if bytes.is_empty() {
                self.hashed_bytes = Some(hashed);
                return Ok(hash.digest128());
            }
            hash.update(bytes);
            let length = bytes.len();
            hashed += length as u64;
            reader.consume(length);
        }
    }
}

/// So many bytes: what a growing file gains is left, and a file that shrinks is no whole one.
struct Exactly {
    inner: Box<dyn BufRead + Send>,
    left: u64,
}

impl BufRead for Exactly {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let bytes = self.inner.fill_buf()?;
        if bytes.is_empty() {
            let message = "it became shorter while it was read";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let length = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        Ok(&bytes[..length])
    }

    fn consume(&mut self, length: usize) {
        self.left -= length as u64;
        self.inner.consume(length);
    }
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn read(source: &Source) -> Vec<u8> {
        let mut bytes = Vec::new();
        source
            .reader()
            .expect("open")
            .read_to_end(&mut bytes)
            .expect("read");
        bytes
    }

    #[test]
    fn gzip_and_plain_are_the_same_content() {
        let mut plain = Source::spool(&b"one\ntwo\n"[..], 100).expect("kept");
        let mut members = gzip(b"one\n");
        members.extend(gzip(b"two\n"));
        let mut packed = Source::spool(&members[..], 100).expect("kept");
        assert_eq!(read(&plain), b"one\ntwo\n");
        assert_eq!(read(&packed), b"one\ntwo\n");
        assert_eq!(read(&packed), b"one\ntwo\n", "read again from the start");
        let hashes = (
            plain.content_hash().expect("hash"),
            packed.content_hash().expect("hash"),
        );
        assert_eq!(hashes.0, hashes.1);
    }

    #[test]
    fn what_was_hashed_is_what_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("growing.log");
        std::fs::write(&path, "one\ntwo\n").expect("written");
        let mut source = Source::open(&path, 1).expect("open");
        source.content_hash().expect("hash");
        std::fs::write(&path, "one\ntwo\nthree\n").expect("written");
        assert_eq!(read(&source), b"one\ntwo\n");
        std::fs::write(&path, "one\n").expect("written");
        let mut bytes = Vec::new();
        let error = source.reader().expect("open").read_to_end(&mut bytes);
        assert!(
            error
                .expect_err("too short")
                .to_string()
                .contains("shorter")
        );
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let cut = &gzip(b"some content")[..15];
        let mut source = Source::spool(cut, 100).expect("kept");
        assert!(
            source.content_hash().is_err(),
            "a gzip file that was cut off"
        );
        let error = Source::spool(&b"too long"[..], 3).expect_err("over the limit");
        assert!(error.to_string().contains("--spool-max-mib"));
        assert!(Source::open(Path::new("/no/such/file"), 1).is_err());
        assert!(Source::open(Path::new("/"), 1).is_err());
    }
}
