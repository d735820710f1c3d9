//! NumPy and PyTorch files, made by `tests/fixtures/make_fixtures.py`.

use std::path::Path;

use moe_trace::{EMPTY_SLOT, ImportOptions, ModelConfig, Phase, RoutingSource, WarningKind, detect_importer, import};

use crate::{failure, fixture};

fn expert(token: usize, layer: usize, slot: usize, experts: usize) -> u16 {
    u16::try_from((token * 3 + layer * 7 + slot * 5) % experts).unwrap()
}

/// Ids of the routed-experts fixture: layers 1 and 3 of 4.
fn routed(tokens: usize) -> Vec<u16> {
    let rows = (0..tokens).flat_map(|token| [1, 3].map(|layer| (token, layer)));
    rows.flat_map(|(token, layer)| [0, 1].map(|slot| expert(token, layer, slot, 300))).collect()
}

fn config() -> ModelConfig {
    let json = br#"{"model_type": "qwen2_moe", "num_hidden_layers": 4, "num_experts": 300, "num_experts_per_tok": 2,
        "decoder_sparse_step": 2}"#;
    ModelConfig::parse(Path::new("config.json"), json).unwrap()
}

#[test]
fn routed_experts_are_read_without_their_dense_layers() {
    let options = ImportOptions { experts: Some(300), ..ImportOptions::default() };
    for name in ["routed_experts.npy", "routed_experts.npz"] {
        assert_eq!(detect_importer(fixture(name)).unwrap().name(), "routed-experts");
    }
    let trace = import(fixture("routed_experts.npy"), &options).unwrap();
    let layers: Vec<u32> = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
    assert_eq!((layers, trace.geometry().experts(), trace.geometry().top_k()), (vec![1, 3], 300, 2));
    assert_eq!(trace.sequences()[0].experts, routed(5));
    assert_eq!(trace.sequences()[0].phases, [Phase::Prefill.code(); 5]);

    let options = ImportOptions { config: Some(config()), phase: Some(Phase::Decode), ..ImportOptions::default() };
    let trace = import(fixture("routed_experts.npz"), &options).unwrap();
    let lengths: Vec<usize> = (0..4).map(|index| trace.sequence_len(index).unwrap()).collect();
    assert_eq!(lengths, [1, 2, 3, 3], "requests 0, 1, 2 and 10, as people count");
    assert_eq!(trace.sequences()[3].experts, routed(3));
    assert_eq!(trace.sequences()[3].phases, [Phase::Decode.code(); 3]);
}

#[test]
fn options_that_do_not_fit_the_arrays_are_told() {
    let error = |options: ImportOptions| import(fixture("routed_experts.npy"), &options).unwrap_err();
    let message = |options: ImportOptions| error(options).to_string();
    let short = |message: String| message.rsplit_once("routed_experts.npy").unwrap().1.to_owned();
    let none = ImportOptions::default;
    let largest = usize::from(routed(5).into_iter().max().unwrap());
    let few = error(ImportOptions { experts: Some(8), ..none() });
    let few = short(few.to_string());
    let expected = format!("expert is {largest}, there are 8 experts: give --experts if there are more");
    assert!(few.starts_with(", array, token ") && few.ends_with(&expected), "{few}");
    assert_eq!(short(message(ImportOptions { top_k: Some(3), ..none() })), ", options: top_k is 3, the file says 2");
    let mut other = config();
    other.decoder.layers = 7;
    let other = short(message(ImportOptions { config: Some(other), ..none() }));
    let expected = ", array: layers is 4, the configuration has 7 layers, 2 of them MoE: arrays are read as [tokens, layers, k]; \
                    transpose them if they are [layers, tokens, k]";
    assert_eq!(other, expected);
}

/// An array file of the given header and data.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn rows_of_zeros_are_unrouted_tokens() {
    let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 1, 2), }";
    let data: Vec<u8> = [0i16, 0, 3, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
    let trace = crate::read(npy(header, &data), &ImportOptions::default()).unwrap();
    assert_eq!(trace.sequences()[0].experts, [EMPTY_SLOT, EMPTY_SLOT, 3, EMPTY_SLOT]);
}

