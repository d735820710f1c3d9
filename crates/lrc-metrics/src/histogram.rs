//! How often an expert is used by a window: histograms of one layer.

use expert_cache::curve::Accesses;
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    serialized::{intact, within},
};

/// For every expert of a layer the number of windows in which it is used `f` times, `f` in `0..=window`.
///
/// While a window slides over a sequence, the count of an expert is a step function of the window's start `p`. Instead
/// of counting every window, each step is recorded once: a step from `f` to `f + 1` at `p` ends a run at `f` and begins
/// one at `f + 1`, so it adds `p` to the windows of `f` and takes `p` from those of `f + 1`; a step down does the
/// opposite. Both are one addition to `crossings[f]`. So a sequence costs two steps an activation, whatever the number
/// of experts and the window length, and windows without a use cost nothing.
///
/// ```text
/// windows(f) = resting[f] + crossings[f] - crossings[f - 1]      (mod 2^64, exact since the result is below 2^64)
/// ```
///
/// where `resting[f]` sums the number of windows of the sequences whose last window has count `f`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WindowHistogram {
    window: usize,
    experts: usize,
    /// `[experts x (window + 1)]`, the last of a row unused; empty until a sequence is long enough, so that memory
    /// follows the data and not the window asked for.
    crossings: Vec<u64>,
    /// `[experts x (window + 1)]`.
    resting: Vec<u64>,
    /// Uses of each expert by the current window; all 0 between sequences.
    #[serde(skip)]
    running: Vec<usize>,
}

impl WindowHistogram {
    /// Creates the histogram of no window. `window` must be at least 1.
    pub(crate) fn new(window: usize, experts: usize) -> WindowHistogram {
        WindowHistogram { window, experts, crossings: Vec::new(), resting: Vec::new(), running: Vec::new() }
    }

    /// Adds the windows of a sequence; a sequence shorter than the window has none.
    pub(crate) fn update(&mut self, accesses: &Accesses) {
        let (tokens, window, stride) = (accesses.token_count(), self.window, self.window.saturating_add(1));
        if tokens < window {
            return;
        }
        self.allocate();
        for token in 0..window {
            for &expert in accesses.token(token) {
                self.running[expert as usize] += 1;
            }
        }
        for start in 1..=tokens - window {
            let weight = start as u64;
            for &expert in accesses.token(start - 1) {
                let uses = &mut self.running[expert as usize];
                *uses -= 1;
                let crossing = &mut self.crossings[expert as usize * stride + *uses];
                *crossing = crossing.wrapping_sub(weight);
            }
            for &expert in accesses.token(start + window - 1) {
                let uses = &mut self.running[expert as usize];
                let crossing = &mut self.crossings[expert as usize * stride + *uses];
                *crossing = crossing.wrapping_add(weight);
                *uses += 1;
            }
        }
        let windows = (tokens - window + 1) as u64;
        for (resting, uses) in self.resting.chunks_exact_mut(stride).zip(&mut self.running) {
            resting[std::mem::take(uses)] += windows;
        }
    }

    /// Adds the windows of another histogram of the same shape.
    pub(crate) fn merge(&mut self, other: &WindowHistogram) {
        assert_eq!((self.window, self.experts), (other.window, other.experts), "histograms of different shapes");
        if other.crossings.is_empty() {
            return;
        }
        self.allocate();
        for (sum, more) in self.crossings.iter_mut().zip(&other.crossings) {
            *sum = sum.wrapping_add(*more);
        }
        for (sum, more) in self.resting.iter_mut().zip(&other.resting) {
            *sum += more;
        }
    }

    /// Adds the windows of one expert to `counts`, `[window + 1]`.
    pub(crate) fn add_to(&self, expert: usize, counts: &mut [u64]) {
        if self.crossings.is_empty() {
            return;
        }
        let row = expert * (self.window + 1)..(expert + 1) * (self.window + 1);
        let mut above_previous = 0;
        for ((count, &resting), &crossing) in
            counts.iter_mut().zip(&self.resting[row.clone()]).zip(&self.crossings[row])
        {
            *count += resting.wrapping_add(crossing).wrapping_sub(above_previous);
            above_previous = crossing;
        }
    }

    /// Checks a state that was read: every expert has a count for each of `windows` windows.
    pub(crate) fn restore(&mut self, window: usize, experts: usize, windows: u64) -> Result<()> {
        intact("window length of a layer", &window, &self.window)?;
        intact("number of experts of a layer", &experts, &self.experts)?;
        intact("length of a histogram", &self.crossings.len(), &self.resting.len())?;
        if self.crossings.is_empty() {
            return intact("number of windows without a histogram", &0, &windows);
        }
        let expected = experts as u128 * (window as u128 + 1);
        within("length of a histogram", expected, expected, self.crossings.len() as u128)?;
        self.running = vec![0; experts];
        self.resting.iter().try_for_each(|&resting| within("windows at rest", 0, windows.into(), resting.into()))?;
        for expert in 0..experts {
            let mut counts = vec![0; window + 1];
            self.add_to(expert, &mut counts);
            let sum = counts.into_iter().map(u128::from).sum();
            within("number of windows of an expert", windows.into(), windows.into(), sum)?;
        }
        Ok(())
    }

    fn allocate(&mut self) {
        if self.crossings.is_empty() {
            let len = self.experts * (self.window + 1);
            self.crossings = vec![0; len];
            self.resting = vec![0; len];
            self.running = vec![0; self.experts];
        }
    }
}
