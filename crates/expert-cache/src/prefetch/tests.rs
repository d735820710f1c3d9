//! Prefetchers on routing small enough to follow by hand.

use std::cmp::Reverse;
use std::sync::Arc;

use moe_trace::{ExpertId, ExpertSet, Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};
use proptest::prelude::*;

use super::{
    HistoryMatch, IssuedPrefetch, Markov, NextLayer, Oracle, Prediction, PrefetchPlanner, Prefetcher, PrefetcherKind,
    PreviousToken, Routing,
};
use crate::{ExpertCache, Lru, Oversize, Pool, Request, Requests};

fn geometry() -> Geometry {
    Geometry::decoder(2, 4, 2).unwrap()
}

/// Serves passes, each the experts of both layers, and returns what was predicted at each layer: the layer, and experts
/// with scores.
fn predictions(prefetcher: &mut dyn Prefetcher, passes: &[[&[u16]; 2]]) -> Vec<(u16, Vec<(u16, f32)>)> {
    let mut all = Vec::new();
    for pass in passes {
        for (layer, experts) in (0..).map(LayerId).zip(pass) {
            let experts: Vec<ExpertId> = experts.iter().copied().map(ExpertId).collect();
            let mut out: Vec<Prediction> = Vec::new();
            prefetcher.predict(&Routing { layer, phase: Phase::Decode, experts: &experts }, &mut out);
            let target = out.first().map_or(u16::MAX, |prediction| prediction.layer.0);
            assert!(out.iter().all(|prediction| prediction.layer.0 == target));
            all.push((target, out.iter().map(|prediction| (prediction.expert.0, prediction.score)).collect()));
        }
    }
    all
}

const NOTHING: (u16, Vec<(u16, f32)>) = (u16::MAX, Vec::new());

#[test]
fn the_previous_token_is_expected_again() {
    let mut prefetcher = PreviousToken::new(&geometry(), 1).unwrap();
    let seen = predictions(&mut prefetcher, &[[&[0, 1], &[2, 3]], [&[1, 2], &[0, 3]]]);
    // At layer 1 of the first token, layer 0 has been seen; layer 1 has not at layer 0.
    let again = |layer, [one, two]: [u16; 2]| (layer, vec![(one, 1.0), (two, 1.0)]);
    assert_eq!(seen, [NOTHING, again(0, [0, 1]), again(1, [2, 3]), again(0, [1, 2])]);
    prefetcher.sequence_end();
    assert_eq!(predictions(&mut prefetcher, &[[&[0, 1], &[2]]])[0], NOTHING);
    let mut two_ahead = PreviousToken::new(&geometry(), 2).unwrap();
    assert_eq!(predictions(&mut two_ahead, &[[&[0, 1], &[2, 3]]]), [again(0, [0, 1]), again(1, [2, 3])]);
}

#[test]
fn the_next_layer_follows_by_shares_of_uses() {
    let mut prefetcher = NextLayer::new(&geometry(), 1).unwrap();
    let passes: [[&[u16]; 2]; 4] = [[&[0], &[2]], [&[0], &[3]], [&[1], &[3]], [&[0, 1], &[1]]];
    let seen = predictions(&mut prefetcher, &passes);
    assert_eq!((&seen[0], &seen[1]), (&NOTHING, &NOTHING));
    // 0 was followed by 2 once in layer 1; then by 2 and by 3; 1 not yet; then 1 by 3.
    assert_eq!(seen[2], (1, vec![(2, 1.0)]));
    assert_eq!(seen[4], NOTHING);
    assert_eq!(seen[6], (1, vec![(2, 0.5), (3, 1.5)]));
    // From layer 1 to layer 0 of the next token: 3 was followed by 1, and by 0 and 1.
    assert_eq!(seen[5], (0, vec![(1, 1.0)]));
}

#[test]
fn a_chain_follows_its_own_layer() {
    let mut prefetcher = Markov::new(&geometry(), 1).unwrap();
    let passes: [[&[u16]; 2]; 4] = [[&[0], &[3]], [&[1], &[3]], [&[0], &[2]], [&[1], &[0]]];
    let seen = predictions(&mut prefetcher, &passes);
    // In layer 0, 0 was followed by 1, 1 by 0, 0 by 1. In layer 1, 3 was followed by 3, then by 3 and 2.
    assert_eq!(seen[..4], [NOTHING, NOTHING, NOTHING, NOTHING]);
    assert_eq!(seen[4], (1, vec![(3, 1.0)]));
    assert_eq!(seen[5], (0, vec![(1, 1.0)]));
    assert_eq!(seen[6], NOTHING);
    assert_eq!(seen[7], (0, vec![(0, 1.0)]));
    prefetcher.sequence_end();
    // The table stays, the chain begins anew: nothing is known of layer 1.
    assert_eq!(predictions(&mut prefetcher, &[[&[0], &[3]]]), [NOTHING, (0, vec![(1, 1.0)])]);
}

