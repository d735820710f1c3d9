//! GGUF files: what is written, what is read, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod claims;
mod splits;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;
use moe_offload::{
    ExpertShape, ExpertStore, ExpertWeights, MappedStore, OffloadError, Projection, ProjectionBytes, RandomExperts,
    Result, WeightType, write_gguf,
};
use moe_trace::{ExpertId, LayerId};
use proptest::prelude::*;

const SHAPE: ExpertShape = ExpertShape { layers: 2, experts: 3, hidden: 64, intermediate: 32 };
const Q8_0: u32 = 8;

/// A tensor of a file that a test makes.
struct Part {
    name: String,
    /// The fastest dimension first, as in the file.
    dims: Vec<u64>,
    type_id: u32,
    bytes: Vec<u8>,
}

/// A file of some alignment.
fn file(alignment: u32, parts: &[Part]) -> Vec<u8> {
    file_with(&[], alignment, parts)
}

/// A file of some alignment with numbers in its metadata.
fn file_with(numbers: &[(&str, u32)], alignment: u32, parts: &[Part]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((parts.len() as u64).to_le_bytes());
    file.extend((3 + numbers.len() as u64).to_le_bytes());
    file.extend(string("tokens"));
    file.extend([9u32, 8].map(u32::to_le_bytes).concat());
    file.extend(2u64.to_le_bytes());
    file.extend([string("a"), string("bc")].concat());
    file.extend(string("scores"));
    file.extend([9u32, 6].map(u32::to_le_bytes).concat());
    file.extend(2u64.to_le_bytes());
    file.extend([1f32, 2.0].map(f32::to_le_bytes).concat());
    file.extend(string("general.alignment"));
    file.extend([4, alignment].map(u32::to_le_bytes).concat());
    for &(key, number) in numbers {
        file.extend(string(key));
        file.extend([4, number].map(u32::to_le_bytes).concat());
    }
    let mut offset = 0u64;
    for part in parts {
        file.extend(string(&part.name));
        file.extend(u32::try_from(part.dims.len()).unwrap().to_le_bytes());
        file.extend(part.dims.iter().flat_map(|dim| dim.to_le_bytes()));
        file.extend(part.type_id.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset = (offset + part.bytes.len() as u64).next_multiple_of(alignment.into());
    }
    for part in parts {
        file.resize(file.len().next_multiple_of(alignment as usize), 0);
        file.extend(&part.bytes);
    }
    file
}

fn projections(store: &dyn ExpertStore, layer: u16, expert: u16) -> [Vec<u8>; 3] {
    let mut copy = [const { Vec::new() }; 3];
    let keep = &mut |bytes: ProjectionBytes<'_>| {
        copy = bytes.each().map(<[u8]>::to_vec);
        Ok(())
    };
    store.with_bytes(LayerId(layer), ExpertId(expert), keep).unwrap();
    copy
}

fn random() -> RandomExperts {
    RandomExperts::new(SHAPE, WeightType::Q8_0, 4).unwrap()
}

/// A projection of all experts of a layer, one after the other.
fn stack(layer: u16, which: usize) -> Vec<u8> {
    (0..3).flat_map(|expert| projections(&random(), layer, expert)[which].clone()).collect()
}

fn part(name: impl Into<String>, dims: &[u64], bytes: Vec<u8>) -> Part {
    Part { name: name.into(), dims: dims.to_vec(), type_id: Q8_0, bytes }
}

fn stacked(block: usize, layer: u16) -> Vec<Part> {
    vec![
        part(format!("blk.{block}.ffn_gate_exps.weight"), &[64, 32, 3], stack(layer, 0)),
        part(format!("blk.{block}.ffn_up_exps.weight"), &[64, 32, 3], stack(layer, 1)),
        part(format!("blk.{block}.ffn_down_exps.weight"), &[32, 64, 3], stack(layer, 2)),
    ]
}

/// Gate and up of each expert in one.
fn fused(block: usize, layer: u16) -> Vec<Part> {
    let both = (0..3).flat_map(|expert| projections(&random(), layer, expert)[..2].concat()).collect();
    let [_, _, down] = <[Part; 3]>::try_from(stacked(block, layer)).ok().unwrap();
    vec![part(format!("blk.{block}.ffn_gate_up_exps.weight"), &[64, 64, 3], both), down]
}

