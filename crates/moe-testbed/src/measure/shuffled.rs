//! A null for everything that depends on the order of tokens.

use moe_trace::{MemoryTrace, RoutingSource, SequenceBuf};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;

/// The same tokens in random order, dealt out over sequences as long as those of the trace: every expert is used as often
/// as before, but neighbours have nothing in common. Only the experts are kept.
///
/// # Errors
/// What reading the trace finds.
pub(crate) fn shuffled_tokens(trace: &MemoryTrace, seed: u64) -> Result<MemoryTrace> {
    let geometry = trace.geometry();
    let row = geometry.layers() * geometry.top_k();
    let mut rows: Vec<&[u16]> = trace.sequences().iter().flat_map(|sequence| sequence.experts.chunks(row)).collect();
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut shuffled = MemoryTrace::new(geometry.clone());
    let mut rows = rows.into_iter();
    for sequence in trace.sequences() {
        let experts = rows.by_ref().take(sequence.phases.len()).flatten().copied().collect();
        shuffled.push(SequenceBuf { experts, phases: sequence.phases.clone(), ..SequenceBuf::default() })?;
    }
    Ok(shuffled)
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, Phase};

    use super::*;

    #[test]
    fn tokens_stay_whole_and_none_is_lost() {
        let geometry = Geometry::decoder(2, 64, 1).unwrap();
        let mut trace = MemoryTrace::new(geometry.clone());
        for start in [0u16, 10] {
            let experts = (start..start + 10).flat_map(|token| [token, token + 30]).collect();
            trace.push(SequenceBuf::from_experts(&geometry, experts, Phase::Prefill).unwrap()).unwrap();
        }
        let shuffled = shuffled_tokens(&trace, 3).unwrap();
        let experts: Vec<u16> = shuffled.sequences().iter().flat_map(|sequence| sequence.experts.clone()).collect();
        assert!(experts.chunks(2).all(|row| row[0] + 30 == row[1]));
        let mut first: Vec<u16> = experts.chunks(2).map(|row| row[0]).collect();
        assert!(!first.is_sorted());
        first.sort_unstable();
        assert!(first.into_iter().eq(0..20));
        assert_eq!(shuffled_tokens(&trace, 3).unwrap(), shuffled);
    }
}
