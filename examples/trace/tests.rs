//! Every command, as one types it.

use std::path::Path;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use moe_trace::{Geometry, MemoryTrace, RoutingSource, SequenceStream, Synthetic, SyntheticOptions, write_trace};
use tempfile::TempDir;

use super::{Arguments, run};

/// A folder with `trace.safetensors`: 4 sequences of 6 tokens, 2 of them prefilled, in 2 domains.
fn folder() -> (TempDir, MemoryTrace) {
    let folder = tempfile::tempdir().unwrap();
    let dials = SyntheticOptions { sequences: 4, tokens: 6, prefill: 2, domains: 2, ..SyntheticOptions::default() };
    let trace = Synthetic::new(Geometry::decoder(3, 16, 2).unwrap(), dials).collect().unwrap();
    write_trace(folder.path().join("trace.safetensors"), &trace).unwrap();
    (folder, trace)
}

/// Runs a line; words with a dot or a slash are files of the folder.
fn trace(folder: &Path, line: &str) -> Result<()> {
    let word = |word: &str| match word.contains(".s") || word.contains('/') {
        true => folder.join(word).display().to_string(),
        false => word.to_owned(),
    };
    run(Arguments::try_parse_from(["trace".to_owned()].into_iter().chain(line.split(' ').map(word)))?)
}

fn failure(folder: &Path, line: &str) -> String {
    format!("{:#}", trace(folder, line).unwrap_err())
}

fn read(folder: &Path, name: &str) -> MemoryTrace {
    MemoryTrace::from_source(moe_trace::open(folder.join(name)).unwrap().as_ref()).unwrap()
}

#[test]
fn every_command_has_help() {
    Arguments::command().debug_assert();
    let (folder, _) = folder();
    for command in ["info", "import", "export", "convert", "slice", "cat", "validate", "heatmap", "formats"] {
        assert!(failure(folder.path(), &format!("{command} --help")).contains("Usage: trace"), "{command}");
    }
}

#[test]
fn formats_lead_back() {
    let (folder, original) = folder();
    for format in ["csv", "jsonl", "npz"] {
        trace(folder.path(), &format!("export trace.safetensors ./{format} --to {format}")).unwrap();
        trace(folder.path(), &format!("import ./{format} back.safetensors --experts 16")).unwrap();
        let back = read(folder.path(), "back.safetensors");
        assert!(original.sequences().iter().map(|s| &s.experts).eq(back.sequences().iter().map(|s| &s.experts)));
        assert_eq!(back.domains() == original.domains(), format != "npz", "{format}");
    }
    trace(folder.path(), "convert trace.safetensors ./shards --shard-tokens 7").unwrap();
    trace(folder.path(), "convert ./shards back.safetensors").unwrap();
    let bytes = |name| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("trace.safetensors"), bytes("back.safetensors"));
    let error = failure(folder.path(), "import trace.safetensors back.safetensors");
    assert!(error.ends_with("trace.safetensors is a trace already; convert copies it"), "{error}");
}

#[test]
fn traces_are_cut_and_put_together() {
    let (folder, original) = folder();
    let slice = "--phase decode --layers 2,0 --sequences 1,3 --domain";
    let error = failure(folder.path(), &format!("slice trace.safetensors cut.safetensors {slice} prose"));
    assert_eq!(error, "no domain `prose`; there are: domain 0, domain 1");
    trace(folder.path(), "slice trace.safetensors cut.safetensors --phase decode --layers 2,0 --sequences 3").unwrap();
    let cut = read(folder.path(), "cut.safetensors");
    let rows = original.sequences()[3].experts[2 * 6..].chunks(6);
    let expected: Vec<u16> = rows.flat_map(|row| [&row[4..], &row[..2]].concat()).collect();
    assert_eq!((cut.len(), &cut.sequences()[0].experts), (1, &expected));

    trace(folder.path(), "cat ./all trace.safetensors trace.safetensors --shard-tokens 7").unwrap();
    trace(folder.path(), "cat ./all trace.safetensors --append --shard-tokens 7").unwrap();
    let all = read(folder.path(), "all");
    assert_eq!(all.sequences(), [original.sequences(); 3].concat());
    assert!(failure(folder.path(), "cat both.safetensors trace.safetensors cut.safetensors").contains("do not fit"));
}

#[test]
fn values_that_cannot_be_are_refused_with_what_is_allowed() {
    let (folder, _) = folder();
    for (line, expected) in [
        ("heatmap trace.safetensors map.svg --tokens 0", "give a whole number of at least 1"),
        ("heatmap trace.safetensors map.svg --layer=-1", "give a whole number from 0 to 65535"),
        ("slice trace.safetensors cut.safetensors --layers 0,0", "0 comes twice, give it once"),
        ("export trace.safetensors ./out", "/out has no ending to tell the format by, give --to one of csv"),
        ("export trace.safetensors ./out --to xml", "no format `xml`; give --to one of csv"),
        ("convert trace.safetensors ./shards --shard-tokens 0", "give a whole number of at least 1"),
    ] {
        let error = failure(folder.path(), line);
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn traces_are_looked_at_drawn_and_checked() {
    let (folder, original) = folder();
    trace(folder.path(), "info trace.safetensors --json ./info").unwrap();
    let info: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path().join("info")).unwrap()).unwrap();
    assert_eq!((&info["tokens"], &info["decode_tokens"]), (&24.into(), &16.into()));
    trace(folder.path(), "heatmap trace.safetensors map.svg --sequence 2 --layer 1 --start 4").unwrap();
    let svg = std::fs::read_to_string(folder.path().join("map.svg")).unwrap();
    assert!(svg.contains("sequence 2 (domain 0), tokens 4..6 of 6, MoE layer 1"), "{svg}");
    assert_eq!(svg.matches("<title>").count(), 2 * 2);
    let missing = failure(folder.path(), "heatmap trace.safetensors map.svg --layer 3");
    assert!(missing.ends_with("there is no layer 3, the trace has 3"), "{missing}");

    trace(folder.path(), "validate trace.safetensors").unwrap();
    let path = folder.path().join("trace.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let ids: Vec<u8> = original.sequences()[1].experts.iter().map(|&id| u8::try_from(id).unwrap()).collect();
    let at = bytes.windows(ids.len()).position(|window| window == ids).unwrap();
    bytes[at] = 16;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(failure(folder.path(), "validate trace.safetensors"), "1 of 4 sequences are invalid");
}
