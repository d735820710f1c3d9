//! One tensor of a mapped file as a slice.

use std::ops::Range;
use std::path::Path;

use bytemuck::Pod;
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::header::field;
use crate::Result;

/// A tensor whose elements are read in place, or copied where the file does not align them.
#[derive(Debug)]
pub(super) enum Column<T> {
    Mapped(Range<usize>),
    Owned(Vec<T>),
}

impl<T: Pod> Column<T> {
    /// Finds the tensor `name`; `None` if the file has none or it is of another type than `dtype`.
    pub(super) fn find(
        map: &Mmap,
        data_start: usize,
        metadata: &Metadata,
        name: &str,
        dtype: Dtype,
    ) -> Option<Column<T>> {
        let info = metadata.info(name).filter(|info| info.dtype == dtype)?;
        let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
        Some(match bytemuck::try_cast_slice::<u8, T>(&map[range.clone()]) {
            Ok(_) => Column::Mapped(range),
            Err(_) => {
                Column::Owned(map[range].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
            }
        })
    }

    pub(super) fn as_slice<'a>(&'a self, map: &'a Mmap) -> &'a [T] {
        match self {
            Column::Mapped(range) => bytemuck::cast_slice(&map[range.clone()]),
            Column::Owned(values) => values,
        }
    }
}

/// Checks the shape of an optional tensor, and that its type is one of `dtypes`; tells whether it is there.
pub(super) fn check(path: &Path, metadata: &Metadata, name: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<bool> {
    let Some(info) = metadata.info(name) else { return Ok(false) };
    if !dtypes.contains(&info.dtype) {
        let limit = format!("expected one of {dtypes:?}");
        return Err(field(path, name, &format!("of type {:?}", info.dtype), &limit));
    }
    if info.shape != shape {
        return Err(field(path, name, &format!("of shape {:?}", info.shape), &format!("expected {shape:?}")));
    }
    Ok(true)
}
