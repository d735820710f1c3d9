//! Files that are complete or absent.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Result, TraceError};

/// The end of a temporary name.
pub(crate) const TEMPORARY: &str = ".tmp";

/// A file under a temporary name, which gets its own when it is complete. If it is dropped before, it is removed.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    /// `None` after the commit.
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    pub(crate) fn create(path: &Path) -> Result<AtomicFile> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}{TEMPORARY}", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(failed(path))?;
        Ok(AtomicFile { path: path.to_owned(), temporary, file: Some(BufWriter::with_capacity(1 << 16, file)) })
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn commit(mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let finish = || -> io::Result<()> {
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&self.temporary, &self.path)?;
            sync_directory(self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        };
        finish().map_err(|source| {
            self.remove();
            failed(&self.path)(source)
        })
    }

    /// An error of writing to the file.
    pub(crate) fn failed(&self) -> impl Fn(io::Error) -> TraceError + use<> {
        failed(&self.path)
    }

    fn remove(&self) {
        // It may not exist; what matters is the error that led here.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> TraceError + use<> {
    let path = path.to_owned();
    move |source| TraceError::Io { path: path.clone(), action: "write the file", source }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(bytes.len()), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            self.remove();
        }
    }
}

/// Writes a file so that its name never shows half of it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(file.failed())?;
    file.commit()
}

/// Makes the names in a directory durable. Not every platform can open one; then there is nothing to sync.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory).map_or(Ok(()), |directory| directory.sync_all())
}
