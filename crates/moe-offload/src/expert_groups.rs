//! Tokens through several experts.

use std::ops::Deref;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::dispatch::gather;
use crate::{ExpertWeights, Result};

/// Weights times tokens from which on threads take experts in turn: below, waking them takes longer.
const SHARED_PRODUCTS: usize = 1 << 23;

/// An expert and the rows of a batch that it serves.
pub(crate) type ExpertGroup<'a, E> = (E, &'a [u32]);

/// Sends rows of `hidden` through the experts; returns the output of each, which no sharing changes.
pub(crate) fn forward_each<E>(hidden: &Tensor, groups: &[ExpertGroup<'_, E>]) -> Result<Vec<Tensor>>
where
    E: Deref<Target = ExpertWeights> + Sync,
{
    let forward = |(expert, rows): &ExpertGroup<'_, E>| expert.forward(&gather(hidden, rows)?);
    match are_shared(groups, rayon::current_num_threads()) {
        true => groups.par_iter().map(forward).collect(),
        false => groups.iter().map(forward).collect(),
    }
}

/// Whether threads take experts in turn: where each would get two or more. Products of one token wait for memory, and those
/// of quantized weights share the threads among themselves.
fn are_shared<E: Deref<Target = ExpertWeights>>(groups: &[ExpertGroup<'_, E>], threads: usize) -> bool {
    let products = |(expert, rows): &ExpertGroup<'_, E>| expert.dense_weights().map(|weights| weights * rows.len());
    let tokens: usize = groups.iter().map(|(_, rows)| rows.len()).sum();
    threads > 1
        && groups.len() >= 2 * threads
        && tokens > groups.len()
        && groups.iter().map(products).sum::<Option<usize>>().is_some_and(|products| products >= SHARED_PRODUCTS)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use moe_trace::{ExpertId, LayerId};

    use super::*;
    use crate::{ExpertShape, ExpertStore, RandomExperts, WeightType};

    const SHAPE: ExpertShape = ExpertShape { layers: 1, experts: 8, hidden: 256, intermediate: 192 };

    #[test]
    fn what_threads_share_is_what_each_expert_gives() {
        let rows: Vec<u32> = (0..16).collect();
        for weight_type in [WeightType::F32, WeightType::BF16, WeightType::Q8_0] {
            let store = RandomExperts::new(SHAPE, weight_type, 7).unwrap();
            let experts = (0..8).map(|expert| store.fetch(LayerId(0), ExpertId(expert)).unwrap());
            let experts: Vec<ExpertWeights> = experts.collect();
            let groups: Vec<_> = experts.iter().map(|expert| (expert, &rows[..])).collect();
            assert_eq!(are_shared(&groups, 4), weight_type != WeightType::Q8_0, "{weight_type}");
            assert!(!are_shared(&groups, 5) && !are_shared(&groups, 1) && !are_shared(&groups[..2], 1));
            let alone: Vec<_> = experts.iter().map(|expert| (expert, &rows[..1])).collect();
            assert!(!are_shared(&alone, 4));

            let hidden = (0..16 * 256).map(|i| (i as f32 * 0.37).cos()).collect();
            let hidden = Tensor::from_vec(hidden, (16, 256), &Device::Cpu).unwrap();
            let hidden = hidden.to_dtype(weight_type.activations()).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
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
