//! Sets of instructions that a curve is compiled for.

#[cfg(target_arch = "x86_64")]
use super::{lanes::Lanes, lanes_avx2::Avx2, lanes_avx512::Avx512};

/// The instructions that a pass uses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Instructions {
    /// Of x86-64-v4.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// Of x86-64-v3.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// What every processor has that the program runs on.
    Portable,
}

impl Instructions {
    /// Those that this processor has, the best first.
    pub(super) fn available() -> impl Iterator<Item = Instructions> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [Avx512::detect().map(Instructions::Avx512), Avx2::detect().map(Instructions::Avx2)];
        #[cfg(not(target_arch = "x86_64"))]
        let vectors = [None];
        vectors.into_iter().flatten().chain([Instructions::Portable])
    }

    /// The best that this processor has.
    pub(super) fn best() -> Instructions {
        Instructions::available().next().unwrap_or(Instructions::Portable)
    }

    /// A short name: `avx512`, `avx2`, `portable`.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(_) => "avx2",
            Instructions::Portable => "portable",
        }
    }

    /// Runs code compiled for these instructions.
    #[inline(always)]
    pub(super) fn vectorize<T>(self, run: impl FnOnce() -> T) -> T {
        match self {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(lanes) => lanes.vectorize(run),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(lanes) => lanes.vectorize(run),
            Instructions::Portable => run(),
        }
    }
}
