//! Every policy beside its twin: one that recomputes priorities, or a textbook form.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::Twin;
use super::priorities::naive_run;
use crate::cache::{ExpertCache, Oversize};
use crate::policies::PolicyKind;
use crate::policies::kind::for_each_policy;
use crate::policies::tests::suite::{cache, oversizes, serve, serve_from, shapes_and_histories};
use crate::policy::PoolShape;

/// The policy against its twin, request by request.
fn agrees_with_the_twin(
    kind: PolicyKind,
    shape: PoolShape,
    history: &[Vec<usize>],
    capacity: usize,
    oversize: Oversize,
) {
    let mut ours = cache(kind, shape, capacity, oversize, history);
    if let Some(twin) = Twin::new(kind, shape, capacity) {
        let mut twin = ExpertCache::new(twin, shape.universe(), capacity, oversize).unwrap();
        for (number, wanted) in history.iter().enumerate() {
            // Every third request comes without router weights.
            let weight = (number % 3 < 2).then_some(0.5);
            let ours_and_twin =
                (serve_from(weight, &mut ours, shape, wanted), serve_from(weight, &mut twin, shape, wanted));
            assert_eq!(ours_and_twin.0, ours_and_twin.1, "{kind} at capacity {capacity}, request {number}");
            // Sequences have four and seven requests in turn.
            if [3, 10].contains(&(number % 11)) {
                ours.sequence_end();
                twin.sequence_end();
            }
        }
        return;
    }
    for (wanted, (expected, resident)) in history.iter().zip(naive_run(kind, history, capacity, oversize)) {
        let plan = serve(&mut ours, shape, wanted);
        let outcome = [plan.hits().len(), plan.loads().len(), plan.bypasses().len()];
        assert_eq!(outcome, expected, "{kind} at capacity {capacity}");
        assert_eq!(ours.resident().iter().collect::<BTreeSet<_>>(), resident, "{kind} at capacity {capacity}");
    }
}

macro_rules! agrees {
    (twin $name:ident: $kind:expr) => {
        proptest! {
            #[test]
            fn $name(
                (shape, history) in shapes_and_histories(),
                capacity in 1usize..=12,
                oversize in oversizes(),
            ) {
                agrees_with_the_twin($kind, shape, &history, capacity, oversize);
            }
        }
    };
    // Other references are in `suite.rs` and `resident_sets.rs`.
    (optimum $name:ident: $kind:expr) => {};
    (draws $name:ident: $kind:expr) => {};
}

for_each_policy!(cases agrees);

proptest! {
    /// Long histories of single experts over a larger pool, where segments and histories have more than one entry.
    #[test]
    fn long_single_requests(
        history in proptest::collection::vec((0usize..48, 0usize..48), 300),
        capacity in 20usize..40,
    ) {
        let shape = PoolShape { layers: 1, experts: 48 };
        // The lower of two draws: low keys are popular.
        let history: Vec<Vec<usize>> = history.into_iter().map(|(a, b)| vec![a.min(b)]).collect();
        let kinds = [
            PolicyKind::S3Fifo,
            PolicyKind::Arc,
            PolicyKind::Lirs,
            PolicyKind::TwoQueue,
            PolicyKind::Slru,
            PolicyKind::WTinyLfu,
            PolicyKind::Lfru { memory: 3 },
            PolicyKind::Hysteresis { dwell: 4 },
        ];
        for kind in kinds {
            agrees_with_the_twin(kind, shape, &history, capacity, Oversize::Waves);
        }
    }

    /// Experts requested several times in a row.
    #[test]
    fn repeated_requests(
        runs in proptest::collection::vec((0usize..8, 1usize..20), 1..16),
        capacity in 1usize..8,
    ) {
        let shape = PoolShape { layers: 1, experts: 8 };
        let history: Vec<Vec<usize>> = runs.iter().flat_map(|&(expert, times)| vec![vec![expert]; times]).collect();
        agrees_with_the_twin(PolicyKind::WTinyLfu, shape, &history, capacity, Oversize::Waves);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Windows of two slots.
    #[test]
    fn large_caches(
        history in proptest::collection::vec(proptest::collection::btree_set(0usize..250, 1..4), 400),
        capacity in 200usize..230,
    ) {
        let shape = PoolShape { layers: 1, experts: 250 };
        let history: Vec<Vec<usize>> = history.into_iter().map(|set| set.into_iter().collect()).collect();
        agrees_with_the_twin(PolicyKind::WTinyLfu, shape, &history, capacity, Oversize::Waves);
    }

    /// Enough requests for scores to be scaled down: with a memory of one request twice, with one of 32 once.
    #[test]
    fn scaled_scores(history in proptest::collection::vec(0usize..12, 7600), capacity in 2usize..10) {
        let shape = PoolShape { layers: 1, experts: 12 };
        let history: Vec<Vec<usize>> = history.into_iter().map(|expert| vec![expert]).collect();
        for kind in [PolicyKind::Lfru { memory: 1 }, PolicyKind::RouterMass { memory: 1 }] {
            agrees_with_the_twin(kind, shape, &history[..700], capacity, Oversize::Waves);
        }
        agrees_with_the_twin(PolicyKind::Hysteresis { dwell: 4 }, shape, &history, capacity, Oversize::Waves);
    }
}
