//! AdamW with moments that a checkpoint can hold.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of matrices; vectors, the norms, do not decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient of all parameters together; a longer one is shortened.
    pub clip: f64,
}

impl Default for AdamWOptions {
    fn default() -> AdamWOptions {
        AdamWOptions { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

/// AdamW over a model's parameters, in f32 on the CPU.
///
/// # Formula
/// With the clipped gradient `g` of step `t`: `m = β1 m + (1 - β1) g`, `v = β2 v + (1 - β2) g²`,
/// `θ = θ - η (m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + ε) + λ θ)`.
///
/// Loshchilov and Hutter, *Decoupled weight decay regularization* (2019), algorithm 2, without the schedule factor.
#[derive(Clone, Debug)]
pub struct AdamW {
    options: AdamWOptions,
    /// Steps done.
    pub(super) steps: u64,
    /// Parameters in the order of their names.
    pub(super) parameters: Vec<Parameter>,
}

/// A parameter and its moments.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    /// Its name.
    pub(super) name: String,
    /// Its values.
    pub(super) var: Var,
    /// Running mean of the gradient, as the values flattened.
    pub(super) first: Vec<f32>,
    /// Running mean of its square.
    pub(super) second: Vec<f32>,
}

/// The gradient of all parameters.
#[derive(Clone, Debug)]
pub(super) struct Gradient(Vec<Vec<f32>>);

impl AdamW {
    /// Creates the optimizer of named parameters; their order does not matter.
    pub fn new(parameters: impl IntoIterator<Item = (String, Var)>, options: AdamWOptions) -> AdamW {
        let parameter = |(name, var): (String, Var)| {
            let zeros = vec![0.0; var.elem_count()];
            Parameter { name, var, first: zeros.clone(), second: zeros }
        };
        let mut parameters: Vec<_> = parameters.into_iter().map(parameter).collect();
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        AdamW { options, steps: 0, parameters }
    }

    /// Number of values in all parameters.
    pub fn values(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.first.len()).sum()
    }

    /// Takes a step at learning rate `rate`; returns the norm of the gradient before clipping.
    ///
    /// # Errors
    /// A gradient that is not f32.
    pub fn update(&mut self, gradients: &GradStore, rate: f64) -> Result<f64> {
        self.apply(&self.gradient(gradients)?, rate)
    }

    /// The gradient as plain numbers; zero where a parameter had no part in the loss.
    pub(super) fn gradient(&self, store: &GradStore) -> Result<Gradient> {
        let values = self.parameters.iter().map(|parameter| match store.get(&parameter.var) {
            Some(gradient) => gradient.flatten_all()?.to_vec1(),
            None => Ok(vec![0.0; parameter.first.len()]),
        });
        Ok(Gradient(values.collect::<Result<_, candle_core::Error>>()?))
    }

    /// Takes a step; returns the norm of the gradient before clipping.
    pub(super) fn apply(&mut self, gradient: &Gradient, rate: f64) -> Result<f64> {
        let norm = gradient.norm();
        let AdamWOptions { beta1, beta2, epsilon, weight_decay, clip } = self.options;
        self.steps += 1;
        let t = self.steps as f64;
        let scale = single(if norm > clip { clip / norm } else { 1.0 });
        let [keep1, take1, keep2, take2] = [beta1, 1.0 - beta1, beta2, 1.0 - beta2].map(single);
        let (correct1, correct2) = (single(1.0 - beta1.powf(t)), single(1.0 - beta2.powf(t)));
        let epsilon = single(epsilon);
        for (parameter, gradient) in self.parameters.iter_mut().zip(&gradient.0) {
            let decay = if parameter.var.rank() > 1 { single(1.0 - rate * weight_decay) } else { 1.0 };
            let mut values: Vec<f32> = parameter.var.flatten_all()?.to_vec1()?;
            let moments = parameter.first.iter_mut().zip(&mut parameter.second);
            for ((value, g), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
                let g = g * scale;
                *first = keep1 * *first + take1 * g;
                *second = keep2 * *second + take2 * g * g;
                let direction = (*first / correct1) / ((*second / correct2).sqrt() + epsilon);
                *value = decay * *value - single(rate) * direction;
            }
            parameter.var.set(&Tensor::from_vec(values, parameter.var.shape(), parameter.var.device())?)?;
        }
        Ok(norm)
    }
}

impl Gradient {
    /// Adds another gradient of the same parameters.
    pub(super) fn add(&mut self, other: &Gradient) {
        for (sum, other) in self.0.iter_mut().zip(&other.0) {
            sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
        }
    }

