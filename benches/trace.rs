//! How fast is a trace read and recorded?
//!
//! `read`: a mapped file of 24 layers of 64 experts, top-8, whose ids are checked while they are read, beside a plain copy of
//! the same bytes, which is what the memory allows; throughput in bytes of ids. `record`: what a recorder costs the
//! thread that runs the model, for each token of a decode step through all layers, with a sink in memory and with a queue
//! and a writer thread that writes shards; throughput in tokens.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moe_trace::{
    BackPressure, Geometry, LayerId, MemoryTrace, Phase, QueuedSink, Recorder, RouterObserver, RoutingEvent,
    RoutingSource, SequenceSink, SequenceStream, ShardedWriter, Synthetic, SyntheticOptions, TraceFile, write_trace,
};

const LAYERS: usize = 24;
const TOP_K: usize = 8;
/// Tokens of the file: 96 MiB of ids, more than the caches hold.
const TOKENS: usize = 1 << 19;

fn geometry() -> Geometry {
    Geometry::decoder(LAYERS, 64, TOP_K).expect("a valid geometry")
}

/// A trace of `tokens` tokens; few sequences are made and then repeated.
fn trace(tokens: usize) -> MemoryTrace {
    let options = SyntheticOptions { sequences: 8, tokens: 512, ..SyntheticOptions::default() };
    let made = Synthetic::new(geometry(), options).collect().expect("a valid generator");
    let mut trace = MemoryTrace::new(geometry());
    for index in 0..tokens / 512 {
        let mut sequence = made.sequences()[index % 8].clone();
        sequence.weights = None;
        trace.push(sequence).expect("a valid sequence");
    }
    trace
}

fn read(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let path = directory.path().join("trace");
    write_trace(&path, &trace(TOKENS)).expect("the file can be written");
    let file = TraceFile::open(&path).expect("a valid file");
    let bytes = std::fs::read(&path).expect("the file can be read");
    let ids = TOKENS * LAYERS * TOP_K;
    let mut copy = vec![0u8; ids];

    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(ids as u64)).sample_size(20);
    group.bench_function("memcpy", |bencher| bencher.iter(|| copy.copy_from_slice(black_box(&bytes[..ids]))));
    group.bench_function("checked", |bencher| {
        bencher.iter(|| {
            for index in 0..file.len() {
                black_box(file.sequence(index).expect("a valid sequence"));
            }
        });
    });
    group.bench_function("checked_and_copied", |bencher| {
        let mut layer_ids = Vec::new();
        bencher.iter(|| {
            for index in 0..file.len() {
                let sequence = file.sequence(index).expect("a valid sequence");
                for layer in file.geometry().layer_ids() {
                    sequence.copy_layer(layer, &mut layer_ids);
                    black_box(&layer_ids);
                }
            }
        });
    });
    group.finish();
}

/// Records sequences of 512 decode steps.
fn decode<S: SequenceSink>(recorder: &mut Recorder<S>, sequences: &MemoryTrace, index: usize) {
    let sequence = &sequences.sequences()[index % sequences.len()];
    for row in sequence.experts.chunks(LAYERS * TOP_K) {
        for (layer, experts) in (0..).zip(row.chunks(TOP_K)) {
            let event = RoutingEvent {
                sequence: 0,
                layer: LayerId(layer),
                phase: Phase::Decode,
                token_ids: &[],
                experts,
                weights: &[],
                logits: None,
            };
            recorder.routed(black_box(&event));
        }
    }
    recorder.sequence_end(0);
}

fn record(criterion: &mut Criterion) {
    let sequences = trace(8 * 512);
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(512)).sample_size(20);
    group.bench_function("memory", |bencher| {
        let mut recorder = Recorder::new(MemoryTrace::new(geometry()));
        let mut index = 0;
        bencher.iter(|| {
            decode(&mut recorder, &sequences, index);
            index += 1;
            if index % 64 == 0 {
                recorder = Recorder::new(MemoryTrace::new(geometry()));
            }
        });
    });
    for (name, policy) in [("queue_block", BackPressure::Block), ("queue_drop", BackPressure::DropAndCount)] {
        group.bench_function(name, |bencher| {
            let directory = tempfile::tempdir().expect("a temporary folder");
            let writer = ShardedWriter::create(directory.path(), geometry(), &[], None, 1 << 20);
            let mut recorder = Recorder::new(QueuedSink::new(writer.expect("a writer"), 64, policy));
            let mut index = 0;
            bencher.iter(|| {
                decode(&mut recorder, &sequences, index);
                index += 1;
            });
            recorder.finish().expect("no error").finish().expect("no error");
        });
    }
    group.finish();
}

criterion_group!(benches, read, record);
criterion_main!(benches);
