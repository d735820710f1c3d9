//! Agreement with a reference router against its definition.

use lrc_metrics::{ReferenceRouting, RoutingAgreement, accumulate};
use moe_trace::{ExpertId, LayerId, MemoryTrace, RoutingSource};
use proptest::prelude::*;

use crate::traces::{DOMAINS, every_fold_agrees, trace};

/// One entry for each routed slot: domain, expert, whether it is the token's first.
fn slots(trace: &MemoryTrace, layer: LayerId) -> Vec<(usize, usize, bool)> {
    let mut slots = Vec::new();
    for index in 0..trace.len() {
        let sequence = trace.sequence(index).unwrap();
        let Some(domain) = sequence.domain() else { continue };
        for token in 0..sequence.len() {
            let experts = sequence.experts(token, layer).enumerate();
            slots.extend(experts.map(|(rank, expert)| (domain.index(), expert.index(), rank == 0)));
        }
    }
    slots
}

/// The definitions slot by slot; mutual information as a sum of `p ln(p / (p_e p_d))`.
fn naive(trace: &MemoryTrace, layer: LayerId, reference: &[Vec<ExpertId>]) -> RoutingAgreement {
    let slots = slots(trace, layer);
    let tokens_of = |domain: usize| -> usize {
        let of_domain = |sequence: &&moe_trace::SequenceBuf| sequence.domain.is_some_and(|of| of.index() == domain);
        trace.sequences().iter().filter(of_domain).map(|sequence| sequence.phases.len()).sum()
    };
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let right = |&&(domain, expert, _): &&(usize, usize, bool)| {
        reference[domain].iter().any(|of_domain| of_domain.index() == expert)
    };
    let n = |e: Option<usize>, d: Option<usize>| {
        let matching = |slot: &&(usize, usize, bool)| d.is_none_or(|d| slot.0 == d) && e.is_none_or(|e| slot.1 == e);
        share(slots.iter().filter(matching).count(), slots.len())
    };
    let (experts, domains) = (trace.geometry().experts(), DOMAINS);
    let (mut purity, mut information, mut entropies) = (0.0, 0.0, 0.0);
    for e in 0..experts {
        purity += (0..domains).map(|d| n(Some(e), Some(d))).fold(0.0, f64::max);
        for d in 0..domains {
            let joint = n(Some(e), Some(d));
            if joint > 0.0 {
                information += joint * (joint / (n(Some(e), None) * n(None, Some(d)))).ln();
            }
        }
    }
    let marginals = (0..experts).map(|e| n(Some(e), None)).chain((0..domains).map(|d| n(None, Some(d))));
    marginals.filter(|&p| p > 0.0).for_each(|p| entropies -= p * p.ln());
    let referred: usize = (0..domains).map(|d| tokens_of(d) * reference[d].len()).sum();
    let first: Vec<_> = slots.iter().filter(|slot| slot.2).copied().collect();
    RoutingAgreement {
        purity,
        top1: share(first.iter().filter(right).count(), first.len()),
        precision: share(slots.iter().filter(right).count(), slots.len()),
        coverage: share(slots.iter().filter(right).count(), referred),
        nmi: if entropies > 1e-12 { 2.0 * information / entropies } else { 0.0 },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agreement_equals_its_definition(trace in trace(), seed in 0u64..4) {
        let layers: Vec<LayerId> = trace.geometry().layer_ids().collect();
        let experts: Vec<ExpertId> = trace.geometry().expert_ids().collect();
        // Domains with one, with all and with no expert.
        let reference = [vec![experts[0]], experts, vec![]];
        let empty = ReferenceRouting::new(trace.geometry(), &layers, &reference, seed).unwrap();
        every_fold_agrees(&trace, &empty, ReferenceRouting::finish);
        let found = accumulate(&trace, &empty, &|_| {}).unwrap().finish();
        for (layer, found) in layers.into_iter().zip(found) {
            let expected = naive(&trace, layer, &reference);
            let fields = |of: &RoutingAgreement| [of.purity, of.top1, of.precision, of.coverage, of.nmi];
            for (found, expected) in fields(&found.router).into_iter().zip(fields(&expected)) {
                prop_assert!((found - expected).abs() < 1e-9, "{found} {expected}");
            }
        }
    }
}