/// A matrix an expert.
fn single(block: usize, layer: u16) -> Vec<Part> {
    let matrices = (0..3).flat_map(|expert| {
        let [gate, up, down] = projections(&random(), layer, expert);
        let name = move |which| format!("blk.{block}.ffn_{which}.{expert}.weight");
        [part(name("gate"), &[64, 32], gate), part(name("up"), &[64, 32], up), part(name("down"), &[32, 64], down)]
    });
    matrices.collect()
}

fn save(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn assert_random(store: &dyn ExpertStore) {
    assert_eq!((store.shape(), store.weight_types()), (SHAPE, random().weight_types()));
    for (layer, expert) in (0..2).flat_map(|layer| (0..3).map(move |expert| (layer, expert))) {
        assert_eq!(projections(store, layer, expert), projections(&random(), layer, expert), "{layer}, {expert}");
        let fetched = store.fetch(LayerId(layer), ExpertId(expert)).unwrap();
        let mut copy = Vec::new();
        let keep = &mut |bytes: ProjectionBytes<'_>| {
            copy = bytes.concat();
            Ok(())
        };
        fetched.with_bytes(keep).unwrap();
        assert_eq!(copy, projections(&random(), layer, expert).concat());
    }
}

#[test]
fn another_reader_finds_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("experts.gguf");
    let mut told = Vec::new();
    write_gguf(&random(), &path, &mut |done, all| told.push((done, all))).unwrap();
    let expert = 3 * (64 * 32 / 32 * 34);
    assert_eq!(told, (1..=6).map(|experts| (experts * expert, 6 * expert)).collect::<Vec<_>>());
    let bytes = std::fs::read(&path).unwrap();
    let mut reader = Cursor::new(&bytes);
    let content = Content::read(&mut reader).unwrap();
    assert_eq!(content.metadata["experts.expert_count"].to_u32().unwrap(), 3);
    assert_eq!(content.metadata["general.architecture"].to_string().unwrap(), "experts");
    assert_eq!(content.tensor_infos.len(), 6);
    // Six tensors of 6528 bytes, which is a multiple of 32.
    assert_eq!(bytes.len() as u64, content.tensor_data_offset + 6 * 6528);
    for (layer, which) in (0..2).flat_map(|layer| (0..3).map(move |which| (layer, which))) {
        let name = format!("blk.{layer}.ffn_{}_exps.weight", ["gate", "up", "down"][which]);
        let tensor = content.tensor(&mut reader, &name, &Device::Cpu).unwrap();
        assert_eq!(tensor.shape().dims(), if which == 2 { [3, 64, 32] } else { [3, 32, 64] });
        assert_eq!(*tensor.data().unwrap(), *stack(layer.try_into().unwrap(), which));
    }
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["experts.gguf"]);
}

/// Files of two experts of every layout: the seeds of the fuzz target, which keep the writer stable. With `UPDATE_GOLDEN` set
/// the test makes them first.
#[test]
fn the_seeds_of_the_fuzz_target_are_read_and_written() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf");
    let directory = tempfile::tempdir().unwrap();
    let written = |layers, hidden, intermediate, types: [WeightType; 3]| {
        let path = directory.path().join("seed");
        let shape = ExpertShape { layers, experts: 2, hidden, intermediate };
        write_gguf(&RandomExperts::new(shape, types, 1).unwrap(), &path, &mut |_, _| {}).unwrap();
        std::fs::read(path).unwrap()
    };
    // Of width 4 and 2 inside.
    let matrix = |name: &str, dims: &[u64]| {
        let numbers = (0..dims.iter().product()).flat_map(|number: u64| (number as f32).to_le_bytes());
        Part { name: name.to_owned(), dims: dims.to_vec(), type_id: 0, bytes: numbers.collect() }
    };
    let fused = [matrix("blk.1.ffn_gate_up_exps.weight", &[4, 4, 2]), matrix("blk.1.ffn_down_exps.weight", &[2, 4, 2])];
    let single = ["gate.0", "up.0", "gate.1", "up.1", "down.0", "down.1"].map(|which| {
        matrix(&format!("blk.0.ffn_{which}.weight"), if which.starts_with("down") { &[2, 4] } else { &[4, 2] })
    });
    use WeightType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q8_0};
    for (name, expected) in [
        ("blocks", written(2, 32, 32, [Q4_0, Q4_0, Q8_0])),
        ("odd-blocks", written(1, 32, 96, [Q4_1, Q5_0, Q5_1])),
        ("super-blocks", written(1, 256, 4, [Q4K, Q4K, F32])),
        ("halves", written(3, 8, 4, [F16, F16, BF16])),
        ("fused", file(32, &fused)),
        ("single", file(8, &single)),
    ] {
        let seed = seeds.join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&seed, &expected).unwrap();
        }
        assert_eq!(std::fs::read(&seed).unwrap(), expected, "{name}");
        assert_eq!(MappedStore::open_gguf(&[seed]).unwrap().shape().experts, 2);
        open_and_read(&expected);
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let directory = tempfile::tempdir().unwrap();
    let write = |threads: usize| {
        let path = directory.path().join(threads.to_string());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| write_gguf(&random(), &path, &mut |_, _| {})).unwrap();
        std::fs::read(path).unwrap()
    };
    let one = write(1);
    assert!(one == write(2) && one == write(5));
}

