//! The definition, one capacity at a time: the oracle of tests and the baseline of benchmarks. No stable interface.

use super::{Accesses, ColdStart, CurvePolicy};

/// Hits of one sequence at capacities `1..=pool`.
pub fn hits(accesses: &Accesses, policy: CurvePolicy, cold: ColdStart) -> Vec<u64> {
    (1..=accesses.pool()).map(|capacity| hits_at(accesses, policy, cold, capacity)).collect()
}

/// What one expert did so far.
#[derive(Clone, Copy, Default)]
struct Past {
    uses: usize,
    last_use: usize,
}

fn hits_at(accesses: &Accesses, policy: CurvePolicy, cold: ColdStart, capacity: usize) -> u64 {
    let mut past = vec![Past::default(); accesses.pool()];
    let mut resident: Vec<u32> = Vec::new();
    let (mut served, mut distinct, mut hits) = (0, 0, 0);
    for (token, keys) in accesses.tokens().enumerate() {
        let before = resident.clone();
        let done = served + keys.len();
        for &key in keys {
            let first_touch = past[key as usize].uses == 0;
            let free = cold == ColdStart::Free && first_touch && distinct < capacity;
            hits += u64::from(free || before.contains(&key));
            distinct += usize::from(first_touch);
            if !resident.contains(&key) && policy == CurvePolicy::BeladyBypass {
                // Next uses are those behind the token.
                resident.push(key);
                let next_use = |key: u32| accesses.keys()[done..].iter().position(|&used| used == key);
                if resident.len() > capacity {
                    let next_use = |&slot: &usize| next_use(resident[slot]).unwrap_or(usize::MAX);
                    let farthest = (0..resident.len()).max_by_key(next_use).expect("not empty");
                    resident.swap_remove(farthest);
                }
            } else if !resident.contains(&key) {
                if resident.len() == capacity {
                    let priority = |&slot: &usize| priority(accesses, policy, &past, served, token, resident[slot]);
                    let lowest = (0..capacity).min_by_key(priority).expect("a capacity is at least 1");
                    resident.swap_remove(lowest);
                }
                resident.push(key);
            }
            past[key as usize] = Past { uses: past[key as usize].uses + 1, last_use: served };
            served += 1;
        }
    }
    hits
}

/// Priority of a resident expert while `token` is served and `served` accesses are done.
fn priority(
    accesses: &Accesses,
    policy: CurvePolicy,
    past: &[Past],
    served: usize,
    token: usize,
    key: u32,
) -> (usize, usize) {
    let Past { uses, last_use } = past[key as usize];
    let future = &accesses.keys()[served..];
    match policy {
        CurvePolicy::Lru => (0, last_use),
        CurvePolicy::Lfu => (uses, last_use),
        CurvePolicy::Belady | CurvePolicy::BeladyBypass => {
            let next_use = future.iter().position(|&used| used == key).unwrap_or(future.len());
            (future.len() - next_use, 0)
        }
        CurvePolicy::LookAhead { window } => {
            let end = token.saturating_add(window).min(accesses.token_count());
            let ahead: usize = (token..end).map(|token| accesses.token(token).len()).sum();
            let done = served - (0..token).map(|token| accesses.token(token).len()).sum::<usize>();
            (future[..ahead - done].iter().filter(|&&used| used == key).count(), last_use)
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
    use proptest::prelude::*;

    use super::*;
    const COLD_STARTS: [ColdStart; 2] = [ColdStart::Free, ColdStart::Miss];

    fn accesses(experts: usize, k: usize, ids: &[u16]) -> Accesses {
        let geometry = Geometry::decoder(1, experts, k).unwrap();
        let sequence = SequenceBuf::from_experts(&geometry, ids.to_vec(), Phase::Decode).unwrap();
        let mut accesses = Accesses::new();
        accesses.fill(&sequence.view(&geometry, 0).unwrap(), &[LayerId(0)]).unwrap();
        accesses
    }

    /// The most hits of all ways to keep up to `capacity` experts after each token, out of what was kept and what the
    /// token used.
    fn exhaustive(accesses: &Accesses, cold: ColdStart, capacity: usize) -> u64 {
        let states = 1usize << accesses.pool();
        let mut best: Vec<Option<u64>> = vec![None; states];
        best[0] = Some(0);
        let mut seen = 0usize;
        for keys in accesses.tokens() {
            let used: usize = keys.iter().map(|key| 1 << key).sum();
            let mut free = 0;
            for key in keys {
                let first = seen >> key & 1 == 0;
                free += u64::from(cold == ColdStart::Free && first && (seen.count_ones() as usize) < capacity);
                seen |= 1 << key;
            }
            let mut next = vec![None; states];
            for (held, hits) in best.iter().enumerate().filter_map(|(held, hits)| Some((held, (*hits)?))) {
                let hits = hits + free + u64::from((held & used).count_ones());
                for kept in (0..states).filter(|kept| kept & !(held | used) == 0) {
                    if kept.count_ones() as usize <= capacity {
                        next[kept] = next[kept].max(Some(hits));
                    }
                }
            }
            best = next;
        }
        best.into_iter().flatten().max().unwrap_or(0)
    }

    fn sequence(experts: usize, k: usize, tokens: std::ops::Range<usize>) -> impl Strategy<Value = Accesses> {
        let all: Vec<u16> = (0..u16::try_from(experts).unwrap()).collect();
        let row = Just(all).prop_shuffle().prop_map(move |all| all[..k].to_vec());
        proptest::collection::vec(row, tokens).prop_map(move |rows| accesses(experts, k, &rows.concat()))
    }

    #[test]
    fn a_newcomer_that_is_used_later_does_not_enter() {
        // A B A C B A D C B A, one slot. Belady must load every miss; with bypass A stays, and its other three uses hit.
        let ids = [0, 1, 0, 2, 1, 0, 3, 2, 1, 0];
        let accesses = accesses(4, 1, &ids);
        let of = |policy| hits(&accesses, policy, ColdStart::Miss)[0];
        assert_eq!((of(CurvePolicy::BeladyBypass), of(CurvePolicy::Belady)), (3, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn no_way_to_keep_experts_has_more_hits(
            accesses in (1usize..=5).prop_flat_map(|experts| {
                (Just(experts), 1..=experts.min(3)).prop_flat_map(|(experts, k)| sequence(experts, k, 0..10))
            }),
        ) {
            for cold in COLD_STARTS {
                let best: Vec<u64> = (1..=accesses.pool()).map(|c| exhaustive(&accesses, cold, c)).collect();
                prop_assert_eq!(&hits(&accesses, CurvePolicy::BeladyBypass, cold), &best);
            }
        }

        #[test]
        fn no_policy_has_more_hits(accesses in sequence(12, 3, 0..60), window in 1usize..9) {
            for cold in COLD_STARTS {
                let most = hits(&accesses, CurvePolicy::BeladyBypass, cold);
                let policies =
                    [CurvePolicy::Lru, CurvePolicy::Lfu, CurvePolicy::Belady, CurvePolicy::LookAhead { window }];
                for policy in policies {
                    let hits = hits(&accesses, policy, cold);
                    prop_assert!(hits.iter().zip(&most).all(|(hits, most)| hits <= most), "{:?}", policy);
                }
            }
        }
    }
}
