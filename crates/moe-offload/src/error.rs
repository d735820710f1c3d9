//! What can go wrong with experts and their places.

use std::path::PathBuf;

use moe_trace::{ExpertId, LayerId};

use crate::expert::ExpertTypes;
use crate::weights::WeightType;

/// Result of this crate.
pub type Result<T, E = OffloadError> = std::result::Result<T, E>;

/// An error of an expert bank or an expert store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// A size that no model has.
    #[error("{field} is {value}, allowed are 1..={max}")]
    Size {
        /// The size.
        field: &'static str,
        /// Its value.
        value: usize,
        /// Its limit.
        max: usize,
    },
    /// Routes that do not fit the tokens.
    #[error("{field} of the routes is {value}, expected {expected}")]
    Routes {
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// What the tokens imply.
        expected: usize,
    },
    /// A route names an expert that the layer does not have.
    #[error("{layer}, token {token}: expert {expert} is out of range, the layer has {experts}")]
    ExpertOutOfRange {
        /// MoE layer.
        layer: LayerId,
        /// Token within the call.
        token: usize,
        /// The id found.
        expert: usize,
        /// Number of experts.
        experts: usize,
    },
    /// A layer that the bank does not have.
    #[error("{layer} is out of range, the bank has {layers} layers")]
    LayerOutOfRange {
        /// The layer asked for.
        layer: LayerId,
        /// Number of layers.
        layers: usize,
    },
    /// An expert that the store does not have.
    #[error("{layer}: {expert} is out of range, the layer has {experts}")]
    NoSuchExpert {
        /// MoE layer.
        layer: LayerId,
        /// The expert asked for.
        expert: ExpertId,
        /// Number of experts.
        experts: usize,
    },
    /// A worker of rayon calls a bank that serves another call, which may wait for that worker.
    #[error(
        "{layer}: another call has the turn, and a rayon worker must not wait for it; call the bank from threads of your own, \
         or from one rayon worker at a time"
    )]
    RayonWorker {
        /// MoE layer of the refused call.
        layer: LayerId,
    },
    /// An earlier call panicked while it planned, in a policy or a prefetcher.
    #[error("the books of {layer} were left inconsistent by a panic in another thread")]
    Poisoned {
        /// MoE layer.
        layer: LayerId,
    },
    /// A store of one's own has failed; [`OffloadError::store`] makes it.
    #[error("the expert store has failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A store does not say how the experts of every layer are stored.
    #[error("the expert store has weight types for {found} layers, its shape has {layers}")]
    StoreTypes {
        /// Layers that it has types for.
        found: usize,
        /// Layers of its shape.
        layers: usize,
    },
    /// A store lends bytes that are not those of an expert of its shape and types.
    #[error("the expert store lends {found} bytes as {projection} projection, its shape and types take {expected}")]
    StoreBytes {
        /// The projection: gate, up or down.
        projection: &'static str,
        /// Bytes lent.
        found: usize,
        /// Bytes by shape and types.
        expected: usize,
    },
    /// A store fetches weights that are not of its shape and types.
    #[error("the expert store fetches {found} as {projection} projection, its shape and types say {expected}")]
    StoreWeights {
        /// The projection: gate, up or down.
        projection: &'static str,
        /// Shape and type fetched.
        found: String,
        /// Shape and type that the store says.
        expected: String,
    },
    /// A weight has the wrong shape.
    #[error("{name} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape of the geometry.
        expected: Vec<usize>,
    },
    /// Stacked experts whose matrices are `[in, out]`, so that no projection lies in one piece.
    #[error(
        "{name} has shape {found:?}: its matrices are [in, out], and only [out, in] is read; save the checkpoint in its \
         original format, with a tensor for each expert (transformers: save_original_format=True)"
    )]
    Transposed {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A weight has a type that cannot be computed with.
    #[error("{name} has dtype {dtype}, supported are {}", WeightType::ALL.map(WeightType::name).join(", "))]
    Dtype {
        /// Name of the tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A name that no weight type has.
    #[error("{name} is no weight type, known are {}", WeightType::ALL.map(WeightType::name).join(", "))]
    WeightTypeName {
        /// The name.
        name: String,
    },
    /// Rows that are not made of whole quantized blocks.
    #[error("rows of {columns} weights are no multiple of the {block} of a block of {weights}")]
    Blocks {
        /// The weight type.
        weights: WeightType,
        /// Weights of a row.
        columns: usize,
        /// Weights of a block.
        block: usize,
    },
    /// Bytes that do not fill a projection.
    #[error("a projection of {found} bytes does not fit a slot's of {expected}")]
    SlotBytes {
        /// Bytes offered.
        found: usize,
        /// Bytes of the slot.
        expected: usize,
    },
    /// Capacities that are not those of the pools.
    #[error("there are capacities for {found} pools, the bank has {pools}")]
    PoolCapacities {
        /// Capacities given.
        found: usize,
        /// Pools of the bank.
        pools: usize,
    },
    /// Pools of a model that the store does not hold.
    #[error(
        "the pools are of a model of {found_layers} layers of {found_experts} experts, the store has {layers} of {experts}"
    )]
    PoolShape {
        /// Layers of the partition's geometry.
        found_layers: usize,
        /// Experts a layer of the partition's geometry.
        found_experts: usize,
        /// Layers of the store.
        layers: usize,
        /// Experts a layer of the store.
        experts: usize,
    },
    /// A choice that computes experts by other kernels than the device's.
    #[error("{choice} is not exact on this device, Exactness::Tolerant allows it")]
    Inexact {
        /// The choice.
        choice: &'static str,
    },
    /// Experts are to be read ahead, but nobody says which.
    #[error("{per_request} experts are to be read ahead after every request, but no prefetcher predicts them")]
    NothingPredicts {
        /// Experts that [`OffloadOptions::read_ahead`](crate::OffloadOptions::read_ahead) asks for.
        per_request: usize,
    },
    /// A load failed.
    #[error("{layer}, {expert} cannot be loaded")]
    Load {
        /// MoE layer.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// Why it failed.
        #[source]
        source: Box<OffloadError>,
    },
    /// An expert gives numbers that are not finite.
    #[error(
        "{layer}, {expert}: its output for token {token} is infinite or NaN, though the token is finite; its weights are \
         damaged, or too large for {dtype}"
    )]
    NotFinite {
        /// MoE layer.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// Token within the call.
        token: usize,
        /// Type of the tokens.
        dtype: &'static str,
    },
    /// A load takes too long.
    #[error("{layer}, {expert} cannot be loaded: it has not arrived after {seconds:.3} seconds")]
    SlowLoad {
        /// MoE layer.
        layer: LayerId,
        /// An expert that the call waits for.
        expert: ExpertId,
        /// Longest wait of the call for one load.
        seconds: f64,
    },
    /// A load panicked.
    #[error("{layer}, {expert} cannot be loaded: loading panicked: {message}")]
    LoadPanicked {
        /// MoE layer.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
        /// What the panic said.
        message: String,
    },
    /// A policy declined to load an expert that only the device may compute.
    #[error("{layer}, {expert}: the policy declined a load, and computing on the host is not exact on this device")]
    Declined {
        /// MoE layer.
        layer: LayerId,
        /// The expert.
        expert: ExpertId,
    },
    /// A way to serve misses that changes what the model computes.
    #[error("{misses} changes what the model computes, only a simulation tries it")]
    WhatIf {
        /// What it does.
        misses: &'static str,
    },
    /// How much memory is free is not known.
    #[error("cannot tell how much memory is free")]
    FreeMemory(#[from] sysinfo::Error),
    /// Layers whose experts are stored in different ways cannot share slots.
    #[error("{layer} has experts of {found}, {first} of {expected}: give them pools of their own")]
    PoolTypes {
        /// The pool's first layer.
        first: LayerId,
        /// How its experts are stored.
        expected: ExpertTypes,
        /// A layer that differs.
        layer: LayerId,
        /// How its experts are stored.
        found: ExpertTypes,
    },
    /// A device that experts cannot be cached on.
    #[error("experts cannot be cached on {device}: this build has slots for the CPU only")]
    Device {
        /// The device.
        device: String,
    },
    /// A GPU that cannot be used.
    #[error("GPU {ordinal} cannot be used: {reason}")]
    NoGpu {
        /// Number of the GPU.
        ordinal: usize,
        /// What is missing.
        reason: String,
    },
    /// A GPU whose tensors are not ordered between threads.
    #[error("the device computes on a stream for each thread, slots need one for all: open it with `cuda_device`")]
    StreamPerThread,
    /// A GPU that has no room for slots.
    #[error("{bytes} bytes of slots do not fit the GPU, which has {free_bytes} free")]
    DeviceMemory {
        /// Bytes of the slots.
        bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// A GPU's driver refused or failed.
    #[error("{operation} failed on the GPU: {name} ({code})")]
    Driver {
        /// What was tried.
        operation: &'static str,
        /// The driver's error code.
        code: u32,
        /// Its name.
        name: String,
    },
    /// Host memory that the system does not give.
    #[error("cannot take {bytes} bytes of host memory for experts; fewer slots or a smaller cache need less")]
    HostMemory {
        /// Bytes that were asked for.
        bytes: usize,
        /// Why they were refused.
        #[source]
        source: std::io::Error,
    },
    /// Weights whose bytes are asked for are on a device.
    #[error("the bytes of weights on a device cannot be lent; move them to host memory")]
    NotOnHost,
    /// A checkpoint file lacks a tensor.
    #[error("{name} is in none of the {files} checkpoint files")]
    MissingTensor {
        /// Name of the tensor.
        name: String,
        /// Number of files searched.
        files: usize,
    },
    /// A checkpoint file is not readable.
    #[error("{path}: cannot read checkpoint file")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint file is not well-formed safetensors.
    #[error("{path}: not a readable safetensors file")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A checkpoint file became shorter while it was open.
    #[error("{path} has shrunk to {len} bytes, it had {expected} when it was opened")]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// Its length when it was opened.
        expected: u64,
    },
    /// A checkpoint file ends within a tensor.
    #[error("{path}: {name} needs {needed} bytes, {left} are left of the file")]
    TensorTruncated {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes from its beginning to the end of the file.
        left: u64,
    },
    /// A tensor has another number of dimensions.
    #[error("{name} has shape {found:?}, expected {rank} dimensions")]
    Rank {
        /// Name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// Its expected number of dimensions.
        rank: usize,
    },
    /// A checkpoint has a tensor that the arithmetic of experts has no place for.
    #[error("{name} is beyond experts of a gate, an up and a down projection without biases and scales")]
    ExtraTensor {
        /// Name of the tensor.
        name: String,
    },
    /// Experts of a layer are stored in different ways.
    #[error("{layer} has experts of {first} and of {other}")]
    MixedTypes {
        /// MoE layer.
        layer: LayerId,
        /// Types of its first expert.
        first: ExpertTypes,
        /// Types of another one.
        other: ExpertTypes,
    },
    /// A number in a GGUF header that no file has.
    #[error("{path}: {field} is {value}, allowed are {allowed}")]
    GgufField {
        /// The file.
        path: PathBuf,
        /// What the number is.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// A GGUF file ends within its header, or a number in the header points behind its end.
    #[error("{path}: {field} needs {needed} bytes, {left} are left of the file")]
    GgufTruncated {
        /// The file.
        path: PathBuf,
        /// What is cut off.
        field: &'static str,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// A GGUF file has a tensor at a place that no writer chooses.
    #[error("{path}: {name} begins at byte {offset} of the data, allowed are multiples of the alignment {alignment}")]
    GgufAlignment {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// First byte of the tensor, counted from the first byte of data.
        offset: u64,
        /// Bytes that tensors are aligned to.
        alignment: usize,
    },
    /// Two tensors of a GGUF file share bytes.
    #[error("{path}: {name} begins within {other}")]
    GgufOverlap {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Name of the tensor before it.
        other: String,
    },
    /// The metadata of a GGUF file do not fit its tensors.
    #[error("{path}: {key} is {value}, its tensors have {found}")]
    GgufMetadata {
        /// The file.
        path: PathBuf,
        /// The metadata key, without the name of the architecture.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What the tensors show.
        found: u64,
    },
    /// A part of a split GGUF file does not lie beside the part that was given.
    #[error("{path} is missing: {given} is part {part} of {parts}, and all of them are needed")]
    GgufMissingPart {
        /// The part that is missing.
        path: PathBuf,
        /// The part that was given.
        given: PathBuf,
        /// Its number, from 1 on.
        part: u64,
        /// Number of parts.
        parts: u64,
    },
    /// Parts of a split GGUF file that do not belong together.
    #[error("{path}: {problem}")]
    GgufSplit {
        /// The file.
        path: PathBuf,
        /// What is wrong with the part.
        problem: String,
    },
    /// Experts without a gate.
    #[error("{name} has no gate projection beside it, and experts without a gate are not computed")]
    Gateless {
        /// Name of the up projection.
        name: String,
    },
    /// A block has experts in two layouts.
    #[error("{name} and {other} are both there, and which of them the model uses is not known")]
    TwoLayouts {
        /// Name of a tensor.
        name: String,
        /// Name of the other tensor.
        other: String,
    },
    /// GGUF files name a tensor twice.
    #[error("{path}: {name} is there twice")]
    GgufDuplicate {
        /// The file in which the name came again.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Weights do not fit the memory that they may take.
    #[error("the experts take {needed} bytes of host memory, allowed are {limit}")]
    HostLimit {
        /// Bytes of all experts.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// A checkpoint file cannot be written.
    #[error("{path}: cannot write checkpoint file")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread for {what}")]
    Thread {
        /// What it is for.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A cache cannot be set up.
    #[error("expert cache cannot be set up")]
    Cache(#[from] expert_cache::CacheError),
}

impl OffloadError {
    /// Creates the error of a store of one's own, from any error or text.
    ///
    /// ```
    /// use std::error::Error;
    /// use moe_offload::OffloadError;
    /// let error = OffloadError::store("no disk today");
    /// assert_eq!(error.source().unwrap().to_string(), "no disk today");
    /// ```
    pub fn store(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OffloadError {
        OffloadError::Store(error.into())
    }
}
