//! What is wrong with a file that is not well-formed safetensors.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensorError;
use serde::Deserialize;

use super::header::{field, short};
use crate::TraceError;

/// Bytes of a header that safetensors reads, at most.
const LONGEST_HEADER: u64 = 100_000_000;

/// What the header says of a tensor, as far as it tells the length of the file.
#[derive(Deserialize)]
struct Extent {
    data_offsets: Option<(u64, u64)>,
}

/// Tells a file that was cut from one that is damaged otherwise.
pub(super) fn damage(path: &Path, bytes: &[u8], source: SafeTensorError) -> TraceError {
    let len = bytes.len() as u64;
    if let Some(expected) = wanted(bytes).filter(|&expected| expected > len) {
        return TraceError::Truncated { path: path.to_owned(), len, expected };
    }
    // Parsers repeat what they could not read.
    let text = source.to_string();
    match short(&text) {
        shown if shown == text => TraceError::Safetensors { path: path.to_owned(), source },
        shown => field(path, "header", "unreadable", &shown),
    }
}

/// The length of the file as its header has it, as far as the header can be read.
fn wanted(bytes: &[u8]) -> Option<u64> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER {
        return None;
    }
    let end = 8 + length;
    let Some(header) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else { return Some(end) };
    let extents: HashMap<String, Extent> = serde_json::from_slice(header).ok()?;
    extents.values().filter_map(|extent| extent.data_offsets).map(|(_, last)| end.saturating_add(last)).max()
}
