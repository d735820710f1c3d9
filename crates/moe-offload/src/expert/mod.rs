//! One expert: its shape, its weights, its arithmetic, and the loan of its bytes.

mod groups;
mod lend;
mod shape;
mod types;
mod weights;

pub use lend::{Lend, Lent, ProjectionBytes};
pub use shape::ExpertShape;
pub use types::ExpertTypes;
pub use weights::ExpertWeights;

pub(crate) use groups::{are_shared, forward_each, gather};
pub(crate) use lend::PROJECTIONS;
