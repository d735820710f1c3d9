//! Where the bytes of a file go.

use std::fs::{self, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// What the path of an output names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A regular file, which may exist already. It is replaced as a whole, at this path behind all links.
    Regular(PathBuf),
    /// A pipe or a character device. It is written to.
    Stream(PathBuf),
    /// The standard output of the process.
    StandardOutput,
}

/// Links that lead to links, at most; Linux follows as many.
const MOST_LINKS: usize = 40;

impl Destination {
    /// Finds what a path names, through links. `/dev/stdout` is the standard output, on every platform.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a path that names a folder, a block device or a socket; what following links finds.
    pub fn of(path: &Path) -> Result<Destination> {
        if ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name)) {
            return Ok(Destination::StandardOutput);
        }
        if path.as_os_str().as_encoded_bytes().last().is_some_and(|&last| std::path::is_separator(last.into())) {
            return Err(refused("is the name of a folder, give the name of a file"));
        }
        match fs::metadata(path) {
            Ok(found) if found.is_file() => Ok(Destination::Regular(fs::canonicalize(path)?)),
            Ok(found) if found.is_dir() => Err(refused("is a folder, give the name of a file")),
            Ok(found) if is_stream(&found) => Ok(Destination::Stream(path.to_owned())),
            Ok(_) => Err(refused("is neither a file nor a pipe nor a character device")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Destination::Regular(behind_links(path)?)),
            Err(error) => Err(error),
        }
    }
}

/// Follows a link whose target does not exist.
fn behind_links(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.with_file_name("").join(target),
            Err(_) if path.file_name().is_none() => return Err(refused("has no file name")),
            Err(_) => return std::path::absolute(path),
        }
    }
    Err(refused("leads through too many links"))
}

fn refused(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, why)
}

#[cfg(unix)]
fn is_stream(found: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_fifo() || found.file_type().is_char_device()
}

#[cfg(not(unix))]
fn is_stream(_: &Metadata) -> bool {
    false
}
