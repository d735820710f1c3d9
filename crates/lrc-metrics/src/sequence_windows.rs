//! How often an expert is used by the windows of one sequence.

use expert_cache::curve::Accesses;

/// Counts the windows of one sequence at a time, and adds them to counts that lie elsewhere.
///
/// A window's count of an expert is a step function of the window's start. As in
/// [`WindowHistogram`](crate::histogram::WindowHistogram) each step is one addition, but what one sequence counts fits
/// into 32 bits, stays in the fast cache, and is moved out as far as it was used.
#[derive(Clone, Debug)]
pub(crate) struct SequenceWindows {
    window: usize,
    /// `[experts x (window + 1)]`; empty until a sequence is long enough, all 0 between sequences.
    crossings: Vec<u32>,
    /// Uses of each expert by the current window.
    running: Vec<u32>,
}

/// Cells that are looked at together for whether one was used.
const RUN: usize = 16;

impl SequenceWindows {
    pub(crate) fn new(window: usize, experts: usize) -> SequenceWindows {
        SequenceWindows { window, crossings: Vec::new(), running: vec![0; experts] }
    }

    /// Adds the windows of a sequence of fewer than `2^32` tokens in which an expert has 1 to `window` uses to `counts`,
    /// `[experts x window]`.
    pub(crate) fn add(&mut self, accesses: &Accesses, counts: &mut [u32]) {
        let (tokens, window, stride) = (accesses.token_count(), self.window, self.window + 1);
        if tokens < window {
            return;
        }
        self.crossings.resize(self.running.len() * stride, 0);
        for token in 0..window {
            accesses.token(token).iter().for_each(|&expert| self.running[expert as usize] += 1);
        }
        let windows = u32::try_from(tokens - window + 1).expect("a sequence has fewer than 2^32 tokens");
        for start in 1..windows {
            let first = start as usize;
            for &expert in accesses.token(first - 1) {
                let uses = &mut self.running[expert as usize];
                *uses -= 1;
                let crossing = &mut self.crossings[expert as usize * stride + *uses as usize];
                *crossing = crossing.wrapping_sub(start);
            }
            for &expert in accesses.token(first + window - 1) {
                let uses = &mut self.running[expert as usize];
                let crossing = &mut self.crossings[expert as usize * stride + *uses as usize];
                *crossing = crossing.wrapping_add(start);
                *uses += 1;
            }
        }
        let cells = self.crossings.chunks_exact_mut(stride).zip(counts.chunks_exact_mut(window));
        for (uses, (crossings, counts)) in self.running.iter_mut().zip(cells) {
            let last = std::mem::take(uses) as usize;
            if last > 0 {
                counts[last - 1] += windows;
            }
            let used = crossings.rchunks(RUN).position(|run| run.iter().fold(0, |all, cell| all | cell) != 0);
            let Some(runs) = used else { continue };
            let used = &mut crossings[..stride - runs * RUN];
            let mut below = used[0];
            for (count, &crossing) in counts.iter_mut().zip(&used[1..]) {
                *count = count.wrapping_add(crossing).wrapping_sub(below);
                below = crossing;
            }
            // The cell behind is 0, but a step to it may be the last one used.
            if let Some(count) = counts.get_mut(used.len() - 1) {
                *count = count.wrapping_sub(below);
            }
            used.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, LayerId};

    use super::*;
    use crate::oracle;

    #[test]
    fn windows_of_sequences_are_counted_one_after_the_other() {
        let geometry = Geometry::decoder(1, 6, 2).unwrap();
        let mut accesses = Accesses::new();
        for window in [1, 2, 7, 16, 40] {
            let mut windows = SequenceWindows::new(window, 6);
            let (mut counts, mut expected) = (vec![0; 6 * window], vec![0; 6 * window]);
            for sequence in oracle::synthetic(&geometry, 3, 39, 1) {
                let view = sequence.view(&geometry, 0).unwrap();
                accesses.fill(&view, &[LayerId(0)]).unwrap();
                windows.add(&accesses, &mut counts);
                for expert in 0..6u16 {
                    let more = oracle::window_counts(&view, LayerId(0), expert, window);
                    let row = &mut expected[usize::from(expert) * window..][..window];
                    row.iter_mut().zip(&more[1..]).for_each(|(sum, &more)| *sum += u32::try_from(more).unwrap());
                }
                assert_eq!(counts, expected);
            }
        }
    }
}
