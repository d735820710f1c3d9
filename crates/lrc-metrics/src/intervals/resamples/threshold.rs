//! The best thresholds of many resamples at once.

/// The figures of an expert or a group of experts by resample, NaN where a resample has no window.
#[derive(Clone, Debug, Default)]
pub(super) struct ThresholdResamples {
    pub(super) srp: Vec<f64>,
    pub(super) rho: Vec<f64>,
    pub(super) activation_rate: Vec<f64>,
}

/// Chooses the best threshold of each resample, and adds the figures.
///
/// `at_least` are the windows with `a` uses or more in each resample, `[at most window x resamples]` from `a = 1`, and
/// `windows` all windows of the expert or group.
///
/// # Formula
/// That of [`Srp`](crate::Srp), where
///
/// ```text
/// sum_{u>=a} u = a * at_least[a] + sum_{b>a} at_least[b]
/// ```
///
/// Threshold 0 is left out: it never beats 1, and where it is as good it selects as much. Resamples lie beside each other,
/// so that the compiler takes several in one instruction, of whatever the processor has.
pub(super) fn threshold_resamples<T: Copy + Into<f64>>(
    at_least: &[T],
    window: usize,
    windows: &[f64],
    figures: &mut ThresholdResamples,
) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || scan(at_least, window as f64, windows, figures),
    );
}

#[inline(always)]
fn scan<T: Copy + Into<f64>>(at_least: &[T], window: f64, windows: &[f64], figures: &mut ThresholdResamples) {
    let resamples = windows.len();
    let mut uses = vec![0.0; resamples];
    for row in at_least.chunks_exact(resamples) {
        uses.iter_mut().zip(row).for_each(|(uses, &windows)| *uses += windows.into());
    }
    // From the largest threshold down. All sums are whole, and quotients are compared as they are rounded: equal fractions
    // are equal.
    let mut above = vec![0.0; resamples];
    let mut best = vec![0.0; resamples];
    let mut best_selected = vec![0.0; resamples];
    for (threshold, row) in at_least.chunks_exact(resamples).enumerate().rev() {
        let threshold = (threshold + 1) as f64;
        let lanes = above.iter_mut().zip(best.iter_mut().zip(&mut best_selected)).zip(&uses).zip(row);
        for (((above, (best, best_selected)), &uses), &selected) in lanes {
            let selected: f64 = selected.into();
            let quotient = (threshold * selected + *above) / (window * selected + uses).max(1.0);
            *above += selected;
            // More is selected the lower the threshold, so `>=` keeps the smallest of equals.
            *best_selected = if quotient >= *best { selected } else { *best_selected };
            *best = best.max(quotient);
        }
    }
    let of = |at: usize, figure: f64| if windows[at] > 0.0 { figure } else { f64::NAN };
    let all = 0..resamples;
    figures.srp.extend(all.clone().map(|at| of(at, 2.0 * best[at])));
    figures.rho.extend(all.clone().map(|at| of(at, window * best_selected[at] / uses[at].max(1.0))));
    figures.activation_rate.extend(all.map(|at| of(at, uses[at] / (window * windows[at]))));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::srp::SrpValue;

    proptest! {
        #[test]
        fn resamples_equal_histograms(
            histograms in proptest::collection::vec(proptest::collection::vec(0u16..9, 6), 1..9), experts in 1u64..4,
        ) {
            let at_least: Vec<f32> = (1..6)
                .flat_map(|uses| histograms.iter().map(move |histogram| histogram[uses..].iter().sum::<u16>().into()))
                .collect();
            let windows = |histogram: &Vec<u16>| histogram.iter().map(|&count| u64::from(count)).sum::<u64>() * experts;
            let all: Vec<f64> = histograms.iter().map(|histogram| windows(histogram) as f64).collect();
            let mut found = ThresholdResamples::default();
            threshold_resamples(&at_least, 5, &all, &mut found);
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
