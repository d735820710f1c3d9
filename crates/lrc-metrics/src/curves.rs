//! Hit-rate curves of several policies for one pool of experts.

use expert_cache::curve::{Accesses, ColdStart, CurveAccumulator, CurvePolicy, HitCurve};
use moe_trace::{Geometry, LayerId, Sequence};

use crate::{Accumulator, Result, selection::Selection};

/// Hit rates of several policies at every capacity, for a cache that one layer or several layers share.
///
/// SCH(`m`), the segment cache best hit rate of arXiv 2505.16056 (section 2.3), is the curve of
/// [`CurvePolicy::LookAhead`] with a window of `m` tokens.
///
/// # Formula
/// [`CurveAccumulator`], paper convention.
///
/// # Complexity
/// The accesses are read once for all policies; each policy costs what its [`CurveAccumulator`] costs.
///
/// ```
/// use expert_cache::curve::{ColdStart, CurvePolicy};
/// use lrc_metrics::{Accumulator, Curves};
/// use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
///
/// // One layer of 3 experts, top-1: A B C A.
/// let geometry = Geometry::decoder(1, 3, 1)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![0, 1, 2, 0], Phase::Decode)?;
/// let policies = [CurvePolicy::Lru, CurvePolicy::LookAhead { window: 2 }];
/// let mut curves = Curves::new(&geometry, &[LayerId(0)], &policies, ColdStart::Miss)?;
/// curves.update(&sequence.view(&geometry, 0)?)?;
/// // A look-ahead of C and A keeps A when C comes into two slots.
/// let rates: Vec<_> = curves.finish().into_iter().map(|(_, curve)| curve.hit_rates).collect();
/// assert_eq!(rates, [[0.0, 0.0, 0.25], [0.0, 0.25, 0.25]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Curves {
    selection: Selection,
    curves: Vec<CurveAccumulator>,
    scratch: Accesses,
}

impl Curves {
    /// Creates the curves of a cache that the given layers share.
    ///
    /// # Errors
    /// [`MetricError::NoLayers`](crate::MetricError::NoLayers), a layer out of range, or a look-ahead of no token.
    pub fn new(geometry: &Geometry, layers: &[LayerId], policies: &[CurvePolicy], cold: ColdStart) -> Result<Curves> {
        let selection = Selection::new(geometry, layers)?;
        let curves = policies.iter().map(|&policy| CurveAccumulator::new(geometry, layers, policy, cold));
        Ok(Curves { selection, curves: curves.collect::<Result<_, _>>()?, scratch: Accesses::new() })
    }

    /// Adds the accesses of a sequence to the pool.
    pub(crate) fn update_accesses(&mut self, accesses: &Accesses) -> Result<()> {
        for curve in &mut self.curves {
            curve.update_accesses(accesses)?;
        }
        Ok(())
    }

    /// The curves of the sequences so far, in the order in which the policies were given.
    pub fn finish(&self) -> Vec<(CurvePolicy, HitCurve)> {
        self.curves.iter().map(|curve| (curve.policy(), curve.finish())).collect()
    }
}

impl Accumulator for Curves {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.selection.check(sequence)?;
        let mut accesses = std::mem::take(&mut self.scratch);
        accesses.fill(sequence, self.selection.layers())?;
        let result = self.update_accesses(&accesses);
        self.scratch = accesses;
        result
    }

    fn merge(&mut self, other: &Curves) {
        assert_eq!(self.curves.len(), other.curves.len(), "accumulators of different policies");
        self.curves.iter_mut().zip(&other.curves).for_each(|(sum, more)| sum.merge(more));
    }
}
