//! What other recorders write is read, and what they got wrong is told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arrays;
mod big_moe_on_edge;
mod contradictions;
mod dialects;
mod empty_slots;
mod granite;
mod holes;
mod ranks;
mod report;
mod rows;
mod sglang;
mod steps;
mod torch_dump;

use std::path::{Path, PathBuf};

use moe_trace::{ImportOptions, MemoryTrace, TraceError, import};

/// A file of the folder of real traces; `None`, and a line that says so, where the folder is absent.
fn real(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MOE_TRACES").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces"));
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent; set MOE_TRACES to the folder of real traces", path.display());
    None
}

/// A file made by `tests/fixtures/make_fixtures.py`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Imports a file of the given bytes.
fn read(bytes: impl AsRef<[u8]>, options: &ImportOptions) -> Result<MemoryTrace, TraceError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    std::fs::write(&path, bytes).unwrap();
    import(&path, options)
}

/// The message of an import that fails, causes included, the path shortened to `f`.
fn failure(bytes: impl AsRef<[u8]>, options: &ImportOptions) -> String {
    let error = read(bytes, options).unwrap_err();
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let message = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    match message.find("/f") {
        Some(at) => format!("f{}", &message[at + 2..]),
        None => message,
    }
}

#[test]
fn content_that_nobody_knows_is_refused() {
    let message = failure("hello", &ImportOptions::default());
    let expected =
        "f: no known trace format: it begins with \"hello\"; known are traces, folders of shards, and big-moe-on-edge";
    assert!(message.starts_with(expected), "{message}");
}
