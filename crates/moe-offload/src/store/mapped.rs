//! Experts in memory-mapped checkpoint files.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use moe_trace::{ExpertId, LayerId};

use super::expert_store::ExpertStore;
use crate::checkpoint::{GgufExperts, MappedFile, Stored, TensorTable, WeightLocation};
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights, Lend, Lent, ProjectionBytes};
use crate::memory::{FileReads, PAGE, ReadBuffer, UncachedFile, free_host_bytes, os, read_parts};
use crate::weights::{BlockMatrix, Projection, WeightType};

/// Bytes that the operating system is asked for at once: Linux cuts longer requests short.
const REQUEST_BYTES: usize = 256 << 10;
/// An [`ExpertStore`] over the checkpoint files of a model: the operating system reads what is fetched, and may drop it
/// again.
///
/// Opening reads the headers of the files. [`lend`](ExpertStore::lend) lends what is mapped, or where not all
/// experts fit in memory, what it reads past the page cache ([`FileReads`] chooses); quantized experts are computed where
/// they are mapped, and nothing is copied. A file that another process truncates is told where that is seen before it is
/// read; a disk that fails under a mapped file ends the process, as the operating system has it, while one that fails
/// under a direct read is an error.
#[derive(Debug)]
pub struct MappedStore {
    shape: ExpertShape,
    types: Vec<ExpertTypes>,
    files: Vec<MappedFile>,
    /// Gate, up and down projection of each expert, `[layers x experts]`.
    experts: Vec<[Stored; 3]>,
    /// If loads read past the page cache.
    direct: Option<Direct>,
    /// Blocks with experts that are no layers.
    skipped_blocks: usize,
}

/// What reads past the page cache take.
#[derive(Debug)]
struct Direct {
    /// One for each mapped file.
    files: Vec<UncachedFile>,
    /// Of threads that are not reading.
    buffers: Mutex<Vec<ReadBuffer>>,
}

impl MappedStore {
    /// Maps safetensors `files` and finds the projections of every expert in them; weights are converted to `dtype` when
    /// fetched.
    ///
    /// `names` gives the places of an expert's gate, up and down projection: names of tensors, or
    /// [parts](WeightLocation::part) of tensors that stack experts.
    ///
    /// # Errors
    /// [`Size`](crate::OffloadError::Size), [`Io`](crate::OffloadError::Io),
    /// [`Safetensors`](crate::OffloadError::Safetensors), [`MissingTensor`](crate::OffloadError::MissingTensor),
    /// [`Shape`](crate::OffloadError::Shape), [`Dtype`](crate::OffloadError::Dtype).
    pub fn open<L: Into<WeightLocation>>(
        files: &[PathBuf],
        shape: ExpertShape,
        dtype: DType,
        names: impl Fn(LayerId, ExpertId) -> [L; 3],
    ) -> Result<MappedStore> {
        shape.check()?;
        let types = vec![WeightType::try_from(dtype)?.into(); shape.layers];
        let table = TensorTable::safetensors(files)?;
        let experts = find_experts(&table, shape, |layer, expert| names(layer, expert).map(Into::into))?;
        let (files, skipped_blocks) = (table.files, 0);
        MappedStore { shape, types, files, experts, direct: None, skipped_blocks }.with_reads(FileReads::Auto)
    }

