//! A store on which loads can be held up and fail, a prefetcher that expects what it is told, and single calls.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use expert_cache::{Prediction, Prefetcher, Routing};
use moe_offload::{
    ExpertBank, ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, Lend, Lent, OffloadError, Result, Routes,
};
use moe_trace::{ExpertId, LayerId, Phase};

use super::{SHAPE, host_store, noise};

/// What befalls a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It waits until it is let go.
    Held,
    Slow,
    Fails,
    FailsOnce,
    Panics,
}

/// A store on which loads meet their fate, by layer and expert.
#[derive(Debug)]
pub(crate) struct Fated {
    pub(crate) store: Arc<dyn ExpertStore>,
    fates: Mutex<HashMap<(u16, u16), Fate>>,
    /// Loads and fetches that have begun.
    begun: Mutex<HashSet<(u16, u16)>>,
    changed: Condvar,
}

impl Fated {
    pub(crate) fn new(shape: ExpertShape) -> Arc<Fated> {
        let (fates, begun, changed) = (Mutex::default(), Mutex::default(), Condvar::new());
        Arc::new(Fated { store: host_store(shape), fates, begun, changed })
    }

    pub(crate) fn set(&self, layer: u16, expert: u16, fate: Option<Fate>) {
        let mut fates = self.fates.lock().unwrap();
        match fate {
            Some(fate) => fates.insert((layer, expert), fate),
            None => fates.remove(&(layer, expert)),
        };
        self.changed.notify_all();
    }

    pub(crate) fn has_begun(&self, layer: u16, expert: u16) -> bool {
        self.begun.lock().unwrap().contains(&(layer, expert))
    }

    pub(crate) fn wait_until_begun(&self, layer: u16, expert: u16) {
        while !self.has_begun(layer, expert) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl ExpertStore for Fated {
    fn shape(&self) -> ExpertShape {
        self.store.shape()
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        self.store.weight_types()
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let which = (layer.0, expert.0);
        self.begun.lock().unwrap().insert(which);
        let fates = self.fates.lock().unwrap();
        let fates = self.changed.wait_while(fates, |fates| fates.get(&which) == Some(&Fate::Held)).unwrap();
        let fate = fates.get(&which).copied();
        drop(fates);
        assert_ne!(fate, Some(Fate::Panics), "what a store");
        self.store.fetch(layer, expert)
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        let which = (layer.0, expert.0);
        self.begun.lock().unwrap().insert(which);
        let fates = self.fates.lock().unwrap();
        match fates.get(&which).copied() {
            Some(Fate::Held) => {
                let mut fates = self.changed.wait_while(fates, |fates| fates.get(&which) == Some(&Fate::Held)).unwrap();
                if fates.get(&which) == Some(&Fate::FailsOnce) {
                    fates.remove(&which);
                    return Err(OffloadError::NotOnHost);
                }
            }
            Some(Fate::Slow) => {
                drop(fates);
                std::thread::sleep(Duration::from_millis(30));
            }
            Some(Fate::Fails | Fate::FailsOnce) => {
                let source = std::io::Error::other("device is gone");
                return Err(OffloadError::Io { path: "model.safetensors".into(), source });
            }
            Some(Fate::Panics) => {
                drop(fates);
                panic!("what a store");
            }
            None => drop(fates),
        }
        self.store.lend(layer, expert, lend)
    }
}

/// Expects certain experts of the next layer.
#[derive(Debug)]
pub(crate) struct Expects(pub(crate) Vec<(u16, u16)>);

impl Prefetcher for Expects {
    fn predict(&mut self, served: &Routing<'_>, out: &mut Vec<Prediction>) {
        if served.layer == LayerId(0) {
            out.extend(self.0.iter().enumerate().map(|(rank, &(layer, expert))| Prediction {
                layer: LayerId(layer),
                expert: ExpertId(expert),
                score: 1.0 / (rank + 1) as f32,
            }));
        }
    }
}

/// Sends a token, or one a row, through experts.
pub(crate) fn forward(bank: &dyn ExpertBank, layer: u16, experts: &[u16]) -> Result<Vec<f32>> {
    let hidden = Tensor::from_vec(noise(7, SHAPE.hidden), (1, SHAPE.hidden), &Device::Cpu)?;
    let weights = Tensor::ones((1, experts.len()), DType::F32, &Device::Cpu)?;
    let routes = Routes::new(experts.to_vec(), weights, Phase::Decode)?;
    Ok(bank.forward(LayerId(layer), &hidden, &routes)?.flatten_all()?.to_vec1()?)
}
