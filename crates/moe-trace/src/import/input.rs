//! The bytes that an importer reads, wherever they come from.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::spool::{self, Limit, Origin};
use super::{io, record};
use crate::format::{MappedOrigin, map_file};
use crate::{Place, Result, TraceError};

/// A file or folder to import. It can be read any number of times, from the beginning each time.
///
/// A pipe is copied into an unnamed temporary file first, what gzip has packed is unpacked into one, and the byte order mark of
/// UTF-8 is left out, so that importers see none of them.
#[derive(Clone, Debug)]
pub struct Input {
    path: PathBuf,
    source: Source,
    limit: Limit,
    packed: bool,
}

#[derive(Clone, Debug)]
enum Source {
    File,
    Folder,
    /// An unnamed temporary file.
    Spooled(Arc<File>),
}

impl Input {
    /// Opens a file, a folder, a pipe, or `-` for standard input.
    ///
    /// `max_unpacked` is the most bytes that anything packed in the file, and a pipe, may have. By default a pipe may have
    /// 4 GiB, and what is packed 100 bytes for each packed one and at least 64 MiB.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io); [`TraceError::Record`](crate::TraceError::Record) for a device, broken gzip,
    /// and more bytes than are allowed; [`TraceError::UnusedOption`] for a limit on a file that is neither packed nor a pipe.
    pub fn open(path: impl AsRef<Path>, max_unpacked: Option<u64>) -> Result<Input> {
        let (path, limit) = (path.as_ref(), Limit(max_unpacked));
        let origin = spool::origin(path)?;
        let (path, source) = match origin {
            Origin::Folder => (path.to_owned(), Source::Folder),
            Origin::File => (path.to_owned(), Source::File),
            Origin::Pipe(pipe, name) => {
                let spooled = spool::copy(name, pipe, limit.of_pipe())?;
                (name.to_owned(), Source::Spooled(Arc::new(spooled)))
            }
        };
        let mut input = Input { path, source, limit, packed: false };
        if input.is_folder() {
            return Ok(input);
        }
        let mut reader = input.raw()?;
        let head = reader.fill_buf().map_err(io(&input.path, "read the file"))?;
        let (is_gzip, is_zip) = (head.starts_with(GZIP), head.starts_with(ZIP));
        if max_unpacked.is_some() && matches!(input.source, Source::File) && !is_gzip && !is_zip {
            let reader = "a file that is neither packed nor a pipe".to_owned();
            return Err(TraceError::UnusedOption { path: input.path, option: "--max-unpacked", reader });
        }
        if is_gzip {
            let unpacked = spool::unpack(&input.path, input.raw()?, limit.of_packed(input.len()?))?;
            input = Input { source: Source::Spooled(Arc::new(unpacked)), packed: true, ..input };
        }
        Ok(input)
    }

    /// The path, for messages and for files that lie beside this one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a folder, which has no bytes.
    pub fn is_folder(&self) -> bool {
        matches!(self.source, Source::Folder)
    }

    /// Whether the file was packed by gzip.
    pub(super) fn was_packed(&self) -> bool {
        self.packed
    }

    /// Reads the bytes from the beginning.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io).
    pub fn reader(&self) -> Result<InputReader> {
        let mut reader = self.raw()?;
        if reader.fill_buf().map_err(io(&self.path, "read the file"))?.starts_with(BYTE_ORDER_MARK) {
            reader.consume(BYTE_ORDER_MARK.len());
        }
        Ok(reader)
    }

    fn raw(&self) -> Result<InputReader> {
        Ok(match &self.source {
            Source::File => {
                let file = File::open(&self.path).map_err(io(&self.path, "open the file"))?;
                InputReader::File(BufReader::with_capacity(1 << 16, file))
            }
            // Readers of one temporary file would share its position.
            _ => InputReader::Bytes(Cursor::new(self.map()?)),
        })
    }