#[test]
fn every_layout_and_alignment_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for alignment in [32, 1, 8, 64, 4096] {
        for (name, layout) in
            [("stacked", stacked as fn(usize, u16) -> Vec<Part>), ("fused", fused), ("single", single)]
        {
            // Blocks 3 and 10 have experts, others do not; an odd number of bytes comes first.
            let mut parts = vec![part("blk.4.ffn_gate.weight", &[32], vec![0; 34]), part("odd", &[32], vec![1; 35])];
            parts.extend(layout(10, 1).into_iter().chain(layout(3, 0)));
            let path = save(directory.path(), name, &file(alignment, &parts));
            let store = MappedStore::open_gguf(&[path]).unwrap();
            assert_random(&store);
            let expert = store.fetch(LayerId(0), ExpertId(0)).unwrap();
            let Projection::Blocks(gate) = &expert.projections()[0] else { panic!("blocks") };
            // Where the file is aligned, nothing is copied.
            assert!(gate.is_mapped() || alignment == 1);
        }
    }
    let split =
        [save(directory.path(), "a", &file(32, &stacked(0, 0))), save(directory.path(), "b", &file(32, &fused(1, 1)))];
    assert_random(&MappedStore::open_gguf(&split).unwrap());
    let twice = [split[0].clone(), split[0].clone()];
    let error = MappedStore::open_gguf(&twice).unwrap_err().to_string();
    assert!(error.ends_with("_exps.weight is there twice"), "{error}");
}

/// What opening a file says, without its directory.
fn refusal(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = save(directory.path(), "f", bytes);
    let mut error = None;
    let allocated = allocation_counter::measure(|| error = Some(MappedStore::open_gguf(&[path]).unwrap_err()));
    assert!(allocated.bytes_max < 100_000, "{} bytes for a file of {}", allocated.bytes_max, bytes.len());
    error.unwrap().to_string().replace(&format!("{}/", directory.path().display()), "")
}

