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

mod bank;
mod checkpoint;
mod dispatch;
mod error;
mod expert;
mod measure;
mod memory;
mod report;
mod resident;
mod routes;
mod runtime;
mod slots;
mod store;
mod weights;

pub use bank::ExpertBank;
pub use checkpoint::WeightLocation;
pub use dispatch::{Dispatch, Group};
pub use error::{OffloadError, Result};
pub use expert::{ExpertShape, ExpertTypes, ExpertWeights, Lend, Lent, ProjectionBytes};
pub use measure::{Divergence, MissSeconds, Replay, ReplayReport, ReplayedPass, ReplayedPhase, measure, measure_disk};
pub use memory::FileReads;
pub use report::{
    Activity, BankReport, HostCounters, HostReport, HostReports, Latency, LayerCounters, LayerReport, PhaseCounters,
    PhaseReport, PrefetchCounters, ReadAheadCounters, RunTimeline, TimelineEvent,
};
pub use resident::ResidentExperts;
pub use routes::Routes;
pub use runtime::{Capacity, Exactness, OffloadOptions, OffloadedExperts, Transfers};
#[cfg(any(test, feature = "cuda"))]
pub use slots::{CopiedBytes, Pinning};
pub use slots::{CpuSlots, ExpertSlots, SlotGroup, free_bytes};
#[cfg(feature = "cuda")]
pub use slots::{CudaLoader, CudaSlots, cuda_device};
pub use store::{
    ExpertStore, HostCache, HostSimulation, HostStore, HostTraffic, MappedStore, QuantizedExperts, RandomExperts,
    ReadAhead, write_gguf,
};
pub use weights::{BlockMatrix, Projection, WeightType};