    /// All bytes.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io).
    pub fn bytes(&self) -> Result<InputBytes> {
        let mut bytes = self.map()?;
        if bytes.as_ref().starts_with(BYTE_ORDER_MARK) {
            bytes.start = BYTE_ORDER_MARK.len();
        }
        Ok(bytes)
    }

    fn map(&self) -> Result<InputBytes> {
        let file = self.file()?;
        if file.metadata().map_err(io(&self.path, "read the size"))?.len() == 0 {
            return Ok(InputBytes { map: None, start: 0, origin: None });
        }
        let map = map_file(&file).map_err(io(&self.path, "map the file"))?;
        let origin = match self.source {
            // Nothing else can open an unnamed file.
            Source::Spooled(_) => None,
            _ => Some(Arc::new(MappedOrigin::of(&self.path, &file).map_err(io(&self.path, "read the size"))?)),
        };
        Ok(InputBytes { map: Some(Arc::new(map)), start: 0, origin })
    }

    /// The file that has the bytes. Its position may be shared.
    pub(super) fn file(&self) -> Result<Arc<File>> {
        match &self.source {
            Source::Spooled(file) => Ok(Arc::clone(file)),
            _ => File::open(&self.path).map(Arc::new).map_err(io(&self.path, "open the file")),
        }
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> Result<u64> {
        Ok(self.file()?.metadata().map_err(io(&self.path, "read the size"))?.len())
    }

    /// The most bytes that a packed part of the file may have.
    pub(super) fn max_unpacked(&self, packed: u64) -> u64 {
        self.limit.of_packed(packed)
    }

    /// The most bytes that a pickle may have. Its values take some fifty times as much memory, and PyTorch packs none.
    pub(super) fn max_pickle(&self) -> Result<u64> {
        Ok(self.limit.0.unwrap_or(self.len()?.max(16 << 20)))
    }

    /// Refuses bytes that stand alone, for a format that is more than one file.
    pub(super) fn must_be_on_disk(&self) -> Result<()> {
        match self.source {
            Source::Spooled(_) => {
                let limit = "this format has other files beside it: give a plain file or its folder";
                Err(record(&self.path, Place::Entry("input".into()), "file", "a pipe or packed", limit))
            }
            _ => Ok(()),
        }
    }
}

const GZIP: &[u8] = b"\x1f\x8b";
const ZIP: &[u8] = b"PK";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// All bytes of an [`Input`].
#[derive(Clone, Debug)]
pub struct InputBytes {
    map: Option<Arc<Mmap>>,
    start: usize,
    /// The file behind the map, if another program can cut it.
    origin: Option<Arc<MappedOrigin>>,
}

impl InputBytes {
    /// Checks that the file is as long as when it was mapped; cheap enough to be called for every token.
    pub(super) fn check(&self) -> Result<()> {
        self.origin.as_deref().map_or(Ok(()), MappedOrigin::check)
    }
}

impl AsRef<[u8]> for InputBytes {
    fn as_ref(&self) -> &[u8] {
        self.map.as_deref().map_or(&[], |map| &map[self.start..])
    }
}

/// Reads an [`Input`].
#[derive(Debug)]
pub enum InputReader {
    /// A file.
    File(BufReader<File>),
    /// Bytes that are mapped.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_while_it_is_mapped_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, vec![b'a'; 10_000]).unwrap();
        let bytes = Input::open(&path, None).unwrap().bytes().unwrap();
        bytes.check().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let error = bytes.check().unwrap_err();
        assert!(matches!(error, TraceError::Shrunk { len: 5000, expected: 10_000, .. }), "{error}");
    }

    #[test]
    fn a_limit_on_what_is_not_packed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "token,layer,expert\n").unwrap();
        let error = Input::open(&path, Some(1 << 20)).unwrap_err().to_string();
        let expected = "a file that is neither packed nor a pipe does not use --max-unpacked: leave it out";
        assert!(error.ends_with(expected), "{error}");
        assert!(Input::open(folder.path(), Some(1 << 20)).is_ok(), "files in a folder may be packed");
    }
}
