//! A small generator of random numbers.

/// Steele, Lea and Flood's SplitMix64: small, seeded, and good enough for groups and null routers.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix(u64);

impl SplitMix {
    pub(crate) fn new(seed: u64) -> SplitMix {
        SplitMix(seed)
    }

    /// The stream of a tuple of numbers: equal for equal ones, unrelated for others.
    pub(crate) fn keyed(keys: [u64; 3]) -> SplitMix {
        keys.into_iter().fold(SplitMix(0), |stream, key| SplitMix(SplitMix(stream.0 ^ key).next()))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..limit`, up to a bias of `limit / 2^64`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let product = u128::from(self.next()) * limit as u128;
        usize::try_from(product >> 64).expect("below limit")
    }
}
