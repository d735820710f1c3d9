//! Files that appear when they are complete.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufWriter, Error, ErrorKind, Result, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use super::destination::Destination;
use super::temporary::{Temporary, sync_directory};

/// A file that is written under a temporary name and gets its own when it is complete and on the disk. A file that is
/// dropped before [`commit`](Self::commit) leaves nothing behind, and a file that was there stays as it was.
///
/// - A symbolic link keeps pointing: the file that it names is written. Other hard links keep the old content.
/// - A pipe or a character device is written to at once, and never replaced. `/dev/stdout` is the standard output, on
///   every platform.
/// - Temporary names are `NAME.PROCESS-NUMBER.tmp`. A process that was killed leaves its temporary file behind, and the
///   next writer of the same name removes it. [`abandon_writes`](crate::abandon_writes) removes those of this process.
///
/// ```
/// use std::io::Write;
/// use moe_trace::WholeFile;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("figures.csv");
/// let mut file = WholeFile::create(&path)?;
/// writeln!(file, "layer,srp")?;
/// assert!(!path.exists());
/// file.commit()?;
/// assert_eq!(std::fs::read_to_string(&path)?, "layer,srp\n");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct WholeFile {
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Regular {
        file: BufWriter<File>,
        temporary: Temporary,
        target: PathBuf,
        /// Those of the file that is replaced.
        permissions: Option<Permissions>,
    },
    Stream(BufWriter<File>),
    StandardOutput(BufWriter<Stdout>),
}

impl WholeFile {
    /// Begins to write a file.
    ///
    /// # Errors
    /// A folder that does not exist or cannot be written to; [`ErrorKind::InvalidInput`] for a path that names a folder, a
    /// block device or a socket.
    pub fn create(path: impl AsRef<Path>) -> Result<WholeFile> {
        const BUFFER: usize = 1 << 16;
        let sink = match Destination::of(path.as_ref())? {
            Destination::Regular(target) => {
                let permissions = fs::metadata(&target).ok().map(|found| found.permissions());
                let (temporary, file) = Temporary::create(&target)?;
                Sink::Regular { file: BufWriter::with_capacity(BUFFER, file), temporary, target, permissions }
            }
            Destination::Stream(path) => {
                Sink::Stream(BufWriter::with_capacity(BUFFER, OpenOptions::new().write(true).open(path)?))
            }
            Destination::StandardOutput => Sink::StandardOutput(BufWriter::with_capacity(BUFFER, std::io::stdout())),
        };
        Ok(WholeFile { sink })
    }

    /// Sets the length of the file, to write its parts in any order.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a pipe, a device or the standard output.
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        match &self.sink {
            Sink::Regular { file, .. } => file.get_ref().set_len(len),
            _ => Err(in_order()),
        }
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// What writing, syncing or renaming finds. The file is absent then, or as it was.
    pub fn commit(self) -> Result<()> {
        match self.sink {
            Sink::Regular { file, temporary, target, permissions } => {
                let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
                if let Some(permissions) = permissions {
                    file.set_permissions(permissions)?;
                }
                file.sync_all()?;
                temporary.rename(&target)?;
                sync_directory(target.parent().unwrap_or(Path::new(".")))
            }
            Sink::Stream(mut file) => file.flush(),
            Sink::StandardOutput(mut file) => file.flush(),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match &mut self.sink {
            Sink::Regular { file, .. } | Sink::Stream(file) => file,
            Sink::StandardOutput(file) => file,
        }
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.writer().flush()
    }
}

/// Pipes, devices and the standard output cannot seek.
impl Seek for WholeFile {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        match &mut self.sink {
            Sink::Regular { file, .. } => file.seek(to),
            _ => Err(in_order()),
        }
    }
}

fn in_order() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the parts of this file are written out of order, give the name of a regular file",
    )
}

/// Writes a [`WholeFile`] at once.
///
/// # Errors
/// As [`WholeFile::create`] and [`WholeFile::commit`].
pub fn write_whole(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}
