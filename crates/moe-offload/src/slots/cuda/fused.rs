//! Which experts the fused kernels can compute.

use crate::expert::ExpertShape;
use crate::weights::WeightType;

/// Tokens of a group that the fused kernel of quantized weights serves, at most: it reads the weights once a token, so
/// larger groups go through the matrix kernels.
const QUANTIZED_TOKENS: usize = 8;
/// Rows of weights that a block of threads of that kernel holds in shared memory.
const ROWS_HELD: usize = 4;
/// What it asks for besides.
const SLACK_BYTES: usize = 1024;
/// Shared memory that a block of threads may ask for.
const SHARED_BYTES: usize = 48 << 10;
/// Numbers that the kernel of half-precision weights reads at once.
const VECTOR: usize = 8;

/// Whether fused kernels, `moe_gemm` or `moe_gemm_gguf` of candle, serve a group of `tokens` tokens by experts whose
/// projections have `types`.
///
/// The kernels check nothing: where their assumptions do not hold they read beyond rows, or do not start and leave the
/// output as it was. The form of `moe_gemm_gguf` for prefill is never used: its threads overwrite the tokens of a tile
/// while others may still read them.
pub(super) fn is_fused(types: [WeightType; 3], shape: ExpertShape, tokens: usize) -> bool {
    // Half-precision kernels take and give their own type, quantized ones f32.
    let activations = types.map(WeightType::activations);
    let one_type = activations.iter().all(|&other| other == activations[0]);
    one_type
        && types.into_iter().zip(shape.projections()).all(|(weights, (_, columns))| serves(weights, columns, tokens))
}

/// Whether a fused kernel multiplies groups of `tokens` tokens with rows of `columns` weights.
fn serves(weights: WeightType, columns: usize, tokens: usize) -> bool {
    match weights {
        WeightType::F16 | WeightType::BF16 => columns.is_multiple_of(VECTOR),
        WeightType::Q8_0 | WeightType::Q2K | WeightType::Q3K | WeightType::Q4K | WeightType::Q5K | WeightType::Q6K => {
            tokens <= QUANTIZED_TOKENS && ROWS_HELD * weights.bytes(1, columns) + SLACK_BYTES <= SHARED_BYTES
        }
        WeightType::F32 | WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q5_0 | WeightType::Q5_1 => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shape(hidden: usize, intermediate: usize) -> ExpertShape {
        ExpertShape { layers: 1, experts: 1, hidden, intermediate }
    }

    #[test]
    fn half_precision_is_fused_where_rows_are_whole_vectors() {
        assert!(is_fused([WeightType::BF16; 3], shape(2048, 768), 4096));
        assert!(!is_fused([WeightType::F16; 3], shape(2048, 764), 1));
        assert!(!is_fused([WeightType::F32; 3], shape(2048, 768), 1));
    }

    #[test]
    fn quantized_weights_are_fused_for_few_tokens_and_rows_that_fit_shared_memory() {
        assert!(is_fused([WeightType::Q4K; 3], shape(2048, 768), 8));
        assert!(!is_fused([WeightType::Q4K; 3], shape(2048, 768), 9));
        assert!(!is_fused([WeightType::Q4_0; 3], shape(2048, 768), 1));
        // A row of 11040 weights in Q8_0 has 345 blocks of 34 bytes; four of them and 1024 bytes are 47944. One of 11328
        // has 354 blocks, and they are 49168.
        assert!(is_fused([WeightType::Q8_0; 3], shape(2880, 11040), 1));
        assert!(!is_fused([WeightType::Q8_0; 3], shape(2880, 11328), 1));
    }

    #[test]
    fn mixed_types_are_fused_if_all_kernels_take_the_same_tokens() {
        assert!(is_fused([WeightType::Q4K, WeightType::Q4K, WeightType::Q6K], shape(2048, 768), 1));
        assert!(!is_fused([WeightType::BF16, WeightType::BF16, WeightType::F16], shape(2048, 768), 1));
        assert!(!is_fused([WeightType::Q4K, WeightType::Q4K, WeightType::F16], shape(2048, 768), 1));
        assert!(!is_fused([WeightType::Q4K, WeightType::Q4K, WeightType::Q5_0], shape(2048, 768), 1));
    }
}
