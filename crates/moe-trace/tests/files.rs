//! Trace files: what is written is read, in place and checked; what is broken is told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use moe_trace::{
    DomainId, EMPTY_SLOT, Geometry, LayerId, MemoryTrace, MoeLayer, Phase, RoutingSource, SequenceBuf, Stack,
    TraceFile, write_trace,
};
use proptest::prelude::*;

/// A trace of the given number of experts: three sequences, one of them empty, with an empty slot.
fn sample(experts: usize) -> MemoryTrace {
    let layers = [(1, Stack::Encoder), (3, Stack::Decoder)];
    let layers = layers.map(|(model_layer, stack)| MoeLayer { model_layer, stack }).to_vec();
    let geometry = Geometry::new(layers, experts, 2).unwrap();
    let mut trace = MemoryTrace::new(geometry).with_model("tiny").with_domains(["prose", "code"]);
    let last = u16::try_from(experts - 1).unwrap();
    for (experts, domain) in [(vec![last, 0, 1, 2, 2, EMPTY_SLOT, 0, 1], Some(DomainId(1))), (vec![], None)] {
        let tokens = experts.len() / 4;
        trace
            .push(SequenceBuf {
                weights: Some(experts.iter().map(|&id| f32::from(id) / 300.0).collect()),
                experts,
                token_ids: Some((0..).take(tokens).collect()),
                phases: [Phase::Prefill.code(), Phase::Decode.code()][..tokens].to_vec(),
                domain,
                ..SequenceBuf::default()
            })
            .unwrap();
    }
    trace
}

/// The same trace with every optional column.
fn full_sample(experts: usize) -> MemoryTrace {
    let plain = sample(experts);
    let mut trace = MemoryTrace::new(plain.geometry().clone()).with_model("tiny").with_domains(plain.domains());
    for sequence in plain.sequences() {
        let tokens = sequence.phases.len();
        let logits = (0..tokens * 2 * experts).map(|index| (index % 7) as f32 / 8.0 - 0.5);
        trace
            .push(SequenceBuf {
                logits: Some(logits.map(|value| if value == 0.0 { f32::NEG_INFINITY } else { value }).collect()),
                predictions: Some((100..).take(tokens).collect()),
                text: Some(["Mo", "\u{20ac}\n"].iter().take(tokens).collect()),
                ..sequence.clone()
            })
            .unwrap();
    }
    trace
}

fn write(directory: &Path, trace: &MemoryTrace) -> PathBuf {
    let path = directory.join("trace.safetensors");
    write_trace(&path, trace).unwrap();
    path
}

#[test]
fn files_give_back_every_column_for_narrow_and_wide_ids() {
    let directory = tempfile::tempdir().unwrap();
    for experts in [4, 255, 256, 1000] {
        let trace = sample(experts);
        let file = TraceFile::open(write(directory.path(), &trace)).unwrap();
        assert_eq!(MemoryTrace::from_source(&file).unwrap(), trace);
        assert_eq!((file.sequence_len(0).unwrap(), file.sequence_len(1).unwrap()), (2, 0));
        assert_eq!(file.sequence_len(2).unwrap_err().to_string(), "there is no sequence 2, the source has 2");
        let sequence = file.sequence(0).unwrap();
        assert_eq!((sequence.phase(0), sequence.phase(1)), (Phase::Prefill, Phase::Decode));
        let weighted = sequence.weighted_experts(1, LayerId(0)).unwrap().collect::<Vec<_>>();
        assert_eq!(weighted, [(moe_trace::ExpertId(2), 2.0 / 300.0)]);
        let message = file.sequence(2).unwrap_err().to_string();
        assert_eq!(message, "there is no sequence 2, the source has 2");
    }
}

#[test]
fn optional_columns_come_back_too() {
    let directory = tempfile::tempdir().unwrap();
    for experts in [4, 256] {
        let trace = full_sample(experts);
        let file = TraceFile::open(write(directory.path(), &trace)).unwrap();
        assert_eq!(MemoryTrace::from_source(&file).unwrap(), trace);
        let sequence = file.sequence(0).unwrap();
        assert_eq!(sequence.predictions(), Some(&[100, 101][..]));
        assert_eq!((sequence.text(0), sequence.text(1)), (Some(&b"Mo"[..]), Some("\u{20ac}\n".as_bytes())));
        let logits: Vec<f32> = sequence.logits(1, LayerId(1)).unwrap().take(2).collect();
        let first = (3 * experts) % 7;
        assert_eq!(logits[0], if first == 4 { f32::NEG_INFINITY } else { first as f32 / 8.0 - 0.5 });
        assert!(file.sequence(1).unwrap().has_text());
    }
}

