//! NumPy's array files: a header in Python's notation, then the elements.

use std::path::Path;

use super::array::{IntArray, IntType};
use super::record;
use crate::{Place, Result, TraceError};

const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header; NumPy's own fit into a few hundred bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// Whether bytes begin like an array file.
pub(super) fn is_npy(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Reads an array of integers in row-major order from the bytes of an array file; `name` is for messages.
pub(super) fn read<'a>(path: &Path, name: &str, bytes: &'a [u8]) -> Result<IntArray<&'a [u8]>> {
    read_as(path, name, bytes, false)
}

/// Reads an array as [`read`] does, or one of booleans as 0 and 1.
pub(super) fn read_flags<'a>(path: &Path, name: &str, bytes: &'a [u8]) -> Result<IntArray<&'a [u8]>> {
    read_as(path, name, bytes, true)
}

fn read_as<'a>(path: &Path, name: &str, bytes: &'a [u8], flags: bool) -> Result<IntArray<&'a [u8]>> {
    let fail = |field: &str, value: &str, limit: &str| {
        Err::<IntArray<&[u8]>, TraceError>(record(path, Place::Entry(name.to_owned()), field, value, limit))
    };
    if !is_npy(bytes) {
        return fail("magic", "another", "expected \\x93NUMPY");
    }
    let (length_bytes, start): (usize, usize) = match bytes.get(6) {
        Some(1) => (2, 10),
        Some(2 | 3) => (4, 12),
        version => return fail("version", &format!("{version:?}"), "expected 1, 2 or 3"),
    };
    let Some(length) = bytes.get(8..8 + length_bytes) else { return fail("header", "cut off", "expected its length") };
    let length = length.iter().rev().fold(0usize, |length, &byte| length << 8 | usize::from(byte));
    let header = match bytes.get(start..start.saturating_add(length)) {
        Some(header) if length <= LONGEST_HEADER => String::from_utf8_lossy(header),
        _ => {
            return fail(
                "header length",
                &length.to_string(),
                &format!("expected at most {LONGEST_HEADER} and the file's"),
            );
        }
    };
    let value = |key: &str| {
        let (_, rest) = header.split_once(&format!("'{key}':"))?;
        Some(rest.trim_start())
    };
    let Some(descr) = value("descr").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next()) else {
        return fail("header", &header, "expected a type string 'descr'");
    };
    let kind = match descr {
        "|i1" | "<i1" => IntType::I8,
        "|u1" | "<u1" => IntType::U8,
        "|b1" if flags => IntType::U8,
        "<i2" => IntType::I16,
        "<u2" => IntType::U16,
        "<i4" => IntType::I32,
        "<u4" => IntType::U32,
        "<i8" => IntType::I64,
        "<u8" => IntType::U64,
        other => return fail("descr", other, "expected little-endian integers"),
    };
    if !value("fortran_order").is_some_and(|rest| rest.starts_with("False")) {
        return fail("fortran_order", "not False", "expected row-major order");
    }
    let Some(shape) = value("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next()) else {
        return fail("header", &header, "expected a tuple 'shape'");
    };
    let extents = shape.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    let Ok(extents) = extents.map(str::parse).collect::<std::result::Result<Vec<usize>, _>>() else {
        return fail("shape", shape, "expected whole numbers");
    };
    IntArray::new(path, name, kind, extents, &bytes[start + length..])
}
