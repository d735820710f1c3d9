//! How often an expert is used by a window: histograms of one layer.

use expert_cache::curve::Accesses;
use num_traits::{One, WrappingAdd, WrappingSub, Zero};
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{intact, within},
    error::Result,
};

/// Slides a window over one sequence after the other.
///
/// While a window slides over a sequence, the count of an expert is a step function of the window's start `p`. It is at
/// least `a` from the start at which it rises from `a - 1` to `a` to the start at which it falls back, so the number of
/// windows is the sum of the latter less the sum of the former:
///
/// ```text
/// at_least[a] = sum of p over falls from a to a - 1  -  sum of p over rises from a - 1 to a
/// ```
///
/// Every use of an expert is one rise, `window` tokens before it, and one fall, after it. Before the first window all
/// counts are 0, and where there is no further window they fall to 0 again. So a sequence costs two additions a use,
/// whatever the number of experts and the window length, and windows without a use cost nothing. Between a rise and its
/// fall a sum can be below 0; it wraps, which is exact as long as the result fits.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlidingWindow {
    window: usize,
    /// The cell of the sums to which the next rise of each expert belongs, that is, its row and its count in the current
    /// window. Every count is 0 between sequences.
    rising: Vec<usize>,
}

impl SlidingWindow {
    /// Creates a window of at least one token over a layer.
    pub(crate) fn new(window: usize, experts: usize) -> SlidingWindow {
        SlidingWindow { window, rising: (0..experts).map(|expert| expert * window).collect() }
    }

    /// Adds the windows of a sequence to `at_least`, `[experts x window]`; one shorter than the window has none.
    pub(crate) fn add<C>(&mut self, accesses: &Accesses, at_least: &mut [C])
    where
        C: Copy + Zero + One + WrappingAdd + WrappingSub,
    {
        if accesses.token_count() < self.window {
            return;
        }
        let rising = self.rising.as_mut_slice();
        let (mut entering, mut leaving) = (accesses.tokens(), accesses.tokens());
        for keys in entering.by_ref().take(self.window - 1) {
            each(keys, |expert| rising[expert as usize] += 1);
        }
        let mut start = C::zero();
        for (entering, leaving) in entering.zip(leaving.by_ref()) {
            each(entering, |expert| {
                let cell = &mut rising[expert as usize];
                at_least[*cell] = at_least[*cell].wrapping_sub(&start);
                *cell += 1;
            });
            start = start.wrapping_add(&C::one());
            each(leaving, |expert| fall(expert, start, rising, at_least));
        }
        for keys in leaving {
            each(keys, |expert| fall(expert, start, rising, at_least));
        }
    }
}

#[inline(always)]
fn fall<C: Copy + WrappingAdd>(expert: u32, start: C, rising: &mut [usize], at_least: &mut [C]) {
    let cell = &mut rising[expert as usize];
    *cell -= 1;
    at_least[*cell] = at_least[*cell].wrapping_add(&start);
}

/// Calls `step` for every key, four keys a turn of the loop: with one, the turn costs half as much as the step.
#[inline(always)]
fn each(keys: &[u32], mut step: impl FnMut(u32)) {
    let (fours, rest) = keys.as_chunks::<4>();
    for four in fours {
        four.iter().for_each(|&key| step(key));
    }
    rest.iter().for_each(|&key| step(key));
}

/// Adds `windows` windows, of which `at_least[a - 1]` have `a` uses or more, to `counts`: `counts[f]` have `f` uses,
/// `[window + 1]`.
pub(crate) fn add_counts(windows: u64, at_least: &[u64], counts: &mut [u64]) {
    let mut before = windows;
    for (count, &more) in counts.iter_mut().zip(at_least) {
        *count += before - more;
        before = more;
    }
    if let Some(last) = counts.last_mut() {
        *last += before;
    }
}

/// Checks of numbers that were read that of `windows` windows at least as many use an expert `a` times as `a + 1` times.
pub(crate) fn check_at_least<C: Copy + Into<u64>>(windows: u64, at_least: &[C]) -> Result<()> {
    let mut most = windows;
    for &more in at_least {
        within("number of windows of a number of uses or more", 0, most.into(), more.into().into())?;
        most = more.into();
    }
    Ok(())
}

/// For every expert of a layer the number of windows that use it at least `a` times, `a` in `1..=window`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct WindowHistogram {
    window: usize,
    experts: usize,
    /// `[experts x window]`; empty until a sequence is long enough, so that memory follows the data and not the window
    /// asked for.
    at_least: Vec<u64>,
    #[serde(skip)]
    sliding: SlidingWindow,
}

impl WindowHistogram {
    /// Creates the histogram of no window. `window` must be at least 1.
    pub(super) fn new(window: usize, experts: usize) -> WindowHistogram {
        WindowHistogram { window, experts, at_least: Vec::new(), sliding: SlidingWindow::default() }
    }

