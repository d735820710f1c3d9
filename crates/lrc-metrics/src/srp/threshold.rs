//! The best threshold of a histogram of window counts.

use serde::{Deserialize, Serialize};

/// Segment routing best performance of an expert or a group of experts at one window length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SrpValue {
    /// The best F1 of predicting, window by window, whether all of its tokens use the expert; in `0..=1`.
    pub srp: f64,
    /// Segment routing size ratio: experts selected for a token at the best threshold, relative to experts used. 0 if
    /// no expert is used.
    pub rho: f64,
    /// The best threshold `a*`: a window selects an expert that at least `a*` of its tokens use.
    pub threshold: usize,
    /// Share of (window, token) pairs that use the expert, each start of a window counted.
    pub activation_rate: f64,
}

impl SrpValue {
    /// The SRP that an expert or a group reaches at this activation rate whatever the routing: [`srp_lower_bound`].
    pub fn lower_bound(&self) -> f64 {
        srp_lower_bound(self.activation_rate)
    }

    /// Chooses the best threshold for a histogram: `counts[u]` windows have `u` tokens that use the expert.
    ///
    /// A group of experts has the sum of their histograms, and so one threshold for all.
    ///
    /// # Formula
    /// That of [`Srp`](crate::Srp), where `counts[u]` pairs of a window and an expert have `u` uses and
    /// `m = counts.len() - 1`.
    ///
    /// Candidates are compared exactly, as fractions. If no window uses the expert all is 0.
    ///
    /// # Complexity
    /// `O(m)`.
    ///
    /// # References
    /// arXiv 2505.16056, section 2.2 and appendix C.1.
    ///
    /// ```
    /// use lrc_metrics::SrpValue;
    /// // Windows of 2 tokens: five without a use, one with one, three with two. Sum u = 7.
    /// let value = SrpValue::from_histogram(&[5, 1, 3]);
    /// // F1(0) = 14/25, F1(1) = 14/15, F1(2) = 12/13: one use is enough.
    /// assert_eq!((value.srp, value.threshold), (14.0 / 15.0, 1));
    /// assert_eq!(value.rho, 8.0 / 7.0);
    /// assert_eq!(value.activation_rate, 7.0 / 18.0);
    /// ```
    ///
    /// # Panics
    /// If `counts` has fewer than two entries, or `m` times the number of windows is above `2^62`.
    pub fn from_histogram(counts: &[u64]) -> SrpValue {
        assert!(counts.len() >= 2, "a window has at least one token");
        let window = counts.len() as u128 - 1;
        let pairs = (0u128..).zip(counts);
        let all_windows: u128 = counts.iter().map(|&windows| u128::from(windows)).sum();
        assert!(all_windows <= (1 << 62) / window, "more windows than can be compared");
        let all_uses: u128 = pairs.map(|(uses, &windows)| uses * u128::from(windows)).sum();
        if all_uses == 0 {
            return SrpValue { srp: 0.0, rho: 0.0, threshold: 0, activation_rate: 0.0 };
        }
        // From the largest threshold down, so that `>=` keeps the smallest of equals.
        let (mut selected, mut right) = (0u128, 0u128);
        let mut best = Candidate { threshold: 0, selected: 0, right: 0, size: all_uses };
        for (threshold, &windows) in counts.iter().enumerate().rev() {
            selected += u128::from(windows);
            right += threshold as u128 * u128::from(windows);
            let size = window * selected + all_uses;
            if right * best.size >= best.right * size {
                best = Candidate { threshold, selected, right, size };
            }
        }
        SrpValue {
            srp: ratio(2 * best.right, best.size),
            rho: ratio(window * best.selected, all_uses),
            threshold: best.threshold,
            activation_rate: ratio(all_uses, window * all_windows),
        }
    }
}

/// F1 of selecting every expert for every window, which no SRP falls below.
///
/// # Formula
/// `2 x / (1 + x)` at activation rate `x`.
///
/// # References
/// arXiv 2505.16056, section 2.2.
///
/// ```
/// // One expert in four is active: all four are selected, precision 1/4, recall 1.
/// assert_eq!(lrc_metrics::srp_lower_bound(0.25), 0.4);
/// ```
pub fn srp_lower_bound(activation_rate: f64) -> f64 {
    2.0 * activation_rate / (1.0 + activation_rate)
}

/// A threshold with the sums that its F1 is made of: `F1 = 2 * right / size`.
struct Candidate {
    threshold: usize,
    selected: u128,
    right: u128,
    size: u128,
}

/// The quotient; each operand and the result are rounded to the nearest `f64`.
fn ratio(numerator: u128, denominator: u128) -> f64 {
    numerator as f64 / denominator as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_smallest_threshold() {
        // Windows of 3 tokens, sum u = 4: F1(1) = 8 / (9 + 4), F1(2) = 4 / (3 + 4). Nothing has count 0, so thresholds 0
        // and 1 select the same windows.
        let value = SrpValue::from_histogram(&[0, 2, 1, 0]);
        assert_eq!((value.threshold, value.srp), (0, 8.0 / 13.0));
        // A gap: counts 0 and 3 only, thresholds 1, 2 and 3 select the same windows.
        let value = SrpValue::from_histogram(&[4, 0, 0, 2]);
        assert_eq!((value.threshold, value.srp, value.rho), (1, 1.0, 1.0));
    }

    #[test]
    fn predicting_everything_gives_the_lower_bound() {
        // One window a use in each: F1(0) = F1(1) = 2x / (1 + x) with x = 1/4.
        let value = SrpValue::from_histogram(&[0, 7, 0, 0, 0]);
        assert_eq!((value.threshold, value.activation_rate, value.srp), (0, 0.25, 0.4));
    }

    #[test]
    fn an_unused_expert_has_no_srp() {
        assert_eq!(
            SrpValue::from_histogram(&[9, 0, 0]),
            SrpValue { srp: 0.0, rho: 0.0, threshold: 0, activation_rate: 0.0 }
        );
    }
}
