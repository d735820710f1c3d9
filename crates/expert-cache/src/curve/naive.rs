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
