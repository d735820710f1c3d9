//! The model of this repository.

use std::path::PathBuf;

/// The folder of the checkpoint.
pub fn default_model() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default").into()
}