#[test]
fn equal_traces_give_equal_bytes_and_leave_no_temporary_file() {
    let directory = tempfile::tempdir().unwrap();
    let first = std::fs::read(write(directory.path(), &sample(64))).unwrap();
    let second = std::fs::read(write(directory.path(), &sample(64))).unwrap();
    assert_eq!(first, second);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn optional_columns_are_left_out_where_a_sequence_lacks_them() {
    let directory = tempfile::tempdir().unwrap();
    let geometry = Geometry::decoder(2, 4, 2).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    let plain = SequenceBuf::from_experts(&geometry, vec![0, 1, 2, 3], Phase::Decode).unwrap();
    trace.push(SequenceBuf { weights: Some(vec![0.25; 4]), ..plain.clone() }).unwrap();
    trace.push(plain.clone()).unwrap();
    let file = TraceFile::open(write(directory.path(), &trace)).unwrap();
    assert_eq!(file.sequence(0).unwrap().to_buf(), plain);
}

proptest! {
    #[test]
    fn any_trace_survives_the_round_trip(
        experts in 1usize..400,
        sequences in proptest::collection::vec(proptest::collection::vec((any::<u16>(), any::<bool>()), 0..20), 0..5),
    ) {
        let geometry = Geometry::decoder(1, experts, 1).unwrap();
        let mut trace = MemoryTrace::new(geometry);
        for tokens in sequences {
            let id = |raw: u16| if raw == 7 { EMPTY_SLOT } else { u16::try_from(usize::from(raw) % experts).unwrap() };
            trace.push(SequenceBuf {
                experts: tokens.iter().map(|&(raw, _)| id(raw)).collect(),
                phases: tokens.iter().map(|&(_, decode)| u8::from(decode)).collect(),
                ..SequenceBuf::default()
            }).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let file = TraceFile::open(write(directory.path(), &trace)).unwrap();
        prop_assert_eq!(MemoryTrace::from_source(&file).unwrap(), trace);
    }
}

/// No byte of a file can be changed or cut off so that reading panics.
#[test]
fn damaged_files_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), &full_sample(8));
    let valid = std::fs::read(&path).unwrap();
    let damaged = directory.path().join("damaged.safetensors");
    for at in 0..valid.len() {
        std::fs::write(&damaged, &valid[..at]).unwrap();
        assert!(TraceFile::open(&damaged).is_err(), "a file cut at {at} must not open");
        for value in [0, b'9', b'"', 0xff] {
            let mut bytes = valid.clone();
            bytes[at] = value;
            std::fs::write(&damaged, bytes).unwrap();
            if let Ok(file) = TraceFile::open(&damaged) {
                (0..file.len()).for_each(|index| drop(file.sequence(index)));
            }
        }
    }
}

