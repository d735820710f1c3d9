//! The plain layout, and what a reader says of each field that is broken.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use moe_trace::{DomainId, EMPTY_SLOT, LayerId, Phase, RoutingSource, TraceFile};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A file of the plain layout: two sequences of two layers, top-2 of 8.
struct Plain {
    metadata: HashMap<String, String>,
    experts: (Dtype, Vec<usize>, Vec<u8>),
    offsets: Option<Vec<i64>>,
    extra: Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Plain {
    fn new() -> Plain {
        let metadata = [("experts", "8"), ("phase", "decode"), ("model", "plain"), ("domains", "[\"a\", \"b\"]")];
        Plain {
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            experts: (Dtype::U8, vec![3, 2, 2], vec![0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 255]),
            offsets: Some(vec![0, 1, 3]),
            extra: vec![("domain", Dtype::I16, vec![2], vec![1, 0, 255, 255])],
        }
    }

    fn open(&self) -> moe_trace::Result<TraceFile> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plain.safetensors");
        let (dtype, shape, bytes) = &self.experts;
        let mut tensors = vec![("experts", TensorView::new(*dtype, shape.clone(), bytes).unwrap())];
        let offsets: Option<Vec<u8>> =
            self.offsets.as_ref().map(|offsets| offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect());
        if let Some(bytes) = &offsets {
            tensors.push(("sequence_offsets", TensorView::new(Dtype::I64, vec![bytes.len() / 8], bytes).unwrap()));
        }
        for (name, dtype, shape, bytes) in &self.extra {
            tensors.push((*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        }
        std::fs::write(&path, safetensors::serialize(tensors, Some(self.metadata.clone())).unwrap()).unwrap();
        TraceFile::open(path)
    }

    /// The message without the path of the temporary file.
    fn error(&self) -> String {
        let error = self.open().and_then(|file| file.sequence(1).map(|_| ())).unwrap_err();
        let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let message = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        message.split_once("plain.safetensors: ").unwrap().1.to_owned()
    }
}

#[test]
fn the_plain_layout_is_read() {
    let file = Plain::new().open().unwrap();
    assert_eq!((file.geometry().layers(), file.geometry().experts(), file.geometry().top_k()), (2, 8, 2));
    assert_eq!((file.len(), file.model(), file.domains()), (2, Some("plain"), &["a".to_owned(), "b".to_owned()][..]));
    let sequence = file.sequence(1).unwrap();
    assert_eq!((sequence.len(), sequence.phase(0), sequence.domain()), (2, Phase::Decode, None));
    assert_eq!(sequence.experts(1, LayerId(1)).map(|e| e.0).collect::<Vec<_>>(), [5]);
    assert_eq!(file.sequence(0).unwrap().domain(), Some(DomainId(1)));
}

#[test]
fn what_the_layout_does_not_have_is_told() {
    let mut plain = Plain::new();
    assert!(plain.open().unwrap().import_report().is_empty());
    plain.extra.push(("is_prefill", Dtype::U8, vec![3], vec![1, 1, 1]));
    let said = plain.open().unwrap().import_report().to_string();
    assert!(said.contains("tensors that the layout does not have are not used: is_prefill"), "{said}");
    plain.metadata.insert("token_phase".to_owned(), "prefill".to_owned());
    assert_eq!(plain.error(), "metadata token_phase is prefill, metadata phase says decode");
    plain.metadata.remove("phase");
    assert_eq!(plain.open().unwrap().sequence(1).unwrap().phase(0), Phase::Prefill);
    plain.metadata.insert("token_phase".to_owned(), "decode".to_owned());
    assert_eq!(plain.open().unwrap().sequence(1).unwrap().phase(0), Phase::Decode);
}

/// A way to break a file, and what reading it says.
type Case<'a> = (&'a dyn Fn(&mut Plain), &'a str);

/// Adds three bytes of text with the given offsets.
fn text(plain: &mut Plain, offsets: &[i64]) {
    let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
    plain.extra.push(("text", Dtype::U8, vec![3], vec![b'x'; 3]));
    plain.extra.push(("text_offsets", Dtype::I64, vec![offsets.len()], bytes));
}

#[test]
fn every_broken_field_has_its_message() {
    let message = |change: &dyn Fn(&mut Plain)| {
        let mut plain = Plain::new();
        change(&mut plain);
        plain.error()
    };
    let cases: [Case<'_>; 29] = [
        (
            &|p| p.experts.2[4] = 8,
            "invalid sequence: sequence 1, token 0, layer 0: expert 8 is out of range, the layer has 8",
        ),
        (&|p| p.experts.2[5] = 4, "invalid sequence: sequence 1, token 0, layer 0: expert 4 appears twice"),
        (&|p| p.experts.1 = vec![3, 4], "experts is of shape [3, 4], expected [tokens, layers, top_k]"),
        (&|p| p.experts.0 = Dtype::I8, "experts is of type I8, expected one of [U8, U16]"),
        (&|p| drop(p.metadata.remove("experts")), "metadata experts (number of experts a layer) is missing"),
        (
            &|p| drop(p.metadata.insert("experts".into(), "many".into())),
            "metadata experts is many, expected the number of experts a layer",
        ),
        (
            &|p| drop(p.metadata.insert("experts".into(), "0".into())),
            "geometry is of shape [3, 2, 2], experts is 0, allowed are 1..=65535",
        ),
        (
            &|p| drop(p.metadata.insert("experts".into(), "1".into())),
            "geometry is of shape [3, 2, 2], top_k is 2, allowed are 1..=1",
        ),
        (
            &|p| drop(p.metadata.insert("phase".into(), "both".into())),
            "metadata phase is both, expected prefill or decode",
        ),
        (&|p| p.offsets = None, "tensor sequence_offsets is missing"),
        (&|p| p.offsets = Some(vec![]), "sequence_offsets is of shape [0], expected [sequences + 1]"),
        (&|p| p.offsets = Some(vec![0, 2, 1]), "sequence_offsets[2] is 1, expected 2..=3, in ascending order"),
        (&|p| p.offsets = Some(vec![0, -1, 3]), "sequence_offsets[1] is -1, expected 0..=3, in ascending order"),
        (&|p| p.offsets = Some(vec![0, 2]), "sequence_offsets is 0..2, expected 0 first and 3 last"),
        (&|p| p.extra[0].3[0] = 2, "domain[0] is 2, expected -1 or one of the 2 named domains"),
        (
            &|p| p.extra.push(("phase", Dtype::U8, vec![3], vec![0, 1, 2])),
            "invalid sequence: sequence 1, token 1: phase 2 is neither 0 (prefill) nor 1 (decode)",
        ),
        (&|p| p.extra.push(("phase", Dtype::U8, vec![2], vec![0, 1])), "phase is of shape [2], expected [3]"),
        (&|p| drop(p.metadata.insert("experts".into(), "256".into())), "experts is of type U8, expected one of [U16]"),
        (
            &|p| drop(p.metadata.insert("domains".into(), "a".into())),
            "metadata domains is a, expected a JSON list: expected value at line 1 column 1",
        ),
        (
            &|p| p.extra.push(("weights", Dtype::F64, vec![3, 2, 2], vec![0; 96])),
            "weights is of type F64, expected one of [F16, BF16, F32]",
        ),
        (
            &|p| p.extra.push(("weights", Dtype::F16, vec![3, 2, 1], vec![0; 12])),
            "weights is of shape [3, 2, 1], expected [3, 2, 2]",
        ),
        (
            &|p| p.extra.push(("weights", Dtype::F16, vec![3, 2, 2], [0, 0x7e].repeat(12))),
            "invalid sequence: sequence 1, token 0, layer 0: router weight NaN is not finite",
        ),
        (&|p| p.extra.push(("token_ids", Dtype::U32, vec![2], vec![0; 8])), "token_ids is of shape [2], expected [3]"),
        (
            &|p| p.extra.push(("predictions", Dtype::I64, vec![3], vec![0; 24])),
            "predictions is of type I64, expected one of [U32]",
        ),
        (
            &|p| p.extra.push(("logits", Dtype::F16, vec![3, 2, 2], vec![0; 24])),
            "logits is of shape [3, 2, 2], expected [3, 2, 8]",
        ),
        (&|p| p.extra.push(("text", Dtype::U8, vec![3], vec![0; 3])), "tensor text_offsets is missing"),
        (&|p| p.extra.push(("text_offsets", Dtype::I64, vec![4], vec![0; 32])), "tensor text is missing"),
        (&|p| text(p, &[0, 1, 2, 4]), "text_offsets is 0..4, expected 0 first and 3 last"),
        (&|p| text(p, &[0, 2, 1, 3]), "invalid sequence: sequence 1, token 1: text offset 1 is not in 2..=3"),
    ];
    for (change, expected) in cases {
        assert_eq!(message(change), expected);
    }
}

#[test]
fn wide_ids_and_half_weights_are_read_from_the_plain_layout() {
    let mut plain = Plain::new();
    plain.experts = (Dtype::U16, vec![3, 2, 2], plain.experts.2.iter().flat_map(|&id| [id, 0]).collect());
    plain.experts.2[22..].fill(255);
    let halves = (1..=12u8).flat_map(|rank| half::f16::from_f32(1.0 / f32::from(rank)).to_le_bytes());
    plain.extra.push(("weights", Dtype::F16, vec![3, 2, 2], halves.collect()));
    let file = plain.open().unwrap();
    let last = file.sequence(1).unwrap().weighted_experts(1, LayerId(1)).unwrap().collect::<Vec<_>>();
    assert_eq!(last, [(moe_trace::ExpertId(5), half::f16::from_f32(1.0 / 11.0).to_f32())]);
}

/// The safetensors crate aligns what it writes; others need not.
#[test]
fn columns_that_the_file_does_not_align_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("odd.safetensors");
    let header = concat!(
        r#"{"__metadata__":{"experts":"300"},"odd":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#,
        r#""experts":{"dtype":"U16","shape":[2,1,1],"data_offsets":[1,5]},"#,
        r#""sequence_offsets":{"dtype":"I64","shape":[2],"data_offsets":[5,21]}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.push(0);
    bytes.extend([299u16, u16::MAX].iter().flat_map(|id| id.to_le_bytes()));
    bytes.extend([0i64, 2].iter().flat_map(|offset| offset.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    let file = TraceFile::open(&path).unwrap();
    assert_eq!(file.sequence(0).unwrap().to_buf().experts, [299, EMPTY_SLOT]);
}
