//! A capturing process is killed again and again; what it left is whole, and no more is claimed than is there.
//!
//! The child is this test binary itself, running the test `the_child_captures` with a folder in its environment.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use moe_trace::{
    BackPressure, Geometry, QueuedSink, Recorder, RouterObserver, RoutingEvent, RoutingSource, SequenceBuf,
    ShardedTrace, ShardedWriter, Synthetic, SyntheticOptions, TraceError,
};

const FOLDER: &str = "MOE_TRACE_KILLED_FOLDER";
const SHARD_TOKENS: usize = 40;

/// The capture, which every process can repeat: sequence by sequence the same.
fn generator() -> Synthetic {
    let options = SyntheticOptions { sequences: 1 << 20, tokens: 7, domains: 2, ..SyntheticOptions::default() };
    Synthetic::new(Geometry::decoder(3, 16, 2).unwrap(), options)
}

/// Captures without end, through the recorder, the queue and the writer; appends where a capture is there already.
#[test]
fn the_child_captures() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let generator = generator();
    let geometry = Geometry::decoder(3, 16, 2).unwrap();
    let domains = ["domain 0".to_owned(), "domain 1".to_owned()];
    let writer = match ShardedTrace::open(&folder) {
        Ok(_) => ShardedWriter::append(&folder, SHARD_TOKENS).unwrap(),
        Err(TraceError::NoShards { .. }) => {
            ShardedWriter::create(&folder, geometry, &domains, Some("synthetic"), SHARD_TOKENS).unwrap()
        }
        Err(other) => panic!("a capture that was killed must open: {other:?}"),
    };
    let first = ShardedTrace::open(&folder).map_or(0, |trace| trace.len());
    let mut recorder = Recorder::new(QueuedSink::new(writer, 4, BackPressure::Block));
    for index in first.. {
        let sequence = generator.sequence(index);
        recorder.label(0, sequence.domain.unwrap());
        let row = 3 * 2;
        for token in 0..sequence.phases.len() {
            for layer in 0..3usize {
                let cell = token * row + layer * 2;
                recorder.routed(&RoutingEvent {
                    sequence: 0,
                    layer: moe_trace::LayerId(u16::try_from(layer).unwrap()),
                    phase: moe_trace::Phase::from_code(sequence.phases[token]).unwrap(),
                    token_ids: &[],
                    experts: &sequence.experts[cell..cell + 2],
                    weights: &sequence.weights.as_deref().unwrap()[cell..cell + 2],
                    logits: None,
                });
            }
        }
        recorder.sequence_end(0);
        assert!(recorder.error().is_none(), "{:?}", recorder.error());
    }
}

/// Sequences of a killed capture: they must be a beginning of what the child records.
fn survivors(folder: &Path) -> usize {
    let trace = match ShardedTrace::open(folder) {
        Ok(trace) => trace,
        Err(TraceError::NoShards { .. }) => return 0,
        Err(other) => panic!("{other:?}"),
    };
    assert!(!trace.is_complete(), "nobody finished the capture");
    let generator = generator();
    for index in 0..trace.len() {
        let expected: SequenceBuf = generator.sequence(index);
        assert_eq!(trace.sequence(index).unwrap().to_buf(), expected, "sequence {index}");
    }
    // No shard is there in part, and none is left out.
    let mut shards: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("shard-") && name.ends_with(".safetensors"))
        .collect();
    shards.sort_unstable();
    let per_shard = SHARD_TOKENS.div_ceil(7);
    assert_eq!(trace.len(), shards.len() * per_shard, "{shards:?}");
    trace.len()
}

#[test]
fn every_complete_shard_survives_a_kill_at_any_time() {
    let rounds: u64 = std::env::var("MOE_TRACE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(40);
    let folder = tempfile::tempdir().unwrap();
    let mut last = 0;
    let mut torn = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["the_child_captures", "--exact", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Times that are spread over the beginning, the first shards, and later ones.
        std::thread::sleep(Duration::from_micros(500 + (round * 7919) % 60_000));
        let ended_by_itself = child.try_wait().unwrap();
        assert!(ended_by_itself.is_none(), "the child failed: {ended_by_itself:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        let temporary = std::fs::read_dir(folder.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp"));
        torn += temporary.count();
        let survived = survivors(folder.path());
        assert!(survived >= last, "{survived} sequences after {last}: something complete was lost");
        last = survived;
        if round % 10 == 9 {
            // Begin anew, so that the first shards are hit too.
            for entry in std::fs::read_dir(folder.path()).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
            last = 0;
        }
    }
    println!("{rounds} kills, {torn} of them left a temporary file");
}
