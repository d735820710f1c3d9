//! Answers beside those of trying everything by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use moe_trace::{Geometry, MemoryTrace, Phase, RoutingSource, SequenceBuf};
use proptest::prelude::*;

use super::*;
use crate::{ExpertCache, Linear, Overlap, Simulation, Timeline};

const LAYERS: usize = 2;
const EXPERTS: usize = 5;

fn costs() -> CostModel {
    let mut costs = CostModel::loads(vec![3.0, 5.0], Overlap::Copies);
    costs.device_expert = Linear { call_seconds: 1.0, seconds_each: 0.0 };
    costs.host_expert = Linear { call_seconds: 4.0, seconds_each: 0.0 };
    costs
}

fn trace(sequences: &[Vec<u16>]) -> MemoryTrace {
    let geometry = Geometry::decoder(LAYERS, EXPERTS, 1).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    for experts in sequences {
        trace.push(SequenceBuf::from_experts(&geometry, experts.clone(), Phase::Decode).unwrap()).unwrap();
    }
    trace
}

fn sequences() -> impl Strategy<Value = Vec<Vec<u16>>> {
    let sequence = (1usize..16).prop_flat_map(|tokens| proptest::collection::vec(0u16..5, tokens * LAYERS));
    proptest::collection::vec(sequence, 1..4)
}

/// Tokens a second of per-layer pools, simulated without an advisor.
fn speed(trace: &MemoryTrace, policy: PolicyKind, slots: &[usize]) -> f64 {
    let partition = Partition::per_layer(trace.geometry());
    let cache = |(pool, &slots): (&Pool, &usize)| {
        let future = Arc::new(Requests::from_source(trace, pool).unwrap());
        let policy = policy.build(pool.shape(), slots, Some(&future)).unwrap();
        ExpertCache::new(policy, EXPERTS, slots, Oversize::Waves).unwrap()
    };
    let caches = partition.pools().iter().zip(slots).map(cache).collect();
    let mut simulation = Simulation::of_pools(partition.into_pools(), caches).unwrap();
    let mut timeline = Timeline::new(costs(), simulation.pools()).unwrap();
    simulation
        .observe(trace, |served| {
            timeline.serve(served);
        })
        .unwrap();
    timeline.speed().decode.tokens_per_second()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The smallest uniform cache that meets a target is the one that trying all finds; without one, Belady decides whose
    /// failure it is.
    #[test]
    fn answers_are_those_of_trying_everything(sequences in sequences(), target in 0.05f64..0.6, most in 1usize..6) {
        let trace = trace(&sequences);
        let policies = vec![PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Belady];
        let choices = Choices { policies, layouts: vec![Layout::Uniform], ..Choices::default() };
        let advisor = Advisor::new(&trace, costs(), vec![30, 50], choices).unwrap();
        let survey = advisor.survey(&|_, _| ()).unwrap();
        let budget = 80 * most as u64;
        let verdict = survey.answer(Target::TokensPerSecond(target), Some(budget)).unwrap();
        let smallest = |policies: &[PolicyKind]| {
            (1..=most).find(|&slots| policies.iter().any(|&policy| speed(&trace, policy, &[slots; 2]) >= target))
        };
        let (online, bound) = (smallest(&[PolicyKind::Lru, PolicyKind::Lfu]), smallest(&[PolicyKind::Belady]));
        let slots_of = |at: usize| match &survey.candidates[at].setup.slots {
            Slots::PerLayer(slots) => slots[0],
            Slots::SharedBytes(_) => 0,
        };
        match verdict {
            Verdict::Met { best } => {
                prop_assert_eq!(Some(slots_of(best)), online);
                prop_assert_eq!(survey.candidates[best].setup.bytes, 80 * slots_of(best) as u64);
            }
            Verdict::PolicyFailure { bound: at, .. } => {
                prop_assert_eq!((online, Some(slots_of(at))), (None, bound));
            }
            Verdict::WorkingSet { .. } => prop_assert!(online.is_none() && bound.is_none() && target <= 0.5),
            // Two experts of a second each, one after the other.
            Verdict::Compute => prop_assert!(target > 0.5),
        }
    }

    /// In so many bytes no online candidate is faster than the answer.
    #[test]
    fn bytes_are_used_as_well_as_they_can(
        sequences in sequences(), bytes in 60u64..500,
        while_loading in prop_oneof![Just(WhileLoading::Device), Just(WhileLoading::Host), Just(WhileLoading::Sooner)],
    ) {
        let trace = trace(&sequences);
        let choices = Choices {
            while_loading,
            prefetchers: vec![PrefetcherKind::None, PrefetcherKind::Markov],
            prefetched_experts: 1,
            ..Choices::default()
        };
        let survey = Advisor::new(&trace, costs(), vec![30, 50], choices).unwrap().survey(&|_, _| ()).unwrap();
        let answer = survey.answer(Target::Bytes(bytes), None);
        let within = survey.candidates.iter().filter(|one| one.setup.is_online() && one.setup.bytes <= bytes);
        let fastest = within.map(|one| one.speed.decode.mean_seconds()).reduce(f64::min);
        match (answer, fastest) {
            (Ok(Verdict::Met { best }), Some(fastest)) => {
                let best = &survey.candidates[best];
                prop_assert_eq!(best.speed.decode.mean_seconds(), fastest);
                prop_assert!(best.setup.bytes <= bytes);
                let counts = best.prefetches;
                prop_assert!(counts.useful + counts.late + counts.useless <= counts.issued);
            }
            (Err(CacheError::NoCandidate { .. }), None) => prop_assert!(bytes < 80),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// An allocation saves at least as many seconds of loads as the same bytes spread evenly.
    #[test]
    fn allocations_are_no_worse_than_uniform_slots(sequences in sequences(), slots in 1usize..6) {
        let trace = trace(&sequences);
        let choices = Choices {
            policies: vec![PolicyKind::Belady],
            layouts: vec![Layout::Uniform, Layout::Allocated],
            slots: vec![slots],
            ..Choices::default()
        };
        let advisor = Advisor::new(&trace, costs(), vec![30, 50], choices).unwrap();
        let survey = advisor.survey(&|_, _| ()).unwrap();
        let [uniform, allocated] = &survey.candidates[..] else { panic!("two layouts") };
        let seconds = |one: &Candidate| one.speed.decode.exposed_seconds + one.speed.decode.hidden_seconds;
        prop_assert!(seconds(allocated) <= seconds(uniform) + 1e-9);
        prop_assert!(allocated.setup.bytes <= uniform.setup.bytes);
    }
}

#[test]
fn results_do_not_depend_on_threads_and_progress_counts_every_simulation() {
    let sequences: Vec<Vec<u16>> =
        (0..4u16).map(|start| (0..60).map(|at| (start + at * at / 3) % 5).collect()).collect();
    let trace = trace(&sequences);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let advisor = Advisor::new(&trace, costs(), vec![30, 50], Choices::default()).unwrap();
            let (calls, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let survey = advisor
                .survey(&|_, all| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    total.store(all, Ordering::Relaxed);
                })
                .unwrap();
            assert_eq!(calls.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
            let figures = survey.candidates.iter().map(|one| (one.setup.clone(), one.speed.decode.seconds));
            let setup = &survey.candidates[3].setup;
            let figure = Figure::Quantile(0.95);
            let interval = advisor.interval(setup, figure, &SpeedBootstrap::default()).unwrap();
            (figures.collect::<Vec<_>>(), interval)
        })
    };
    let one = run(1);
    assert!(one.1.is_some());
    assert_eq!(one, run(3));
}

