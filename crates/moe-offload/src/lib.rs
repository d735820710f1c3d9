//! A device-resident expert cache that executes the plans of `expert-cache`.
//!
//! A model's MoE block hands its tokens and [`Routes`] to an [`ExpertBank`]. [`ResidentExperts`] keeps every expert on
//! the compute device; [`OffloadedExperts`] keeps a few in slots there and fetches the others from an
//! [`ExpertStore`] as an `expert_cache` policy plans it. Both run the same arithmetic in the same order, so their results
//! are bit-identical (see [`Exactness`] for what is computed on the host).
//!
//! Experts outside of the slots are in host memory ([`HostStore`]), in checkpoint files ([`MappedStore`], which reads past
//! the page cache where not all fit in memory), or in those with a part of host memory before them ([`HostCache`]).
//!
//! [`OffloadOptions`] chooses pools, policy, capacity, prefetcher, threads and what is read ahead;
//! [`OffloadedExperts::report`] tells what they did, [`RunTimeline`] when, and [`measure`] what to expect of a machine.
//!
//! ```
//! use std::{collections::HashMap, sync::Arc};
//! use candle_core::{DType, Device, Tensor};
//! use moe_offload::{ExpertBank, ExpertShape, HostStore, MappedStore, OffloadOptions, OffloadedExperts, Routes};
//! use moe_trace::{ExpertId, LayerId, Phase};
//!
//! // A checkpoint of one layer of 4 experts.
//! let shape = ExpertShape { layers: 1, experts: 4, hidden: 8, intermediate: 16 };
//! let names = |_: LayerId, e: ExpertId| ["gate", "up", "down"].map(|projection| format!("{}.{projection}", e.0));
//! let mut tensors = HashMap::new();
//! for expert in (0..4).map(ExpertId) {
//!     for (name, dims) in names(LayerId(0), expert).into_iter().zip(shape.projections()) {
//!         tensors.insert(name, Tensor::randn(0f32, 1., dims, &Device::Cpu)?);
//!     }
//! }
//! let directory = tempfile::tempdir()?;
//! let file = directory.path().join("model.safetensors");
//! candle_core::safetensors::save(&tensors, &file)?;
//!
//! // Two slots a layer on the device, the experts in host memory.
//! let mapped = MappedStore::open(&[file], shape, DType::F32, names)?;
//! let store = Arc::new(HostStore::from_store(&mapped)?);
//! let bank = OffloadedExperts::new(store, &Device::Cpu, OffloadOptions::slots(2))?;
//!
//! // Two tokens, one after the other: experts {0, 1}, then {1, 3}.
//! for experts in [vec![0, 1], vec![1, 3]] {
//!     let hidden = Tensor::ones((1, 8), DType::F32, &Device::Cpu)?;
//!     let weights = Tensor::new(&[[0.6f32, 0.4]], &Device::Cpu)?;
//!     let output = bank.forward(LayerId(0), &hidden, &Routes::new(experts, weights, Phase::Decode)?)?;
//!     assert_eq!(output.dims(), [1, 8]);
//! }
//! let counts = bank.counters()?[0].decode.counts;
//! assert_eq!((counts.hits, counts.loads), (1, 3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ask_ahead;
mod bank;
#[cfg(target_arch = "x86_64")]
mod block_dot;
mod block_matmul;
mod block_matrix;
mod capacity;
mod counters;
mod cpu_slots;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod dispatch;
mod divergence;
mod engine;
mod error;
mod exactness;
mod execute;
mod expert;
mod expert_groups;
mod expert_types;
mod file_reads;
mod gguf;
mod gguf_experts;
mod gguf_parts;
mod host;
mod host_cache;
mod host_memory;
mod host_meter;
mod host_requests;
mod host_simulation;
mod lend;
mod mapped;
mod matvec;
mod measure;
mod meter;
mod miss_seconds;
mod offloaded;
mod options;
mod os;
mod prefetches;
mod products;
mod projection;
mod quantized;
mod random;
mod read_ahead;
mod replay;
mod report;
mod resident;
mod routes;
mod slot_order;
mod slots;
mod store;
#[cfg(test)]
mod stress;
mod tensor_table;
mod timeline;
mod times;
mod transfers;
mod weight_location;
mod weight_type;
mod wishes;
mod write_gguf;

pub use bank::ExpertBank;
pub use block_matrix::BlockMatrix;
pub use capacity::{Capacity, free_bytes};
pub use counters::{HostCounters, LayerCounters, PhaseCounters, PrefetchCounters, ReadAheadCounters};
pub use cpu_slots::CpuSlots;
#[cfg(any(test, feature = "cuda"))]
pub use cuda::{CopiedBytes, Pinning};
#[cfg(feature = "cuda")]
pub use cuda::{CudaLoader, CudaSlots, cuda_device};
pub use dispatch::{Dispatch, Group};
pub use divergence::Divergence;
pub use error::{OffloadError, Result};
pub use exactness::Exactness;
pub use expert::{ExpertShape, ExpertWeights};
pub use expert_types::ExpertTypes;
pub use file_reads::FileReads;
pub use host::HostStore;
pub use host_cache::HostCache;
pub use host_simulation::{HostSimulation, HostTraffic};
pub use lend::{Lend, Lent, ProjectionBytes};
pub use mapped::MappedStore;
pub use measure::{measure, measure_disk};
pub use miss_seconds::MissSeconds;
pub use offloaded::OffloadedExperts;
pub use options::OffloadOptions;
pub use projection::Projection;
pub use quantized::QuantizedExperts;
pub use random::RandomExperts;
pub use read_ahead::ReadAhead;
pub use replay::{Replay, ReplayReport, ReplayedPass, ReplayedPhase};
pub use report::{BankReport, HostReport, HostReports, Latency, LayerReport, PhaseReport};
pub use resident::ResidentExperts;
pub use routes::Routes;
pub use slots::{ExpertSlots, SlotGroup};
pub use store::ExpertStore;
pub use timeline::{Activity, RunTimeline, TimelineEvent};
pub use transfers::Transfers;
pub use weight_location::WeightLocation;
pub use weight_type::WeightType;
pub use write_gguf::write_gguf;
