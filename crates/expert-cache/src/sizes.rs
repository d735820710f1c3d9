//! What an expert takes of a cache.

use std::sync::Arc;

use crate::{CacheError, ExpertKey, Pool, Result};

/// Bytes of each expert of a pool; they differ where layers or experts are quantized differently.
///
/// ```
/// use expert_cache::{ExpertKey, ExpertSizes, Pool};
/// use moe_trace::Geometry;
///
/// let pool = Pool::model(&Geometry::decoder(2, 4, 1)?);
/// let sizes = ExpertSizes::by_layer(&pool, &[100, 60])?;
/// assert_eq!((sizes.of(ExpertKey(3)), sizes.of(ExpertKey(4)), sizes.total()), (100, 60, 640));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertSizes {
    universe: usize,
    each: Each,
    total: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Each {
    Same(u64),
    Own(Arc<[u64]>),
}

impl ExpertSizes {
    /// All `universe` experts have the same size.
    ///
    /// # Errors
    /// [`CacheError::EmptyPool`] without experts, [`CacheError::ExpertBytes`] for a size of 0 or a total above
    /// `u64::MAX`.
    pub fn uniform(universe: usize, bytes: u64) -> Result<ExpertSizes> {
        if universe == 0 {
            return Err(CacheError::EmptyPool);
        }
        let total = (universe as u64).checked_mul(bytes).filter(|&total| total > 0);
        let total = total.ok_or(CacheError::ExpertBytes { expert: 0, bytes })?;
        Ok(ExpertSizes { universe, each: Each::Same(bytes), total })
    }

    /// Every expert has its own size, `[universe]`.
    ///
    /// # Errors
    /// As [`uniform`](Self::uniform).
    pub fn each(bytes: Vec<u64>) -> Result<ExpertSizes> {
        let first = *bytes.first().ok_or(CacheError::EmptyPool)?;
        if bytes.iter().all(|&bytes| bytes == first) {
            return ExpertSizes::uniform(bytes.len(), first);
        }
        let mut total = 0u64;
        for (expert, &bytes) in bytes.iter().enumerate() {
            let sum = total.checked_add(bytes).filter(|_| bytes > 0);
            total = sum.ok_or(CacheError::ExpertBytes { expert, bytes })?;
        }
        Ok(ExpertSizes { universe: bytes.len(), each: Each::Own(bytes.into()), total })
    }

    /// The experts of a layer have the same size, `[layers of the pool]`.
    ///
    /// # Errors
    /// As [`uniform`](Self::uniform), and [`CacheError::LayerSizes`] for another number of layers.
    pub fn by_layer(pool: &Pool, bytes: &[u64]) -> Result<ExpertSizes> {
        let layers = pool.layers().len();
        if bytes.len() != layers {
            return Err(CacheError::LayerSizes { found: bytes.len(), layers });
        }
        let experts = pool.shape().experts;
        ExpertSizes::each(bytes.iter().flat_map(|&bytes| std::iter::repeat_n(bytes, experts)).collect())
    }

    /// Number of experts.
    pub fn universe(&self) -> usize {
        self.universe
    }

    /// Bytes of an expert.
    ///
    /// # Panics
    /// May panic if the expert is outside of the pool.
    #[inline]
    pub fn of(&self, expert: ExpertKey) -> u64 {
        match &self.each {
            Each::Same(bytes) => *bytes,
            Each::Own(bytes) => bytes[expert.index()],
        }
    }

    /// Bytes of all experts.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of the largest expert.
    pub fn largest(&self) -> u64 {
        match &self.each {
            Each::Same(bytes) => *bytes,
            Each::Own(bytes) => bytes.iter().copied().max().unwrap_or_default(),
        }
    }

    /// The most experts that fit into so many bytes.
    pub fn most_within(&self, bytes: u64) -> usize {
        match &self.each {
            Each::Same(each) => usize::try_from(bytes / each).unwrap_or(usize::MAX).min(self.universe),
            Each::Own(own) => {
                let mut own = own.to_vec();
                own.sort_unstable();
                let mut used = 0u64;
                own.iter()
                    .take_while(|&&size| {
                        used = used.saturating_add(size);
                        used <= bytes
                    })
                    .count()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::Geometry;

    use super::*;

    #[test]
    fn impossible_sizes_are_refused() {
        let message = |sizes: Result<ExpertSizes>| sizes.unwrap_err().to_string();
        assert_eq!(message(ExpertSizes::uniform(0, 1)), "a pool has no layer");
        assert_eq!(message(ExpertSizes::each(vec![])), "a pool has no layer");
        assert_eq!(message(ExpertSizes::each(vec![2, 0])), "expert 1 of the pool has an impossible size of 0 bytes");
        let most = u64::MAX;
        assert_eq!(
            message(ExpertSizes::uniform(2, most)),
            format!("expert 0 of the pool has an impossible size of {most} bytes")
        );
        assert!(ExpertSizes::each(vec![most, 1]).is_err());
        let pool = Pool::model(&Geometry::decoder(2, 4, 1).unwrap());
        assert_eq!(message(ExpertSizes::by_layer(&pool, &[1])), "there are sizes for 1 layers, the pool has 2");
    }

    #[test]
    fn the_smallest_experts_tell_how_many_fit() {
        let sizes = ExpertSizes::each(vec![5, 1, 3]).unwrap();
        assert_eq!([0, 1, 3, 4, 8, 9].map(|bytes| sizes.most_within(bytes)), [0, 1, 1, 2, 2, 3]);
        assert_eq!(ExpertSizes::each(vec![4, 4]).unwrap(), ExpertSizes::uniform(2, 4).unwrap());
        assert_eq!(ExpertSizes::uniform(2, 4).unwrap().most_within(u64::MAX), 2);
    }
}
