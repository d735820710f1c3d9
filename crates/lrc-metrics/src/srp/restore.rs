//! Checks of a serialized SRP.

use super::{Srp, WindowSrp};
use crate::{
    accumulate::{MOST, Restore, Selection, checked_serde, intact, within},
    error::Result,
};

checked_serde!(Srp);

impl Restore for Srp {
    fn restore(&mut self) -> Result<()> {
        within("number of sequences", 0, MOST.into(), self.sequences.into())?;
        within("length of the longest sequence", 0, MOST.into(), self.longest as u128)?;
        let mut shortest = 1;
        for length in &mut self.lengths {
            within("window length", shortest, u128::MAX, length.window as u128)?;
            shortest = length.window as u128 + 1;
            length.restore(&self.selection, self.sequences, self.longest)?;
        }
        Ok(())
    }
}

impl WindowSrp {
    /// Checks the histograms of one window length, and rebuilds the sliding windows.
    fn restore(&mut self, selection: &Selection, sequences: u64, longest: usize) -> Result<()> {
        let most = (u128::from(sequences) * u128::from(self.count(longest))).min(MOST.into());
        within("number of windows", 0, most, self.windows.into())?;
        intact("number of layers", &selection.layers().len(), &self.layers.len())?;
        let (window, experts, windows) = (self.window, selection.experts(), self.windows);
        let all = u128::from(windows) * (self.layers.len() * experts) as u128;
        within("number of windows of all experts", 0, MOST.into(), all)?;
        self.layers.iter_mut().try_for_each(|layer| layer.restore(window, experts, windows))
    }
}
