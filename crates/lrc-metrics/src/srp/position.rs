//! SRP by where in the sequence a window starts.

use std::ops::Range;

use expert_cache::curve::Accesses;
use moe_trace::{Geometry, LayerId, Sequence};
use serde::{Deserialize, Serialize};

use super::report::SrpReport;
use crate::{
    accumulate::{Accumulator, MOST, Restore, Selection, checked_serde, within},
    error::{MetricError, Result, same},
};

/// Segment routing best performance (SRP) of the windows that start at each token position.
///
/// Does routing become more consistent while a sequence goes on? Every start position has histograms of its own, over
/// all sequences, and so an SRP at expert, layer, stack and model level.
///
/// # Formula
/// [`SrpValue::from_histogram`](crate::SrpValue::from_histogram) of the windows of one start.
///
/// # Complexity
/// One step an expert and a start. Memory is `8 * starts * layers * experts * m` bytes for the starts that some sequence
/// reaches: 1.5 GB for 512 starts of 60 layers of 384 experts at `m = 16`. Choose layers and starts where that is much.
///
/// # References
/// arXiv 2505.16056, appendix C.1.
///
/// ```
/// use lrc_metrics::{Accumulator, PositionSrp};
/// use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
///
/// // One layer of 2 experts, top-1: A A B, windows of 2: AA at 0, AB at 1.
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![0, 0, 1], Phase::Decode)?;
/// let mut srp = PositionSrp::new(&geometry, &[LayerId(0)], 2, 0..512)?;
/// srp.update(&sequence.view(&geometry, 0)?)?;
/// let starts = srp.finish();
/// assert_eq!(starts.len(), 2);
/// assert_eq!((starts[0].start, starts[0].report.model.srp), (0, 1.0));
/// // Two experts are selected, one is used: F1 = 2 * 2 / (4 + 2).
/// assert_eq!((starts[1].start, starts[1].report.model.srp), (1, 2.0 / 3.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct PositionSrp {
    window: usize,
    starts: Range<usize>,
    selection: Selection,
    /// By start, as far as some sequence reaches.
    counts: Vec<StartCounts>,
    /// Uses of each expert by the current window; all 0 between sequences, none before the first.
    #[serde(skip)]
    running: Vec<usize>,
    #[serde(skip)]
    scratch: Accesses,
}

/// SRP of the windows that start at one position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartSrp {
    /// The first token of the windows.
    pub start: usize,
    /// Their SRP.
    pub report: SrpReport,
}

/// Histograms of the windows of one start.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StartCounts {
    windows: u64,
    /// Windows in which an expert has `f` uses, `f` in `1..=window`, `[layers x experts x window]`.
    used: Vec<u64>,
}

impl PositionSrp {
    /// Creates the SRP of some layers for windows of `window` tokens that start in `starts`.
    ///
    /// # Errors
    /// [`MetricError::Window`] for a window of no token; [`MetricError::NoLayers`] or a layer out of range.
    pub fn new(geometry: &Geometry, layers: &[LayerId], window: usize, starts: Range<usize>) -> Result<PositionSrp> {
        if window == 0 {
            return Err(MetricError::Window { window });
        }
        Ok(PositionSrp {
            window,
            starts,
            selection: Selection::new(geometry, layers)?,
            counts: Vec::new(),
            running: Vec::new(),
            scratch: Accesses::new(),
        })
    }

    /// The values of every start that has a window, in order; none if no sequence has a window that starts there.
    pub fn finish(&self) -> Vec<StartSrp> {
        let experts = self.selection.experts();
        let report = |counts: &StartCounts| {
            SrpReport::pool(self.window, counts.windows, &self.selection, |position, expert, sum| {
                let row = (position * experts + expert) * self.window;
                let used = &counts.used[row..row + self.window];
                sum[0] += counts.windows - used.iter().sum::<u64>();
                sum[1..].iter_mut().zip(used).for_each(|(sum, count)| *sum += count);
            })
        };
        let starts = self.starts.clone().zip(&self.counts);
        starts.map(|(start, counts)| StartSrp { start, report: report(counts) }).collect()
    }

