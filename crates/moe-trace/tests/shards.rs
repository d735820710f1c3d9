//! Sharded captures: complete shards survive whatever interrupts the capture.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use moe_trace::{
    Geometry, LayerId, MemoryTrace, Phase, Recorder, RouterObserver, RoutingEvent, RoutingSource, SequenceBuf,
    ShardedTrace, ShardedWriter,
};

fn geometry() -> Geometry {
    Geometry::decoder(1, 16, 2).unwrap()
}

fn sequence(number: u16) -> SequenceBuf {
    let ids = (0..6).flat_map(|token| [(number + token) % 16, (number + token + 5) % 16]).collect();
    SequenceBuf::from_experts(&geometry(), ids, Phase::Prefill).unwrap()
}

fn writer(directory: &Path) -> ShardedWriter {
    ShardedWriter::create(directory, geometry(), &[], Some("tiny"), 12).unwrap()
}

fn sequences(source: &dyn RoutingSource) -> Vec<SequenceBuf> {
    MemoryTrace::from_source(source).unwrap().sequences().to_vec()
}

#[test]
fn shards_read_as_one_trace() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    for number in 0..7 {
        writer.push(&sequence(number)).unwrap();
    }
    writer.finish().unwrap();
    let trace = ShardedTrace::open(directory.path()).unwrap();
    assert!(trace.is_complete());
    assert_eq!(sequences(&trace), (0..7).map(sequence).collect::<Vec<_>>());
    assert_eq!((0..7).map(|index| trace.sequence_len(index).unwrap()).collect::<Vec<_>>(), [6; 7]);
    assert!(trace.sequence_len(7).is_err());
    assert_eq!(trace.sequence(7).unwrap_err().to_string(), "there is no sequence 7, the source has 7");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4 + 1, "four shards and the index");
}

#[test]
fn an_interrupted_capture_is_readable_up_to_the_last_complete_shard() {
    let directory = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::new(writer(directory.path()));
    for number in 0..5 {
        let experts = sequence(number).experts;
        let event = RoutingEvent {
            sequence: 0,
            layer: LayerId(0),
            phase: Phase::Prefill,
            token_ids: &[],
            experts: &experts,
            weights: &[],
            logits: None,
        };
        recorder.routed(&event);
        recorder.sequence_end(0);
    }
    drop(recorder); // the process dies: the fifth sequence was in no complete shard
    let trace = ShardedTrace::open(directory.path()).unwrap();
    assert!(!trace.is_complete());
    assert_eq!(sequences(&trace), (0..4).map(sequence).collect::<Vec<_>>());
}

/// A capture is a series of file operations; after each of them the directory is readable.
#[test]
fn every_point_of_interruption_leaves_complete_shards_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut writer = writer(path);
    (0..4).for_each(|number| writer.push(&sequence(number)).unwrap());
    let shards = |expected: usize| {
        let trace = ShardedTrace::open(path).unwrap();
        assert_eq!(sequences(&trace), (0..).take(expected).map(sequence).collect::<Vec<_>>());
    };
    shards(4);
    // Between the rename of a shard and its entry in the index.
    let index = fs::read_to_string(path.join("index.json")).unwrap();
    writer.push(&sequence(4)).unwrap();
    writer.push(&sequence(5)).unwrap();
    fs::write(path.join("index.json"), &index).unwrap();
    shards(6);
    // While a shard is being written under its temporary name.
    let whole = fs::read(path.join("shard-00002.safetensors")).unwrap();
    fs::remove_file(path.join("shard-00002.safetensors")).unwrap();
    for length in [0, 7, 100, whole.len() - 1] {
        fs::write(path.join("shard-00002.safetensors.7.tmp"), &whole[..length]).unwrap();
        shards(4);
    }
    // While the index is being written.
    fs::write(path.join("index.json.7.tmp"), &index[..20]).unwrap();
    shards(4);
    // Before the first entry.
    fs::remove_file(path.join("index.json")).unwrap();
    fs::remove_file(path.join("shard-00001.safetensors")).unwrap();
    shards(2);
}

