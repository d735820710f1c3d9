//! Belady's policy where a miss need not load: the optimum of the paper convention.

use super::Accesses;

const ABSENT: u32 = u32::MAX;

/// One pass of Belady with bypass at every capacity.
///
/// A missed expert may be served without being loaded. So after a token a cache of `c` slots may hold any `c` of what it
/// held and what the token used, and holds those with the nearest next uses. Every stay of an expert from one use to its
/// next is worth one hit and takes one slot; of stays that overlap, keeping those that end first keeps the most (interval
/// scheduling on `c` machines), so no policy that judges a token on the state before it has more hits.
///
/// All capacities keep by the same order, which gives inclusion: if `c + 1` slots hold what `c` slots hold, then the
/// farthest of the larger set, with the newcomer, is either not in the smaller or its farthest, too. So one stack serves
/// all, as for policies that must load, but the newcomer does not go on top: it sinks from there like any other, and stays
/// at the first level whose expert is used later.
#[derive(Clone, Debug, Default)]
pub(super) struct BypassPass {
    /// The first `c` are what a cache of `c` slots holds.
    order: Vec<u32>,
    /// Level of every expert before the token.
    place: Vec<u32>,
    /// The nearer the next use, the larger; 0 for never again.
    ranks: Vec<u64>,
    /// For every access the rank that it leaves behind.
    after: Vec<u64>,
}

impl BypassPass {
    /// Serves a sequence from a cold cache: an access to an expert seen before that hits at capacities above `d` adds 1
    /// to `hits[d]`. Returns how many experts were seen.
    pub(super) fn run(&mut self, accesses: &Accesses, hits: &mut [u64]) -> usize {
        self.start(accesses);
        let mut first = 0;
        for keys in accesses.tokens() {
            for (level, &key) in (0..).zip(&self.order) {
                self.place[key as usize] = level;
            }
            for &key in keys {
                let level = self.place[key as usize];
                if level != ABSENT {
                    hits[level as usize] += 1;
                }
            }
            // What the token has used is worth its next use, even while the rest of the token is served.
            for (&key, &rank) in keys.iter().zip(&self.after[first..]) {
                self.ranks[key as usize] = rank;
            }
            first += keys.len();
            keys.iter().for_each(|&key| self.serve(key));
        }
        self.order.len()
    }

    fn start(&mut self, accesses: &Accesses) {
        self.order.clear();
        self.place.clear();
        self.place.resize(accesses.pool(), ABSENT);
        self.ranks.clear();
        self.ranks.resize(accesses.pool(), 0);
        self.after.clear();
        self.after.resize(accesses.len(), 0);
        for (distance, (after, &key)) in (1u64..).zip(self.after.iter_mut().zip(accesses.keys()).rev()) {
            *after = std::mem::replace(&mut self.ranks[key as usize], distance);
        }
    }

    /// Lets an expert sink from the top to its old place; whoever is used later than what sinks sinks on in its stead.
    fn serve(&mut self, key: u32) {
        if self.place[key as usize] == ABSENT {
            self.order.push(key);
        }
        let mut sinking = key;
        for slot in &mut self.order {
            let here = *slot;
            if here == key {
                *slot = sinking;
                return;
            }
            if self.ranks[here as usize] < self.ranks[sinking as usize] {
                *slot = sinking;
                sinking = here;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
    use proptest::prelude::*;

    use super::*;
    use crate::curve::{ColdStart, CurvePolicy, naive};

    const COLD_STARTS: [ColdStart; 2] = [ColdStart::Free, ColdStart::Miss];

    fn accesses(experts: usize, k: usize, ids: &[u16]) -> Accesses {
        let geometry = Geometry::decoder(1, experts, k).unwrap();
        let sequence = SequenceBuf::from_experts(&geometry, ids.to_vec(), Phase::Decode).unwrap();
        let mut accesses = Accesses::new();
        accesses.fill(&sequence.view(&geometry, 0).unwrap(), &[LayerId(0)]).unwrap();
        accesses
    }

    /// Hits at capacities `1..=pool`.
    fn fast(accesses: &Accesses, cold: ColdStart) -> Vec<u64> {
        let mut hits = vec![0; accesses.pool()];
        let mut pass = BypassPass::default();
        // Twice: the state of an earlier sequence must not matter.
        for _ in 0..2 {
            hits.fill(0);
            let distinct = pass.run(accesses, &mut hits);
            if cold == ColdStart::Free {
                hits[..distinct].iter_mut().for_each(|hits| *hits += 1);
            }
        }
        let mut sum = 0;
        hits.iter()
            .map(|hits| {
                sum += hits;
                sum
            })
            .collect()
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
        let belady = naive::hits(&accesses, CurvePolicy::Belady, ColdStart::Miss);
        assert_eq!((fast(&accesses, ColdStart::Miss)[0], belady[0]), (3, 0));
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
                prop_assert_eq!(&fast(&accesses, cold), &best);
                prop_assert_eq!(&naive::hits(&accesses, CurvePolicy::BeladyBypass, cold), &best);
            }
        }

        #[test]
        fn no_policy_has_more_hits(accesses in sequence(12, 3, 0..60), window in 1usize..9) {
            for cold in COLD_STARTS {
                let most = fast(&accesses, cold);
                prop_assert_eq!(&naive::hits(&accesses, CurvePolicy::BeladyBypass, cold), &most);
                let policies =
                    [CurvePolicy::Lru, CurvePolicy::Lfu, CurvePolicy::Belady, CurvePolicy::LookAhead { window }];
                for policy in policies {
                    let hits = naive::hits(&accesses, policy, cold);
                    prop_assert!(hits.iter().zip(&most).all(|(hits, most)| hits <= most), "{:?}", policy);
                }
            }
        }
    }
}
