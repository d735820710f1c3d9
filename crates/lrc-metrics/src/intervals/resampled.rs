//! Confidence intervals of anything that is accumulated.

use moe_trace::Sequence;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{bootstrap::Bootstrap, figures::Figures, groups::Groups, nan, sequence_key::sequence_key};
use crate::{
    accumulate::{Accumulator, Merge},
    error::{MetricError, Result},
};

/// Sequences or groups of sequences that are resampled.
const GROUPS: usize = 96;

/// A report with the bounds of the interval of each of its figures.
///
/// A bound that does not exist is NaN. JSON has no NaN: there it is `null`, which is read as NaN again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "R: Deserialize<'de>"))]
pub struct Intervals<R> {
    /// What was measured.
    pub value: R,
    /// The lower bound of every real number of it; whole numbers are as measured.
    #[serde(deserialize_with = "nan::deserialize")]
    pub low: R,
    /// The upper bound of every real number, likewise.
    #[serde(deserialize_with = "nan::deserialize")]
    pub high: R,
}

/// Any accumulator, so that the figures that are computed from it have confidence intervals.
///
/// It keeps one accumulator for each sequence, or for each of 96 groups of sequences once there are more. A resample is
/// a merge of them, each as often as it is drawn, and a report is computed from it as from the whole: so whatever an
/// accumulator reports has an interval, and so has what is derived from it, or from two accumulators: a correlation, a
/// distance to a null, a domain relative to the corpus.
///
/// # Formula
/// [`Bootstrap`].
///
/// # Complexity
/// A sequence costs what the accumulator costs. Memory is that of 96 accumulators. Intervals cost 96 merges and a
/// report for each resample; [`TraceIntervals`](crate::TraceIntervals) does the same for
/// [`TraceMetrics`](crate::TraceMetrics) in a fraction of the time.
///
/// # References
/// arXiv 2505.16056, appendix C.
///
/// ```
/// use lrc_metrics::{Accumulator, Bootstrap, ByDomain, LoadBalance, Resampled, accumulate};
/// use moe_trace::{Geometry, SequenceStream, Synthetic, SyntheticOptions};
///
/// let geometry = Geometry::decoder(1, 8, 2)?;
/// let dials = SyntheticOptions { sequences: 30, tokens: 50, domains: 2, ..SyntheticOptions::default() };
/// let trace = Synthetic::new(geometry.clone(), dials).collect()?;
/// let load = Resampled::new(ByDomain::new(&LoadBalance::new(&geometry), 2));
/// let load = accumulate(&trace, &load, &|_done| {})?;
/// // The specialization of every expert.
/// let experts = load.finish(&Bootstrap::new(200, 0.95, 0)?, |load| Ok(load.finish()?.specialization()))?;
/// assert!(experts.low[0][3] < experts.value[0][3] && experts.value[0][3] < experts.high[0][3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "ResampledState<A>", bound(deserialize = "A: Merge + Deserialize<'de>"))]
pub struct Resampled<A> {
    empty: A,
    groups: Groups<A>,
}

/// What is read before it is checked.
#[derive(Deserialize)]
struct ResampledState<A> {
    empty: A,
    groups: Groups<A>,
}

impl<A: Merge> TryFrom<ResampledState<A>> for Resampled<A> {
    type Error = MetricError;

    fn try_from(state: ResampledState<A>) -> Result<Resampled<A>> {
        let resampled = Resampled { empty: state.empty, groups: state.groups };
        resampled.groups.check(GROUPS, resampled.groups.sequences())?;
        // Only accumulators of the same arguments have a total.
        resampled.total()?;
        Ok(resampled)
    }
}

impl<A: Merge> Resampled<A> {
    /// Creates what `empty`, an accumulator of no sequence, is resampled in.
    pub fn new(empty: A) -> Resampled<A> {
        Resampled { empty, groups: Groups::new(GROUPS) }
    }