#[test]
fn the_most_similar_pass_is_continued() {
    let mut prefetcher = HistoryMatch::new(&geometry(), 1, 2).unwrap();
    let passes: [[&[u16]; 2]; 5] =
        [[&[0, 1], &[2]], [&[2, 3], &[0]], [&[0, 2], &[3]], [&[0, 1], &[1]], [&[0, 1], &[2]]];
    let seen = predictions(&mut prefetcher, &passes);
    // The second token shares nothing with the first, which is still the only one; at layer 1 what came after it is the
    // second itself.
    assert_eq!(seen[..4], [NOTHING, NOTHING, (1, vec![(2, 1.0)]), (0, vec![(2, 1.0), (3, 1.0)])]);
    // The third shares one expert with both: the later wins.
    assert_eq!(seen[4], (1, vec![(0, 1.0)]));
    // Two passes are remembered: the fourth is most like the third (0), not like the first, which is forgotten.
    assert_eq!(seen[6], (1, vec![(3, 1.0)]));
    // The fifth is like the fourth.
    assert_eq!(seen[8], (1, vec![(1, 1.0)]));
}

#[test]
fn an_oracle_is_right_as_often_as_it_is_told() {
    let geometry = geometry();
    let mut trace = MemoryTrace::new(geometry.clone());
    let ids = (0..8000u16).flat_map(|row| [row % 4, (row + 1 + row / 4 % 3) % 4]).collect();
    trace.push(SequenceBuf::from_experts(&geometry, ids, Phase::Decode).unwrap()).unwrap();
    let requests = Arc::new(Requests::from_source(&trace, &Pool::model(&geometry)).unwrap());
    let right = |accuracy: f64, seed| {
        let mut oracle = Oracle::new(&geometry, 2, Arc::clone(&requests), accuracy, seed).unwrap();
        let routing = Routing { layer: LayerId(0), phase: Phase::Decode, experts: &[] };
        let (mut right, mut all, mut order) = (0, 0, Vec::new());
        for at in 0..requests.len() {
            let mut out = Vec::new();
            oracle.predict(&routing, &mut out);
            assert_eq!(out.len(), requests.members(at + 2).len());
            for prediction in out {
                assert_eq!(prediction.layer.index(), at % 2);
                let key = u32::from(prediction.layer.0) * 4 + u32::from(prediction.expert.0);
                right += usize::from(requests.members(at + 2).contains(&key));
                all += 1;
                order.push(key);
            }
        }
        (right * 1000 / all, order)
    };
    assert_eq!((right(1.0, 0).0, right(0.0, 0).0), (1000, 0));
    // The standard deviation of 16,000 draws is 4 per mille.
    assert!((680..=720).contains(&right(0.7, 0).0));
    assert_eq!(right(0.7, 3), right(0.7, 3));
    assert_ne!(right(0.7, 3), right(0.7, 4));
}

