//! What training asks of routers: an even load, small logits, biases that even the load out.

use candle_core::{D, Result as TensorResult, Tensor};
use moe_trace::EMPTY_SLOT;

/// How unevenly a router loads its experts: 1 when the load is even, the number of experts when one gets it all.
///
/// `probabilities` are the router's softmax, `[tokens, experts]`, through which the gradient flows; `chosen` are the
/// expert ids `[tokens x top_k]`, of which [`EMPTY_SLOT`] does not count.
///
/// # Formula
/// `E * sum_e f_e P_e`; `f_e` is the share of the routed slots that `e` got, `P_e` its mean probability.
///
/// Fedus, Zoph and Shazeer, *Switch Transformers* (2021), equation 4; with top-k routing as in *OLMoE* (arXiv
/// 2409.02060), section 4.1.7.
///
/// # Errors
/// A tensor operation that failed.
///
/// # Panics
/// Panics if an id is not below the number of experts.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let probabilities = Tensor::new(&[[0.75f32, 0.25], [0.5, 0.5]], &Device::Cpu)?;
/// // Both tokens go to expert 0: 2 * (1 * 0.625 + 0 * 0.375).
/// let loss = moe_testbed::load_balance(&probabilities, &[0, 0])?;
/// assert_eq!(loss.to_scalar::<f32>()?, 1.25);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn load_balance(probabilities: &Tensor, chosen: &[u16]) -> TensorResult<Tensor> {
    load_balance_at(probabilities, &shares(chosen, probabilities.dim(1)?))
}

/// As [`load_balance`], with the share of the slots that each expert got given: that of more tokens than those of
/// `probabilities`.
///
/// The sum over the micro-batches of a step is the loss of the step, gradient included, since shares have no gradient:
/// balance at global scope (Qiu et al. 2025, arXiv 2501.11873).
///
/// # Errors
/// As many shares as experts, or a tensor operation fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let probabilities = Tensor::new(&[[0.75f32, 0.25], [0.5, 0.5]], &Device::Cpu)?;
/// // Other micro-batches went to expert 1: 2 * (0.5 * 0.625 + 0.5 * 0.375).
/// let loss = moe_testbed::load_balance_at(&probabilities, &[0.5, 0.5])?;
/// assert_eq!(loss.to_scalar::<f32>()?, 1.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn load_balance_at(probabilities: &Tensor, shares: &[f32]) -> TensorResult<Tensor> {
    let experts = probabilities.dim(1)?;
    let shares = Tensor::from_slice(shares, shares.len(), probabilities.device())?;
    (probabilities.mean(0)? * shares)?.sum_all()? * experts as f64
}

/// The mean of [`load_balance`] over `sequences` sequences of one length, each by itself.
///
/// DeepSeek-V3 (arXiv 2412.19437), equations 17 to 20.
///
/// # Errors
/// A number of tokens that is no multiple of the sequences; a tensor operation that failed.
///
/// # Panics
/// Panics if an id is not below the number of experts.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let probabilities = Tensor::new(&[[0.75f32, 0.25], [0.25, 0.75]], &Device::Cpu)?;
/// // Even over both tokens, one sequence each: 2 * 0.75.
/// assert_eq!(moe_testbed::load_balance(&probabilities, &[0, 1])?.to_scalar::<f32>()?, 1.0);
/// assert_eq!(moe_testbed::sequence_balance(&probabilities, &[0, 1], 2)?.to_scalar::<f32>()?, 1.5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sequence_balance(probabilities: &Tensor, chosen: &[u16], sequences: usize) -> TensorResult<Tensor> {
    let (tokens, experts) = probabilities.dims2()?;
    let means = probabilities.reshape((sequences, tokens / sequences.max(1), experts))?.mean(1)?;
    let slots = (chosen.len() / sequences.max(1)).max(1);
    let shares = chosen.chunks_exact(slots).flat_map(|chosen| shares(chosen, experts)).collect();
    let shares = Tensor::from_vec(shares, (sequences, experts), probabilities.device())?;
    (means * shares)?.sum_all()? * (experts as f64 / sequences as f64)
}

/// The share of the slots that each expert got; empty slots do not count.
fn shares(chosen: &[u16], experts: usize) -> Vec<f32> {
    let mut shares = vec![0f32; experts];
    let used = || chosen.iter().filter(|&&expert| expert != EMPTY_SLOT);
    let share = 1.0 / used().count() as f32;
    used().for_each(|&expert| shares[usize::from(expert)] += share);
    shares
}

