//! Where experts are that are not in the cache.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use expert_cache::{PolicyKind, SlotId};
use moe_offload::{CpuSlots, ExpertSlots, ExpertStore, FileReads, HostCache};
use moe_trace::{ExpertId, LayerId};
use moescope_cli::{POSITIVE, number, whole};
use serde::Serialize;

use super::calibrate::median;

/// Copies that are timed.
const COPIES: usize = 8;

#[derive(clap::Args)]
pub(crate) struct StoreArguments {
    /// Where the experts that are not in the cache are.
    #[arg(long, value_enum, default_value_t = Place::Host)]
    pub(crate) store: Place,

    /// How checkpoint files are read: by every load with `--store disk`, once into host memory with `--store host`.
    #[arg(long, value_enum, default_value_t = Reads::Auto)]
    reads: Reads,

    /// GiB of host memory that cache experts between the disk and the slots.
    #[arg(long, value_name = "GIB", value_parser = number(POSITIVE))]
    host_gib: Option<f64>,

    /// Policy of that cache, any of docs/policies.md that need not know the future.
    #[arg(long, value_name = "POLICY", default_value = "lru", requires = "host_gib")]
    host_policy: PolicyKind,

    /// Experts that are read ahead after every layer: predictions ranked behind those of `--per-request`, into the cache of
    /// `--host-gib` or through the page cache. Where loads read past the page cache, `--host-gib` is required.
    #[arg(long, value_name = "N", value_parser = whole::<u16>(1..=1024))]
    read_ahead: Option<u16>,

    /// Threads that read them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<u16>(1..=1024),
        requires = "read_ahead")]
    read_ahead_threads: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Place {
    /// Host memory.
    Host,
    /// The checkpoint files.
    Disk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Reads {
    /// Past the page cache if not all experts fit in memory.
    Auto,
    /// Through the page cache.
    Cached,
    /// Past the page cache.
    Direct,
}

/// A cache in host memory below the slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HostTier {
    pub(crate) bytes: u64,
    pub(crate) policy: PolicyKind,
}

/// Experts that are read from disk before they are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ahead {
    /// After every layer.
    pub(crate) experts: usize,
    pub(crate) threads: usize,
}

impl StoreArguments {
    pub(crate) fn reads(&self) -> FileReads {
        match self.reads {
            // What is copied to host memory once need not stay in the page cache, too.
            Reads::Auto if self.store == Place::Host => FileReads::Direct,
            Reads::Auto => FileReads::Auto,
            Reads::Cached => FileReads::Cached,
            Reads::Direct => FileReads::Direct,
        }
    }

    pub(crate) fn host_tier(&self) -> Result<Option<HostTier>> {
        let Some(gib) = self.host_gib else { return Ok(None) };
        ensure!(self.store == Place::Disk, "--host-gib caches what comes from disk, give --store disk too");
        ensure!(
            !self.host_policy.needs_future(),
            "--host-policy is {}, which needs to know what is wanted next; give one that does not",
            self.host_policy
        );
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "above 0; too many saturate")]
        let bytes = (gib * f64::from(1 << 30)) as u64;
        Ok(Some(HostTier { bytes, policy: self.host_policy }))
    }

    pub(crate) fn ahead(&self) -> Result<Option<Ahead>> {
        let Some(experts) = self.read_ahead else { return Ok(None) };
        ensure!(self.store == Place::Disk, "--read-ahead reads what is on disk, give --store disk too");
        Ok(Some(Ahead { experts: experts.into(), threads: self.read_ahead_threads.into() }))
    }
}

impl HostTier {
    /// The store with this cache, empty, before it.
    pub(crate) fn before(self, store: Arc<dyn ExpertStore>) -> Result<Arc<dyn ExpertStore>> {
        Ok(Arc::new(HostCache::new(store, self.bytes, self.policy)?.allocate()?))
    }

    /// Seconds of a copy from the cache into a slot.
    pub(crate) fn copy_seconds(self, store: Arc<dyn ExpertStore>) -> Result<f64> {
        let (shape, types) = (store.shape(), store.weight_types()[0]);
        let largest = store.weight_types().iter().map(|&types| shape.expert_bytes(types) as u64).max();
        let cache: &dyn ExpertStore = &HostCache::new(store, largest.unwrap_or_default(), self.policy)?;
        let slots = CpuSlots::new(COPIES, shape, types)?;
        let copies = (0..).take(COPIES).zip((0..).take(shape.experts).map(ExpertId).cycle()).map(|(slot, expert)| {
            let mut seconds = 0.0;
            cache.with_bytes(LayerId(0), expert, &mut |bytes| {
                let started = Instant::now();
                slots.load(SlotId(slot), bytes)?;
                seconds = started.elapsed().as_secs_f64();
                Ok(())
            })?;
            Ok(seconds)
        });
        Ok(median(copies.collect::<Result<Vec<_>>>()?.into_iter()))
    }
}
