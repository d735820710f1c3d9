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

/// Sequences of one domain or the other, whose tokens all have one id, of experts that know the domain.
fn two_domains(sequences: u16, tokens: usize) -> MemoryTrace {
    let geometry = moe_trace::Geometry::decoder(1, 4, 2).unwrap();
    let sequence = |number: u16| {
        let domain = number % 2;
        let experts = [domain, domain + 2].repeat(tokens);
        let mut sequence = moe_trace::SequenceBuf::from_experts(&geometry, experts, moe_trace::Phase::Prefill).unwrap();
        sequence.domain = Some(moe_trace::DomainId(domain));
        sequence.token_ids = Some(vec![7; tokens]);
        sequence
    };
    crate::traces::memory(&geometry, (0..sequences).map(sequence).collect())
}

/// Each null sees what it should see, and only that.
#[test]
fn nulls_see_position_or_id_or_neither() {
    let trace = two_domains(8, 64);
    let mut differ = 0;
    for seed in 0..6 {
        let reference = [vec![ExpertId(0)], vec![ExpertId(1)]];
        let empty = ReferenceRouting::new(trace.geometry(), &[LayerId(0)], &reference, seed).unwrap();
        let layer = &accumulate(&trace, &empty, &|_| {}).unwrap().finish()[0];
        assert_eq!((layer.router.top1, layer.router.precision), (1.0, 0.5));
        // Every id is the same: the hash router has two experts for all tokens, the first of them in each.
        let hash = layer.hash.unwrap();
        assert!([0.0, 0.5, 1.0].contains(&hash.top1) && [0.0, 0.25, 0.5].contains(&hash.precision), "{hash:?}");
        assert_eq!((hash.purity, hash.nmi), (0.5, 0.0));
        // Positions differ: some of the 64 draw the domain's expert, as one of two of four experts.
        let position = layer.position;
        assert!((0.1..0.4).contains(&position.precision) && (0.1..0.4).contains(&position.top1), "{position:?}");
        differ += usize::from((position.top1 - position.precision).abs() > 1e-9);
        // All sequences have the same positions, so a router that sees no more has nothing of the domain.
        assert!((position.purity - 0.5).abs() < 1e-12 && position.nmi < 1e-12);
        // One shuffle of 8 labels has a precision of 0, 1/8 .. 1/2 and is off by 0.09 as a rule, the mean of 32 by 0.016.
        assert!((layer.shuffled.precision - 0.25).abs() < 0.06, "{:?}", layer.shuffled);
    }
    // Only the first rank is the first, so the two shares differ but by chance.
    assert!(differ >= 3, "{differ}");
}
