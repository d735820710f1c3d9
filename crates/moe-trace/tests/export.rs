//! What the exporters write, the importers read back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use moe_trace::{
    DomainId, EMPTY_SLOT, Geometry, ImportOptions, MemoryTrace, MoeLayer, RoutingSource, SequenceBuf, Stack, TraceFile,
    WarningKind, detect_importer, exporter, exporters, import,
};
use proptest::prelude::*;

/// A token: its ids (of 300, spread by a prime), whether it is decoded, and which slots are empty.
type Token = (u16, bool, u8);

fn trace(layers: &[MoeLayer], sequences: &[Vec<Token>], optional: bool) -> MemoryTrace {
    const K: usize = 3;
    let geometry = Geometry::new(layers.to_vec(), 300, K).unwrap();
    let mut trace = MemoryTrace::new(geometry).with_model("tiny").with_domains(["code; \"odd\"", "prose"]);
    for (number, tokens) in sequences.iter().enumerate() {
        let slots = || {
            tokens.iter().flat_map(|&(id, _, empty)| {
                (0..layers.len() * K).map(move |slot| {
                    // Slot 0 of the first layer always has an expert, so that no token vanishes.
                    let is_empty = slot > 0 && empty >> (slot % 8) & 1 == 1;
                    (!is_empty).then(|| (id + u16::try_from(slot).unwrap() * 97) % 300)
                })
            })
        };
        trace
            .push(SequenceBuf {
                experts: slots().map(|id| id.unwrap_or(EMPTY_SLOT)).collect(),
                weights: optional.then(|| slots().map(|id| id.map_or(0.0, |id| f32::from(id) / 7.0)).collect()),
                token_ids: optional.then(|| tokens.iter().map(|&(id, ..)| u32::from(id)).collect()),
                predictions: optional.then(|| tokens.iter().map(|&(id, ..)| u32::from(id) + 1).collect()),
                phases: tokens.iter().map(|&(_, decode, _)| u8::from(decode)).collect(),
                domain: [Some(DomainId(0)), None, Some(DomainId(1))][number % 3],
                ..SequenceBuf::default()
            })
            .unwrap();
    }
    trace
}

fn layers(count: u32) -> Vec<MoeLayer> {
    let stack = |layer| if layer == 0 { Stack::Encoder } else { Stack::Decoder };
    (0..count).map(|layer| MoeLayer { model_layer: layer * 2 + 1, stack: stack(layer) }).collect()
}

