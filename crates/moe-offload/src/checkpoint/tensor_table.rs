//! The tensors of mapped checkpoint files.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::gguf::GgufHeader;
use super::weight_location::WeightLocation;
use super::{gguf, gguf_parts};
use crate::error::{OffloadError, Result};
use crate::memory::UncachedFile;
use crate::weights::WeightType;

/// A mapped file; it stays open, so that its length can be asked for.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    file: File,
    pub(crate) map: Arc<Mmap>,
}

impl MappedFile {
    #[expect(unsafe_code, reason = "mapping is what lets the operating system hold and drop the weights")]
    fn open(path: &Path) -> Result<MappedFile> {
        let map = || -> std::io::Result<(File, Mmap)> {
            let file = File::open(path)?;
            // SAFETY: the map is read only; its length is checked before each use, and a checkpoint that somebody
            // truncates while it is read makes the read fault, as with every mapped file.
            let map = unsafe { Mmap::map(&file)? };
            Ok((file, map))
        };
        let (file, map) = map().map_err(|source| OffloadError::Io { path: path.to_owned(), source })?;
        Ok(MappedFile { path: path.to_owned(), file, map: Arc::new(map) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the file has not become shorter than its map.
    pub(crate) fn check(&self) -> Result<()> {
        let len = self.file.metadata().map_err(|source| self.failed(source))?.len();
        let expected = self.map.len() as u64;
        if len < expected {
            return Err(OffloadError::Shrunk { path: self.path.clone(), len, expected });
        }
        Ok(())
    }

    /// Opens the file once more, to be read past the page cache.
    pub(crate) fn open_uncached(&self) -> Result<UncachedFile> {
        UncachedFile::open(&self.path).map_err(|source| self.failed(source))
    }

    /// An error of reading the file.
    pub(crate) fn failed(&self, source: std::io::Error) -> OffloadError {
        OffloadError::Io { path: self.path.clone(), source }
    }
}

/// Maps a GGUF file and reads its header.
fn open_gguf(path: &Path) -> Result<(MappedFile, GgufHeader)> {
    let file = MappedFile::open(path)?;
    let header = gguf::header(path, &file.map)?;
    Ok((file, header))
}

/// Where a projection lies.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) file: usize,
    pub(crate) bytes: Range<usize>,
    pub(crate) weight_type: WeightType,
}

/// Files, and what is in them.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    pub(crate) files: Vec<MappedFile>,
    entries: BTreeMap<String, Entry>,
    /// Numbers of the metadata of a GGUF file, each with the file that says it first.
    numbers: BTreeMap<&'static str, (u64, usize)>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    start: usize,
    /// The slowest dimension first.
    dims: Vec<usize>,
    /// The type, or the name of one that experts do not have.
    weight_type: Result<WeightType, String>,
}

impl TensorTable {
    /// Reads the headers of safetensors files.
    pub(crate) fn safetensors(paths: &[PathBuf]) -> Result<TensorTable> {
        let mut table = TensorTable::default();
        for (number, path) in paths.iter().enumerate() {
            let file = MappedFile::open(path)?;
            let (header_len, metadata) = SafeTensors::read_metadata(&file.map)
                .map_err(|source| OffloadError::Safetensors { path: path.clone(), source })?;
            let start = size_of::<u64>() + header_len;
            for (name, info) in metadata.tensors() {
                let weight_type = match info.dtype {
                    Dtype::F32 => Ok(WeightType::F32),
                    Dtype::F16 => Ok(WeightType::F16),
                    Dtype::BF16 => Ok(WeightType::BF16),
                    other => Err(format!("{other:?}")),
                };
                let (start, dims) = (start + info.data_offsets.0, info.shape.clone());
                table.entries.insert(name, Entry { file: number, start, dims, weight_type });
            }
            table.files.push(file);
        }
        Ok(table)
    }

    /// Paths of all parts of a GGUF file, which lie beside it; its own if it is whole.
    pub(crate) fn gguf_files(path: &Path) -> Result<Vec<PathBuf>> {
        let (_, header) = open_gguf(path)?;
        match gguf_parts::part_of(path, &header)? {
            Some(part) => gguf_parts::siblings(path, part),
            None => Ok(vec![path.to_owned()]),
        }
    }

