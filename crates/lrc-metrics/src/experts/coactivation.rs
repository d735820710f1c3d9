//! Which experts are used together.

use moe_trace::{Geometry, LayerId, Sequence};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{Accumulator, Restore, Selection, checked_serde, intact, total, within},
    error::Result,
};

/// Counts, for all pairs of experts of a layer, the tokens that use both.
///
/// # Formula
/// `C(i, j) = N_ij / N_i`: of the tokens that use `i` the share that uses `j`, too. The diagonal is 1; the row of an
/// expert that no token uses is 0. The matrix is not symmetric.
///
/// # Complexity
/// `k^2` additions a token; `8 * layers * experts^2` bytes.
///
/// # References
/// arXiv 2409.02060 (OLMoE), where it is shown for the most co-activated pairs.
///
/// ```
/// use lrc_metrics::{Accumulator, Coactivation};
/// use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
///
/// // One layer of 3 experts, top-2: tokens use {0, 1}, {0, 2}, {0, 1}.
/// let geometry = Geometry::decoder(1, 3, 2)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![0, 1, 2, 0, 1, 0], Phase::Decode)?;
/// let mut coactivation = Coactivation::new(&geometry, &[LayerId(0)])?;
/// coactivation.update(&sequence.view(&geometry, 0)?)?;
/// let matrix = &coactivation.finish()[0];
/// assert_eq!((matrix[[0, 1]], matrix[[1, 0]], matrix[[1, 2]]), (2.0 / 3.0, 1.0, 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Coactivation {
    selection: Selection,
    /// By layer, `[experts x experts]`.
    pairs: Vec<Vec<u64>>,
}

impl Coactivation {
    /// Creates the counts of no sequence for some layers.
    ///
    /// # Errors
    /// [`MetricError::NoLayers`](crate::MetricError::NoLayers) or a layer out of range.
    pub fn new(geometry: &Geometry, layers: &[LayerId]) -> Result<Coactivation> {
        let selection = Selection::new(geometry, layers)?;
        let pairs = vec![vec![0; geometry.experts() * geometry.experts()]; layers.len()];
        Ok(Coactivation { selection, pairs })
    }

    /// The matrices, `[experts x experts]`, in the order in which layers were selected.
    pub fn finish(&self) -> Vec<Array2<f64>> {
        let experts = self.selection.experts();
        let share = |pairs: &Vec<u64>, (i, j): (usize, usize)| {
            pairs[i * experts + j] as f64 / pairs[i * experts + i].max(1) as f64
        };
        self.pairs.iter().map(|pairs| Array2::from_shape_fn((experts, experts), |at| share(pairs, at))).collect()
    }
}

impl Accumulator for Coactivation {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.selection.check(sequence)?;
        let experts = self.selection.experts();
        for (&layer, pairs) in self.selection.layers().iter().zip(&mut self.pairs) {
            for token in 0..sequence.len() {
                for i in sequence.experts(token, layer) {
                    for j in sequence.experts(token, layer) {
                        pairs[i.index() * experts + j.index()] += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn merge(&mut self, other: &Coactivation) -> Result<()> {
        self.selection.same(&other.selection)?;
        for (sum, more) in self.pairs.iter_mut().flatten().zip(other.pairs.iter().flatten()) {
            *sum += more;
        }
        Ok(())
    }
}

checked_serde!(Coactivation);

impl Restore for Coactivation {
    fn restore(&mut self) -> Result<()> {
        let experts = self.selection.experts();
        intact("number of layers", &self.selection.layers().len(), &self.pairs.len())?;
        for pairs in &self.pairs {
            intact("number of pairs", &(experts * experts), &pairs.len())?;
            total("number of pairs seen", pairs)?;
            for (i, row) in pairs.chunks_exact(experts).enumerate() {
                row.iter().try_for_each(|&both| within("uses of a pair", 0, row[i].into(), both.into()))?;
            }
        }
        Ok(())
    }
}
