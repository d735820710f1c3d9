//! The parts of a split GGUF file.
//!
//! A large model is split as `NAME-00001-of-00003.gguf` and so on. The metadata of each part have its number from 0 on
//! (`split.no`), the number of parts (`split.count`) and the number of all tensors (`split.tensors.count`).

use std::path::{Path, PathBuf};

use super::gguf::GgufHeader;
use crate::error::{OffloadError, Result};

/// Digits of a number in a name.
const DIGITS: usize = 5;

/// Which part of how many a file is; parts count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) part: u64,
    pub(super) parts: u64,
}

/// The name of a part, cut at its number.
struct PartName<'a> {
    stem: &'a str,
    part: Part,
}

impl<'a> PartName<'a> {
    /// `NAME-00001-of-00003.gguf`, whatever its ending.
    fn of(path: &'a Path) -> Option<PartName<'a>> {
        let number = |text: &str| {
            let digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        let (rest, parts) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
        let (stem, part) = rest.rsplit_once('-')?;
        let part = Part { part: number(part)?, parts: number(parts)? };
        (1..=part.parts).contains(&part.part).then_some(PartName { stem, part })
    }

    /// The path of another part.
    fn sibling(&self, path: &Path, part: u64) -> PathBuf {
        let mut name = format!("{}-{part:0DIGITS$}-of-{:0DIGITS$}", self.stem, self.part.parts);
        if let Some(ending) = path.extension().and_then(|ending| ending.to_str()) {
            name.push('.');
            name.push_str(ending);
        }
        path.with_file_name(name)
    }
}

/// Which part a file is, by its metadata or, without those, by its name; `None` if it is whole.
///
/// # Errors
/// [`OffloadError::GgufSplit`] if both say different things, or the metadata say what cannot be.
pub(super) fn part_of(path: &Path, header: &GgufHeader) -> Result<Option<Part>> {
    let number = |key| header.numbers.get(key).copied();
    let named = PartName::of(path).map(|name| name.part).filter(|part| part.parts > 1);
    let told = match (number("split.no"), number("split.count")) {
        (_, None | Some(0 | 1)) => None,
        (Some(no), Some(parts)) if no < parts => Some(Part { part: no + 1, parts }),
        (no, Some(parts)) => {
            let no = no.map_or("missing".to_owned(), |no| no.to_string());
            let problem = format!("split.count is {parts} and split.no is {no}, allowed are 0..={}", parts - 1);
            return Err(OffloadError::GgufSplit { path: path.to_owned(), problem });
        }
    };
    match (told, named) {
        (Some(told), Some(named)) if told != named => {
            let Part { part, parts } = told;
            let problem =
                format!("its metadata say part {part} of {parts}, its name says {} of {}", named.part, named.parts);
            Err(OffloadError::GgufSplit { path: path.to_owned(), problem })
        }
        (told, named) => Ok(told.or(named)),
    }
}

/// Paths of the parts beside one, in order, that one among them.
///
/// # Errors
/// [`OffloadError::GgufSplit`] for a name that does not tell the names of the others; [`OffloadError::GgufMissingPart`].
pub(super) fn siblings(path: &Path, Part { part, parts }: Part) -> Result<Vec<PathBuf>> {
    let Some(name) = PartName::of(path) else {
        let problem = format!(
            "it is part {part} of {parts}, and its name does not tell where the others are: name them \
             NAME-00001-of-{parts:0DIGITS$}.gguf and so on, or give all of them"
        );
        return Err(OffloadError::GgufSplit { path: path.to_owned(), problem });
    };
    let mut paths = Vec::new();
    for other in 1..=parts {
        let sibling = if other == part { path.to_owned() } else { name.sibling(path, other) };
        if !sibling.is_file() {
            return Err(OffloadError::GgufMissingPart { path: sibling, given: path.to_owned(), part, parts });
        }
        paths.push(sibling);
    }
    Ok(paths)
}

/// Checks that files are all parts of one file, if any of them is a part.
///
/// # Errors
/// [`OffloadError::GgufSplit`].
pub(super) fn check_complete(files: &[(&Path, &GgufHeader)]) -> Result<()> {
    let mut seen: Vec<Option<Part>> = Vec::with_capacity(files.len());
    for &(path, header) in files {
        seen.push(part_of(path, header)?);
    }
    let (Some(&(path, header)), Some(Some(first))) = (files.first(), seen.first().copied()) else {
        return match seen.iter().position(Option::is_some) {
            Some(at) => {
                let problem = "it is a part of another file than the files beside it".to_owned();
                Err(OffloadError::GgufSplit { path: files[at].0.to_owned(), problem })
            }
            None => Ok(()),
        };
    };
    let failed = |path: &Path, problem| Err(OffloadError::GgufSplit { path: path.to_owned(), problem });
    let mut numbers = Vec::with_capacity(seen.len());
    for (&(path, _), part) in files.iter().zip(&seen) {
        match part {
            Some(part) if part.parts == first.parts && !numbers.contains(&part.part) => numbers.push(part.part),
            Some(part) if part.parts == first.parts => {
                return failed(path, format!("part {} of {} is given twice", part.part, part.parts));
            }
            _ => return failed(path, format!("it is none of the {} parts of {}", first.parts, files[0].0.display())),
        }
    }
    if let Some(missing) = (1..=first.parts).find(|part| !numbers.contains(part)) {
        return failed(path, format!("it is one of {} parts, and part {missing} is not given", first.parts));
    }
    let found: usize = files.iter().map(|(_, header)| header.tensors.len()).sum();
    match header.numbers.get("split.tensors.count") {
        Some(&told) if told != found as u64 => {
            failed(path, format!("split.tensors.count is {told}, the {} parts have {found} tensors", first.parts))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_names_of_all_parts() {
        let path = Path::new("models/GLM-4.5-Q4_0-00002-of-00012.gguf");
        let name = PartName::of(path).unwrap();
        assert_eq!(name.part, Part { part: 2, parts: 12 });
        assert_eq!(name.sibling(path, 11), Path::new("models/GLM-4.5-Q4_0-00011-of-00012.gguf"));
        for whole in
            ["a.gguf", "a-0001-of-0002.gguf", "a-00003-of-00002.gguf", "a-00000-of-00002.gguf", "-of-00002.gguf"]
        {
            assert!(PartName::of(Path::new(whole)).is_none(), "{whole}");
        }
    }
}
