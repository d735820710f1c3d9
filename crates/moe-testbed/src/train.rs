//! The training loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use moe_model::{Olmoe, OlmoeConfig, TensorKind, resident_experts};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::adamw::{Gradient, single};
use crate::batches::{Batch, Batches};
use crate::error::check;
use crate::{
    AdamW, AdamWOptions, Balancing, Result, Schedule, TestbedError, TokenizedCorpus, cross_entropy, load_balance,
};

/// What a training run does; together with the model's configuration and the corpus it decides every bit of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Number of steps.
    pub steps: u64,
    /// Sequences a step.
    pub batch: usize,
    /// Sequences that go through the model at once; divides `batch`.
    pub micro_batch: usize,
    /// Tokens a sequence.
    pub length: usize,
    /// Highest learning rate.
    pub peak_rate: f64,
    /// Steps of linear warm-up.
    pub warm_up: u64,
    /// Last learning rate as a fraction of the highest.
    pub floor: f64,
    /// What is done about the load of the experts.
    pub balancing: Balancing,
    /// Seed of the initial weights and of the order of the sequences.
    pub seed: u64,
    /// Constants of the optimizer.
    pub adamw: AdamWOptions,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            steps: 1000,
            batch: 32,
            micro_batch: 8,
            length: 256,
            peak_rate: 3e-3,
            warm_up: 100,
            floor: 0.1,
            balancing: Balancing::default(),
            seed: 0,
            adamw: AdamWOptions::default(),
        }
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done, this one included.
    pub step: u64,
    /// Cross entropy in nats a token, without the balance loss.
    pub loss: f64,
    /// Mean load-balance loss of the layers: 1 is even.
    pub balance: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub rate: f64,
    /// Tokens that the step learned from.
    pub tokens: usize,
}

/// A model in training, on the CPU in f32.
///
/// The result does not depend on the number of threads: each micro-batch is computed by itself, and their gradients are
/// added in order.
#[derive(Debug)]
pub struct Trainer {
    pub(crate) model: Olmoe,
    pub(crate) options: TrainOptions,
    pub(crate) optimizer: AdamW,
    pub(crate) batches: Batches,
    schedule: Schedule,
    workers: usize,
}

/// Losses and gradient of a micro-batch.
struct Part {
    loss: f64,
    balance: f64,
    gradient: Gradient,
}

impl Trainer {
    /// Creates a model with seeded weights: matrices normal with `initializer_range`, norms 1.
    ///
    /// # Errors
    /// [`TestbedError::Option`] for options that do not fit together, [`TestbedError::TooFewTokens`] for a domain that
    /// is shorter than two sequences.
    pub fn new(config: &OlmoeConfig, corpus: &TokenizedCorpus, options: TrainOptions) -> Result<Trainer> {
        let TrainOptions { batch, micro_batch, length, .. } = options;
        check("steps", options.steps, options.steps > 0, "1 and more")?;
        let divides = micro_batch > 0 && batch % micro_batch == 0;
        check("micro batch", micro_batch, divides, format!("divisors of the batch {batch}"))?;
        let max = config.params().max_position_embeddings;
        check("length", length, length <= max, format!("1..={max}, the model's positions"))?;
        let vocabulary = config.params().vocab_size;
        let largest =
            corpus.domains.iter().flat_map(|domain| &domain.training).max().map_or(0, |&token| token as usize);
        check(
            "vocabulary",
            vocabulary,
            largest < vocabulary,
            format!("more than {largest}, a token id of the corpus"),
        )?;
        let rate = options.peak_rate;
        check("learning rate", rate, rate > 0.0 && rate.is_finite(), "above 0")?;
        options.balancing.check(config.params().router)?;
        let floor = options.floor;
        check("floor", floor, (0.0..=1.0).contains(&floor), "0 to 1")?;

        let variables = VarMap::new();
        let mut random = ChaCha8Rng::seed_from_u64(options.seed);
        for spec in config.tensors() {
            let count = spec.shape.iter().product();
            let values = match spec.kind {
                TensorKind::Norm => vec![1.0; count],
                TensorKind::Bias => vec![0.0; count],
                TensorKind::Matrix => normal(&mut random, config.params().initializer_range, count),
            };
            let var = Var::from_tensor(&Tensor::from_vec(values, spec.shape, &Device::Cpu)?)?;
            variables.data().lock().expect("this thread alone has the map").insert(spec.name, var);
        }
        let builder = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        let experts = resident_experts(config, &builder)?;
        let model = Olmoe::new(config, &builder, Arc::new(experts))?;
        let named = variables.data().lock().expect("this thread alone has the map").clone();
        Ok(Trainer {
            model,
            optimizer: AdamW::new(named, options.adamw),
            batches: Batches::new(corpus, batch, length, options.seed)?,
            schedule: Schedule {
                peak: options.peak_rate,
                warm_up: options.warm_up,
                steps: options.steps,
                floor: options.floor,
            },
            options,
            workers: 1,
        })
    }

