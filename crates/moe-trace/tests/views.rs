//! Slices and concatenations see what they should, and agree with copying by hand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use moe_trace::{
    Concatenation, DomainId, EMPTY_SLOT, Geometry, LayerId, MemoryTrace, Phase, RoutingSource, Selection, SequenceBuf,
    TraceFile, TraceView, write_trace,
};
use proptest::prelude::*;

/// A trace of one layer's ids and phases a sequence, with every optional column.
fn trace(layers: usize, sequences: &[Vec<(u16, bool)>]) -> MemoryTrace {
    let geometry = Geometry::decoder(layers, 300, 2).unwrap();
    let mut trace = MemoryTrace::new(geometry).with_model("m").with_domains(["a", "b"]);
    for (number, tokens) in sequences.iter().enumerate() {
        let rows = || tokens.iter().flat_map(|&(id, _)| (0..layers).map(move |layer| (id, layer)));
        let id = |id: u16, layer: usize| (id + u16::try_from(layer).unwrap()) % 300;
        trace
            .push(SequenceBuf {
                experts: rows().flat_map(|(first, layer)| [id(first, layer), EMPTY_SLOT]).collect(),
                weights: Some(rows().flat_map(|(first, layer)| [f32::from(id(first, layer)), 0.0]).collect()),
                logits: Some(
                    rows()
                        .flat_map(|(first, layer)| (0..300).map(move |e| f32::from(first) + (layer + e) as f32))
                        .collect(),
                ),
                token_ids: Some((0..).take(tokens.len()).collect()),
                predictions: Some((7..).take(tokens.len()).collect()),
                text: Some(tokens.iter().map(|(id, _)| id.to_string()).collect()),
                phases: tokens.iter().map(|&(_, decode)| u8::from(decode)).collect(),
                domain: [None, Some(DomainId(0)), Some(DomainId(1))][number % 3],
            })
            .unwrap();
    }
    trace
}

