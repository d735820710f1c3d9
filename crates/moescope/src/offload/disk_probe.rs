//! How fast the disk is while a run goes on.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use expert_cache::SlotId;
use moe_offload::{CpuSlots, ExpertSlots, ExpertStore, ExpertTypes, OffloadError};
use moe_trace::{ExpertId, LayerId};

/// Reads after every step: about as many as a layer loads at once.
const BETWEEN_STEPS: usize = 2;
/// Reads without a run.
const ALONE: usize = 64;
/// Bytes of the slots that are read to, about: enough for huge pages, which slots lie in.
const SLOTS_BYTES: usize = 16 << 20;

/// Reads experts as loads do between the steps of a run, from all over the file, so that the speed of the disk is known for the
/// time when the run needs it: what others do with the same disk makes it twice as fast or slow from one second to the next.
pub(crate) struct DiskProbe {
    store: Arc<dyn ExpertStore>,
    /// All experts, one after the other from places far apart.
    order: Vec<(LayerId, ExpertId)>,
    next: usize,
    /// What experts of some types are read to, if the store reads them straight into slots.
    slots: Vec<(ExpertTypes, CpuSlots)>,
    reads: usize,
    seconds: f64,
    failed: Option<OffloadError>,
}

impl DiskProbe {
    pub(crate) fn new(store: Arc<dyn ExpertStore>) -> Result<DiskProbe> {
        let shape = store.shape();
        let experts = (0..).take(shape.experts).map(ExpertId);
        let order = experts.flat_map(|expert| (0..).take(shape.layers).map(move |layer| (LayerId(layer), expert)));
        let mut slots: Vec<(ExpertTypes, CpuSlots)> = Vec::new();
        for (layer, &types) in (0..).map(LayerId).zip(store.weight_types()) {
            if slots.iter().all(|&(known, _)| known != types) && store.loads_straight(layer)? {
                slots.push((types, CpuSlots::new(SLOTS_BYTES.div_ceil(shape.expert_bytes(types)), shape, types)?));
            }
        }
        Ok(DiskProbe { order: order.collect(), store, next: 0, slots, reads: 0, seconds: 0.0, failed: None })
    }

    /// Reads after a step.
    pub(crate) fn between_steps(&mut self) {
        self.read(BETWEEN_STEPS);
    }

    /// Reads where no run goes on.
    pub(crate) fn alone(&mut self) {
        self.read(ALONE);
    }

    /// Mean seconds of an expert since the last time that this was asked.
    pub(crate) fn mean_seconds(&mut self) -> Result<f64> {
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        let mean = self.seconds / self.reads.max(1) as f64;
        (self.seconds, self.reads) = (0.0, 0);
        Ok(mean)
    }

    fn read(&mut self, reads: usize) {
        if let Err(error) = self.try_read(reads) {
            self.failed = Some(error);
        }
    }

    fn try_read(&mut self, reads: usize) -> Result<(), OffloadError> {
        let started = Instant::now();
        for &(layer, expert) in self.order.iter().cycle().skip(self.next).take(reads) {
            let types = self.store.weight_types()[layer.index()];
            match self.slots.iter().find(|(known, _)| *known == types) {
                Some((_, slots)) => {
                    let slot = SlotId(u32::try_from(self.reads % slots.capacity()).expect("few slots"));
                    slots.load_from(slot, &*self.store, layer, expert)?;
                }
                None => self.store.with_bytes(layer, expert, &mut |_| Ok(()))?,
            }
            self.reads += 1;
        }
        self.seconds += started.elapsed().as_secs_f64();
        self.next = (self.next + reads) % self.order.len().max(1);
        Ok(())
    }
}