    /// Adds the windows of a sequence; a sequence shorter than the window has none.
    pub(super) fn update(&mut self, accesses: &Accesses) {
        if accesses.token_count() >= self.window {
            self.allocate();
            self.sliding.add(accesses, &mut self.at_least);
        }
    }

    /// Adds the windows of another histogram of the same shape.
    pub(super) fn merge(&mut self, other: &WindowHistogram) {
        assert_eq!((self.window, self.experts), (other.window, other.experts), "histograms of different shapes");
        if other.at_least.is_empty() {
            return;
        }
        self.allocate();
        for (sum, more) in self.at_least.iter_mut().zip(&other.at_least) {
            *sum += more;
        }
    }

    /// Adds the windows of one expert, `windows` in all, to `counts`: `counts[f]` windows use it `f` times,
    /// `[window + 1]`.
    pub(super) fn add_to(&self, expert: usize, windows: u64, counts: &mut [u64]) {
        let row = self.at_least.get(expert * self.window..(expert + 1) * self.window).unwrap_or_default();
        add_counts(windows, row, counts);
    }

    /// Checks a state that was read.
    pub(super) fn restore(&mut self, window: usize, experts: usize, windows: u64) -> Result<()> {
        intact("window length of a layer", &window, &self.window)?;
        intact("number of experts of a layer", &experts, &self.experts)?;
        if self.at_least.is_empty() {
            return intact("number of windows without a histogram", &0, &windows);
        }
        let expected = experts as u128 * window as u128;
        within("length of a histogram", expected, expected, self.at_least.len() as u128)?;
        self.at_least.chunks_exact(window).try_for_each(|row| check_at_least(windows, row))?;
        self.sliding = SlidingWindow::new(window, experts);
        Ok(())
    }

    fn allocate(&mut self) {
        if self.at_least.is_empty() {
            self.at_least = vec![0; self.experts * self.window];
            self.sliding = SlidingWindow::new(self.window, self.experts);
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};

    use super::*;

    fn accesses(experts: Vec<u16>) -> Accesses {
        let geometry = Geometry::decoder(1, 2, 1).unwrap();
        let sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Decode).unwrap();
        let mut accesses = Accesses::new();
        accesses.fill(&sequence.view(&geometry, 0).unwrap(), &[LayerId(0)]).unwrap();
        accesses
    }

    /// Histogram of one sequence of a layer of 2 experts, top-1, and the counts of both experts.
    fn counted(experts: Vec<u16>, window: usize) -> (WindowHistogram, [Vec<u64>; 2]) {
        let windows = (experts.len() + 1).saturating_sub(window) as u64;
        let accesses = accesses(experts);
        let mut histogram = WindowHistogram::new(window, 2);
        histogram.update(&accesses);
        let counts = [0, 1].map(|expert| {
            let mut counts = vec![0; window + 1];
            histogram.add_to(expert, windows, &mut counts);
            counts
        });
        (histogram, counts)
    }

    #[test]
    fn windows_by_hand() {
        // A A B A in windows of 2: AA, AB, BA. A is used 2, 1, 1 times, B 0, 1, 1 times.
        let (histogram, counts) = counted(vec![0, 0, 1, 0], 2);
        assert_eq!(histogram.at_least, [3, 1, 2, 0]);
        assert_eq!(counts, [vec![0, 2, 1], vec![1, 2, 0]]);
        assert_eq!(histogram.sliding.rising, [0, 2]);
        // One window of 4, and none of 5.
        assert_eq!(counted(vec![0, 0, 1, 0], 4).1, [vec![0, 0, 0, 1, 0], vec![0, 1, 0, 0, 0]]);
        assert!(counted(vec![0, 0, 1, 0], 5).0.at_least.is_empty());
    }

    /// Starts of a long sequence sum up to more than 32 bits.
    #[test]
    fn sums_of_starts_do_not_overflow() {
        let pairs = 1 << 17;
        // A B A B ..: every window of 3 has two of one and one of the other.
        let (_, counts) = counted([0, 1].repeat(pairs), 3);
        let half = pairs as u64 - 1;
        assert_eq!(counts, [vec![0, half, half, 0], vec![0, half, half, 0]]);
        let (_, counts) = counted(vec![1; 2 * pairs], 3);
        assert_eq!(counts, [vec![2 * half, 0, 0, 0], vec![0, 0, 0, 2 * half]]);
    }

    /// Sums of 32 bits wrap, and are those of 64 bits as long as these fit.
    #[test]
    fn narrow_sums_are_exact() {
        let mut state = 1u32;
        let ids = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            u16::try_from(state >> 31).unwrap()
        });
        let accesses = accesses(ids.take(200_000).collect());
        let mut narrow = SlidingWindow::new(16, 2);
        let (mut sums, mut histogram) = ([0u32; 32], WindowHistogram::new(16, 2));
        for _ in 0..2 {
            narrow.add(&accesses, &mut sums);
            histogram.update(&accesses);
        }
        assert_eq!(sums.map(u64::from).as_slice(), histogram.at_least);
    }
}
