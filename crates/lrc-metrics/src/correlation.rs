//! Correlations between what was measured.

use expert_cache::curve::CurvePolicy;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{
    domains::{DomainLoad, DomainSrp},
    experts::LayerLoad,
    srp::SrpReport,
    trace::{MetricsReport, matrix},
};

/// Pearson correlation of two series.
///
/// `None` for fewer than two points, for a constant series and for values that are not finite.
///
/// # Formula
/// `sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 * sum (y - mean y)^2)`
///
/// # Panics
/// If the series differ in length.
///
/// ```
/// use lrc_metrics::pearson;
/// assert_eq!(pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]), Some(1.0));
/// // Deviations -1, 0, 1 and -1, 2, -1: their products cancel.
/// assert_eq!(pearson(&[1.0, 2.0, 3.0], &[0.0, 3.0, 0.0]), Some(0.0));
/// assert_eq!(pearson(&[1.0, 2.0], &[5.0, 5.0]), None);
/// ```
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "series of different lengths");
    // Exactly: the mean of equal numbers need not be that number.
    let constant = |series: &[f64]| series.iter().all(|value| *value == series[0]);
    if constant(x) || constant(y) {
        return None;
    }
    let mean = |series: &[f64]| series.iter().sum::<f64>() / series.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - mean_x, y - mean_y);
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    // The product of the squares rounds less, their roots reach further.
    let product = xx * yy;
    let spread = if product.is_normal() { product.sqrt() } else { xx.sqrt() * yy.sqrt() };
    let correlation = xy / spread;
    correlation.is_finite().then(|| correlation.clamp(-1.0, 1.0))
}

/// Pearson correlation of two figures over experts, layers, models or anything else that has both.
///
/// Items without one of the figures are left out.
///
/// # References
/// arXiv 2505.16056, section 3 (SRP with specialization over experts; SRP with SCH, SCH with LRU and LFU over models).
///
/// ```
/// use lrc_metrics::{CurvePolicy, MetricsReport, correlate};
/// /// SRP beside the hit rate of a look-ahead cache of twice the experts of a token, over models.
/// fn srp_with_sch(models: &[MetricsReport]) -> Option<f64> {
///     let srp = |model: &MetricsReport| Some(model.model.srp.get(&16)?.srp);
///     correlate(models, srp, |model| model.hit_rate(CurvePolicy::LookAhead { window: 16 }, 2 * model.top_k))
/// }
/// # assert_eq!(srp_with_sch(&[]), None);
/// // The third point has no y.
/// let points = [(1.0, Some(3.0)), (2.0, Some(1.0)), (7.0, None)];
/// assert_eq!(correlate(&points, |point| Some(point.0), |point| point.1), Some(-1.0));
/// ```
pub fn correlate<T>(items: &[T], x: impl Fn(&T) -> Option<f64>, y: impl Fn(&T) -> Option<f64>) -> Option<f64> {
    let (x, y): (Vec<f64>, Vec<f64>) = items.iter().filter_map(|item| x(item).zip(y(item))).unzip();
    pearson(&x, &y)
}

/// Correlation of every two rows of a matrix, `[rows x rows]`; NaN where [`pearson`] has no value.
///
/// ```
/// use ndarray::array;
/// let matrix = lrc_metrics::correlation_matrix(&array![[1.0, 2.0], [5.0, 3.0], [4.0, 4.0]]);
/// assert_eq!(matrix[[0, 1]], -1.0);
/// assert!(matrix[[0, 2]].is_nan());
/// ```
pub fn correlation_matrix(rows: &Array2<f64>) -> Array2<f64> {
    let series: Vec<Vec<f64>> = rows.rows().into_iter().map(|row| row.to_vec()).collect();
    Array2::from_shape_fn((series.len(), series.len()), |(i, j)| pearson(&series[i], &series[j]).unwrap_or(f64::NAN))
}

impl SrpReport {
    /// Correlation of SRP with specialization over all experts of all layers that have one.
    ///
    /// `specialization` is by layer and expert, as [`DomainLoad::specialization`] gives it, for the layers of the report.
    ///
    /// # References
    /// arXiv 2505.16056, section 3.
    ///
    /// # Panics
    /// If layers or experts differ in number.
    pub fn correlation_with(&self, specialization: &[Vec<Option<f64>>]) -> Option<f64> {
        assert_eq!(self.layers.len(), specialization.len(), "specialization of other layers");
        let layers = self.layers.iter().zip(specialization);
        let experts: Vec<(f64, Option<f64>)> = layers
            .flat_map(|(layer, specialization)| {
                assert_eq!(layer.experts.len(), specialization.len(), "specialization of other experts");
                layer.experts.iter().map(|expert| expert.srp).zip(specialization.iter().copied())
            })
            .collect();
        correlate(&experts, |expert| Some(expert.0), |expert| expert.1)
    }
}

