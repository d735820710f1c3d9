//! Pipes and packed files become plain bytes in unnamed temporary files.

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::{io, record};
use crate::{Place, Result, TraceError};

/// What a path leads to.
pub(super) enum Origin<'a> {
    File,
    Folder,
    /// What can be read once, and its name.
    Pipe(Box<dyn Read>, &'a Path),
}

/// Looks at what a path leads to, and opens it if it is a pipe.
pub(super) fn origin(path: &Path) -> Result<Origin<'_>> {
    if path == Path::new("-") {
        return Ok(Origin::Pipe(Box::new(std::io::stdin()), Path::new("standard input")));
    }
    let metadata = std::fs::metadata(path).map_err(io(path, "open the file"))?;
    if metadata.is_dir() {
        return Ok(Origin::Folder);
    }
    if metadata.is_file() {
        return Ok(Origin::File);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            let limit = "give a file, a folder or a pipe";
            return Err(record(path, Place::Entry("input".into()), "file", "a device", limit));
        }
    }
    let pipe = File::open(path).map_err(io(path, "open the file"))?;
    Ok(Origin::Pipe(Box::new(pipe), path))
}

/// The most bytes that something of unknown length may have, if the user says it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit(pub(super) Option<u64>);

impl Limit {
    const PIPE: u64 = 4 << 30;
    /// Packed traces have some 5 to 30 bytes for each packed one, deflate has at most 1032.
    const FOR_EACH_PACKED_BYTE: u64 = 100;
    const PACKED_AT_LEAST: u64 = 64 << 20;

    pub(super) fn of_pipe(self) -> u64 {
        self.0.unwrap_or(Self::PIPE)
    }

    pub(super) fn of_packed(self, packed: u64) -> u64 {
        self.0.unwrap_or(packed.saturating_mul(Self::FOR_EACH_PACKED_BYTE).max(Self::PACKED_AT_LEAST))
    }
}

/// The error of more bytes than are allowed.
pub(super) fn too_many(path: &Path, place: Place, limit: u64) -> TraceError {
    record(path, place, "unpacked bytes", "more", format!("at most {limit}: --max-unpacked raises it"))
}

/// Copies a pipe to its end.
pub(super) fn copy(path: &Path, pipe: impl Read, limit: u64) -> Result<File> {
    let mut file = tempfile::tempfile().map_err(io(path, "make a temporary file for the pipe"))?;
    let copied =
        std::io::copy(&mut pipe.take(limit.saturating_add(1)), &mut file).map_err(io(path, "copy the pipe"))?;
    file.flush().map_err(io(path, "copy the pipe"))?;
    if copied > limit {
        return Err(too_many(path, Place::Entry("pipe".into()), limit));
    }
    Ok(file)
}

/// Unpacks gzip, all members of it.
pub(super) fn unpack(path: &Path, packed: impl BufRead, limit: u64) -> Result<File> {
    let mut file = tempfile::tempfile().map_err(io(path, "make a temporary file to unpack gzip"))?;
    let mut unpacked = MultiGzDecoder::new(packed).take(limit.saturating_add(1));
    let mut block = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let read = unpacked.read(&mut block).map_err(|source| {
            let source = Box::new(source);
            TraceError::Malformed { path: path.to_owned(), format: "gzip", source }
        })?;
        if read == 0 {
            return Ok(file);
        }
        total += read as u64;
        if total > limit {
            return Err(too_many(path, Place::Entry("gzip".into()), limit));
        }
        file.write_all(&block[..read]).map_err(io(path, "write the unpacked gzip"))?;
    }
}
