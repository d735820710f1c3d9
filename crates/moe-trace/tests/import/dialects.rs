//! The same rows as other programs write, pack and hand them over; and what is none of them.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use moe_trace::{ImportOptions, MemoryTrace, Opened, Phase, open_or_import};

use crate::{failure, read};

const PLAIN: &str = "{\"token\": 0, \"layer\": 0, \"experts\": [3, 1], \"weights\": [0.5, 0.25]}
{\"token\": 1, \"layer\": 0, \"experts\": [0, 2], \"weights\": [1, 0.5]}\n";

fn options() -> ImportOptions {
    ImportOptions { experts: Some(4), phase: Some(Phase::Decode), ..ImportOptions::default() }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn must_be_the_same(bytes: impl AsRef<[u8]>) {
    let (plain, other) = (read(PLAIN, &options()).unwrap(), read(&bytes, &options()).unwrap());
    assert_eq!(plain.sequences(), other.sequences(), "{}", String::from_utf8_lossy(bytes.as_ref()));
}

#[test]
fn dialects_of_text_are_the_same_rows() {
    must_be_the_same(format!("\u{feff}{PLAIN}"));
    must_be_the_same(gzip(PLAIN.as_bytes()));
    let halves = PLAIN.split_at(40);
    must_be_the_same([gzip(halves.0.as_bytes()), gzip(halves.1.as_bytes())].concat());
    let array = PLAIN.trim().replace('\n', ",\n");
    must_be_the_same(format!("[{array}]"));
    must_be_the_same(format!("\n[\n{}\n]\n", array.replace(", \"", ",\n  \"")));
    must_be_the_same(PLAIN.replace("\"token\": 1", "\"token\": \"1\"").replace("[0, 2]", "[0.0, \"2\"]"));
    must_be_the_same(PLAIN.replace("[3, 1]", "\"[3 1]\"").replace("[0, 2]", "\"tensor([0, 2], device='cuda:0')\""));
    must_be_the_same(
        PLAIN.replace("[3, 1]", "[\"np.int64(3)\", \"np.int64(1)\"]").replace("0.25", "\"np.float32(0.25)\""),
    );
    let csv = "token,layer,experts,weights\n0,0,\"[np.int64(3), np.int64(1)]\",0.5 0.25\n1.0,0,\"[0. 2.]\",1 0.5\n";
    must_be_the_same(csv);
    must_be_the_same(gzip(format!("\u{feff}{csv}").as_bytes()));
}

#[test]
fn broken_dialects_are_told() {
    let message = |bytes: &[u8]| failure(bytes, &options());
    let array = |text: &str| message(format!("[{}{text}", PLAIN.lines().next().unwrap()).as_bytes());
    assert_eq!(array(""), "f, element 1, which ends in line 1: array is cut off, expected ] at the end");
    assert_eq!(array(",,]"), "f, element 2, which ends in line 1: record is , column 0: EOF while parsing a value");
    assert_eq!(array("] x"), "f, element 1, which ends in line 1: array is x, expected nothing behind it");
    let whole = gzip(PLAIN.as_bytes());
    assert!(message(&whole[..whole.len() - 12]).starts_with("f: not a readable gzip file: "));
    let bomb = gzip(&vec![b' '; 65 << 20]);
    assert_eq!(message(&bomb), "f, gzip: unpacked bytes is more, at most 67108864: --max-unpacked raises it");
    let raised = ImportOptions { max_unpacked: Some(1 << 30), ..options() };
    assert!(failure(&bomb, &raised).contains("no known trace format: gzip of it begins with"));
    let lowered = ImportOptions { max_unpacked: Some(10), ..options() };
    assert_eq!(failure(&whole, &lowered), "f, gzip: unpacked bytes is more, at most 10: --max-unpacked raises it");
}

/// A zip that claims, and has, far more than its bytes.
#[test]
fn members_of_archives_have_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.npz");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    archive.start_file("experts.npy", zip::write::SimpleFileOptions::default()).unwrap();
    (0..65).for_each(|_| archive.write_all(&vec![0; 1 << 20]).unwrap());
    archive.finish().unwrap();
    let message = moe_trace::import(&path, &options()).unwrap_err().to_string();
    let expected = "bomb.npz, experts.npy: unpacked bytes is more, at most 67108864: --max-unpacked raises it";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn what_a_file_is_and_what_to_do_is_told() {
    let message = |bytes: &[u8]| {
        let message = failure(bytes, &options());
        message.strip_prefix("f: no known trace format: ").unwrap_or(&message).to_owned()
    };
    assert_eq!(message(b""), "the file is empty");
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    assert_eq!(message(&[b"\xff\xfe", &wide(PLAIN)[..]].concat()), "text in UTF-16: save it as UTF-8");
    assert_eq!(message(&wide(PLAIN)), "text in UTF-16: save it as UTF-8");
    assert_eq!(message(b"\x28\xb5\x2f\xfd..."), "packed by zstd: unpack it first");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
    assert_eq!(message(pointer), "a pointer of Git LFS and not the file: run git lfs pull");
    assert_eq!(message(&gzip(pointer)), "gzip of a pointer of Git LFS and not the file: run git lfs pull");
    assert!(message(b"\n<!DOCTYPE html><html>").starts_with("a page in HTML"));
    assert!(message(b"\x80\x02}q\x00.").starts_with("a bare pickle of Python"));
    assert!(message(b"PK\x03\x04 cut").starts_with("a zip archive that is damaged"));
    assert_eq!(
        message(b"Sequence,Token,Layer,Expert\n0,0,0,1\n"),
        "text with the columns Sequence, Token, Layer, Expert, without token, layer, expert: give --from csv --column \
         sequence=Sequence --column token=Token --column layer=Layer --column expert=Expert"
    );
    assert_eq!(
        message(b"request_id;token_id;layer;block\n"),
        "text with the columns request_id, token_id, layer, block, without token, expert: give --from csv --column \
         token=token_id --column expert=NAME"
    );
    assert_eq!(
        message(b"{\"layer\": 0, \"expert\": 3, \"TokenIndex\": 7}"),
        "JSON with the fields TokenIndex, expert, layer, without token: give --from jsonl --column token=TokenIndex"
    );
    assert!(
        message(b"layer,expert,count\n0,1,7\n")
            .ends_with("counts without tokens; a trace says which experts each token used")
    );
    let header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let tensors = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    assert!(message(&tensors).starts_with("safetensors with the tensors x: a trace has"));
}

#[test]
fn a_column_that_is_named_has_one_meaning() {
    let table = "token_id,layer,expert\n0,0,3\n1,0,1\n";
    let named = |column: &str, name: &str| ImportOptions {
        columns: vec![(column.to_owned(), name.to_owned())],
        format: Some("csv".to_owned()),
        ..options()
    };
    let trace = read(table, &named("token", "token_id")).unwrap();
    assert_eq!((trace.sequences()[0].phases.len(), &trace.sequences()[0].token_ids), (2, &None));
    assert_eq!(
        failure(PLAIN, &ImportOptions { format: None, ..named("domain", "topic") }),
        "f, line 2: --column is domain=topic, the file has no value of this name"
    );
    assert!(failure(table, &named("nonsense", "x")).starts_with("--column is nonsense=x, columns are sequence, token"));
}

#[test]
fn options_that_do_not_apply_are_refused() {
    assert_eq!(failure(PLAIN, &ImportOptions { top_k: Some(0), ..options() }), "--top-k is 0, allowed are 1..=65535");
    assert_eq!(
        failure(PLAIN, &ImportOptions { layers: Some(vec![1]), ..options() }),
        "f: the format jsonl does not use --model-layers: leave it out"
    );
    let llama = ImportOptions { format: Some("llama-moe-trace".to_owned()), ..options() };
    assert_eq!(failure("0,0,1\n", &llama), "f: the format llama-moe-trace does not use --token-phase: leave it out");
    let unknown = ImportOptions { format: Some("xml".to_owned()), ..options() };
    assert!(failure(PLAIN, &unknown).starts_with("no format xml; known are big-moe-on-edge, "));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    moe_trace::write_trace(&path, &read(PLAIN, &options()).unwrap()).unwrap();
    let Err(error) = open_or_import(&path, &options()) else { panic!("a trace says its experts") };
    assert!(error.to_string().ends_with("t: a trace does not use --experts: leave it out"), "{error}");
}

/// A trace is found by its content, packed or not.
#[test]
fn traces_are_opened_by_the_same_call() {
    let trace = read(PLAIN, &options()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    moe_trace::write_trace(&path, &trace).unwrap();
    let open = || match open_or_import(&path, &ImportOptions::default()).unwrap() {
        Opened::Trace(trace) => MemoryTrace::from_source(trace.as_ref()).unwrap(),
        Opened::Import(_) => panic!("a trace"),
    };
    assert_eq!(open(), trace);
    std::fs::write(&path, gzip(&std::fs::read(&path).unwrap())).unwrap();
    assert_eq!(open(), trace);
}

/// What comes through a pipe, which can be read once, is the file's trace; so is what is asked for a second time.
#[cfg(target_os = "linux")]
#[test]
fn pipes_give_the_trace_of_the_file() {
    use std::os::fd::AsRawFd;
    let long: String = (0..3000).map(|token| format!("{token},0,{},{}\n", token % 4, (token + 1) % 4)).collect();
    let csv = format!("token,layer,expert_0,expert_1\n{long}");
    for (text, format) in
        [(PLAIN, None), (csv.as_str(), None), (csv.as_str(), Some("csv")), (long.as_str(), Some("llama-moe-trace"))]
    {
        let phase = options().phase.filter(|_| format != Some("llama-moe-trace"));
        let options = ImportOptions { format: format.map(str::to_owned), phase, ..options() };
        let (reader, mut writer) = std::io::pipe().unwrap();
        let through_a_pipe = std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(text.as_bytes()).unwrap());
            moe_trace::import(format!("/proc/self/fd/{}", reader.as_raw_fd()), &options).unwrap()
        });
        assert_eq!(through_a_pipe.sequences(), read(text, &options).unwrap().sequences());
    }
    let device = moe_trace::import("/dev/zero", &options()).unwrap_err().to_string();
    assert_eq!(device, "/dev/zero, input: file is a device, give a file, a folder or a pipe");
}

#[test]
fn first_records_that_cannot_be_parsed_are_json_lines_all_the_same() {
    let nan = failure(
        "{\"token\": 0, \"layer\": 0, \"experts\": [1, 2], \"weights\": [NaN, 0.5]}\n",
        &ImportOptions::default(),
    );
    assert!(
        nan.starts_with("f, line 1: record is ") && nan.ends_with("; NaN of Python is no JSON: write null"),
        "{nan}"
    );
    let note = "x".repeat(100_000);
    let long = format!("{{\"token\": 0, \"layer\": 0, \"experts\": [1, 2], \"note\": \"{note}\"}}\n");
    assert_eq!(crate::read(&long, &ImportOptions::default()).unwrap().sequences()[0].experts, [1, 2]);
    let late = format!("{{\"note\": \"{note}\", \"token\": 0, \"layer\": 0, \"experts\": [1, 2]}}\n");
    let message = failure(&late, &ImportOptions::default());
    assert!(message.ends_with("begins with the fields note: give --from jsonl if it is JSON lines"), "{message}");
}
