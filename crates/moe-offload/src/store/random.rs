//! Experts of any size without a download.

use half::{bf16, f16};
use moe_trace::{ExpertId, LayerId};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::expert_store::ExpertStore;
use crate::error::Result;
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights, Lend, Lent};
use crate::weights::{Projection, WeightType};

/// An [`ExpertStore`] of random experts, generated when they are fetched: what a model of some shape costs to move and to
/// compute can be measured without having it.
///
/// A seed fixes every byte. Weights have mean 0 and standard deviation `1 / sqrt(columns)`, so that tokens keep their
/// magnitude: floating point numbers are uniform; quantized blocks have uniform quants and, in K-quants, uniform scales
/// within the block, and one block scale for all. Nothing can be learned from their values: no block has an outlier, and
/// quantizing random numbers would give other ones.
#[derive(Clone, Debug)]
pub struct RandomExperts {
    shape: ExpertShape,
    types: Vec<ExpertTypes>,
    seed: u64,
}

impl RandomExperts {
    /// Random experts of a shape, stored as `types`.
    ///
    /// # Errors
    /// [`OffloadError::Size`](crate::OffloadError::Size) for a shape that no model has;
    /// [`OffloadError::Blocks`](crate::OffloadError::Blocks) if rows are not made of whole blocks.
    pub fn new(shape: ExpertShape, types: impl Into<ExpertTypes>, seed: u64) -> Result<RandomExperts> {
        let types = types.into();
        shape.check()?;
        shape.check_blocks(types)?;
        Ok(RandomExperts { shape, types: vec![types; shape.layers], seed })
    }

    /// The bytes of the gate, up and down projection.
    fn bytes(&self, layer: LayerId, expert: ExpertId) -> Result<[Vec<u8>; 3]> {
        let index = self.shape.index(layer, expert)? as u64;
        let (types, dims) = (self.types[layer.index()].each(), self.shape.projections());
        Ok([0, 1, 2].map(|which| {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(3 * index + which as u64);
            random_bytes(types[which], dims[which], &mut random)
        }))
    }
}

impl ExpertStore for RandomExperts {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        &self.types
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let (bytes, dims) = (self.bytes(layer, expert)?, self.shape.projections());
        let types = self.types[layer.index()].each();
        let [gate, up, down] = [0, 1, 2].map(|which| Projection::from_bytes(types[which], dims[which], &bytes[which]));
        ExpertWeights::from_projections([gate?, up?, down?])
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        lend.bytes(self.bytes(layer, expert)?.each_ref().map(Vec::as_slice).into())
    }
}

fn random_bytes(weights: WeightType, (rows, columns): (usize, usize), random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = vec![0; weights.bytes(rows, columns)];
    random.fill_bytes(&mut bytes);
    #[expect(clippy::cast_precision_loss, reason = "the deviation of random numbers")]
    let deviation = 1.0 / (columns as f32).sqrt();
    // A uniform number in -a..a has the standard deviation a / sqrt(3).
    let step = deviation * 3f32.sqrt() / 32768.0;
    let uniform = |bits: [u8; 2]| (f32::from(i16::from_le_bytes(bits)) + 0.5) * step;
    match weights {
        WeightType::F32 => each(&mut bytes, |bits: [u8; 4]| uniform([bits[0], bits[1]]).to_le_bytes()),
        WeightType::F16 => each(&mut bytes, |bits| f16::from_f32(uniform(bits)).to_le_bytes()),
        WeightType::BF16 => each(&mut bytes, |bits| bf16::from_f32(uniform(bits)).to_le_bytes()),
        quantized => {
            let BlockScale { deviation: of_quants, at, offset } = BlockScale::of(quantized);
            let scale = deviation / of_quants;
            let fields = [Some((at, scale)), offset.map(|(at, factor)| (at, factor * scale))];
            for block in bytes.chunks_exact_mut(quantized.block_bytes()) {
                for (at, value) in fields.into_iter().flatten() {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
                }
            }
        }
    }
    bytes
}

fn each<const N: usize>(bytes: &mut [u8], value: impl Fn([u8; N]) -> [u8; N]) {
    let (values, _) = bytes.as_chunks_mut::<N>();
    values.iter_mut().for_each(|bits| *bits = value(*bits));
}

/// The scale of a block of uniform quants.
struct BlockScale {
    /// Standard deviation of the weights at scale 1.
    deviation: f32,
    /// Byte of the block at which the scale is.
    at: usize,
    /// Byte of a second scale, that of offsets, and what times the first one makes the mean of the weights 0.
    offset: Option<(usize, f32)>,
}

