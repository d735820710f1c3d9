//! Experts that serve no more tokens than they have room for.

use moe_trace::EMPTY_SLOT;

/// The most tokens that an expert serves of `slots` routed slots: `ceil(factor * slots / experts)`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number, and casts saturate")]
pub(crate) fn capacity(factor: f64, slots: usize, experts: usize) -> usize {
    (factor * slots as f64 / experts as f64).ceil() as usize
}

/// Empties the slots, `[tokens x slots]` in rank order, of an expert beyond its `capacity`.
///
/// First choices come before second ones, and among those earlier tokens first (Lepikhin et al. 2020, `GShard`, arXiv
/// 2006.16668, algorithm 1).
pub(crate) fn drop_beyond(experts: &mut [u16], slots: usize, count: usize, capacity: usize) {
    let mut served = vec![0; count];
    for rank in 0..slots {
        for expert in experts.iter_mut().skip(rank).step_by(slots).filter(|expert| **expert != EMPTY_SLOT) {
            let served = &mut served[usize::from(*expert)];
            if *served == capacity {
                *expert = EMPTY_SLOT;
            } else {
                *served += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_rounded_up() {
        assert_eq!(
            [capacity(1.0, 8, 4), capacity(1.0, 9, 4), capacity(1.25, 8, 4), capacity(0.01, 8, 4)],
            [2, 3, 3, 1]
        );
        assert_eq!(capacity(1e300, 8, 4), usize::MAX);
    }

    #[test]
    fn first_choices_go_before_second_ones_and_early_tokens_before_late_ones() {
        // Expert 0 is the second choice of the first token and the first of the others; two fit.
        let mut experts = [1, 0, 0, 1, 0, 2, 0, 3];
        drop_beyond(&mut experts, 2, 4, 2);
        assert_eq!(experts, [1, EMPTY_SLOT, 0, 1, 0, 2, EMPTY_SLOT, 3]);
        drop_beyond(&mut experts, 2, 4, 0);
        assert!(experts.iter().all(|&expert| expert == EMPTY_SLOT));
    }
}
