//! Segment routing best performance (SRP): the formula, its histograms of windows, and its reports.

mod histogram;
mod position;
mod report;
mod restore;
mod threshold;

pub use position::{PositionSrp, StartSrp};
pub use report::{LayerSrp, SrpReport};
pub use threshold::{SrpValue, srp_lower_bound};

pub(crate) use histogram::{SlidingWindow, add_counts, check_at_least};

use std::collections::BTreeMap;

use expert_cache::curve::Accesses;
use histogram::WindowHistogram;
use moe_trace::{Geometry, LayerId, Sequence};
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{Accumulator, Selection},
    error::{MetricError, Result, same},
};

/// Segment routing best performance (SRP) at some window lengths, by expert, layer and model.
///
/// A fixed set of experts serves every token of a window. SRP measures how well the best such set does: the set of the
/// experts that at least `a` tokens of the window use, for the best `a`. Windows start at every token and never cross a
/// sequence boundary.
///
/// # Formula
/// ```text
/// F1(a) = 2 * sum_{u>=a} u / (m * #{u>=a} + sum u)
/// SRP   = max F1(a) over a in 0..=m
/// a*    = the smallest a with F1(a) = SRP
/// rho   = m * #{u>=a*} / sum u
/// act   = sum u / (m * #all)
/// ```
///
/// where
///
/// - `m` is the window length in tokens,
/// - `u` is the number of tokens of a window that use an expert, so that each pair of a window and an expert has one `u`,
/// - `sum` adds `u` over pairs, `#` counts pairs, and `#all` is the number of all pairs,
/// - `rho` is the segment routing size ratio: experts selected, relative to experts used,
/// - `act` is the activation rate.
///
/// The pairs of an expert are its windows, the pairs of a layer are those of its experts, and the pairs of a model are
/// those of the layers that a window uses. Each level has one threshold `a*`, so its SRP is no mean of expert values.
/// [`SrpValue::from_histogram`] evaluates the formula.
///
/// # Complexity
/// Two additions a use of an expert and window length, however long the windows; a sequence is read once for all of them.
/// Memory is `8 * layers * experts * m` bytes a window length, from the first sequence of at least `m` tokens on.
///
/// # References
/// arXiv 2505.16056, section 2.2 and appendix C.1.
///
/// ```
/// use lrc_metrics::{Accumulator, Srp};
/// use moe_trace::{Geometry, Phase, SequenceBuf};
///
/// // One layer of 2 experts, top-1: A A B, windows of 2 (AA, AB) and of 3 (AAB).
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![0, 0, 1], Phase::Decode)?;
/// let mut srp = Srp::new(&geometry, &[2, 3])?;
/// srp.update(&sequence.view(&geometry, 0)?)?;
/// let reports = srp.finish()?;
/// // A is used 2 and 1 times: F1(0) = F1(1) = 2 * 3 / (2 * 2 + 3). B 0 and 1 times: F1(1) = 2 * 1 / (2 * 1 + 1).
/// assert_eq!(reports[&2].layers[0].experts[0].srp, 6.0 / 7.0);
/// assert_eq!(reports[&2].layers[0].experts[1].srp, 2.0 / 3.0);
/// // Together, with one threshold: F1(1) = 2 * 4 / (2 * 3 + 4).
/// assert_eq!(reports[&2].model.srp, 0.8);
/// // One window of three: A is used twice and taken alone. F1(2) = 2 * 2 / (3 * 1 + 3).
/// assert_eq!(reports[&3].model.srp, 2.0 / 3.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Srp {
    selection: Selection,
    /// By window length, ascending.
    lengths: Vec<WindowSrp>,
    sequences: u64,
    longest: usize,
    #[serde(skip)]
    scratch: Accesses,
}

/// The histograms of all layers at one window length.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct WindowSrp {
    window: usize,
    windows: u64,
    layers: Vec<WindowHistogram>,
}

impl WindowSrp {
    fn new(window: usize, selection: &Selection) -> Result<WindowSrp> {
        if window == 0 {
            return Err(MetricError::Window { window });
        }
        let layers = vec![WindowHistogram::new(window, selection.experts()); selection.layers().len()];
        Ok(WindowSrp { window, windows: 0, layers })
    }

    /// Window length in tokens.
    fn window(&self) -> usize {
        self.window
    }

    /// Adds the windows of one expert of a selected layer to `counts`, `[window + 1]`.
    fn add_counts(&self, position: usize, expert: usize, counts: &mut [u64]) {
        self.layers[position].add_to(expert, self.windows, counts);
    }

