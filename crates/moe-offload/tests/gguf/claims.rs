//! What a header claims, and what its tensors show.

use super::*;

#[test]
fn tensors_that_share_bytes_are_refused() {
    // The same 65535 numbers are every matrix of ten blocks.
    let names = (0..10).flat_map(|block| ["gate", "up", "down"].map(|which| (block, which)));
    let of = |(block, which)| Part {
        name: format!("blk.{block}.ffn_{which}_exps.weight"),
        dims: vec![1, 1, 65535],
        type_id: 1,
        bytes: Vec::new(),
    };
    let mut parts: Vec<Part> = names.map(of).collect();
    parts.last_mut().unwrap().bytes = vec![0; 2 * 65535];
    assert_eq!(refusal(&file(32, &parts)), "f: blk.0.ffn_gate_exps.weight begins within blk.0.ffn_down_exps.weight");
    // One of a type that experts do not have may not lie in another one, either.
    let mut parts = stacked(0, 0);
    parts.insert(1, Part { name: "output.weight".to_owned(), dims: vec![256], type_id: 16, bytes: vec![0; 66] });
    let bytes = file(32, &parts);
    assert_eq!(
        MappedStore::open_gguf(&[save(tempfile::tempdir().unwrap().path(), "f", &bytes)]).unwrap().shape().layers,
        1
    );
    let mut bytes = bytes;
    let at = bytes.windows(13).position(|window| window == b"output.weight").unwrap() + 13 + 4 + 8 + 4;
    bytes[at..at + 8].copy_from_slice(&32u64.to_le_bytes());
    assert_eq!(refusal(&bytes), "f: output.weight begins within blk.0.ffn_gate_exps.weight");
}

#[test]
fn tensors_at_odd_places_are_refused() {
    let mut bytes = file(32, &stacked(0, 0));
    let at = bytes.windows(20).position(|window| window == b"ffn_gate_exps.weight").unwrap() + 20 + 32;
    bytes[at..at + 8].copy_from_slice(&24u64.to_le_bytes());
    assert_eq!(
        refusal(&bytes),
        "f: blk.0.ffn_gate_exps.weight begins at byte 24 of the data, allowed are multiples of the alignment 32"
    );
}

#[test]
fn metadata_that_do_not_fit_the_tensors_are_refused() {
    let parts = || stacked(0, 0).into_iter().chain(stacked(4, 1)).collect::<Vec<_>>();
    let right = [
        ("olmoe.block_count", 5),
        ("olmoe.expert_count", 3),
        ("olmoe.embedding_length", 64),
        ("olmoe.expert_feed_forward_length", 32),
    ];
    let directory = tempfile::tempdir().unwrap();
    let open = |numbers: &[(&str, u32)]| {
        MappedStore::open_gguf(&[save(directory.path(), "g", &file_with(numbers, 32, &parts()))])
    };
    assert_random(&open(&right).unwrap());
    // Keys of other parts of a model say nothing of its experts.
    assert_random(&open(&[("clip.vision.embedding_length", 7), ("olmoe.feed_forward_length", 9)]).unwrap());
    for (which, wrong) in [(0, 4), (1, 4), (2, 32), (3, 64)] {
        let mut numbers = right;
        numbers[which].1 = wrong;
        let (key, found) = (right[which].0.trim_start_matches("olmoe."), right[which].1);
        let error = open(&numbers).unwrap_err().to_string();
        assert!(error.ends_with(&format!("g: {key} is {wrong}, its tensors have {found}")), "{error}");
    }
}

#[test]
fn blocks_that_predict_the_token_after_the_next_are_no_layers() {
    let directory = tempfile::tempdir().unwrap();
    let open = |numbers: &[(&str, u32)], parts: &[Part]| {
        MappedStore::open_gguf(&[save(directory.path(), "f", &file_with(numbers, 32, parts))]).unwrap()
    };
    let mut parts: Vec<Part> = stacked(1, 0).into_iter().chain(stacked(2, 1)).chain(stacked(3, 0)).collect();
    let store = open(&[("glm4moe.block_count", 4), ("glm4moe.nextn_predict_layers", 1)], &parts);
    assert_random(&store);
    assert_eq!(store.skipped_blocks(), 1);
    assert_eq!(open(&[("glm4moe.block_count", 4)], &parts).shape().layers, 3);
    // Without the number a tensor of the block tells.
    parts.push(part("blk.3.nextn.eh_proj.weight", &[32], vec![0; 34]));
    let store = open(&[], &parts);
    assert_random(&store);
    assert_eq!(store.skipped_blocks(), 1);
}

#[test]
fn experts_without_a_gate_are_refused() {
    for mut parts in [stacked(0, 0), single(0, 0)] {
        parts.retain(|part| !part.name.contains("gate"));
        let name = if parts.len() == 2 { "blk.0.ffn_up_exps.weight" } else { "blk.0.ffn_up.0.weight" };
        let expected = format!("{name} has no gate projection beside it, and experts without a gate are not computed");
        assert_eq!(refusal(&file(32, &parts)), expected);
    }
}
