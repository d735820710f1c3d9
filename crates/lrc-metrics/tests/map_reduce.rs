//! The worked example of docs/map-reduce.md with processes: parts are folded apart, written, read and merged.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lrc_metrics::{Accumulator, Bootstrap, MetricsOptions, TraceIntervals, accumulate};
use moe_trace::{Geometry, RoutingSource, SequenceStream, Synthetic, SyntheticOptions, write_trace};

const PARTS: usize = 3;
/// Tells a process which part to fold.
const PART: &str = "LRC_METRICS_TEST_PART";
/// Tells a process where the trace and the parts are.
const FOLDER: &str = "LRC_METRICS_TEST_FOLDER";

fn empty(trace: &dyn RoutingSource) -> TraceIntervals {
    let options = MetricsOptions { windows: vec![4, 16], pool: true, ..MetricsOptions::default() };
    TraceIntervals::new(trace.geometry(), &options).unwrap()
}

/// The mapper: folds its part if it was started to do so.
#[test]
fn fold_a_part() {
    let (Ok(part), Ok(folder)) = (std::env::var(PART), std::env::var(FOLDER)) else { return };
    let (part, folder): (usize, PathBuf) = (part.parse().unwrap(), folder.into());
    let trace = moe_trace::open(folder.join("trace.safetensors")).unwrap();
    let mut metrics = empty(trace.as_ref());
    for index in (part..trace.len()).step_by(PARTS) {
        metrics.update(&trace.sequence(index).unwrap()).unwrap();
    }
    serde_json::to_writer(File::create(folder.join(format!("part-{part}.json"))).unwrap(), &metrics).unwrap();
}

/// The reducer: starts the mappers, then merges what they wrote.
#[test]
fn processes_agree_with_the_whole() {
    let geometry = Geometry::decoder(2, 16, 4).unwrap();
    let dials = SyntheticOptions { sequences: 20, tokens: 64, ..SyntheticOptions::default() };
    let trace = Synthetic::new(geometry.clone(), dials).collect().unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_trace(folder.path().join("trace.safetensors"), &trace).unwrap();

    let map = |part: usize| {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "fold_a_part"]).env(PART, part.to_string()).env(FOLDER, folder.path());
        process.stdout(Stdio::null()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..PARTS).map(map).collect();
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    let mut merged = empty(&trace);
    for part in [2, 0, 1] {
        let text = std::fs::read_to_string(folder.path().join(format!("part-{part}.json"))).unwrap();
        merged.merge(&serde_json::from_str(&text).unwrap()).unwrap();
    }
    let whole = accumulate(&trace, &empty(&trace), &|_| {}).unwrap();
    let bootstrap = Bootstrap::new(100, 0.95, 1).unwrap();
    assert_eq!(merged.finish(&bootstrap).unwrap(), whole.finish(&bootstrap).unwrap());
}
