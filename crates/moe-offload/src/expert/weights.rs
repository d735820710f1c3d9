//! The weights of one expert, and its arithmetic.

use candle_core::{Device, Tensor};
use candle_nn::ops::silu;

use super::lend::ProjectionBytes;
use super::shape::ExpertShape;
use super::types::ExpertTypes;
use crate::error::{OffloadError, Result};
use crate::memory::HostArena;
use crate::weights::{BlockMatrix, Projection};

/// Weights of one SwiGLU expert, each projection `[out, in]` in its own storage.
#[derive(Clone, Debug)]
pub struct ExpertWeights {
    /// Gate, up and down.
    projections: [Projection; 3],
}

impl ExpertWeights {
    /// Creates an expert from `gate` and `up`, `[intermediate, hidden]`, and `down`, `[hidden, intermediate]`.
    ///
    /// # Errors
    /// [`OffloadError::Shape`] if the shapes do not fit together.
    pub fn new(gate: Tensor, up: Tensor, down: Tensor) -> Result<ExpertWeights> {
        ExpertWeights::from_projections([gate, up, down].map(Projection::Dense))
    }

    /// Creates an expert from its gate, up and down projection.
    ///
    /// # Errors
    /// [`OffloadError::Shape`] if the shapes do not fit together.
    pub fn from_projections(projections: [Projection; 3]) -> Result<ExpertWeights> {
        let (intermediate, hidden) = projections[0].dims()?;
        let shape = ExpertShape { layers: 1, experts: 1, hidden, intermediate };
        for ((name, projection), dims) in ["gate", "up", "down"].into_iter().zip(&projections).zip(shape.projections())
        {
            let found = projection.dims()?;
            if found != dims {
                let (found, expected) = (vec![found.0, found.1], vec![dims.0, dims.1]);
                return Err(OffloadError::Shape { name: name.to_owned(), found, expected });
            }
        }
        // Slots hold rows one after the other, and kernels differ for others.
        let [gate, up, down] = projections.map(Projection::contiguous);
        Ok(ExpertWeights { projections: [gate?, up?, down?] })
    }

    /// Experts of zeros in host memory that is there to be [overwritten](Self::overwrite). Blocks share one arena, so that what
    /// is kept of one expert keeps the memory of all.
    pub(crate) fn zeros(count: usize, shape: ExpertShape, types: ExpertTypes) -> Result<Vec<ExpertWeights>> {
        let (types, dims) = (types.each(), shape.projections());
        let room: usize = [0, 1, 2].map(|which| Projection::room(types[which], dims[which])).iter().sum();
        let mut arena = HostArena::new(room.saturating_mul(count))?;
        let expert = |_| {
            let [gate, up, down] = [0, 1, 2].map(|which| Projection::zeros_in(&mut arena, types[which], dims[which]));
            ExpertWeights::from_projections([gate?, up?, down?])
        };
        (0..count).map(expert).collect()
    }

    /// An expert of zeros.
    pub(crate) fn zero(shape: ExpertShape, types: ExpertTypes) -> Result<ExpertWeights> {
        let mut one = ExpertWeights::zeros(1, shape, types)?;
        Ok(one.remove(0))
    }

    /// Replaces weights in host memory by others of the same types, in place.
    pub(crate) fn overwrite(&mut self, bytes: ProjectionBytes<'_>) -> Result<()> {
        self.projections.iter_mut().zip(bytes.each()).try_for_each(|(projection, bytes)| projection.overwrite(bytes))
    }

    /// Types of the projections.
    ///
    /// # Errors
    /// [`OffloadError::WeightTypeName`] for a type that experts do not have.
    pub fn types(&self) -> Result<ExpertTypes> {
        let [gate, up, down] = self.projections.each_ref().map(Projection::weight_type);
        Ok([gate?, up?, down?].into())
    }

    /// Gate, up and down projection as blocks, where all of them are.
    pub(super) fn blocks_mut(&mut self) -> Option<[&mut BlockMatrix; 3]> {
        match &mut self.projections {
            [Projection::Blocks(gate), Projection::Blocks(up), Projection::Blocks(down)] => Some([gate, up, down]),
            _ => None,
        }
    }

    /// Number of weights, where they are numbers in host memory.
    pub(super) fn dense_weights(&self) -> Option<usize> {
        let dense = |projection: &Projection| match projection {
            Projection::Dense(tensor) if tensor.device().is_cpu() => Some(tensor.elem_count()),
            _ => None,
        };
        self.projections.iter().map(dense).sum()
    }

    /// The projections: gate, up, down.
    pub fn projections(&self) -> &[Projection; 3] {
        &self.projections
    }

    /// The same weights on `device`; nothing is copied if they are there.
    ///
    /// # Errors
    /// A device that has no room.
    pub fn to_device(&self, device: &Device) -> Result<ExpertWeights> {
        let [gate, up, down] = self.projections.each_ref().map(|projection| projection.to_device(device));
        Ok(ExpertWeights { projections: [gate?, up?, down?] })
    }

    /// Hands the bytes of an expert in host memory to `read`.
    ///
    /// # Errors
    /// [`OffloadError::NotOnHost`]; what `read` says.
    pub fn with_bytes(&self, read: &mut dyn FnMut(ProjectionBytes<'_>) -> Result<()>) -> Result<()> {
        let [gate, up, down] = &self.projections;
        gate.with_bytes(|gate| up.with_bytes(|up| down.with_bytes(|down| read(ProjectionBytes { gate, up, down }))))
    }

    /// Sends tokens `[tokens, hidden]` through the expert.
    ///
    /// # Formula
    /// `down · (silu(gate · x) ⊙ (up · x))`
    ///
    /// # Errors
    /// A tensor operation that failed.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let [gate, up, down] = &self.projections;
        let inner = (silu(&gate.forward(tokens)?)? * up.forward(tokens)?)?;
        down.forward(&inner)
    }
}
