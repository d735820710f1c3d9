//! Files that have the experts of a model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moe_model::Checkpoint;
use moe_offload::{ExpertStore, FileReads, MappedStore, write_gguf};
use moescope_cli::{byte_bar, mapped_experts};

/// The experts of a checkpoint, used as f32.
pub(crate) fn of_checkpoint(checkpoint: &Checkpoint, reads: FileReads) -> Result<MappedStore> {
    mapped_experts(checkpoint)
        .and_then(|store| store.with_reads(reads))
        .context("cannot use the experts of the checkpoint")
}

/// All parts of a GGUF file that may be split.
pub(crate) fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    MappedStore::gguf_files(path).with_context(|| format!("cannot use the experts in {}", path.display()))
}

/// The experts of a GGUF file, as they are.
pub(crate) fn of_gguf(path: &Path, reads: FileReads) -> Result<MappedStore> {
    MappedStore::open_gguf(&[path.to_owned()])
        .and_then(|store| store.with_reads(reads))
        .with_context(|| format!("cannot use the experts in {}", path.display()))
}

/// Writes experts to a GGUF file and tells what it has.
pub(crate) fn write(store: &dyn ExpertStore, path: &Path) -> Result<()> {
    let shape = store.shape();
    let bar = byte_bar(store.bytes(), "experts");
    write_gguf(store, path, &mut |done, _| bar.set_position(done))?;
    bar.finish_and_clear();
    let bytes = indicatif::BinaryBytes(std::fs::metadata(path)?.len());
    moescope_cli::outln!("{}: {} layers of {} experts, {bytes}", path.display(), shape.layers, shape.experts);
    Ok(())
}
