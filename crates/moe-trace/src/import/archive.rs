//! Members of zip archives: what NumPy and PyTorch save several arrays in.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use super::input::{Input, InputReader};
use super::spool::too_many;
use super::{io, record};
use crate::{Place, Result, TraceError};

/// A zip archive.
pub(super) struct Archive {
    path: PathBuf,
    zip: ZipArchive<InputReader>,
    input: Input,
}

impl Archive {
    /// The most members that are looked at.
    const MEMBERS: usize = 1 << 20;

    pub(super) fn open(input: &Input) -> Result<Archive> {
        let path = input.path();
        let zip = ZipArchive::new(input.reader()?).map_err(|source| malformed(path, source))?;
        if zip.len() > Self::MEMBERS {
            let limit = format!("at most {}", Self::MEMBERS);
            return Err(record(
                path,
                Place::Entry("archive".into()),
                "number of members",
                &zip.len().to_string(),
                limit,
            ));
        }
        Ok(Archive { path: path.to_owned(), zip, input: input.clone() })
    }

    /// Names of the members, sorted as people count: `r2` before `r10`.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let names = self.zip.file_names().map(|name| name.map(Cow::into_owned));
        let mut names =
            names.collect::<std::result::Result<Vec<String>, _>>().map_err(|source| malformed(&self.path, source))?;
        names.sort_by(|a, b| natural(a).cmp(&natural(b)));
        Ok(names)
    }

    /// Reads a member. Memory grows with what is there, not with what the archive claims.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let packed = self.zip.by_name(name).map_err(|source| malformed(&self.path, source))?.compressed_size();
        self.read_within(name, self.input.max_unpacked(packed))
    }

    /// Reads a member of at most `limit` bytes.
    pub(super) fn read_within(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let member = self.zip.by_name(name).map_err(|source| malformed(&self.path, source))?;
        if member.size() <= limit {
            let read = member.take(limit.saturating_add(1)).read_to_end(&mut bytes);
            read.map_err(io(&self.path, "read a member of the archive"))?;
            if bytes.len() as u64 <= limit {
                return Ok(bytes);
            }
        }
        Err(too_many(&self.path, Place::Entry(name.to_owned()), limit))
    }
}

fn malformed(path: &Path, source: zip::result::ZipError) -> TraceError {
    TraceError::Malformed { path: path.to_owned(), format: "zip", source: Box::new(source) }
}

/// A name cut into text and numbers.
fn natural(name: &str) -> Vec<(&str, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| text + end);
        parts.push((&rest[..text], rest[text..digits].parse().unwrap_or(u64::MAX)));
        rest = &rest[digits..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::natural;

    #[test]
    fn names_sort_as_people_count() {
        let mut names = vec!["r10.npy", "r2.npy", "a", "r2.np"];
        names.sort_by(|a, b| natural(a).cmp(&natural(b)));
        assert_eq!(names, ["a", "r2.np", "r2.npy", "r10.npy"]);
    }
}
