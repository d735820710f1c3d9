//! Headers of GGUF files.
//!
//! A file consists of a magic number, a version, the number of tensors and of metadata entries; the entries; name, shape,
//! type and place of each tensor; and, aligned, their bytes. Everything in a header is a claim: each number is checked
//! against what is left of the file before it is used.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{OffloadError, Result};
use crate::weights::WeightType;

/// Bytes that tensors are aligned to if the metadata say nothing else.
pub(crate) const ALIGNMENT: usize = 32;
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub(crate) const VERSION: u32 = 3;
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
pub(crate) const TYPE_U32: u32 = 4;
pub(crate) const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;
const MAX_DIMS: u32 = 4;
/// Arrays of arrays: metadata of real models have none.
const MAX_DEPTH: usize = 4;

/// Shape, type and place of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GgufTensor {
    /// The slowest dimension first.
    pub(super) dims: Vec<usize>,
    /// Number of its type.
    pub(super) type_id: u32,
    /// First byte in the file.
    pub(super) start: usize,
}

impl GgufTensor {
    /// Type of the weights, `None` if experts do not have it.
    pub(super) fn weight_type(&self) -> Option<WeightType> {
        WeightType::ALL.into_iter().find(|known| known.gguf_id() == self.type_id)
    }

    /// Bytes that it takes at least: all of them if experts have its type.
    fn len(&self) -> usize {
        let elements = self.dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let Some(elements) = elements.filter(|&elements| elements > 0) else {
            return if self.dims.contains(&0) { 0 } else { usize::MAX };
        };
        match self.weight_type() {
            Some(weight_type) => {
                elements.div_ceil(weight_type.block_weights()).saturating_mul(weight_type.block_bytes())
            }
            None => 1,
        }
    }
}

/// What the header of a file says.
#[derive(Debug)]
pub(super) struct GgufHeader {
    /// Tensors by name.
    pub(super) tensors: BTreeMap<String, GgufTensor>,
    /// Whole numbers of the metadata that are [known](KNOWN_NUMBERS), by their known key.
    pub(super) numbers: BTreeMap<&'static str, u64>,
}

/// Keys of the whole numbers that are kept, without the name of the architecture in front.
const KNOWN_NUMBERS: [&str; 8] = [
    "split.no",
    "split.count",
    "split.tensors.count",
    "block_count",
    "nextn_predict_layers",
    "expert_count",
    "embedding_length",
    "expert_feed_forward_length",
];

/// The known number that a key of the metadata names: `split.count`, or `olmoe.expert_count`.
fn known_number(key: &[u8]) -> Option<&'static str> {
    let key = std::str::from_utf8(key).ok()?;
    let own = key.split_once('.').map_or(key, |(_, own)| own);
    KNOWN_NUMBERS.into_iter().find(|&known| if known.starts_with("split.") { known == key } else { known == own })
}

/// Reads the header of a file.
///
/// # Errors
/// [`OffloadError::GgufField`], [`OffloadError::GgufTruncated`], [`OffloadError::GgufDuplicate`],
/// [`OffloadError::GgufAlignment`], [`OffloadError::GgufOverlap`].
pub(super) fn header(path: &Path, file: &[u8]) -> Result<GgufHeader> {
    let mut header = Header { path, file, at: 0 };
    let magic = header.take("the magic number", MAGIC.len())?;
    if magic != MAGIC {
        let value = u32::from_le_bytes(magic.try_into().expect("4 bytes"));
        return Err(header.field("the magic number", u64::from(value), "the letters GGUF"));
    }
    let version = header.u32("the version")?;
    if !(2..=VERSION).contains(&version) {
        return Err(header.field("the version", version.into(), "2 and 3, of little-endian files"));
    }
    let (tensors, entries) = (header.u64("the number of tensors")?, header.u64("the number of metadata entries")?);
    let (mut alignment, mut numbers) = (ALIGNMENT, BTreeMap::new());
    for _ in 0..entries {
        let key = header.string("a metadata key")?;
        let value_type = header.u32("the type of a metadata value")?;
        if key == ALIGNMENT_KEY.as_bytes() {
            alignment = header.alignment(value_type)?;
            continue;
        }
        let number = header.number(value_type);
        header.skip_value(value_type, 0)?;
        if let (Some(key), Some(number)) = (known_number(key), number) {
            numbers.insert(key, number);
        }
    }
    let mut found = BTreeMap::new();
    for _ in 0..tensors {
        let name = String::from_utf8_lossy(header.string("the name of a tensor")?).into_owned();
        let tensor = header.tensor()?;
        if found.contains_key(&name) {
            return Err(OffloadError::GgufDuplicate { path: path.to_owned(), name });
        }
        found.insert(name, tensor);
    }
    let data = header.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    for (name, tensor) in &mut found {
        // Until here, `start` counts from the first byte of data.
        let offset = tensor.start;
        if !offset.is_multiple_of(alignment) {
            let (path, name, offset) = (path.to_owned(), name.clone(), offset as u64);
            return Err(OffloadError::GgufAlignment { path, name, offset, alignment });
        }
        let start = data.checked_add(offset).filter(|&start| start <= file.len());
        tensor.start = start.ok_or_else(|| OffloadError::GgufTruncated {
            path: path.to_owned(),
            field: "the data of a tensor",
            needed: offset as u64,
            left: file.len().saturating_sub(data) as u64,
        })?;
    }
    check_apart(path, &found)?;
    Ok(GgufHeader { tensors: found, numbers })
}

