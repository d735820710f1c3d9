//! Folders with one writer.

use std::fs::{self, File, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use super::temporary::is_at;

/// The right to write to a folder, which one process has at a time. The file `.lock` in the folder holds it; the operating
/// system gives it back when the process ends, however that is.
///
/// ```
/// use moe_trace::FolderLock;
/// let folder = tempfile::tempdir()?;
/// let lock = FolderLock::take(folder.path())?;
/// assert_eq!(FolderLock::take(folder.path()).unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
/// drop(lock);
/// FolderLock::take(folder.path())?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// Locked while it is open.
    _file: File,
}

impl FolderLock {
    /// Takes the lock of a folder that exists.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceBusy`] if another process, or another lock of this process, has it;
    /// [`ErrorKind::InvalidInput`] if `.lock` is no file; what creating or locking the file finds.
    pub fn take(folder: impl AsRef<Path>) -> Result<FolderLock> {
        let path = folder.as_ref().join(".lock");
        // A link would never be the file that is opened, and a pipe would never open.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::new(ErrorKind::InvalidInput, ".lock is no file, remove it"));
        }
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                // Its last holder may have removed it in between.
                Ok(()) if !is_at(&file, &path) => {}
                Ok(()) => return Ok(FolderLock { path, _file: file }),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(ErrorKind::ResourceBusy, "is being written by another process"));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Elsewhere the next holder could not tell that the file it has opened is gone.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