    /// Adds the windows of one layer.
    fn update_layer(&mut self, position: usize, accesses: &Accesses, last: usize) {
        let experts = self.selection.experts();
        let row = position * experts * self.window;
        self.running.resize(experts, 0);
        for token in 0..self.window - 1 {
            accesses.token(token).iter().for_each(|&expert| self.running[expert as usize] += 1);
        }
        for start in 0..=last {
            let entering = accesses.token(start + self.window - 1);
            entering.iter().for_each(|&expert| self.running[expert as usize] += 1);
            if start >= self.starts.start {
                let used = &mut self.counts[start - self.starts.start].used[row..];
                for (counts, &uses) in used.chunks_exact_mut(self.window).zip(&self.running) {
                    if uses > 0 {
                        counts[uses - 1] += 1;
                    }
                }
            }
            accesses.token(start).iter().for_each(|&expert| self.running[expert as usize] -= 1);
        }
        self.running.fill(0);
    }

    /// Makes room for the starts up to and including `last`.
    fn reach(&mut self, starts: usize) {
        if starts > self.counts.len() {
            let used = vec![0; self.selection.layers().len() * self.selection.experts() * self.window];
            self.counts.resize(starts, StartCounts { windows: 0, used });
        }
    }
}

impl Accumulator for PositionSrp {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.selection.check(sequence)?;
        let end = (sequence.len() + 1).saturating_sub(self.window).min(self.starts.end);
        if end <= self.starts.start {
            return Ok(());
        }
        let mut accesses = std::mem::take(&mut self.scratch);
        self.reach(end - self.starts.start);
        for position in 0..self.selection.layers().len() {
            accesses.fill(sequence, &self.selection.layers()[position..=position])?;
            self.update_layer(position, &accesses, end - 1);
        }
        self.counts[..end - self.starts.start].iter_mut().for_each(|counts| counts.windows += 1);
        self.scratch = accesses;
        Ok(())
    }

    fn merge(&mut self, other: &PositionSrp) -> Result<()> {
        same("window length", &self.window, &other.window)?;
        same("range of starts", &self.starts, &other.starts)?;
        self.selection.same(&other.selection)?;
        self.reach(other.counts.len());
        for (sum, more) in self.counts.iter_mut().zip(&other.counts) {
            sum.windows += more.windows;
            sum.used.iter_mut().zip(&more.used).for_each(|(sum, more)| *sum += more);
        }
        Ok(())
    }
}

checked_serde!(PositionSrp);

impl Restore for PositionSrp {
    fn restore(&mut self) -> Result<()> {
        within("window length", 1, u128::MAX, self.window as u128)?;
        within("number of starts", 0, self.starts.len() as u128, self.counts.len() as u128)?;
        let experts = self.selection.experts();
        let cells = (self.selection.layers().len() * experts) as u128 * self.window as u128;
        for counts in &self.counts {
            within("number of windows", 0, u128::from(MOST) / cells, counts.windows.into())?;
            within("length of a histogram", cells, cells, counts.used.len() as u128)?;
            for used in counts.used.chunks_exact(self.window) {
                let sum = used.iter().map(|&windows| u128::from(windows)).sum();
                within("number of windows of an expert", 0, counts.windows.into(), sum)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Phase, SequenceBuf};

    use super::*;

    #[test]
    fn bad_arguments_say_why() {
        let geometry = Geometry::decoder(1, 2, 1).unwrap();
        let create = |layers: &[LayerId], window| PositionSrp::new(&geometry, layers, window, 0..4);
        let message = |layers: &[LayerId], window| create(layers, window).unwrap_err().to_string();
        assert_eq!(message(&[LayerId(0)], 0), "window length is 0 tokens, it must be at least 1");
        assert_eq!(message(&[], 1), "no layer is selected, the trace has 1 MoE layers");
        let mut srp = create(&[LayerId(0)], 2).unwrap();
        let error = srp.merge(&create(&[LayerId(0)], 3).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "accumulators do not belong together: window length is 3, expected 2");
    }

    #[test]
    fn starts_that_no_sequence_reaches_are_absent_and_allocate_nothing() {
        let geometry = Geometry::decoder(1, 2, 1).unwrap();
        let sequence = SequenceBuf::from_experts(&geometry, vec![0, 0, 1], Phase::Decode).unwrap();
        let of = |window, starts| {
            let mut srp = PositionSrp::new(&geometry, &[LayerId(0)], window, starts).unwrap();
            srp.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
            srp.finish().iter().map(|start| start.start).collect::<Vec<_>>()
        };
        assert_eq!(of(1, 1..usize::MAX), [1, 2]);
        assert!(of(2, 2..9).is_empty());
        assert!(of(usize::MAX, 0..usize::MAX).is_empty());
    }
}
