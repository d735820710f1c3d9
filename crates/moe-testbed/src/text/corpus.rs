//! Folders of text, one a domain, split into a training part and a held-out part.

use std::fs;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Result, TestbedError, check};

/// A longer file is cut at line ends into documents of about this size, so that a domain may be one large file.
const MAX_DOCUMENT_BYTES: usize = 1 << 18;
/// One document to train on, one to hold out.
const MIN_DOCUMENTS: usize = 2;

/// Labelled text.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The domains in the order of their names.
    pub domains: Vec<Domain>,
}

/// The text of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Name of the folder.
    pub name: String,
    /// Documents to learn from, in the order of their paths.
    pub training: Vec<String>,
    /// Documents that nothing may learn from, in the order of their paths.
    pub held_out: Vec<String>,
}

impl Corpus {
    /// Reads a folder with one sub-folder a domain; every file below a domain's folder is text.
    ///
    /// About `held_out` of the bytes of each domain, in whole documents, at least one, are set aside. Which ones, is
    /// a function of `seed` and the sorted paths.
    ///
    /// # Errors
    /// A folder or a file that cannot be read, no domain, a file that is not UTF-8, a domain with fewer than two
    /// documents, a `held_out` outside of (0, 0.5].
    pub fn read(folder: &Path, held_out: f64, seed: u64) -> Result<Corpus> {
        check_held_out(held_out)?;
        let folders: Vec<_> = entries(folder)?.into_iter().filter(|path| path.is_dir()).collect();
        if folders.is_empty() {
            return Err(TestbedError::NoDomain { path: folder.to_owned() });
        }
        let domains = folders.iter().map(|folder| Domain::read(folder, held_out, seed));
        Ok(Corpus { domains: domains.collect::<Result<_>>()? })
    }

    /// The training documents of all domains.
    pub fn training(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().flat_map(|domain| &domain.training).map(String::as_str)
    }
}

/// Checks a share that is to be set aside.
pub(super) fn check_held_out(share: f64) -> Result<()> {
    check("held-out fraction", share, share > 0.0 && share <= 0.5, "above 0 up to 0.5")
}

impl Domain {
    fn read(folder: &Path, held_out: f64, seed: u64) -> Result<Domain> {
        let mut documents = Vec::new();
        read_below(folder, &mut documents)?;
        if documents.len() < MIN_DOCUMENTS {
            let (path, documents) = (folder.to_owned(), documents.len());
            return Err(TestbedError::TooFewDocuments { path, documents, min: MIN_DOCUMENTS });
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Domain::split(name, documents, held_out, seed))
    }

    /// Sets about `held_out` of the bytes of at least two documents aside, in whole documents, at least one.
    pub(super) fn split(name: String, documents: Vec<String>, held_out: f64, seed: u64) -> Domain {
        let total: usize = documents.iter().map(String::len).sum();
        let mut order: Vec<usize> = (0..documents.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let (mut set_aside, mut bytes) = (vec![false; documents.len()], 0);
        for &document in &order {
            let with_it = bytes + documents[document].len();
            if with_it as f64 <= held_out * total as f64 {
                (set_aside[document], bytes) = (true, with_it);
            }
        }
        if bytes == 0 {
            // All documents are above the target: the smallest comes closest to it.
            let smallest = (0..documents.len()).min_by_key(|&document| documents[document].len());
            set_aside[smallest.expect("a domain has documents")] = true;
        }
        let mut domain = Domain { name, training: Vec::new(), held_out: Vec::new() };
        for (document, held_out) in documents.into_iter().zip(set_aside) {
            if held_out { &mut domain.held_out } else { &mut domain.training }.push(document);
        }
        domain
    }
}

/// The entries of a folder, sorted, without hidden ones.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(TestbedError::io(folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<_> = paths.collect::<Result<_, _>>().map_err(TestbedError::io(folder))?;
    paths.retain(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    Ok(paths)
}

fn read_below(folder: &Path, documents: &mut Vec<String>) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            read_below(&path, documents)?;
            continue;
        }
        let bytes = fs::read(&path).map_err(TestbedError::io(&path))?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|error| TestbedError::NotUtf8 { path, source: error.utf8_error() })?;
        cut(&text, documents);
    }
    Ok(())
}

/// Cuts a text at line ends; a line that is too long stays whole.
fn cut(text: &str, documents: &mut Vec<String>) {
    let mut document = String::new();
    for line in text.split_inclusive('\n') {
        if !document.is_empty() && document.len() + line.len() > MAX_DOCUMENT_BYTES {
            documents.push(std::mem::take(&mut document));
        }
        document.push_str(line);
    }
    if !document.is_empty() {
        documents.push(document);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn message(files: &[(&str, &[u8])]) -> String {
        let folder = folder(files);
        let error = Corpus::read(folder.path(), 0.1, 0).unwrap_err().to_string();
        error.replace(&folder.path().display().to_string(), "CORPUS")
    }

    #[test]
    fn a_split_is_complete_disjoint_and_seeded() {
        let files: Vec<(String, Vec<u8>)> =
            (0..40).map(|n| (format!("a/{n:02}"), format!("text {n:02}\n").into_bytes())).collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        let folder = folder(&files);
        let read = |seed| Corpus::read(folder.path(), 0.1, seed).unwrap().domains.remove(0);
        let domain = read(1);
        assert_eq!((domain.name.as_str(), domain.training.len(), domain.held_out.len()), ("a", 36, 4));
        let mut all = [domain.training.clone(), domain.held_out.clone()].concat();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 40);
        assert_eq!(read(1), domain);
        assert_ne!(read(2), domain);
    }

    #[test]
    fn a_long_file_becomes_documents_and_loses_nothing() {
        let text = "a line of text\n".repeat(40_000);
        let folder = folder(&[("a/sub/file", text.as_bytes()), ("a/.hidden", b"\xff")]);
        let domain = Corpus::read(folder.path(), 0.1, 0).unwrap().domains.remove(0);
        assert_eq!((domain.training.len(), domain.held_out.len()), (2, 1));
        assert_eq!(domain.training.concat().len() + domain.held_out.concat().len(), text.len());
    }

    #[test]
    fn bad_folders_name_the_culprit() {
        assert_eq!(message(&[]), "CORPUS: no domain, a corpus is a folder with one sub-folder a domain");
        assert_eq!(message(&[("file", b"text")]), message(&[]));
        let too_few = |n| format!("CORPUS/a: {n} documents, a domain needs at least 2 that are not empty");
        assert_eq!(message(&[("a/file", b"text")]), too_few(1));
        assert_eq!(message(&[("a/file", b""), ("a/other", b"")]), too_few(0));
        assert_eq!(message(&[("a/file", b"text"), ("a/other", b"\xff\xfe")]), "CORPUS/a/other: not UTF-8");
        let missing = Corpus::read(Path::new("/nowhere/at/all"), 0.1, 0).unwrap_err();
        assert_eq!(missing.to_string(), "/nowhere/at/all: cannot read or write");
        let fraction = Corpus::read(Path::new("/"), 0.9, 0).unwrap_err();
        assert_eq!(fraction.to_string(), "held-out fraction is 0.9, allowed are above 0 up to 0.5");
    }

    #[test]
    fn an_unreadable_entry_is_an_error() {
        let folder = folder(&[("a/file", b"text"), ("a/other", b"text")]);
        std::os::unix::fs::symlink("/nowhere/at/all", folder.path().join("a/link")).unwrap();
        let error = Corpus::read(folder.path(), 0.1, 0).unwrap_err();
        assert!(matches!(error, TestbedError::Io { path, .. } if path.ends_with("a/link")));
    }
}
