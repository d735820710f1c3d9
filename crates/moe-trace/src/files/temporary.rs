//! Temporary names of files that are being written.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The end of a temporary name.
pub(crate) const TEMPORARY: &str = ".tmp";

/// The temporary files of this process.
#[derive(Debug)]
struct Own {
    paths: BTreeSet<PathBuf>,
    created: u64,
    /// No file may be created any more.
    closed: bool,
}

static OWN: Mutex<Own> = Mutex::new(Own { paths: BTreeSet::new(), created: 0, closed: false });

fn own() -> MutexGuard<'static, Own> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary name beside the name that a file will get. The name is removed on drop.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Creates a file beside `target`, `NAME.PROCESS-NUMBER.tmp`, which stays locked while it is open: a file that can be
    /// locked has lost its process. Those of `target` are removed first.
    pub(super) fn create(target: &Path) -> Result<(Temporary, File)> {
        remove_lost(target);
        loop {
            let mut own = own();
            if own.closed {
                return Err(Error::new(ErrorKind::Interrupted, "the process is about to end"));
            }
            own.created += 1;
            let mut name = target.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{}-{}{TEMPORARY}", std::process::id(), own.created));
            let path = target.with_file_name(name);
            let file = match File::create_new(&path) {
                // Of a process with the same number on another machine, or in another container.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            own.paths.insert(path.clone());
            drop(own);
            let temporary = Temporary { path };
            // Where the file system has no locks, no process can take the file for lost either.
            let _ = file.lock();
            // Another process may have taken it for lost before it was locked.
            if is_at(&file, &temporary.path) {
                return Ok((temporary, file));
            }
        }
    }

    /// Gives the file its name.
    pub(super) fn rename(self, target: &Path) -> Result<()> {
        let mut own = own();
        fs::rename(&self.path, target)?;
        own.paths.remove(&self.path);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is absent after a rename.
        if own().paths.remove(&self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the temporary files of this process and lets no file be written any more. This is for a process that a signal
/// ends; a handler may call it from a thread of its own.
pub fn abandon_writes() {
    let mut own = own();
    own.closed = true;
    for path in std::mem::take(&mut own.paths) {
        // It may be gone; the process ends anyway.
        let _ = fs::remove_file(path);
    }
}

/// Removes the temporary files of `target` whose processes have ended.
fn remove_lost(target: &Path) {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else { return };
    // A folder that cannot be listed has nothing to remove; that it cannot be written to is told later.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|found| found.is_file());
        if is_file && is_temporary_of(name, &entry.file_name()) {
            let path = entry.path();
            let Ok(file) = File::open(&path) else { continue };
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => _ = fs::remove_file(&path),
                Ok(()) | Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
            }
        }
    }
}

/// Whether a name is `NAME.PROCESS-NUMBER.tmp`, or `NAME.PROCESS.tmp` as it was before files were locked.
fn is_temporary_of(name: &OsStr, found: &OsStr) -> bool {
    let rest = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
    let rest = rest.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(TEMPORARY.as_bytes()));
    let number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    rest.is_some_and(|rest| {
        let mut parts = rest.splitn(2, |&byte| byte == b'-');
        parts.all(number)
    })
}

/// Whether a path still names an open file.
#[cfg(unix)]
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |found: &fs::Metadata| (found.dev(), found.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(found)) => place(&open) == place(&found),
        _ => false,
    }
}

#[cfg(not(unix))]
pub(super) fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Makes the names in a directory durable. Not every platform can open one; then there is nothing to sync.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).map_or(Ok(()), |directory| directory.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_are_told_from_others() {
        let is = |found: &str| is_temporary_of(OsStr::new("a.json"), OsStr::new(found));
        assert!(is("a.json.7.tmp") && is("a.json.7-12.tmp"));
        for other in
            ["a.json", "a.json.tmp", "a.json..tmp", "a.json.7-.tmp", "a.json.7-1-2.tmp", "a.json.x.tmp", "b.json.7.tmp"]
        {
            assert!(!is(other), "{other}");
        }
    }
}
