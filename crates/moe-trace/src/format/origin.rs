//! The file behind a map.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Result, TraceError};

/// A file that is mapped. The map does not keep it open: a capture may have more shards than a process may have open
/// files.
#[derive(Debug)]
pub(super) struct Origin {
    path: PathBuf,
    len: u64,
    /// Device and number of the file there.
    #[cfg(unix)]
    place: (u64, u64),
}

impl Origin {
    pub(super) fn of(path: &Path, file: &File) -> std::io::Result<Origin> {
        let found = file.metadata()?;
        Ok(Origin {
            path: path.to_owned(),
            len: found.len(),
            #[cfg(unix)]
            place: place(&found),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the file is as long as when it was mapped. A file that was replaced or removed is still mapped whole.
    /// Elsewhere than on Unix a mapped file cannot be cut.
    pub(super) fn check(&self) -> Result<()> {
        #[cfg(unix)]
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
