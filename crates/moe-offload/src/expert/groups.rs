//! Tokens through several experts.

use std::ops::Deref;

use candle_core::Tensor;
use rayon::prelude::*;

use super::weights::ExpertWeights;
use crate::error::Result;

/// Weights times tokens from which on threads share experts: below, waking them takes longer.
const SHARED_PRODUCTS: usize = 1 << 23;

/// An expert and the rows of a batch that it serves.
pub(super) type ExpertGroup<'a, E> = (E, &'a [u32]);

/// Sends rows of `hidden` through the experts; returns the output of each, which no sharing changes.
pub(crate) fn forward_each<E>(hidden: &Tensor, groups: &[ExpertGroup<'_, E>]) -> Result<Vec<Tensor>>
where
    E: Deref<Target = ExpertWeights> + Sync,
{
    let forward = |(expert, rows): &ExpertGroup<'_, E>| expert.forward(&gather(hidden, rows)?);
    let products = |(expert, rows): &ExpertGroup<'_, E>| expert.dense_weights().map(|weights| weights * rows.len());
    let rows = groups.iter().map(|(_, rows)| rows.len()).sum();
    if !are_shared(groups.len(), rows, groups.iter().map(products).sum()) {
        return groups.iter().map(forward).collect();
    }
    // All of them are computed; of several errors the first counts, whichever thread was faster.
    let outputs: Vec<Result<Tensor>> = groups.par_iter().map(forward).collect();
    outputs.into_iter().collect()
}

/// Whether threads take different experts, where each thread would get two or more. Products of one token wait for memory, and
/// those of quantized weights, which have no `products`, share the threads among themselves.
pub(crate) fn are_shared(experts: usize, rows: usize, products: Option<usize>) -> bool {
    are_shared_by(rayon::current_num_threads(), experts, rows, products)
}

fn are_shared_by(threads: usize, experts: usize, rows: usize, products: Option<usize>) -> bool {
    threads > 1
        && experts >= 2 * threads
        && rows > experts
        && products.is_some_and(|products| products >= SHARED_PRODUCTS)
}

/// Returns the rows of `hidden` in the given order.
pub(crate) fn gather(hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if rows.len() == hidden.dim(0)? && (0..).zip(rows).all(|(row, &wanted)| row == wanted) {
        return Ok(hidden.clone());
    }
    let rows = Tensor::from_slice(rows, rows.len(), hidden.device())?;
    Ok(hidden.index_select(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use moe_trace::{ExpertId, LayerId};

    use super::*;
    use crate::expert::shape::ExpertShape;
    use crate::store::{ExpertStore, RandomExperts};
    use crate::weights::WeightType;

    const SHAPE: ExpertShape = ExpertShape { layers: 1, experts: 8, hidden: 256, intermediate: 192 };

    #[test]
    fn threads_share_many_dense_experts_of_several_tokens() {
        let enough = Some(SHARED_PRODUCTS);
        assert!(are_shared_by(4, 8, 9, enough));
        assert!(!are_shared_by(1, 8, 9, enough) && !are_shared_by(5, 8, 9, enough));
        assert!(!are_shared_by(4, 8, 8, enough) && !are_shared_by(4, 8, 9, Some(SHARED_PRODUCTS - 1)));
        assert!(!are_shared_by(4, 8, 9, None));
    }

    #[test]
    fn what_threads_share_is_what_each_expert_gives() {
        let rows: Vec<u32> = (0..16).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for weight_type in [WeightType::F32, WeightType::BF16, WeightType::Q8_0] {
            let store = RandomExperts::new(SHAPE, weight_type, 7).unwrap();
            let experts = (0..8).map(|expert| store.fetch(LayerId(0), ExpertId(expert)).unwrap());
            let experts: Vec<ExpertWeights> = experts.collect();
            let groups: Vec<_> = experts.iter().map(|expert| (expert, &rows[..])).collect();
            let products = experts[0].dense_weights().map(|weights| 8 * 16 * weights);
            assert_eq!(are_shared_by(4, 8, 8 * 16, products), weight_type != WeightType::Q8_0, "{weight_type}");

            let hidden = (0..16 * 256).map(|i| (i as f32 * 0.37).cos()).collect();
            let hidden = Tensor::from_vec(hidden, (16, 256), &Device::Cpu).unwrap();
            let hidden = hidden.to_dtype(weight_type.activations()).unwrap();
            let together = pool.install(|| forward_each(&hidden, &groups)).unwrap();
            for (expert, output) in experts.iter().zip(together) {
                let numbers = |tensor: Tensor| {
                    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                assert_eq!(numbers(output), numbers(expert.forward(&hidden).unwrap()), "{weight_type}");
            }
        }
    }
}