/// The tokens of a range and some layers of a sequence, by hand.
fn part(sequence: &SequenceBuf, all_layers: usize, layers: &[usize], tokens: std::ops::Range<usize>) -> SequenceBuf {
    fn cut<T: Copy>(
        column: &[T],
        width: usize,
        all: usize,
        layers: &[usize],
        tokens: std::ops::Range<usize>,
    ) -> Vec<T> {
        let rows = tokens.flat_map(|token| layers.iter().map(move |layer| token * all + layer));
        rows.flat_map(|row| column[row * width..][..width].to_vec()).collect()
    }
    let text = sequence.text.as_ref().unwrap();
    SequenceBuf {
        experts: cut(&sequence.experts, 2, all_layers, layers, tokens.clone()),
        weights: sequence.weights.as_ref().map(|column| cut(column, 2, all_layers, layers, tokens.clone())),
        logits: sequence.logits.as_ref().map(|column| cut(column, 300, all_layers, layers, tokens.clone())),
        token_ids: sequence.token_ids.as_ref().map(|column| column[tokens.clone()].to_vec()),
        predictions: sequence.predictions.as_ref().map(|column| column[tokens.clone()].to_vec()),
        text: Some(tokens.clone().map(|token| text.get(token).unwrap()).collect()),
        phases: sequence.phases[tokens].to_vec(),
        domain: sequence.domain,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn views_of_files_agree_with_copying_by_hand(
        sequences in proptest::collection::vec(proptest::collection::vec((0u16..300, any::<bool>()), 0..8), 1..5),
        layers in Just(vec![0usize, 1, 2]).prop_shuffle(),
        kept in 1usize..=3,
        phase in prop_oneof![Just(None), Just(Some(Phase::Prefill)), Just(Some(Phase::Decode))],
        by_domain in any::<bool>(),
    ) {
        // A file without any token has no optional columns.
        prop_assume!(sequences.iter().any(|tokens| !tokens.is_empty()));
        let trace = trace(3, &sequences);
        let layers = &layers[..kept];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t");
        write_trace(&path, &trace).unwrap();
        let file = TraceFile::open(&path).unwrap();
        let selection = Selection {
            domains: by_domain.then(|| vec![DomainId(1)]),
            phase,
            layers: Some(layers.iter().map(|&layer| LayerId(u16::try_from(layer).unwrap())).collect()),
            ..Selection::default()
        };
        let view = TraceView::new(&file, &selection).unwrap();

        let mut expected = Vec::new();
        for sequence in trace.sequences() {
            if by_domain && sequence.domain != Some(DomainId(1)) {
                continue;
            }
            match phase {
                None => expected.push(part(sequence, 3, layers, 0..sequence.phases.len())),
                Some(phase) => {
                    let mut start = None;
                    for token in 0..=sequence.phases.len() {
                        let wanted = sequence.phases.get(token) == Some(&phase.code());
                        match (start, wanted) {
                            (None, true) => start = Some(token),
                            (Some(first), false) => {
                                expected.push(part(sequence, 3, layers, first..token));
                                start = None;
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
        let copied = MemoryTrace::from_source(&view).unwrap();
        prop_assert_eq!(copied.sequences(), &expected[..]);
        prop_assert_eq!(copied.geometry().moe_layers()[0].model_layer as usize, layers[0]);
        for (index, sequence) in expected.iter().enumerate() {
            prop_assert_eq!(view.sequence_len(index).unwrap(), sequence.phases.len());
            let mut layer = Vec::new();
            view.sequence(index).unwrap().copy_layer(LayerId(0), &mut layer);
            let by_hand: Vec<u16> = sequence.experts.chunks(2 * kept).flat_map(|row| row[..2].to_vec()).collect();
            prop_assert_eq!(layer, by_hand);
        }
    }
}

#[test]
fn sequences_are_selected_by_number_in_the_order_wanted() {
    let trace = trace(1, &[vec![(1, false)], vec![(2, false), (3, true)], vec![]]);
    let selection = Selection { sequences: Some(vec![1, 0, 1]), ..Selection::default() };
    let view = TraceView::new(&trace, &selection).unwrap();
    assert_eq!((view.len(), view.sequence(0).unwrap().len(), view.sequence(1).unwrap().len()), (3, 2, 1));
    assert_eq!((view.domains(), view.model()), (trace.domains(), Some("m")));
    assert_eq!(view.sequence(3).unwrap_err().to_string(), "there is no sequence 3, the source has 3");
}

#[test]
fn what_cannot_be_selected_is_told() {
    let trace = trace(2, &[vec![(1, false)]]);
    let message = |selection: Selection| TraceView::new(&trace, &selection).map(|_| ()).unwrap_err().to_string();
    let none = Selection::default;
    assert_eq!(message(Selection { sequences: Some(vec![1]), ..none() }), "there is no sequence 1, the source has 1");
    let layers = |layers: &[u16]| Some(layers.iter().map(|&layer| LayerId(layer)).collect());
    assert_eq!(message(Selection { layers: layers(&[2]), ..none() }), "there is no layer 2, the geometry has 2");
    assert_eq!(message(Selection { layers: layers(&[]), ..none() }), "layers is 0, allowed are 1..=65535");
    let domains = Some(vec![DomainId(2)]);
    assert_eq!(message(Selection { domains, ..none() }), "domain 2 has no name, 2 domains are named");
    let one = Selection { layers: layers(&[1]), ..none() };
    let twice = TraceView::new(TraceView::new(&trace, &one).unwrap(), &Selection { layers: layers(&[0]), ..none() });
    let message = twice.unwrap().sequence(0).unwrap_err().to_string();
    assert_eq!(message, "layers are selected twice; select them once, of the whole trace");
}

#[test]
fn concatenations_join_domains_by_name() {
    let first = trace(1, &[vec![(1, false)], vec![(2, false)]]);
    let geometry = first.geometry().clone();
    let mut second = MemoryTrace::new(geometry.clone()).with_model("m").with_domains(["new", "a"]);
    for domain in [Some(DomainId(0)), Some(DomainId(1)), None] {
        let sequence = SequenceBuf::from_experts(&geometry, vec![5, 6], Phase::Decode).unwrap();
        second.push(SequenceBuf { domain, ..sequence }).unwrap();
    }
    let both = Concatenation::new(vec![&first, &second]).unwrap();
    assert_eq!((both.len(), both.model(), both.sequence_len(4).unwrap()), (5, Some("m"), 1));
    assert_eq!(both.domains(), ["a", "b", "new"]);
    let domains: Vec<Option<u16>> = (0..5).map(|i| both.sequence(i).unwrap().domain().map(|domain| domain.0)).collect();
    assert_eq!(domains, [None, Some(0), Some(2), Some(0), None]);
    assert_eq!(both.sequence(5).unwrap_err().to_string(), "there is no sequence 5, the source has 5");

    let other = MemoryTrace::new(Geometry::decoder(2, 300, 2).unwrap());
    let message = Concatenation::new(vec![&first, &other]).unwrap_err().to_string();
    let expected = "source 1 has 2 MoE layers (decoder 0..=1) of 300 experts, top-2, the first has ";
    assert_eq!(message, format!("{expected}{geometry}"));
    assert_eq!(Concatenation::<MemoryTrace>::new(vec![]).unwrap_err().to_string(), "there is no source to concatenate");
}
