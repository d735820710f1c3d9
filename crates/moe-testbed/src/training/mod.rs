//! The training loop.

mod adamw;
mod balancing;
mod batches;
mod checkpoint;
mod checkpoint_digest;
mod export;
mod loss;
mod memory;
mod micro_batch;
mod router_loss;
mod routing_counts;
mod schedule;

pub use adamw::{AdamW, AdamWOptions};
pub use balancing::{BalanceScope, Balancing};
pub use batches::{Batch, Batches};
pub use loss::cross_entropy;
pub use memory::training_bytes;
pub use router_loss::{load_balance, load_balance_at, router_z_loss, sequence_balance, update_biases};
pub use schedule::Schedule;

use std::sync::Arc;

use adamw::single;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use micro_batch::Part;
use moe_model::{Olmoe, OlmoeConfig, PackedExperts, RouterKind, TensorKind};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::{ThreadPool, ThreadPoolBuilder};
use routing_counts::RoutingCounts;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Result, TestbedError, check},
    text::TokenizedCorpus,
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

impl TrainOptions {
    /// Checks that the options fit together and to a model, before a corpus is read.
    ///
    /// # Errors
    /// [`TestbedError::Option`].
    ///
    /// ```
    /// use moe_model::{OlmoeConfig, OlmoeParams};
    /// use moe_testbed::TrainOptions;
    /// let config = OlmoeConfig::new(OlmoeParams::default())?;
    /// let options = TrainOptions { batch: 6, micro_batch: 4, ..TrainOptions::default() };
    /// let error = options.check(&config).unwrap_err().to_string();
    /// assert_eq!(error, "micro batch is 4, allowed are divisors of the batch 6");
    /// # Ok::<(), moe_model::ModelError>(())
    /// ```
    pub fn check(&self, config: &OlmoeConfig) -> Result<()> {
        let TrainOptions { steps, batch, micro_batch, length, peak_rate: rate, floor, .. } = *self;
        check("steps", steps, steps > 0, "1 and more")?;
        let divides = micro_batch > 0 && batch > 0 && batch % micro_batch == 0;
        check("micro batch", micro_batch, divides, format!("divisors of the batch {batch}"))?;
        let max = config.params().max_position_embeddings;
        check("length", length, (1..=max).contains(&length), format!("1..={max}, the model's positions"))?;
        check("learning rate", rate, rate > 0.0 && rate.is_finite(), "above 0")?;
        check("floor", floor, (0.0..=1.0).contains(&floor), "0 to 1")?;
        self.balancing.check(config.params().router)
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done, this one included.
    pub step: u64,
    /// Cross entropy in nats a token, without the losses of the routers.
    pub loss: f64,
    /// Mean load-balance loss of the layers at the scope of the run, or over micro-batches if there is none: 1 is even.
    pub balance: f64,
    /// Mean z-loss of the layers.
    pub z_loss: f64,
    /// Share of the routed slots that went to an expert from the domain that uses the expert most, mean over layers. It is
    /// counted over the step: a small batch looks purer than the routing is.
    pub purity: f64,
    /// How far the busiest expert of a layer is above an even load over the step, as a fraction of it, mean over layers.
    pub max_violation: f64,
    /// Share of the routed slots that were dropped for lack of capacity.
    pub dropped: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub rate: f64,
    /// Tokens that the step learned from.
    pub tokens: usize,
}

/// A model in training, in f32.
///
/// On the CPU the result does not depend on the number of threads: each micro-batch is computed by itself, and their gradients are
/// added in order.
#[derive(Debug)]
pub struct Trainer {
    model: Olmoe,
    options: TrainOptions,
    optimizer: AdamW,
    batches: Batches,
    /// What no gradient changes, with names, in the order of the model.
    buffers: Vec<(String, Var)>,
    /// Those of the buffers that are the biases of the MoE layers, in order.
    biases: Vec<Var>,
    /// Those of the parameters that are the experts of the MoE layers, in order, packed.
    experts: Vec<Var>,
    domains: usize,
    schedule: Schedule,
    /// A pool of one thread for each worker, so that none waits for another; none to work where the caller is.
    workers: Vec<ThreadPool>,
}

impl Trainer {
    /// Creates a model with seeded weights on a device: matrices normal with `initializer_range`, norms 1.
    ///
    /// # Errors
    /// [`TestbedError::Option`] for options that do not fit together, [`TestbedError::TooFewTokens`] for a domain that
    /// is shorter than two sequences.
    pub fn new(
        config: &OlmoeConfig,
        corpus: &TokenizedCorpus,
        options: TrainOptions,
        device: &Device,
    ) -> Result<Trainer> {
        options.check(config)?;
        let TrainOptions { batch, length, .. } = options;
        let vocabulary = config.params().vocab_size;
        let largest =
            corpus.domains.iter().flat_map(|domain| &domain.training).max().map_or(0, |&token| token as usize);
        check(
            "vocabulary",
            vocabulary,
            largest < vocabulary,
            format!("more than {largest}, a token id of the corpus"),
        )?;
        let (domains, known) = (corpus.domains.len(), config.params().num_domains);
        let labelled = config.params().router != RouterKind::Reference || domains <= known;
        check("number of domains", domains, labelled, format!("at most {known}, those of the reference router"))?;
        check("number of domains", domains, u16::try_from(domains).is_ok(), format!("at most {}", u16::MAX))?;

        let (mut parameters, mut buffers, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        let variables = VarMap::new();
        let shape = config.expert_shape();
        let mut packed = vec![Vec::new(); shape.layers];
        let mut random = ChaCha8Rng::seed_from_u64(options.seed);
        for spec in config.tensors() {
            let count = spec.shape.iter().product();
            let values = match spec.kind {
                TensorKind::Norm => vec![1.0; count],
                TensorKind::Bias => vec![0.0; count],
                TensorKind::Matrix => normal(&mut random, config.params().initializer_range, count),
            };
            if let Some(layer) = spec.expert_of {
                packed[layer.index()].extend(values);
                continue;
            }
            let var = Var::from_tensor(&Tensor::from_vec(values, spec.shape, device)?)?;
            let named = if spec.trained { &mut parameters } else { &mut buffers };
            named.push((spec.name.clone(), var.clone()));
            biases.extend((spec.kind == TensorKind::Bias).then(|| var.clone()));
            variables.data().lock().expect("this thread alone has the map").insert(spec.name, var);
        }
        let builder = VarBuilder::from_varmap(&variables, DType::F32, device);
        let of_layer = |values| Var::from_tensor(&Tensor::from_vec(values, (shape.experts, ()), device)?);
        let experts: Vec<Var> = packed.into_iter().map(of_layer).collect::<Result<_, _>>()?;
        let bank = PackedExperts::new(config, experts.iter().map(|layer| layer.as_tensor().clone()).collect())?;
        let model = Olmoe::new(config, &builder, Arc::new(bank))?;
        parameters
            .extend((0..).zip(&experts).map(|(layer, var): (usize, _)| (format!("experts.{layer}"), var.clone())));
        Ok(Trainer {
            model,
            optimizer: AdamW::new(parameters, options.adamw),
            buffers,
            biases,
            experts,
            domains,
            batches: Batches::new(corpus, batch, length, options.seed)?,
            schedule: Schedule {
                peak: options.peak_rate,
                warm_up: options.warm_up,
                steps: options.steps,
                floor: options.floor,
            },
            options,
            workers: Vec::new(),
        })
    }

    /// Computes up to `workers` micro-batches at once, each with its operations in one thread of its own.
    ///
    /// This is faster than the threads inside a tensor operation.
    ///
    /// # Errors
    /// [`TestbedError::Threads`] if the threads cannot be started.
    pub fn with_workers(self, workers: usize) -> Result<Trainer> {
        let worker = |_| ThreadPoolBuilder::new().num_threads(1).build();
        Ok(Trainer { workers: (0..workers).map(worker).collect::<Result<_, _>>()?, ..self })
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
        let Part { loss, balance, z_loss, counts, gradient } = self.accumulate(&batch)?;
        // Checked before the step, so that the weights stay those of the step before.
        let gradient_norm = gradient.norm();
        if !loss.is_finite() || !gradient_norm.is_finite() {
            return Err(TestbedError::Diverged { step, loss, gradient_norm });
        }
        let rate = self.schedule.rate(step);
        self.optimizer.apply(&gradient, rate)?;
        self.move_biases(&counts)?;
        Ok(Progress {
            step: step + 1,
            loss,
            balance,
            z_loss,
            purity: counts.purity(),
            max_violation: counts.max_violation(),
            dropped: counts.dropped(),
            gradient_norm,
            rate,
            tokens: batch.inputs.len(),
        })
    }

    /// Whether a buffer is the biases of a router.
    fn is_bias(&self, buffer: &Var) -> bool {
        self.biases.iter().any(|bias| bias.id() == buffer.id())
    }

    /// Moves the routers' biases towards an even load over the step.
    fn move_biases(&self, counts: &RoutingCounts) -> Result<()> {
        let rate = single(self.options.balancing.bias_rate);
        for (layer, var) in self.biases.iter().enumerate().filter(|_| rate > 0.0) {
            let mut biases: Vec<f32> = var.to_vec1()?;
            update_biases(&mut biases, &counts.load(layer), rate);
            var.set(&Tensor::from_slice(&biases, biases.len(), var.device())?)?;
        }
        Ok(())
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
