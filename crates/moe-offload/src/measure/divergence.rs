//! How far two runs of a model are apart.

use candle_core::{D, DType, Tensor};
use serde::Serialize;

use crate::error::{OffloadError, Result};

/// The difference between the logits of two runs on the same tokens.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use moe_offload::Divergence;
///
/// let logits = |last: f32| Tensor::new(&[[0.5f32, 0.25], [0.5, last]], &Device::Cpu);
/// let divergence = Divergence::between(&logits(0.25)?, &logits(0.75)?)?;
/// assert_eq!((divergence.tokens, divergence.first_token, divergence.largest), (2, Some(1), 0.5));
/// assert!(Divergence::between(&logits(0.25)?, &logits(0.25)?)?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Divergence {
    /// Tokens compared.
    pub tokens: usize,
    /// The first token after which the likeliest next token differs.
    pub first_token: Option<usize>,
    /// The largest difference of two logits, 0 if none differ; infinite if one of the two is no number.
    pub largest: f32,
}

impl Divergence {
    /// Compares the logits of one forward pass, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`OffloadError::Shape`] if the shapes differ; a tensor operation that failed.
    pub fn between(expected: &Tensor, found: &Tensor) -> Result<Divergence> {
        let mut divergence = Divergence::default();
        divergence.add(expected, found)?;
        Ok(divergence)
    }

    /// Compares the logits of the next forward pass of both runs, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// As [`between`](Self::between).
    pub fn add(&mut self, expected: &Tensor, found: &Tensor) -> Result<()> {
        if expected.dims() != found.dims() {
            let (found, expected) = (found.dims().to_vec(), expected.dims().to_vec());
            return Err(OffloadError::Shape { name: "logits".to_owned(), found, expected });
        }
        let (tokens, vocabulary) = expected.dims2()?;
        if vocabulary > 0 {
            let likeliest = |logits: &Tensor| logits.argmax(D::Minus1)?.to_vec1::<u32>();
            let differ = likeliest(expected)?.iter().zip(likeliest(found)?).position(|(ours, theirs)| *ours != theirs);
            self.first_token = self.first_token.or(differ.map(|token| self.tokens + token));
            let values = |logits: &Tensor| logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            for (ours, theirs) in values(expected)?.into_iter().zip(values(found)?) {
                let difference = (ours - theirs).abs();
                let both_nan = ours.is_nan() && theirs.is_nan();
                let difference = match difference.is_nan() {
                    true if ours == theirs || both_nan => 0.0,
                    true => f32::INFINITY,
                    false => difference,
                };
                self.largest = self.largest.max(difference);
            }
        }
        self.tokens += tokens;
        Ok(())
    }

    /// Whether all logits are the same.
    pub fn is_none(&self) -> bool {
        self.largest == 0.0
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn logits(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_vec(values.concat(), (values.len(), 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn passes_are_counted_on() {
        let mut divergence = Divergence::default();
        divergence.add(&logits(&[[1.0, 2.0], [3.0, 1.0]]), &logits(&[[1.0, 2.5], [3.0, 1.0]])).unwrap();
        assert_eq!((divergence.first_token, divergence.largest), (None, 0.5));
        divergence.add(&logits(&[[1.0, 2.0], [3.0, 2.75]]), &logits(&[[1.0, 2.0], [3.0, 3.125]])).unwrap();
        divergence.add(&logits(&[[1.0, 2.0]]), &logits(&[[3.0, 2.0]])).unwrap();
        assert_eq!(divergence, Divergence { tokens: 5, first_token: Some(3), largest: 2.0 });
        let error = divergence.add(&logits(&[]), &logits(&[[0.0, 0.0]])).unwrap_err();
        assert_eq!(error.to_string(), "logits has shape [1, 2], expected [0, 2]");
    }

    #[test]
    fn what_is_no_number_differs_from_every_number() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(Divergence::between(&logits(&[[nan, inf]]), &logits(&[[nan, inf]])).unwrap().largest, 0.0);
        assert_eq!(Divergence::between(&logits(&[[nan, 0.0]]), &logits(&[[1.0, 0.0]])).unwrap().largest, inf);
    }
}
