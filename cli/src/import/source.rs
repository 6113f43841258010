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
        })
    }

    /// How people know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A reader from the start, unpacked when the content is gzip.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn reader(&self) -> Result<Box<dyn BufRead + Send>, CliError> {
        self.unpacked()
            .map_err(|source| CliError::file("read", &self.path, source))
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

    /// The hash of the whole content, unpacked.
    ///
    /// # Errors
    /// When the file cannot be read to its end.
    pub fn content_hash(&self) -> Result<u128, CliError> {
        let mut reader = self.reader()?;
        let mut hash = Xxh3::new();
        loop {
            let bytes = reader
                .fill_buf()
                .map_err(|source| CliError::file("read", &self.path, source))?;
            if bytes.is_empty() {
                return Ok(hash.digest128());
            }
            hash.update(bytes);
            let length = bytes.len();
            reader.consume(length);
        }
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
        let plain = Source::spool(&b"one\ntwo\n"[..], 100).expect("kept");
        let mut members = gzip(b"one\n");
        members.extend(gzip(b"two\n"));
        let packed = Source::spool(&members[..], 100).expect("kept");
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
    fn what_cannot_be_read_is_told() {
        let cut = &gzip(b"some content")[..15];
        let source = Source::spool(cut, 100).expect("kept");
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