    /// Computes up to `workers` micro-batches at once, each in its own thread.
    ///
    /// This is faster than the threads inside a tensor operation, which `RAYON_NUM_THREADS=1` turns off.
    pub fn with_workers(self, workers: usize) -> Trainer {
        Trainer { workers: workers.max(1), ..self }
    }

    /// The model as it is now.
    pub fn model(&self) -> &Olmoe {
        &self.model
    }

    /// The options of the run.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.optimizer.steps
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.optimizer.values()
    }

    /// Does the steps that are left, up to step `until`; `report` sees each one.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn run(&mut self, until: u64, mut report: impl FnMut(&Progress)) -> Result<()> {
        while self.step() < until.min(self.options.steps) {
            report(&self.advance()?);
        }
        Ok(())
    }

    /// Does one step.
    ///
    /// # Errors
    /// [`TestbedError::Diverged`] if the loss is not finite; a tensor operation that failed.
    pub fn advance(&mut self) -> Result<Progress> {
        let step = self.step();
        let batch = self.batches.step(step);
        let parts = self.parts(&batch)?;
        let count = parts.len() as f64;
        let (mut loss, mut balance, mut gradient) = (0.0, 0.0, None::<Gradient>);
        for part in parts {
            loss += part.loss / count;
            balance += part.balance / count;
            match &mut gradient {
                Some(sum) => sum.add(&part.gradient),
                None => gradient = Some(part.gradient),
            }
        }
        let gradient = gradient.expect("a batch has a micro-batch");
        // Checked before the step, so that the weights stay those of the step before.
        let gradient_norm = gradient.norm();
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TestbedError::Diverged { step, loss, gradient_norm });
        }
        let rate = self.schedule.rate(step);
        self.optimizer.apply(&gradient, rate)?;
        Ok(Progress { step: step + 1, loss, balance, gradient_norm, rate, tokens: batch.inputs.len() })
    }

    /// Computes the micro-batches of a batch; the result is in their order.
    fn parts(&self, batch: &Batch) -> Result<Vec<Part>> {
        let tokens = self.options.micro_batch * self.options.length;
        let micro_batches: Vec<_> = batch.inputs.chunks(tokens).zip(batch.targets.chunks(tokens)).collect();
        let share = 1.0 / micro_batches.len() as f64;
        let next = AtomicUsize::new(0);
        // A thread that is held up leaves the rest to the others.
        let work = || {
            let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&n| n < micro_batches.len());
            let part = |n: usize| (n, self.part(micro_batches[n].0, micro_batches[n].1, share));
            std::iter::from_fn(claim).map(part).collect::<Vec<_>>()
        };
        let mut parts: Vec<(usize, Result<Part>)> = thread::scope(|scope| {
            let handles: Vec<_> = (0..self.workers.min(micro_batches.len())).map(|_| scope.spawn(work)).collect();
            let joined = handles.into_iter().map(thread::ScopedJoinHandle::join);
            joined.flat_map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        parts.sort_by_key(|&(n, _)| n);
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// Losses of a micro-batch, and its `share` of the gradient.
    fn part(&self, inputs: &[u32], targets: &[u32], share: f64) -> Result<Part> {
        let shape = (self.options.micro_batch, self.options.length);
        let output = self.model.forward_dense(&Tensor::from_slice(inputs, shape, &Device::Cpu)?)?;
        let loss = cross_entropy(&output.logits.flatten_to(1)?, targets)?.mean_all()?;
        let balances = output.routers.iter().map(|router| load_balance(&router.probs, &router.experts));
        let balance = Tensor::stack(&balances.collect::<Result<Vec<_>, _>>()?, 0)?.mean_all()?;
        let total = ((&loss + (&balance * self.options.balancing.coefficient)?)? * share)?;
        Ok(Part {
            loss: f64::from(loss.to_scalar::<f32>()?),
            balance: f64::from(balance.to_scalar::<f32>()?),
            gradient: self.optimizer.gradient(&total.backward()?)?,
        })
    }
}

/// Normal numbers by the method of Box and Muller.
fn normal(random: &mut impl Rng, deviation: f64, count: usize) -> Vec<f32> {
    let mut draw = || {
        let (radius, angle): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
        single(deviation * (-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos())
    };
    (0..count).map(|_| draw()).collect()
}
