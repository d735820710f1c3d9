//! Stores: the weights of all experts outside of the compute device.

mod expert_store;
mod host;
mod host_cache;
mod host_meter;
mod host_requests;
mod host_simulation;
mod mapped;
mod quantized;
mod random;
mod read_ahead;
mod write_gguf;

pub use expert_store::ExpertStore;
pub use host::HostStore;
pub use host_cache::HostCache;
pub use host_simulation::{HostSimulation, HostTraffic};
pub use mapped::MappedStore;
pub use quantized::QuantizedExperts;
pub use random::RandomExperts;
pub use read_ahead::ReadAhead;
pub use write_gguf::write_gguf;