#[test]
fn impossible_questions_are_refused() {
    let trace = trace(&[vec![0, 1, 2, 3]]);
    let refusal = |costs: CostModel, bytes: &[u64], choices: Choices| {
        Advisor::new(&trace, costs, bytes.to_vec(), choices).unwrap_err().to_string()
    };
    let none = Choices { policies: Vec::new(), ..Choices::default() };
    assert_eq!(refusal(costs(), &[1, 1], none), "there is no policy to try");
    let six = Choices { slots: vec![2, 6], ..Choices::default() };
    assert_eq!(refusal(costs(), &[1, 1], six), "capacity is 6 slots, allowed are 1..=5");
    assert_eq!(refusal(costs(), &[1], Choices::default()), "the costs are of 1 layers, the model has 2");
    assert_eq!(refusal(costs(), &[1, 0], Choices::default()), "value of layer 1: slots of 0 bytes");
    let lfru = Choices { policies: vec![PolicyKind::Lfru { memory: 0 }], ..Choices::default() };
    assert_eq!(refusal(costs(), &[1, 1], lfru), "the parameter of policy lfru-0 must be at least 1");
    let oracle = Choices { prefetchers: vec![PrefetcherKind::Oracle { accuracy: 2.0 }], ..Choices::default() };
    assert_eq!(refusal(costs(), &[1, 1], oracle), "accuracy is 2, allowed are 0..=1");
    let geometry = trace.geometry().clone();
    let mut prefilled = MemoryTrace::new(geometry.clone());
    prefilled.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 2, 3], Phase::Prefill).unwrap()).unwrap();
    let error = Advisor::new(&prefilled, costs(), vec![1, 1], Choices::default()).unwrap_err();
    assert!(matches!(error, CacheError::NoDecodedTokens), "{error}");
    let empty = MemoryTrace::new(geometry);
    let error = Advisor::new(&empty, costs(), vec![1, 1], Choices::default()).unwrap_err().to_string();
    assert_eq!(error, "there is no sequence to try");
    let advisor = Advisor::new(&trace, costs(), vec![1, 1], Choices::default()).unwrap();
    let survey = advisor.survey(&|_, _| ()).unwrap();
    let message = |target| survey.answer(target, None).unwrap_err().to_string();
    assert_eq!(message(Target::TokensPerSecond(0.0)), "tokens per second is 0, it must be above 0");
    assert_eq!(message(Target::P95Seconds(f64::NAN)), "p95 seconds is NaN, it must be above 0");
    assert_eq!(message(Target::Bytes(1)), "the smallest cache that was tried takes 2 bytes, the budget is 1");
    let error = survey.answer(Target::TokensPerSecond(1.0), Some(1)).unwrap_err();
    assert!(matches!(error, CacheError::NoCandidate { bytes: 1, least: 2 }), "{error}");
    assert_eq!(advisor.least_bytes(), 2);
    let three = Choices { slots: vec![4, 3], layouts: vec![Layout::Uniform], ..Choices::default() };
    assert_eq!(Advisor::new(&trace, costs(), vec![30, 50], three).unwrap().least_bytes(), 240);
    let bounds = Choices { policies: vec![PolicyKind::Belady], ..Choices::default() };
    let survey = Advisor::new(&trace, costs(), vec![1, 1], bounds).unwrap().survey(&|_, _| ()).unwrap();
    let error = survey.answer(Target::Bytes(10), None).unwrap_err().to_string();
    assert_eq!(error, "there is no setup without the future to try");
    assert!("diagonal".parse::<Layout>().unwrap_err().to_string().ends_with("known are uniform, allocated, global"));
}
