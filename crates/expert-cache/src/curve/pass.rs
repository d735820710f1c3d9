//! One pass over one sequence.

use super::{
    Accesses, ColdStart, CurvePolicy,
    bypass::BypassPass,
    ranking::{Frequency, NextUse, Ranking, WindowUses},
    recency::RecencyMatrix,
    stack::PriorityStack,
};

/// The state of a policy, kept between sequences only for its memory.
#[derive(Clone, Debug)]
pub(super) enum Pass {
    /// LRU of at most [`RecencyMatrix::EXPERTS`] experts.
    LruMatrix(Box<RecencyMatrix>),
    /// LRU of larger pools.
    LruList(PriorityStack),
    Lfu(PriorityStack, Frequency),
    Belady(PriorityStack, NextUse),
    BeladyBypass(BypassPass),
    LookAhead(PriorityStack, WindowUses),
}

impl Pass {
    pub(super) fn new(policy: CurvePolicy, pool: usize) -> Pass {
        let stack = PriorityStack::default();
        match policy {
            CurvePolicy::Lru if pool <= RecencyMatrix::EXPERTS => Pass::LruMatrix(Box::new(RecencyMatrix::new())),
            CurvePolicy::Lru => Pass::LruList(stack),
            CurvePolicy::Lfu => Pass::Lfu(stack, Frequency::default()),
            CurvePolicy::Belady => Pass::Belady(stack, NextUse::default()),
            CurvePolicy::BeladyBypass => Pass::BeladyBypass(BypassPass::default()),
            CurvePolicy::LookAhead { window } => Pass::LookAhead(stack, WindowUses::new(window)),
        }
    }

    /// Serves a sequence from a cold cache; an access that hits at capacities above `d` adds 1 to `hits[d]`.
    pub(super) fn run(&mut self, accesses: &Accesses, cold: ColdStart, hits: &mut [u64]) {
        match self {
            Pass::LruMatrix(matrix) => run_matrix(matrix, accesses, cold, hits),
            Pass::LruList(stack) => run_list(stack, accesses, cold, hits),
            Pass::Lfu(stack, ranking) => run_ranked(stack, ranking, accesses, cold, hits),
            Pass::Belady(stack, ranking) => run_ranked(stack, ranking, accesses, cold, hits),
            Pass::BeladyBypass(pass) => pass.run(accesses, cold, hits),
            Pass::LookAhead(stack, ranking) => run_ranked(stack, ranking, accesses, cold, hits),
        }
    }
}

fn run_matrix(matrix: &mut RecencyMatrix, accesses: &Accesses, cold: ColdStart, hits: &mut [u64]) {
    matrix.reset();
    let mut first_touches = [0u64; RecencyMatrix::EXPERTS];
    for keys in accesses.tokens() {
        matrix.serve(keys, |depth| hits[depth] += 1, |distinct| first_touches[distinct] += 1);
    }
    if cold == ColdStart::Free {
        hits.iter_mut().zip(first_touches).for_each(|(hits, first)| *hits += first);
    }
}

fn run_list(stack: &mut PriorityStack, accesses: &Accesses, cold: ColdStart, hits: &mut [u64]) {
    stack.reset(accesses.pool());
    for keys in accesses.tokens() {
        judge(stack, keys, cold, hits);
        for &key in keys {
            stack.serve_recent(key);
        }
    }
}

fn run_ranked(
    stack: &mut PriorityStack,
    ranking: &mut impl Ranking,
    accesses: &Accesses,
    cold: ColdStart,
    hits: &mut [u64],
) {
    stack.reset(accesses.pool());
    ranking.start(accesses);
    let mut access = 0;
    for (token, keys) in accesses.tokens().enumerate() {
        judge(stack, keys, cold, hits);
        ranking.before_token(accesses, token);
        for &key in keys {
            stack.serve(key, ranking.ranks());
            ranking.served(access, key);
            access += 1;
        }
    }
}

/// Judges the accesses of a token on the state before it.
#[inline]
fn judge(stack: &mut PriorityStack, keys: &[u32], cold: ColdStart, hits: &mut [u64]) {
    stack.settle();
    let mut distinct = stack.len();
    for &key in keys {
        match stack.depth(key) {
            Some(depth) => hits[depth] += 1,
            None => {
                if cold == ColdStart::Free {
                    hits[distinct] += 1;
                }
                distinct += 1;
            }
        }
    }
}
