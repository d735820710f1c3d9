//! Fixtures that transformers computed (`fixtures/make_fixtures.py`) and how they are compared.

#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses a part of this module")]

pub mod failing;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use moe_model::{Checkpoint, Chunk, KvCache, LogitsAt, Olmoe};
use moe_trace::{IgnoreRouting, Phase, RouterObserver, RoutingEvent};

/// Multi-head attention, weights as probabilities, one file.
pub const MHA: &str = "olmoe-mha";
/// Grouped-query attention, clipping, tied embeddings, weights that sum to 1, five shards.
pub const GQA: &str = "olmoe-gqa";
/// Dense first layer, sigmoid routers with biases, two shared experts (`fixtures/make_variant_fixture.py`).
pub const DEEPSEEK: &str = "olmoe-deepseek";

pub const PROMPTS: usize = 3;

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A model and what transformers computed with it.
pub struct Fixture {
    pub model: Olmoe,
    expected: HashMap<String, Tensor>,
}

impl Fixture {
    pub fn load(name: &str) -> Fixture {
        let checkpoint = Checkpoint::open(folder(name)).unwrap();
        let expected = candle_core::safetensors::load(folder(name).join("expected.safetensors"), &Device::Cpu).unwrap();
        Fixture { model: checkpoint.load_resident(DType::F32, &Device::Cpu).unwrap(), expected }
    }

    pub fn tensor(&self, key: &str, prompt: usize) -> Tensor {
        self.expected[&format!("{key}.{prompt}")].clone()
    }

    pub fn ids(&self, key: &str, prompt: usize) -> Vec<u32> {
        self.tensor(key, prompt).to_dtype(DType::U32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn prompt(&self, prompt: usize) -> Vec<u32> {
        self.ids("input_ids", prompt)
    }

    /// Logits of every token of one sequence, `[tokens, vocab]`, and its routing.
    pub fn prefill(&self, tokens: &[u32]) -> (Tensor, Events) {
        let mut events = Events::default();
        let logits = run(&self.model, tokens, &mut KvCache::new(self.model.config()), Phase::Prefill, &mut events);
        (logits, events)
    }
}

/// One sequence through a model.
pub fn run(
    model: &Olmoe,
    tokens: &[u32],
    cache: &mut KvCache,
    phase: Phase,
    observer: &mut dyn RouterObserver,
) -> Tensor {
    let chunk = Chunk { sequence: 0, tokens, cache, phase };
    model.forward(&mut [chunk], LogitsAt::All, observer).unwrap().remove(0)
}

/// Logits of every token of one sequence, `[tokens, vocab]`.
pub fn prefill(model: &Olmoe, tokens: &[u32]) -> Tensor {
    run(model, tokens, &mut KvCache::new(model.config()), Phase::Prefill, &mut IgnoreRouting)
}

/// An observed event, owned.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub sequence: usize,
    pub layer: u16,
    pub phase: Phase,
    pub token_ids: Vec<u32>,
    pub experts: Vec<u16>,
    pub weights: Vec<f32>,
}

/// An observer that keeps what it sees.
#[derive(Debug, Default)]
pub struct Events {
    pub routed: Vec<Event>,
    pub ended: Vec<usize>,
}

impl RouterObserver for Events {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        self.routed.push(Event {
            sequence: event.sequence,
            layer: event.layer.0,
            phase: event.phase,
            token_ids: event.token_ids.to_vec(),
            experts: event.experts.to_vec(),
            weights: event.weights.to_vec(),
        });
    }

    fn sequence_end(&mut self, sequence: usize) {
        self.ended.push(sequence);
    }
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// `max |found - expected| / max |expected|`.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |a: f32, b| if b.is_nan() { b } else { a.max(b) });
    let difference = largest(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    difference / largest(&mut expected.iter().map(|b| b.abs()))
}

/// Asserts that tensors differ by less than a bound on [`difference`]; returns it.
#[track_caller]
pub fn assert_close(found: &Tensor, expected: &Tensor, bound: f32) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let difference = difference(&values(found), &values(expected));
    assert!(difference < bound, "{difference:e} is not below {bound:e}");
    difference
}
