//! Traces larger than memory: what is written and read at a time is bounded.
//!
//! `MOE_TRACE_TOKENS=1000000000 cargo test --release -p moe-trace --test memory -- --nocapture` does it with 10^9 tokens
//! (9 GB in the system's temporary folder) and prints how long it took.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Instant;

use moe_trace::{Geometry, LayerId, Phase, RoutingSource, SequenceBuf, ShardedTrace, ShardedWriter};

const LENGTH: usize = 512;
const TOP_K: usize = 8;
const SHARD_TOKENS: usize = 1 << 18;

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Seconds since `start`, and bytes a second.
fn speed(start: Instant, bytes: u64) -> String {
    let seconds = start.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a figure to print")]
    let rate = bytes as f64 / seconds / f64::from(1 << 30);
    format!("{seconds:.2} s, {rate:.2} GiB/s")
}

#[test]
fn a_long_trace_takes_the_memory_of_a_shard() {
    let tokens: usize =
        std::env::var("MOE_TRACE_TOKENS").ok().and_then(|tokens| tokens.parse().ok()).unwrap_or(1 << 22);
    let sequences = tokens.div_ceil(LENGTH);
    let geometry = Geometry::decoder(1, 64, TOP_K).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Steps of 8 make the ids of a token differ.
    let ids = (0..LENGTH * TOP_K).map(|slot| u16::try_from((slot / TOP_K + slot % TOP_K * 8) % 64).unwrap()).collect();
    let sequence = SequenceBuf::from_experts(&geometry, ids, Phase::Decode).unwrap();

    let (before, start) = (status("VmHWM"), Instant::now());
    let mut writer = ShardedWriter::create(folder.path(), geometry, &[], None, SHARD_TOKENS).unwrap();
    for _ in 0..sequences {
        writer.push(&sequence).unwrap();
    }
    writer.finish().unwrap();
    let written = status("VmHWM") - before;
    let bytes = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("{} tokens, {bytes} bytes", sequences * LENGTH);
    println!("written in {}; peak memory {written} bytes", speed(start, bytes));

    // Pages of mapped files are the system's to take back; what the reader holds is anonymous.
    let (before, start) = (status("RssAnon"), Instant::now());
    let trace = ShardedTrace::open(folder.path()).unwrap();
    assert_eq!(trace.len(), sequences);
    let mut read = 0;
    let mut tokens = 0;
    for index in 0..trace.len() {
        tokens += trace.sequence(index).unwrap().len();
        if index % 4096 == 0 {
            read = read.max(status("RssAnon").saturating_sub(before));
        }
    }
    assert_eq!(tokens, sequences * LENGTH);
    println!("every id checked in {}; {read} bytes held", speed(start, bytes));

    let start = Instant::now();
    let (mut layer, mut sum) = (Vec::new(), 0usize);
    for index in 0..trace.len() {
        trace.sequence(index).unwrap().copy_layer(LayerId(0), &mut layer);
        sum += layer.iter().map(|&id| usize::from(id)).sum::<usize>();
    }
    let read = read.max(status("RssAnon").saturating_sub(before));
    assert_eq!(sum, sequences * sequence.experts.iter().map(|&id| usize::from(id)).sum::<usize>());
    println!("copied out and added up in {}; {read} bytes held", speed(start, bytes));

    // A token as it is collected (ids of two bytes, a phase), and the file as it is put together (twice).
    assert!(written < 6 * (TOP_K + 1) * SHARD_TOKENS, "{written} bytes");
    // 16 bytes a sequence: the offsets of the shards.
    assert!(read < (4 << 20) + 32 * sequences, "{read} bytes");
}