    /// The Euclidean norm, summed in f64 and in order.
    pub(super) fn norm(&self) -> f64 {
        let squares = |values: &Vec<f32>| values.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        self.0.iter().map(squares).sum::<f64>().sqrt()
    }
}

/// Rounds to single precision.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
pub(super) fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn var(values: &[f32]) -> Var {
        Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap()
    }

    fn options() -> AdamWOptions {
        AdamWOptions { epsilon: 0.0, clip: 1e9, ..AdamWOptions::default() }
    }

    /// Loss `3 a - 4 b`. Step 1: both moments are corrected to `g` and `g²`, so each value moves by the rate against
    /// the sign of its gradient.
    #[test]
    fn the_first_step_goes_against_the_sign() {
        let (a, b) = (var(&[1.0]), var(&[1.0]));
        let mut adamw = AdamW::new([("b".to_owned(), b.clone()), ("a".to_owned(), a.clone())], options());
        let loss = ((a.as_tensor() * 3.0).unwrap() - (b.as_tensor() * 4.0).unwrap()).unwrap();
        let norm = adamw.update(&loss.backward().unwrap(), 0.5).unwrap();
        assert_eq!(norm, 5.0);
        assert_eq!((a.to_vec1::<f32>().unwrap(), b.to_vec1::<f32>().unwrap()), (vec![0.5], vec![1.5]));
        assert_eq!(adamw.parameters[0].name, "a");
    }

    #[test]
    fn agrees_with_the_optimizer_of_candle_nn() {
        use candle_nn::Optimizer;
        let start = Tensor::new(&[[0.5f32, -1.0], [2.0, 0.1]], &Device::Cpu).unwrap();
        let (ours, theirs) = (Var::from_tensor(&start).unwrap(), Var::from_tensor(&start).unwrap());
        let options = AdamWOptions { epsilon: 1e-8, ..options() };
        let mut adamw = AdamW::new([("w".to_owned(), ours.clone())], options);
        let parameters = candle_nn::ParamsAdamW { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let mut reference = candle_nn::AdamW::new(vec![theirs.clone()], parameters).unwrap();
        for _ in 0..20 {
            let loss = |var: &Var| var.powf(3.0).unwrap().cos().unwrap().sum_all().unwrap().backward().unwrap();
            adamw.update(&loss(&ours), 0.1).unwrap();
            reference.step(&loss(&theirs)).unwrap();
        }
        let difference = (ours.as_tensor() - theirs.as_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-4);
    }

    /// Without moments (β = 0) a step is `rate * g / |g|` whatever the length, so the clip shows in the moments.
    #[test]
    fn a_long_gradient_is_clipped_as_a_whole() {
        let (a, b) = (var(&[0.0]), var(&[0.0]));
        let options = AdamWOptions { beta1: 0.0, clip: 1.0, ..options() };
        let mut adamw = AdamW::new([("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())], options);
        let loss = ((a.as_tensor() * 3.0).unwrap() - (b.as_tensor() * 4.0).unwrap()).unwrap();
        adamw.update(&loss.backward().unwrap(), 0.1).unwrap();
        assert_eq!([adamw.parameters[0].first[0], adamw.parameters[1].first[0]], [0.6, -0.8]);
    }

    #[test]
    fn only_matrices_decay_and_unused_parameters_have_no_gradient() {
        let matrix = Var::ones((1, 1), DType::F32, &Device::Cpu).unwrap();
        let vector = var(&[1.0]);
        let named = [("m".to_owned(), matrix.clone()), ("v".to_owned(), vector.clone())];
        let mut adamw = AdamW::new(named, AdamWOptions { epsilon: 1e-8, ..options() });
        let loss = (vector.as_tensor() * 0.0).unwrap();
        adamw.update(&loss.backward().unwrap(), 0.5).unwrap();
        assert_eq!(matrix.to_vec2::<f32>().unwrap(), [[0.95]]);
        assert_eq!(vector.to_vec1::<f32>().unwrap(), [1.0]);
    }
}
