//! An offloaded bank whose store fails once, and which counts the sequences that end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use moe_model::Checkpoint;
use moe_offload::{
    ExpertBank, ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, HostStore, MappedStore, OffloadError,
    OffloadOptions, OffloadedExperts, Result, Routes,
};
use moe_trace::{ExpertId, LayerId};

/// A store of which one load fails.
#[derive(Debug)]
pub struct FailsOnce {
    experts: HostStore,
    /// Loads before the one that fails.
    left: AtomicUsize,
}

impl ExpertStore for FailsOnce {
    fn shape(&self) -> ExpertShape {
        self.experts.shape()
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        self.experts.weight_types()
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        match self.left.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(OffloadError::NotOnHost),
            _ => self.experts.fetch(layer, expert),
        }
    }
}

/// A bank of a few slots.
pub struct Counted {
    store: Arc<FailsOnce>,
    bank: OffloadedExperts,
    ended: AtomicUsize,
}

impl Counted {
    pub fn new(checkpoint: &Checkpoint) -> Counted {
        let names = |layer, expert| checkpoint.expert_locations(layer, expert);
        let shape = checkpoint.config().expert_shape();
        let mapped = MappedStore::open(checkpoint.files(), shape, DType::F32, names).unwrap();
        let store = FailsOnce { experts: HostStore::from_store(&mapped).unwrap(), left: AtomicUsize::new(usize::MAX) };
        let store = Arc::new(store);
        let bank = OffloadedExperts::new(store.clone(), &Device::Cpu, OffloadOptions::slots(3)).unwrap();
        Counted { store, bank, ended: AtomicUsize::new(0) }
    }

    /// Lets the store fail after some more loads.
    pub fn fail_after(&self, loads: usize) {
        self.store.left.store(loads, Ordering::Relaxed);
    }

    /// Whether the store has failed since it was last asked to.
    pub fn has_failed(&self) -> bool {
        self.store.left.load(Ordering::Relaxed) > usize::MAX / 2
    }

    /// Number of sequences that have ended.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }
}

impl ExpertBank for Counted {
    fn forward(&self, layer: LayerId, hidden: &Tensor, routes: &Routes) -> Result<Tensor> {
        self.bank.forward(layer, hidden, routes)
    }

    fn sequence_end(&self) -> Result<()> {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.bank.sequence_end()
    }
}