#[test]
fn broken_arrays_are_told() {
    let message = |header: &str, data: &[u8]| failure(npy(header, data), &ImportOptions::default());
    let header = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}")
    };
    let good = header("|u1", "False", "(1, 1, 2)");
    assert_eq!(message(&good, &[1]), "f, array: shape is [1, 1, 2], the data has 1 bytes of U8");
    assert_eq!(message(&good, &[1, 1]), "f: invalid sequence: sequence 0, token 0, layer 0: expert 1 appears twice");
    let flat = header("|u1", "False", "(2,)");
    assert_eq!(message(&flat, &[1, 2]), "f, array: shape is [2], expected [tokens, layers, k]");
    let huge = header("<i8", "False", "(18446744073709551615, 9, 9)");
    assert!(message(&huge, &[1]).starts_with("f, array: shape is [18446744073709551615, 9, 9], the data has 1 bytes"));
    let float = header("<f4", "False", "(1, 1, 2)");
    assert_eq!(message(&float, &[0; 8]), "f, array: descr is <f4, expected little-endian integers");
    let order = header("|u1", "True", "(1, 1, 2)");
    assert_eq!(message(&order, &[1, 2]), "f, array: fortran_order is not False, expected row-major order");
    assert_eq!(message("{}", &[]), "f, array: header is {}, expected a type string 'descr'");
    let empty = header("|u1", "False", "(0, 1, 2)");
    assert_eq!(message(&empty, &[]), "f: no token of a routed sequence in 72 bytes, read as routed-experts");
    let none = header("|u1", "False", "(0, 0, 0)");
    assert_eq!(message(&none, &[]), "f, array: shape is [0, 0, 0], expected [tokens, 0, 0], none of them 0");
    let mut cut = npy(&good, &[1, 2]);
    cut.truncate(20);
    assert_eq!(
        failure(&cut, &ImportOptions::default()),
        "f, array: header length is 62, expected at most 65536 and the file's"
    );
    assert!(failure(b"PK\x03\x04 and no more", &ImportOptions::default()).starts_with("f: no known trace format"));
}

