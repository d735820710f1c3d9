//! One file a policy; `suite.rs` holds the tests that all of them pass.

mod belady;
mod lfu;
mod look_ahead;
mod lru;
#[cfg(test)]
mod suite;

pub use belady::Belady;
pub use lfu::Lfu;
pub use look_ahead::LookAhead;
pub use lru::Lru;
