//! What a language model makes small: cross entropy.

use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Result as TensorResult, Shape, Storage, Tensor};
use candle_nn::ops::log_softmax;

/// Negative log-likelihood of each target, in nats.
///
/// `logits` are `[tokens, vocabulary]`, `targets` `[tokens]`; the result is `[tokens]`. f32 on the CPU is one fused
/// operation, since the chain of tensor operations would copy the largest activation of a small model a dozen times.
///
/// # Formula
/// `ln(sum_v exp(logit_v)) - logit_target`
///
/// # Errors
/// A shape or type that does not fit; a target that is not in the vocabulary.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0.0], [0.0, 3f32.ln()]], &Device::Cpu)?;
/// let loss = moe_testbed::cross_entropy(&logits, &[0, 1])?.to_vec1::<f32>()?;
/// assert!((loss[0] - 2f32.ln()).abs() < 1e-6 && (loss[1] - (4f32 / 3.0).ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> TensorResult<Tensor> {
    let (tokens, vocabulary) = logits.dims2()?;
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
        candle_core::bail!("target {target} is not in the vocabulary of {vocabulary}");
    }
    if targets.len() != tokens {
        candle_core::bail!("{} targets for {tokens} tokens", targets.len());
    }
    match logits.device() {
        Device::Cpu => logits.contiguous()?.apply_op1(CrossEntropy { targets: targets.to_vec() }),
        _ => composed(logits, targets),
    }
}

/// The same as a chain of tensor operations, for any device.
fn composed(logits: &Tensor, targets: &[u32]) -> TensorResult<Tensor> {
    let targets = Tensor::from_slice(targets, (targets.len(), 1), logits.device())?;
    log_softmax(logits, D::Minus1)?.gather(&targets, 1)?.squeeze(1)?.neg()
}

struct CrossEntropy {
    targets: Vec<u32>,
}

impl CrossEntropy {
    /// Runs over the rows of the logits with their targets.
    fn rows<'a>(&'a self, logits: &'a [f32], vocabulary: usize) -> impl Iterator<Item = (&'a [f32], usize)> {
        logits.chunks_exact(vocabulary).zip(self.targets.iter().map(|&target| target as usize))
    }
}

/// The contiguous values of a tensor's storage.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> TensorResult<&'a [f32]> {
    let (start, end) = layout.contiguous_offsets().expect("made contiguous before the operation");
    Ok(&storage.as_slice::<f32>()?[start..end])
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        let (tokens, vocabulary) = layout.shape().dims2()?;
        let losses = self.rows(values(storage, layout)?, vocabulary).map(|(row, target)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = row.iter().map(|logit| (logit - max).exp()).sum();
            sum.ln() + max - row[target]
        });
        Ok((CpuStorage::F32(losses.collect()), tokens.into()))
    }

    /// `d loss / d logit_v = exp(logit_v) / sum - [v = target]`; the sum is known from the loss.
    fn bwd(&self, logits: &Tensor, losses: &Tensor, gradient: &Tensor) -> TensorResult<Option<Tensor>> {
        let (losses, gradient) = (losses.to_vec1::<f32>()?, gradient.to_vec1::<f32>()?);
        let (storage, layout) = logits.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { candle_core::bail!("cross-entropy runs on the CPU") };
        let mut result = Vec::with_capacity(layout.shape().elem_count());
        let rows = self.rows(values(storage, layout)?, logits.dim(D::Minus1)?);
        for (((row, target), loss), gradient) in rows.zip(losses).zip(gradient) {
            let log_sum = loss + row[target];
            let start = result.len();
            result.extend(row.iter().map(|logit| (logit - log_sum).exp() * gradient));
            result[start + target] -= gradient;
        }
        Ok(Some(Tensor::from_vec(result, logits.shape(), logits.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn logits() -> Var {
        let values = [[0.3f32, -1.2, 2.0, 0.1], [5.0, 4.0, -3.0, 0.0], [-80.0, 90.0, 0.0, 1.0]];
        Var::new(&values, &Device::Cpu).unwrap()
    }

    #[test]
    fn values_and_gradients_agree_with_a_chain_of_tensor_operations() {
        let (logits, targets) = (logits(), [2, 0, 3]);
        let fused = cross_entropy(&logits, &targets).unwrap();
        let chain = composed(&logits, &targets).unwrap();
        // A weighted sum, so that every row has a gradient of its own.
        let weights = Tensor::new(&[0.5f32, -2.0, 0.25], &Device::Cpu).unwrap();
        let gradient = |loss: &Tensor| {
            let store = (loss * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            store.get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let pairs = fused.to_vec1::<f32>().unwrap().into_iter().zip(chain.to_vec1::<f32>().unwrap());
        for (fused, chain) in pairs.chain(gradient(&fused).into_iter().zip(gradient(&chain))) {
            assert!((fused - chain).abs() < 1e-5, "{fused} {chain}");
        }
    }

    #[test]
    fn misfits_are_errors() {
        let message = |targets: &[u32]| cross_entropy(&logits(), targets).unwrap_err().to_string();
        assert!(message(&[0, 1, 4]).contains("target 4 is not in the vocabulary of 4"));
        assert!(message(&[0, 1]).contains("2 targets for 3 tokens"));
    }
}
