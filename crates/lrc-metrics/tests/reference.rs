//! Agreement with the scripts that were published with arXiv 2505.16056, on a synthetic trace of 64 experts, top-8.
//!
//! The trace and the figures are no part of this repository. They are looked for in `reference/synthetic-64x8` under
//! `$MOE_SHARED`, or under `shared` beside the workspace; where they are absent the test says so and passes.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use expert_cache::curve::{ColdStart, CurvePolicy};
use lrc_metrics::{Accumulator, Curves, Srp, accumulate};
use moe_trace::LayerId;
use serde_json::Value;

const TOLERANCE: f64 = 1e-6;

fn folder() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = std::env::var_os("MOE_SHARED").map_or_else(|| workspace.join("../shared"), PathBuf::from);
    let folder = shared.join("reference/synthetic-64x8");
    if folder.join("reference.json").is_file() {
        return Some(folder);
    }
    println!("skipped: no {}; set MOE_SHARED to the folder that has it", folder.display());
    None
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Asserts closeness and returns the largest difference.
fn compare(what: &str, ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f64::max);
    assert!(largest < TOLERANCE, "{what} differs by {largest}");
    largest
}

#[test]
fn srp_agrees_by_expert_and_layer() {
    let Some(folder) = folder() else { return };
    let reference: Value = serde_json::from_reader(File::open(folder.join("reference.json")).unwrap()).unwrap();
    let trace = moe_trace::open(folder.join("trace.safetensors")).unwrap();
    let windows = [4, 16, 64, 256];
    let srp = Srp::new(trace.geometry(), &windows).unwrap();
    let reports = accumulate(trace.as_ref(), &srp, &|_| {}).unwrap().finish().unwrap();
    for window in windows {
        let report = &reports[&window];
        let (layer, expected) = (&report.layers[0], &reference["srp"][window.to_string()]);
        let column = |field: fn(&lrc_metrics::SrpValue) -> f64| layer.experts.iter().map(field).collect::<Vec<_>>();
        let srp = compare("expert SRP", &column(|value| value.srp), &numbers(&expected["expert_best_f1"]));
        let rho = compare("expert rho", &column(|value| value.rho), &numbers(&expected["expert_best_m"]));
        compare(
            "expert threshold",
            &column(|value| value.threshold as f64),
            &numbers(&expected["expert_best_threshold"]),
        );
        let layer_values = [layer.value.srp, layer.value.threshold as f64, layer.value.rho];
        let fields = ["layer_best_f1", "layer_best_threshold", "layer_best_m"];
        let expected = fields.map(|field| expected[field].as_f64().unwrap());
        let pooled = compare("layer SRP, threshold, rho", &layer_values, &expected);
        assert_eq!(report.model, layer.value);
        println!("m = {window}: largest difference of expert SRP {srp:e}, expert rho {rho:e}, layer {pooled:e}");
    }
}

#[test]
fn curves_agree_at_every_capacity() {
    let Some(folder) = folder() else { return };
    let reference: Value = serde_json::from_reader(File::open(folder.join("reference.json")).unwrap()).unwrap();
    let trace = moe_trace::open(folder.join("trace.safetensors")).unwrap();
    let mut policies = vec![CurvePolicy::Lru, CurvePolicy::Lfu, CurvePolicy::Belady];
    policies.extend([4, 16, 64, 256].map(|window| CurvePolicy::LookAhead { window }));
    let empty = Curves::new(trace.geometry(), &[LayerId(0)], &policies, ColdStart::Free).unwrap();
    let mean = accumulate(trace.as_ref(), &empty, &|_| {}).unwrap().finish();
    let single = |index: usize| {
        let mut curves = empty.clone();
        curves.update(&trace.sequence(index).unwrap()).unwrap();
        curves.finish()
    };
    let (first, last) = (single(0), single(trace.len() - 1));
    for (position, policy) in policies.iter().enumerate() {
        let name = match policy.window() {
            Some(window) => format!("sch_{window}"),
            None => policy.to_string(),
        };
        let expected = &reference["curves"][name];
        let compared = [(&mean, "mean_hit_rate_at_size_1_to_E"), (&first, "first_sample"), (&last, "last_sample")]
            .map(|(ours, field)| compare(field, &ours[position].1.hit_rates, &numbers(&expected[field])));
        println!("{policy}: largest difference of mean, first, last {compared:?}");
    }
}
