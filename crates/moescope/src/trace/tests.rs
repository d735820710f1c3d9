//! Every command, as one types it.

use std::path::Path;

use anyhow::Result;
use clap::Parser;
use moe_trace::{Geometry, MemoryTrace, RoutingSource, SequenceStream, Synthetic, SyntheticOptions, write_trace};
use tempfile::TempDir;

use crate::Arguments;

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
    let words = ["moescope", "trace"].map(str::to_owned).into_iter().chain(line.split(' ').map(word));
    crate::run(&Arguments::try_parse_from(words)?.command)
}

fn failure(folder: &Path, line: &str) -> String {
    format!("{:#}", trace(folder, line).unwrap_err())
}

fn read(folder: &Path, name: &str) -> MemoryTrace {
    MemoryTrace::from_source(moe_trace::open(folder.join(name)).unwrap().as_ref()).unwrap()
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
fn phases_are_changed_and_warnings_about_them_go() {
    let (folder, _) = folder();
    let rows: String = (0..9).map(|token| format!("{token},0,{}\n", token % 4)).collect();
    std::fs::write(folder.path().join("rows.s"), format!("token,layer,expert\n{rows}")).unwrap();
    trace(folder.path(), "import rows.s t.safetensors").unwrap();
    let kinds = |name: &str| -> Vec<String> {
        let warnings = moe_trace::open(folder.path().join(name)).unwrap().import_report().clone();
        warnings.warnings().iter().map(|warning| warning.kind.to_string()).collect()
    };
    assert_eq!(kinds("t.safetensors"), ["phase-assumed", "experts-inferred"]);
    trace(folder.path(), "info t.safetensors --json ./info").unwrap();
    let info: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path().join("info")).unwrap()).unwrap();
    assert_eq!(info["import_warnings"][1]["place"], "line 5");
    trace(folder.path(), "convert t.safetensors d.safetensors --decode-from 4").unwrap();
    assert_eq!(read(folder.path(), "d.safetensors").sequences()[0].phases, [0, 0, 0, 0, 1, 1, 1, 1, 1]);
    assert_eq!(kinds("d.safetensors"), ["experts-inferred"]);
    trace(folder.path(), "convert t.safetensors d.safetensors --decode-from 0").unwrap();
    assert_eq!(read(folder.path(), "d.safetensors").sequences()[0].phases, [1; 9]);
    let none = failure(folder.path(), "convert t.safetensors d.safetensors --decode-from 9");
    assert!(
        none.ends_with("--decode-from 9 would leave no decoded token: the longest sequence has 9 tokens"),
        "{none}"
    );

    let strict = failure(folder.path(), "import rows.s ./none --strict --token-phase decode --shard-tokens 1");
    assert!(strict.contains("taken to be 4") && !folder.path().join("none").exists(), "{strict}");
    let unused = failure(folder.path(), "info t.safetensors --experts 4");
    assert!(unused.ends_with("t.safetensors: a trace does not use --experts: leave it out"), "{unused}");
    assert!(failure(folder.path(), "validate t.safetensors --strict").contains("warnings are errors here"));
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
        (
            "export trace.safetensors ./out --to npz --csv-safe",
            "--csv-safe changes names in CSV files, leave it out for npz",
        ),
        ("export trace.safetensors ./out --to jsonl --csv-safe", "leave it out for jsonl"),
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

#[test]
fn no_command_destroys_what_it_reads() {
    let (folder, _) = folder();
    let path = folder.path();
    trace(path, "export trace.safetensors ./recording --to csv").unwrap();
    std::fs::hard_link(path.join("recording"), path.join("hard.s")).unwrap();
    let bytes = |name: &str| std::fs::read(path.join(name)).unwrap();
    let (before, recording) = (bytes("trace.safetensors"), bytes("recording"));
    for (line, what) in [
        ("info trace.safetensors --json trace.safetensors", "--json is the trace"),
        ("heatmap trace.safetensors ./trace.safetensors", "OUTPUT is the trace"),
        ("export trace.safetensors trace.safetensors --to csv", "OUTPUT is the trace"),
        ("import ./recording ./recording", "OUTPUT is a file"),
        ("convert ./recording hard.s", "OUTPUT is a file"),
        ("cat hard.s trace.safetensors ./recording", "OUTPUT is a file"),
    ] {
        let error = failure(path, line);
        assert!(error.contains(&format!("{what} that is read: ")), "{line}: {error}");
    }
    assert_eq!((bytes("trace.safetensors"), bytes("recording")), (before.clone(), recording));
    // A trace may replace itself: it is read until the new one is whole.
    trace(path, "convert trace.safetensors ./trace.safetensors").unwrap();
    assert_eq!(bytes("trace.safetensors"), before);
    let error = failure(path, "info trace.safetensors --json ./missing/x");
    assert!(error.starts_with("--json: cannot write ") && error.contains("there is no folder"), "{error}");
}

