//! Sixteen levels of a priority stack in vector registers.

use std::fmt::Debug;

/// Levels that an operation serves.
pub(super) const LANES: usize = 16;

/// The demand at a level that no expert has, and of an expert that has no level.
pub(super) const ABSENT: u32 = 0;

/// No demand is as large, so that it can mark a level.
pub(super) const NO_DEMAND: u32 = u32::MAX;

/// Priorities are below this, so that the demand of an expert is neither [`ABSENT`] nor [`NO_DEMAND`].
pub(super) const PRIORITIES: u64 = NO_DEMAND as u64 - 1;

/// How much an expert demands to sink, the more the lower its priority.
#[inline(always)]
pub(super) fn demand(priority: u64) -> u32 {
    NO_DEMAND - 1 - narrow(priority)
}

/// A priority, or what is added to one, of a sequence whose priorities are below [`PRIORITIES`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "priorities were found to be below 2^32 when the sequence started")]
pub(super) fn narrow(priority: u64) -> u32 {
    priority as u32
}

/// Levels after an expert was served.
pub(super) struct Sunk<L> {
    pub(super) levels: L,
    /// The lanes that held the served expert.
    pub(super) found: u16,
    /// What sinks on, in every lane.
    pub(super) below: L,
}

/// Operations on sixteen levels with the instructions of some processors.
///
/// Levels hold demands alone. As no two experts that are used again have the same one, the level of an expert is found by
/// comparing with its demand. What sinks before level `i` is the maximum over the levels above, so that a register of
/// levels is served by one exclusive prefix maximum:
///
/// ```text
/// level      0   1   2   3   4   5
/// before     5   1   7   2   3   6     the expert at level 4 is served, its new demand is 4
/// sinking        5   5   7   7         maximum of the levels above
/// after      4   1   5   2   7   6     the smaller of the two; at its old level what sinks
/// ```
pub(super) trait Lanes: Copy + Debug {
    /// Sixteen demands.
    type Levels: Copy + Debug;

    /// The instructions, if the processor has them.
    fn detect() -> Option<Self>;

    /// Runs code compiled for these instructions.
    fn vectorize<T>(self, run: impl FnOnce() -> T) -> T;

    fn splat(self, demand: u32) -> Self::Levels;

    /// Lanes that hold a demand.
    fn find(self, levels: Self::Levels, demand: Self::Levels) -> u16;

    /// Lanes that hold a demand, of 64 levels or fewer.
    #[inline(always)]
    fn find_among(self, levels: &[Self::Levels], demand: Self::Levels) -> u64 {
        let registers = (0..).step_by(LANES).zip(levels);
        registers.fold(0, |found, (shift, &levels)| found | u64::from(self.find(levels, demand)) << shift)
    }

    /// Lowers one demand.
    fn lower(self, levels: Self::Levels, demand: Self::Levels, by: Self::Levels) -> Self::Levels;

    /// Replaces the first demand `old` by `new`; returns the lanes that held it.
    fn rank(self, levels: Self::Levels, old: Self::Levels, new: Self::Levels) -> (Self::Levels, u16);

    /// Serves an expert of demand `old` in levels that come below a level that `above` sinks from. If they are the top
    /// ones and the expert goes there, `top` is its new demand, and `above` is 0.
    fn sink(
        self,
        levels: Self::Levels,
        above: Self::Levels,
        old: Self::Levels,
        top: Option<Self::Levels>,
    ) -> Sunk<Self::Levels>;

    /// The demand in the first lane.
    fn first(self, levels: Self::Levels) -> u32;

    /// The largest demand of 64 levels.
    fn most(self, levels: [Self::Levels; 4]) -> u32;
}
