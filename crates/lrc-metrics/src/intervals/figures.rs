//! The figures of a report, whatever its shape.

use std::collections::BTreeMap;

use ndarray::Array2;

use crate::{
    correlation::ModelCorrelations,
    domains::{DomainLoad, DomainSrp, LayerAgreement, RoutingAgreement},
    experts::{ExpertVocabulary, LayerLoad},
    misses::{MissDecomposition, PrefetchDecomposition},
    srp::{LayerSrp, SrpReport, SrpValue, StartSrp},
    trace::{ExpertReport, LayerReport, MetricsReport, ModelReport, PoolReport},
};

/// A report whose real numbers can be read and replaced in a fixed order, so that each can have an interval.
///
/// Whole numbers, such as thresholds and dead experts, are no figures. Lists, options, tuples and maps of reports are
/// reports.
///
/// ```
/// use lrc_metrics::Figures;
/// // A figure that only one of two reports has is not a number where it is absent.
/// let (found, like) = (vec![Some(0.5), None], vec![Some(1.0), Some(2.0), None]);
/// let mut figures = Vec::new();
/// Figures::read(Some(&found), &like, &mut figures);
/// assert!(figures[0] == 0.5 && figures[1].is_nan() && figures.len() == 2);
/// ```
pub trait Figures: Clone {
    /// Appends the figures of `found` in the shape of `like`, NaN for those that only `like` has.
    fn read(found: Option<&Self>, like: &Self, figures: &mut Vec<f64>);

    /// Replaces every figure by the next one.
    fn write(&mut self, next: &mut dyn FnMut() -> f64);
}

impl Figures for f64 {
    fn read(found: Option<&f64>, _like: &f64, figures: &mut Vec<f64>) {
        figures.push(found.copied().unwrap_or(f64::NAN));
    }

    fn write(&mut self, next: &mut dyn FnMut() -> f64) {
        *self = next();
    }
}

impl<F: Figures> Figures for Option<F> {
    fn read(found: Option<&Option<F>>, like: &Option<F>, figures: &mut Vec<f64>) {
        if let Some(like) = like {
            F::read(found.and_then(Option::as_ref), like, figures);
        }
    }

    fn write(&mut self, next: &mut dyn FnMut() -> f64) {
        self.iter_mut().for_each(|figures| figures.write(next));
    }
}

impl<F: Figures> Figures for Vec<F> {
    fn read(found: Option<&Vec<F>>, like: &Vec<F>, figures: &mut Vec<f64>) {
        for (at, like) in like.iter().enumerate() {
            F::read(found.and_then(|found| found.get(at)), like, figures);
        }
    }

    fn write(&mut self, next: &mut dyn FnMut() -> f64) {
        self.iter_mut().for_each(|figures| figures.write(next));
    }
}

impl<K: Ord + Clone, F: Figures> Figures for BTreeMap<K, F> {
    fn read(found: Option<&BTreeMap<K, F>>, like: &BTreeMap<K, F>, figures: &mut Vec<f64>) {
        for (key, like) in like {
            F::read(found.and_then(|found| found.get(key)), like, figures);
        }
    }

    fn write(&mut self, next: &mut dyn FnMut() -> f64) {
        self.values_mut().for_each(|figures| figures.write(next));
    }
}

impl Figures for Array2<f64> {
    fn read(found: Option<&Array2<f64>>, like: &Array2<f64>, figures: &mut Vec<f64>) {
        figures.extend(like.indexed_iter().map(|(at, _)| found.and_then(|found| found.get(at)).unwrap_or(&f64::NAN)));
    }

    fn write(&mut self, next: &mut dyn FnMut() -> f64) {
        self.iter_mut().for_each(|figure| *figure = next());
    }
}

impl<A: Figures, B: Figures> Figures for (A, B) {
    fn read(found: Option<&(A, B)>, like: &(A, B), figures: &mut Vec<f64>) {
        A::read(found.map(|found| &found.0), &like.0, figures);
        B::read(found.map(|found| &found.1), &like.1, figures);
    }

    fn write(&mut self, next: &mut dyn FnMut() -> f64) {
        self.0.write(next);
        self.1.write(next);
    }
}

/// The figures of a struct are those of some of its fields.
macro_rules! figures {
    ($($type:ident { $($field:ident),+ })+) => {$(
        impl Figures for $type {
            fn read(found: Option<&$type>, like: &$type, figures: &mut Vec<f64>) {
                $(Figures::read(found.map(|found| &found.$field), &like.$field, figures);)+
            }

            fn write(&mut self, next: &mut dyn FnMut() -> f64) {
                $(self.$field.write(next);)+
            }
        }
    )+};
}

figures! {
    SrpValue { srp, rho, activation_rate }
    LayerSrp { value, experts }
    SrpReport { model, encoder, decoder, layers }
    StartSrp { report }
    DomainSrp { all, domains }
    LayerLoad { activation_rates, deviation_percent, max_load, entropy, utilization }
    DomainLoad { all, domains }
    ExpertVocabulary { specialization }
    RoutingAgreement { purity, top1, precision, coverage, nmi }
    LayerAgreement { router, shuffled, position, hash }
    MissDecomposition { compulsory, capacity, forced_loads, regret }
    PrefetchDecomposition { demand, covered, pollution }
    ModelCorrelations { srp_sch, sch_lru, sch_lfu }
    ExpertReport { srp }
    LayerReport { srp, experts, curves, load }
    ModelReport { srp, curves }
    PoolReport { curves }
    MetricsReport { model, encoder, decoder, layers, pool }
}
