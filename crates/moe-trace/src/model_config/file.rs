//! The JSON of a `config.json`.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::{Place, Result, TraceError};

/// The largest file that is read; a configuration has a few kilobytes.
const LARGEST: u64 = 16 << 20;

/// Reads the bytes of a configuration.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |action| move |source| TraceError::Io { path: path.to_owned(), action, source };
    let mut json = Vec::new();
    let file = File::open(path).map_err(io("open the file"))?;
    file.take(LARGEST + 1).read_to_end(&mut json).map_err(io("read the file"))?;
    if json.len() as u64 > LARGEST {
        return Err(TraceError::Record {
            path: path.to_owned(),
            place: Place::Entry("configuration".to_owned()),
            field: "size".into(),
            value: format!("more than {LARGEST} bytes").into(),
            limit: "a config.json has some kilobytes".into(),
        });
    }
    Ok(json)
}

/// Parses a configuration as Python's `json` does: a byte order mark is skipped, `NaN` and `Infinity` are null.
pub(super) fn json(path: &Path, bytes: &[u8]) -> Result<Value> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    serde_json::from_slice(&without_constants(bytes)).map_err(|source| TraceError::Malformed {
        path: path.to_owned(),
        format: "JSON",
        source: Box::new(source),
    })
}

/// Replaces the numbers that Python writes and JSON lacks, outside of strings.
fn without_constants(bytes: &[u8]) -> Cow<'_, [u8]> {
    const CONSTANTS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    if !bytes.windows(3).any(|window| matches!(window, b"NaN" | b"Inf")) {
        return Cow::Borrowed(bytes);
    }
    let mut json = Vec::with_capacity(bytes.len() + 16);
    let (mut at, mut in_string) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        let constant = CONSTANTS.iter().find(|&&constant| !in_string && bytes[at..].starts_with(constant));
        if let Some(constant) = constant {
            json.extend(b"null");
            at += constant.len();
            continue;
        }
        let escaped = in_string && byte == b'\\';
        in_string ^= byte == b'"';
        let end = bytes.len().min(at + 1 + usize::from(escaped));
        json.extend(&bytes[at..end]);
        at = end;
    }
    Cow::Owned(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_is_read() {
        let text = "\u{feff}{\"a\": [0.0, Infinity, -Infinity, NaN], \"b\": \"Infinity \\\" NaN\", \"NaN\": 1}";
        let value = json(Path::new("c"), text.as_bytes()).unwrap();
        assert_eq!(value, serde_json::json!({"a": [0.0, null, null, null], "b": "Infinity \" NaN", "NaN": 1}));
        assert!(json(Path::new("c"), b"{\"a\": \"NaN\\").is_err());
    }

    #[test]
    fn a_file_that_is_no_configuration_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, vec![b' '; usize::try_from(LARGEST + 1).unwrap()]).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.ends_with("size is more than 16777216 bytes, a config.json has some kilobytes"), "{message}");
    }
}