#[test]
fn captures_are_appended_to_whether_finished_or_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut first = writer(path);
    (0..3).for_each(|number| first.push(&sequence(number)).unwrap());
    first.finish().unwrap();
    let mut second = ShardedWriter::append(path, 12).unwrap();
    assert!(!ShardedTrace::open(path).unwrap().is_complete());
    (3..6).for_each(|number| second.push(&sequence(number)).unwrap());
    drop(second); // interrupted: the sixth sequence is lost
    fs::write(path.join("shard-00003.safetensors.7.tmp"), "half a shard").unwrap();
    // A shard without its entry.
    let index = fs::read_to_string(path.join("index.json")).unwrap();
    let third = ShardedWriter::append(path, 12).unwrap();
    assert!(!path.join("shard-00003.safetensors.7.tmp").exists());
    drop(third);
    assert_eq!(fs::read_to_string(path.join("index.json")).unwrap(), index);
    let mut fourth = ShardedWriter::append(path, 1).unwrap();
    fourth.push(&sequence(5)).unwrap();
    fs::write(path.join("index.json"), &index).unwrap();
    let fifth = ShardedWriter::append(path, 12).unwrap();
    fifth.finish().unwrap();
    let trace = ShardedTrace::open(path).unwrap();
    assert!(trace.is_complete());
    assert_eq!(sequences(&trace), (0..6).map(sequence).collect::<Vec<_>>());
}

#[test]
fn broken_directories_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let message = || ShardedTrace::open(path).unwrap_err().to_string().replace(path.to_str().unwrap(), "d");
    assert_eq!(message(), "d: no complete shard in this directory");
    let mut writer = writer(path);
    (0..4).for_each(|number| writer.push(&sequence(number)).unwrap());
    writer.finish().unwrap();

    let again = ShardedWriter::create(path, geometry(), &[], None, 12).unwrap_err().to_string();
    assert!(again.contains("choose a directory without a capture"), "{again}");
    fs::copy(path.join("shard-00000.safetensors"), path.join("kept")).unwrap();
    fs::remove_file(path.join("shard-00000.safetensors")).unwrap();
    assert_eq!(message(), "d/shard-00000.safetensors: cannot open the file");
    fs::rename(path.join("kept"), path.join("shard-00000.safetensors")).unwrap();
    let index = fs::read_to_string(path.join("index.json")).unwrap();
    fs::write(path.join("index.json"), index.replacen("\"sequences\": 2", "\"sequences\": 3", 1)).unwrap();
    let expected = "d/shard-00000.safetensors: shard is shard-00000.safetensors of 2 sequences, 12 tokens, the index says \
                    shard-00000.safetensors of 3 sequences, 12 tokens";
    assert_eq!(message(), expected);
    fs::write(path.join("index.json"), index.replace("\"tokens\": 12", "\"tokens\": 13")).unwrap();
    assert!(message().ends_with("the index says shard-00000.safetensors of 2 sequences, 13 tokens"), "{}", message());
    fs::write(path.join("index.json"), &index).unwrap();
    let mut other = MemoryTrace::new(geometry()).with_model("another");
    (2..4).for_each(|number| other.push(sequence(number)).unwrap());
    moe_trace::write_trace(path.join("shard-00001.safetensors"), &other).unwrap();
    let expected = "d/shard-00001.safetensors: model is Some(\"another\"), the first shard has Some(\"tiny\")";
    assert_eq!(message(), expected);
    fs::write(path.join("index.json"), "{").unwrap();
    assert!(message().starts_with("d/index.json: index is unreadable, expected JSON"), "{}", message());
}

#[test]
fn invalid_sequences_and_unnamed_domains_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path());
    let mut bad = sequence(0);
    bad.experts[3] = 16;
    let message = writer.push(&bad).unwrap_err().to_string();
    assert_eq!(message, "sequence 0, token 1, layer 0: expert 16 is out of range, the layer has 16");
    let unnamed = SequenceBuf { domain: Some(moe_trace::DomainId(0)), ..sequence(0) };
    assert_eq!(writer.push(&unnamed).unwrap_err().to_string(), "domain 0 has no name, 0 domains are named");
}
