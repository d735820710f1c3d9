//! Files of models: headers, names and places of the tensors of experts.

mod gguf;
mod gguf_experts;
mod gguf_parts;
mod tensor_table;
mod weight_location;

pub use weight_location::WeightLocation;

pub(crate) use gguf::{ALIGNMENT, ALIGNMENT_KEY, MAGIC, TYPE_STRING, TYPE_U32, VERSION};
pub(crate) use gguf_experts::{GgufExperts, stacked_name};
pub(crate) use tensor_table::{MappedFile, Stored, TensorTable};
