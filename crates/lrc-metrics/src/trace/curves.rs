//! Hit-rate curves of several policies for one pool of experts.

use expert_cache::curve::{Accesses, ColdStart, CurveAccumulator, CurvePolicy, HitCurve};
use moe_trace::{Geometry, LayerId, Sequence};
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{Accumulator, MOST, Selection, intact, within},
    error::{MetricError, Result, same},
};

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
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "CurvesState", try_from = "CurvesState")]
pub struct Curves {
    selection: Selection,
    cold_start: ColdStart,
    curves: Vec<CurveAccumulator>,
    scratch: Accesses,
}

/// Curves as they are written.
#[derive(Serialize, Deserialize)]
struct CurvesState {
    selection: Selection,
    cold_start: ColdStart,
    curves: Vec<CurveState>,
}

/// One curve as it is written.
#[derive(Serialize, Deserialize)]
struct CurveState {
    policy: CurvePolicy,
    /// Sum over sequences of each capacity's hit rate, in multiples of `2^-64`.
    rates: Vec<u128>,
    sequences: u64,
    accesses: u64,
}

impl From<Curves> for CurvesState {
    fn from(curves: Curves) -> CurvesState {
        let state = |curve: &CurveAccumulator| CurveState {
            policy: curve.policy(),
            rates: curve.rate_sums().to_vec(),
            sequences: curve.sequences(),
            accesses: curve.accesses(),
        };
        let states = curves.curves.iter().map(state).collect();
        CurvesState { selection: curves.selection, cold_start: curves.cold_start, curves: states }
    }
}

impl TryFrom<CurvesState> for Curves {
    type Error = MetricError;

    fn try_from(state: CurvesState) -> Result<Curves> {
        let policies: Vec<CurvePolicy> = state.curves.iter().map(|curve| curve.policy).collect();
        // Before anything is made as large as the state says.
        let pool = state.selection.layers().len() * state.selection.experts();
        state.curves.iter().try_for_each(|curve| intact("number of capacities", &pool, &curve.rates.len()))?;
        let mut curves = Curves::over(state.selection, &policies, state.cold_start)?;
        for (curve, sums) in curves.curves.iter_mut().zip(&state.curves) {
            within("number of accesses", 0, MOST.into(), sums.accesses.into())?;
            within("number of sequences", 0, sums.accesses.into(), sums.sequences.into())?;
            let mut least = 0;
            for &rate in &sums.rates {
                within("sum of hit rates", least, u128::from(sums.sequences) << 64, rate)?;
                least = rate;
            }
            curve.add_sums(&sums.rates, sums.sequences, sums.accesses);
        }
        Ok(curves)
    }
}

impl Curves {
    /// Creates the curves of a cache that the given layers share.
    ///
    /// # Errors
    /// [`MetricError::NoLayers`](crate::MetricError::NoLayers), a layer out of range, or a look-ahead of no token.
    pub fn new(geometry: &Geometry, layers: &[LayerId], policies: &[CurvePolicy], cold: ColdStart) -> Result<Curves> {
        Curves::over(Selection::new(geometry, layers)?, policies, cold)
    }

    fn over(selection: Selection, policies: &[CurvePolicy], cold_start: ColdStart) -> Result<Curves> {
        let geometry = selection.geometry()?;
        let curve = |&policy| CurveAccumulator::new(&geometry, selection.layers(), policy, cold_start);
        let curves = policies.iter().map(curve).collect::<Result<_, _>>()?;
        Ok(Curves { selection, cold_start, curves, scratch: Accesses::new() })
    }

    /// Checks that a state that was read has these layers, policies and cold start.
    pub(super) fn check(&self, layers: &[LayerId], like: &Curves) -> Result<()> {
        same("list of layers", &layers, &self.selection.layers())?;
        same("number of experts a layer", &like.selection.experts(), &self.selection.experts())?;
        same("cold start", &like.cold_start, &self.cold_start)?;
        same("list of policies", &like.policies(), &self.policies())
    }

    /// How a first touch counts.
    pub(super) fn cold_start(&self) -> ColdStart {
        self.cold_start
    }

    /// Number of experts a layer.
    pub(super) fn experts(&self) -> usize {
        self.selection.experts()
    }

    /// The curves, one for each policy.
    pub(crate) fn accumulators(&self) -> &[CurveAccumulator] {
        &self.curves
    }

    pub(crate) fn policies(&self) -> Vec<CurvePolicy> {
        self.curves.iter().map(CurveAccumulator::policy).collect()
    }

    /// Adds the accesses of a sequence to the pool.
    pub(super) fn update_accesses(&mut self, accesses: &Accesses) -> Result<()> {
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

    fn merge(&mut self, other: &Curves) -> Result<()> {
        self.selection.same(&other.selection)?;
        same("cold start", &self.cold_start, &other.cold_start)?;
        same("list of policies", &self.policies(), &other.policies())?;
        self.curves.iter_mut().zip(&other.curves).for_each(|(sum, more)| sum.merge(more));
        Ok(())
    }
}
