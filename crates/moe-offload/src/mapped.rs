//! Experts in memory-mapped safetensors files.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use moe_trace::{ExpertId, LayerId};
use safetensors::{Dtype, SafeTensors};

use crate::store::expert_index;
use crate::{ExpertShape, ExpertStore, ExpertWeights, OffloadError, Result, WeightType};

/// An [`ExpertStore`] over the checkpoint files of a model: the operating system reads what is fetched, and may drop it
/// again.
#[derive(Debug)]
pub struct MappedStore {
    shape: ExpertShape,
    /// What weights are converted to, and its name.
    dtype: DType,
    weight_type: WeightType,
    files: Vec<Mmap>,
    /// Gate, up and down projection of each expert, `[layers x experts]`.
    experts: Vec<[Stored; 3]>,
}

/// Where a projection lies.
#[derive(Debug)]
struct Stored {
    file: usize,
    bytes: Range<usize>,
    dtype: DType,
    dims: (usize, usize),
}

impl MappedStore {
    /// Maps `files` and finds the projections of every expert in them; weights are converted to `dtype` when fetched.
    ///
    /// `names` gives the tensor names of an expert's gate, up and down projection.
    ///
    /// # Errors
    /// [`OffloadError::Size`], [`OffloadError::Io`], [`OffloadError::Safetensors`], [`OffloadError::MissingTensor`], [`OffloadError::Shape`],
    /// [`OffloadError::Dtype`].
    pub fn open(
        files: &[PathBuf],
        shape: ExpertShape,
        dtype: DType,
        names: impl Fn(LayerId, ExpertId) -> [String; 3],
    ) -> Result<MappedStore> {
        shape.check()?;
        let weight_type = dtype.try_into()?;
        let mut tensors = HashMap::new();
        let mut maps = Vec::with_capacity(files.len());
        for (number, path) in files.iter().enumerate() {
            let map = map_file(path).map_err(|source| OffloadError::Io { path: path.clone(), source })?;
            let (header_len, metadata) = SafeTensors::read_metadata(&map)
                .map_err(|source| OffloadError::Safetensors { path: path.clone(), source })?;
            let start = size_of::<u64>() + header_len;
            for (name, info) in metadata.tensors() {
                let bytes = start + info.data_offsets.0..start + info.data_offsets.1;
                tensors.insert(name, (number, bytes, info.dtype, info.shape.clone()));
            }
            maps.push(map);
        }
        let mut find = |name: String, dims: (usize, usize)| {
            let Some((file, bytes, dtype, found)) = tensors.remove(&name) else {
                return Err(OffloadError::MissingTensor { name, files: files.len() });
            };
            if found != [dims.0, dims.1] {
                return Err(OffloadError::Shape { name, found, expected: vec![dims.0, dims.1] });
            }
            let dtype = match dtype {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => return Err(OffloadError::Dtype { name, dtype: format!("{other:?}") }),
            };
            Ok(Stored { file, bytes, dtype, dims })
        };
        let mut experts = Vec::new();
        for layer in (0..).take(shape.layers).map(LayerId) {
            for expert in (0..).take(shape.experts).map(ExpertId) {
                let [gate, up, down] = names(layer, expert);
                let [gate_dims, up_dims, down_dims] = shape.projections();
                experts.push([find(gate, gate_dims)?, find(up, up_dims)?, find(down, down_dims)?]);
            }
        }
        Ok(MappedStore { shape, dtype, weight_type, files: maps, experts })
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.files[stored.file][stored.bytes.clone()]
    }
}

#[expect(unsafe_code, reason = "mapping is what lets the operating system hold and drop the weights")]
fn map_file(path: &Path) -> std::io::Result<Mmap> {
    // SAFETY: the map is read only; a checkpoint that somebody truncates while it is open makes reads fault, as with
    // every mapped file.
    unsafe { Mmap::map(&File::open(path)?) }
}

impl ExpertStore for MappedStore {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let stored = &self.experts[expert_index(self.shape, layer, expert)?];
        let [gate, up, down] = stored.each_ref().map(|stored| -> Result<Tensor> {
            let (rows, columns) = stored.dims;
            let tensor = Tensor::from_raw_buffer(self.bytes(stored), stored.dtype, &[rows, columns], &Device::Cpu)?;
            Ok(tensor.to_dtype(self.dtype)?)
        });
        ExpertWeights::new(gate?, up?, down?)
    }

    fn with_bytes(
        &self,
        layer: LayerId,
        expert: ExpertId,
        read: &mut dyn FnMut([&[u8]; 3]) -> Result<()>,
    ) -> Result<()> {
        let stored = &self.experts[expert_index(self.shape, layer, expert)?];
        match stored.iter().all(|stored| stored.dtype == self.dtype) {
            true => read(stored.each_ref().map(|stored| self.bytes(stored))),
            false => self.fetch(layer, expert)?.with_bytes(read),
        }
    }
}
