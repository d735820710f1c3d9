//! The bytes that an importer reads, wherever they come from.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::io;
use crate::Result;
use crate::format::map_file;

/// A file or folder to import. It can be read any number of times, from the beginning each time.
#[derive(Clone, Debug)]
pub struct Input {
    path: PathBuf,
    is_folder: bool,
}

impl Input {
    /// Opens a file or folder.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io).
    pub fn open(path: impl AsRef<Path>) -> Result<Input> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(io(path, "open the file"))?;
        Ok(Input { path: path.to_owned(), is_folder: metadata.is_dir() })
    }

    /// The path, for messages and for files that lie beside this one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a folder, which has no bytes.
    pub fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// Reads the bytes from the beginning.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io).
    pub fn reader(&self) -> Result<InputReader> {
        let file = File::open(&self.path).map_err(io(&self.path, "open the file"))?;
        Ok(InputReader::File(BufReader::with_capacity(1 << 16, file)))
    }

    /// All bytes.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io).
    pub fn bytes(&self) -> Result<InputBytes> {
        let file = File::open(&self.path).map_err(io(&self.path, "open the file"))?;
        if file.metadata().map_err(io(&self.path, "read the size"))?.len() == 0 {
            return Ok(InputBytes(None));
        }
        let map = map_file(&file).map_err(io(&self.path, "map the file"))?;
        Ok(InputBytes(Some(Arc::new(map))))
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> Result<u64> {
        std::fs::metadata(&self.path).map(|metadata| metadata.len()).map_err(io(&self.path, "read the size"))
    }
}

/// All bytes of an [`Input`].
#[derive(Clone, Debug)]
pub struct InputBytes(Option<Arc<Mmap>>);

impl AsRef<[u8]> for InputBytes {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |map| map)
    }
}

/// Reads an [`Input`].
#[derive(Debug)]
pub enum InputReader {
    /// A file.
    File(BufReader<File>),
    /// Bytes that are in memory or mapped.
    Bytes(Cursor<InputBytes>),
}

impl Read for InputReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            InputReader::File(file) => file.read(buffer),
            InputReader::Bytes(bytes) => bytes.read(buffer),
        }
    }
}

impl BufRead for InputReader {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        match self {
            InputReader::File(file) => file.fill_buf(),
            InputReader::Bytes(bytes) => bytes.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        match self {
            InputReader::File(file) => file.consume(amount),
            InputReader::Bytes(bytes) => bytes.consume(amount),
        }
    }
}

impl Seek for InputReader {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match self {
            InputReader::File(file) => file.seek(to),
            InputReader::Bytes(bytes) => bytes.seek(to),
        }
    }
}