/// Correlations over models between what SRP and caches say.
///
/// # References
/// arXiv 2505.16056, section 3.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCorrelations {
    /// SRP with SCH.
    pub srp_sch: Option<f64>,
    /// SCH with LRU.
    pub sch_lru: Option<f64>,
    /// SCH with LFU.
    pub sch_lfu: Option<f64>,
}

impl ModelCorrelations {
    /// Correlates models at one window length and at `rho` times as many slots a layer as a token has experts.
    ///
    /// A model that was not measured at the window length, or has fewer experts than that, is left out; a correlation is
    /// `None` where [`pearson`] has no value.
    ///
    /// ```
    /// use lrc_metrics::{MetricsOptions, ModelCorrelations, TraceMetrics, accumulate};
    /// use moe_trace::{Geometry, SequenceStream, Synthetic, SyntheticOptions};
    ///
    /// let options = MetricsOptions { windows: vec![4], ..MetricsOptions::default() };
    /// let mut models = Vec::new();
    /// for experts in [6, 8, 12] {
    ///     let geometry = Geometry::decoder(1, experts, 2)?;
    ///     let trace = Synthetic::new(geometry.clone(), SyntheticOptions::default()).collect()?;
    ///     models.push(accumulate(&trace, &TraceMetrics::new(&geometry, &options)?, &|_done| {})?.finish()?);
    /// }
    /// // The more experts, the harder for both.
    /// let found = ModelCorrelations::of(&models, 4, 2);
    /// assert!(found.srp_sch > Some(0.9) && found.sch_lru > Some(0.9));
    /// assert_eq!(ModelCorrelations::of(&models, 5, 2).srp_sch, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of(models: &[MetricsReport], window: usize, rho: usize) -> ModelCorrelations {
        let rate = |policy, model: &MetricsReport| model.hit_rate(policy, rho.saturating_mul(model.top_k));
        let of_sch = |model: &MetricsReport| rate(CurvePolicy::LookAhead { window }, model);
        ModelCorrelations {
            srp_sch: correlate(models, |model| Some(model.model.srp.get(&window)?.srp), of_sch),
            sch_lru: correlate(models, of_sch, |model| rate(CurvePolicy::Lru, model)),
            sch_lfu: correlate(models, of_sch, |model| rate(CurvePolicy::Lfu, model)),
        }
    }
}

impl DomainSrp {
    /// Correlation of the experts' SRP between every two domains, `[domains x domains]`; NaN where there is none.
    ///
    /// Layers without an access are left out: their zeros in every domain would be taken for agreement.
    ///
    /// # References
    /// arXiv 2505.16056, section 3.
    pub fn correlation(&self) -> Array2<f64> {
        let used = |report: &SrpReport| -> Vec<f64> {
            let layers = self.all.layers.iter().zip(&report.layers).filter(|(all, _)| all.is_used());
            layers.flat_map(|(_, layer)| layer.experts.iter().map(|expert| expert.srp)).collect()
        };
        let absent = vec![f64::NAN; used(&self.all).len()];
        let row = |domain: &Option<SrpReport>| domain.as_ref().map_or_else(|| absent.clone(), used);
        correlation_matrix(&matrix(&self.domains.iter().map(row).collect::<Vec<_>>()))
    }
}

