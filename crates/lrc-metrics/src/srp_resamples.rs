//! SRP of many resamples at once.

use ndarray::ArrayView2;

/// The figures of an expert or a group of experts by resample, NaN where a resample has no window.
#[derive(Clone, Debug)]
pub(crate) struct SrpResamples {
    pub(crate) srp: Vec<f64>,
    pub(crate) rho: Vec<f64>,
    pub(crate) activation_rate: Vec<f64>,
}

/// Chooses the best threshold of each resample.
///
/// `counts[f - 1]` are the windows with `f` uses in each resample, `[at most window x resamples]`, and `windows` all
/// windows of the expert or group. The definition is [`SrpValue::from_histogram`](crate::SrpValue::from_histogram);
/// resamples lie beside each other, so that the compiler takes several in one instruction. Threshold 0 is left out: it
/// never beats 1, and where it is as good it selects as much.
pub(crate) fn srp_resamples<T: Copy + Into<f64>>(
    counts: &ArrayView2<'_, T>,
    window: usize,
    windows: &[f64],
) -> SrpResamples {
    let length = window as f64;
    let mut uses = vec![0.0; windows.len()];
    for (number, row) in (1u32..).zip(counts.rows()) {
        let number = f64::from(number);
        uses.iter_mut().zip(row).for_each(|(uses, &windows)| *uses += number * windows.into());
    }
    // Counted from the largest threshold down. All sums are whole, and quotients are compared as they are rounded: equal
    // fractions are equal.
    let mut selected = vec![0.0; windows.len()];
    let mut right = vec![0.0; windows.len()];
    let mut best = vec![0.0; windows.len()];
    let mut best_selected = vec![0.0; windows.len()];
    for (threshold, row) in counts.rows().into_iter().enumerate().rev() {
        let threshold = (threshold + 1) as f64;
        let lanes =
            selected.iter_mut().zip(&mut right).zip(best.iter_mut().zip(&mut best_selected)).zip(&uses).zip(row);
        for ((((selected, right), (best, best_selected)), &uses), &windows) in lanes {
            let windows: f64 = windows.into();
            *selected += windows;
            *right += threshold * windows;
            let quotient = *right / (length * *selected + uses).max(1.0);
            // More is selected the lower the threshold, so `>=` keeps the smallest of equals.
            *best_selected = if quotient >= *best { *selected } else { *best_selected };
            *best = best.max(quotient);
        }
    }
    let of = |at: usize, figure: f64| if windows[at] > 0.0 { figure } else { f64::NAN };
    let all = 0..windows.len();
    SrpResamples {
        srp: all.clone().map(|at| of(at, 2.0 * best[at])).collect(),
        rho: all.clone().map(|at| of(at, length * best_selected[at] / uses[at].max(1.0))).collect(),
        activation_rate: all.map(|at| of(at, uses[at] / (length * windows[at]))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use proptest::prelude::*;

    use super::*;
    use crate::SrpValue;

    proptest! {
        #[test]
        fn resamples_equal_histograms(
            histograms in proptest::collection::vec(proptest::collection::vec(0u16..9, 6), 1..9), experts in 1u64..4,
        ) {
            let counts = Array2::from_shape_fn((5, histograms.len()), |(uses, at)| f32::from(histograms[at][uses + 1]));
            let windows = |histogram: &Vec<u16>| histogram.iter().map(|&count| u64::from(count)).sum::<u64>() * experts;
            let all: Vec<f64> = histograms.iter().map(|histogram| windows(histogram) as f64).collect();
            let found = srp_resamples(&counts.view(), 5, &all);
            for (at, histogram) in histograms.iter().enumerate() {
                let mut counts: Vec<u64> = histogram.iter().map(|&count| u64::from(count)).collect();
                counts[0] = windows(histogram) - counts[1..].iter().sum::<u64>();
                let expected = SrpValue::from_histogram(&counts);
                if all[at] == 0.0 {
                    prop_assert!(found.srp[at].is_nan() && found.rho[at].is_nan() && found.activation_rate[at].is_nan());
                    continue;
                }
                prop_assert!((found.srp[at] - expected.srp).abs() < 1e-12);
                prop_assert!((found.rho[at] - expected.rho).abs() < 1e-12);
                prop_assert!((found.activation_rate[at] - expected.activation_rate).abs() < 1e-12);
            }
        }
    }
}