    /// Reads the headers of GGUF files: one, all parts of a split one, or one part, whose other parts lie beside it.
    pub(crate) fn gguf(paths: &[PathBuf]) -> Result<TensorTable> {
        let paths = match paths {
            [path] => TensorTable::gguf_files(path)?,
            paths => paths.to_vec(),
        };
        let files = paths.iter().map(|path| open_gguf(path)).collect::<Result<Vec<_>>>()?;
        let parts: Vec<(&Path, &GgufHeader)> = files.iter().map(|(file, header)| (file.path(), header)).collect();
        gguf_parts::check_complete(&parts)?;
        let mut table = TensorTable::default();
        for (number, (file, header)) in files.into_iter().enumerate() {
            for (name, tensor) in header.tensors {
                let weight_type = tensor.weight_type().ok_or_else(|| format!("ggml type {}", tensor.type_id));
                let entry = Entry { file: number, start: tensor.start, dims: tensor.dims, weight_type };
                if table.entries.contains_key(&name) {
                    return Err(OffloadError::GgufDuplicate { path: file.path, name });
                }
                table.entries.insert(name, entry);
            }
            for (key, value) in header.numbers {
                table.numbers.entry(key).or_insert((value, number));
            }
            table.files.push(file);
        }
        Ok(table)
    }

    /// A number of the metadata of a GGUF file.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.numbers.get(key).map(|&(value, _)| value)
    }

    /// Checks a number of the metadata, if it is there, against what the tensors show.
    ///
    /// # Errors
    /// [`OffloadError::GgufMetadata`].
    pub(super) fn check_number(&self, key: &'static str, found: usize, fits: impl Fn(u64) -> bool) -> Result<()> {
        match self.numbers.get(key) {
            Some(&(value, file)) if !fits(value) => {
                let path = self.files[file].path.clone();
                Err(OffloadError::GgufMetadata { path, key, value, found: found as u64 })
            }
            _ => Ok(()),
        }
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape of a tensor, the slowest dimension first.
    pub(super) fn dims(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| &*entry.dims)
    }

    /// Finds a projection `[rows, columns]`.
    pub(crate) fn find(&self, location: WeightLocation, (rows, columns): (usize, usize)) -> Result<Stored> {
        let WeightLocation { tensor: name, part, parts } = location;
        let Some(entry) = self.entries.get(&name) else {
            return Err(OffloadError::MissingTensor { name, files: self.files.len() });
        };
        let fits = match &*entry.dims {
            [outer @ .., last] => {
                let stacked = outer.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
                let whole = outer.last().is_some_and(|inner| inner.is_multiple_of(rows));
                part < parts && whole && *last == columns && stacked == rows.checked_mul(parts)
            }
            [] => false,
        };
        if !fits {
            let transposed = matches!(*entry.dims, [experts, inner, outer]
                if parts > 1 && parts.is_multiple_of(experts.max(1)) && inner == columns
                    && rows.checked_mul(parts / experts.max(1)) == Some(outer));
            if transposed {
                return Err(OffloadError::Transposed { name, found: entry.dims.clone() });
            }
            let expected = if parts == 1 { vec![rows, columns] } else { vec![parts, rows, columns] };
            return Err(OffloadError::Shape { name, found: entry.dims.clone(), expected });
        }
        let weight_type = match &entry.weight_type {
            Ok(weight_type) => *weight_type,
            Err(dtype) => return Err(OffloadError::Dtype { name, dtype: dtype.clone() }),
        };
        let block = weight_type.block_weights();
        if !columns.is_multiple_of(block) {
            return Err(OffloadError::Blocks { weights: weight_type, columns, block });
        }
        let (len, file) = (weight_type.bytes(rows, columns), &self.files[entry.file]);
        let start = part.checked_mul(len).and_then(|offset| offset.checked_add(entry.start));
        let bytes = start.and_then(|start| Some(start..start.checked_add(len)?));
        match bytes.filter(|bytes| bytes.end <= file.map.len()) {
            Some(bytes) => Ok(Stored { file: entry.file, bytes, weight_type }),
            None => {
                let left = file.map.len().saturating_sub(entry.start) as u64;
                let needed = (len as u64).saturating_mul(part as u64 + 1);
                Err(OffloadError::TensorTruncated { path: file.path.clone(), name, needed, left })
            }
        }
    }
}