#[test]
fn streamlx_traces_are_read_with_their_description() {
    let path = fixture("streamlx.npz");
    assert_eq!(detect_importer(&path).unwrap().name(), "streamlx");
    let trace = import(&path, &ImportOptions::default()).unwrap();
    let layers: Vec<u32> = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
    assert_eq!((layers, trace.geometry().experts(), trace.geometry().top_k()), (vec![1, 2, 3], 16, 2));
    assert_eq!((trace.model(), trace.len()), (Some("tiny"), 3));
    let mut expected: Vec<u16> = (0..8)
        .flat_map(|token| (0..3).map(move |layer| (token, layer)))
        .flat_map(|(token, layer)| [0, 1].map(|slot| expert(token, layer, slot, 16)))
        .collect();
    expected[2 * 6 + 2..2 * 6 + 4].fill(EMPTY_SLOT);
    let all: Vec<u16> = trace.sequences().iter().flat_map(|sequence| sequence.experts.clone()).collect();
    assert_eq!(all, expected);
    let lengths: Vec<usize> = (0..3).map(|index| trace.sequence_len(index).unwrap()).collect();
    assert_eq!(lengths, [4, 1, 3]);

    // Without its description the geometry is inferred.
    let directory = tempfile::tempdir().unwrap();
    let alone = directory.path().join("alone.npz");
    std::fs::copy(&path, &alone).unwrap();
    let trace = import(&alone, &ImportOptions::default()).unwrap();
    assert_eq!((trace.geometry().experts(), trace.geometry().moe_layers()[0].model_layer), (16, 0));
    std::fs::write(directory.path().join("alone.meta.json"), r#"{"layer_ids": [1]}"#).unwrap();
    let message = import(&alone, &ImportOptions::default()).unwrap_err().to_string();
    assert!(message.ends_with("alone.npz, experts: layers is 3, 1 layers are described"), "{message}");
    std::fs::write(directory.path().join("alone.meta.json"), r#"{"n_experts": 3}"#).unwrap();
    let message = import(&alone, &ImportOptions::default()).unwrap_err().to_string();
    assert!(message.contains("experts, token 1: expert is 15, there are 3 experts: give --experts"), "{message}");
}

#[test]
fn sglang_records_become_sequences() {
    let path = fixture("sglang.pt");
    assert_eq!(detect_importer(&path).unwrap().name(), "sglang");
    let trace = import(&path, &ImportOptions::default()).unwrap();
    let layers: Vec<u32> = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
    assert_eq!((layers, trace.geometry().experts(), trace.geometry().top_k()), (vec![1, 2, 3], 8, 2));
    // Place p of layer l holds expert (p * 3 + l) % 8; the token at position t uses places t + l and t + l + 1.
    let ids = |positions: usize| -> Vec<u16> {
        let rows = (0..positions).flat_map(|position| (1..4).map(move |layer| (position, layer)));
        rows.flat_map(|(position, layer)| {
            [0, 1].map(|slot| u16::try_from((((position + layer + slot) % 10) * 3 + layer) % 8).unwrap())
        })
        .collect()
    };
    let [a, b] = trace.sequences() else { panic!("two requests") };
    assert_eq!((&a.experts, &a.phases[..]), (&ids(5), &[0, 0, 0, 1, 1][..]));
    assert_eq!((&b.experts, &b.phases[..]), (&ids(3), &[0, 0, 1][..]));
    assert_eq!(a.token_ids.as_deref(), Some(&[100, 101, 102, 103, 104][..]));
}

/// A record of few bytes that is there again and again stands for more positions than the file may have.
#[test]
fn records_that_share_their_lists_are_bounded() {
    const COUNT: usize = 20_000;
    let text = |text: &str| [&b"X"[..], &u32::try_from(text.len()).unwrap().to_le_bytes(), text.as_bytes()].concat();
    let storage = [b"(", &text("storage")[..], b"ctorch\nLongStorage\n", &text("0"), &text("cpu"), b"K\x01tQ"].concat();
    let tensor = [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K\x00(K\x01K\x01t(K\x01K\x01ttR"].concat();
    let positions = [b"](", &b"K\x00".repeat(COUNT)[..], b"e"].concat();
    let record = [
        b"}(",
        &[text("positions"), positions, text("topk_ids_of_layer"), tensor.clone()].concat()[..],
        &[text("forward_pass_id"), b"K\x00".to_vec(), text("forward_mode"), b"K\x02".to_vec()].concat(),
        b"uq\x00",
    ];
    let records = [b"](", &record.concat()[..], &b"h\x00".repeat(COUNT), b"e"].concat();
    let pickle =
        [b"\x80\x02}(", &[text("last_physical_to_logical_map"), tensor, text("records"), records].concat()[..], b"u."];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shared.pt");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", &pickle.concat()[..]), ("a/data/0", &[0; 8])] {
        archive.start_file(name, stored).unwrap();
        std::io::Write::write_all(&mut archive, bytes).unwrap();
    }
    archive.finish().unwrap();
    let message = import(&path, &ImportOptions::default()).unwrap_err().to_string();
    let expected = "record 64: values is more, at most 16 for each byte of the file";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn outputs_of_the_paper_agree_between_logits_ranks_and_topk() {
    let options = ImportOptions { top_k: Some(3), experts: Some(160), ..ImportOptions::default() };
    let traces = ["merged", "rank", "topk"].map(|kind| {
        let folder = fixture(&format!("paper/{kind}"));
        assert_eq!(detect_importer(&folder).unwrap().name(), "paper-outputs");
        import(folder, &options).unwrap()
    });
    for trace in &traces {
        let layers: Vec<u32> = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
        assert_eq!((layers, trace.geometry().experts(), trace.geometry().top_k()), (vec![1, 2], 160, 3));
        assert_eq!((trace.domains(), trace.model()), (&["code".to_owned(), "wiki".to_owned()][..], Some("tiny")));
        assert_eq!((trace.len(), trace.sequence_len(0).unwrap()), (3, 4));
    }
    let [logits, ranks, topk] = traces;
    assert!(ranks.sequences().iter().any(|sequence| sequence.experts.iter().any(|&id| id > 127)), "ids wrap");
    for (a, (b, c)) in logits.sequences().iter().zip(ranks.sequences().iter().zip(topk.sequences())) {
        assert_eq!((a.domain, b.domain, c.domain), (b.domain, c.domain, a.domain));
        let scores = a.logits.as_deref().unwrap();
        for (cell, ((a, b), c)) in a.experts.chunks(3).zip(b.experts.chunks(3)).zip(c.experts.chunks(3)).enumerate() {
            // Equal logits may be ordered in any way, so values are compared and not ids.
            let values = |ids: &[u16]| ids.iter().map(|&id| scores[cell * 160 + usize::from(id)]).collect::<Vec<f32>>();
            assert_eq!(values(a), values(b));
            assert_eq!(values(a), values(c));
        }
    }
    let one = import(
        fixture("paper/topk/tiny_02.safetensors"),
        &ImportOptions { experts: Some(160), ..ImportOptions::default() },
    );
    assert_eq!(one.unwrap().sequences(), topk.sequences(), "a file stands for its folder");
    let second = import(fixture("paper/topk"), &ImportOptions { layers: Some(vec![2]), ..options.clone() }).unwrap();
    assert_eq!(second.geometry().layers(), 1);
    let message = import(fixture("paper/rank"), &ImportOptions::default()).unwrap_err().to_string();
    assert!(message.contains("options: top_k is missing, the files do not say"), "{message}");
}

#[test]
fn dense_layers_are_those_of_the_configuration() {
    const TOKENS: usize = 5;
    let id = |token: usize, layer: usize, slot: usize| u8::try_from((token * 5 + layer * 3 + slot) % 16).unwrap();
    let slots = |layers: std::ops::Range<usize>| {
        (0..TOKENS)
            .flat_map(move |token| layers.clone().flat_map(move |layer| (0..4).map(move |slot| (token, layer, slot))))
    };
    // Layers 0 and 1 of 8 are dense, and 0 in every slot.
    let data = slots(0..8).map(|(token, layer, slot)| if layer < 2 { 0 } else { id(token, layer, slot) });
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 8, 4), }";
    let bytes = npy(header, &data.collect::<Vec<u8>>());
    let expected: Vec<u16> = slots(2..8).map(|(token, layer, slot)| u16::from(id(token, layer, slot))).collect();
    let words = "\"mlp_layer_types\": [\"dense\", \"dense\", \"sparse\", \"sparse\", \"sparse\", \"sparse\", \"sparse\", \"sparse\"]";
    for (family, rule) in [("lfm2_moe", "\"num_dense_layers\": 2"), ("glm4_moe_lite", words)] {
        let json = format!(
            "{{\"model_type\": \"{family}\", {rule}, \"num_hidden_layers\": 8, \"num_experts\": 16, \"num_experts_per_tok\": 4}}"
        );
        let config = ModelConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap();
        let options = ImportOptions { config: Some(config), ..ImportOptions::default() };
        let trace = crate::read(bytes.clone(), &options).unwrap();
        let layers: Vec<u32> = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
        assert_eq!((layers, trace.geometry().experts()), (vec![2, 3, 4, 5, 6, 7], 16), "{family}");
        assert_eq!(trace.sequences()[0].experts, expected, "{family}: no slot is empty");
    }
}

/// An array file of bytes.
fn bytes_npy(shape: [usize; 3], id: impl Fn(usize, usize, usize) -> usize) -> Vec<u8> {
    let [tokens, layers, k] = shape;
    let cells = (0..tokens).flat_map(|token| (0..layers).map(move |layer| (token, layer)));
    let slots = cells.flat_map(|(token, layer)| (0..k).map(move |slot| (token, layer, slot)));
    let data: Vec<u8> = slots.map(|(token, layer, slot)| u8::try_from(id(token, layer, slot)).unwrap()).collect();
    npy(&format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({tokens}, {layers}, {k}), }}"), &data)
}

fn of_config(json: &[u8]) -> ImportOptions {
    ImportOptions {
        config: Some(ModelConfig::parse(Path::new("config.json"), json).unwrap()),
        ..ImportOptions::default()
    }
}

#[test]
fn layers_of_arrays_are_those_of_the_configuration() {
    let json =
        br#"{"model_type": "glm4_moe", "first_k_dense_replace": 3, "num_hidden_layers": 8, "n_routed_experts": 16,
        "num_experts_per_tok": 2, "hidden_size": 8, "moe_intermediate_size": 8, "n_shared_experts": 0}"#;
    let options = of_config(json);
    let id = |token: usize, layer: usize, slot: usize| (token + layer + slot * 5) % 15 + 1;
    let all = failure(bytes_npy([20, 8, 2], id), &options);
    let expected =
        "f, array: layers is [0, 1, 2], they have ids above 0, and the configuration has experts in [3, 4, 5, 6, 7]";
    assert_eq!(all, expected);
    let five = crate::read(bytes_npy([20, 5, 2], id), &options).unwrap();
    let layers: Vec<u32> = five.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
    assert_eq!(layers, [3, 4, 5, 6, 7]);
    assert!(five.import_report().has(&WarningKind::LAYERS_RENUMBERED));
    assert!(
        failure(bytes_npy([20, 5, 2], id), &ImportOptions { strict: true, ..options })
            .contains("layer 0 has no experts")
    );
}

