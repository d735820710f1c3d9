//! Files that are split.

use super::*;

/// Two blocks in two parts, as a splitter writes them.
fn parts(directory: &Path, [first, second]: [&str; 2]) -> [PathBuf; 2] {
    let split = |no| [("split.no", no), ("split.count", 2), ("split.tensors.count", 5)];
    // Only the first part has the metadata of the model.
    let numbers = [&split(0)[..], &[("olmoe.block_count", 2), ("olmoe.expert_count", 3)]].concat();
    [
        save(directory, first, &file_with(&numbers, 32, &stacked(0, 0))),
        save(directory, second, &file_with(&split(1), 32, &fused(1, 1))),
    ]
}

fn error(files: &[PathBuf], directory: &Path) -> String {
    MappedStore::open_gguf(files).unwrap_err().to_string().replace(&format!("{}/", directory.display()), "")
}

#[test]
fn any_part_stands_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let paths = parts(directory.path(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    for files in [vec![paths[0].clone()], vec![paths[1].clone()], paths.to_vec()] {
        let store = MappedStore::open_gguf(&files).unwrap();
        assert_random(&store);
        assert_eq!(store.files().collect::<Vec<_>>(), paths);
        assert_eq!(MappedStore::gguf_files(&files[0]).unwrap(), paths);
    }
}

#[test]
fn a_missing_part_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let paths = parts(directory.path(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    std::fs::remove_file(&paths[0]).unwrap();
    assert_eq!(
        error(&paths[1..], directory.path()),
        "m-00001-of-00002.gguf is missing: m-00002-of-00002.gguf is part 2 of 2, and all of them are needed"
    );
    // A name that tells no other name: the parts are found only if they are given.
    let paths = parts(directory.path(), ["a", "b"]);
    assert_random(&MappedStore::open_gguf(&paths).unwrap());
    assert_eq!(
        error(&paths[..1], directory.path()),
        "a: it is part 1 of 2, and its name does not tell where the others are: name them NAME-00001-of-00002.gguf and so \
         on, or give all of them"
    );
    let twice = [paths[1].clone(), paths[1].clone()];
    assert_eq!(error(&twice, directory.path()), "b: part 2 of 2 is given twice");
    let whole = save(directory.path(), "c", &file(32, &stacked(7, 0)));
    assert_eq!(error(&[paths[0].clone(), whole.clone()], directory.path()), "c: it is none of the 2 parts of a");
    assert!(error(&[whole, paths[0].clone()], directory.path()).starts_with("a: it is a part of another file"));
}

#[test]
fn parts_that_say_what_cannot_be_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let one = |name: &str, numbers: &[(&str, u32)]| {
        let path = save(directory.path(), name, &file_with(numbers, 32, &stacked(0, 0)));
        error(&[path], directory.path())
    };
    assert_eq!(
        one("m-00002-of-00003.gguf", &[("split.no", 0), ("split.count", 3)]),
        "m-00002-of-00003.gguf: its metadata say part 1 of 3, its name says 2 of 3"
    );
    assert_eq!(
        one("x", &[("split.no", 3), ("split.count", 3)]),
        "x: split.count is 3 and split.no is 3, allowed are 0..=2"
    );
    assert_eq!(one("x", &[("split.count", 3)]), "x: split.count is 3 and split.no is missing, allowed are 0..=2");
    // The name alone tells it, too.
    assert!(one("n-00001-of-00002.gguf", &[]).starts_with("n-00002-of-00002.gguf is missing: "));
    let [first, _] = parts(directory.path(), ["p-00001-of-00002.gguf", "p-00002-of-00002.gguf"]);
    let split = [("split.no", 1), ("split.count", 2)];
    save(directory.path(), "p-00002-of-00002.gguf", &file_with(&split, 32, &stacked(1, 1)));
    assert_eq!(
        error(&[first], directory.path()),
        "p-00001-of-00002.gguf: split.tensors.count is 5, the 2 parts have 6 tensors"
    );
}

/// The length of the first part, and both parts: the seed of a fuzz target. With `UPDATE_GOLDEN` set the test makes it first.
#[test]
fn the_seed_of_the_split_target_is_read() {
    let matrix = |name: String, dims: &[u64]| {
        let numbers = (0..dims.iter().product()).flat_map(|number: u64| (number as f32).to_le_bytes());
        Part { name, dims: dims.to_vec(), type_id: 0, bytes: numbers.collect() }
    };
    let of = |block: u32| {
        let name = |which| format!("blk.{block}.ffn_{which}_exps.weight");
        let parts = [matrix(name("gate_up"), &[4, 4, 2]), matrix(name("down"), &[2, 4, 2])];
        file_with(&[("split.no", block), ("split.count", 2), ("split.tensors.count", 4)], 32, &parts)
    };
    let (first, second) = (of(0), of(1));
    let expected = [&u32::try_from(first.len()).unwrap().to_le_bytes()[..], &first, &second].concat();
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf_split/two");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(seed.parent().unwrap()).unwrap();
        std::fs::write(&seed, &expected).unwrap();
    }
    assert_eq!(std::fs::read(&seed).unwrap(), expected);
    let directory = tempfile::tempdir().unwrap();
    let paths = [save(directory.path(), "a", &first), save(directory.path(), "b", &second)];
    assert_eq!(MappedStore::open_gguf(&paths).unwrap().shape().layers, 2);
}
