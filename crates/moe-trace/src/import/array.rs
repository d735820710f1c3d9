//! Integer arrays of other programs.

use std::path::Path;

use super::record;
use crate::{Place, Result, TraceError};

/// The type of the elements of an array, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntType {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
}

impl IntType {
    pub(super) fn bytes(self) -> usize {
        match self {
            IntType::I8 | IntType::U8 => 1,
            IntType::I16 | IntType::U16 => 2,
            IntType::I32 | IntType::U32 => 4,
            IntType::I64 | IntType::U64 => 8,
        }
    }
}

/// An array of integers in row-major order.
#[derive(Debug)]
pub(super) struct IntArray<B> {
    name: String,
    kind: IntType,
    shape: Vec<usize>,
    bytes: B,
}

impl<B: AsRef<[u8]>> IntArray<B> {
    /// Creates an array; `bytes` must have exactly the length that the shape says.
    pub(super) fn new(path: &Path, name: &str, kind: IntType, shape: Vec<usize>, bytes: B) -> Result<IntArray<B>> {
        let len = shape.iter().try_fold(kind.bytes(), |len, &extent| len.checked_mul(extent));
        if len != Some(bytes.as_ref().len()) {
            let limit = format!("the data has {} bytes of {kind:?}", bytes.as_ref().len());
            return Err(record(path, Place::Entry(name.to_owned()), "shape", &format!("{shape:?}"), limit));
        }
        Ok(IntArray { name: name.to_owned(), kind, shape, bytes })
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.bytes.as_ref().len() / self.kind.bytes()
    }

    /// An element, counted in row-major order; an unsigned number above `i64::MAX` is `i64::MAX`.
    pub(super) fn get(&self, index: usize) -> i64 {
        let width = self.kind.bytes();
        let bytes = &self.bytes.as_ref()[index * width..][..width];
        // Sign or zero extension to eight bytes.
        let negative = bytes[width - 1] >= 0x80;
        let signed = matches!(self.kind, IntType::I8 | IntType::I16 | IntType::I32 | IntType::I64);
        let mut wide = if negative && signed { [0xff; 8] } else { [0; 8] };
        wide[..width].copy_from_slice(bytes);
        if signed { i64::from_le_bytes(wide) } else { i64::try_from(u64::from_le_bytes(wide)).unwrap_or(i64::MAX) }
    }

    /// The shape as exactly `N` extents; `expected` names them.
    pub(super) fn dimensions<const N: usize>(&self, path: &Path, expected: &str) -> Result<[usize; N]> {
        <[usize; N]>::try_from(self.shape.as_slice())
            .map_err(|_| self.error(path, "shape", &format!("{:?}", self.shape), &format!("expected {expected}")))
    }

    /// A place in the array.
    pub(super) fn place(&self, what: &str) -> Place {
        Place::Entry(format!("{}, {what}", self.name))
    }

    pub(super) fn error(&self, path: &Path, field: &str, value: &str, limit: &str) -> TraceError {
        record(path, Place::Entry(self.name.clone()), field, value, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_extended_by_their_sign() {
        let get =
            |kind, bytes: &[u8]| IntArray::new(Path::new("f"), "a", kind, vec![1], bytes.to_vec()).unwrap().get(0);
        assert_eq!((get(IntType::I8, &[0xff]), get(IntType::U8, &[0xff])), (-1, 255));
        assert_eq!((get(IntType::I16, &[0, 0x80]), get(IntType::U16, &[0, 0x80])), (-32768, 32768));
        assert_eq!(
            (get(IntType::I32, &[0xfe, 0xff, 0xff, 0xff]), get(IntType::U32, &[0xfe, 0xff, 0xff, 0xff])),
            (-2, 0xffff_fffe)
        );
        assert_eq!((get(IntType::I64, &[0xff; 8]), get(IntType::U64, &[0xff; 8])), (-1, i64::MAX));
    }

    #[test]
    fn shapes_must_fit_their_data() {
        let message = |shape: &[usize]| {
            IntArray::new(Path::new("f"), "a", IntType::U16, shape.to_vec(), vec![0; 6]).unwrap_err().to_string()
        };
        assert_eq!(message(&[4]), "f, a: shape is [4], the data has 6 bytes of U16");
        assert_eq!(
            message(&[usize::MAX, 3]),
            format!("f, a: shape is [{}, 3], the data has 6 bytes of U16", usize::MAX)
        );
    }
}