    /// Maps a GGUF file and finds its experts. Of a split file any part stands for all, which lie beside it as
    /// `NAME-00001-of-00003.gguf` and so on; or all of them are given.
    ///
    /// The blocks that have experts are the layers, in order, but for those that only predict the token after the next
    /// ([`skipped_blocks`](Self::skipped_blocks)); shapes and types are as the files have them. Experts may be
    /// stacked (`blk.N.ffn_gate_exps.weight`), with gate and up fused (`ffn_gate_up_exps`), or a matrix each
    /// (`ffn_gate.E.weight`).
    ///
    /// # Errors
    /// [`Io`](crate::OffloadError::Io); [`GgufField`](crate::OffloadError::GgufField),
    /// [`GgufTruncated`](crate::OffloadError::GgufTruncated), [`GgufDuplicate`](crate::OffloadError::GgufDuplicate),
    /// [`GgufAlignment`](crate::OffloadError::GgufAlignment), [`GgufOverlap`](crate::OffloadError::GgufOverlap),
    /// [`GgufMetadata`](crate::OffloadError::GgufMetadata),
    /// [`TensorTruncated`](crate::OffloadError::TensorTruncated) for damaged files;
    /// [`GgufMissingPart`](crate::OffloadError::GgufMissingPart), [`GgufSplit`](crate::OffloadError::GgufSplit) for split ones;
    /// [`MissingTensor`](crate::OffloadError::MissingTensor), [`Rank`](crate::OffloadError::Rank),
    /// [`Shape`](crate::OffloadError::Shape), [`Dtype`](crate::OffloadError::Dtype),
    /// [`Blocks`](crate::OffloadError::Blocks), [`ExtraTensor`](crate::OffloadError::ExtraTensor),
    /// [`Gateless`](crate::OffloadError::Gateless), [`TwoLayouts`](crate::OffloadError::TwoLayouts) for experts of another
    /// kind.
    pub fn open_gguf(files: &[PathBuf]) -> Result<MappedStore> {
        let table = TensorTable::gguf(files)?;
        let found = GgufExperts::find(&table)?;
        let experts = find_experts(&table, found.shape, |layer, expert| found.locations(layer, expert))?;
        let of_expert = |stored: &[Stored; 3]| ExpertTypes::from(stored.each_ref().map(|stored| stored.weight_type));
        let mut types = Vec::with_capacity(found.shape.layers);
        for (layer, stored) in (0..).map(LayerId).zip(experts.chunks_exact(found.shape.experts)) {
            let first = of_expert(&stored[0]);
            if let Some(other) = stored.iter().map(of_expert).find(|&other| other != first) {
                return Err(OffloadError::MixedTypes { layer, first, other });
            }
            types.push(first);
        }
        let (shape, files, skipped_blocks) = (found.shape, table.files, found.skipped_blocks);
        MappedStore { shape, types, files, experts, direct: None, skipped_blocks }.with_reads(FileReads::Auto)
    }

    /// Returns the paths of all parts of a GGUF file, given any of them: what [`open_gguf`](Self::open_gguf) reads.
    ///
    /// # Errors
    /// As [`open_gguf`](Self::open_gguf) for a header or a part that cannot be read.
    pub fn gguf_files(path: &Path) -> Result<Vec<PathBuf>> {
        TensorTable::gguf_files(path)
    }

    /// Chooses how loads read the files; a store is opened with [`FileReads::Auto`].
    ///
    /// # Errors
    /// [`Io`](crate::OffloadError::Io).
    pub fn with_reads(mut self, reads: FileReads) -> Result<MappedStore> {
        let direct = match reads {
            FileReads::Cached => false,
            FileReads::Direct => true,
            // Where nobody knows what is free, the operating system decides what stays.
            FileReads::Auto => free_host_bytes().is_ok_and(|free| self.file_bytes() > free),
        };
        self.direct = match direct {
            true => {
                let files = self.files.iter().map(MappedFile::open_uncached).collect::<Result<_>>()?;
                Some(Direct { files, buffers: Mutex::default() })
            }
            false => None,
        };
        Ok(self)
    }

    /// The files that the store reads, all parts of a split one.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(MappedFile::path)
    }

    /// Number of blocks of a GGUF file that have experts and are no layers, since they only predict the token after the next.
    pub fn skipped_blocks(&self) -> usize {
        self.skipped_blocks
    }

    /// Bytes of all experts in the files, which a page cache would hold. They are fewer than the
    /// [bytes](ExpertStore::bytes) in memory where weights are converted to a wider type.
    pub fn file_bytes(&self) -> u64 {
        self.experts.iter().flatten().map(|stored| stored.bytes.len() as u64).sum()
    }

    /// How loads read the files: what [`FileReads::Auto`] was taken for.
    pub fn reads(&self) -> FileReads {
        if self.direct.is_some() { FileReads::Direct } else { FileReads::Cached }
    }

    fn stored(&self, layer: LayerId, expert: ExpertId) -> Result<&[Stored; 3]> {
        let stored = &self.experts[self.shape.index(layer, expert)?];
        stored.iter().try_for_each(|stored| self.files[stored.file].check())?;
        Ok(stored)
    }

    fn mapped(&self, stored: &Stored) -> &[u8] {
        &self.files[stored.file].map[stored.bytes.clone()]
    }

    /// Hands the projections of an expert, as the files have them, to `read`.
    fn with_stored<T>(&self, stored: &[Stored; 3], read: impl FnOnce(ProjectionBytes<'_>) -> Result<T>) -> Result<T> {
        let Some(direct) = &self.direct else {
            return read(stored.each_ref().map(|stored| self.mapped(stored)).into());
        };
        let free = || direct.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = free().pop().unwrap_or_default();
        let parts = stored.each_ref().map(|stored| (&direct.files[stored.file], stored.bytes.clone()));
        let [gate, up, down] = read_parts(parts, &mut buffer)?;
        let told = |which: usize| move |source| self.files[stored[which].file].failed(source);
        let outcome = match (gate.map_err(told(0)), up.map_err(told(1)), down.map_err(told(2))) {
            (Ok(gate), Ok(up), Ok(down)) => read(ProjectionBytes { gate, up, down }),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => Err(error),
        };
        free().push(buffer);
        outcome
    }

    /// Asks the operating system to read, and does not wait.
    fn request(&self, stored: &Stored) -> Result<()> {
        let file = &self.files[stored.file];
        for start in stored.bytes.clone().step_by(REQUEST_BYTES) {
            let len = REQUEST_BYTES.min(stored.bytes.end - start);
            os::will_need(&file.map, start, len).map_err(|source| file.failed(source))?;
        }
        Ok(())
    }
}

