//! Experts in memory-mapped checkpoint files.

use std::hint::black_box;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use memmap2::Advice;
use moe_trace::{ExpertId, LayerId};

use crate::gguf_experts::GgufExperts;
use crate::store::expert_index;
use crate::tensor_table::{MappedFile, Stored, TensorTable};
use crate::{
    BlockMatrix, ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, Projection, Result, WeightLocation, WeightType,
};

/// Bytes that the operating system is asked for at once: Linux cuts longer requests short.
const REQUEST_BYTES: usize = 256 << 10;
/// Distance of the bytes that are touched to have every page of a map in memory.
const PAGE_BYTES: usize = 4096;

/// An [`ExpertStore`] over the checkpoint files of a model: the operating system reads what is fetched, and may drop it
/// again.
///
/// Opening reads the headers of the files. [`with_bytes`](ExpertStore::with_bytes) lends what is mapped, and quantized
/// experts are computed from there; nothing is copied. A file that another process truncates is told where that is seen
/// before it is read; a disk that fails under a mapped file ends the process, as the operating system has it.
#[derive(Debug)]
pub struct MappedStore {
    shape: ExpertShape,
    types: Vec<ExpertTypes>,
    files: Vec<MappedFile>,
    /// Gate, up and down projection of each expert, `[layers x experts]`.
    experts: Vec<[Stored; 3]>,
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
        Ok(MappedStore { shape, types, files: table.files, experts })
    }

    /// Maps a GGUF file, or all files of a split one, and finds the experts in them.
    ///
    /// The blocks that have experts are the layers, in order; shapes and types are as the files have them. Experts may be
    /// stacked (`blk.N.ffn_gate_exps.weight`), with gate and up fused (`ffn_gate_up_exps`), or a matrix each
    /// (`ffn_gate.E.weight`).
    ///
    /// # Errors
    /// [`Io`](crate::OffloadError::Io); [`GgufField`](crate::OffloadError::GgufField),
    /// [`GgufTruncated`](crate::OffloadError::GgufTruncated), [`GgufDuplicate`](crate::OffloadError::GgufDuplicate),
    /// [`TensorTruncated`](crate::OffloadError::TensorTruncated) for damaged files;
    /// [`MissingTensor`](crate::OffloadError::MissingTensor), [`Rank`](crate::OffloadError::Rank),
    /// [`Shape`](crate::OffloadError::Shape), [`Dtype`](crate::OffloadError::Dtype),
    /// [`Blocks`](crate::OffloadError::Blocks), [`ExtraTensor`](crate::OffloadError::ExtraTensor) for experts of another
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
                return Err(crate::OffloadError::MixedTypes { layer, first, other });
            }
            types.push(first);
        }
        Ok(MappedStore { shape: found.shape, types, files: table.files, experts })
    }

    fn stored(&self, layer: LayerId, expert: ExpertId) -> Result<&[Stored; 3]> {
        let stored = &self.experts[expert_index(self.shape, layer, expert)?];
        stored.iter().try_for_each(|stored| self.files[stored.file].check())?;
        Ok(stored)
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.files[stored.file].map[stored.bytes.clone()]
    }

    /// Asks the operating system to read, and does not wait.
    fn request(&self, stored: &Stored) -> Result<()> {
        let file = &self.files[stored.file];
        for start in stored.bytes.clone().step_by(REQUEST_BYTES) {
            let len = REQUEST_BYTES.min(stored.bytes.end - start);
            file.map.advise_range(Advice::WillNeed, start, len).map_err(|source| file.failed(source))?;
        }
        Ok(())
    }
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
            let (stored, (rows, columns)) = (&stored[which], dims[which]);
            let (Some(found), Some(dtype)) = (stored.weight_type.dense(), wanted[which].dense()) else {
                let map = &self.files[stored.file].map;
                let blocks = BlockMatrix::mapped(stored.weight_type, dims[which], map, stored.bytes.clone())?;
                return Ok(Projection::Blocks(blocks));
            };
            let tensor = Tensor::from_raw_buffer(self.bytes(stored), found, &[rows, columns], &Device::Cpu)?;
            Ok(Projection::Dense(tensor.to_dtype(dtype)?))
        });
        ExpertWeights::from_projections([gate?, up?, down?])
    }

    fn with_bytes(
        &self,
        layer: LayerId,
        expert: ExpertId,
        read: &mut dyn FnMut([&[u8]; 3]) -> Result<()>,
    ) -> Result<()> {
        let stored = self.stored(layer, expert)?;
        let wanted = self.types[layer.index()].each();
        match stored.iter().zip(wanted).all(|(stored, wanted)| stored.weight_type == wanted) {
            true => read(stored.each_ref().map(|stored| self.bytes(stored))),
            false => self.fetch(layer, expert)?.with_bytes(read),
        }
    }

    fn read_ahead(&self, layer: LayerId, expert: ExpertId) -> Result<()> {
        let stored = self.stored(layer, expert)?;
        stored.iter().try_for_each(|stored| self.request(stored))?;
        for byte in stored.iter().flat_map(|stored| self.bytes(stored).iter().step_by(PAGE_BYTES)) {
            black_box(*byte);
        }
        Ok(())
    }
}