#[test]
fn names_that_begin_as_formulas_are_neutralised_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let (_kept, original) = self::folder();
    let names = ["=1+1", "prose"];
    let mut named = MemoryTrace::new(original.geometry().clone()).with_domains(names);
    original.sequences().iter().for_each(|sequence| named.push(sequence.clone()).unwrap());
    write_trace(path.join("trace.safetensors"), &named).unwrap();
    trace(path, "export trace.safetensors ./plain --to csv").unwrap();
    trace(path, "export trace.safetensors ./safe --to csv --csv-safe").unwrap();
    let text = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert!(text("plain").contains(",=1+1,") && !text("safe").contains(",=1+1,"));
    assert_eq!(text("plain").replace(",=1+1,", ",'=1+1,"), text("safe"));
}

#[test]
fn captures_that_are_not_whole_are_told() {
    let (folder, _) = folder();
    let path = folder.path();
    trace(path, "convert trace.safetensors ./shards --shard-tokens 7").unwrap();
    trace(path, "validate ./shards").unwrap();
    let index = path.join("shards/index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["shards"].as_array_mut().unwrap().truncate(1);
    std::fs::write(&index, json.to_string()).unwrap();
    let expected = "1 shards belong to no entry of the index: shard-00001.safetensors; put the whole index back, or move \
                    them away";
    assert_eq!(failure(path, "validate ./shards"), expected);
    trace(path, "info ./shards --json ./info").unwrap();
    let info: serde_json::Value = serde_json::from_slice(&std::fs::read(path.join("info")).unwrap()).unwrap();
    assert_eq!(info["notices"][0]["unknown_shards"]["files"][0], "shard-00001.safetensors");
    // A copy does not look like a whole capture.
    for copy in ["convert ./shards copy.safetensors", "convert ./shards copy.safetensors --decode-from 1"] {
        trace(path, copy).unwrap();
        let report = moe_trace::open(path.join("copy.safetensors")).unwrap().import_report().clone();
        assert!(report.has(&moe_trace::WarningKind::CAPTURE_INCOMPLETE), "{copy}: {report}");
        assert!(report.to_string().contains("shard-00001.safetensors"), "{copy}: {report}");
    }
    trace(path, "export ./shards ./copy --to jsonl").unwrap();
    assert!(std::fs::read_to_string(path.join("copy")).unwrap().contains(r#""kind":"capture-incomplete""#));
    let appended = failure(path, "cat ./shards trace.safetensors --append --shard-tokens 7");
    assert!(appended.contains("no entry of the index names this shard"), "{appended}");

    // An index that is whole again, and a shard with one other byte.
    std::fs::write(&index, &text).unwrap();
    let shard = path.join("shards/shard-00001.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let weights = bytes.len() - 1;
    bytes[weights] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert!(failure(path, "validate ./shards").contains("the CRC-32 is "));
    std::fs::remove_file(&index).unwrap();
    for command in ["info", "validate", "convert"] {
        let output = if command == "convert" { " back.s" } else { "" };
        let error = failure(path, &format!("{command} ./shards{output}"));
        assert!(error.contains("the index is missing, and 2 shards are there"), "{command}: {error}");
    }
}

const CHILD: &str = "MOE_TRACE_PROGRAM";
const OUTPUT: &str = "MOE_TRACE_PROGRAM_OUTPUT";

/// Not a test of its own: the program, in a process that others start. Its standard output is a file, or a pipe without a
/// reader.
#[cfg(unix)]
#[test]
fn the_child_is_the_program() {
    let Ok(line) = std::env::var(CHILD) else { return };
    let output: std::os::fd::OwnedFd = match std::env::var_os(OUTPUT) {
        Some(file) => std::fs::File::options().write(true).open(file).unwrap().into(),
        None => std::io::pipe().unwrap().1.into(),
    };
    rustix::stdio::dup2_stdout(&output).unwrap();
    let arguments = Arguments::try_parse_from(["moescope", "trace"].into_iter().chain(line.split(' '))).unwrap();
    let code = moescope_cli::run(|| crate::run(&arguments.command));
    std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
}

/// A line as a process of its own.
#[cfg(unix)]
fn process(folder: &Path, line: &str, output: Option<&str>) -> std::process::Command {
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    program.args(["trace::tests::the_child_is_the_program", "--exact", "--test-threads=1", "--nocapture"]);
    program.current_dir(folder).env(CHILD, line).envs(output.map(|output| (OUTPUT, output)));
    program
}

/// Runs a line as a process of its own. Returns its exit code and what it says on standard error.
#[cfg(unix)]
fn child(folder: &Path, line: &str, output: Option<&str>) -> (Option<i32>, String) {
    let ended = process(folder, line, output).output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

#[cfg(unix)]
fn make_pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Waits until something is there.
#[cfg(unix)]
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2000 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("not within 20 s");
}

/// The description beside the archive is a pipe without a reader, so the program waits while the archive is half written.
#[cfg(unix)]
#[test]
fn signals_remove_temporaries_and_end_the_program_as_the_signal_does() {
    use std::os::unix::process::ExitStatusExt;
    let (folder, _) = folder();
    let path = folder.path();
    make_pipe(&path.join("t.meta.json"));
    std::fs::File::create(path.join("printed")).unwrap();
    let temporary = || {
        let names = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.into_iter().find(|name| name.starts_with("t.npz.") && name.ends_with(".tmp"))
    };
    for (name, number) in [("INT", 2), ("TERM", 15)] {
        let mut program = process(path, "export trace.safetensors t.npz", Some("printed"));
        let mut program = program.stdout(std::process::Stdio::null()).spawn().unwrap();
        // The check of the outputs leaves its temporary for an instant only.
        wait_for(|| {
            let found = temporary()?;
            std::thread::sleep(std::time::Duration::from_millis(100));
            (temporary()? == found).then_some(())
        });
        let kill = ["-s", name, &program.id().to_string()].map(str::to_owned);
        assert!(std::process::Command::new("kill").args(kill).status().unwrap().success());
        let ended = program.wait().unwrap();
        assert_eq!((ended.signal(), temporary()), (Some(number), None), "{name}");
        assert!(!path.join("t.npz").exists());
    }
}

/// The reader of the output stops, so the program waits with the trace open, and the trace is cut then.
#[cfg(unix)]
#[test]
fn a_trace_that_is_cut_during_the_work_ends_the_program_with_an_error() {
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let dials = SyntheticOptions { sequences: 400, tokens: 100, ..SyntheticOptions::default() };
    let trace = Synthetic::new(Geometry::decoder(3, 16, 2).unwrap(), dials).collect().unwrap();
    write_trace(path.join("trace.safetensors"), &trace).unwrap();
    make_pipe(&path.join("rows"));
    std::fs::File::create(path.join("printed")).unwrap();
    let mut program = process(path, "export trace.safetensors rows --to csv", Some("printed"));
    let program = program.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // Opening ends when the program has opened the other end. The rows are longer than a pipe holds.
    let mut rows = std::fs::File::open(path.join("rows")).unwrap();
    let mut first = [0; 8];
    rows.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"sequence");
    std::fs::File::options().write(true).open(path.join("trace.safetensors")).unwrap().set_len(100).unwrap();
    // A file is looked at once a millisecond at most.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut rest = Vec::new();
    rows.read_to_end(&mut rest).unwrap();
    let ended = program.wait_with_output().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{errors}");
    let expected = ["has shrunk to 100 bytes from", "a file became shorter while it was read"];
    assert!(expected.iter().any(|expected| errors.contains(expected)), "{errors}");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error_a_full_disk_is_one_and_files_are_written_all_the_same() {
    let (folder, _) = folder();
    let path = folder.path();
    let (code, errors) = child(path, "info trace.safetensors --json info", None);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(std::fs::metadata(path.join("info")).unwrap().len() > 0);
    let (code, errors) = child(path, "export trace.safetensors - --to csv", None);
    assert_eq!((code, errors.contains("Error")), (Some(0), false), "{errors}");
    assert!(!errors.contains("waits until it has a reader"), "{errors}");

    // Only root may make the device that is always full, and not on every file system.
    let full = path.join("full");
    let made = std::process::Command::new("mknod").arg(&full).args(["c", "1", "7"]).output().unwrap();
    if !made.status.success() || std::fs::File::options().write(true).open(&full).is_err() {
        return;
    }
    std::fs::remove_file(path.join("info")).unwrap();
    let (code, errors) = child(path, "info trace.safetensors --json info", Some("full"));
    assert_eq!(code, Some(1));
    assert!(errors.contains("Error: cannot write to standard output") && errors.contains("No space left"), "{errors}");
    assert!(path.join("info").exists());
}

#[cfg(unix)]
#[test]
fn standard_output_takes_a_file_and_nothing_else() {
    let (folder, _) = folder();
    let path = folder.path();
    trace(path, "export trace.safetensors ./direct --to csv").unwrap();
    std::fs::File::create(path.join("piped")).unwrap();
    let (code, errors) = child(path, "export trace.safetensors - --to csv", Some("piped"));
    assert_eq!(code, Some(0), "{errors}");
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!(read("piped"), read("direct"));
    assert!(errors.contains("4 sequences as csv"), "{errors}");
    assert!(!path.join("-").exists());
}
