//! Confidence intervals by resampling sequences.

use ndarray::{Array2, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{MetricError, Result};

/// How intervals are bootstrapped: sequences are drawn with replacement, as many as there are.
///
/// # Formula
/// The basic interval `(2 * theta - q_hi, 2 * theta - q_lo)`, with `theta` the figure of all sequences and `q_lo`, `q_hi`
/// the quantiles of the figure over resamples (linear between order statistics), 2.5 % and 97.5 % by default.
///
/// A basic interval is the mirror image of what resamples give. Where resampling is biased, as for utilization, entropy
/// and the largest load (which are extremes of what is possible at even load), or for the SRP of an expert that is hardly
/// used, it may reach beyond `0..1`, and need not even hold the figure: such a figure is not to be trusted to its digits.
///
/// A resample that does not have a figure, such as the SRP of a window longer than each of its sequences, is left out for
/// that figure. There is no interval (both bounds NaN) where no resample has it, or where some do not and the others all
/// agree: one sequence alone carries the figure, and says nothing about others.
///
/// Resample `b` draws from stream `b` of a `ChaCha8` generator, so the result does not depend on the number of threads.
///
/// What is drawn is the part of each sequence in the sums that figures are made of, not the trace; above 96 sequences,
/// the part of each of 96 groups of sequences, chosen by a hash of the sequence. Groups are as independent as the
/// sequences in them, so an interval keeps its meaning; its width is that of 96 draws and so uncertain to
/// `1 / sqrt(2 * 95)` = 7 % of itself, beside the 4 % that 1,000 resamples leave.
///
/// # References
/// Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BootstrapState")]
pub struct Bootstrap {
    resamples: usize,
    confidence: f64,
    seed: u64,
}

/// What is read before it is checked.
#[derive(Deserialize)]
struct BootstrapState {
    resamples: usize,
    confidence: f64,
    seed: u64,
}

impl TryFrom<BootstrapState> for Bootstrap {
    type Error = MetricError;

    fn try_from(state: BootstrapState) -> Result<Bootstrap> {
        Bootstrap::new(state.resamples, state.confidence, state.seed)
    }
}

impl Default for Bootstrap {
    /// 1,000 resamples, 95 %, seed 0.
    fn default() -> Bootstrap {
        Bootstrap { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// The largest number of resamples: their draws and the values of a figure stay affordable.
    pub const MOST_RESAMPLES: usize = 100_000;

    /// Creates a bootstrap of `resamples` resamples and intervals that hold the figure with probability `confidence`.
    ///
    /// # Errors
    /// [`MetricError::Resamples`] out of `1..=100_000`, [`MetricError::Confidence`] outside of `0..1`.
    ///
    /// ```
    /// use lrc_metrics::Bootstrap;
    /// assert!(Bootstrap::new(200, 0.9, 7).is_ok());
    /// let error = Bootstrap::new(0, 0.9, 7).unwrap_err().to_string();
    /// assert_eq!(error, "number of resamples is 0, allowed are 1..=100000");
    /// ```
    pub fn new(resamples: usize, confidence: f64, seed: u64) -> Result<Bootstrap> {
        if resamples == 0 || resamples > Bootstrap::MOST_RESAMPLES {
            return Err(MetricError::Resamples { resamples, limit: Bootstrap::MOST_RESAMPLES });
        }
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(MetricError::Confidence { confidence });
        }
        Ok(Bootstrap { resamples, confidence, seed })
    }

    /// Number of resamples.
    pub(super) fn resamples(&self) -> usize {
        self.resamples
    }

    /// How often a resample draws each of `rows` rows.
    pub(super) fn draws(&self, resample: usize, rows: usize) -> Vec<u32> {
        let mut draws = vec![0; rows];
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(resample as u64);
        (0..rows).for_each(|_| draws[random.random_range(0..rows)] += 1);
        draws
    }

    /// The draws of all resamples, `[rows x resamples]`.
    pub(super) fn weights(&self, rows: usize) -> Array2<f64> {
        let mut weights = Array2::zeros((rows, self.resamples));
        for (resample, mut weights) in weights.axis_iter_mut(Axis(1)).enumerate() {
            let draws = self.draws(resample, rows).into_iter().map(f64::from);
            weights.iter_mut().zip(draws).for_each(|(weight, draws)| *weight = draws);
        }
        weights
    }

    /// The basic interval of a figure from its values in resamples, NaN where a resample does not have it.
    ///
    /// Reorders the values.
    pub(super) fn interval(&self, figure: f64, resampled: &mut [f64]) -> (f64, f64) {
        let mut present = 0;
        for at in 0..resampled.len() {
            if !resampled[at].is_nan() {
                resampled.swap(present, at);
                present += 1;
            }
        }
        let values = &mut resampled[..present];
        let alike = values.iter().all(|value| *value == values[0]);
        if alike && present < resampled.len() {
            return (f64::NAN, f64::NAN);
        }
        let tail = (1.0 - self.confidence) / 2.0;
        let mut bound = |share| 2.0 * figure - quantile(&mut resampled[..present], share);
        (bound(1.0 - tail), bound(tail))
    }
}

/// The quantile of some values, linear between order statistics; reorders them.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "floor of a number in 0..len")]
fn quantile(values: &mut [f64], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let (_, &mut below, rest) = values.select_nth_unstable_by(place.floor() as usize, f64::total_cmp);
    let above = rest.iter().copied().reduce(f64::min).unwrap_or(below);
    below + (place - place.floor()) * (above - below)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_by_hand() {
        assert_eq!(quantile(&mut [4.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&mut [2.0, 4.0, 1.0], 0.75), 3.0);
        assert_eq!(quantile(&mut [1.0, 4.0, 2.0], 1.0), 4.0);
        assert_eq!(quantile(&mut [5.0], 0.3), 5.0);
    }

    #[test]
    fn bad_arguments_say_why() {
        let message = |confidence| Bootstrap::new(10, confidence, 0).unwrap_err().to_string();
        assert_eq!(message(1.0), "confidence is 1, it must be between 0 and 1");
        assert_eq!(message(f64::NAN), "confidence is NaN, it must be between 0 and 1");
    }

    #[test]
    fn what_one_sequence_carries_has_no_interval() {
        let bootstrap = Bootstrap::default();
        let none = |(low, high): (f64, f64)| low.is_nan() && high.is_nan();
        assert!(none(bootstrap.interval(5.0, &mut [f64::NAN, 5.0, f64::NAN, 5.0])));
        assert!(none(bootstrap.interval(5.0, &mut [f64::NAN; 3])));
        assert_eq!(bootstrap.interval(5.0, &mut [5.0; 3]), (5.0, 5.0));
        let (low, high) = bootstrap.interval(5.0, &mut [4.0, f64::NAN, 6.0]);
        assert!((low - 4.05).abs() < 1e-12 && (high - 5.95).abs() < 1e-12);
    }

    #[test]
    fn settings_are_checked_when_they_are_read() {
        let text = serde_json::to_string(&Bootstrap::default()).unwrap();
        assert_eq!(serde_json::from_str::<Bootstrap>(&text).unwrap(), Bootstrap::default());
        let error =
            |old: &str, new: &str| serde_json::from_str::<Bootstrap>(&text.replace(old, new)).unwrap_err().to_string();
        assert_eq!(error("0.95", "7.0"), "confidence is 7, it must be between 0 and 1");
        assert_eq!(error("1000", "0"), "number of resamples is 0, allowed are 1..=100000");
        assert_eq!(error("1000", "100001"), "number of resamples is 100001, allowed are 1..=100000");
    }

    proptest! {
        /// Against sorting.
        #[test]
        fn bounds_are_quantiles(values in proptest::collection::vec(-9i32..9, 1..60), figure in -9i32..9) {
            let mut sorted: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
            let mut resampled = sorted.clone();
            sorted.sort_by(f64::total_cmp);
            let at = |share: f64| {
                let place = share * (sorted.len() - 1) as f64;
                let at = |place: f64| (0..).zip(&sorted).find(|(at, _)| f64::from(*at) == place).map(|(_, &value)| value);
                let (below, above) = (at(place.floor()).unwrap(), at(place.ceil()).unwrap());
                below + (place - place.floor()) * (above - below)
            };
            let bootstrap = Bootstrap::new(1, 0.8, 0).unwrap();
            let (low, high) = bootstrap.interval(figure.into(), &mut resampled);
            prop_assert!((low - (2.0 * f64::from(figure) - at(0.9))).abs() < 1e-12);
            prop_assert!((high - (2.0 * f64::from(figure) - at(0.1))).abs() < 1e-12);
        }
    }

    #[test]
    fn every_resample_draws_as_many_rows_as_there_are() {
        let bootstrap = Bootstrap::new(50, 0.9, 3).unwrap();
        let weights = bootstrap.weights(7);
        assert!(weights.sum_axis(Axis(0)).iter().all(|&drawn| drawn == 7.0));
        assert_eq!(weights.column(4).to_vec(), bootstrap.draws(4, 7).iter().map(|&n| f64::from(n)).collect::<Vec<_>>());
    }
}