#[test]
fn layouts_that_no_model_has_are_told() {
    let none = ImportOptions::default();
    let id = |token: usize, layer: usize, slot: usize| (token + layer + slot * 5) % 16;
    let has = |bytes: &[u8]| crate::read(bytes, &none).unwrap().import_report().has(&WarningKind::LAYOUT_SUSPECTED);
    assert!(has(&bytes_npy([2, 30, 2], id)), "more layers than tokens");
    assert!(!has(&bytes_npy([30, 2, 2], id)));
    assert!(
        has(&bytes_npy([30, 2, 2], |token, layer, slot| layer * 16 + id(token, layer, slot))),
        "ids over all layers"
    );
    assert!(has(&bytes_npy([30, 2, 2], |token, layer, slot| id(token, layer, slot) % 8 + 1)), "ids from 1");
    let known = ImportOptions { experts: Some(8), ..ImportOptions::default() };
    let from_1 = failure(bytes_npy([30, 2, 2], |token, layer, slot| id(token, layer, slot) % 8 + 1), &known);
    assert!(from_1.ends_with("never 0: subtract 1 from all ids if they are numbered from 1"), "{from_1}");
    let marks = failure(bytes_npy([30, 2, 8], |token, _, slot| usize::from((token + slot) % 4 == 0)), &none);
    assert!(marks.starts_with("f, array: ids is 0 and 1 only, expected ids: the last extent, 8"), "{marks}");
}

