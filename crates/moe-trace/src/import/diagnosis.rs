//! What a file of no known format is, and what to do about it.

use super::delimited::header;
use super::input::Input;
use super::names;
use super::rows::{MUST, has_column, known_names};
use super::sample::Sample;

/// Beginnings of files that are something else.
const BEGINNINGS: [(&[u8], &str); 14] = [
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (b"\x28\xb5\x2f\xfd", "packed by zstd: unpack it first"),
    (b"\xfd7zXZ", "packed by xz: unpack it first"),
    (b"BZh", "packed by bzip2: unpack it first"),
    (b"7z\xbc\xaf", "packed by 7-Zip: unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file: run git lfs pull"),
    (b"GGUF", "weights in GGUF and not a trace"),
    (b"\x89HDF", "HDF5: export it as NumPy arrays or CSV"),
    (b"SQLite format 3", "a database of SQLite: export it as CSV"),
    (b"\x80\x02", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"PAR1", "Parquet, which this build cannot read: build with --features parquet"),
];
const UTF_16: &str = "text in UTF-16: save it as UTF-8";
const PICKLE: &str =
    "a bare pickle of Python: save arrays with numpy.save, tensors with torch.save, or rows as JSON lines";

/// Says what a file is that no importer knows.
pub(super) fn diagnose(input: &Input, sample: &Sample) -> String {
    let seen = seen(input, sample);
    if input.was_packed() { format!("gzip of {seen}") } else { seen }
}

fn seen(input: &Input, sample: &Sample) -> String {
    if input.is_folder() {
        let some = first(sample.names().iter().map(String::as_str));
        return format!("a folder of {} names ({some}): a trace's has index.json and shards", sample.names().len());
    }
    let head = sample.head();
    if head.is_empty() {
        return "the file is empty".to_owned();
    }
    if let Some((_, what)) = BEGINNINGS.iter().find(|(start, _)| head.starts_with(start)) {
        return (*what).to_owned();
    }
    if head.get(257..262) == Some(b"ustar") {
        return "an archive of tar: unpack it first".to_owned();
    }
    if sample.is_zip() {
        return match sample.names() {
            [] => "a zip archive that is damaged or cut off".to_owned(),
            names => format!("a zip archive of {}: expected .npy arrays or the records of a recorder", first_of(names)),
        };
    }
    if let Some(tensors) = tensors(head) {
        return format!("safetensors with {tensors}: a trace has the tensors experts and sequence_offsets");
    }
    // Every second byte of UTF-16 without its mark is 0 where the text is plain.
    let zeros = |first: usize| head.iter().take(64).skip(first).step_by(2).all(|&byte| byte == 0);
    if head.len() >= 4 && zeros(0) != zeros(1) {
        return UTF_16.to_owned();
    }
    let start = head.trim_ascii_start();
    let lower = start[..start.len().min(16)].to_ascii_lowercase();
    if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") {
        return "a page in HTML and not the file that it is about: download the file itself".to_owned();
    }
    if let Some(object) = sample.objects().first() {
        return columns("JSON with the fields", "jsonl", object.keys().map(String::as_str));
    }
    if start.starts_with(b"{") || start.starts_with(b"[{") {
        let keys = sample.first_keys();
        let what = "JSON whose first record is longer than what is looked at, or broken, and begins with the fields";
        return format!("{what} {}: give --from jsonl if it is JSON lines", first(keys.iter().map(String::as_str)));
    }
    if let Some(header) = sample.first_line().and_then(header).filter(|_| !head.contains(&0)) {
        return columns("text with the columns", "csv", header.iter().map(String::as_str));
    }
    let shown: String = String::from_utf8_lossy(&head[..head.len().min(40)]).escape_debug().collect();
    format!("it begins with \"{shown}\"; known are traces, folders of shards, and {}", names())
}

/// Says what a table has and lacks, and which options would name its columns.
fn columns<'a>(what: &str, format: &str, found: impl Iterator<Item = &'a str>) -> String {
    let found: Vec<&str> = found.collect();
    let shown = first(found.iter().copied());
    let has = |column: &str| has_column(column, &found);
    let lacks: Vec<&str> = MUST.into_iter().filter(|column| !has(column)).collect();
    let counts = |name: &&str| name.to_lowercase().contains("count") || name.to_lowercase().contains("load");
    if lacks.contains(&"token") && found.iter().any(counts) {
        return format!("{what} {shown}: counts without tokens; a trace says which experts each token used");
    }
    let mut options = Vec::new();
    for column in known_columns_to_name(&lacks) {
        let alike = |name: &&&str| known_names(column).iter().any(|known| known.eq_ignore_ascii_case(name));
        let contains = |name: &&&str| lacks.contains(&column) && name.to_lowercase().contains(column);
        if !has(column)
            && let Some(name) = found.iter().find(alike).or_else(|| found.iter().find(contains))
        {
            options.push(format!("--column {column}={name}"));
        } else if lacks.contains(&column) {
            options.push(format!("--column {column}=NAME"));
        }
    }
    format!("{what} {shown}, without {}: give --from {format} {}", lacks.join(", "), options.join(" "))
}

/// All columns, the ones that are lacking among them.
fn known_columns_to_name(lacks: &[&str]) -> impl Iterator<Item = &'static str> {
    let expert_lacks = lacks.contains(&"expert");
    super::rows::columns().filter(move |column| *column != "experts" || expert_lacks)
}

/// The tensors of a safetensors file, if the head is one of such a file.
fn tensors(head: &[u8]) -> Option<String> {
    let (length, json) = head.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json.get(..length)?).ok()?;
    let names = header.keys().map(String::as_str).filter(|name| *name != "__metadata__");
    Some(format!("the tensors {}", first(names)))
}

fn first_of(names: &[String]) -> String {
    first(names.iter().map(String::as_str))
}

/// The first few of some names.
fn first<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 12;
    const LONGEST: usize = 40;
    let mut names = names.map(|name| name.chars().take(LONGEST).collect::<String>()).peekable();
    let mut shown = names.by_ref().take(MOST).collect::<Vec<_>>().join(", ");
    if names.peek().is_some() {
        shown.push_str(", ...");
    }
    shown
}
