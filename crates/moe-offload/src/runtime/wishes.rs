//! What a bank wishes to be read from disk before it is wanted, without a slot for it.

use std::sync::Arc;

use moe_trace::{ExpertId, LayerId};

use crate::error::{OffloadError, Result};
use crate::report::ReadAheadCounters;
use crate::store::{ExpertStore, ReadAhead};

/// How many experts a bank wishes for after a request, and by how many threads they are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishing {
    pub(super) threads: usize,
    pub(super) per_request: usize,
}

/// The wishes of a bank, and what became of them.
#[derive(Debug)]
pub(super) struct Wishes {
    ahead: ReadAhead,
    per_request: usize,
    /// One entry a layer of the model.
    counters: Vec<ReadAheadCounters>,
}

impl Wishes {
    pub(super) fn new(store: &Arc<dyn ExpertStore>, Wishing { threads, per_request }: Wishing) -> Result<Wishes> {
        let max = usize::from(u16::MAX);
        if per_request == 0 || per_request > max {
            return Err(OffloadError::Size { field: "experts read ahead a request", value: per_request, max });
        }
        // What waits longer than for the wishes of one request comes too late.
        let ahead = ReadAhead::new(store, threads, per_request)?;
        Ok(Wishes { ahead, per_request, counters: vec![ReadAheadCounters::default(); store.shape().layers] })
    }

    pub(super) fn per_request(&self) -> usize {
        self.per_request
    }

    pub(super) fn counters(&self) -> &[ReadAheadCounters] {
        &self.counters
    }

    /// Wishes for an expert, and waits for nobody.
    pub(super) fn want(&mut self, layer: LayerId, expert: ExpertId) -> Result<()> {
        let queued = self.ahead.want(layer, expert)?;
        let counters = &mut self.counters[layer.index()];
        counters.issued += 1;
        counters.dropped += u64::from(!queued);
        Ok(())
    }
}