#[test]
fn every_field_of_the_header_is_checked() {
    let good = file(32, &stacked(0, 0));
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&file)
    };
    let find = |text: &str| good.windows(text.len()).position(|window| window == text.as_bytes()).unwrap() + text.len();
    let huge = u64::MAX.to_le_bytes();
    assert_eq!(with(0, b"ggml"), "f: the magic number is 1819109223, allowed are the letters GGUF");
    assert_eq!(with(4, &1u32.to_le_bytes()), "f: the version is 1, allowed are 2 and 3, of little-endian files");
    assert!(with(4, &3u32.to_be_bytes()).starts_with("f: the version is 50331648, allowed are 2 and 3"));
    // What follows is read as more of the same, until something is wrong with it.
    assert!(with(8, &huge).starts_with("f: "));
    assert!(with(16, &huge).starts_with("f: "));
    assert!(with(24, &huge).starts_with("f: a metadata key needs 18446744073709551615 bytes, "));
    let tokens = find("tokens");
    assert_eq!(with(tokens, &13u32.to_le_bytes()), "f: the type of a metadata value is 13, allowed are 0..=12");
    assert_eq!(with(tokens + 4, &99u32.to_le_bytes()), "f: the type of a metadata value is 99, allowed are 0..=12");
    assert!(with(tokens + 8, &huge).starts_with("f: a metadata value needs "));
    assert!(with(find("scores") + 8, &huge).starts_with("f: a metadata value needs 18446744073709551615 bytes, "));
    let alignment = find("general.alignment");
    assert_eq!(with(alignment + 4, &[0; 4]), "f: the alignment is 0, allowed are at least 1");
    assert_eq!(with(alignment, &5u32.to_le_bytes()), "f: the type of the alignment is 5, allowed are 4, which is u32");
    let gate = find("ffn_gate_exps.weight");
    assert_eq!(with(gate, &0u32.to_le_bytes()), "f: the rank of a tensor is 0, allowed are 1..=4");
    assert_eq!(with(gate, &u32::MAX.to_le_bytes()), "f: the rank of a tensor is 4294967295, allowed are 1..=4");
    for size in [&huge, &96u64.to_le_bytes()] {
        for dim in 0..3 {
            let error = with(gate + 4 + 8 * dim, size);
            assert_eq!(error, "f: blk.0.ffn_up_exps.weight begins within blk.0.ffn_gate_exps.weight");
        }
    }
    // An empty tensor takes nothing from the others.
    for (dim, message) in [(0, "hidden size is 0"), (1, "intermediate size is 0"), (2, "experts is 0")] {
        let error = with(gate + 4 + 8 * dim, &[0; 8]);
        assert!(error.starts_with(&format!("{message}, allowed are 1..=")), "{error}");
    }
    let narrow = with(gate + 4, &32u64.to_le_bytes());
    assert_eq!(narrow, "blk.0.ffn_up_exps.weight has shape [3, 32, 64], expected [3, 32, 32]");
    let unknown = with(gate + 28, &39u32.to_le_bytes());
    assert!(
        unknown.starts_with("blk.0.ffn_gate_exps.weight has dtype ggml type 39, supported are f32, q8_0,")
            || unknown.contains("ggml type 39"),
        "{unknown}"
    );
    assert_eq!(
        with(gate + 28, &12u32.to_le_bytes()),
        "rows of 64 weights are no multiple of the 256 of a block of q4_k"
    );
    let far = (u64::MAX / 32 * 32).to_le_bytes();
    assert!(with(gate + 32, &far).starts_with("f: the data of a tensor needs 18446744073709551584 bytes, "));
    let (first, len) = (6528u64, good.len());
    let behind = with(gate + 32, &(3 * first).to_le_bytes());
    assert_eq!(behind, "f: blk.0.ffn_gate_exps.weight needs 2176 bytes, 0 are left of the file");
    assert!(refusal(&good[..len - 1]).starts_with("f: blk.0.ffn_down_exps.weight needs 6528 bytes, 6527 are left"));
    let deep = |depth: usize| {
        let mut file = good[..24].to_vec();
        file.extend([&1u64.to_le_bytes()[..], b"a"].concat());
        file.extend(9u32.to_le_bytes());
        (0..depth).for_each(|_| file.extend([&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()));
        refusal(&file)
    };
    assert_eq!(deep(100_000), "f: the depth of an array is 5, allowed are at most 4");
    assert!(
        MappedStore::open_gguf(&[PathBuf::from("absent")]).unwrap_err().to_string().starts_with("absent: cannot read")
    );
    assert_eq!(refusal(b""), "f: the magic number needs 4 bytes, 0 are left of the file");
}

