//! What the fuzz targets share: bytes become a file, and the file is read to its end.

use std::path::{Path, PathBuf};
use std::sync::Once;

#[cfg(feature = "offload")]
mod checkpoint;

#[cfg(feature = "offload")]
pub use checkpoint::{gguf, gguf_split, safetensors};
use moe_trace::{ImportOptions, RoutingSource, TraceFile};

/// A file in memory where the system has such a place. One process writes one file, again and again.
fn file(bytes: &[u8], name: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = folder.join(format!("moe-trace-fuzz-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).expect("the folder can be written");
    path
}

/// The decoder of Parquet may panic, which the importer turns into an error; libFuzzer's hook would end the process before.
/// A panic that nobody catches still ends it.
pub fn let_panics_unwind() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

/// Finds the format of bytes and reads them.
pub fn detect(bytes: &[u8]) {
    if let Ok(trace) = moe_trace::import(file(bytes, "any"), &ImportOptions::default()) {
        assert!((0..trace.len()).all(|index| trace.sequence(index).is_ok()), "what is imported is valid");
    }
}

/// Reads bytes with an importer.
pub fn import(name: &str, bytes: &[u8]) {
    let suffix = if name == "paper-outputs" { "m_00.safetensors" } else { "f" };
    read(name, &file(bytes, suffix));
}

/// Reads bytes as the description beside a trace of streamlx.
pub fn streamlx_description(bytes: &[u8]) {
    let path = file(include_bytes!("../../crates/moe-trace/tests/fixtures/streamlx.npz"), "s.npz");
    std::fs::write(path.with_extension("meta.json"), bytes).expect("the folder can be written");
    read("streamlx", &path);
}

/// Reads a file with an importer. Whatever it accepts must be a valid trace or be refused with an error.
fn read(name: &str, path: &Path) {
    let top_k = (name == "paper-outputs").then_some(1);
    let options = ImportOptions { top_k, format: Some(name.to_owned()), ..ImportOptions::default() };
    if let Ok(trace) = moe_trace::import(path, &options) {
        for index in 0..trace.len() {
            let sequence = trace.sequence(index).expect("the trace has the sequence");
            assert_eq!(sequence.to_buf().phases.len(), sequence.len());
        }
    }
}

/// Opens bytes as a trace file and reads every sequence.
pub fn trace_file(bytes: &[u8]) {
    if let Ok(trace) = TraceFile::open(file(bytes, "t")) {
        for index in 0..trace.len() {
            if let Ok(sequence) = trace.sequence(index) {
                let copy = sequence.to_buf();
                assert!(copy.view(trace.geometry(), index).is_ok(), "a checked sequence stays valid");
            }
        }
    }
}

/// Unpacks what gzip has packed, and reads it to its end.
pub fn gzip(bytes: &[u8]) {
    const MOST: u64 = 1 << 20;
    if let Ok(input) = moe_trace::Input::open(file(bytes, "z"), Some(MOST)) {
        let unpacked = input.bytes().expect("what was opened can be mapped");
        let mut read = Vec::new();
        let mut reader = input.reader().expect("what was opened can be read");
        std::io::Read::read_to_end(&mut reader, &mut read).expect("what was opened can be read");
        assert!(read == unpacked.as_ref());
        assert!(read.len() as u64 <= MOST.max(bytes.len() as u64));
    }
}

/// Opens bytes as the index of a directory with one shard, checks its digest and reads it.
pub fn shard_index(bytes: &[u8]) {
    let folder = file(b"", "shards").with_extension("d");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let shard = include_bytes!("../../crates/moe-trace/tests/golden/trace-1.0.safetensors");
    std::fs::write(folder.join("shard-00000.safetensors"), shard).expect("the folder can be written");
    std::fs::write(folder.join("index.json"), bytes).expect("the folder can be written");
    if let Ok(trace) = moe_trace::ShardedTrace::open(&folder) {
        let _ = trace.check_digests();
        assert!((0..trace.len()).all(|index| trace.sequence(index).is_ok()), "what is opened is valid");
    }
}

/// Reads bytes as the configuration of a model.
pub fn model_config(bytes: &[u8]) {
    if let Ok(config) = moe_trace::ModelConfig::parse(Path::new("c"), bytes) {
        for stack in std::iter::once(&config.decoder).chain(&config.encoder) {
            assert!(stack.moe_layers.iter().all(|&layer| layer < stack.layers));
        }
        assert!(config.top_k <= config.experts);
        if let Ok(sizes) = moe_trace::ModelSizes::parse(Path::new("c"), bytes) {
            assert_eq!(sizes.config, config);
        }
    }
}