/// Checks that no tensor begins within another one. A tensor of a type that experts do not have counts as one byte.
fn check_apart(path: &Path, tensors: &BTreeMap<String, GgufTensor>) -> Result<()> {
    let mut ranges: Vec<(usize, usize, &str)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let len = tensor.len();
        // What is empty is nowhere.
        if len > 0 {
            ranges.push((tensor.start, tensor.start.saturating_add(len), name));
        }
    }
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => {
            let (name, other) = (pair[1].2.to_owned(), pair[0].2.to_owned());
            Err(OffloadError::GgufOverlap { path: path.to_owned(), name, other })
        }
        None => Ok(()),
    }
}

/// A header as far as it was read.
struct Header<'a> {
    path: &'a Path,
    file: &'a [u8],
    at: usize,
}

impl<'a> Header<'a> {
    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8]> {
        let left = &self.file[self.at..];
        let Some(taken) = left.get(..len) else {
            let (needed, left) = (len as u64, left.len() as u64);
            return Err(OffloadError::GgufTruncated { path: self.path.to_owned(), field, needed, left });
        };
        self.at += len;
        Ok(taken)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(field, 4)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self, field: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(field, 8)?.try_into().expect("8 bytes")))
    }

    /// A number that counts things in the file or in memory.
    fn size(&mut self, field: &'static str) -> Result<usize> {
        let value = self.u64(field)?;
        usize::try_from(value).map_err(|_| self.field(field, value, "what memory can hold"))
    }

    fn string(&mut self, field: &'static str) -> Result<&'a [u8]> {
        let len = self.size(field)?;
        self.take(field, len)
    }

    fn alignment(&mut self, value_type: u32) -> Result<usize> {
        let field = "the alignment";
        if value_type != TYPE_U32 {
            return Err(self.field("the type of the alignment", value_type.into(), "4, which is u32"));
        }
        let value = self.u32(field)?;
        match usize::try_from(value) {
            Ok(alignment) if alignment > 0 => Ok(alignment),
            _ => Err(self.field(field, value.into(), "at least 1")),
        }
    }

    /// The whole number that comes next, if it is one that is not negative; it is not passed.
    fn number(&self, value_type: u32) -> Option<u64> {
        let at = |len: usize| self.file[self.at..].get(..len);
        let (bytes, signed) = match value_type {
            0 => (at(1)?, false),
            1 => (at(1)?, true),
            2 => (at(2)?, false),
            3 => (at(2)?, true),
            TYPE_U32 => (at(4)?, false),
            5 => (at(4)?, true),
            10 => (at(8)?, false),
            11 => (at(8)?, true),
            _ => return None,
        };
        let negative = signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        (!negative).then(|| u64::from_le_bytes(wide))
    }

    fn skip_value(&mut self, value_type: u32, depth: usize) -> Result<()> {
        let field = "a metadata value";
        match value_type {
            TYPE_STRING => self.string(field).map(|_| ()),
            TYPE_ARRAY => {
                let element = self.u32("the type of an array")?;
                let len = self.u64("the length of an array")?;
                if depth == MAX_DEPTH {
                    return Err(self.field("the depth of an array", depth as u64 + 1, "at most 4"));
                }
                match scalar_bytes(element) {
                    Some(bytes) => {
                        let bytes = len.checked_mul(bytes).and_then(|bytes| usize::try_from(bytes).ok());
                        self.take(field, bytes.unwrap_or(usize::MAX)).map(|_| ())
                    }
                    // Every element takes some bytes, so a claimed length ends with the file.
                    None => (0..len).try_for_each(|_| self.skip_value(element, depth + 1)),
                }
            }
            scalar => match scalar_bytes(scalar) {
                Some(bytes) => self.take(field, usize::try_from(bytes).expect("at most 8")).map(|_| ()),
                None => Err(self.field("the type of a metadata value", scalar.into(), "0..=12")),
            },
        }
    }

    fn tensor(&mut self) -> Result<GgufTensor> {
        let rank = self.u32("the rank of a tensor")?;
        if !(1..=MAX_DIMS).contains(&rank) {
            return Err(self.field("the rank of a tensor", rank.into(), "1..=4"));
        }
        let mut dims = (0..rank).map(|_| self.size("a dimension of a tensor")).collect::<Result<Vec<_>>>()?;
        dims.reverse();
        let type_id = self.u32("the type of a tensor")?;
        Ok(GgufTensor { dims, type_id, start: self.size("the offset of a tensor")? })
    }

    fn field(&self, field: &'static str, value: u64, allowed: &'static str) -> OffloadError {
        OffloadError::GgufField { path: self.path.to_owned(), field, value, allowed }
    }
}

/// Bytes of a metadata value of a fixed size.
fn scalar_bytes(value_type: u32) -> Option<u64> {
    match value_type {
        // u8, i8, bool; u16, i16; u32, i32, f32; u64, i64, f64.
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
