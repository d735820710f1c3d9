//! Memory follows what is used, not what a configuration claims, and a long prefill takes bounded blocks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use allocation_counter::measure;
use candle_core::{DType, Device};
use candle_nn::{VarBuilder, VarMap};
use moe_model::{Chunk, KvCache, LogitsAt, Olmoe, OlmoeConfig, OlmoeParams, resident_experts};
use moe_trace::{IgnoreRouting, Phase};

const MIB: u64 = 1 << 20;
const HEADS: usize = 2;

/// A small model that claims as many positions as a configuration may.
fn model() -> Olmoe {
    let params = OlmoeParams {
        vocab_size: 31,
        hidden_size: 16,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: HEADS,
        num_key_value_heads: 1,
        num_experts: 2,
        num_experts_per_tok: 1,
        max_position_embeddings: 1 << 24,
        eos_token_ids: vec![],
        ..OlmoeParams::default()
    };
    let config = OlmoeConfig::new(params).unwrap();
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let experts = resident_experts(&config, &vb).unwrap();
    Olmoe::new(&config, &vb, Arc::new(experts)).unwrap()
}

fn prefill(model: &Olmoe, tokens: &[u32], cache: &mut KvCache) {
    let chunk = Chunk { sequence: 0, tokens, cache, phase: Phase::Prefill };
    model.forward(&mut [chunk], LogitsAt::Last, &mut IgnoreRouting).unwrap();
}

#[test]
fn a_model_of_many_positions_takes_memory_for_those_that_are_used() {
    let allocated = measure(|| {
        let model = model();
        prefill(&model, &[3, 1, 4], &mut KvCache::new(model.config()));
    });
    // Tables of all positions would take 512 MiB; the buffers of candle's products take 2.
    assert!(allocated.bytes_max < 4 * MIB, "{} bytes", allocated.bytes_max);
}

/// Scores and weights of 512 queries and 2,048 keys take 8 MiB a head, those of all 8,192 keys took 32.
#[test]
fn the_memory_of_a_long_prefill_is_bounded_in_keys() {
    let model = model();
    let tokens: Vec<u32> = (0..8192u32).map(|i| i * i % 31).collect();
    let peak =
        |length: usize| measure(|| prefill(&model, &tokens[..length], &mut KvCache::new(model.config()))).bytes_max;
    let (short, long) = (peak(4096), peak(8192));
    println!("{short} bytes for 4096 tokens, {long} bytes for 8192");
    // Beside the blocks there are a few rows of 16 numbers for each token.
    assert!(long < 8 * HEADS as u64 * MIB + 6 * MIB, "{long} bytes");
    assert!(long - short < 5 * MIB, "{short} bytes, then {long}");
}
