//! Runs in folders: interrupted, resumed, measured, compared.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Device;
use moe_testbed::{Experiment, Prepared, RunConfig, RunEvent, RunFolder, RunState, Study, TestbedError};

const EXPERIMENT: &str = "
    seeds = [1, 2]
    checkpoint_every = 4
    data = { vocabulary = 300, synthetic = { domains = 3, bytes = 20_000 } }
    model = { hidden_size = 16, num_hidden_layers = 2, intermediate_size = 8, num_experts = 6 }
    training = { steps = 10, batch = 4, micro_batch = 2, length = 16, warm_up = 2 }
    measure = { sequences = 4, windows = [4, 16], speed.memory_gigabytes = 16.0 }
    [[points]]
    model.router = [\"softmax\", \"reference\"]
    [[points]]
    name = \"uneven\"
    training.balancing.scope = \"none\"
    ";

fn experiment() -> (Experiment, Prepared, Vec<RunConfig>) {
    let experiment = Experiment::parse(Path::new("test.toml"), EXPERIMENT).unwrap();
    let prepared = experiment.prepare().unwrap();
    let runs = experiment.runs(&prepared).unwrap();
    (experiment, prepared, runs)
}

/// Every file of a run but what it took.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for path in [folder.to_owned(), folder.join("model")] {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && !path.ends_with("seconds.json") {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn go_on(_event: RunEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    let (_, prepared, runs) = experiment();
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = RunFolder::create(whole.path(), runs[0].clone()).unwrap();
    let figures = run.run(&prepared, &Device::Cpu, 1, go_on).unwrap().unwrap();
    assert_eq!(run.state(), RunState::Complete);

    // Broken off in the middle of a step, right behind a checkpoint, and behind the next one; with more threads.
    let breaks: [(RunState, u64); 3] = [(RunState::New, 3), (RunState::Resumable, 4), (RunState::Resumable, 9)];
    for (state, step) in breaks {
        let run = RunFolder::create(parts.path(), runs[0].clone()).unwrap();
        let broken = run.run(&prepared, &Device::Cpu, 2, |event| match event {
            RunEvent::Step(progress) if progress.step == step && step != 4 => ControlFlow::Break(()),
            RunEvent::Validated(record) if record.step == step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(broken.unwrap(), None);
        assert_eq!(run.state(), state);
    }
    // A line that was half written when the power went.
    let run = RunFolder::open(&parts.path().join("softmax/seed-1")).unwrap();
    let metrics = run.path().join("metrics.jsonl");
    fs::write(&metrics, [&fs::read(&metrics).unwrap(), &b"{\"step\":"[..]].concat()).unwrap();
    assert_eq!(run.run(&prepared, &Device::Cpu, 1, go_on).unwrap().unwrap(), figures);

    let (whole, parts) = (files(&whole.path().join("softmax/seed-1")), files(run.path()));
    let names: Vec<&str> = whole.keys().map(String::as_str).collect();
    let model = ["model/config.json", "model/model.safetensors", "model/tokenizer.json"];
    let expected = ["config.toml", "figures.json", "metrics.jsonl"].iter().chain(&model);
    assert!(names.iter().eq(expected.chain(&["trace.safetensors", "validation.jsonl"])), "{names:?}");
    assert!(whole == parts);
    assert_eq!(fs::read_to_string(&metrics).unwrap().lines().count(), 10);
    let validated: Vec<u64> = run.validations().unwrap().iter().map(|record| record.step).collect();
    assert_eq!(validated, [4, 8, 10]);
}

#[test]
fn a_folder_belongs_to_one_configuration() {
    let (_, _, mut runs) = experiment();
    let folder = tempfile::tempdir().unwrap();
    RunFolder::create(folder.path(), runs[0].clone()).unwrap();
    RunFolder::create(folder.path(), runs[0].clone()).unwrap();
    runs[0].training.balancing.coefficient = 0.5;
    let error = RunFolder::create(folder.path(), runs[0].clone()).unwrap_err();
    assert!(matches!(error, TestbedError::OtherRun { .. }));
    let message = error.to_string();
    let expected = "config.toml: training.balancing.coefficient is 0.01, the experiment says 0.5; take another folder";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_study_has_means_over_seeds_and_distances_to_the_reference() {
    let (experiment, prepared, runs) = experiment();
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Study::read(&experiment, folder.path()), Err(TestbedError::NoRuns { .. })));
    // The last one is left out.
    for config in &runs[..5] {
        RunFolder::create(folder.path(), config.clone()).unwrap().run(&prepared, &Device::Cpu, 2, go_on).unwrap();
    }
    let study = Study::read(&experiment, folder.path()).unwrap();
    assert_eq!(
        (study.reference.as_deref(), &study.missing[..]),
        (Some("reference"), &["uneven/seed-2".to_owned()][..])
    );
    let points = study.points();
    let seeds: Vec<(&str, usize)> =
        points.iter().map(|point| (point.point.as_str(), point.figures["purity"].seeds)).collect();
    assert_eq!(seeds, [("softmax", 2), ("reference", 2), ("uneven", 1)]);

    // The reference gives each of three domains two of six experts, all of which a token uses.
    let reference = &points[1].figures;
    for figure in ["purity", "precision", "coverage", "top1", "utilization", "share_purity", "share_nmi"] {
        let mean = reference[figure].mean;
        assert!((mean - 1.0).abs() < 1e-9, "{figure} is {mean}");
    }
    assert!((reference["nmi"].mean - 2.0 * 3f64.ln() / (3f64.ln() + 6f64.ln())).abs() < 1e-9);
    assert_eq!((reference["srp_4"].mean, reference["distance_purity"].mean), (1.0, 0.0));
    // Nothing of it is left when the tokens are shuffled: each expert then serves a third of a window.
    assert!(reference["srp_4_shuffled_tokens"].mean < 0.7);
    assert!(reference["tokens_per_second"].mean > 1.5 * reference["tokens_per_second_shuffled_tokens"].mean);
    let softmax = &points[0].figures;
    assert!(softmax["distance_nmi"].mean > 0.3 && softmax["purity"].mean > 1.0 / 3.0);
    let of_seed = |seed: u64| {
        let of = |point: &str| {
            let run = study.runs.iter().find(|run| run.config.point == point && run.config.seed() == seed).unwrap();
            run.figures.validation_loss
        };
        of("softmax") - of("reference")
    };
    let distance = softmax["distance_validation_loss"].mean;
    assert!((distance - (of_seed(1) + of_seed(2)) / 2.0).abs() < 1e-12);
    assert!(study.effects("nmi").is_none());
}
