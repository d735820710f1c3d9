//! How fast the disk is while a run goes on.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use moe_offload::ExpertStore;
use moe_trace::{ExpertId, LayerId};

/// Reads after every step: about as many as a layer loads at once.
const READS: usize = 2;
/// Reads before anything else.
const FIRST_READS: usize = 64;

/// Reads experts between the steps of a run, all over the file, so that the speed of the disk is known for the time when
/// the run needs it: what others do with the same disk makes it twice as fast or slow from one second to the next.
pub(crate) struct DiskProbe {
    store: Arc<dyn ExpertStore>,
    /// All experts, one after the other from places far apart.
    order: Vec<(LayerId, ExpertId)>,
    reads: usize,
    seconds: f64,
    failed: Option<moe_offload::OffloadError>,
}

impl DiskProbe {
    pub(crate) fn new(store: Arc<dyn ExpertStore>) -> DiskProbe {
        let shape = store.shape();
        let experts = (0..).take(shape.experts).map(ExpertId);
        let order = experts.flat_map(|expert| (0..).take(shape.layers).map(move |layer| (LayerId(layer), expert)));
        DiskProbe { order: order.collect(), store, reads: 0, seconds: 0.0, failed: None }
    }

    /// Mean seconds of an expert without a run.
    pub(crate) fn alone(store: Arc<dyn ExpertStore>) -> Result<f64> {
        let mut probe = DiskProbe::new(store);
        probe.read(FIRST_READS);
        probe.mean_seconds()
    }

    /// Reads after a step.
    pub(crate) fn between_steps(&mut self) {
        self.read(READS);
    }

    /// Mean seconds of an expert.
    pub(crate) fn mean_seconds(self) -> Result<f64> {
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok(self.seconds / self.reads.max(1) as f64),
        }
    }

    fn read(&mut self, reads: usize) {
        let order = self.order.iter().cycle().skip(self.reads % self.order.len().max(1));
        let started = Instant::now();
        for &(layer, expert) in order.take(reads) {
            if let Err(error) = self.store.with_bytes(layer, expert, &mut |_| Ok(())) {
                self.failed = Some(error);
                return;
            }
        }
        self.seconds += started.elapsed().as_secs_f64();
        self.reads += reads;
    }
}
