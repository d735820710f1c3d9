//! Weights of one projection: their types, their storage, and their product with tokens.

mod ask_ahead;
#[cfg(target_arch = "x86_64")]
mod block_dot;
mod block_matmul;
mod block_matrix;
mod matvec;
mod products;
mod projection;
mod weight_type;

pub use block_matrix::BlockMatrix;
pub use projection::Projection;
pub use weight_type::WeightType;
