//! SRP apart by stack, domain and start.

use lrc_metrics::{Accumulator, ByDomain, PositionSrp, Srp, SrpValue, accumulate};
use moe_trace::{Geometry, LayerId, MemoryTrace, RoutingSource, SequenceBuf, Stack};
use proptest::prelude::*;

use crate::traces::{DOMAINS, agrees, every_fold_agrees, memory, naive_counts, trace};

/// The sequences that are kept, as a trace.
fn filtered(trace: &MemoryTrace, keep: impl Fn(&SequenceBuf) -> bool) -> MemoryTrace {
    memory(trace.geometry(), trace.sequences().iter().filter(|sequence| keep(sequence)).cloned().collect())
}

/// Histogram of all experts of the given layers.
fn pooled(trace: &MemoryTrace, layers: impl Iterator<Item = LayerId>, window: usize) -> Vec<u64> {
    let mut counts = vec![0; window + 1];
    for layer in layers {
        for expert in 0..trace.geometry().experts() {
            let more = naive_counts(trace, layer, expert, window);
            counts.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
    }
    counts
}

fn of_stack(geometry: &Geometry, stack: Stack) -> impl Iterator<Item = LayerId> {
    geometry.layer_ids().filter(move |layer| geometry.moe_layers()[layer.index()].stack == stack)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Encoder and decoder pool the histograms of their own layers.
    #[test]
    fn stacks_pool_their_layers(trace in trace(), window in 1usize..6) {
        let srp = accumulate(&trace, &Srp::new(trace.geometry(), &[window]).unwrap(), &|_| {}).unwrap();
        let Ok(reports) = srp.finish() else { return Ok(()) };
        let report = &reports[&window];
        for (stack, value) in [(Stack::Encoder, report.encoder), (Stack::Decoder, report.decoder)] {
            prop_assert_eq!(value.is_some(), of_stack(trace.geometry(), stack).next().is_some());
            if let Some(value) = value {
                agrees(&value, &pooled(&trace, of_stack(trace.geometry(), stack), window));
            }
        }
    }

    /// A domain's SRP is that of its sequences alone, and all of them are the total.
    #[test]
    fn domains_are_traces_of_their_own(trace in trace(), window in 1usize..6) {
        let empty = Srp::new(trace.geometry(), &[1, window]).unwrap();
        let by_domain = ByDomain::new(&empty, DOMAINS);
        every_fold_agrees(&trace, &by_domain, |srp| srp.finish().map_err(|error| error.to_string()));
        let Ok(reports) = accumulate(&trace, &by_domain, &|_| {}).unwrap().finish() else { return Ok(()) };
        let together = accumulate(&trace, &empty, &|_| {}).unwrap().finish().unwrap();
        prop_assert!(reports.keys().eq(together.keys()));
        for (window, report) in &reports {
            prop_assert_eq!(&report.all, &together[window]);
            let empty = Srp::new(trace.geometry(), &[*window]).unwrap();
            for (number, domain) in report.domains.iter().enumerate() {
                let alone = filtered(&trace, |sequence| sequence.domain.is_some_and(|domain| domain.index() == number));
                let alone = accumulate(&alone, &empty, &|_| {}).unwrap().finish().ok();
                prop_assert_eq!(domain.as_ref(), alone.as_ref().map(|alone| &alone[window]));
            }
        }
    }

    /// The windows of a start are the only windows of the sequences cut to them.
    #[test]
    fn starts_are_traces_of_one_window(trace in trace(), window in 1usize..6, first in 0usize..8) {
        let layers: Vec<LayerId> = trace.geometry().layer_ids().collect();
        let empty = PositionSrp::new(trace.geometry(), &layers, window, first..first + 12).unwrap();
        every_fold_agrees(&trace, &empty, PositionSrp::finish);
        let starts = accumulate(&trace, &empty, &|_| {}).unwrap().finish();
        let longest = trace.sequences().iter().map(|sequence| sequence.phases.len()).max().unwrap();
        let reached = (longest + 1).saturating_sub(window).min(first + 12).saturating_sub(first);
        prop_assert_eq!(starts.len(), reached);
        let row = trace.geometry().layers() * trace.geometry().top_k();
        for at in starts {
            let mut cut = filtered(&trace, |sequence| sequence.phases.len() >= at.start + window).sequences().to_vec();
            for sequence in &mut cut {
                let tokens = at.start..at.start + window;
                sequence.experts = sequence.experts[tokens.start * row..tokens.end * row].to_vec();
                sequence.phases.truncate(window);
                sequence.token_ids = None;
            }
            let srp = Srp::new(trace.geometry(), &[window]).unwrap();
            let alone = accumulate(&memory(trace.geometry(), cut), &srp, &|_| {}).unwrap().finish().unwrap();
            prop_assert_eq!(&at.report, &alone[&window]);
        }
    }

    /// Nothing falls below the lower bound at its activation rate.
    #[test]
    fn srp_is_above_its_lower_bound(counts in proptest::collection::vec(0u64..50, 2..20)) {
        let value = SrpValue::from_histogram(&counts);
        prop_assert!(value.srp >= value.lower_bound() - 1e-12);
    }
}

#[test]
fn updates_of_another_geometry_say_so() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let other = Geometry::decoder(1, 5, 1).unwrap();
    let mut srp = Srp::new(&geometry, &[2]).unwrap();
    let error = srp.merge(&Srp::new(&other, &[2]).unwrap()).unwrap_err().to_string();
    assert_eq!(error, "accumulators do not belong together: number of experts a layer is 5, expected 4");
    let sequence = SequenceBuf::from_experts(&other, vec![0, 1], moe_trace::Phase::Decode).unwrap();
    let mut starts = PositionSrp::new(&geometry, &[LayerId(0)], 1, 0..2).unwrap();
    let error = starts.update(&sequence.view(&other, 0).unwrap()).unwrap_err().to_string();
    assert_eq!(error, "a sequence has 1 layers x 5 experts, the accumulator 1 layers x 4 experts");
}
