//! Checkpoints and their experts, as the programs open them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use moe_model::Checkpoint;
use moe_offload::{ExpertStore, HostStore, MappedStore, OffloadError, free_bytes};

use crate::byte_bar;

/// Opens a checkpoint in the Hugging Face layout, or the model of this repository.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn open_checkpoint(folder: Option<&Path>) -> Result<Checkpoint> {
    let ours = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/default"));
    let folder = folder.map_or_else(ours, Path::to_owned);
    Checkpoint::open(&folder)
        .with_context(|| format!("cannot use the model in {}; see --model in --help", folder.display()))
}

/// The experts of a checkpoint in its files, used as f32.
///
/// # Errors
/// As [`MappedStore::open`].
pub fn mapped_experts(checkpoint: &Checkpoint) -> moe_offload::Result<MappedStore> {
    let names = |layer, expert| checkpoint.expert_locations(layer, expert);
    MappedStore::open(checkpoint.files(), checkpoint.config().expert_shape(), DType::F32, names)
}

/// Reads experts into host memory, with a progress bar where it takes longer.
///
/// # Errors
/// Before anything is read, if more is needed than is free; experts that cannot be read.
pub fn host_experts(store: &dyn ExpertStore) -> Result<HostStore> {
    // Where nobody knows what is free, the operating system decides.
    let limit = free_bytes(&Device::Cpu).unwrap_or(u64::MAX);
    let bar = byte_bar(store.bytes(), "experts");
    let host = HostStore::within(store, limit, &mut |done, _| bar.set_position(done));
    bar.finish_and_clear();
    let advice = match &host {
        Err(OffloadError::HostLimit { .. }) => {
            "too many experts for the free memory; `moescope quantize` makes them smaller"
        }
        _ => "cannot read the experts",
    };
    host.context(advice)
}
