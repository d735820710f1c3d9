//! A step's sequences, a few at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use candle_core::Tensor;
use moe_model::{DenseOptions, RouterOutput};
use moe_trace::DomainId;

use super::{
    Trainer,
    adamw::Gradient,
    balancing::{BalanceScope, Balancing},
    batches::Batch,
    loss::cross_entropy,
    router_loss::{load_balance, load_balance_at, router_z_loss, sequence_balance},
    routing_counts::RoutingCounts,
};
use crate::error::Result;

/// Sequences that go through the model at once.
struct MicroBatch<'a> {
    inputs: &'a [u32],
    targets: &'a [u32],
    domains: &'a [DomainId],
}

/// What the model made of a micro-batch, with what the gradient needs.
struct Pass {
    loss: Tensor,
    routers: Vec<RouterOutput>,
    counts: RoutingCounts,
}

/// Losses, routing and gradient of a micro-batch, or of a step.
pub(super) struct Part {
    pub(super) loss: f64,
    pub(super) balance: f64,
    pub(super) z_loss: f64,
    pub(super) counts: RoutingCounts,
    pub(super) gradient: Gradient,
}

impl Part {
    /// The parts of a step as one.
    fn together(parts: Vec<Part>) -> Part {
        let count = parts.len() as f64;
        let mut parts = parts.into_iter();
        let mut sum = parts.next().expect("a batch has a micro-batch");
        for part in parts {
            sum.loss += part.loss;
            sum.balance += part.balance;
            sum.z_loss += part.z_loss;
            sum.counts.add(&part.counts);
            sum.gradient.add(&part.gradient);
        }
        Part { loss: sum.loss / count, balance: sum.balance / count, z_loss: sum.z_loss / count, ..sum }
    }
}

impl Trainer {
    /// Runs a batch, micro-batch by micro-batch: mean losses, and the routing and the gradient of all.
    pub(super) fn accumulate(&self, batch: &Batch) -> Result<Part> {
        let sequences = self.options.micro_batch;
        let tokens = sequences * self.options.length;
        let domain = |&domain: &usize| DomainId(u16::try_from(domain).expect("checked in new"));
        let domains: Vec<DomainId> = batch.domains.iter().map(domain).collect();
        let texts = batch.inputs.chunks(tokens).zip(batch.targets.chunks(tokens)).zip(domains.chunks(sequences));
        let micro_batches: Vec<_> =
            texts.map(|((inputs, targets), domains)| MicroBatch { inputs, targets, domains }).collect();
        let share = 1.0 / micro_batches.len() as f64;
        if self.options.balancing.scope != BalanceScope::Global {
            let part = |texts: &MicroBatch<'_>| self.backward(&self.forward(texts)?, None, share);
            return Ok(Part::together(self.each(&micro_batches, part)?));
        }
        // The loss of each needs the load of all, so that all are held until that is known.
        let passes = self.each(&micro_batches, |texts| self.forward(texts))?;
        let (first, rest) = passes.split_first().expect("a batch has a micro-batch");
        let mut counts = first.counts.clone();
        rest.iter().for_each(|pass| counts.add(&pass.counts));
        Ok(Part::together(self.each(&passes, |pass| self.backward(pass, Some(&counts), share))?))
    }

    /// Maps items by the workers; the result is in the order of the items.
    fn each<T: Sync, R: Send>(&self, items: &[T], map: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        // A thread that is held up leaves the rest to the others.
        let work = || {
            let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&n| n < items.len());
            std::iter::from_fn(claim).map(|n| (n, map(&items[n]))).collect::<Vec<_>>()
        };
        if self.workers.is_empty() {
            return work().into_iter().map(|(_, result)| result).collect();
        }
        let mut mapped: Vec<(usize, Result<R>)> = thread::scope(|scope| {
            let workers = self.workers.iter().take(items.len());
            let handles: Vec<_> = workers.map(|pool| scope.spawn(|| pool.install(work))).collect();
            let joined = handles.into_iter().map(thread::ScopedJoinHandle::join);
            joined.flat_map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        mapped.sort_by_key(|&(n, _)| n);
        mapped.into_iter().map(|(_, result)| result).collect()
    }

    /// Runs a micro-batch through the model.
    fn forward(&self, texts: &MicroBatch<'_>) -> Result<Pass> {
        let shape = (self.options.micro_batch, self.options.length);
        let inputs = Tensor::from_slice(texts.inputs, shape, self.model.device())?;
        let capacity_factor = self.options.balancing.capacity_factor;
        let options = DenseOptions { domains: Some(texts.domains), capacity_factor };
        let output = self.model.forward_dense_with(&inputs, &options)?;
        let experts = self.model.config().params().num_experts;
        Ok(Pass {
            loss: cross_entropy(&output.logits.flatten_to(1)?, texts.targets)?.mean_all()?,
            counts: RoutingCounts::new(&output.routers, texts.domains, self.domains, experts),
            routers: output.routers,
        })
    }

    /// Losses of a micro-batch, and its `share` of the gradient; `step` has the routing of all micro-batches, if it is
    /// that which has to be balanced.
    fn backward(&self, pass: &Pass, step: Option<&RoutingCounts>, share: f64) -> Result<Part> {
        let Balancing { scope, coefficient, z_loss: z_coefficient, .. } = self.options.balancing;
        let balances = pass.routers.iter().enumerate().map(|(layer, router)| match (scope, step) {
            (BalanceScope::Sequence, _) => sequence_balance(&router.probs, &router.experts, self.options.micro_batch),
            (_, Some(counts)) => load_balance_at(&router.probs, &counts.shares(layer)),
            (_, None) => load_balance(&router.probs, &router.experts),
        });
        let balance = Tensor::stack(&balances.collect::<Result<Vec<_>, _>>()?, 0)?.mean_all()?;
        let z_losses = pass.routers.iter().filter_map(|router| router.logits.as_ref()).map(router_z_loss);
        let z_losses = z_losses.collect::<Result<Vec<_>, _>>()?;
        // Experts that are drawn have no logits to keep small.
        let z_loss = match z_losses.is_empty() {
            true => pass.loss.zeros_like()?,
            false => Tensor::stack(&z_losses, 0)?.mean_all()?,
        };
        let mut total = pass.loss.clone();
        if scope != BalanceScope::None {
            total = (total + (&balance * coefficient)?)?;
        }
        if z_coefficient > 0.0 {
            total = (total + (&z_loss * z_coefficient)?)?;
        }
        Ok(Part {
            loss: f64::from(pass.loss.to_scalar::<f32>()?),
            balance: f64::from(balance.to_scalar::<f32>()?),
            z_loss: f64::from(z_loss.to_scalar::<f32>()?),
            counts: pass.counts.clone(),
            gradient: self.optimizer.gradient(&(total * share)?.backward()?)?,
        })
    }
}