#[test]
fn names_are_read_back_and_impossible_prefetchers_refused() {
    let kinds = [
        PrefetcherKind::None,
        PrefetcherKind::PreviousToken,
        PrefetcherKind::NextLayer,
        PrefetcherKind::Markov,
        PrefetcherKind::History { passes: 64 },
        PrefetcherKind::Oracle { accuracy: 0.9 },
    ];
    for kind in kinds {
        assert_eq!(kind.to_string().parse::<PrefetcherKind>().unwrap(), kind);
        let ahead = kind.build(&geometry(), 0, None, 0);
        assert!(kind == PrefetcherKind::None || ahead.is_err(), "{kind} needs to look ahead");
    }
    for name in ["", "history-", "history-x", "oracle", "Markov"] {
        let message = name.parse::<PrefetcherKind>().unwrap_err().to_string();
        assert!(message.starts_with(&format!("there is no prefetcher {name:?}, known are none,")), "{message}");
    }
    let refusal = |name: &str| name.parse::<PrefetcherKind>().unwrap_err().to_string();
    assert_eq!(refusal("history-0"), "passes of a history is 0, it must be at least 1");
    assert_eq!(refusal("oracle-2"), "accuracy is 2, allowed are 0..=1");
    assert_eq!(refusal("oracle-nan"), "accuracy is NaN, allowed are 0..=1");
    let wide = Geometry::decoder(64, 65_535, 1).unwrap();
    let build = |kind: PrefetcherKind, geometry: &Geometry| kind.build(geometry, 1, None, 0).unwrap_err().to_string();
    let oracle = PrefetcherKind::Oracle { accuracy: 2.0 };
    assert_eq!(build(oracle, &wide), "prefetcher oracle-2 needs the requests to come, and none were given");
    let table = "a table of 4194240 x 65535 entries is too large, the limit is 134217728";
    assert_eq!(build(PrefetcherKind::Markov, &wide), table);
    assert_eq!(build(PrefetcherKind::NextLayer, &wide), table);
    let history = PrefetcherKind::History { passes: 0 };
    assert_eq!(build(history, &wide), "passes of a history is 0, it must be at least 1");
    let history = PrefetcherKind::History { passes: usize::MAX };
    assert!(build(history, &wide).contains("is too large"));
    let empty = MemoryTrace::new(geometry());
    let requests = Arc::new(Requests::from_source(&empty, &Pool::model(&geometry())).unwrap());
    let error = oracle.build(&geometry(), 1, Some(&requests), 0).unwrap_err().to_string();
    assert_eq!(error, "accuracy is 2, allowed are 0..=1");
    let error = oracle.build(&wide, 1, Some(&requests), 0).unwrap_err().to_string();
    assert_eq!(error, "the set is over 8 experts, the cache over 4194240");
}

/// Predicts the same experts at every layer.
#[derive(Debug)]
struct Fixed(Vec<Prediction>);

impl Prefetcher for Fixed {
    fn predict(&mut self, _: &Routing<'_>, out: &mut Vec<Prediction>) {
        out.extend(&self.0);
    }
}

proptest! {
    /// The best predictions are issued in order of rank if they are absent; the absent ones of the next ranks are left over.
    #[test]
    fn plans_are_a_sorted_list_cut_in_two(
        predictions in proptest::collection::vec((0u16..3, 0u16..6, 0u8..4), 0..20),
        residents in proptest::collection::vec(0usize..4, 0..3),
        (per_request, leftovers) in (0usize..6, 0usize..6),
    ) {
        let geometry = Geometry::decoder(3, 4, 2).unwrap();
        // Layer 2 is in no pool, and experts 4 and 5 do not exist.
        let pools = [0, 1].map(|layer| Pool::layer(&geometry, LayerId(layer)).unwrap());
        let mut caches = [0, 1].map(|_| ExpertCache::new(Lru::new(4), 4, 4, Oversize::Waves).unwrap());
        let wanted = ExpertSet::from_members(4, residents);
        let request = Request::new(&wanted, LayerId(0), Phase::Decode);
        caches[0].request(request).unwrap();
        let prediction = |&(layer, expert, score): &(u16, u16, u8)| {
            Prediction { layer: LayerId(layer), expert: ExpertId(expert), score: f32::from(score) }
        };
        let fixed = Fixed(predictions.iter().map(prediction).collect());
        let mut planner = PrefetchPlanner::new(Box::new(fixed), per_request, &pools).with_leftovers(leftovers);
        let mut ranked = predictions;
        ranked.sort_by_key(|&(layer, expert, score)| (Reverse(score), layer, expert));
        let ranked: Vec<(usize, usize)> =
            ranked.iter().map(|&(layer, expert, _)| (usize::from(layer), usize::from(expert))).collect();

        let mut here: Vec<(usize, usize)> = wanted.iter().map(|expert| (0, expert)).collect();
        let is_absent = |place: &(usize, usize), here: &[(usize, usize)]| {
            place.0 < 2 && place.1 < 4 && !here.contains(place)
        };
        let (best, next) = ranked.split_at(per_request.min(ranked.len()));
        let mut expected = Vec::new();
        for &place in best {
            if is_absent(&place, &here) {
                expected.push(place);
                here.push(place);
            }
        }
        let left: Vec<_> = next.iter().take(leftovers).copied().filter(|place| is_absent(place, &here)).collect();

        let mut issued = Vec::new();
        let issue = |prefetch: IssuedPrefetch<'_>| issued.push((prefetch.pool, prefetch.load.key.index()));
        let leftovers = planner.plan(0, &request, &mut caches, issue).unwrap().iter();
        let leftovers: Vec<_> = leftovers.map(|left| (left.layer.index(), left.expert.index())).collect();
        prop_assert_eq!(&issued, &expected);
        prop_assert_eq!(leftovers, left);
        prop_assert_eq!(planner.counts().iter().map(|counts| counts.issued).sum::<u64>(), issued.len() as u64);
    }
}
