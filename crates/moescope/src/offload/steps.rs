//! Seconds of the steps of a run.

use moe_offload::ReplayedPass;
use moe_trace::Phase;

/// Seconds of each prefill and of each decode step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps {
    pub(crate) prefill: Vec<f64>,
    pub(crate) decode: Vec<f64>,
    pub(crate) prefill_tokens: usize,
}

impl Steps {
    /// Adds a pass of a replay.
    pub(crate) fn add(&mut self, pass: &ReplayedPass) {
        match pass.phase {
            Phase::Prefill => {
                self.prefill.push(pass.seconds);
                self.prefill_tokens += pass.tokens;
            }
            Phase::Decode => self.decode.push(pass.seconds),
        }
    }

    /// Adds the steps of another run.
    pub(crate) fn append(&mut self, other: Steps) {
        self.prefill.extend(other.prefill);
        self.decode.extend(other.decode);
        self.prefill_tokens += other.prefill_tokens;
    }

    /// Keeps the better of each pair of seconds: other work of the machine only ever adds to them.
    pub(crate) fn merge(&mut self, other: Steps) {
        if self.prefill.is_empty() && self.decode.is_empty() {
            *self = other;
            return;
        }
        let better = |ours: &mut [f64], theirs: &[f64]| {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours = ours.min(*theirs));
        };
        better(&mut self.prefill, &other.prefill);
        better(&mut self.decode, &other.decode);
    }

    /// Mean seconds of a decoded token; NaN without one.
    pub(crate) fn decode_seconds(&self) -> f64 {
        self.decode.iter().sum::<f64>() / self.decode.len() as f64
    }

    /// Mean seconds of a prefilled token; NaN without one.
    pub(crate) fn prefill_seconds(&self) -> f64 {
        self.prefill.iter().sum::<f64>() / self.prefill_tokens as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_step_the_best_counts() {
        let mut best = Steps::default();
        for (prefill, decode) in [(6.0, [1.0, 4.0]), (8.0, [2.0, 3.0])] {
            best.merge(Steps { prefill: vec![prefill], decode: decode.to_vec(), prefill_tokens: 3 });
        }
        assert_eq!((best.prefill_seconds(), best.decode_seconds()), (2.0, 2.0));
        assert!(Steps::default().decode_seconds().is_nan());
    }
}