    /// Adds a sequence as `update` does, for accumulators that need more than the sequence.
    ///
    /// ```
    /// use lrc_metrics::{Bootstrap, Resampled, Saturation};
    /// use moe_trace::{Geometry, Synthetic, SyntheticOptions};
    ///
    /// let geometry = Geometry::decoder(1, 8, 2)?;
    /// let dials = |seed| SyntheticOptions { tokens: 50, seed, ..SyntheticOptions::default() };
    /// let traces = [1, 2].map(|seed| Synthetic::new(geometry.clone(), dials(seed)));
    /// let mut saturation = Resampled::new(Saturation::new(&geometry));
    /// for number in 0..20 {
    ///     let [earlier, later] = traces.each_ref().map(|trace| trace.sequence(number));
    ///     let (earlier, later) = (earlier.view(&geometry, 0)?, later.view(&geometry, 0)?);
    ///     saturation.update_with(&later, |saturation| saturation.update(&earlier, &later))?;
    /// }
    /// let layers = saturation.finish(&Bootstrap::default(), |saturation| Ok(saturation.finish()))?;
    /// assert!(layers.low[0] < layers.value[0] && layers.value[0] < layers.high[0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of `update`; this one may then hold a part of the sequence and should be dropped.
    pub fn update_with(&mut self, sequence: &Sequence<'_>, update: impl FnOnce(&mut A) -> Result<()>) -> Result<()> {
        update(self.groups.of_next(sequence_key(sequence), &self.empty)?)
    }

    /// Adds the sequences of another one.
    ///
    /// # Errors
    /// [`MetricError::Mismatch`] if the other was created with other arguments.
    pub fn add_all(&mut self, other: &Resampled<A>) -> Result<()> {
        self.empty.clone().add(&other.empty)?;
        self.groups.merge(&other.groups, &self.empty)
    }

    /// All sequences together.
    ///
    /// # Errors
    /// None that merging accumulators of one origin can give.
    pub fn total(&self) -> Result<A> {
        let mut total = self.empty.clone();
        self.groups.sums().into_iter().try_for_each(|sum| total.add(sum))?;
        Ok(total)
    }

    /// A report with the interval of each figure.
    ///
    /// A resample of which there is no report, or no figure, is left out for what is missing.
    ///
    /// # Errors
    /// [`MetricError::TooFewSequences`] for fewer than two; those of `report` for all sequences.
    pub fn finish<R: Figures + Send + Sync>(
        &self,
        bootstrap: &Bootstrap,
        report: impl Fn(&A) -> Result<R> + Sync,
    ) -> Result<Intervals<R>> {
        let sequences = self.groups.sequences();
        if sequences < 2 {
            return Err(MetricError::TooFewSequences { sequences });
        }
        let value = report(&self.total()?)?;
        let sums = self.groups.sums();
        let resample = |number: usize| -> Result<Vec<f64>> {
            let mut drawn = self.empty.clone();
            for (&sum, times) in sums.iter().zip(bootstrap.draws(number, sums.len())) {
                (0..times).try_for_each(|_| drawn.add(sum))?;
            }
            let mut figures = Vec::new();
            R::read(report(&drawn).ok().as_ref(), &value, &mut figures);
            Ok(figures)
        };
        let resamples: Vec<Vec<f64>> =
            (0..bootstrap.resamples()).into_par_iter().map(resample).collect::<Result<_>>()?;
        let mut figures = Vec::new();
        R::read(Some(&value), &value, &mut figures);
        let interval = |(at, &figure): (usize, &f64)| {
            let mut values: Vec<f64> = resamples.iter().map(|figures| figures[at]).collect();
            bootstrap.interval(figure, &mut values)
        };
        let bounds: Vec<(f64, f64)> = figures.par_iter().enumerate().map(interval).collect();
        let (mut low, mut high) = (value.clone(), value.clone());
        let (mut lows, mut highs) = (bounds.iter(), bounds.iter());
        low.write(&mut || lows.next().expect("as many as there are").0);
        high.write(&mut || highs.next().expect("as many as there are").1);
        Ok(Intervals { value, low, high })
    }
}

impl<A: Accumulator> Accumulator for Resampled<A> {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.update_with(sequence, |accumulator| accumulator.update(sequence))
    }

    fn merge(&mut self, other: &Resampled<A>) -> Result<()> {
        self.add_all(other)
    }
}

/// Two accumulators of the same sequences.
impl<A: Accumulator, B: Accumulator> Accumulator for (A, B) {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.0.update(sequence)?;
        self.1.update(sequence)
    }

    fn merge(&mut self, other: &(A, B)) -> Result<()> {
        self.0.merge(&other.0)?;
        self.1.merge(&other.1)
    }
}
