//! Confidence intervals of a speed by resampling sequences.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Figure;
use crate::{CacheError, Result};

/// How intervals are bootstrapped: sequences are drawn with replacement, as many as there are.
///
/// # Formula
/// The basic interval `(2 * theta - q_hi, 2 * theta - q_lo)`, with `theta` the figure of all sequences and `q_lo`, `q_hi`
/// its quantiles over resamples, linear between order statistics.
///
/// A sequence keeps the time that it took in the run of all, with the cache as the one before had left it. Resample `b`
/// draws from stream `b` of a `ChaCha8` generator, so the result does not depend on the number of threads.
///
/// # References
/// Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeedBootstrap {
    /// Number of resamples, 1 to [`MOST_RESAMPLES`](Self::MOST_RESAMPLES).
    pub resamples: usize,
    /// The interval holds the figure with this probability, between 0 and 1.
    pub confidence: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SpeedBootstrap {
    /// 1,000 resamples, 95 %, seed 0.
    fn default() -> SpeedBootstrap {
        SpeedBootstrap { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl SpeedBootstrap {
    /// The largest number of resamples.
    pub const MOST_RESAMPLES: usize = 100_000;

    /// Checks the settings.
    ///
    /// # Errors
    /// [`CacheError::Resamples`]; [`CacheError::Figure`] for a confidence that is not between 0 and 1.
    ///
    /// ```
    /// use expert_cache::SpeedBootstrap;
    /// let error = SpeedBootstrap { resamples: usize::MAX, ..SpeedBootstrap::default() }.check().unwrap_err().to_string();
    /// assert_eq!(error, "number of resamples is 18446744073709551615, allowed are 1..=100000");
    /// ```
    pub fn check(&self) -> Result<()> {
        let limit = SpeedBootstrap::MOST_RESAMPLES;
        if !(1..=limit).contains(&self.resamples) {
            return Err(CacheError::Resamples { resamples: self.resamples, limit });
        }
        if self.confidence > 0.0 && self.confidence < 1.0 {
            Ok(())
        } else {
            Err(CacheError::Figure { field: "confidence", value: self.confidence, limit: "between 0 and 1" })
        }
    }

    /// The interval of a figure of the decode passes, given as seconds and tokens, sequence by sequence; `None` of fewer
    /// than two sequences.
    pub(super) fn interval(&self, sequences: &[Vec<(f64, u64)>], figure: Figure) -> Option<(f64, f64)> {
        if sequences.len() < 2 {
            return None;
        }
        let sample = Sample::new(sequences, figure);
        let theta = sample.figure(&vec![1; sequences.len()]);
        let resampled = (0..self.resamples).into_par_iter().map(|resample| {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(resample as u64);
            let mut weights = vec![0u32; sequences.len()];
            (0..weights.len()).for_each(|_| weights[random.random_range(0..sequences.len())] += 1);
            sample.figure(&weights)
        });
        let mut resampled: Vec<f64> = resampled.collect();
        resampled.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        Some((2.0 * theta - quantile(&resampled, 1.0 - tail), 2.0 * theta - quantile(&resampled, tail)))
    }
}

/// What a figure is made of.
enum Sample {
    /// Tokens and seconds of each sequence.
    Totals(Vec<(u64, f64)>),
    /// Seconds of each pass, ascending, and its sequence.
    Passes { share: f64, sorted: Vec<(f64, usize)>, passes: Vec<u64> },
}

impl Sample {
    fn new(sequences: &[Vec<(f64, u64)>], figure: Figure) -> Sample {
        match figure {
            Figure::TokensPerSecond => {
                let total = |passes: &Vec<(f64, u64)>| {
                    (passes.iter().map(|pass| pass.1).sum(), passes.iter().map(|pass| pass.0).sum())
                };
                Sample::Totals(sequences.iter().map(total).collect())
            }
            Figure::Quantile(share) => {
                let of = |(sequence, passes): (usize, &Vec<(f64, u64)>)| {
                    passes.iter().map(move |pass| (pass.0, sequence)).collect::<Vec<_>>()
                };
                let mut sorted: Vec<(f64, usize)> = sequences.iter().enumerate().flat_map(of).collect();
                sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
                Sample::Passes { share, sorted, passes: sequences.iter().map(|passes| passes.len() as u64).collect() }
            }
        }
    }

    /// The figure where each sequence counts as often as its weight says.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    fn figure(&self, weights: &[u32]) -> f64 {
        match self {
            Sample::Totals(totals) => {
                let weighted = || totals.iter().zip(weights).map(|(total, &weight)| (total, f64::from(weight)));
                let tokens: f64 = weighted().map(|(total, weight)| total.0 as f64 * weight).sum();
                let seconds: f64 = weighted().map(|(total, weight)| total.1 * weight).sum();
                if seconds > 0.0 { tokens / seconds } else { 0.0 }
            }
            Sample::Passes { share, sorted, passes } => {
                let all: u64 = passes.iter().zip(weights).map(|(&passes, &weight)| passes * u64::from(weight)).sum();
                let mut left = ((share * all as f64).ceil() as u64).max(1);
                for &(seconds, sequence) in sorted {
                    left = left.saturating_sub(u64::from(weights[sequence]));
                    if left == 0 {
                        return seconds;
                    }
                }
                0.0
            }
        }
    }
}

/// The quantile of sorted values, linear between order statistics.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "floor of a number in 0..len")]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - place.floor()) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        // Passes of 1, 2 and 4 seconds with a token each, then one of 8 seconds with two.
        let sequences = [vec![(1.0, 1), (2.0, 1), (4.0, 1)], vec![(8.0, 2)]];
        let speed = Sample::new(&sequences, Figure::TokensPerSecond);
        assert_eq!([speed.figure(&[1, 1]), speed.figure(&[0, 2])], [5.0 / 15.0, 0.25]);
        let median = Sample::new(&sequences, Figure::Quantile(0.5));
        assert_eq!([median.figure(&[1, 1]), median.figure(&[2, 0]), median.figure(&[0, 1])], [2.0, 2.0, 8.0]);
        let highest = Sample::new(&sequences, Figure::Quantile(1.0));
        assert_eq!([highest.figure(&[1, 1]), highest.figure(&[3, 0])], [8.0, 4.0]);
    }

    /// The interval of a mean is as wide as the standard error says: 100 values of deviation 28.9.
    #[test]
    fn the_width_is_that_of_the_standard_error() {
        let sequences: Vec<Vec<(f64, u64)>> = (0..100).map(|tokens| vec![(1.0, tokens)]).collect();
        let (low, high) = SpeedBootstrap::default().interval(&sequences, Figure::TokensPerSecond).unwrap();
        assert!(low < 49.5 && 49.5 < high);
        assert!(((high - low) / (2.0 * 1.96 * 2.89) - 1.0).abs() < 0.1, "{low} {high}");
    }

    #[test]
    fn one_sequence_has_no_interval_and_bad_options_say_why() {
        assert_eq!(SpeedBootstrap::default().interval(&[vec![(1.0, 1)]], Figure::TokensPerSecond), None);
        let check = |resamples, confidence| SpeedBootstrap { resamples, confidence, seed: 0 }.check().unwrap_err();
        assert_eq!(check(0, 0.9).to_string(), "number of resamples is 0, allowed are 1..=100000");
        assert_eq!(check(1, 1.0).to_string(), "confidence is 1, it must be between 0 and 1");
    }
}