impl DomainLoad {
    /// Correlation of the experts' activation rates between every two domains, `[domains x domains]`; NaN where there
    /// is none.
    ///
    /// Layers without an access are left out: their zeros in every domain would be taken for agreement.
    ///
    /// # References
    /// arXiv 2505.16056, section 3.
    pub fn correlation(&self) -> Array2<f64> {
        let rates = |layers: &Vec<LayerLoad>| {
            let used = self.all.iter().zip(layers).filter(|(all, _)| all.is_used());
            used.flat_map(|(_, layer)| layer.activation_rates.iter().copied()).collect::<Vec<_>>()
        };
        correlation_matrix(&matrix(&self.domains.iter().map(rates).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::srp::{LayerSrp, SrpValue};

    proptest! {
        /// `(n sum xy - sum x sum y) / sqrt(...)`, and independence of scale and offset.
        #[test]
        fn pearson_equals_the_raw_sums(points in proptest::collection::vec((-9i32..9, -9i32..9), 0..20)) {
            let (x, y): (Vec<f64>, Vec<f64>) = points.iter().map(|&(x, y)| (f64::from(x), f64::from(y))).unzip();
            let sum = |of: &dyn Fn(i32, i32) -> i32| f64::from(points.iter().map(|&(x, y)| of(x, y)).sum::<i32>());
            let n = points.len() as f64;
            let (sx, sy) = (sum(&|x, _| x), sum(&|_, y| y));
            let spread = (n * sum(&|x, _| x * x) - sx * sx) * (n * sum(&|_, y| y * y) - sy * sy);
            let found = pearson(&x, &y);
            prop_assert_eq!(found.is_some(), spread > 0.0);
            if let Some(found) = found {
                prop_assert!((found - (n * sum(&|x, y| x * y) - sx * sy) / spread.sqrt()).abs() < 1e-9);
                let moved: Vec<f64> = x.iter().map(|x| 3.0 - 2.0 * x).collect();
                prop_assert!((pearson(&moved, &y).unwrap() + found).abs() < 1e-9);
            }
        }
    }

    proptest! {
        #[test]
        fn constants_have_no_correlation(tenths in -30i32..30, others in proptest::collection::vec(-9i32..9, 0..40)) {
            let constant = vec![f64::from(tenths) / 10.0; others.len()];
            let others: Vec<f64> = others.into_iter().map(f64::from).collect();
            prop_assert_eq!(pearson(&constant, &others), None);
            prop_assert_eq!(pearson(&others, &constant), None);
            prop_assert_eq!(pearson(&constant, &constant), None);
        }

        #[test]
        fn scale_does_not_matter(exponent in -150i32..150) {
            let (x, y) = ([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]);
            let scale = 10f64.powi(exponent);
            let expected = pearson(&x, &y).unwrap();
            let found = pearson(&x.map(|x| x * scale), &y.map(|y| y * scale)).unwrap();
            prop_assert!((found - expected).abs() < 1e-9);
            prop_assert!((pearson(&x.map(|x| x * scale), &x).unwrap() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn values_that_are_not_finite_have_no_correlation() {
        assert_eq!(pearson(&[1.0, f64::NAN], &[1.0, 2.0]), None);
        assert_eq!(pearson(&[1.0, f64::INFINITY], &[1.0, 2.0]), None);
        assert_eq!(pearson(&[1.0], &[1.0]), None);
    }

    fn report(srp: &[f64]) -> SrpReport {
        let value = |&srp: &f64| SrpValue { srp, rho: 1.0, threshold: 1, activation_rate: 0.1 };
        let experts = srp.iter().map(value).collect();
        let layers = vec![LayerSrp { layer: 0, value: value(&0.5), experts }];
        let unused_layers = Vec::new();
        SrpReport { window: 4, windows: 1, unused_layers, model: value(&0.5), encoder: None, decoder: None, layers }
    }

    #[test]
    fn srp_and_specialization_are_paired_by_expert() {
        let specialization = [vec![Some(3.0), None, Some(2.0), Some(1.0)]];
        assert_eq!(report(&[0.1, 0.9, 0.2, 0.3]).correlation_with(&specialization), Some(-1.0));
    }

    #[test]
    fn domains_correlate_by_expert() {
        let domains = vec![Some(report(&[0.1, 0.2, 0.3])), None, Some(report(&[0.6, 0.4, 0.2]))];
        let matrix = DomainSrp { all: report(&[0.1, 0.2, 0.3]), domains }.correlation();
        assert!((matrix[[0, 2]] + 1.0).abs() < 1e-12 && (matrix[[2, 2]] - 1.0).abs() < 1e-12);
        assert!(matrix[[0, 1]].is_nan() && matrix[[1, 1]].is_nan());

        let load = |rates: &[f64]| {
            vec![LayerLoad {
                activation_rates: rates.to_vec(),
                deviation_percent: 0.0,
                max_load: 1.0,
                entropy: 1.0,
                dead_experts: 0,
                utilization: 1.0,
            }]
        };
        let domains = vec![load(&[0.1, 0.2]), load(&[0.4, 0.3])];
        assert_eq!(DomainLoad { all: load(&[0.2, 0.2]), domains }.correlation()[[0, 1]], -1.0);
    }
}
