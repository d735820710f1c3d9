//! Where the weights of experts live when they are not on the compute device.

use std::fmt;

use candle_core::DType;
use moe_trace::{ExpertId, LayerId};

use crate::{ExpertShape, ExpertTypes, ExpertWeights, HostReports, Result};

/// A place that holds every expert of a model.
pub trait ExpertStore: fmt::Debug + Send + Sync {
    /// Sizes of the experts.
    fn shape(&self) -> ExpertShape;

    /// Types of the weights that the store hands out, one entry a layer.
    fn weight_types(&self) -> &[ExpertTypes];

    /// Type of the tokens that the experts of every layer are at their best with.
    fn activations(&self) -> DType {
        let mut types = self.weight_types().iter().map(|types| types.activations());
        let first = types.next().unwrap_or(DType::F32);
        if types.all(|other| other == first) { first } else { DType::F32 }
    }

    /// Bytes of all experts.
    fn bytes(&self) -> u64 {
        let shape = self.shape();
        self.weight_types().iter().map(|&types| (shape.experts * shape.expert_bytes(types)) as u64).sum()
    }

    /// Returns the weights of an expert in host memory, to compute with.
    ///
    /// # Errors
    /// An expert that does not exist; weights that cannot be read.
    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights>;

    /// Lends the bytes of an expert's gate, up and down projection, row by row in their [types](Self::weight_types), to
    /// copy from; a store that has them as they are needed lends them from where they lie.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and what `read` says.
    fn with_bytes(
        &self,
        layer: LayerId,
        expert: ExpertId,
        read: &mut dyn FnMut([&[u8]; 3]) -> Result<()>,
    ) -> Result<()> {
        self.fetch(layer, expert)?.with_bytes(read)
    }

    /// Reads an expert from disk straight into `weights` in host memory, of the expert's types, and says whether it did: a
    /// store that cannot, or has it in memory, leaves them as they are.
    ///
    /// # Errors
    /// An expert that does not exist; weights that cannot be read. What `weights` are then is undefined.
    fn read_to(&self, layer: LayerId, expert: ExpertId, _weights: &mut ExpertWeights) -> Result<bool> {
        self.shape().index(layer, expert).map(|_| false)
    }

    /// Brings the weights of an expert from disk into memory that the operating system may take back, and returns when they
    /// are there: a later [`with_bytes`](Self::with_bytes) does not wait for the disk then. A store without a disk does
    /// nothing, nor does one that reads past such memory. [`ReadAhead`](crate::ReadAhead) calls this on threads of its own.
    ///
    /// # Errors
    /// An expert that does not exist; weights that cannot be read.
    fn read_ahead(&self, layer: LayerId, expert: ExpertId) -> Result<()> {
        self.shape().index(layer, expert).map(|_| ())
    }

    /// What a [`HostCache`](crate::HostCache) did; `None` from other stores.
    fn host_reports(&self) -> Option<HostReports> {
        None
    }
}
