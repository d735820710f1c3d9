//! Seconds of a run, prefill and decode apart.

use hdrhistogram::Histogram;
use moe_trace::Phase;
use serde::Serialize;

use super::Pass;

/// What the passes of one phase took.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseSpeed {
    /// Tokens served.
    pub tokens: u64,
    /// Seconds from the first layer's start to the last layer's end, summed over passes.
    pub seconds: f64,
    /// Of these the seconds in which the device computed.
    pub compute_seconds: f64,
    /// Of these the seconds in which the device waited for weights.
    pub exposed_seconds: f64,
    /// Of these the seconds in which the device waited for the host alone.
    pub host_seconds: f64,
    /// Seconds of copies for which the device did not wait.
    pub hidden_seconds: f64,
    /// Nanoseconds of each pass, to three significant figures.
    #[serde(skip)]
    passes: Histogram<u64>,
}

/// Speed of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Speed {
    /// Passes over prefilled tokens.
    pub prefill: PhaseSpeed,
    /// Passes over decoded tokens.
    pub decode: PhaseSpeed,
}

impl Default for PhaseSpeed {
    fn default() -> PhaseSpeed {
        PhaseSpeed {
            tokens: 0,
            seconds: 0.0,
            compute_seconds: 0.0,
            exposed_seconds: 0.0,
            host_seconds: 0.0,
            hidden_seconds: 0.0,
            passes: Histogram::new(3).expect("three figures are allowed"),
        }
    }
}

impl PhaseSpeed {
    /// Tokens a second; 0 if no time passed.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Mean seconds of a token; 0 without tokens.
    pub fn mean_seconds(&self) -> f64 {
        if self.tokens > 0 { self.seconds / self.tokens as f64 } else { 0.0 }
    }

    /// The seconds that a share of the passes does not exceed, to three significant figures; 0 without passes.
    ///
    /// ```
    /// use expert_cache::PhaseSpeed;
    /// assert_eq!(PhaseSpeed::default().quantile_seconds(0.95), 0.0);
    /// ```
    pub fn quantile_seconds(&self, share: f64) -> f64 {
        self.passes.value_at_quantile(share) as f64 * 1e-9
    }

    /// Adds a pass.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds are not negative; casts saturate"
    )]
    pub(super) fn add_pass(&mut self, pass: &Pass) {
        self.tokens += pass.tokens;
        self.seconds += pass.seconds();
        self.compute_seconds += pass.compute_seconds;
        self.exposed_seconds += pass.exposed_seconds;
        self.host_seconds += pass.host_seconds;
        self.hidden_seconds += pass.hidden_seconds;
        self.passes.record((pass.seconds() * 1e9).round() as u64).expect("auto-resizing histograms hold every u64");
    }

    /// Adds the passes of another run.
    pub fn merge(&mut self, other: &PhaseSpeed) {
        self.tokens += other.tokens;
        self.seconds += other.seconds;
        self.compute_seconds += other.compute_seconds;
        self.exposed_seconds += other.exposed_seconds;
        self.host_seconds += other.host_seconds;
        self.hidden_seconds += other.hidden_seconds;
        self.passes.add(&other.passes).expect("auto-resizing histograms of one precision");
    }
}

impl Speed {
    /// Speed of a phase.
    pub fn of(&self, phase: Phase) -> &PhaseSpeed {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    pub(super) fn of_mut(&mut self, phase: Phase) -> &mut PhaseSpeed {
        match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        }
    }

    /// Adds another run.
    pub fn merge(&mut self, other: &Speed) {
        self.prefill.merge(&other.prefill);
        self.decode.merge(&other.decode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_sums_by_hand() {
        let pass = |tokens, compute_seconds| Pass {
            phase: Phase::Decode,
            tokens,
            compute_seconds,
            exposed_seconds: 0.5,
            host_seconds: 0.0,
            hidden_seconds: 0.25,
        };
        let (mut one, mut other) = (Speed::default(), Speed::default());
        (1u32..=19).for_each(|seconds| one.decode.add_pass(&pass(1, f64::from(seconds))));
        other.decode.add_pass(&pass(5, 100.0));
        one.merge(&other);
        let decode = &one.decode;
        assert_eq!((decode.tokens, decode.seconds, decode.hidden_seconds), (24, 190.0 + 100.0 + 10.0, 5.0));
        assert_eq!((decode.tokens_per_second(), decode.mean_seconds()), (0.08, 12.5));
        // To three significant figures.
        let close = |share, seconds: f64| (decode.quantile_seconds(share) / seconds - 1.0).abs() < 1e-3;
        assert!(close(0.5, 10.5) && close(0.95, 19.5) && close(1.0, 100.5));
        assert_eq!(one.prefill.quantile_seconds(0.5), 0.0);
    }
}