/// Numbers of one type as those of another; `None` for quantized blocks.
fn dense(found: WeightType, wanted: WeightType, dims: (usize, usize), bytes: &[u8]) -> Result<Option<Projection>> {
    let (Some(found), Some(wanted)) = (found.dense(), wanted.dense()) else { return Ok(None) };
    let tensor = Tensor::from_raw_buffer(bytes, found, &[dims.0, dims.1], &Device::Cpu)?;
    Ok(Some(Projection::Dense(tensor.to_dtype(wanted)?)))
}

fn find_experts(
    table: &TensorTable,
    shape: ExpertShape,
    locations: impl Fn(LayerId, ExpertId) -> [WeightLocation; 3],
) -> Result<Vec<[Stored; 3]>> {
    let mut experts = Vec::new();
    for layer in (0..).take(shape.layers).map(LayerId) {
        for expert in (0..).take(shape.experts).map(ExpertId) {
            let [gate, up, down] = locations(layer, expert);
            let [gate_dims, up_dims, down_dims] = shape.projections();
            experts.push([table.find(gate, gate_dims)?, table.find(up, up_dims)?, table.find(down, down_dims)?]);
        }
    }
    Ok(experts)
}

impl ExpertStore for MappedStore {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        &self.types
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let (stored, wanted) = (self.stored(layer, expert)?, self.types[layer.index()].each());
        let dims = self.shape.projections();
        let [gate, up, down] = [0, 1, 2].map(|which| -> Result<Projection> {
            let stored = &stored[which];
            if let Some(converted) = dense(stored.weight_type, wanted[which], dims[which], self.mapped(stored))? {
                return Ok(converted);
            }
            let map = &self.files[stored.file].map;
            let blocks = BlockMatrix::mapped(stored.weight_type, dims[which], map, stored.bytes.clone())?;
            Ok(Projection::Blocks(blocks))
        });
        ExpertWeights::from_projections([gate?, up?, down?])
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, mut lend: Lend<'l>) -> Result<Lent<'l>> {
        let stored = self.stored(layer, expert)?;
        if let (Some(direct), Some(blocks)) = (&self.direct, lend.blocks_mut()) {
            let fits = |(stored, blocks): (&Stored, &&mut BlockMatrix)| {
                stored.weight_type == blocks.weight_type() && blocks.reads(&stored.bytes)
            };
            if stored.iter().zip(&blocks).all(fits) {
                for (stored, blocks) in stored.iter().zip(blocks) {
                    let read = blocks.read(&direct.files[stored.file], &stored.bytes)?;
                    read.map_err(|source| self.files[stored.file].failed(source))?;
                }
                return Ok(lend.filled());
            }
        }
        let wanted = self.types[layer.index()].each();
        if stored.iter().zip(wanted).all(|(stored, wanted)| stored.weight_type == wanted) {
            return self.with_stored(stored, |bytes| lend.bytes(bytes));
        }
        let dims = self.shape.projections();
        self.with_stored(stored, |bytes| {
            let bytes = bytes.each();
            let [gate, up, down] = [0, 1, 2].map(|which| {
                let (found, dims, bytes) = (stored[which].weight_type, dims[which], bytes[which]);
                match dense(found, wanted[which], dims, bytes)? {
                    Some(converted) => Ok(converted),
                    None => Projection::from_bytes(found, dims, bytes),
                }
            });
            lend.weights(&ExpertWeights::from_projections([gate?, up?, down?])?)
        })
    }

    fn read_ahead(&self, layer: LayerId, expert: ExpertId) -> Result<()> {
        let stored = self.stored(layer, expert)?;
        if self.direct.is_some() {
            // What is read past the page cache has nowhere to wait.
            return Ok(());
        }
        stored.iter().try_for_each(|stored| self.request(stored))?;
        for byte in stored.iter().flat_map(|stored| self.mapped(stored).iter().step_by(PAGE)) {
            black_box(*byte);
        }
        Ok(())
    }
}