    /// Number of windows of a sequence.
    fn count(&self, tokens: usize) -> u64 {
        (tokens as u64 + 1).saturating_sub(self.window as u64)
    }
}

impl Srp {
    /// Creates the SRP of all layers for windows of each length in `windows`, in tokens.
    ///
    /// # Errors
    /// [`MetricError::Window`] for a window of no token.
    pub fn new(geometry: &Geometry, windows: &[usize]) -> Result<Srp> {
        Srp::over(Selection::all(geometry), windows)
    }

    /// Creates the SRP of some layers; the model level then pools these.
    ///
    /// # Errors
    /// [`MetricError::Window`]; [`MetricError::NoLayers`] or a layer out of range.
    pub fn of_layers(geometry: &Geometry, layers: &[LayerId], windows: &[usize]) -> Result<Srp> {
        Srp::over(Selection::new(geometry, layers)?, windows)
    }

    fn over(selection: Selection, windows: &[usize]) -> Result<Srp> {
        let mut windows = windows.to_vec();
        windows.sort_unstable();
        windows.dedup();
        let lengths = windows.into_iter().map(|window| WindowSrp::new(window, &selection)).collect::<Result<_>>()?;
        Ok(Srp { selection, lengths, sequences: 0, longest: 0, scratch: Accesses::new() })
    }

    /// Adds the accesses of a sequence to one of the selected layers.
    pub(crate) fn update_layer(&mut self, position: usize, accesses: &Accesses) {
        self.lengths.iter_mut().for_each(|length| length.layers[position].update(accesses));
    }

    /// Counts a sequence of which every selected layer was added.
    pub(crate) fn count_sequence(&mut self, tokens: usize) {
        self.lengths.iter_mut().for_each(|length| length.windows += length.count(tokens));
        self.sequences += 1;
        self.longest = self.longest.max(tokens);
    }

    /// The layers that are looked at.
    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The values of the sequences so far at each window length that fits into one of them, in ascending order.
    pub(crate) fn reports(&self) -> impl Iterator<Item = SrpReport> {
        self.lengths.iter().take_while(|length| length.window <= self.longest).map(|length| {
            SrpReport::pool(length.window, length.windows, &self.selection, |position, expert, counts| {
                length.add_counts(position, expert, counts);
            })
        })
    }

    /// The values of the sequences so far by window length; a length of which no sequence has a window is absent.
    ///
    /// # Errors
    /// [`MetricError::WindowTooLong`] if no sequence has a window of any of the lengths.
    pub fn finish(&self) -> Result<BTreeMap<usize, SrpReport>> {
        fitting(&self.windows(), self.longest, self.sequences)?;
        Ok(self.reports().map(|report| (report.window, report)).collect())
    }

    /// Number of sequences.
    pub(crate) fn sequences(&self) -> u64 {
        self.sequences
    }

    /// The window lengths in ascending order.
    pub(crate) fn windows(&self) -> Vec<usize> {
        self.lengths.iter().map(WindowSrp::window).collect()
    }

    /// Leaves no window length, and returns those that there were.
    pub(crate) fn take_windows(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.lengths).iter().map(WindowSrp::window).collect()
    }
}

/// Those of some window lengths in ascending order that fit into a sequence, at least one if there are any.
pub(crate) fn fitting(windows: &[usize], longest: usize, sequences: u64) -> Result<&[usize]> {
    match windows.first() {
        Some(&window) if window > longest => Err(MetricError::WindowTooLong { window, longest, sequences }),
        _ => Ok(&windows[..windows.partition_point(|&window| window <= longest)]),
    }
}

impl Accumulator for Srp {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.selection.check(sequence)?;
        let mut accesses = std::mem::take(&mut self.scratch);
        for position in 0..self.selection.layers().len() {
            accesses.fill(sequence, &self.selection.layers()[position..=position])?;
            self.update_layer(position, &accesses);
        }
        self.scratch = accesses;
        self.count_sequence(sequence.len());
        Ok(())
    }

    fn merge(&mut self, other: &Srp) -> Result<()> {
        same("list of window lengths", &self.windows(), &other.windows())?;
        self.selection.same(&other.selection)?;
        for (sum, more) in self.lengths.iter_mut().zip(&other.lengths) {
            sum.layers.iter_mut().zip(&more.layers).for_each(|(sum, more)| sum.merge(more));
            sum.windows += more.windows;
        }
        self.sequences += other.sequences;
        self.longest = self.longest.max(other.longest);
        Ok(())
    }
}
