//! What a bank wishes to be read from disk before it is wanted, without a slot for it.

use std::sync::Arc;

use moe_trace::{ExpertId, LayerId};

use crate::{ExpertStore, OffloadError, ReadAhead, ReadAheadCounters, Result};

/// How many experts a bank wishes for after a request, and by how many threads they are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishing {
    pub(crate) threads: usize,
    pub(crate) per_request: usize,
}

/// The wishes of a bank, and what became of them.
#[derive(Debug)]
pub(crate) struct Wishes {
    ahead: ReadAhead,
    per_request: usize,
    /// One entry a layer of the model.
    counters: Vec<ReadAheadCounters>,
}

impl Wishes {
    pub(crate) fn new(store: &Arc<dyn ExpertStore>, Wishing { threads, per_request }: Wishing) -> Result<Wishes> {
        let max = usize::from(u16::MAX);
        if per_request == 0 || per_request > max {
            return Err(OffloadError::Size { field: "experts read ahead a request", value: per_request, max });
        }
        // What waits longer than for the wishes of one request comes too late.
        let ahead = ReadAhead::new(store, threads, per_request)?;
        Ok(Wishes { ahead, per_request, counters: vec![ReadAheadCounters::default(); store.shape().layers] })
    }

    pub(crate) fn per_request(&self) -> usize {
        self.per_request
    }

    pub(crate) fn counters(&self) -> &[ReadAheadCounters] {
        &self.counters
    }

    /// Wishes for an expert, and waits for nobody.
    pub(crate) fn want(&mut self, layer: LayerId, expert: ExpertId) -> Result<()> {
        let queued = self.ahead.want(layer, expert)?;
        let counters = &mut self.counters[layer.index()];
        counters.issued += 1;
        counters.dropped += u64::from(!queued);
        Ok(())
    }
}