#[test]
fn our_own_header_is_checked_field_by_field() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), &sample(64));
    let valid = std::fs::read(&path).unwrap();
    // Replacements of equal length, so that the header stays well-formed.
    let message = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = valid.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut bytes = valid.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        TraceFile::open(&path).unwrap_err().to_string()
    };
    for (from, to, expected) in [
        (r#"\"experts\":64"#, r#"\"experts\": 0"#, "experts is 0, allowed are 1..=65535"),
        (r#"\"experts\":64"#, r#"\"experts\": 1"#, "top_k is 2, allowed are 1..=1"),
        (r#"\"top_k\":2"#, r#"\"top_k\":0"#, "top_k is 0, allowed are 1..=64"),
        (r#"\"top_k\":2"#, r#"\"top_k\":3"#, "experts is of shape [2, 2, 2], the metadata says [tokens, 2, 3]"),
        (r#"\"top_k\":2"#, r#"\"top_n\":2"#, "expected trace metadata: missing field `top_k`"),
        (r#"\"decoder\""#, r#"\"decoded\""#, "expected trace metadata: unknown variant `decoded`"),
        (r#"{\"version"#, r#"[\"version"#, "expected trace metadata: "),
    ] {
        let message = message(from, to);
        assert!(message.contains(expected), "{message}");
    }
}

/// The golden file keeps the format stable: this reader reads it, this writer writes it byte by byte. With
/// `UPDATE_GOLDEN` set the test makes the file first.
#[test]
fn the_golden_file_is_read_and_written() {
    let directory = tempfile::tempdir().unwrap();
    for (name, trace) in [("trace-1.0", sample(64)), ("trace-1.0-all-columns", full_sample(64))] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.safetensors"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            write_trace(&golden, &trace).unwrap();
        }
        assert_eq!(MemoryTrace::from_source(&TraceFile::open(&golden).unwrap()).unwrap(), trace);
        assert_eq!(std::fs::read(write(directory.path(), &trace)).unwrap(), std::fs::read(golden).unwrap());
    }
}

#[test]
fn domains_that_the_format_cannot_hold_are_refused() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone()).with_domains((0..40_000).map(|domain| domain.to_string()));
    let sequence = SequenceBuf::from_experts(&geometry, vec![1], Phase::Decode).unwrap();
    trace.push(SequenceBuf { domain: Some(DomainId(39_999)), ..sequence }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let message = write_trace(directory.path().join("trace"), &trace).unwrap_err().to_string();
    assert_eq!(message, "domain 39999 is too large for a trace file, the largest is 32767");
}

#[test]
fn files_that_are_no_traces_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.safetensors");
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = TraceFile::open(&path).unwrap_err();
        error.to_string().replace(path.to_str().unwrap(), "x")
    };
    assert_eq!(message(b""), "x: not a readable safetensors file");
    assert_eq!(message(&u64::MAX.to_le_bytes()), "x: not a readable safetensors file");
    let valid = std::fs::read(write(directory.path(), &sample(8))).unwrap();
    let cut = |len: usize, wanted: usize| {
        format!("x: the file has {len} bytes, its header wants {wanted}; it was cut, copy it again")
    };
    let header = 8 + usize::try_from(u64::from_le_bytes(valid[..8].try_into().unwrap())).unwrap();
    for (len, wanted) in [(valid.len() - 1, valid.len()), (header, valid.len()), (header - 1, header), (8, header)] {
        assert_eq!(message(&valid[..len]), cut(len, wanted));
    }
    // A header whose metadata is no object: the parser would repeat it whole.
    let long = format!(r#"{{"__metadata__":"{}"}}"#, "long ".repeat(1000));
    let damaged = [&(long.len() as u64).to_le_bytes()[..], long.as_bytes()].concat();
    assert!(message(&damaged).starts_with("x: header is unreadable, "), "{}", message(&damaged));
    assert!(message(&damaged).len() < 400, "{}", message(&damaged));
    let newer = String::from_utf8_lossy(&valid[8..]).find("1.0").unwrap() + 8;
    let mut bytes = valid.clone();
    bytes[newer] = b'2';
    assert_eq!(message(&bytes), "x: version is 2.0, this reader knows versions 1.x");
    std::fs::remove_file(&path).unwrap();
    let absent = TraceFile::open(&path).unwrap_err().to_string();
    assert!(absent.ends_with("x.safetensors: cannot open the file"), "{absent}");
}

/// Windows does not let a mapped file be cut.
#[cfg(unix)]
#[test]
fn a_file_that_shrinks_is_an_error_and_one_that_is_replaced_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), &sample(300));
    let len = std::fs::metadata(&path).unwrap().len();
    let trace = TraceFile::open(&path).unwrap();
    // Replaced as writers do it: the old file stays mapped.
    write_trace(&path, &sample(4)).unwrap();
    assert_eq!(trace.sequence(0).unwrap().to_buf(), sample(300).sequences()[0]);

    write_trace(&path, &sample(300)).unwrap();
    let trace = TraceFile::open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let message = trace.sequence(0).unwrap_err().to_string();
    let rest = format!(": has shrunk to 100 bytes from {len} since it was opened; read it when its writer is done");
    assert_eq!(message, format!("{}{rest}", path.display()));
    std::fs::remove_file(&path).unwrap();
}
