//! Segment routing best performance of a trace.

use expert_cache::curve::Accesses;
use moe_trace::{Geometry, LayerId, Sequence};

use serde::{Deserialize, Serialize};

use crate::{
    Accumulator, MetricError, Result, SrpReport,
    error::same,
    histogram::WindowHistogram,
    selection::Selection,
    serialized::{MOST, Restore, checked_serde, intact, within},
};

/// Segment routing best performance (SRP) at one window length, by expert, layer and model.
///
/// How well does one fixed set of experts serve every token of a window of `m` tokens? For each expert and window the
/// number of tokens that use it is known; the set takes the experts that at least `a` tokens use, and SRP is the F1 of
/// the best `a`. Windows start at every token and never cross a sequence boundary.
///
/// # Formula
/// [`SrpValue::from_histogram`](crate::SrpValue::from_histogram). A layer pools the histograms of its experts and a model
/// those of its layers, and each takes one threshold: they are not means of expert values.
///
/// # Complexity
/// Two steps an activation, for any window length. Memory is `2 * 8 * layers * experts * (m + 1)` bytes from the first
/// sequence of at least `m` tokens on.
///
/// # References
/// arXiv 2505.16056, section 2.2 and appendix C.1.
///
/// ```
/// use lrc_metrics::{Accumulator, Srp};
/// use moe_trace::{Geometry, Phase, SequenceBuf};
///
/// // One layer of 2 experts, top-1: A A B, windows of 2: AA, AB.
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![0, 0, 1], Phase::Decode)?;
/// let mut srp = Srp::new(&geometry, 2)?;
/// srp.update(&sequence.view(&geometry, 0)?)?;
/// let report = srp.finish()?;
/// // A is used 2 and 1 times: F1(0) = F1(1) = 2 * 3 / (2 * 2 + 3). B 0 and 1 times: F1(1) = 2 * 1 / (2 * 1 + 1).
/// assert_eq!(report.layers[0].experts[0].srp, 6.0 / 7.0);
/// assert_eq!(report.layers[0].experts[1].srp, 2.0 / 3.0);
/// // Together, with one threshold: F1(1) = 2 * 4 / (2 * 3 + 4).
/// assert_eq!(report.model.srp, 0.8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Srp {
    window: usize,
    selection: Selection,
    layers: Vec<WindowHistogram>,
    windows: u64,
    sequences: u64,
    longest: usize,
    #[serde(skip)]
    scratch: Accesses,
}

impl Srp {
    /// Creates the SRP of all layers for windows of `window` tokens.
    ///
    /// # Errors
    /// [`MetricError::Window`] for a window of no token.
    pub fn new(geometry: &Geometry, window: usize) -> Result<Srp> {
        Srp::over(Selection::all(geometry), window)
    }

    /// Creates the SRP of some layers; the model level then pools these.
    ///
    /// # Errors
    /// [`MetricError::Window`]; [`MetricError::NoLayers`] or a layer out of range.
    pub fn of_layers(geometry: &Geometry, layers: &[LayerId], window: usize) -> Result<Srp> {
        Srp::over(Selection::new(geometry, layers)?, window)
    }

    fn over(selection: Selection, window: usize) -> Result<Srp> {
        if window == 0 {
            return Err(MetricError::Window { window });
        }
        let layers = vec![WindowHistogram::new(window, selection.experts()); selection.layers().len()];
        Ok(Srp { window, selection, layers, windows: 0, sequences: 0, longest: 0, scratch: Accesses::new() })
    }

    /// Adds the accesses of a sequence to one of the selected layers.
    pub(crate) fn update_layer(&mut self, position: usize, accesses: &Accesses) {
        self.layers[position].update(accesses);
    }

    /// Counts a sequence of which every selected layer was added.
    pub(crate) fn count_sequence(&mut self, tokens: usize) {
        self.windows += (tokens + 1).saturating_sub(self.window) as u64;
        self.sequences += 1;
        self.longest = self.longest.max(tokens);
    }

    /// The layers that are looked at.
    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Number of sequences.
    pub(crate) fn sequences(&self) -> u64 {
        self.sequences
    }

    /// Window length in tokens.
    pub(crate) fn window(&self) -> usize {
        self.window
    }

    /// Adds the windows of one expert of a selected layer to `counts`, `[window + 1]`.
    pub(crate) fn add_counts(&self, position: usize, expert: usize, counts: &mut [u64]) {
        self.layers[position].add_to(expert, counts);
    }

    /// The values of the sequences so far.
    ///
    /// # Errors
    /// [`MetricError::WindowTooLong`] if no sequence has a window.
    pub fn finish(&self) -> Result<SrpReport> {
        if self.windows == 0 {
            let (window, longest, sequences) = (self.window, self.longest, self.sequences);
            return Err(MetricError::WindowTooLong { window, longest, sequences });
        }
        Ok(SrpReport::pool(self.window, self.windows, &self.selection, |position, expert, counts| {
            self.add_counts(position, expert, counts);
        }))
    }
}

impl Accumulator for Srp {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.selection.check(sequence)?;
        for position in 0..self.layers.len() {
            self.scratch.fill(sequence, &self.selection.layers()[position..=position])?;
            self.layers[position].update(&self.scratch);
        }
        self.count_sequence(sequence.len());
        Ok(())
    }

    fn merge(&mut self, other: &Srp) -> Result<()> {
        same("window length", &self.window, &other.window)?;
        self.selection.same(&other.selection)?;
        self.layers.iter_mut().zip(&other.layers).for_each(|(sum, more)| sum.merge(more));
        self.windows += other.windows;
        self.sequences += other.sequences;
        self.longest = self.longest.max(other.longest);
        Ok(())
    }
}

checked_serde!(Srp);

impl Restore for Srp {
    fn restore(&mut self) -> Result<()> {
        within("window length", 1, u128::MAX, self.window as u128)?;
        within("number of windows", 0, MOST.into(), self.windows.into())?;
        within("number of sequences", 0, MOST.into(), self.sequences.into())?;
        intact("number of layers", &self.selection.layers().len(), &self.layers.len())?;
        let (window, experts, windows) = (self.window, self.selection.experts(), self.windows);
        let all = u128::from(windows) * (self.layers.len() * experts) as u128;
        within("number of windows of all experts", 0, MOST.into(), all)?;
        self.layers.iter_mut().try_for_each(|layer| layer.restore(window, experts, windows))
    }
}
