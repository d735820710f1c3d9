//! Experts that are read from disk into host memory before a request, without a slot.

use std::sync::Arc;

use moe_trace::{ExpertId, LayerId};

use crate::error::{OffloadError, Result};
use crate::report::ReadAheadCounters;
use crate::store::{ExpertStore, ReadAhead};

/// Options of reading ahead: the threads that read, and the most experts queued per request.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadAheadOptions {
    pub(super) threads: usize,
    pub(super) per_request: usize,
}

/// A queue of experts to read ahead, and its counters.
#[derive(Debug)]
pub(super) struct ReadAheadQueue {
    ahead: ReadAhead,
    /// One entry per layer of the model.
    counters: Vec<ReadAheadCounters>,
}

impl ReadAheadQueue {
    pub(super) fn new(
        store: &Arc<dyn ExpertStore>,
        ReadAheadOptions { threads, per_request }: ReadAheadOptions,
    ) -> Result<ReadAheadQueue> {
        let max = usize::from(u16::MAX);
        if per_request == 0 || per_request > max {
            return Err(OffloadError::Size { field: "experts read ahead a request", value: per_request, max });
        }
        // An expert that waits longer than the experts of one request do is read too late.
        let ahead = ReadAhead::new(store, threads, per_request)?;
        Ok(ReadAheadQueue { ahead, counters: vec![ReadAheadCounters::default(); store.shape().layers] })
    }

    pub(super) fn counters(&self) -> &[ReadAheadCounters] {
        &self.counters
    }

    /// Queues an expert, or counts it as dropped where the queue is full; never waits.
    pub(super) fn push(&mut self, layer: LayerId, expert: ExpertId) -> Result<()> {
        let queued = self.ahead.want(layer, expert)?;
        let counters = &mut self.counters[layer.index()];
        counters.issued += 1;
        counters.dropped += u64::from(!queued);
        Ok(())
    }
}
