//! Where the weights of experts live when they are not on the compute device.

use std::fmt;

use candle_core::DType;
use moe_trace::{ExpertId, LayerId};

use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights, Lend, Lent, PROJECTIONS, ProjectionBytes};
use crate::report::HostReports;

/// A place that holds every expert of a model.
///
/// A store of one's own gives a shape, types and weights. It overrides [`lend`](Self::lend) if it has the bytes without the
/// weights. Its failures are [`OffloadError::store`]s.
///
/// ```
/// use moe_offload::{
///     ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, Lend, Lent, OffloadError, Projection, ProjectionBytes, Result,
///     WeightType,
/// };
/// use moe_trace::{ExpertId, LayerId};
///
/// /// One blob of f32 for each expert: gate, up, down.
/// #[derive(Debug)]
/// struct Blobs {
///     shape: ExpertShape,
///     types: Vec<ExpertTypes>,
///     blobs: Vec<Option<Vec<u8>>>,
/// }
///
/// impl Blobs {
///     fn parts(&self, layer: LayerId, expert: ExpertId) -> Result<ProjectionBytes<'_>> {
///         let blob = self.blobs[self.shape.index(layer, expert)?].as_deref();
///         let blob = blob.ok_or_else(|| OffloadError::store(format!("the blob of {layer}, {expert} is gone")))?;
///         let [gate_bytes, up_bytes, _] = self.shape.projection_bytes(self.types[layer.index()]);
///         let (gate, rest) = blob.split_at(gate_bytes);
///         let (up, down) = rest.split_at(up_bytes);
///         Ok(ProjectionBytes { gate, up, down })
///     }
/// }
///
/// impl ExpertStore for Blobs {
///     fn shape(&self) -> ExpertShape {
///         self.shape
///     }
///
///     fn weight_types(&self) -> &[ExpertTypes] {
///         &self.types
///     }
///
///     fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
///         let (bytes, dims) = (self.parts(layer, expert)?.each(), self.shape.projections());
///         let [gate, up, down] = [0, 1, 2].map(|which| Projection::from_bytes(WeightType::F32, dims[which], bytes[which]));
///         ExpertWeights::from_projections([gate?, up?, down?])
///     }
///
///     fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
///         lend.bytes(self.parts(layer, expert)?)
///     }
/// }
///
/// let shape = ExpertShape { layers: 1, experts: 2, hidden: 2, intermediate: 1 };
/// let store = Blobs { shape, types: vec![WeightType::F32.into()], blobs: vec![Some(vec![0; 24]), None] };
/// let store: &dyn ExpertStore = &store;
/// let mut bytes = 0;
/// store.with_bytes(LayerId(0), ExpertId(0), &mut |expert| {
///     bytes += expert.gate.len() + expert.up.len() + expert.down.len();
///     Ok(())
/// })?;
/// assert_eq!(bytes, 24);
/// let gone = store.with_bytes(LayerId(0), ExpertId(1), &mut |_| Ok(())).unwrap_err();
/// assert_eq!(std::error::Error::source(&gone).unwrap().to_string(), "the blob of layer 0, expert 1 is gone");
/// # Ok::<(), OffloadError>(())
/// ```
pub trait ExpertStore: fmt::Debug + Send + Sync {
    /// Sizes of the experts.
    fn shape(&self) -> ExpertShape;

    /// Types of the weights that the store hands out, one entry per layer.
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

    /// Lends the bytes of an expert in their [types](Self::weight_types), to copy from. A store that has them as they are
    /// needed lends them from where they lie; by default they are those of a [fetch](Self::fetch).
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and what `lend` says.
    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        let weights = self.fetch(layer, expert)?;
        check_weights(&weights, self.shape(), types_of(self.shape(), self.weight_types(), layer)?)?;
        lend.weights(&weights)
    }

    /// Brings the weights of an expert from disk into memory that the operating system may take back, and returns when they
    /// are there: a later [`lend`](Self::lend) does not wait for the disk then. A store without a disk does nothing, nor does
    /// one that reads past such memory. [`ReadAhead`](crate::ReadAhead) calls this on threads of its own.
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

impl dyn ExpertStore + '_ {
    /// Hands the bytes of an expert to `read`, once.
    ///
    /// # Errors
    /// As [`lend`](ExpertStore::lend), [`OffloadError::StoreBytes`] for bytes that do not fit the store's shape and types, and
    /// what `read` says.
    pub fn with_bytes(
        &self,
        layer: LayerId,
        expert: ExpertId,
        read: &mut dyn FnMut(ProjectionBytes<'_>) -> Result<()>,
    ) -> Result<()> {
        let shape = self.shape();
        shape.index(layer, expert)?;
        let expected = shape.projection_bytes(types_of(shape, self.weight_types(), layer)?);
        self.lend(layer, expert, Lend::to_reader(expected, read)).map(|_| ())
    }

    /// Loads the first expert of a layer, and returns true if the store wrote it into its place without a copy between.
    ///
    /// # Errors
    /// As [`lend`](ExpertStore::lend).
    pub fn loads_straight(&self, layer: LayerId) -> Result<bool> {
        let types = types_of(self.shape(), self.weight_types(), layer)?;
        self.load_into(layer, ExpertId(0), &mut ExpertWeights::zero(self.shape(), types)?)
    }

    /// Replaces weights in host memory by those of an expert of the same types, in place, and returns true if the store wrote
    /// them without a copy between. The weights are undefined after an error.
    pub(crate) fn load_into(&self, layer: LayerId, expert: ExpertId, weights: &mut ExpertWeights) -> Result<bool> {
        Ok(self.lend(layer, expert, Lend::to_weights(weights)?)?.is_straight())
    }

    /// [Fetches](ExpertStore::fetch) an expert, and checks that it is of the store's shape and types.
    pub(crate) fn fetch_checked(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let weights = self.fetch(layer, expert)?;
        check_weights(&weights, self.shape(), types_of(self.shape(), self.weight_types(), layer)?)?;
        Ok(weights)
    }

    /// Checks that the store is of sizes that models have, and has types for every layer.
    pub(crate) fn check(&self) -> Result<()> {
        let (shape, types) = (self.shape(), self.weight_types());
        shape.check()?;
        if types.len() != shape.layers {
            return Err(OffloadError::StoreTypes { found: types.len(), layers: shape.layers });
        }
        types.iter().try_for_each(|&types| shape.check_blocks(types))
    }
}

/// The types of a layer, if the store has some for it.
fn types_of(shape: ExpertShape, types: &[ExpertTypes], layer: LayerId) -> Result<ExpertTypes> {
    let (found, layers) = (types.len(), shape.layers);
    types.get(layer.index()).copied().ok_or(OffloadError::StoreTypes { found, layers })
}

/// Checks weights that a store has fetched against what it says of them.
fn check_weights(weights: &ExpertWeights, shape: ExpertShape, types: ExpertTypes) -> Result<()> {
    let (types, dims) = (types.each(), shape.projections());
    for (which, projection) in weights.projections().iter().enumerate() {
        let of = |(rows, columns), weights| format!("[{rows}, {columns}] {weights}");
        let found = (projection.dims()?, projection.weight_type()?);
        if found != (dims[which], types[which]) {
            let (found, expected) = (of(found.0, found.1), of(dims[which], types[which]));
            return Err(OffloadError::StoreWeights { projection: PROJECTIONS[which], found, expected });
        }
    }
    Ok(())
}
