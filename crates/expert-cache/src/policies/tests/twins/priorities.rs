//! Policies that are a priority of every expert, recomputed from the history.

use std::collections::BTreeSet;

use crate::cache::Oversize;
use crate::policies::PolicyKind;

/// Priority of `expert` at request `now`, from the history alone; the lowest is evicted.
fn naive_priority(kind: PolicyKind, history: &[Vec<usize>], now: usize, expert: usize) -> [i64; 3] {
    let number = |value: usize| i64::try_from(value).unwrap();
    let has = |request: &Vec<usize>| request.contains(&expert);
    let last_use = history[..=now].iter().rposition(has).map_or(0, |at| at + 1);
    match kind {
        PolicyKind::Lfu => [0, number(history[..=now].iter().filter(|r| has(r)).count()), number(last_use)],
        PolicyKind::Belady => [-number(history[now + 1..].iter().position(has).unwrap_or(history.len())), 0, 0],
        PolicyKind::LookAhead { window } => {
            let end = (now + window).min(history.len());
            [0, number(history[now..end].iter().filter(|r| has(r)).count()), number(last_use)]
        }
        _ => unreachable!("{kind} has another twin"),
    }
}

/// Counts of hits, loads and bypasses by the rules, slowly, and who is resident after each request.
pub(super) fn naive_run(
    kind: PolicyKind,
    history: &[Vec<usize>],
    capacity: usize,
    oversize: Oversize,
) -> Vec<([usize; 3], BTreeSet<usize>)> {
    let mut resident: Vec<usize> = Vec::new();
    let mut outcomes = Vec::new();
    for (now, wanted) in history.iter().enumerate() {
        let (hits, missing): (Vec<usize>, Vec<usize>) = wanted.iter().partition(|expert| resident.contains(expert));
        let mut pinned = wanted.clone();
        let mut in_wave = hits.len();
        let mut bypasses = 0;
        for &expert in &missing {
            if in_wave == capacity && oversize == Oversize::Waves {
                (pinned, in_wave) = (Vec::new(), 0);
            }
            pinned.push(expert);
            if resident.len() == capacity {
                let victims = resident.iter().copied().filter(|e| !pinned.contains(e));
                let victim = victims.min_by_key(|&e| (naive_priority(kind, history, now, e), e));
                let Some(victim) = victim else {
                    bypasses += 1;
                    continue;
                };
                resident.retain(|&e| e != victim);
            }
            resident.push(expert);
            in_wave += 1;
        }
        let counts = [hits.len(), missing.len() - bypasses, bypasses];
        outcomes.push((counts, resident.iter().copied().collect()));
    }
    outcomes
}
