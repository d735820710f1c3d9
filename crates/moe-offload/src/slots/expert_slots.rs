//! The part of the compute device's memory that caches experts.

use std::fmt;

use candle_core::Tensor;
use expert_cache::SlotId;
use moe_trace::{ExpertId, LayerId};

use crate::error::Result;
use crate::expert::ProjectionBytes;
use crate::store::ExpertStore;

/// Slots for experts on a compute device.
///
/// Several threads share the slots of a bank: one computes while others load. Who may load into which slot when is the
/// bank's business: it never loads into a slot that an unfinished [`forward`](Self::forward) reads, as far as the host
/// sees; a device that is still computing when `forward` returns orders the copy after it.
pub trait ExpertSlots: fmt::Debug + Send + Sync {
    /// Number of slots.
    fn capacity(&self) -> usize;

    /// Copies the projections of an expert, row by row in the slots' weight types, into a slot; returns when a [`forward`](Self::forward) may use it and the bytes are no longer read.
    ///
    /// # Errors
    /// Bytes that do not fit; a device that failed. The slot's content is undefined then.
    fn load(&self, slot: SlotId, expert: ProjectionBytes<'_>) -> Result<()>;

    /// [Loads](Self::load) an expert of a store.
    ///
    /// # Errors
    /// As [`load`](Self::load), and what the store says.
    fn load_from(&self, slot: SlotId, store: &dyn ExpertStore, layer: LayerId, expert: ExpertId) -> Result<()> {
        store.with_bytes(layer, expert, &mut |bytes| self.load(slot, bytes))
    }

    /// Sends groups of tokens through the experts in their slots, each slot at most once; returns the output of each group,
    /// `[rows of the group, hidden]`.
    ///
    /// # Errors
    /// A tensor operation that failed.
    fn forward(&self, hidden: &Tensor, groups: &[SlotGroup<'_>]) -> Result<Vec<Tensor>>;
}

/// Tokens that go through the expert in one slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotGroup<'a> {
    /// The slot.
    pub slot: SlotId,
    /// Rows of `hidden`, ascending.
    pub rows: &'a [u32],
}
