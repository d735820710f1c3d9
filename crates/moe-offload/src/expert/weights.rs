//! One expert: its shape, its weights, its arithmetic.

use candle_core::{Device, Tensor};
use candle_nn::ops::silu;
use moe_trace::{ExpertId, LayerId};

use crate::host_memory::HostArena;
use crate::lend::{Lend, ProjectionBytes};
use crate::{BlockMatrix, ExpertStore, ExpertTypes, OffloadError, Projection, Result};

/// Sizes of the experts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Number of MoE layers.
    pub layers: usize,
    /// Experts a layer.
    pub experts: usize,
    /// Width of the tokens.
    pub hidden: usize,
    /// Width inside an expert.
    pub intermediate: usize,
}

impl ExpertShape {
    /// Checks that every size is at least 1, and that ids of layers and experts are u16.
    pub(crate) fn check(&self) -> Result<()> {
        let ids = usize::from(u16::MAX);
        // Far beyond any model, and the bytes of an expert fit a usize.
        let width = 1 << 24;
        let sizes = [
            ("layers", self.layers, ids),
            ("experts", self.experts, ids),
            ("hidden size", self.hidden, width),
            ("intermediate size", self.intermediate, width),
        ];
        match sizes.into_iter().find(|&(_, value, max)| value == 0 || value > max) {
            Some((field, value, max)) => Err(OffloadError::Size { field, value, max }),
            None => Ok(()),
        }
    }

    /// Checks that the rows of every projection are whole blocks.
    pub(crate) fn check_blocks(&self, types: ExpertTypes) -> Result<()> {
        for (weights, (_, columns)) in types.each().into_iter().zip(self.projections()) {
            let block = weights.block_weights();
            if !columns.is_multiple_of(block) {
                return Err(OffloadError::Blocks { weights, columns, block });
            }
        }
        Ok(())
    }

    /// Returns the place of an expert among all `layers x experts`.
    ///
    /// # Errors
    /// [`OffloadError::LayerOutOfRange`], [`OffloadError::NoSuchExpert`].
    ///
    /// ```
    /// use moe_offload::ExpertShape;
    /// use moe_trace::{ExpertId, LayerId};
    /// let shape = ExpertShape { layers: 2, experts: 8, hidden: 4, intermediate: 4 };
    /// assert_eq!(shape.index(LayerId(1), ExpertId(3))?, 11);
    /// assert!(shape.index(LayerId(0), ExpertId(8)).is_err());
    /// # Ok::<(), moe_offload::OffloadError>(())
    /// ```
    pub fn index(&self, layer: LayerId, expert: ExpertId) -> Result<usize> {
        if layer.index() >= self.layers {
            return Err(OffloadError::LayerOutOfRange { layer, layers: self.layers });
        }
        if expert.index() >= self.experts {
            return Err(OffloadError::NoSuchExpert { layer, expert, experts: self.experts });
        }
        Ok(layer.index() * self.experts + expert.index())
    }

    /// Shapes of gate, up and down projection, `[out, in]`.
    pub fn projections(&self) -> [(usize, usize); 3] {
        let (h, i) = (self.hidden, self.intermediate);
        [(i, h), (i, h), (h, i)]
    }

    /// Bytes of one expert whose projections are stored as `types`.
    ///
    /// ```
    /// use moe_offload::{ExpertShape, WeightType};
    /// let gpt_oss = ExpertShape { layers: 24, experts: 32, hidden: 2880, intermediate: 2880 };
    /// assert_eq!(gpt_oss.expert_bytes(WeightType::Q4_0), 3 * 2880 * 2880 / 32 * 18);
    /// ```
    pub fn expert_bytes(&self, types: impl Into<ExpertTypes>) -> usize {
        self.projection_bytes(types).iter().sum()
    }

    /// Bytes of the gate, up and down projection of one expert.
    pub fn projection_bytes(&self, types: impl Into<ExpertTypes>) -> [usize; 3] {
        let (types, dims) = (types.into().each(), self.projections());
        [0, 1, 2].map(|which| types[which].bytes(dims[which].0, dims[which].1))
    }
}

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

    /// Replaces weights in host memory by those of an expert of the same types, in place, and tells whether the store wrote
    /// them without a copy between. They are undefined after an error.
    pub(crate) fn load(&mut self, store: &dyn ExpertStore, layer: LayerId, expert: ExpertId) -> Result<bool> {
        Ok(store.lend(layer, expert, Lend::to_weights(self)?)?.is_straight())
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
    pub(crate) fn blocks_mut(&mut self) -> Option<[&mut BlockMatrix; 3]> {
        match &mut self.projections {
            [Projection::Blocks(gate), Projection::Blocks(up), Projection::Blocks(down)] => Some([gate, up, down]),
            _ => None,
        }
    }

    /// Number of weights, where they are numbers in host memory.
    pub(crate) fn dense_weights(&self) -> Option<usize> {
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
