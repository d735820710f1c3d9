//! Traces larger than memory: what is written and read at a time is bounded.
//!
//! `MOE_TRACE_TOKENS=1000000000 cargo test --release -p moe-trace --test memory -- --nocapture` does it with 10^9 tokens (2 GB).

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use moe_trace::{Geometry, LayerId, Phase, RoutingSource, SequenceBuf, ShardedTrace, ShardedWriter};

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn a_long_trace_takes_the_memory_of_a_shard() {
    const LENGTH: usize = 512;
    const SHARD_TOKENS: usize = 1 << 18;
    let tokens: usize =
        std::env::var("MOE_TRACE_TOKENS").ok().and_then(|tokens| tokens.parse().ok()).unwrap_or(1 << 23);
    let sequences = tokens / LENGTH;
    let geometry = Geometry::decoder(1, 32, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ids = (0..LENGTH).map(|token| u16::try_from(token * token % 31).unwrap()).collect();
    let sequence = SequenceBuf::from_experts(&geometry, ids, Phase::Decode).unwrap();

    let before = status("VmHWM");
    let mut writer = ShardedWriter::create(folder.path(), geometry, &[], None, SHARD_TOKENS).unwrap();
    for _ in 0..sequences {
        writer.push(&sequence).unwrap();
    }
    writer.finish().unwrap();
    let written = status("VmHWM") - before;

    let before = status("RssAnon");
    let trace = ShardedTrace::open(folder.path()).unwrap();
    assert_eq!(trace.len(), sequences);
    let mut layer = Vec::new();
    let mut sum = 0usize;
    for index in 0..trace.len() {
        trace.sequence(index).unwrap().copy_layer(LayerId(0), &mut layer);
        sum += layer.iter().map(|&id| usize::from(id)).sum::<usize>();
    }
    let read = status("RssAnon").saturating_sub(before);
    assert_eq!(sum, sequences * sequence.experts.iter().map(|&id| usize::from(id)).sum::<usize>());
    println!("{} tokens: {written} bytes to write, {read} bytes to read", sequences * LENGTH);
    // Two bytes a token and id wide, one narrow, one of phase, and the file as it is put together.
    assert!(written < 24 * SHARD_TOKENS, "{written} bytes");
    // 16 bytes a sequence: the offsets of the shards.
    assert!(read < (4 << 20) + 32 * sequences, "{read} bytes");
}
