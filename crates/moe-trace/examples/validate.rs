//! Reads trace files (or directories of shards) whole and says what they hold: `validate TRACE...`.
//!
//! The tests of `tools/python` call it on every file that the Python recorder writes.

use std::process::ExitCode;

use moe_trace::{Result, RoutingSource, open};

fn main() -> ExitCode {
    let mut failed = false;
    for path in std::env::args().skip(1) {
        match describe(&path) {
            Ok(description) => println!("{path}: {description}"),
            Err(error) => {
                failed = true;
                eprintln!("{path}: {error}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Reads every sequence, so that every id, weight and phase is checked.
fn describe(path: &str) -> Result<String> {
    let trace: Box<dyn RoutingSource> = open(path)?;
    let (mut tokens, mut used) = (0, 0);
    for index in 0..trace.len() {
        let sequence = trace.sequence(index)?;
        tokens += sequence.len();
        for token in 0..sequence.len() {
            used += trace.geometry().layer_ids().map(|layer| sequence.experts(token, layer).count()).sum::<usize>();
        }
    }
    let geometry = trace.geometry();
    let (layers, experts, top_k) = (geometry.layers(), geometry.experts(), geometry.top_k());
    Ok(format!(
        "{} sequences, {tokens} tokens, {layers} layers x {experts} experts, top-{top_k}, {used} slots used",
        trace.len()
    ))
}