/// How large a router's logits are, which a low precision does not bear: the mean over tokens of their squared log-sum.
///
/// # Formula
/// `mean_t (ln(sum_e exp(logit_te)))²`
///
/// Zoph et al., *ST-MoE* (2022, arXiv 2202.08906), equation 5.
///
/// # Errors
/// A tensor operation that failed.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0.0], [3f32.ln(), 0.0]], &Device::Cpu)?;
/// let expected = (2f32.ln().powi(2) + 4f32.ln().powi(2)) / 2.0;
/// assert!((moe_testbed::router_z_loss(&logits)?.to_scalar::<f32>()? - expected).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn router_z_loss(logits: &Tensor) -> TensorResult<Tensor> {
    // Any constant does; the largest logit keeps the exponentials finite.
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let sums = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?;
    (sums.log()? + max)?.sqr()?.mean_all()
}

/// Moves each expert's bias by `rate` towards an even load: up where `slots`, what the expert got, is below the mean,
/// down where it is above.
///
/// # Formula
/// `b_e = b_e + rate * sign(mean(slots) - slots_e)`
///
/// Wang et al., *Auxiliary-loss-free load balancing* (2024, arXiv 2408.15664), algorithm 1.
///
/// ```
/// let mut biases = [0.0, 0.5, 0.0];
/// moe_testbed::update_biases(&mut biases, &[1, 9, 5], 0.25);
/// assert_eq!(biases, [0.25, 0.25, 0.0]);
/// ```
pub fn update_biases(biases: &mut [f32], slots: &[u64], rate: f32) {
    let total: u64 = slots.iter().sum();
    for (bias, &slots_of) in biases.iter_mut().zip(slots) {
        // Both sides times the number of experts, so that the mean is whole.
        match (slots_of * slots.len() as u64).cmp(&total) {
            std::cmp::Ordering::Less => *bias += rate,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => *bias -= rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;

    fn scalar(tensor: &Tensor) -> f64 {
        f64::from(tensor.to_scalar::<f32>().unwrap())
    }

    /// `[tokens, experts]` logits.
    fn logits(values: &[f32], experts: usize) -> Var {
        let tensor = Tensor::from_slice(values, (values.len() / experts, experts), &Device::Cpu).unwrap();
        Var::from_tensor(&tensor).unwrap()
    }

    fn softmax(logits: &Tensor) -> Tensor {
        candle_nn::ops::softmax(logits, 1).unwrap()
    }

    fn rows(logits: &[f32], experts: usize) -> Vec<Vec<f64>> {
        logits.chunks(experts).map(|row| row.iter().map(|&logit| f64::from(logit)).collect()).collect()
    }

    /// The definition of the balance loss over some tokens, with the load of others.
    fn naive_balance(logits: &[Vec<f64>], chosen: &[u16]) -> f64 {
        let experts = logits[0].len();
        let used: Vec<usize> = chosen.iter().filter(|&&e| e != EMPTY_SLOT).map(|&e| usize::from(e)).collect();
        let mut loss = 0.0;
        for expert in 0..experts {
            let share = used.iter().filter(|&&e| e == expert).count() as f64 / used.len() as f64;
            let probability = |row: &Vec<f64>| row[expert].exp() / row.iter().map(|logit| logit.exp()).sum::<f64>();
            loss += experts as f64 * share * logits.iter().map(probability).sum::<f64>() / logits.len() as f64;
        }
        loss
    }

    /// Four tokens a sequence, three sequences, five experts, two slots of which some are empty.
    fn routing() -> impl Strategy<Value = (Vec<f32>, Vec<u16>)> {
        let slot = prop_oneof![9 => 0u16..5, 1 => Just(EMPTY_SLOT)];
        (prop::collection::vec(-3f32..3.0, 12 * 5), prop::collection::vec(slot, 12 * 2))
            .prop_filter("each sequence uses an expert", |(_, chosen)| {
                chosen.chunks(8).all(|chosen| chosen.iter().any(|&expert| expert != EMPTY_SLOT))
            })
    }

    /// Asserts that the gradient of a loss is what a small step changes, logit by logit.
    fn assert_gradient(values: &[f32], experts: usize, loss: impl Fn(&Tensor) -> Tensor) {
        let var = logits(values, experts);
        let gradient =
            loss(&var).backward().unwrap().get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (place, gradient) in gradient.into_iter().enumerate().step_by(7) {
            let at = |step: f32| {
                let mut moved = values.to_vec();
                moved[place] += step;
                scalar(&loss(&logits(&moved, experts)))
            };
            let slope = (at(0.02) - at(-0.02)) / 0.04;
            assert!((slope - f64::from(gradient)).abs() < 2e-3 * slope.abs().max(0.5), "{slope} {gradient}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn balance_losses_agree_with_their_definitions((values, chosen) in routing()) {
            let rows = rows(&values, 5);
            let probabilities = softmax(&logits(&values, 5));
            let close = |loss: Tensor, expected: f64| (scalar(&loss) - expected).abs() < 1e-5 * expected;
            prop_assert!(close(load_balance(&probabilities, &chosen).unwrap(), naive_balance(&rows, &chosen)));

            let by_sequence = rows.chunks(4).zip(chosen.chunks(8)).map(|(rows, chosen)| naive_balance(rows, chosen));
            let mean = by_sequence.sum::<f64>() / 3.0;
            prop_assert!(close(sequence_balance(&probabilities, &chosen, 3).unwrap(), mean));

            // Global scope: the micro-batches of a step, each with the load of all, make the loss of the step.
            let shares = shares(&chosen, 5);
            let parts = (0..3).map(|n| scalar(&load_balance_at(&probabilities.narrow(0, 4 * n, 4).unwrap(), &shares).unwrap()));
            let step = naive_balance(&rows, &chosen);
            prop_assert!((parts.sum::<f64>() / 3.0 - step).abs() < 1e-5 * step);
        }

        #[test]
        fn the_z_loss_agrees_with_its_definition((values, _) in routing()) {
            let log_sum = |row: &Vec<f64>| row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            let rows = rows(&values, 5);
            let expected = rows.iter().map(|row| log_sum(row).powi(2)).sum::<f64>() / rows.len() as f64;
            let found = scalar(&router_z_loss(&logits(&values, 5)).unwrap());
            prop_assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{found} {expected}");
        }

        #[test]
        fn gradients_agree_with_finite_differences((values, chosen) in routing()) {
            assert_gradient(&values, 5, |logits| load_balance(&softmax(logits), &chosen).unwrap());
            assert_gradient(&values, 5, |logits| sequence_balance(&softmax(logits), &chosen, 3).unwrap());
            let shares = [0.1, 0.4, 0.0, 0.3, 0.2];
            assert_gradient(&values, 5, |logits| load_balance_at(&softmax(logits), &shares).unwrap());
            assert_gradient(&values, 5, |logits| router_z_loss(logits).unwrap());
        }

        /// The counts of a step as fractions, as the paper writes the rule.
        #[test]
        fn biases_follow_the_sign_of_what_is_missing(slots in prop::collection::vec(0u64..6, 1..9)) {
            let mut biases = vec![1.0; slots.len()];
            update_biases(&mut biases, &slots, 0.5);
            let mean = slots.iter().sum::<u64>() as f64 / slots.len() as f64;
            for (bias, &slots) in biases.into_iter().zip(&slots) {
                let missing = mean - slots as f64;
                let sign = if missing.abs() < 1e-9 { 0.0 } else { missing.signum() };
                prop_assert_eq!(f64::from(bias), 1.0 + 0.5 * sign);
            }
        }
    }

    #[test]
    fn an_even_load_costs_one_and_a_collapsed_one_costs_the_experts() {
        let even = Tensor::full(0.25f32, (4, 4), &Device::Cpu).unwrap();
        assert_eq!(load_balance(&even, &[0, 1, 2, 3]).unwrap().to_scalar::<f32>().unwrap(), 1.0);
        let collapsed = Tensor::new(&[[0f32, 1.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        assert_eq!(load_balance(&collapsed, &[1]).unwrap().to_scalar::<f32>().unwrap(), 4.0);
    }

    #[test]
    fn large_logits_have_a_finite_z_loss() {
        let logits = Tensor::new(&[[1000f32, -1000.0]], &Device::Cpu).unwrap();
        assert_eq!(router_z_loss(&logits).unwrap().to_scalar::<f32>().unwrap(), 1e6);
    }
}
