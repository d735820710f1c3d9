//! How much of a router's choices a later checkpoint keeps.

use moe_trace::{Geometry, RoutingSource, Sequence};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{MOST, Merge, Restore, Selection, checked_serde, intact, within},
    error::{MetricError, Result},
};

/// Counts the experts that two checkpoints of a model choose alike, for the same text.
///
/// # Formula
/// By layer, `sum |A_t intersect A_T| / sum |A_T|` over tokens, with `A_t` the set of the earlier checkpoint and `A_T`
/// that of the later one: the mean of `|A_t intersect A_T| / k` where every token uses `k` experts. 0 without tokens.
///
/// # References
/// arXiv 2409.02060 (OLMoE), router saturation.
///
/// ```
/// use lrc_metrics::Saturation;
/// use moe_trace::{Geometry, Phase, SequenceBuf};
///
/// // One layer of 4 experts, top-2: the first token keeps one of its experts, the second both.
/// let geometry = Geometry::decoder(1, 4, 2)?;
/// let sequence = |experts| SequenceBuf::from_experts(&geometry, experts, Phase::Prefill);
/// let (earlier, later) = (sequence(vec![0, 1, 2, 3])?, sequence(vec![1, 2, 3, 2])?);
/// let mut saturation = Saturation::new(&geometry);
/// saturation.update(&earlier.view(&geometry, 0)?, &later.view(&geometry, 0)?)?;
/// assert_eq!(saturation.finish(), [0.75]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Saturation {
    selection: Selection,
    /// Experts of the later checkpoint that the earlier one chose, too, by layer.
    kept: Vec<u64>,
    /// Experts of the later checkpoint, by layer.
    chosen: Vec<u64>,
}

impl Saturation {
    /// Creates the counts of no sequence.
    pub fn new(geometry: &Geometry) -> Saturation {
        let none = vec![0; geometry.layers()];
        Saturation { selection: Selection::all(geometry), kept: none.clone(), chosen: none }
    }

    /// Compares two traces of the same sequences, in parallel on the current rayon pool.
    ///
    /// # Errors
    /// [`MetricError::Pairing`] if the traces differ in their sequences or tokens, [`MetricError::Geometry`], or what
    /// reading finds.
    pub fn between(earlier: &dyn RoutingSource, later: &dyn RoutingSource) -> Result<Saturation> {
        let empty = Saturation::new(earlier.geometry());
        if earlier.len() != later.len() {
            return Err(MetricError::Pairing { what: "sequences", earlier: earlier.len(), later: later.len() });
        }
        let one = |index| -> Result<Saturation> {
            let mut one = empty.clone();
            one.update(&earlier.sequence(index)?, &later.sequence(index)?)?;
            Ok(one)
        };
        // In order, so that the first bad sequence is reported.
        let parts: Vec<Result<Saturation>> = (0..earlier.len()).into_par_iter().map(one).collect();
        let mut sum = empty.clone();
        for part in parts {
            sum.merge(&part?)?;
        }
        Ok(sum)
    }

    /// Adds the same sequence as routed by the earlier and by the later checkpoint.
    ///
    /// # Errors
    /// [`MetricError::Pairing`] if the numbers of tokens differ, [`MetricError::Geometry`].
    pub fn update(&mut self, earlier: &Sequence<'_>, later: &Sequence<'_>) -> Result<()> {
        self.selection.check(earlier)?;
        self.selection.check(later)?;
        if earlier.len() != later.len() {
            return Err(MetricError::Pairing { what: "tokens", earlier: earlier.len(), later: later.len() });
        }
        for ((&layer, kept), chosen) in self.selection.layers().iter().zip(&mut self.kept).zip(&mut self.chosen) {
            for token in 0..later.len() {
                for expert in later.experts(token, layer) {
                    *chosen += 1;
                    *kept += u64::from(earlier.experts(token, layer).any(|other| other == expert));
                }
            }
        }
        Ok(())
    }

    /// Adds the sequences of another accumulator.
    ///
    /// # Errors
    /// [`MetricError::Mismatch`] if the other is for another geometry.
    pub fn merge(&mut self, other: &Saturation) -> Result<()> {
        self.selection.same(&other.selection)?;
        self.kept.iter_mut().zip(&other.kept).for_each(|(sum, more)| *sum += more);
        self.chosen.iter_mut().zip(&other.chosen).for_each(|(sum, more)| *sum += more);
        Ok(())
    }

    /// The saturation of each layer, in `0..=1`.
    pub fn finish(&self) -> Vec<f64> {
        self.kept.iter().zip(&self.chosen).map(|(&kept, &chosen)| kept as f64 / chosen.max(1) as f64).collect()
    }
}

impl Merge for Saturation {
    fn add(&mut self, other: &Saturation) -> Result<()> {
        self.merge(other)
    }
}

checked_serde!(Saturation);

impl Restore for Saturation {
    fn restore(&mut self) -> Result<()> {
        intact("number of layers", &self.selection.layers().len(), &self.kept.len())?;
        intact("number of layers", &self.selection.layers().len(), &self.chosen.len())?;
        self.kept.iter().zip(&self.chosen).try_for_each(|(&kept, &chosen)| {
            within("number of chosen experts", 0, MOST.into(), chosen.into())?;
            within("number of kept experts", 0, chosen.into(), kept.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{MemoryTrace, Phase, SequenceBuf};

    use super::*;

    fn trace(geometry: &Geometry, sequences: &[&[u16]]) -> MemoryTrace {
        let mut trace = MemoryTrace::new(geometry.clone());
        for experts in sequences {
            trace.push(SequenceBuf::from_experts(geometry, experts.to_vec(), Phase::Prefill).unwrap()).unwrap();
        }
        trace
    }

    #[test]
    fn a_router_keeps_all_of_itself_and_nothing_of_a_disjoint_one() {
        let geometry = Geometry::decoder(1, 4, 2).unwrap();
        let (one, other) = (trace(&geometry, &[&[0, 1], &[1, 0, 0, 1]]), trace(&geometry, &[&[2, 3], &[3, 2, 3, 2]]));
        assert_eq!(Saturation::between(&one, &one).unwrap().finish(), [1.0]);
        assert_eq!(Saturation::between(&one, &other).unwrap().finish(), [0.0]);
        assert_eq!(Saturation::new(&geometry).finish(), [0.0]);
    }

    #[test]
    fn traces_that_do_not_pair_say_why() {
        let geometry = Geometry::decoder(1, 4, 2).unwrap();
        let one = trace(&geometry, &[&[0, 1]]);
        let message = |later: &MemoryTrace| Saturation::between(&one, later).unwrap_err().to_string();
        assert_eq!(message(&trace(&geometry, &[])), "the earlier trace has 1 sequences, the later one 0");
        assert_eq!(message(&trace(&geometry, &[&[0, 1, 0, 1]])), "the earlier trace has 1 tokens, the later one 2");
        let wider = Geometry::decoder(1, 5, 2).unwrap();
        let error = message(&trace(&wider, &[&[0, 1]]));
        assert_eq!(error, "a sequence has 1 layers x 5 experts, the accumulator 1 layers x 4 experts");
    }
}