/// An archive of members.
fn npz(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut archive, bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn equal_arrays_of_an_archive_are_refused_without_a_choice() {
    let array = || bytes_npy([20, 2, 2], |token, layer, slot| (token + layer + slot * 5) % 16);
    let twice = npz(&[("a.npy", array()), ("b.npy", array())]);
    let message = failure(&twice, &ImportOptions::default());
    assert!(message.starts_with("f, archive: arrays is a.npy and b.npy, they are equal"), "{message}");
    let chosen = ImportOptions { columns: vec![("experts".into(), "b".into())], ..ImportOptions::default() };
    assert_eq!(crate::read(&twice, &chosen).unwrap().len(), 1);
}

#[test]
fn arrays_beside_the_experts_are_used_or_told() {
    let flat = |descr: &str, values: &[u8]| {
        npy(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({},), }}", values.len()), values)
    };
    let member = |name: &'static str, bytes: Vec<u8>| (name, bytes);
    let with = |others: &[(&'static str, Vec<u8>)]| {
        let mut members = vec![
            member("experts.npy", bytes_npy([4, 1, 2], |token, _, slot| token + slot)),
            member("seq_id.npy", flat("|u1", &[0, 0, 1, 1])),
            member("pos.npy", flat("|u1", &[0, 1, 0, 1])),
        ];
        members.extend_from_slice(others);
        npz(&members)
    };
    let none = ImportOptions::default();
    let phases = |bytes: &[u8]| -> Vec<u8> {
        crate::read(bytes, &none).unwrap().sequences().iter().flat_map(|sequence| sequence.phases.clone()).collect()
    };
    assert_eq!(phases(&with(&[])), [0, 0, 0, 0]);
    let flags = member("is_prefill.npy", flat("|b1", &[1, 0, 1, 0]));
    assert_eq!(phases(&with(std::slice::from_ref(&flags))), [0, 1, 0, 1]);
    assert_eq!(phases(&with(&[flags.clone(), member("phase.npy", flat("|u1", &[0, 1, 0, 1]))])), [0, 1, 0, 1]);
    let both = failure(with(&[flags, member("phase.npy", flat("|u1", &[0, 1, 1, 1]))]), &none);
    assert!(both.contains("says the other phase"), "{both}");
    let gates = crate::read(with(&[member("gates.npy", Vec::new())]), &none).unwrap();
    assert!(gates.import_report().to_string().contains("are not used: gates"), "{}", gates.import_report());
}

#[test]
fn pickles_are_read_up_to_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.pt");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    archive.start_file("a/data.pkl", zip::write::SimpleFileOptions::default()).unwrap();
    // Frames say nothing: 17 MiB of them pack into a few kilobytes.
    let pickle = [b"\x80\x04", &b"\x95\0\0\0\0\0\0\0\0".repeat((17 << 20) / 9)[..], b"}."].concat();
    std::io::Write::write_all(&mut archive, &pickle).unwrap();
    archive.finish().unwrap();
    let sglang = |max_unpacked| {
        let options = ImportOptions { format: Some("sglang".into()), max_unpacked, ..ImportOptions::default() };
        import(&path, &options).unwrap_err().to_string()
    };
    let message = sglang(None);
    assert!(message.contains("at most 16777216") && message.contains("--max-unpacked"), "{message}");
    let message = sglang(Some(18 << 20));
    assert!(!message.contains("--max-unpacked"), "{message}");
}
