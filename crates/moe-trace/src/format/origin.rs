//! The file behind a map.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::{Result, TraceError};

/// A file that is mapped. The map does not keep it open: a capture may have more shards than a process may have open
/// files.
#[derive(Debug)]
pub(crate) struct Origin {
    path: PathBuf,
    len: u64,
    opened: Instant,
    /// Microseconds after opening at which the file is looked at again.
    next_look: AtomicU64,
    /// Device and number of the file there.
    place: (u64, u64),
}

impl Origin {
    pub(crate) fn of(path: &Path, file: &File) -> std::io::Result<Origin> {
        let found = file.metadata()?;
        Ok(Origin {
            path: path.to_owned(),
            len: found.len(),
            opened: Instant::now(),
            next_look: AtomicU64::new(0),
            place: place(&found),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the file is as long as when it was mapped. A file that was replaced or removed is still mapped whole.
    ///
    /// The file is looked at once a millisecond at most: short sequences are read faster than the system answers.
    pub(crate) fn check(&self) -> Result<()> {
        const PAUSE: u64 = 1000;
        let now = u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX);
        if now < self.next_look.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.next_look.store(now.saturating_add(PAUSE), Ordering::Relaxed);
        if let Ok(found) = std::fs::metadata(&self.path)
            && place(&found) == self.place
            && found.len() < self.len
        {
            return Err(TraceError::Shrunk { path: self.path.clone(), len: found.len(), expected: self.len });
        }
        Ok(())
    }
}

#[cfg(unix)]
fn place(found: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (found.dev(), found.ino())
}

/// Windows lets no other process cut or replace a mapped file, so files need not be told apart.
#[cfg(not(unix))]
fn place(_: &std::fs::Metadata) -> (u64, u64) {
    (0, 0)
}
