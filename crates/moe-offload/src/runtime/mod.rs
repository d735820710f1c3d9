//! The bank that executes plans: pools, slots, loads, calls.

mod call;
mod capacity;
mod engine;
mod exactness;
mod meter;
mod offloaded;
mod options;
mod read_ahead_queue;
mod slot_order;
#[cfg(test)]
mod stress;
mod transfers;

pub use capacity::Capacity;
pub use exactness::Exactness;
pub use offloaded::OffloadedExperts;
pub use options::OffloadOptions;
pub use transfers::Transfers;