fn tokens() -> impl Strategy<Value = Vec<Vec<Token>>> {
    proptest::collection::vec(proptest::collection::vec((0u16..300, any::<bool>(), any::<u8>()), 1..5), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn tables_come_back(sequences in tokens(), count in 1u32..4, optional in any::<bool>()) {
        let trace = trace(&layers(count), &sequences, optional);
        let directory = tempfile::tempdir().unwrap();
        for name in ["csv", "jsonl", "parquet"] {
            let Some(exporter) = exporter(name) else { continue };
            let path = directory.path().join(name);
            exporter.write(&trace, &path, &|_| {}).unwrap();
            prop_assert_eq!(detect_importer(&path).unwrap().name(), name);
            // What the format cannot say is given.
            let options = ImportOptions { experts: Some(300), model: Some("tiny".into()), ..ImportOptions::default() };
            let read = import(&path, &options).unwrap();
            prop_assert_eq!(read.geometry(), trace.geometry());
            prop_assert_eq!(read.len(), trace.len());
            for (index, (read, written)) in read.sequences().iter().zip(trace.sequences()).enumerate() {
                prop_assert_eq!(read.domain.is_some(), written.domain.is_some(), "sequence {}", index);
                prop_assert_eq!(SequenceBuf { domain: written.domain, ..read.clone() }, written.clone());
            }
            let names = |trace: &MemoryTrace| -> Vec<Option<String>> {
                let domain = |sequence: &SequenceBuf| sequence.domain.map(|domain| trace.domains()[domain.index()].clone());
                trace.sequences().iter().map(domain).collect()
            };
            prop_assert_eq!(names(&read), names(&trace));
        }
    }

    #[test]
    fn arrays_come_back(sequences in tokens(), count in 1u32..4) {
        let decoder: Vec<MoeLayer> =
            layers(count).into_iter().map(|layer| MoeLayer { stack: Stack::Decoder, ..layer }).collect();
        let trace = trace(&decoder, &sequences, false);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.npz");
        exporter("npz").unwrap().write(&trace, &path, &|_| {}).unwrap();
        let read = import(&path, &ImportOptions::default()).unwrap();
        prop_assert_eq!((read.geometry(), read.model()), (trace.geometry(), Some("tiny")));
        let ids = |trace: &MemoryTrace| trace.sequences().iter().map(|s| s.experts.clone()).collect::<Vec<_>>();
        prop_assert_eq!(ids(&read), ids(&trace));
    }

    #[test]
    fn the_plain_layout_comes_back(sequences in tokens(), count in 1u32..4, optional in any::<bool>()) {
        let trace = trace(&layers(count), &sequences, optional);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t");
        exporter("plain").unwrap().write(&trace, &path, &|_| {}).unwrap();
        let first = std::fs::read(&path).unwrap();
        let read = MemoryTrace::from_source(&TraceFile::open(&path).unwrap()).unwrap();
        prop_assert_eq!(read.sequences(), trace.sequences());
        prop_assert_eq!((read.domains(), read.model()), (trace.domains(), trace.model()));
        exporter("plain").unwrap().write(&trace, &path, &|_| {}).unwrap();
        prop_assert_eq!(std::fs::read(&path).unwrap(), first);
    }
}

/// What an import inferred is no fact after an export: the warnings come back, unless an option answers them.
#[test]
fn inferred_facts_stay_inferred_over_an_export() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("rows.csv"), "token,layer,expert\n0,0,1\n1,0,2\n").unwrap();
    let trace = import(at("rows.csv"), &ImportOptions::default()).unwrap();
    let kinds = |trace: &dyn RoutingSource| -> Vec<String> {
        trace.import_report().warnings().iter().map(|warning| warning.kind.to_string()).collect()
    };
    let inferred = ["phase-assumed", "experts-inferred"];
    assert_eq!(kinds(&trace), inferred);
    for name in ["jsonl", "npz", "plain", "csv", "npy"] {
        let path = at(&format!("t.{name}"));
        let exporter = exporter(name).unwrap();
        exporter.write(&trace, &path, &|_| {}).unwrap();
        assert_eq!(exporter.keeps_warnings(), ["jsonl", "npz", "plain"].contains(&name));
        if !exporter.keeps_warnings() {
            continue;
        }
        if name == "plain" {
            assert_eq!(kinds(&TraceFile::open(&path).unwrap()), inferred);
            continue;
        }
        let read = |experts| import(&path, &ImportOptions { experts, ..ImportOptions::default() }).unwrap();
        let mut found = kinds(&read(None));
        found.sort();
        assert_eq!(found, ["experts-inferred", "phase-assumed"], "{name}");
        // The first file is named, and another number of experts may be said.
        let first = read(None).import_report().clone();
        let experts = first.warnings().iter().find(|warning| warning.kind == WarningKind::EXPERTS_INFERRED).unwrap();
        assert_eq!(experts.file.as_deref(), Some("rows.csv"), "{name}");
        let told = read(Some(8));
        assert_eq!((told.geometry().experts(), kinds(&told)), (8, vec!["phase-assumed".to_owned()]), "{name}");
    }
}

/// A warning that every import finds in the sequences counts once.
#[test]
fn what_sequences_show_is_not_said_twice_after_an_export() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("rows.csv"), "token,layer,phase,expert\n0,0,prefill,1\n1,0,prefill,2\n").unwrap();
    let options = ImportOptions { experts: Some(4), ..ImportOptions::default() };
    let trace = import(at("rows.csv"), &options).unwrap();
    exporter("jsonl").unwrap().write(&trace, &at("t.jsonl"), &|_| {}).unwrap();
    let read = import(at("t.jsonl"), &ImportOptions::default()).unwrap();
    let found: Vec<_> =
        read.import_report().warnings().iter().map(|warning| (warning.kind.name(), warning.count)).collect();
    assert_eq!(found, [("no-decoded-tokens", 1)]);
}

#[test]
fn an_array_holds_one_sequence() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.npy");
    let npy = exporter("npy").unwrap();
    let one = trace(&layers(2), &[vec![(5, true, 0), (6, true, 2)]], false);
    npy.write(&one, &path, &|_| {}).unwrap();
    let read = import(&path, &ImportOptions { experts: Some(300), ..ImportOptions::default() }).unwrap();
    assert_eq!(read.sequences()[0].experts, one.sequences()[0].experts);
    let two = trace(&layers(2), &[vec![(5, true, 0)], vec![(6, true, 0)]], false);
    let message = npy.write(&two, &path, &|_| {}).unwrap_err().to_string();
    let expected =
        "npy cannot hold a trace whose number of sequences is 2, one array is one sequence; select one, or write npz";
    assert_eq!(message, expected);
}

/// A failed export leaves nothing behind, and an old file as it was.
#[test]
fn exports_are_complete_or_absent() {
    let directory = tempfile::tempdir().unwrap();
    let trace = trace(&layers(1), &[vec![(5, true, 0)]], true);
    for exporter in exporters() {
        let absent = directory.path().join("no such folder").join("t");
        assert!(exporter.write(&trace, &absent, &|_| {}).is_err(), "{}", exporter.name());
        let done = std::cell::Cell::new(0);
        exporter.write(&trace, &directory.path().join(exporter.name()), &|_| done.set(done.get() + 1)).unwrap();
        assert_eq!(done.get(), 1, "{}", exporter.name());
    }
    let temporary = std::fs::read_dir(directory.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp"));
    assert_eq!(temporary.count(), 0);
}
