//! Sharded captures: complete shards survive whatever interrupts the capture.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use moe_trace::{
    Geometry, LayerId, MemoryTrace, Notice, Phase, Recorder, RouterObserver, RoutingEvent, RoutingSource, SequenceBuf,
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
    fs::write(path.join("index.json"), r#"{"complete": false, "shards": []}"#).unwrap();
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
    drop(fourth);
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

/// A complete capture of four shards, two sequences each.
fn four_shards(path: &Path) {
    let mut writer = writer(path);
    (0..8).for_each(|number| writer.push(&sequence(number)).unwrap());
    writer.finish().unwrap();
}

#[test]
fn a_lost_index_is_an_error_and_no_shard_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    four_shards(path);
    let shard = |number: usize| fs::read(path.join(format!("shard-{number:05}.safetensors"))).unwrap();
    let before: Vec<Vec<u8>> = (0..4).map(shard).collect();
    let index = fs::read_to_string(path.join("index.json")).unwrap();
    fs::remove_file(path.join("index.json")).unwrap();
    let expected = "d/index.json: the index is missing, and 4 shards are there; copy the whole directory again, or open \
                    the shards one by one";
    let message = |error: moe_trace::TraceError| error.to_string().replace(path.to_str().unwrap(), "d");
    assert_eq!(message(ShardedTrace::open(path).unwrap_err()), expected);
    assert_eq!(message(ShardedWriter::append(path, 12).unwrap_err()), expected);
    assert!(ShardedWriter::create(path, geometry(), &[], None, 12).is_err());

    // An index that names two of them, of a capture that ended and of one that did not.
    let mut two: serde_json::Value = serde_json::from_str(&index).unwrap();
    two["shards"].as_array_mut().unwrap().truncate(2);
    for (complete, unknown) in [(true, 2), (false, 3)] {
        two["complete"] = complete.into();
        fs::write(path.join("index.json"), two.to_string()).unwrap();
        let message = message(ShardedWriter::append(path, 12).unwrap_err());
        let file = format!("d/shard-{unknown:05}.safetensors: ");
        assert_eq!(
            message,
            file + "no entry of the index names this shard, and appending would overwrite it; move it away"
        );
    }
    assert_eq!((0..4).map(shard).collect::<Vec<_>>(), before);
}

#[test]
fn readers_are_told_of_interruptions_and_of_shards_without_an_entry() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut writer = writer(path);
    (0..5).for_each(|number| writer.push(&sequence(number)).unwrap());
    // A reader meanwhile, and after the writer was killed.
    for _ in 0..2 {
        let trace = moe_trace::open(path).unwrap();
        assert_eq!((trace.len(), trace.notices()), (4, &[Notice::Interrupted { sequences: 4 }][..]));
        let expected = "not complete: interrupted after 4 sequences, or still being written";
        assert_eq!(trace.notices()[0].to_string(), expected);
    }
    writer.finish().unwrap();
    assert!(moe_trace::open(path).unwrap().notices().is_empty());
    for orphan in ["shard-00007.safetensors", "shard-100000.safetensors", "shard-note.safetensors", "shard-00009.txt"] {
        fs::write(path.join(orphan), "").unwrap();
    }
    let trace = ShardedTrace::open(path).unwrap();
    let unknown = ["shard-00007.safetensors", "shard-100000.safetensors"];
    assert_eq!((trace.len(), trace.unknown_shards()), (5, &unknown.map(str::to_owned)[..]));
    let expected = "2 shards belong to no entry of the index and are not read: shard-00007.safetensors, \
                    shard-100000.safetensors";
    assert_eq!(trace.notices()[0].to_string(), expected);
    let both = moe_trace::Concatenation::new(vec![&trace, &trace]).unwrap();
    assert_eq!(both.notices().len(), 2);
}

#[test]
fn a_directory_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut first = writer(path);
    let busy = |error: moe_trace::TraceError| error.to_string().replace(path.to_str().unwrap(), "d");
    let expected = "d: is being written by another process";
    assert_eq!(busy(ShardedWriter::create(path, geometry(), &[], None, 12).unwrap_err()), expected);
    (0..2).for_each(|number| first.push(&sequence(number)).unwrap());
    assert_eq!(busy(ShardedWriter::append(path, 12).unwrap_err()), expected);
    first.finish().unwrap();
    drop(ShardedWriter::append(path, 12).unwrap());
}

#[test]
fn digests_tell_changed_and_exchanged_shards() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    four_shards(path);
    assert_eq!(ShardedTrace::open(path).unwrap().check_digests().unwrap(), 0);
    let [one, two] = ["shard-00001.safetensors", "shard-00002.safetensors"].map(|name| path.join(name));
    let (first, second) = (fs::read(&one).unwrap(), fs::read(&two).unwrap());
    fs::write(&one, &second).unwrap();
    fs::write(&two, &first).unwrap();
    let error = ShardedTrace::open(path).unwrap().check_digests().unwrap_err().to_string();
    let digest = |bytes: &[u8]| format!("{:08x}", crc32(bytes));
    let expected = format!("the CRC-32 is {}, the index says {};", digest(&second), digest(&first));
    assert!(error.contains(&expected), "{error}");
    fs::write(&one, &first).unwrap();
    let mut changed = second.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&two, &changed).unwrap();
    assert!(ShardedTrace::open(path).unwrap().check_digests().is_err());
    fs::write(&two, &second).unwrap();
    // As older writers left it.
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(path.join("index.json")).unwrap()).unwrap();
    for entry in index["shards"].as_array_mut().unwrap().iter_mut().take(3) {
        entry.as_object_mut().unwrap().remove("crc32").unwrap();
    }
    fs::write(path.join("index.json"), index.to_string()).unwrap();
    assert_eq!(ShardedTrace::open(path).unwrap().check_digests().unwrap(), 3);
}

/// CRC-32 bit by bit, as its definition has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}