#[test]
fn experts_of_another_kind_are_refused() {
    let extra = |name: &str| {
        let mut parts = stacked(0, 0);
        parts.push(Part { name: name.to_owned(), dims: vec![32, 3], type_id: 0, bytes: vec![0; 384] });
        refusal(&file(32, &parts))
    };
    assert_eq!(
        extra("blk.0.ffn_gate_exps.bias"),
        "blk.0.ffn_gate_exps.bias is beyond experts of a gate, an up and a down projection without biases and scales"
    );
    assert!(extra("blk.0.ffn_down_exps.scale").contains("without biases and scales"));
    assert_eq!(
        extra("blk.1.ffn_gate_exps.weight"),
        "blk.1.ffn_gate_exps.weight has shape [3, 32], expected [3, 32, 64]"
    );
    let both = "blk.0.ffn_gate_up_exps.weight and blk.0.ffn_gate_exps.weight are both there, and which of them the model uses \
                is not known";
    assert_eq!(extra("blk.0.ffn_gate_up_exps.weight"), both);
    let dense = [part("blk.0.ffn_gate.weight", &[64, 32], stack(0, 0))];
    assert_eq!(refusal(&file(32, &dense)), "blk.N.ffn_gate_exps.weight is in none of the 1 checkpoint files");
    let mut parts = stacked(0, 0);
    parts.remove(2);
    assert_eq!(refusal(&file(32, &parts)), "blk.0.ffn_down_exps.weight is in none of the 1 checkpoint files");
    parts = single(0, 0);
    parts[3].type_id = 2;
    assert_eq!(refusal(&file(32, &parts)), "layer 0 has experts of q8_0 and of q4_0/q8_0/q8_0");
    parts = stacked(0, 0);
    parts[0].dims.pop();
    assert_eq!(refusal(&file(32, &parts)), "blk.0.ffn_gate_exps.weight has shape [32, 64], expected 3 dimensions");
}

#[test]
fn a_file_that_shrinks_is_told_before_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = file(32, &stacked(0, 0));
    let path = save(directory.path(), "f", &bytes);
    let store = MappedStore::open_gguf(std::slice::from_ref(&path)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let expert = (LayerId(0), ExpertId(0));
    let errors = [
        store.fetch(expert.0, expert.1).map(|_| ()),
        (&store as &dyn ExpertStore).with_bytes(expert.0, expert.1, &mut |_| Ok(())),
        store.read_ahead(expert.0, expert.1),
    ];
    for error in errors.map(Result::unwrap_err) {
        let expected = format!("{} has shrunk to 100 bytes, it had {} when it was opened", path.display(), bytes.len());
        assert_eq!(error.to_string(), expected);
    }
}

/// A store whose last expert is gone.
#[derive(Debug)]
struct Failing(RandomExperts);

impl ExpertStore for Failing {
    fn shape(&self) -> ExpertShape {
        self.0.shape()
    }

    fn weight_types(&self) -> &[moe_offload::ExpertTypes] {
        self.0.weight_types()
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        match (layer, expert) {
            (LayerId(1), ExpertId(2)) => {
                Err(OffloadError::Io { path: "gone".into(), source: std::io::Error::other("unplugged") })
            }
            _ => self.0.fetch(layer, expert),
        }
    }
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("experts.gguf");
    let error = write_gguf(&Failing(random()), &path, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "gone: cannot read checkpoint file");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    let nowhere = directory.path().join("absent/experts.gguf");
    let error = write_gguf(&random(), &nowhere, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.ends_with("experts.gguf: cannot write checkpoint file"), "{error}");
}

/// Opens a file; what can be opened can be read.
fn open_and_read(bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let Ok(store) = MappedStore::open_gguf(&[save(directory.path(), "f", bytes)]) else { return };
    let shape = store.shape();
    for (layer, expert) in [(0, 0), (shape.layers - 1, shape.experts - 1)] {
        let (layer, expert) = (LayerId(layer.try_into().unwrap()), ExpertId(expert.try_into().unwrap()));
        store.fetch(layer, expert).unwrap();
        (&store as &dyn ExpertStore).with_bytes(layer, expert, &mut |_| Ok(())).unwrap();
        store.read_ahead(layer, expert).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_headers_are_no_panic(
        layout in 0..3usize,
        damage in prop::collection::vec((0..900usize, any::<u8>()), 1..4),
        length in prop::option::of(0..20_000usize),
    ) {
        let mut bytes = file(32, &[stacked, fused, single][layout](0, 0));
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(length.unwrap_or(usize::MAX));
        open_and_read(&bytes);
    }

    #[test]
    fn fields_of_any_value_are_no_panic(at in 0..700usize, value in prop_oneof![any::<u64>(), 0..100u64, Just(u64::MAX)]) {
        let mut bytes = file(32, &stacked(0, 0));
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        open_and_read(&bytes);
    }

    #[test]
    fn noise_is_no_panic(noise in prop::collection::vec(any::<u8>(), 0..300), entries in 0..5u64, tensors in 0..5u64) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([tensors, entries].map(u64::to_le_bytes).concat());
        bytes.extend(noise);
        open_and_read(&bytes);
    }
}