impl BlockScale {
    /// Variances of uniform numbers: quants of 2, 3, 4, 5, 6, 8 bits have 1.25, 5.25, 21.25, 85.25, 341.25, 5461.25;
    /// the product of independent numbers has `E[a²] E[b²] - E[a]² E[b]²`.
    fn of(weights: WeightType) -> BlockScale {
        let (variance, at, offset): (f32, _, _) = match weights {
            WeightType::Q4_0 => (21.25, 0, None),
            WeightType::Q4_1 => (21.25, 0, Some((2, -7.5))),
            WeightType::Q5_0 => (85.25, 0, None),
            WeightType::Q5_1 => (85.25, 0, Some((2, -15.5))),
            WeightType::Q8_0 => (5461.25, 0, None),
            // A 4-bit scale times a 2-bit quant, less a 4-bit offset.
            WeightType::Q2K => (77.5 * 3.5 - 11.25 * 11.25 + 1.5 * 1.5 * 21.25, 80, Some((82, 1.5))),
            // A 6-bit signed scale times a 3-bit signed quant.
            WeightType::Q3K => (341.5 * 5.5 - 0.0625, 108, None),
            // A 6-bit scale times a 4- or 5-bit quant, less a 6-bit offset.
            WeightType::Q4K => (1333.5 * 77.5 - 236.25 * 236.25 + 7.5 * 7.5 * 341.25, 0, Some((2, 7.5))),
            WeightType::Q5K => (1333.5 * 325.5 - 488.25 * 488.25 + 15.5 * 15.5 * 341.25, 0, Some((2, 15.5))),
            // An 8-bit signed scale times a 6-bit signed quant.
            WeightType::Q6K => (5461.5 * 341.5 - 0.0625, 208, None),
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => unreachable!("numbers have no blocks"),
        };
        BlockScale { deviation: variance.sqrt(), at, offset }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor};

    use super::*;
    use crate::expert::ProjectionBytes;

    const SHAPE: ExpertShape = ExpertShape { layers: 2, experts: 3, hidden: 512, intermediate: 256 };

    fn numbers(projection: &Projection) -> Vec<f32> {
        let tensor: Tensor = match projection {
            Projection::Dense(tensor) => tensor.to_dtype(DType::F32).unwrap(),
            Projection::Blocks(blocks) => blocks.dequantize().unwrap(),
            Projection::Quantized(_) => panic!("on a device"),
        };
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn weights_have_mean_0_and_keep_the_magnitude_of_tokens() {
        for weights in WeightType::ALL {
            let experts = RandomExperts::new(SHAPE, weights, 3).unwrap();
            for projection in experts.fetch(LayerId(1), ExpertId(2)).unwrap().projections() {
                let (numbers, expected) = (numbers(projection), 1.0 / (projection.dims().unwrap().1 as f64).sqrt());
                let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / numbers.len() as f64;
                let square = numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / numbers.len() as f64;
                let deviation = (square - mean * mean).sqrt();
                // Quants are symmetric but for one level; 131072 of them scatter by 0.003.
                let level = if matches!(weights, WeightType::Q4_0) { 0.12 } else { 0.07 };
                assert!(mean.abs() < level * expected, "{weights}: mean {mean}");
                assert!((deviation / expected - 1.0).abs() < 0.02, "{weights}: {deviation}, expected {expected}");
            }
        }
    }

    #[test]
    fn a_seed_fixes_every_byte() {
        let bytes = |seed, layer, expert| {
            let mut all = Vec::new();
            let experts = RandomExperts::new(SHAPE, WeightType::Q5_1, seed).unwrap();
            let copy = &mut |projections: ProjectionBytes<'_>| {
                all.push(projections.each().map(<[u8]>::to_vec));
                Ok(())
            };
            (&experts as &dyn ExpertStore).with_bytes(LayerId(layer), ExpertId(expert), copy).unwrap();
            experts.fetch(LayerId(layer), ExpertId(expert)).unwrap().with_bytes(copy).unwrap();
            assert_eq!(all[0], all[1]);
            all.swap_remove(0)
        };
        let one = bytes(1, 0, 1);
        assert_eq!(one, bytes(1, 0, 1));
        assert_ne!(one[0], one[1]);
        for other in [bytes(2, 0, 1), bytes(1, 1, 1), bytes(1, 0, 2)] {
            assert!(one.iter().zip(&other).all(|(one, other)| one != other && one.len() == other.len()));
        }
    }

    #[test]
    fn sizes_are_those_of_the_models() {
        let bytes = |layers, experts, hidden, intermediate, types: ExpertTypes| {
            let shape = ExpertShape { layers, experts, hidden, intermediate };
            ExpertStore::bytes(&RandomExperts::new(shape, types, 0).unwrap())
        };
        let gpt_oss = |weights: WeightType| bytes(24, 32, 2880, 2880, weights.into());
        assert_eq!(gpt_oss(WeightType::Q4_0), 24 * 32 * 3 * 2880 * (2880 / 32) * 18);
        assert_eq!(gpt_oss(WeightType::Q8_0), 20_304_691_200);
        let mixed = [WeightType::Q4K, WeightType::Q4K, WeightType::Q6K].into();
        assert_eq!(bytes(48, 128, 2048, 768, mixed), 48 * 128 * 2048 * 768 / 256 * (144 + 144 + 210));
        let wide = ExpertShape { layers: 24, experts: 32, hidden: 2880, intermediate: 2880 };
        let error = RandomExperts::new(wide, WeightType::Q4K, 0).unwrap_err();
        assert_eq!(error.to_string(), "rows of 2880 weights are no multiple of the 256 of a block of q4_k");
    }
}
