//! Confidence intervals by resampling sequences.

use ndarray::{Array1, Array2, Axis};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{MetricError, Result, sequence_rows::SequenceRows};

/// Resamples of one matrix product.
const BLOCK: usize = 32;

/// How intervals are bootstrapped: sequences are drawn with replacement, as many as there are.
///
/// # Formula
/// The basic interval `(2 * theta - q_hi, 2 * theta - q_lo)`, with `theta` the figure of all sequences and `q_lo`, `q_hi`
/// the quantiles of the figure over resamples (linear between order statistics), 2.5 % and 97.5 % by default.
///
/// A resample that does not have a figure, such as the SRP of a window longer than each of its sequences, is left out for
/// that figure; where no resample has it, the interval has no width. A figure that the trace does not have is 0.
///
/// Resample `b` draws from stream `b` of a `ChaCha8` generator, so the result does not depend on the number of threads.
///
/// # Complexity
/// What is resampled is the part of each sequence in the sums that the figures are made of, not the trace: one matrix
/// product `[resamples x sequences] * [sequences x columns]`.
///
/// # References
/// Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    resamples: usize,
    confidence: f64,
    seed: u64,
}

impl Default for Bootstrap {
    /// 1,000 resamples, 95 %, seed 0.
    fn default() -> Bootstrap {
        Bootstrap { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// Creates a bootstrap of `resamples` resamples and intervals that hold the figure with probability `confidence`.
    ///
    /// # Errors
    /// [`MetricError::Resamples`] for none, [`MetricError::Confidence`] outside of `0..1`.
    ///
    /// ```
    /// use lrc_metrics::Bootstrap;
    /// assert!(Bootstrap::new(200, 0.9, 7).is_ok());
    /// assert_eq!(Bootstrap::new(0, 0.9, 7).unwrap_err().to_string(), "number of resamples is 0, it must be at least 1");
    /// ```
    pub fn new(resamples: usize, confidence: f64, seed: u64) -> Result<Bootstrap> {
        if resamples == 0 {
            return Err(MetricError::Resamples { resamples });
        }
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(MetricError::Confidence { confidence });
        }
        Ok(Bootstrap { resamples, confidence, seed })
    }

    /// The intervals of the figures that `figures` computes from the sums of all columns, NaN for a figure that these
    /// sums do not have.
    pub(crate) fn intervals(
        &self,
        rows: &SequenceRows,
        figures: impl Fn(&[f64]) -> Vec<f64> + Sync,
    ) -> Result<Vec<(f64, f64)>> {
        if rows.sequences() < 2 {
            return Err(MetricError::TooFewSequences { sequences: rows.sequences() });
        }
        let sorted = rows.sorted();
        let columns = sorted[0].len();
        // Many columns are 0 everywhere, such as windows full of an expert that is rarely used.
        let used: Vec<usize> = (0..columns).filter(|&column| sorted.iter().any(|row| row[column] > 0)).collect();
        let figures = |sums: &[f64]| {
            let mut all = vec![0.0; columns];
            used.iter().zip(sums).for_each(|(&column, &sum)| all[column] = sum);
            figures(&all)
        };
        // Entries and sums are whole numbers below 2^53: exact, in whatever order they are added.
        let statistics = Array2::from_shape_fn((sorted.len(), used.len()), |(row, at)| sorted[row][used[at]] as f64);
        let all = figures(&Array1::ones(sorted.len()).dot(&statistics).to_vec());
        let block = |first: usize| -> Vec<Vec<f64>> {
            let weights = self.weights(first..self.resamples.min(first + BLOCK), sorted.len());
            weights.dot(&statistics).rows().into_iter().map(|sums| figures(&sums.to_vec())).collect()
        };
        let starts: Vec<usize> = (0..self.resamples).step_by(BLOCK).collect();
        let resampled: Vec<Vec<f64>> = starts.into_par_iter().flat_map_iter(block).collect();
        let interval = |(figure, theta): (usize, f64)| {
            let theta = if theta.is_nan() { 0.0 } else { theta };
            let values = resampled.iter().map(|figures| figures[figure]);
            let mut values: Vec<f64> = values.filter(|value| !value.is_nan()).collect();
            if values.is_empty() {
                return (theta, theta);
            }
            values.sort_unstable_by(f64::total_cmp);
            let tail = (1.0 - self.confidence) / 2.0;
            (2.0 * theta - quantile(&values, 1.0 - tail), 2.0 * theta - quantile(&values, tail))
        };
        Ok(all.into_par_iter().enumerate().map(interval).collect())
    }

    /// How often each of `rows` rows is drawn by some resamples, `[resamples x rows]`.
    fn weights(&self, resamples: std::ops::Range<usize>, rows: usize) -> Array2<f64> {
        let mut weights = Array2::zeros((resamples.len(), rows));
        for (resample, mut weights) in resamples.zip(weights.axis_iter_mut(Axis(0))) {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(resample as u64);
            for _ in 0..rows {
                weights[random.random_range(0..rows)] += 1.0;
            }
        }
        weights
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
    use proptest::prelude::*;
    use rand::Rng as _;

    use super::*;

    #[test]
    fn quantiles_by_hand() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), 4.0);
        assert_eq!(quantile(&[5.0], 0.3), 5.0);
    }

    #[test]
    fn bad_arguments_say_why() {
        let message = |confidence| Bootstrap::new(10, confidence, 0).unwrap_err().to_string();
        assert_eq!(message(1.0), "confidence is 1, it must be between 0 and 1");
        assert_eq!(message(f64::NAN), "confidence is NaN, it must be between 0 and 1");
        let mut rows = SequenceRows::default();
        rows.push(vec![1]);
        let error = Bootstrap::default().intervals(&rows, |sums| sums.to_vec()).unwrap_err().to_string();
        assert_eq!(error, "a bootstrap needs at least 2 sequences, there are 1");
    }

    #[test]
    fn resamples_without_the_figure_are_left_out() {
        let mut rows = SequenceRows::default();
        [[0, 0, 1], [1, 5, 1]].into_iter().for_each(|row| rows.push(row.to_vec()));
        // A quarter of the resamples draws the first row twice; the last figure exists nowhere.
        let figures = |sums: &[f64]| vec![sums[1] / sums[0], f64::NAN];
        assert_eq!(Bootstrap::default().intervals(&rows, figures).unwrap(), [(5.0, 5.0), (0.0, 0.0)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// The mean of one column, by drawing sequence after sequence.
        #[test]
        fn intervals_equal_resampling_sequences(
            values in proptest::collection::vec(0u64..100, 2..20), resamples in 1usize..80, seed in 0u64..9,
        ) {
            let mut rows = SequenceRows::default();
            values.iter().for_each(|&value| rows.push(vec![1, value]));
            let bootstrap = Bootstrap::new(resamples, 0.8, seed).unwrap();
            let found = bootstrap.intervals(&rows, |sums| vec![sums[1] / sums[0]]).unwrap()[0];

            let mut sorted = values.clone();
            sorted.sort_unstable();
            let mut means: Vec<f64> = (0..resamples).map(|resample| {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(resample as u64);
                let sum: u64 = (0..sorted.len()).map(|_| sorted[random.random_range(0..sorted.len())]).sum();
                sum as f64 / sorted.len() as f64
            }).collect();
            means.sort_by(f64::total_cmp);
            let mean = values.iter().sum::<u64>() as f64 / values.len() as f64;
            prop_assert!((found.0 - (2.0 * mean - quantile(&means, 0.9))).abs() < 1e-9);
            prop_assert!((found.1 - (2.0 * mean - quantile(&means, 0.1))).abs() < 1e-9);
        }
    }

    /// The interval of a mean is as wide as the standard error says: 100 values of deviation 28.9.
    #[test]
    fn the_width_is_that_of_the_standard_error() {
        let mut rows = SequenceRows::default();
        (0..100).for_each(|value| rows.push(vec![1, value]));
        let (low, high) = Bootstrap::default().intervals(&rows, |sums| vec![sums[1] / sums[0]]).unwrap()[0];
        assert!(low < 49.5 && 49.5 < high);
        assert!(((high - low) / (2.0 * 1.96 * 2.89) - 1.0).abs() < 0.1, "{low} {high}");
    }
}
