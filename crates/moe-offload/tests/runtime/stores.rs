//! Stores that are wrong, or fail: every call tells, and none computes with what was in a slot before.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::{Device, Tensor};
use moe_offload::{
    ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, HostStore, Lend, Lent, OffloadError, OffloadOptions,
    OffloadedExperts, Projection, ProjectionBytes, RandomExperts, ResidentExperts, Result, Transfers, WeightType,
};
use moe_trace::{ExpertId, LayerId};

use crate::common::fated::forward;
use crate::common::{SHAPE, host_store, resident};

/// What is wrong with a store.
const RIGHT: u8 = 0;
const SHORT: u8 = 1;
const FAILS: u8 = 2;

#[derive(Debug)]
struct Wrong {
    store: Arc<dyn ExpertStore>,
    how: AtomicU8,
}

impl ExpertStore for Wrong {
    fn shape(&self) -> ExpertShape {
        SHAPE
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        self.store.weight_types()
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        self.store.fetch(layer, expert)
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        match self.how.load(Ordering::Relaxed) {
            RIGHT => self.store.lend(layer, expert, lend),
            SHORT => lend.bytes(ProjectionBytes { gate: &[0; 128], up: &[0; 128], down: &[] }),
            _ => Err(OffloadError::store("no disk today")),
        }
    }
}

#[test]
fn a_store_that_is_wrong_or_fails_fails_the_call() {
    let all = resident(&*host_store(SHAPE));
    for threads in [0, 2] {
        let store = Arc::new(Wrong { store: host_store(SHAPE), how: AtomicU8::new(RIGHT) });
        let options = OffloadOptions::slots(2).transfers(Transfers::threads(threads));
        let bank = OffloadedExperts::new(store.clone(), &Device::Cpu, options).unwrap();
        forward(&bank, 0, &[0, 1]).unwrap();
        for (how, expected) in [
            (SHORT, "the expert store lends 0 bytes as down projection, its shape and types take 128"),
            (FAILS, "the expert store has failed: no disk today"),
        ] {
            store.how.store(how, Ordering::Relaxed);
            let error = forward(&bank, 0, &[2, 3]).unwrap_err();
            assert!(matches!(error, OffloadError::Load { layer: LayerId(0), .. }), "{error}");
            let source = error.source().unwrap();
            let told = source.source().map_or_else(|| source.to_string(), |why| format!("{source}: {why}"));
            assert_eq!(told, expected);
        }
        store.how.store(RIGHT, Ordering::Relaxed);
        for experts in [[0, 1], [2, 3]] {
            assert_eq!(forward(&bank, 0, &experts).unwrap(), forward(&all, 0, &experts).unwrap());
        }
    }
}

/// A store of 3 layers that has types for some.
#[derive(Debug)]
struct Typed(Vec<ExpertTypes>);

impl ExpertStore for Typed {
    fn shape(&self) -> ExpertShape {
        SHAPE
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        &self.0
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        RandomExperts::new(SHAPE, WeightType::BF16, 0)?.fetch(layer, expert)
    }
}

#[test]
fn a_store_that_lacks_types_or_fetches_others_is_refused() {
    let few = || Arc::new(Typed(vec![WeightType::F32.into(); 2]));
    let message = "the expert store has weight types for 2 layers, its shape has 3";
    let bank = OffloadedExperts::new(few(), &Device::Cpu, OffloadOptions::slots(2)).unwrap_err();
    assert_eq!(bank.to_string(), message);
    assert_eq!(HostStore::from_store(&*few()).unwrap_err().to_string(), message);
    assert_eq!(ResidentExperts::from_store(&*few()).unwrap_err().to_string(), message);
    // Numbers of 16 bits that are read as others would be wrong without an error.
    let others = Typed(vec![WeightType::F16.into(); 3]);
    let message = "the expert store fetches [4, 8] bf16 as gate projection, its shape and types say [4, 8] f16";
    assert_eq!(HostStore::from_store(&others).unwrap_err().to_string(), message);
    assert_eq!(ResidentExperts::from_store(&others).unwrap_err().to_string(), message);
    let bank = OffloadedExperts::new(Arc::new(others), &Device::Cpu, OffloadOptions::slots(2)).unwrap();
    assert_eq!(forward(&bank, 0, &[0]).unwrap_err().source().unwrap().to_string(), message);
}

/// Infinite weights of one projection of an expert.
#[test]
fn weights_that_are_not_finite_fail_the_call_that_meets_them() {
    for which in 0..3 {
        let right = RandomExperts::new(SHAPE, WeightType::F32, 0).unwrap();
        let experts = |layer: u16| {
            let expert = move |expert: u16| (LayerId(layer), ExpertId(expert));
            (0..8).map(expert).collect::<Vec<_>>()
        };
        let layer = |layer: u16| {
            let weights = experts(layer).into_iter().map(|(layer, expert)| {
                let mut projections = right.fetch(layer, expert).unwrap().projections().clone();
                if (layer, expert) == (LayerId(1), ExpertId(3)) {
                    let Projection::Dense(tensor) = &projections[which] else { panic!("numbers") };
                    let mut numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    numbers[5] = f32::NAN;
                    projections[which] =
                        Projection::Dense(Tensor::from_vec(numbers, tensor.dims(), &Device::Cpu).unwrap());
                }
                ExpertWeights::from_projections(projections).unwrap()
            });
            weights.collect()
        };
        let bank = ResidentExperts::new((0..3).map(layer).collect());
        forward(&bank, 0, &[3, 5]).unwrap();
        forward(&bank, 1, &[2, 5]).unwrap();
        assert_eq!(
            forward(&bank, 1, &[2, 3]).unwrap_err().to_string(),
            "layer 1, expert 3: its output for token 0 is infinite or NaN, though the token is finite; its weights are \
             damaged, or too large for f32"
        );
    }
}
